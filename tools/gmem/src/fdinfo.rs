// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The lines of a guest_memfd in `/proc/PID/fdinfo/FD`, of any process that the caller may inspect.

use std::{
    error,
    fmt,
    fs,
    io,
    ops::Range, //
};

/// A guest_memfd as its `fdinfo` shows it. Sizes are in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FdInfo {
    /// Private and shared are tracked page by page, and can be converted.
    pub converts_in_place: bool,
    /// What keeps private pages private: `sw-protected`, `snp`, `tdx`, `pkvm`, followed by `
    /// (model)` for a software model, or `none`. Empty if the kernel does not report it.
    pub vendor: String,
    /// Size of the file.
    pub size: u64,
    /// How much of the file has memory.
    pub allocated: u64,
    /// How much is private, shared, and in how many runs; [`None`] if the kernel was interrupted
    /// while it counted.
    pub totals: Option<Totals>,
    /// Its pages can be moved to other memory
    /// ([`CreateFlags::MIGRATABLE`](crate::CreateFlags::MIGRATABLE)).
    pub migratable: bool,
    /// How much is physically contiguous in pieces of the size of a large mapping; [`None`] if the
    /// kernel does not report it, as for [`large`](Self::large).
    pub contiguous: Option<u64>,
    /// How much of that can be mapped large for a guest, because it is in use and all private or all
    /// shared.
    pub large: Option<u64>,
    /// How much of it is one folio each; [`None`] for files that were not made with
    /// [`CreateFlags::LARGE_FOLIOS`](crate::CreateFlags::LARGE_FOLIOS).
    pub folios: Option<u64>,
    /// The memslots that show pages of the file, lowest page first.
    pub slots: Vec<BoundSlot>,
}

/// How much of a file is private and shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bytes that are private.
    pub private: u64,
    /// Bytes that are shared.
    pub shared: u64,
    /// Runs of consecutive pages that are all private or all shared.
    pub runs: u64,
}

/// A memslot that shows pages of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundSlot {
    /// Guest frame numbers.
    pub gfns: Range<u64>,
    /// Byte offset in the file of the first of them.
    pub offset: u64,
}

/// Why the [`FdInfo`] cannot be read.
#[derive(Debug)]
#[non_exhaustive]
pub enum FdInfoError {
    /// `/proc` could not be read: `EACCES` without permission, `ENOENT` for no such descriptor.
    Io(io::Error),
    /// The descriptor is another kind of file.
    NotGuestMemfd,
    /// It is a guest_memfd of a kernel that shows nothing about it.
    NotSupported,
    /// A line that this library does not understand.
    Malformed(String),
}

impl fmt::Display for FdInfoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::NotGuestMemfd => write!(f, "not a guest_memfd"),
            Self::NotSupported => write!(
                f,
                "this kernel shows nothing about a guest_memfd: it needs \
                 CONFIG_KVM_GUEST_MEMFD_RUST=y"
            ),
            Self::Malformed(line) => write!(f, "cannot understand this line of fdinfo: {line}"),
        }
    }
}

impl error::Error for FdInfoError {}

