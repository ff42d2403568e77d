// SPDX-License-Identifier: GPL-2.0

//! The RMP of this host, as the model has it.

use super::{
    page::Page,
    uapi, //
};
use crate::{
    bindings,
    fs::{
        block::PrivateBlock,
        page_cache::PrivatePage, //
    },
    kvm::{
        hardware::{
            self,
            sealed::Sealed,
            Failed,
            Relocation,
            Rmp,
            Unmoved,
            Unsplit, //
        },
        vm::{
            Gfn,
            Pfn,
            Vm, //
        }, //
    },
    mm::folio::Frame, //
};
use core::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use gmem_policy::emulation::{
    rmp::{
        self,
        Code,
        Entry,
        Operation,
        Size,
        Table,
        LARGE_PAGES, //
    },
    Fault, //
};
use gmem_types::platform::Base;
use kernel::{
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    },
    sync::global_lock, //
};

/// The model's data of a page.
#[derive(Default)]
struct Row {
    entry: Entry,
    fault: Option<Fault<Operation, Code>>,
}

/// The rows of the pages that were ever given to a guest.
struct Rows(Option<RBTree<u64, Row>>);

impl Rows {
    fn get_mut(&mut self, pfn: u64) -> Option<&mut Row> {
        self.0.as_mut()?.get_mut(&pfn)
    }

    /// Whether a test wants `operation` to fail.
    fn strike(&mut self, pfn: u64, operation: Operation) -> Result<(), Code> {
        match self.get_mut(pfn).and_then(|row| row.fault.as_mut()) {
            Some(fault) => fault.strike(operation),
            None => Ok(()),
        }
    }
}

impl Table for Rows {
    fn get(&self, pfn: u64) -> Entry {
        let row = self.0.as_ref().and_then(|rows| rows.get(&pfn));
        row.map_or(Entry::HYPERVISOR, |row| row.entry)
    }

    fn set(&mut self, pfn: u64, entry: Entry) {
        // Written rows were reserved.
        if let Some(row) = self.get_mut(pfn) {
            row.entry = entry;
        }
    }
}

global_lock! {
    // SAFETY: init() initialises it when KVM is loaded, before there is a VM.
    unsafe(uninit) static RMP: SpinLock<Rows> = Rows(None);
}

/// Whether [`RMP`] is initialised.
static READY: AtomicBool = AtomicBool::new(false);

/// Whether there are rows at all: pages of other VMs are freed without a look at the lock.
static USED: AtomicBool = AtomicBool::new(false);

/// # Safety
///
/// To be called before anything else here. Later calls must not run concurrently with the first.
pub(super) unsafe fn init() {
    if !READY.swap(true, Ordering::Relaxed) {
        // SAFETY: The first call, and by the contract of this function.
        unsafe { RMP.init() }
    }
}

/// Converts the code of an instruction that changes an entry.
fn failed(_: Code) -> Failed {
    Failed::Platform
}

/// Makes room for the rows of `pages` pages from `pfn` on.
pub(super) fn reserve(pfn: u64, pages: u64) -> Result<(), Failed> {
    for pfn in pfn..pfn.saturating_add(pages) {
        if RMP.lock().get_mut(pfn).is_some() {
            continue;
        }
        let node = RBTreeNode::new(pfn, Row::default(), GFP_KERNEL).map_err(|_| Failed::Memory)?;
        let mut rmp = RMP.lock();
        if rmp.get_mut(pfn).is_none() {
            rmp.0.get_or_insert_with(RBTree::new).insert(node);
        }
    }
    USED.store(true, Ordering::Release);
    Ok(())
}

impl ModelRmp {
    /// Whether a page was ever given to a guest.
    pub(crate) fn is_used() -> bool {
        USED.load(Ordering::Acquire)
    }
}

/// Reads the entry that decides about a page.
pub(super) fn lookup(pfn: Pfn) -> Entry {
    if !ModelRmp::is_used() {
        return Entry::HYPERVISOR;
    }
    rmp::lookup(&*RMP.lock(), pfn.get())
}

