// SPDX-License-Identifier: GPL-2.0

//! The argument of an ioctl.
//!
//! C header: [`include/linux/uaccess.h`](srctree/include/linux/uaccess.h)

use kernel::{
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

/// A pointer that user space passed.
#[derive(Clone, Copy)]
pub struct UserPointer(usize);

impl UserPointer {
    pub(crate) fn new(arg: usize) -> Self {
        Self(arg)
    }

    /// Copies a struct of `N` u64s in, once.
    ///
    /// # Errors
    ///
    /// `EFAULT`.
    pub fn read<const N: usize>(self) -> Result<[u64; N]> {
        UserSlice::new(UserPtr::from_addr(self.0), size_of::<[u64; N]>())
            .reader()
            .read::<[u64; N]>()
    }

    /// Copies a struct of `N` u64s out.
    ///
    /// # Errors
    ///
    /// `EFAULT`.
    pub fn write<const N: usize>(self, words: &[u64; N]) -> Result {
        UserSlice::new(UserPtr::from_addr(self.0), size_of::<[u64; N]>())
            .writer()
            .write(words)
    }
}