impl From<io::Error> for FdInfoError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl FdInfo {
    /// Reads the fdinfo of descriptor `fd` of process `pid`.
    ///
    /// # Errors
    ///
    /// See [`FdInfoError`].
    pub fn read(pid: u32, fd: u32) -> Result<Self, FdInfoError> {
        let link = fs::read_link(format!("/proc/{pid}/fd/{fd}"))?;
        if !link.to_string_lossy().contains("[kvm-gmem]") {
            return Err(FdInfoError::NotGuestMemfd);
        }
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}"))?)
    }

    /// Reads the lines of an fdinfo of a guest_memfd. Those that do not begin with `gmem-` are
    /// left out.
    fn parse(text: &str) -> Result<Self, FdInfoError> {
        let mut info = Self::default();
        let mut mode = None;
        let (mut private, mut shared, mut runs) = (None, None, None);

        for line in text.lines().filter(|line| line.starts_with("gmem-")) {
            let malformed = || FdInfoError::Malformed(line.to_owned());
            let (key, value) = line.split_once(":\t").ok_or_else(malformed)?;
            let number = || value.parse::<u64>().map_err(|_| malformed());
            match key {
                "gmem-mode" => mode = Some(value == "in-place"),
                "gmem-vendor" => info.vendor = value.to_owned(),
                "gmem-size" => info.size = number()?,
                "gmem-allocated" => info.allocated = number()?,
                "gmem-private" => private = Some(number()?),
                "gmem-shared" => shared = Some(number()?),
                "gmem-runs" => runs = Some(number()?),
                "gmem-migratable" => info.migratable = value == "yes",
                "gmem-contiguous" => info.contiguous = Some(number()?),
                "gmem-large" => info.large = Some(number()?),
                "gmem-folios" => info.folios = Some(number()?),
                "gmem-slot" => info.slots.push(slot(value).ok_or_else(malformed)?),
                // Lines that a later kernel adds.
                _ => (),
            }
        }
        info.converts_in_place = mode.ok_or(FdInfoError::NotSupported)?;
        info.totals = private
            .zip(shared)
            .zip(runs)
            .map(|((private, shared), runs)| Totals {
                private,
                shared,
                runs,
            });
        Ok(info)
    }
}

/// The value of a `gmem-slot` line.
fn slot(value: &str) -> Option<BoundSlot> {
    let hex = |number: &str| u64::from_str_radix(number.strip_prefix("0x")?, 16).ok();
    let (gfns, offset) = value.split_once(" offset ")?;
    let (first, end) = gfns.split_once('-')?;

    Some(BoundSlot {
        gfns: hex(first)?..hex(end)?,
        offset: hex(offset)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str =
        "pos:\t0\ngmem-mode:\tin-place\ngmem-vendor:\tsnp (model)\ngmem-size:\t65536\n\
        gmem-allocated:\t20480\ngmem-private:\t28672\ngmem-shared:\t36864\ngmem-runs:\t2\n\
        gmem-migratable:\tyes\ngmem-contiguous:\t4194304\ngmem-large:\t2097152\n\
        gmem-folios:\t2097152\ngmem-slot:\t0x100020-0x100022 offset 0x1000\n";

    #[test]
    fn all_lines_are_read() {
        let expected = FdInfo {
            converts_in_place: true,
            vendor: "snp (model)".to_owned(),
            size: 65536,
            allocated: 20480,
            totals: Some(Totals {
                private: 28672,
                shared: 36864,
                runs: 2,
            }),
            migratable: true,
            contiguous: Some(4194304),
            large: Some(2097152),
            folios: Some(2097152),
            slots: vec![BoundSlot {
                gfns: 0x100020..0x100022,
                offset: 0x1000,
            }],
        };
        assert_eq!(FdInfo::parse(LINES).unwrap(), expected);
    }

    /// The kernel has this line for migratable files only.
    #[test]
    fn files_stay_in_their_memory_unless_they_say_otherwise() {
        let text = LINES.replace("gmem-migratable:\tyes\n", "");
        assert!(!FdInfo::parse(&text).unwrap().migratable);
        let text = LINES.replace("gmem-folios:\t2097152\n", "");
        assert_eq!(FdInfo::parse(&text).unwrap().folios, None);
    }

    #[test]
    fn totals_can_be_missing() {
        let text = LINES.replace("gmem-runs:\t2\n", "");
        assert_eq!(FdInfo::parse(&text).unwrap().totals, None);
    }

    #[test]
    fn a_kernel_without_the_lines_is_told_from_a_bad_line() {
        assert!(matches!(
            FdInfo::parse("pos:\t0\n"),
            Err(FdInfoError::NotSupported)
        ));
        for bad in ["gmem-size:\tmany", "gmem-slot:\t1-2", "gmem-runs"] {
            let text = format!("{LINES}{bad}\n");
            assert!(
                matches!(FdInfo::parse(&text), Err(FdInfoError::Malformed(line)) if line == bad)
            );
        }
    }
}