/// The same as a test sees it, for a page that may not exist: `KVM_GMEM_EMULATE_STATE_*`, the guest's
/// frame of this page, and the guest.
pub(super) fn query(pfn: Option<Pfn>) -> (u32, u64, Option<u32>) {
    let entry = pfn.map_or(Entry::HYPERVISOR, lookup);
    let within = match (pfn, entry.size) {
        (Some(pfn), Size::Large) => pfn.get() % LARGE_PAGES,
        _ => 0,
    };
    (
        uapi::rmp_state(&entry),
        entry.gpa / super::PAGE + within,
        entry.assigned.then_some(entry.asid),
    )
}

/// The first page of the 2M that a page is in.
fn first(pfn: u64) -> u64 {
    pfn - pfn % LARGE_PAGES
}

/// An instruction that changes an entry, with what it is given.
#[derive(Clone, Copy)]
enum Instruction {
    /// RMPUPDATE.
    Update(Entry),
    /// PSMASH, of the 2M that the page is in.
    Smash,
}

impl Instruction {
    /// The operation for injected failures.
    fn operation(self) -> Operation {
        match self {
            Self::Update(entry) if entry.assigned => Operation::Assign,
            Self::Update(_) => Operation::Unassign,
            Self::Smash => Operation::Smash,
        }
    }

    /// Traces it as the kernel traces the hardware's. `code` is the instruction's.
    fn trace(self, pfn: u64, code: i32) {
        let (operation, entry) = match self {
            Self::Update(entry) => match entry {
                Entry {
                    assigned: false, ..
                } => (bindings::GMEM_RMP_UNASSIGN, entry),
                Entry {
                    immutable: true, ..
                } => (bindings::GMEM_RMP_ASSIGN_IMMUTABLE, entry),
                _ => (bindings::GMEM_RMP_ASSIGN, entry),
            },
            Self::Smash => (bindings::GMEM_RMP_SMASH, Entry::HYPERVISOR.large()),
        };
        let pfn = match self {
            Self::Update(_) => pfn,
            Self::Smash => first(pfn),
        };
        let (large, gfn) = (entry.size == Size::Large, entry.gpa / super::PAGE);
        // SAFETY: Only traces.
        // CAST: A small enumeration.
        unsafe { bindings::gmem_trace_rmp(operation as i32, pfn, large, gfn, entry.asid, code) }
    }
}

/// The table without the pages below it, for simulated hardware, which takes care of them itself.
///
/// Room for the pages was made by [`reserve`].
#[cfg(CONFIG_KVM_SNP_SIMULATION)]
pub(super) mod table {
    use super::*;

    /// RMPUPDATE.
    pub(in super::super) fn update(pfn: u64, entry: Entry) -> Result<(), Code> {
        let mut rmp = RMP.lock();
        let operation = Instruction::Update(entry).operation();
        rmp.strike(pfn, operation)
            // The kernel would print a stack trace then, although there is no bug.
            .inspect_err(|_| pr_warn!("emulation: a test has {operation:?} fail\n"))?;
        rmp::update(&mut *rmp, pfn, entry)
    }

    /// PSMASH.
    pub(in super::super) fn smash(pfn: u64) -> Result<(), Code> {
        let mut rmp = RMP.lock();
        let operation = Operation::Smash;
        rmp.strike(pfn, operation)
            // The page is lost then, which is reported.
            .inspect_err(|_| pr_warn!("emulation: a test has {operation:?} fail\n"))?;
        rmp::smash(&mut *rmp, pfn)
    }

    /// How many pages are guests'.
    pub(in super::super) fn assigned() -> u64 {
        // A chain of iterators would get a symbol whose name is too long for kallsyms.
        let mut guests = 0;
        if let Some(rows) = &RMP.lock().0 {
            for row in rows.values() {
                if row.entry.assigned && row.entry.asid != 0 {
                    guests += match row.entry.size {
                        Size::Small => 1,
                        Size::Large => LARGE_PAGES,
                    };
                }
            }
        }
        guests
    }

    /// The end of LAUNCH_UPDATE.
    pub(in super::super) fn launch(pfn: u64) -> Result<(), Code> {
        rmp::launch(&mut *RMP.lock(), pfn)
    }

