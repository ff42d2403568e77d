// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest's own requests for conversions.

use crate::{
    abi::{
        KVM_CAP_EXIT_HYPERCALL,
        KVM_HC_MAP_GPA_RANGE,
        KVM_MAP_GPA_RANGE_ENCRYPTED,
        KVM_MAP_GPA_RANGE_PAGE_SIZE,
        KVM_MAP_GPA_RANGE_RELINQUISHED, //
    },
    attributes::{
        Content,
        Visibility, //
    },
    kvm,
    populate::{
        PopulateError,
        Populator, //
    },
    region::{
        Outside,
        RangeError,
        Regions, //
    },
};
use std::{
    io,
    ops::Range,
    os::fd::AsRawFd, //
};

/// Bytes of the pages that the hypercall counts, on every architecture.
const HYPERCALL_PAGE: u64 = 0x1000;

/// Makes KVM hand `KVM_HC_MAP_GPA_RANGE` to the VMM, as `KVM_EXIT_HYPERCALL`.
///
/// `vm` is the descriptor of a VM. On arm64 none of its vCPUs may have run yet.
///
/// # Errors
///
/// Those of `KVM_ENABLE_CAP` for `KVM_CAP_EXIT_HYPERCALL`: `EINVAL` if KVM cannot
/// ([`Capabilities::exits_map_gpa_range`](crate::Capabilities::exits_map_gpa_range)), `EBUSY` if it
/// is too late.
pub fn exit_on_map_gpa_range(vm: &impl AsRawFd) -> io::Result<()> {
    let args = [1 << KVM_HC_MAP_GPA_RANGE, 0, 0, 0];
    kvm::enable_cap(vm, KVM_CAP_EXIT_HYPERCALL as u32, args)
}

/// A request of the guest by `KVM_HC_MAP_GPA_RANGE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapGpaRange {
    /// Guest physical addresses, in bytes.
    pub range: Range<u64>,
    /// What the range becomes.
    pub to: Visibility,
    /// Whether the guest has given the memory back, by pKVM's MEM_RELINQUISH, and its bytes are
    /// gone. The range is private, and stays private.
    pub given_back: bool,
}

/// Only guests of pKVM can give memory back.
const CAN_GIVE_BACK: bool = cfg!(target_arch = "aarch64");

impl MapGpaRange {
    /// Decodes the `args` of the hypercall (`Documentation/virt/kvm/x86/hypercalls.rst`; the
    /// arguments of a `KVM_EXIT_HYPERCALL` on arm64 are the same). Returns [`None`] if they are
    /// invalid: no page, addresses that wrap, or an unknown attribute. The preferred page size is
    /// only a hint, and is ignored.
    ///
    /// ```
    /// use gmem::{MapGpaRange, Visibility};
    ///
    /// let request = MapGpaRange::from_args(&[0x10_0000, 2, 1 << 4, 0, 0, 0]);
    /// let expected = MapGpaRange {
    ///     range: 0x10_0000..0x10_2000,
    ///     to: Visibility::Private,
    ///     given_back: false,
    /// };
    /// assert_eq!(request, Some(expected));
    /// ```
    pub fn from_args(args: &[u64; 6]) -> Option<Self> {
        Self::parse(args, CAN_GIVE_BACK)
    }

    fn parse(args: &[u64; 6], can_give_back: bool) -> Option<Self> {
        const GIVEN_BACK: u64 = KVM_MAP_GPA_RANGE_ENCRYPTED | KVM_MAP_GPA_RANGE_RELINQUISHED;

        let [address, pages, attributes, ..] = *args;
        let size = pages.checked_mul(HYPERCALL_PAGE).filter(|&size| size > 0)?;
        let range = address..address.checked_add(size)?;
        let (to, given_back) = match attributes & !KVM_MAP_GPA_RANGE_PAGE_SIZE {
            0 => (Visibility::Shared, false),
            KVM_MAP_GPA_RANGE_ENCRYPTED => (Visibility::Private, false),
            GIVEN_BACK if can_give_back => (Visibility::Private, true),
            _ => return None,
        };
        Some(Self {
            range,
            to,
            given_back,
        })
    }
}

