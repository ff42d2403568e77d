// SPDX-License-Identifier: GPL-2.0

//! The virtual machine: one vCPU, one guest_memfd, and the VMM's side of the commands.

use crate::{
    contract::Platform,
    guest,
    stats,
    table::Seen, //
};
use gmem::{
    emulation::Key,
    picture::Picture,
    AccessError,
    Content,
    ConvertError,
    CreateFlags,
    GuestMemfd,
    Mapping,
    Outside,
    Populator,
    RangeError,
    Region,
    Regions,
    Service,
    Slot,
    Visibility, //
};
use kvm_ioctls::{
    Kvm,
    VcpuFd,
    VmFd, //
};
use std::{
    ops::Range,
    sync::Arc, //
};

#[cfg(target_arch = "aarch64")]
#[path = "machine/arm64.rs"]
mod arch;
#[cfg(target_arch = "x86_64")]
#[path = "machine/x86.rs"]
mod arch;

/// The guest's requests to the VMM.
enum Event<'a> {
    /// A word of a command.
    Ask(&'a mut [u8]),
    /// The answer to a command.
    Answer(&'a [u8]),
    /// A conversion, with the address of the return value.
    Hypercall(u64, [u64; 6], &'a mut u64),
    /// Memory of the wrong kind: flags, guest physical address, bytes.
    Fault(u64, u64, u64),
    /// An exit that this VMM does not know.
    Lost(String),
}

/// What went wrong, in readable form. The demonstration cannot continue after it.
pub type Result<T> = std::result::Result<T, String>;

/// Which guest physical addresses the VMM converted at the guest's request, or why it could not.
type Served = std::result::Result<Range<u64>, RangeError>;

/// A page of the guest.
pub const PAGE: u64 = 0x1000;

/// The slot begins neither at the start of the file nor at the same number as in the file, so that a
/// confusion of the kinds of addresses is noticed.
const SLOT: Range<u64> = 0x10000..0x210000;
const GUEST_BASE: u64 = 0x100000;

/// The first pages of the slot have a use of their own, and stay as they are after launch: what the
/// guest runs on, what it reports to, and what an architecture needs besides.
const OWN: Range<u64> = SLOT.start..SLOT.start + 5 * PAGE;
const CODE: u64 = OWN.start;
const STACK_TOP: u64 = OWN.start + 2 * PAGE;
#[cfg(target_arch = "x86_64")]
const TABLES: Range<u64> = STACK_TOP..OWN.end;
const REPORT: Range<u64> = OWN.end..OWN.end + 4 * PAGE;
#[cfg(target_arch = "x86_64")]
const GHCB: u64 = REPORT.end;
const FREE: u64 = SLOT.start + 16 * PAGE;

/// The number of attempts for a conversion that fails with `EAGAIN`.
const ATTEMPTS: u32 = 1000;

/// A virtual machine with one vCPU.
pub struct Machine {
    platform: &'static Platform,
    launch: arch::Launch,
    /// The platform's key, if it encrypts.
    key: Key,
    vm: VmFd,
    vcpu: VcpuFd,
    slot: Slot,
    regions: Regions,
    mapping: Arc<Mapping>,
    memory: Arc<GuestMemfd>,
    free: u64,
    /// The policy for the guest's requests, which the guest cannot influence.
    content: Content,
    /// How the last conversion at the guest's request ended.
    served: Option<Served>,
}

impl Machine {
    /// Puts the machine together in a VM that has no memory and no vCPU yet.
    pub fn new(kvm: &Kvm, vm: VmFd, platform: &'static Platform) -> Result<Self> {
        let launch = arch::Launch::begin(&vm, platform)
            .map_err(|error| format!("becoming {}: {error}", platform.name))?;
        let flags = CreateFlags::MMAP | CreateFlags::INIT_SHARED;
        let memory = GuestMemfd::create(&vm, SLOT.end, flags)
            .map_err(|error| format!("creating the guest_memfd: {error}"))?;
        let memory = Arc::new(memory);
        let mapping = memory
            .map(0..SLOT.end)
            .map_err(|error| format!("mapping the guest_memfd: {error}"))?;
        let mapping = Arc::new(mapping);
        let region = Region::new(memory.clone(), SLOT, GUEST_BASE, Some(mapping.clone()));
        let slot = region
            .and_then(|region| region.bind(&vm, 0))
            .map_err(|error| format!("binding the guest_memfd: {error}"))?;
        let regions = Regions::new(vec![slot.region().clone()])
            .map_err(|error| format!("laying out the guest: {error}"))?;
        gmem::exit_on_map_gpa_range(&vm)
            .map_err(|error| format!("asking for hypercall exits: {error}"))?;

        let key = launch
            .key(&vm, address(CODE))
            .map_err(|error| format!("asking for the guest's key: {error}"))?;

        let machine = Self {
            platform,
            vcpu: arch::make_vcpu(kvm, &vm, platform)
                .map_err(|error| format!("making the vCPU: {error}"))?,
            launch,
            key,
            vm,
            slot,
            regions,
            mapping,
            memory,
            free: FREE,
            content: Content::None,
            served: None,
        };
        machine.host_write(CODE, &guest::program(platform))?;
        let (at, tables) = arch::page_tables(platform);
        machine.host_write(at, &tables)?;
        Ok(machine)
    }

    /// Starts the guest, if that is a separate step: it shares its memory for reports with the host.
    pub fn start(&mut self) -> Result<()> {
        if self.platform.guest_shares {
            self.guest_converts(&REPORT, Visibility::Shared, Content::Preserve)?;
        }
        Ok(())
    }

    /// The platform.
    pub fn platform(&self) -> &'static Platform {
        self.platform
    }

    /// The VM, to ask what it can do.
    pub fn vm(&self) -> &VmFd {
        &self.vm
    }

    /// The key, if the platform encrypts.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Lets the launch give private pages to the guest, if the platform's launch does this.
    pub fn load(&self, range: &Range<u64>) -> Result<()> {
        self.launch
            .add(&self.vm, self.addresses(range)?)
            .map_err(|error| format!("adding {range:x?} in place: {error}"))
    }

    /// Ends the launch, if the platform has one. Otherwise the guest's first step does.
    pub fn launch(&self) -> Result<()> {
        if arch::guest_runs_privately(self.platform) {
            self.convert(&OWN, Visibility::Private, Content::Preserve)?;
            self.load(&OWN)?;
        }
        self.launch
            .finish(&self.vm)
            .map_err(|error| format!("ending the launch: {error}"))
    }

    /// A picture of the guest_memfd, as an SVG.
    pub fn picture(&self, when: &str) -> Result<String> {
        let title = format!("{} VM, {when}", self.platform.name);
        Picture::of(&self.memory, title)
            .map(|picture| picture.svg())
            .map_err(|error| format!("drawing the guest_memfd: {error}"))
    }

    /// The same for a terminal.
    pub fn sketch(&self, colour: bool) -> Result<String> {
        Picture::of(
            &self.memory,
            format!("The file of the {} VM now:", self.platform.name),
        )
        .map(|picture| picture.terminal(colour))
        .map_err(|error| format!("drawing the guest_memfd: {error}"))
    }

    /// Whether the guest_memfd is shared as a whole, as it was made to be.
    pub fn starts_shared(&self) -> Result<bool> {
        let whole = self.state_at(0)?;
        Ok(whole == (0..self.memory.size(), Visibility::Shared))
    }

    /// Returns pages that were never used, each only once.
    pub fn fresh(&mut self, pages: u64) -> Result<Range<u64>> {
        let range = self.free..self.free + pages * PAGE;
        if range.end > SLOT.end {
            return Err("the guest's memory is too small for this demonstration".into());
        }
        self.free = range.end;
        Ok(range)
    }

    /// Converts by the VMM's own decision.
    pub fn convert(&self, range: &Range<u64>, to: Visibility, content: Content) -> Result<()> {
        self.memory
            .convert_retrying(range.clone(), to, content, ATTEMPTS)
            .map(drop)
            .map_err(|error| format!("converting {range:x?} to {to}, {content}: {error}"))
    }

    /// Lets the guest request a conversion by hypercall, which the VMM then does with `content`.
    pub fn guest_converts(
        &mut self,
        range: &Range<u64>,
        to: Visibility,
        content: Content,
    ) -> Result<()> {
        match self.guest_asks(range, to, content)? {
            (0, Ok(served)) if served == self.addresses(range)? => Ok(()),
            (answer, Ok(served)) => Err(format!(
                "guest asked for {range:x?}, VMM converted {served:x?}, guest got {answer:#x}"
            )),
            (_, Err(error)) => Err(format!(
                "guest asked for {range:x?} to {to}, {content}: {error}"
            )),
        }
    }

    /// Makes a request that the platform refuses, by the guest's hypercall if possible.
    pub fn is_refused(
        &mut self,
        range: &Range<u64>,
        to: Visibility,
        content: Content,
        errno: i32,
        by_guest: bool,
    ) -> Result<()> {
        if !by_guest {
            let refused = ConvertError {
                errno,
                offset: Some(range.start),
            };
            let served = self
                .memory
                .convert_retrying(range.clone(), to, content, ATTEMPTS);
            return match served {
                Err(error) if error == refused => Ok(()),
                served => Err(format!(
                    "{range:x?} to {to}, {content}, should be refused with {refused}: the VMM has \
                     {served:x?}"
                )),
            };
        }
        let start = self.addresses(range)?.start;
        let refused = RangeError {
            errno,
            address: Some(start),
            converted: start..start,
        };
        match self.guest_asks(range, to, content)? {
            (answer, Err(error))
                if error == refused && answer == guest::refusal(self.platform, errno) =>
            {
                Ok(())
            }
            (answer, served) => Err(format!(
                "{range:x?} to {to}, {content}, should be refused with {refused}: the VMM has \
                 {served:x?}, the guest {answer:#x}"
            )),
        }
    }

    /// Lets the guest request a conversion on a VM that cannot convert: it has to get the VMM's error.
    pub fn guest_asks_in_vain(&mut self, range: &Range<u64>) -> Result<()> {
        match self.guest_asks(range, Visibility::Private, Content::Preserve)? {
            (answer, Err(error)) if answer == guest::refusal(self.platform, error.errno) => Ok(()),
            (answer, served) => Err(format!(
                "the VMM's answer was {served:x?}, and the guest got {answer:#x}"
            )),
        }
    }

    /// The answer that the guest got, and what the VMM did.
    fn guest_asks(
        &mut self,
        range: &Range<u64>,
        to: Visibility,
        content: Content,
    ) -> Result<(u32, Served)> {
        let attributes = match to {
            Visibility::Private => guest::MAP_ENCRYPTED,
            Visibility::Shared => 0,
        };
        let pages = (range.end - range.start) / PAGE;
        let start = word(self.addresses(range)?.start)?;
        self.content = content;
        self.served = None;
        let answer = self.command(guest::MAP, start, pages as u32, attributes)?;
        match self.served.take() {
            Some(served) => Ok((answer, served)),
            None => Err(format!(
                "the guest's hypercall did not reach the VMM and returned {answer:#x}"
            )),
        }
    }

    /// Gives pages memory without using it.
    pub fn allocate(&self, range: Range<u64>) -> Result<()> {
        self.memory
            .allocate(range.clone())
            .map_err(|error| format!("fallocate of {range:x?}: {error}"))
    }

    /// The state of the page at `offset` according to the file, and the end of its run.
    pub fn state_at(&self, offset: u64) -> Result<(Range<u64>, Visibility)> {
        let run = self
            .memory
            .attributes_at(offset)
            .map_err(|error| format!("asking for the attributes at {offset:#x}: {error}"))?;
        Ok((run.range, run.visibility))
    }

    /// Writes to memory that the host may write to.
    pub fn host_write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.mapping
            .try_write(offset, bytes)
            .map_err(|error| format!("host write at {offset:#x}: {error}"))
    }

    /// What the host reads. It counts as refused only if all reads and writes are refused.
    pub fn host_read(&self, range: &Range<u64>) -> Result<Seen> {
        let length = (range.end - range.start) as usize;
        let mut bytes = vec![0xee; length];
        match self.mapping.try_read(range.start, &mut bytes) {
            Ok(()) => return Ok(Seen::Bytes(bytes)),
            Err(AccessError::Refused { offset }) if offset == range.start => {}
            Err(error) => return Err(format!("host read at {:#x}: {error}", range.start)),
        }
        for page in range.clone().step_by(PAGE as usize) {
            for offset in [page, page + PAGE - 1] {
                let read = self.mapping.try_read(offset, &mut [0]);
                let write = self.mapping.try_write(offset, &[0xee]);
                let refused = |access: std::result::Result<(), AccessError>| {
                    access.is_err_and(|error| error.is_refused())
                };
                if !refused(read) || !refused(write) {
                    return Err(format!(
                        "the host may not read {:#x}, but it may touch {offset:#x}",
                        range.start
                    ));
                }
            }
        }
        Ok(Seen::Refused)
    }

    /// Whether an ordinary load from the page gets `SIGBUS`: a child process tries.
    pub fn load_is_sigbus(&self, offset: u64) -> Result<bool> {
        // SAFETY: The child makes no allocation and takes no lock: it resets a signal, loads a
        // byte and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: As above; the handler that Rust has installed would print a message.
            unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
            std::hint::black_box(self.mapping.load(offset));
            // SAFETY: Ends the child without running the parent's destructors.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: The kernel writes the status to the variable.
        if child < 0 || unsafe { libc::waitpid(child, &mut status, 0) } != child {
            let error = std::io::Error::last_os_error();
            return Err(format!("trying a load in a child process: {error}"));
        }
        Ok(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS)
    }

    /// What the guest reads.
    pub fn guest_read(&mut self, range: &Range<u64>) -> Result<Vec<u8>> {
        let length = range.end - range.start;
        let report = REPORT.start..REPORT.start + length;
        if report.end > REPORT.end {
            return Err(format!("{range:x?} is too long for the guest's report"));
        }
        // If the guest writes nothing, the old report must not look like the expected bytes.
        self.host_write(report.start, &vec![0xee; length as usize])?;
        let from = self.address(range)?;
        let to = self.address(&report)?;
        let sum = self.command(guest::READ, from, length as u32, to)?;
        match self.host_read(&report)? {
            Seen::Bytes(bytes) if guest::checksum(&bytes) == sum => Ok(bytes),
            seen => Err(format!(
                "the guest's checksum {sum:#x} of {range:x?} is not that of its report, {}",
                seen.describe(&[], self.key)
            )),
        }
    }

    /// Lets the guest read shared pages that the host has written, and use them from then on.
    pub fn guest_joins(&mut self, range: &Range<u64>) -> Result<Vec<u8>> {
        let seen = self.guest_read(range)?;
        if self.platform.guest_shares {
            self.guest_converts(range, Visibility::Shared, Content::Preserve)?;
        }
        Ok(seen)
    }

    /// Lets the guest write a pattern, and returns it.
    pub fn guest_fill(&mut self, range: &Range<u64>, seed: u32) -> Result<Vec<u8>> {
        let length = range.end - range.start;
        let to = self.address(range)?;
        self.command(guest::FILL, to, length as u32, seed)?;
        Ok(guest::pattern(seed, length as usize))
    }

    /// How many faults of the second-level page table the guest has taken, if KVM counts that.
    pub fn faults(&self) -> Result<Option<u64>> {
        stats::value(&self.vcpu, "pf_taken")
            .map_err(|error| format!("reading the vCPU's statistics: {error}"))
    }

    /// Maps the pages for the guest ahead of its first touch.
    pub fn populate(&self, range: &Range<u64>) -> Result<()> {
        Populator::new(&self.vcpu)
            .map_err(|error| format!("taking a vCPU to map memory: {error}"))?
            .populate(self.addresses(range)?, ATTEMPTS)
            .map_err(|error| error.to_string())
    }

    /// Lets the guest call the code at `offset`, and returns its result.
    pub fn guest_call(&mut self, offset: u64, argument: u32) -> Result<u32> {
        let address = self.address(&(offset..offset + 1))?;
        self.command(guest::CALL, address, argument, 0)
    }

    /// Where the guest has a range of the file.
    fn addresses(&self, range: &Range<u64>) -> Result<Range<u64>> {
        self.slot
            .region()
            .guest_address(range.start)
            .map(|start| start..start + (range.end - range.start))
            .ok_or_else(|| format!("{range:x?} is not in the guest"))
    }

    /// The address at which the guest uses that, as a word of a command. If addresses select the kind
    /// of memory, it selects the kind that the file has, like a guest's kernel.
    fn address(&self, range: &Range<u64>) -> Result<u32> {
        let start = self.addresses(range)?.start;
        let private = self.platform.guest_means_kinds()
            && self.state_at(range.start)?.1 == Visibility::Private;
        word(if private { arch::private(start) } else { start })
    }

    /// Runs the guest until it has done a command.
    fn command(&mut self, command: u32, a: u32, b: u32, c: u32) -> Result<u32> {
        let words = [command, a, b, c];
        let mut words = words.iter();
        loop {
            let event = match arch::next_event(&mut self.vcpu) {
                Err(error) if error.errno() == libc::EINTR => continue,
                Err(error) => return Err(format!("running the vCPU: {error}")),
                Ok(event) => event,
            };
            match event {
                Event::Ask(data) => match (words.next(), data.len()) {
                    (Some(word), 4) => data.copy_from_slice(&word.to_le_bytes()),
                    _ => return Err("the guest has lost count of its commands".into()),
                },
                Event::Answer(data) => {
                    return match (words.next(), <[u8; 4]>::try_from(data)) {
                        (None, Ok(word)) => Ok(u32::from_le_bytes(word)),
                        _ => Err("the guest has answered too early".into()),
                    };
                }
                Event::Hypercall(number, args, ret) => {
                    let service = Service {
                        content: self.content,
                        attempts: ATTEMPTS,
                        outside: Outside::Refuse,
                        populate: None,
                    };
                    let Some(served) = self.regions.serve(number, &args, &service) else {
                        return Err(format!("the guest makes hypercall {number}"));
                    };
                    *ret = served.ret();
                    let range = served.request.map_or(0..0, |request| request.range);
                    let served = served.converted.map(|()| range);
                    self.served = Some(together(self.served.take(), served));
                }
                // The guest can only have it as private memory.
                Event::Fault(PRIVATE_FAULT, address, size) if self.platform.guest_shares => {
                    let (to, content) = (Visibility::Private, Content::Preserve);
                    self.regions
                        .convert(
                            address..address.saturating_add(size),
                            to,
                            content,
                            ATTEMPTS,
                            Outside::Refuse,
                        )
                        .map_err(|error| {
                            format!("the guest needs {size:#x} bytes at {address:#x}: {error}")
                        })?;
                }
                Event::Fault(flags, address, size) => {
                    return Err(format!(
                        "KVM could not map {size:#x} bytes at guest address {address:#x} (flags \
                         {flags:#x})"
                    ));
                }
                Event::Lost(how) => return Err(format!("the guest stopped: {how}")),
            }
        }
    }
}

/// `KVM_MEMORY_EXIT_FLAG_PRIVATE`.
const PRIVATE_FAULT: u64 = 1 << 3;

/// Where the guest finds what is at `offset` in the file.
const fn address(offset: u64) -> u64 {
    GUEST_BASE + (offset - SLOT.start)
}

/// An address as a word of a command.
fn word(address: u64) -> Result<u32> {
    u32::try_from(address).map_err(|_| format!("{address:#x} is beyond what a command can say"))
}

/// The joint result of several hypercalls of one command: some guests make one for each page.
fn together(before: Option<Served>, now: Served) -> Served {
    match (before, now) {
        (Some(Err(error)), _) => Err(error),
        (Some(Ok(before)), Ok(now)) if before.end == now.start => Ok(before.start..now.end),
        (_, now) => now,
    }
}