    /// The end of PAGE_MOVE.
    pub(in super::super) fn relocate(from: u64, to: u64) -> Result<(), Code> {
        rmp::relocate(&mut *RMP.lock(), from, to)
    }

    /// The end of PAGE_RECLAIM.
    pub(in super::super) fn reclaim(pfn: u64) -> Result<(), Code> {
        rmp::reclaim(&mut *RMP.lock(), pfn)
    }
}

/// Carries out an instruction on the entry of a page, and traces it. After an update that hands the
/// page to firmware, firmware's own step follows, which makes the page the guest's.
fn transition(pfn: u64, instruction: Instruction) -> Result<(), Code> {
    let done = {
        let mut rmp = RMP.lock();
        rmp.strike(pfn, instruction.operation())
            .and_then(|()| match instruction {
                Instruction::Update(entry) => {
                    rmp::update(&mut *rmp, pfn, entry)?;
                    if entry.immutable {
                        rmp::launch(&mut *rmp, pfn)?;
                    }
                    Ok(())
                }
                Instruction::Smash => rmp::smash(&mut *rmp, first(pfn)),
            })
    };
    // CAST: The numbers of hardware.
    instruction.trace(pfn, done.err().map_or(0, |code| code as i32));
    done
}

/// RMPUPDATE.
fn update(page: Page<'_>, entry: Entry) -> Result<(), Failed> {
    transition(page.pfn(), Instruction::Update(entry)).map_err(failed)
}

/// The host reads the bytes of the guest that has lost the page as ciphertext.
fn reveal(page: Page<'_>) {
    if page.is_hidden() {
        page.show();
        page.combine();
    }
}

/// Converts an entry for vendors.
fn said(entry: Entry) -> hardware::Entry {
    hardware::Entry {
        assigned: entry.assigned,
        large: entry.size == Size::Large,
    }
}

/// The RMP that all SW_PROTECTED VMs with the behaviour of SNP share.
pub struct ModelRmp;

impl Sealed for ModelRmp {}

impl Rmp for ModelRmp {
    const BASE: Base = Base::Model;

    fn asid(vm: &Vm) -> Result<u32, Failed> {
        Ok(super::of(vm).ok_or(Failed::Platform)?.id)
    }

    fn lookup(frame: &Frame<'_>) -> Result<hardware::Entry, Failed> {
        Ok(said(lookup(frame.pfn())))
    }

    /// The guest reads the host's bytes through its key.
    fn assign(page: &PrivatePage<'_>, gfn: Gfn, asid: u32) -> Result<(), Failed> {
        let frame = &page.frame();
        let page = Page::new(frame);

        reserve(page.pfn(), 1)?;
        page.prepare()?;
        update(page, Entry::assigned(asid, gpa(gfn)))?;
        frame.set_model();
        if page.is_hidden() {
            // Hardware allows it. It is no longer known whose bytes these are.
            pr_warn!(
                "emulation: pfn {:#x} was taken from its owner\n",
                page.pfn()
            );
            return Ok(());
        }
        page.combine();
        page.hide().inspect_err(|_| {
            page.combine();
            let _ = rmp::update(&mut *RMP.lock(), page.pfn(), Entry::HYPERVISOR);
        })
    }

    fn unassign(frame: &Frame<'_>) -> Result<(), Failed> {
        let page = Page::new(frame);

        update(page, Entry::HYPERVISOR)?;
        reveal(page);
        Ok(())
    }

    fn assign_block(block: &PrivateBlock<'_>, gfn: Gfn, asid: u32) -> Result<(), Failed> {
        let first = block.first().get();

        reserve(first, LARGE_PAGES)?;
        for frame in block.frames() {
            Page::new(&frame).prepare()?;
        }
        let entry = Entry::assigned(asid, gpa(gfn)).large();
        transition(first, Instruction::Update(entry)).map_err(failed)?;
        let mut hidden = 0;
        for frame in block.frames() {
            frame.set_model();
            let page = Page::new(&frame);
            page.combine();
            if let Err(failed) = page.hide() {
                page.combine();
                block
                    .frames()
                    .take(hidden)
                    .for_each(|frame| reveal(Page::new(&frame)));
                let _ = rmp::update(&mut *RMP.lock(), first, Entry::HYPERVISOR.large());
                return Err(failed);
            }
            hidden += 1;
        }
        Ok(())
    }

