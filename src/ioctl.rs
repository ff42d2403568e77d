// SPDX-License-Identifier: GPL-2.0

//! The ioctls of a file: copy in, dispatch, copy out.

use crate::{
    convert::{
        Failure,
        Outcome, //
    },
    vendor, //
};
use gmem_policy::{
    plan::query,
    request::{
        Invalid,
        Query,
        RawRequest,
        Request,
        Visibility,
        GET_MEMORY_ATTRIBUTES2,
        SET_MEMORY_ATTRIBUTES2, //
    }, //
};
use gmem_sys::{
    fs::file_ops::GmemFile,
    ioctl::UserPointer,
    trace, //
};
use kernel::prelude::*;

/// ioctl().
///
/// # Errors
///
/// `ENOTTY` for an ioctl that the file does not have; see `Documentation/` for those of each.
pub(crate) fn ioctl(file: &GmemFile, cmd: u32, arg: UserPointer) -> Result {
    let handler = match cmd {
        SET_MEMORY_ATTRIBUTES2 => set_memory_attributes,
        GET_MEMORY_ATTRIBUTES2 => get_memory_attributes,
        _ => return Err(ENOTTY),
    };
    // The VM's own ioctl decides for such a file. On a VM without private memory no ioctl does, and
    // the request is EINVAL.
    if !file.inode().converts_in_place() && file.vm().has_private_mem() {
        return Err(ENOTTY);
    }

    let mut raw = RawRequest::from_words(arg.read()?);
    if file.vm().is_dead() {
        return Err(EIO);
    }
    handler(file, &mut raw, arg)
}

/// KVM_SET_MEMORY_ATTRIBUTES2. Writes the struct back if, and only if, a page is to blame.
fn set_memory_attributes(file: &GmemFile, raw: &mut RawRequest, arg: UserPointer) -> Result {
    let geometry = file.inode().geometry();
    let request = Request::parse(raw, &geometry, file.vm().has_private_mem()).map_err(errno)?;

    trace::convert_begin(|| described(file, &request));
    let result = vendor::convert(file, &request);
    ended(file, &request, &result);
    let Err(Failure { error, at }) = result else {
        return Ok(());
    };
    if let Some(at) = at {
        // Not below what was asked for, should a larger folio begin there.
        let at = request.range().clamp(at);
        raw.error_offset = geometry.page_size().offset_of(at).get();
        // EFAULT hides the error then. Nothing was converted in either case.
        arg.write(&raw.to_words())?;
    }
    Err(error)
}

fn ended(file: &GmemFile, request: &Request, result: &Result<Outcome, Failure>) {
    trace::convert_end(|| {
        let (ino, offset, size, to_private, policy) = described(file, request);
        let (outcome, errno, at) = match *result {
            Ok(outcome) => (outcome, 0, None),
            Err(Failure { error, at }) => (Outcome::default(), error.to_errno(), at),
        };
        let at = at.map_or(u64::MAX, |at| trace::offset(file.inode(), at));
        (
            ino,
            offset,
            size,
            to_private,
            policy,
            outcome.converted,
            outcome.runs,
            outcome.zeroed,
            outcome.scrambled,
            errno,
            at,
        )
    });
}

/// A request for a trace event: inode, offset, size, whether to private, policy.
fn described(file: &GmemFile, request: &Request) -> (u64, u64, u64, bool, u64) {
    let inode = file.inode();
    let range = request.range();
    let start = trace::offset(inode, range.start());
    (
        trace::ino(inode),
        start,
        trace::offset(inode, range.end()) - start,
        request.to() == Visibility::Private,
        request.content().flags(),
    )
}

/// KVM_GET_MEMORY_ATTRIBUTES2.
fn get_memory_attributes(file: &GmemFile, raw: &mut RawRequest, arg: UserPointer) -> Result {
    let inode = file.inode();
    let geometry = inode.geometry();
    let asked = Query::parse(raw, &geometry, file.vm().has_private_mem()).map_err(errno)?;
    let run = inode.locked_shared(|guard| Ok::<_, Error>(query(asked.at(), &geometry, guard)))?;

    raw.attributes = run.visibility.attributes();
    raw.size = geometry.page_size().bytes().saturating_mul(run.range.len());
    arg.write(&raw.to_words())
}

/// User space gets one errno for all that can be wrong with a request.
fn errno(_: Invalid) -> Error {
    EINVAL
}
