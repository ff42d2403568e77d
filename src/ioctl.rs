// SPDX-License-Identifier: GPL-2.0

//! The ioctls of a file: copy in, carry out, copy out.

use crate::{
    outcome::{
        Failure,
        Outcome, //
    },
    platform, //
};
use gmem_policy::{
    plan::query,
    request::{
        Invalid,
        Query,
        RawRequest,
        Request, //
    }, //
};
use gmem_sys::{
    fs::file::GmemFile,
    ioctl::UserPointer,
    kvm::conversion::Done,
    trace, //
};
use gmem_types::visibility::Visibility;
use kernel::prelude::*;

/// Copies the struct in and does the checks that both ioctls begin with.
///
/// # Errors
///
/// `ENOTTY` for a file without these ioctls, `EFAULT`, `EIO` for a dead VM.
fn read(file: &GmemFile, arg: UserPointer) -> Result<RawRequest> {
    // The VM's own ioctl decides for such a file. On a VM without private memory no ioctl does, and
    // the request is EINVAL.
    if !file.inode().converts_in_place() && file.vm().has_private_mem() {
        return Err(ENOTTY);
    }

    let raw = RawRequest::from_words(arg.read()?);
    if file.vm().is_dead() {
        return Err(EIO);
    }
    Ok(raw)
}

/// KVM_SET_MEMORY_ATTRIBUTES2. Writes the struct back only if the error is about a page.
///
/// # Errors
///
/// Those of [`read`], `EINVAL` for a malformed request, and those of
/// [`convert`](crate::convert::convert).
pub(crate) fn set_memory_attributes<'f>(file: &'f GmemFile, arg: UserPointer) -> Result<Done<'f>> {
    let mut raw = read(file, arg)?;
    let geometry = file.inode().geometry();
    let request = Request::parse(&raw, &geometry, file.vm().has_private_mem()).map_err(errno)?;

    trace::convert_begin(|| described(file, &request));
    let mut outcome = Outcome::default();
    let result = platform::convert(file, &request, &mut outcome);
    ended(file, &request, &result, &outcome);
    let Failure { error, at } = match result {
        Ok(done) => return Ok(done),
        Err(failure) => failure,
    };
    if let Some(at) = at {
        // A larger folio may begin before the range: stay inside the request.
        let at = request.range().clamp(at);
        raw.error_offset = geometry.page_size().offset_of(at).get();
        // EFAULT would hide the error. Nothing was converted in either case.
        arg.write(&raw.to_words())?;
    }
    Err(error)
}

fn ended<T>(file: &GmemFile, request: &Request, result: &Result<T, Failure>, outcome: &Outcome) {
    trace::convert_end(|| {
        let (ino, offset, size, to_private, policy) = described(file, request);
        let (outcome, errno, at) = match *result {
            Ok(_) => (*outcome, 0, None),
            Err(Failure { error, at }) => (Outcome::default(), error.to_errno(), at),
        };
        let at = at.map_or(u64::MAX, |at| file.inode().offset_of(at));
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
    let start = inode.offset_of(range.start());
    (
        inode.number(),
        start,
        inode.offset_of(range.end()) - start,
        request.to() == Visibility::Private,
        request.content().flags(),
    )
}

/// KVM_GET_MEMORY_ATTRIBUTES2.
///
/// # Errors
///
/// Those of [`read`], `EINVAL`, `EINTR`, and `EFAULT` if the struct cannot be written.
pub(crate) fn get_memory_attributes(file: &GmemFile, arg: UserPointer) -> Result {
    let mut raw = read(file, arg)?;
    let inode = file.inode();
    let geometry = inode.geometry();
    let asked = Query::parse(&raw, &geometry, file.vm().has_private_mem()).map_err(errno)?;
    let run = inode.locked_shared(|guard| Ok::<_, Error>(query(asked.at(), &geometry, guard)))?;

    raw.attributes = run.visibility.attributes();
    raw.size = geometry.page_size().bytes().saturating_mul(run.range.len());
    arg.write(&raw.to_words())
}

/// User space gets one errno for all kinds of invalid requests.
fn errno(_: Invalid) -> Error {
    EINVAL
}
