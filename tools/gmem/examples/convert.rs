// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One conversion: a payload is written while its page is shared, and stays when the page is private.
//!
//! `cargo run --example convert`, on a kernel whose guest_memfd converts in place.

use gmem::{
    Content,
    CreateFlags,
    GuestMemfd,
    Visibility, //
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let kvm = kvm_ioctls::Kvm::new()?;
    let vm = kvm.create_vm_with_type(gmem::abi::KVM_X86_SW_PROTECTED_VM)?;
    let flags = CreateFlags::MMAP | CreateFlags::INIT_SHARED;
    let memory = GuestMemfd::create(&vm, 0x4000, flags)?;
    let mapping = memory.map(0..0x4000)?;

    mapping.try_write(0, b"payload")?;
    memory.convert_retrying(0..0x1000, Visibility::Private, Content::Preserve, 100)?;
    assert!(
        mapping.try_read(0, &mut [0; 7]).is_err(),
        "the host may not look"
    );

    memory.convert_retrying(0..0x1000, Visibility::Shared, Content::Preserve, 100)?;
    let mut bytes = [0; 7];
    mapping.try_read(0, &mut bytes)?;
    println!("{}", String::from_utf8_lossy(&bytes));
    Ok(())
}
