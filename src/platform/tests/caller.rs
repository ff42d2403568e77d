// SPDX-License-Identifier: GPL-2.0

//! KUnit: a conversion whose caller stops after each step, forgets a step, or writes something else.

use super::*;
use crate::content;
use gmem_sys::kvm::conversion::{
    Conversion,
    Planning, //
};

/// How far a caller goes.
const STEPS: u32 = 9;

/// Does `steps` steps of a conversion, and stops.
fn go(file: &File<'_>, request: &Request, steps: u32) -> Result<(), Failure> {
    let vm = file.file().vm();
    let action = match request.content() {
        Content::Zero => Action::Zero,
        Content::Preserve | Content::None => Action::Leave,
    };
    file.file().inode().locked_to_convert(|turn| {
        let Planning::Change(planned) = turn.plan(request, action)? else {
            return Ok(());
        };
        if steps == 0 {
            return Ok(());
        }
        let accepted = planned.accept(content::owned::<Liar>(vm, request))?;
        if steps == 1 {
            return Ok(());
        }
        let reserved = accepted.reserve()?;
        if steps == 2 {
            return Ok(());
        }
        let split = reserved.split()?;
        if steps == 3 {
            return Ok(());
        }
        let quiesced = split.quiesce()?;
        if steps == 4 {
            return Ok(());
        }
        let checked = quiesced.check()?;
        if steps == 5 {
            return Ok(());
        }
        checked.invalidate(|invalidating| {
            if steps == 6 {
                return Ok(());
            }
            let asked = invalidating.ask(content::mapped::<Liar>(request))?;
            if steps == 7 {
                return Ok(());
            }
            let zapped = asked.zap()?;
            if steps == 8 {
                return Ok(());
            }
            drop(zapped.apply(content::make_shared::<Liar>, |page, _| page.zero())?);
            Ok(())
        })
    })
}

#[kunit_tests(kvm_gmem_hostile_caller)]
mod hostile_caller {
    use super::*;

    /// Whatever steps the caller leaves out at the end, no attribute has changed, and the host has no
    /// private page. A complete conversion is still possible afterwards.
    #[test]
    fn steps_that_are_left_out() -> Result {
        for kind in [Platform::SwProtected, ON_SNP, ON_TDX] {
            for (before, to) in [(SHARED, PRIVATE), (PRIVATE, SHARED), (PRIVATE, PRIVATE)] {
                for content in POLICIES {
                    for steps in 0..=STEPS {
                        let vm = test_vm(kind)?;
                        let file = file_or_return!(&vm, before);
                        if before == PRIVATE && kind == ON_SNP && to == SHARED {
                            guest_uses(&file)?;
                        }
                        let request = request(&file, to, content)?;

                        assert_eq!(refusal(&go(&file, &request, steps)), None);
                        assert_eq!(vm.invalidations(), 0);
                        assert!(!vm.vm().is_dead());
                        for at in 0..PAGES {
                            assert!(file.visibility(at) == before);
                            assert_eq!(file.host_fault(at).is_ok(), before == SHARED);
                        }
                        let result = convert::<Liar>(file.file(), &request);
                        assert_eq!(refusal(&result), None);
                    }
                }
            }
        }
        Ok(())
    }

    /// A forgotten step does not prevent the end of the invalidation.
    #[test]
    fn steps_that_are_forgotten() -> Result {
        let vm = test_vm(Platform::SwProtected)?;
        let file = file_or_return!(&vm, SHARED);
        // No attribute changes, so no memory can leak.
        let request = request(&file, SHARED, Content::Zero)?;

        file.file().inode().locked_to_convert(|turn| {
            let Ok(Planning::Change(planned)) = turn.plan(&request, Action::Zero) else {
                return Err(EINVAL);
            };
            let accepted = planned.accept(content::owned::<Liar>(vm.vm(), &request));
            let reserved = accepted.and_then(Conversion::reserve).map_err(|_| EINVAL)?;
            let split = reserved.split().map_err(|_| EINVAL)?;
            let quiesced = split.quiesce().map_err(|_| EINVAL)?;
            let checked = quiesced.check().map_err(|_| EINVAL)?;
            checked.invalidate(|invalidating| {
                assert_eq!(vm.invalidations(), 1);
                core::mem::forget(invalidating);
            });
            assert_eq!(vm.invalidations(), 0);
            Ok::<(), Error>(())
        })?;
        assert!(convert::<Liar>(file.file(), &request).is_ok());
        Ok(())
    }