    fn unassign_block(block: &PrivateBlock<'_>) -> Result<(), Failed> {
        let entry = Entry::HYPERVISOR.large();
        transition(block.first().get(), Instruction::Update(entry)).map_err(failed)?;
        block.frames().for_each(|frame| reveal(Page::new(&frame)));
        Ok(())
    }

    fn smash(frame: &Frame<'_>) -> Result<(), Unsplit> {
        let pfn = frame.pfn().get();

        reserve(first(pfn), LARGE_PAGES).map_err(|_| Unsplit::Failed)?;
        transition(pfn, Instruction::Smash).map_err(|code| match code {
            Code::InUse => Unsplit::InUse,
            _ => Unsplit::Failed,
        })
    }

    /// No file of such a VM has pages that move.
    fn relocate(_page: &Relocation<'_>) -> Result<(), Unmoved> {
        Err(Unmoved::Stays)
    }
}

/// Injects failures.
pub(super) fn inject(pfn: Pfn, fault: Fault<Operation, Code>) -> Result {
    reserve(pfn.get(), 1)?;
    if let Some(row) = RMP.lock().get_mut(pfn.get()) {
        row.fault = Some(fault);
    }
    Ok(())
}

/// The guest uses a page: hardware checks, and the guest has accepted it before.
///
/// # Errors
///
/// [`Failed`] if the page is not the guest's (private), or is a guest's (shared).
pub(super) fn install(asid: u32, gfn: Gfn, pfn: Pfn, private: bool) -> Result<(), Failed> {
    let mut rmp = RMP.lock();

    if private {
        rmp::validate(&mut *rmp, pfn.get(), asid, gpa(gfn)).map_err(failed)
    } else if rmp::lookup(&*rmp, pfn.get()).assigned {
        Err(Failed::Platform)
    } else {
        Ok(())
    }
}

/// The type of a page that is added to a guest before launch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum PageType {
    /// `KVM_GMEM_EMULATE_PAGE_NORMAL`.
    Normal,
    /// `KVM_GMEM_EMULATE_PAGE_ZERO`.
    Zero,
    /// `KVM_GMEM_EMULATE_PAGE_CPUID`.
    Cpuid,
}

/// How many functions a CPUID page can have; their number is its first word.
const CPUID_MAX: u32 = 64;

/// LAUNCH_UPDATE of one page: the host's bytes become what the guest reads.
///
/// The model's firmware refuses a CPUID page with too many functions, and corrects it.
///
/// # Errors
///
/// `EEXIST` for a page that is a guest's, `EIO` for what the RMP or firmware refuses, `ENOMEM`.
///
/// # Safety
///
/// The invalidate lock of the page's file is held exclusively, and `source` is NULL or pinned, for
/// writing if the page is a CPUID page.
pub(super) unsafe fn launch(
    asid: u32,
    gfn: Gfn,
    frame: &Frame<'_>,
    kind: PageType,
    source: *mut bindings::page,
) -> Result {
    let page = Page::new(frame);

    reserve(page.pfn(), 1)?;
    page.prepare()?;
    if lookup(frame.pfn()).assigned {
        return Err(EEXIST);
    }
    if kind == PageType::Zero {
        page.zero();
    } else if !source.is_null() {
        // SAFETY: By the contract of this function.
        unsafe { page.copy_from(source) };
    }
    update(page, Entry::assigned(asid, gpa(gfn)).immutable())?;

    if kind == PageType::Cpuid && page.read() > CPUID_MAX {
        // Reclaimed at once, and left readable for the host.
        update(page, Entry::HYPERVISOR)?;
        page.write(CPUID_MAX);
        if !source.is_null() {
            // SAFETY: By the contract of this function.
            unsafe { page.copy_to(source) };
        }
        return Err(EIO);
    }
    frame.set_model();
    Ok(page.hide()?)
}

fn gpa(gfn: Gfn) -> u64 {
    gfn.get().wrapping_mul(super::PAGE)
}
