//! A few bytes of hypervisor inside the VM, so that RDTSC traps.
//!
//! KVM has no way for its user to intercept RDTSC, but it honours the intercepts of a hypervisor
//! that runs in the VM. Ours is three instructions long:
//!
//! ```text
//! again: vmrun rax        ; run the guest from the control block at RAX
//!        out PORT, al     ; an instruction was intercepted: tell the VMM
//!        jmp again
//! ```
//!
//! The guest is a nested guest (L2) without nested paging of its own, so its physical addresses are
//! the VM's. What the trampoline (L1) does not intercept, KVM handles as if it were not there:
//! ports, memory outside RAM, HLT and MSRs exit from L2 straight to the VMM.
//!
//! VMRUN does not switch FS, GS, TR, LDTR, the SYSCALL and SYSENTER MSRs and KERNEL_GS_BASE (APM
//! vol. 2, 15.5.1): the vCPU's are the guest's, and the trampoline does not use them.
//!
//! The pages lie where the guest has no RAM, but it can reach them through page tables of its own.
//! The control area is therefore written anew before each VMRUN; a guest that destroys the rest
//! stops itself, on both replicas alike.
#![allow(unsafe_code)]

use kvm_bindings::{kvm_segment, kvm_sregs};
use memmap2::{MmapMut, MmapOptions};

use crate::vmcb::Vmcb;

/// Guest-physical address of the pages; of a 2 MiB page that nothing else is in.
pub const BASE: u64 = 0xfe40_0000;
const CODE: u64 = BASE;
const PML4: u64 = BASE + 0x1000;
const PDPT: u64 = BASE + 0x2000;
const PD: u64 = BASE + 0x3000;
const VMCB: u64 = BASE + 0x4000;
/// VM_HSAVE_PA.
pub const HOST_SAVE: u64 = BASE + 0x5000;
/// Bytes.
pub const SIZE: usize = 0x6000;

/// The port that tells of an intercept. Outs to it from elsewhere are the guest's own.
pub const PORT: u8 = 0xf4;
/// VMRUN RAX; OUT PORT, AL; JMP back.
const PROGRAM: [u8; 7] = [0x0f, 0x01, 0xd8, 0xe6, PORT, 0xeb, 0xf9];
/// RIP at which the vCPU stands before VMRUN.
const AT_RUN: u64 = CODE;
/// RIP at which it stands after an intercept.
const AT_OUT: u64 = CODE + 3;

/// EFER.SVME.
pub const SVME: u64 = 1 << 12;
/// SVME, NXE, LMA, LME.
const EFER: u64 = SVME | 0xd00;
/// PG, WP, NE, ET, PE.
const CR0: u64 = 0x8001_0031;
/// PAE.
const CR4: u64 = 0x20;

/// The pages.
pub struct Trampoline {
    pages: MmapMut,
}

impl Trampoline {
    pub fn new() -> std::io::Result<Self> {
        let mut pages = MmapOptions::new().len(SIZE).map_anon()?;
        pages[..PROGRAM.len()].copy_from_slice(&PROGRAM);
        // Present, writable, accessed, dirty: the processor need not write them.
        let table = 0x63;
        let mut put = |page: u64, index: u64, entry: u64| {
            let offset = (page - BASE + 8 * index) as usize;
            pages[offset..offset + 8].copy_from_slice(&entry.to_le_bytes());
        };
        put(PML4, BASE >> 39 & 0x1ff, PDPT | table);
        put(PDPT, BASE >> 30 & 0x1ff, PD | table);
        put(PD, BASE >> 21 & 0x1ff, BASE | table | 0x80);
        Ok(Self { pages })
    }

    /// Where the pages lie in this process.
    pub fn host(&self) -> *const u8 {
        self.pages.as_ptr()
    }

    /// The control block.
    pub fn vmcb(&mut self) -> Vmcb {
        let offset = (VMCB - BASE) as usize;
        // SAFETY: the mapping is page-aligned, 24 KiB long, and lives as long as the engine that
        // owns both.
        unsafe { Vmcb::new(self.pages.as_mut_ptr().add(offset)) }
    }
}

/// Whether a vCPU that writes to `PORT` at this RIP and CR3 may stand in the trampoline.
pub fn looks_like(rip: u64, cr3: u64) -> bool {
    rip == AT_OUT && cr3 == PML4
}

/// Whether a vCPU at this RIP, in the trampoline, has left the guest and not told of it.
pub fn is_leaving(rip: u64) -> bool {
    rip == AT_OUT
}

/// RIP and RAX with which the vCPU enters the guest.
pub fn entry() -> (u64, u64) {
    (AT_RUN, VMCB)
}

/// Gives `sregs` what the trampoline needs; FS, GS, TR, LDTR, CR8 and the rest stay.
pub fn set_sregs(sregs: &mut kvm_sregs) {
    let flat = |selector: u16, type_: u8, l: u8| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        l,
        db: 1 - l,
        g: 1,
        ..kvm_segment::default()
    };
    sregs.cs = flat(8, 11, 1);
    sregs.ds = flat(16, 3, 0);
    sregs.es = sregs.ds;
    sregs.ss = sregs.ds;
    (sregs.gdt.base, sregs.gdt.limit) = (0, 0);
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
    sregs.cr0 = CR0;
    sregs.cr3 = PML4;
    sregs.cr4 = CR4;
    sregs.efer = EFER;
}
