// SPDX-License-Identifier: GPL-2.0

//! A vCPU's statistics, by KVM's binary interface for them.
//!
//! See `Documentation/virt/kvm/api.rst` of the kernel, `KVM_GET_STATS_FD`.

use kvm_ioctls::VcpuFd;
use std::{
    fs::File,
    io,
    os::{
        fd::{
            AsRawFd,
            FromRawFd, //
        },
        unix::fs::FileExt, //
    }, //
};

/// `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;

/// Bytes of a descriptor before the name.
const DESCRIPTOR: usize = 16;

/// One value; `None` if the kernel does not count that.
pub fn value(vcpu: &VcpuFd, name: &str) -> io::Result<Option<u64>> {
    // SAFETY: The ioctl takes no argument.
    let fd = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_STATS_FD) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: The descriptor is new and ours.
    let file = unsafe { File::from_raw_fd(fd) };
    // Flags, size of a name, number of values, and where id, descriptors and data lie.
    let mut header = [0; 24];
    file.read_exact_at(&mut header, 0)?;
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
    let (size, number) = (DESCRIPTOR + word(4) as usize, word(8) as usize);

    let mut descriptors = vec![0; size * number];
    file.read_exact_at(&mut descriptors, word(16).into())?;
    let Some(offset) = offset_of(&descriptors, size, name) else {
        return Ok(None);
    };
    let mut data = [0; 8];
    file.read_exact_at(&mut data, u64::from(word(20)) + offset)?;
    Ok(Some(u64::from_le_bytes(data)))
}

/// Where in the data the value with this name lies, in bytes.
fn offset_of(descriptors: &[u8], size: usize, name: &str) -> Option<u64> {
    descriptors.chunks_exact(size).find_map(|descriptor| {
        let (fixed, text) = descriptor.split_at(DESCRIPTOR);
        let text = text.split(|&byte| byte == 0).next()?;
        let offset = fixed[8..12].try_into().ok()?;
        (text == name.as_bytes()).then(|| u32::from_le_bytes(offset).into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_whole() {
        let descriptor = |offset: u32, name: &str| {
            let mut bytes = vec![0; DESCRIPTOR + 12];
            bytes[8..12].copy_from_slice(&offset.to_le_bytes());
            bytes[DESCRIPTOR..DESCRIPTOR + name.len()].copy_from_slice(name.as_bytes());
            bytes
        };
        let all = [descriptor(8, "pf_taken_up"), descriptor(24, "pf_taken")].concat();
        assert_eq!(offset_of(&all, DESCRIPTOR + 12, "pf_taken"), Some(24));
        assert_eq!(offset_of(&all, DESCRIPTOR + 12, "pf"), None);
    }
}