/// How a VMM serves a guest's requests. The guest cannot influence this.
#[derive(Clone, Copy, Debug)]
pub struct Service<'a> {
    /// The content policy. Guests of pKVM, and software-protected Linux guests, expect
    /// [`Content::Preserve`].
    pub content: Content,
    /// The number of attempts for a conversion that fails with `EAGAIN`.
    pub attempts: u32,
    /// What to do with addresses that are in no region.
    pub outside: Outside,
    /// If set, maps converted memory for the guest, so that its next access takes no fault. For a
    /// guest of pKVM, the pages of a request are mapped already.
    pub populate: Option<&'a Populator>,
}

/// The result of a guest's request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "the guest waits for `ret`"]
pub struct Served {
    /// The request; [`None`] if it was invalid.
    pub request: Option<MapGpaRange>,
    /// Why the request was refused, or why memory that was given back was not freed. `EIO` with an
    /// address means that the VM is dead: the VMM has to end it.
    pub converted: Result<(), RangeError>,
    /// Whether the range is mapped now, if that was requested. The guest does not need to know: an
    /// access to memory that is not mapped takes a fault.
    pub populated: Option<Result<(), PopulateError>>,
}

impl Served {
    /// The value for `ret` of the exit: 0, `EAGAIN` or `EINVAL`, positive.
    ///
    /// These are the three values that `KVM_CAP_EXIT_HYPERCALL` allows
    /// (`Documentation/virt/kvm/api.rst`). For any other value `KVM_RUN` of an SNP or TDX guest
    /// fails. `EAGAIN` makes a TDX guest ask again.
    pub fn ret(&self) -> u64 {
        match &self.converted {
            Ok(()) => 0,
            Err(error) => hypercall_ret(error.errno),
        }
    }
}

/// How an error of a conversion is reported to a guest.
fn hypercall_ret(errno: i32) -> u64 {
    match errno {
        libc::EAGAIN => libc::EAGAIN as u64,
        _ => libc::EINVAL as u64,
    }
}