    /// A page that was not zeroed does not count as zeroed.
    #[test]
    fn zero_that_is_something_else() -> Result {
        for (before, to) in [(SHARED, PRIVATE), (PRIVATE, SHARED), (SHARED, SHARED)] {
            let vm = test_vm(Platform::SwProtected)?;
            let file = file_or_return!(&vm, before);
            let request = request(&file, to, Content::Zero)?;
            let result = convert::<Scrambler>(file.file(), &request);

            assert_eq!(refusal(&result), Some((EIO, Some(FIRST))));
            assert!(vm.vm().is_dead());
            assert_eq!(file.lost_pages(), 1);
            for at in 0..PAGES {
                assert!(file.visibility(at) == before);
            }
        }
        Ok(())
    }

    /// The same where no slot has the pages any more through which a platform could be queried.
    #[test]
    fn dead_vm_without_a_slot() -> Result {
        for kind in [ON_TDX, ON_SNP, Platform::SwProtected] {
            for content in POLICIES {
                let vm = test_vm(kind)?;
                let file = file_or_return!(&vm, PRIVATE);
                let request = request(&file, SHARED, content)?;
                let mut errors = (None, None);

                vm.kill();
                file.with_stale_slot(|| {
                    errors = (
                        go(&file, &request, STEPS).err(),
                        convert::<Liar>(file.file(), &request).err(),
                    );
                    Ok(())
                })?;
                let (steps, whole) = errors;
                assert_eq!(steps.map(|failure| failure.error), Some(EIO));
                assert_eq!(whole.map(|failure| failure.error), Some(EIO));
                for at in 0..PAGES {
                    assert!(file.visibility(at) == PRIVATE);
                    assert_eq!(file.byte(at)?, Some(BYTE));
                }
            }
        }
        Ok(())
    }

    /// Faults on a file that does not convert in place take no lock, so such a file is refused.
    #[test]
    fn file_that_does_not_convert_in_place() -> Result {
        for (before, to) in [(PRIVATE, PRIVATE), (SHARED, SHARED), (PRIVATE, SHARED)] {
            let vm = test_vm(Platform::SwProtected)?;
            let Some(file) = File::fixed(&vm, PAGES, before, BASE)? else {
                return Ok(());
            };
            for at in 0..PAGES {
                file.fill(at, BYTE)?;
            }
            let request = request(&file, to, Content::Zero)?;
            let result = go(&file, &request, STEPS);
            assert_eq!(refusal(&result), Some((EINVAL, Some(FIRST))));
            for at in 0..PAGES {
                assert_eq!(file.byte(at)?, Some(BYTE));
            }
        }
        Ok(())
    }

    /// Pages of a dead VM are not converted, even if the caller does not check whether it is dead.
    #[test]
    fn dead_vm_that_nobody_asks_about() -> Result {
        for content in POLICIES {
            let vm = test_vm(ON_SNP)?;
            let file = file_or_return!(&vm, PRIVATE);
            let request = request(&file, SHARED, content)?;

            vm.kill();
            let result = go(&file, &request, STEPS);
            assert_eq!(result.err().map(|failure| failure.error), Some(EIO));
            for at in 0..PAGES {
                assert!(file.visibility(at) == PRIVATE);
                assert_eq!(file.byte(at)?, Some(BYTE));
            }
        }
        Ok(())
    }
}

/// A vendor that scrambles pages that should be zeroed.
struct Scrambler;

#[vtable]
impl Vendor for Scrambler {
    const PLATFORM: Platform = Platform::SwProtected;

    fn zero(page: GivenUp<'_>) -> Result<Written<'_>, Fatal> {
        page.scramble(0xff)
    }
}