impl Regions {
    /// Serves a `KVM_EXIT_HYPERCALL`: converts what the guest asks for, or frees what it has given
    /// back, and says what to answer. [`None`] for a hypercall other than `KVM_HC_MAP_GPA_RANGE`.
    ///
    /// `nr` and `args` are from the exit. They come from the guest, and are not trusted.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
    /// # let regions = gmem::Regions::default();
    /// use gmem::{Content, Outside, Populator, Service};
    ///
    /// gmem::exit_on_map_gpa_range(&vm)?;
    /// let mut vcpu = vm.create_vcpu(0)?;
    /// let populator = Populator::new(&vcpu)?;
    /// let service = Service {
    ///     content: Content::Preserve,
    ///     attempts: 1000,
    ///     outside: Outside::Refuse,
    ///     populate: Some(&populator),
    /// };
    /// match vcpu.run()? {
    ///     kvm_ioctls::VcpuExit::Hypercall(call) => {
    ///         if let Some(served) = regions.serve(call.nr, &call.args, &service) {
    ///             *call.ret = served.ret();
    ///         }
    ///     }
    ///     other => println!("{other:?}"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn serve(&self, nr: u64, args: &[u64; 6], service: &Service<'_>) -> Option<Served> {
        if nr != KVM_HC_MAP_GPA_RANGE {
            return None;
        }
        let Some(request) = MapGpaRange::from_args(args) else {
            return Some(Served {
                request: None,
                converted: Err(RangeError {
                    errno: libc::EINVAL,
                    address: None,
                    converted: 0..0,
                }),
                populated: None,
            });
        };
        Some(self.serve_request(request, service))
    }

    fn serve_request(&self, request: MapGpaRange, service: &Service<'_>) -> Served {
        let MapGpaRange {
            range,
            to,
            given_back,
        } = request.clone();
        if given_back {
            return Served {
                request: Some(request),
                converted: self.free(range, service.outside),
                populated: None,
            };
        }
        let converted = self.convert(
            range.clone(),
            to,
            service.content,
            service.attempts,
            service.outside,
        );
        let populate = |populator: &Populator| {
            self.parts(&range)
                .into_iter()
                .filter(|(_, region)| region.is_some())
                .try_for_each(|(part, _)| populator.populate(part, service.attempts))
        };
        let populated = service.populate.filter(|_| converted.is_ok()).map(populate);
        Served {
            request: Some(request),
            converted,
            populated,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::tests::region;

    const SERVICE: Service<'_> = Service {
        content: Content::Preserve,
        attempts: 2,
        outside: Outside::Refuse,
        populate: None,
    };

    #[test]
    fn arguments_are_the_guests_and_checked() {
        let from = |address, pages, attributes| {
            MapGpaRange::from_args(&[address, pages, attributes, 1, 2, 3])
                .map(|request| (request.range, request.to))
        };
        assert_eq!(
            from(0x3000, 2, 0),
            Some((0x3000..0x5000, Visibility::Shared))
        );
        let private = Some((0x3000..0x5000, Visibility::Private));
        // A preferred page size of 4 KiB, 2 MiB, 1 GiB.
        for hint in 0..3 {
            assert_eq!(from(0x3000, 2, 1 << 4 | hint), private);
        }
        assert_eq!(from(0x3000, 2, 1 << 5), None);
        assert_eq!(from(0x3000, 2, 1 << 4 | 1 << 6), None);
        assert_eq!(from(0x3000, 2, 1 << 63), None);
        assert_eq!(from(0x3000, 0, 0), None);
        assert_eq!(from(0x3000, 1 << 52, 0), None);
        assert_eq!(from(u64::MAX - 0xfff, 2, 0), None);
    }

    #[test]
    fn memory_is_given_back_by_guests_that_can() {
        let from = |attributes, can| MapGpaRange::parse(&[0x3000, 2, attributes, 0, 0, 0], can);
        let given_back = MapGpaRange {
            range: 0x3000..0x5000,
            to: Visibility::Private,
            given_back: true,
        };
        assert_eq!(from(1 << 4 | 1 << 5, true), Some(given_back.clone()));
        assert_eq!(from(1 << 4 | 1 << 5, false), None);
        for alone in [1 << 5, 1 << 5 | 1 << 6] {
            assert_eq!(from(alone, true), None);
        }
        assert_eq!(from(1 << 4, true).map(|it| it.given_back), Some(false));

        // It is freed, and not converted: this file would refuse that.
        let region = region(0..0x4000, 0x3000);
        let mapping = region.mapping().unwrap().clone();
        for offset in [0, 0x1fff, 0x2000, 0x3fff] {
            mapping.store(offset, 0x5a);
        }
        let regions = Regions::new(vec![region]).unwrap();
        let served = regions.serve_request(given_back, &SERVICE);
        assert_eq!((served.ret(), served.populated), (0, None));
        let bytes = [0, 0x1fff, 0x2000, 0x3fff].map(|offset| mapping.load(offset));
        assert_eq!(bytes, [0, 0, 0x5a, 0x5a]);

        let stray = from(1 << 4 | 1 << 5, true).unwrap();
        let stray = MapGpaRange {
            range: 0..0x4000,
            ..stray
        };
        let served = regions.serve_request(stray, &SERVICE);
        assert_eq!(served.ret(), libc::EINVAL as u64);
        assert_eq!(served.converted.unwrap_err().address, Some(0));
    }

    #[test]
    fn answers_are_those_that_kvm_takes() {
        for errno in 1..200 {
            assert!([libc::EINVAL as u64, libc::EAGAIN as u64].contains(&hypercall_ret(errno)));
        }
        assert_eq!(hypercall_ret(libc::EAGAIN), 11);
        assert_eq!(hypercall_ret(libc::EPERM), 22);
    }

    #[test]
    fn requests_are_served_or_refused() {
        let region = region(0..0x4000, 0x1_0000);
        let hold = region.memory().hold(0x1000..0x2000).unwrap();
        let regions = Regions::new(vec![region]).unwrap();
        let serve = |nr, args| regions.serve(nr, &args, &SERVICE);
        let private = [0x1_0000, 4, 1 << 4, 0, 0, 0];
        assert_eq!(serve(11, private), None);

        let busy = serve(12, private).unwrap();
        assert_eq!(busy.ret(), libc::EAGAIN as u64);
        let error = busy.converted.unwrap_err();
        assert_eq!((error.errno, error.address), (libc::EAGAIN, Some(0x1_1000)));
        drop(hold);
        // This file does not convert, and the guest gets no other answer.
        let refused = serve(12, private).unwrap();
        assert_eq!(refused.converted.as_ref().unwrap_err().errno, libc::ENOTTY);
        assert_eq!(refused.ret(), libc::EINVAL as u64);
        assert_eq!(refused.populated, None);

        for senseless in [[0x1_0000, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]] {
            assert_eq!(serve(12, senseless).unwrap().ret(), libc::EINVAL as u64);
        }
    }
}
