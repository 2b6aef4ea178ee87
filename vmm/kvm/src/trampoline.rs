//! A few bytes of hypervisor inside the VM, so that RDTSC traps.
//!
//! KVM has no way for its user to intercept RDTSC, but it honours the intercepts of a hypervisor
//! that runs in the VM. Ours is three instructions long, or five:
//!
//! ```text
//! AMD-V                                        VT-x
//! again: vmrun rax    ; the control block      again: vmptrld [pointer] ; KVM reads the control block
//!                     ; is at RAX                     vmlaunch          ; run the guest from it
//!                                                     vmclear [pointer] ; KVM writes it
//!        out PORT, al ; tell the VMM                  out PORT, al      ; tell the VMM
//!        jmp again                                    jmp again
//! ```
//!
//! Behind VMRUN, and where VMLAUNCH's exit goes, an instruction was intercepted.
//!
//! The guest is a nested guest (L2). On AMD it has no nested paging of its own, on Intel tables that map
//! every address to itself, so that it can run without paging; either way its physical addresses are the
//! VM's. What the trampoline (L1) does not intercept, KVM handles as if it were not there: ports, memory
//! outside RAM, HLT and MSRs exit from L2 straight to the VMM.
//!
//! The pages lie where the guest has no RAM, but it can reach them through page tables of its own.
//! The control area is therefore written anew before each entry; a guest that destroys the rest
//! stops itself, on both replicas alike.
#![allow(unsafe_code)]

use kvm_bindings::{kvm_segment, kvm_sregs};
use memmap2::{MmapMut, MmapOptions};

use crate::page::Page;
use crate::vmcb::SVME;
use crate::vmcs::VMXE;
use crate::vmx::Host;

/// Which processor's trampoline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// AMD-V.
    Svm,
    /// VT-x.
    Vmx,
}

/// Guest-physical address of the pages. The first ones are in one 2 MiB page with nothing else in it.
pub const BASE: u64 = 0xfe40_0000;
const CODE: u64 = BASE;
const PML4: u64 = BASE + 0x1000;
const PDPT: u64 = BASE + 0x2000;
const PD: u64 = BASE + 0x3000;
const BLOCK: u64 = BASE + 0x4000;
/// VM_HSAVE_PA, or the VMXON region.
pub const HOST_AREA: u64 = BASE + 0x5000;
const SVM_SIZE: usize = 0x6000;

/// VT-x only: zeros; the guest's second-level tables, from the top.
const MSR_BITMAP: u64 = BASE + 0x6000;
const EPT_PML4: u64 = BASE + 0x7000;
const EPT_PDPTS: u64 = BASE + 0x8000;
/// GiB that a guest-physical address can name.
const GIB: u64 = 1 << (::engine::cpuid::PHYSICAL_BITS - 30);
const VMX_SIZE: usize = (EPT_PDPTS - BASE + GIB.div_ceil(512) * 0x1000) as usize;

/// The port that tells of an intercept. Outs to it from elsewhere are the guest's own.
pub const PORT: u8 = 0xf4;

/// VMRUN RAX; OUT PORT, AL; JMP back.
const SVM_PROGRAM: [u8; 7] = [0x0f, 0x01, 0xd8, 0xe6, PORT, 0xeb, 0xf9];
const SVM_LEFT: u64 = CODE + 3;

/// VMPTRLD [RIP + 17], of 7 bytes; VMLAUNCH, of 3.
const VMX_ENTER: [u8; 10] = [0x0f, 0xc7, 0x35, 17, 0, 0, 0, 0x0f, 0x01, 0xc2];
const VMX_LAUNCH: u64 = CODE + 7;
const VMX_LEFT: u64 = CODE + VMX_ENTER.len() as u64;
/// VMCLEAR [RIP + 6], of 8 bytes; OUT PORT, AL; JMP back; 2 bytes of nothing; the pointer.
const VMX_LEAVE: [u8; 14] = [
    0x66, 0x0f, 0xc7, 0x35, 6, 0, 0, 0, 0xe6, PORT, 0xeb, 0xea, 0, 0,
];
#[cfg(test)]
const VMX_POINTER: usize = VMX_ENTER.len() + VMX_LEAVE.len();

/// NXE, LMA, LME.
const EFER: u64 = 0xd00;
/// PG, WP, NE, ET, PE.
const CR0: u64 = 0x8001_0031;
/// PAE.
const CR4: u64 = 0x20;
const CODE_SELECTOR: u16 = 8;
const DATA_SELECTOR: u16 = 16;
const TASK_SELECTOR: u16 = 24;

/// The pages.
pub struct Trampoline {
    pub kind: Kind,
    pages: MmapMut,
}

impl Trampoline {
    pub fn new(kind: Kind) -> std::io::Result<Self> {
        let len = match kind {
            Kind::Svm => SVM_SIZE,
            Kind::Vmx => VMX_SIZE,
        };
        let mut trampoline = Self {
            kind,
            pages: MmapOptions::new().len(len).map_anon()?,
        };
        // Present, writable, accessed, dirty: the processor need not write them.
        let table = 0x63;
        trampoline.put(PML4, BASE >> 39 & 0x1ff, PDPT | table);
        trampoline.put(PDPT, BASE >> 30 & 0x1ff, PD | table);
        trampoline.put(PD, BASE >> 21 & 0x1ff, BASE | table | 0x80);
        match kind {
            Kind::Svm => trampoline.pages[..SVM_PROGRAM.len()].copy_from_slice(&SVM_PROGRAM),
            Kind::Vmx => {
                let program = [&VMX_ENTER[..], &VMX_LEAVE[..], &BLOCK.to_le_bytes()].concat();
                trampoline.pages[..program.len()].copy_from_slice(&program);
                trampoline.map_all();
            }
        }
        Ok(trampoline)
    }

    fn put(&mut self, page: u64, index: u64, entry: u64) {
        let offset = (page - BASE + 8 * index) as usize;
        self.pages[offset..offset + 8].copy_from_slice(&entry.to_le_bytes());
    }

    /// The guest's second-level tables (SDM vol. 3, 29.3): every address to itself.
    fn map_all(&mut self) {
        // Read, write, execute.
        const TABLE: u64 = 7;
        // And: 1 GiB, write-back.
        const PAGE: u64 = 7 | 6 << 3 | 1 << 7;
        for gib in 0..GIB {
            self.put(EPT_PDPTS, gib, gib << 30 | PAGE);
        }
        for i in 0..GIB.div_ceil(512) {
            self.put(EPT_PML4, i, (EPT_PDPTS + 0x1000 * i) | TABLE);
        }
    }

    /// Where the pages lie in this process.
    pub fn host(&self) -> *const u8 {
        self.pages.as_ptr()
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        self.pages.len()
    }

    /// The control block's page.
    pub fn block(&mut self) -> Page {
        let offset = (BLOCK - BASE) as usize;
        // SAFETY: the mapping is page-aligned, longer than that, and lives as long as the engine that
        // owns both.
        unsafe { Page::new(self.pages.as_mut_ptr().add(offset)) }
    }

    /// Where an exit of VMX goes, and the tables here.
    pub fn vmx_host() -> Host {
        Host {
            rip: VMX_LEFT,
            cr0: CR0,
            cr3: PML4,
            cr4: CR4 | VMXE,
            efer: EFER,
            selectors: [
                DATA_SELECTOR,
                CODE_SELECTOR,
                DATA_SELECTOR,
                DATA_SELECTOR,
                0,
                0,
                TASK_SELECTOR,
            ],
            msr_bitmap: MSR_BITMAP,
            // Four levels, in write-back memory.
            ept_pointer: EPT_PML4 | 3 << 3 | 6,
        }
    }

    /// RIP at which the vCPU enters the guest.
    pub fn entry(&self) -> u64 {
        CODE
    }

    /// RAX there, where it is not the guest's.
    pub fn rax(&self) -> Option<u64> {
        (self.kind == Kind::Svm).then_some(BLOCK)
    }

    /// Whether a vCPU at this RIP, in the trampoline, has left the guest and not told of it; on Intel
    /// also whether KVM has read the control block and not entered the guest. Then nobody may change that.
    pub fn is_busy(&self, rip: u64) -> bool {
        match self.kind {
            Kind::Svm => rip == SVM_LEFT,
            Kind::Vmx => (VMX_LAUNCH..=self.out()).contains(&rip),
        }
    }

    /// Whether a vCPU at this RIP and CR3 may stand between VMPTRLD and VMLAUNCH.
    pub fn is_before_launch(&self, rip: u64, cr3: u64) -> bool {
        self.kind == Kind::Vmx && rip == VMX_LAUNCH && cr3 == PML4
    }

    fn out(&self) -> u64 {
        match self.kind {
            Kind::Svm => SVM_LEFT,
            Kind::Vmx => VMX_LEFT + 8,
        }
    }

    /// Whether a vCPU that writes to `PORT` at this RIP and CR3 may stand in the trampoline.
    pub fn looks_like(&self, rip: u64, cr3: u64) -> bool {
        rip == self.out() && cr3 == PML4
    }

    /// Gives `sregs` what the trampoline needs. On AMD FS, GS, TR and LDTR are the guest's and stay.
    pub fn set_sregs(&self, sregs: &mut kvm_sregs) {
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
        sregs.cs = flat(CODE_SELECTOR, 11, 1);
        sregs.ds = flat(DATA_SELECTOR, 3, 0);
        sregs.es = sregs.ds;
        sregs.ss = sregs.ds;
        (sregs.gdt.base, sregs.gdt.limit) = (0, 0);
        (sregs.idt.base, sregs.idt.limit) = (0, 0);
        sregs.cr0 = CR0;
        sregs.cr3 = PML4;
        match self.kind {
            Kind::Svm => (sregs.cr4, sregs.efer) = (CR4, EFER | SVME),
            Kind::Vmx => {
                (sregs.cr4, sregs.efer) = (CR4 | VMXE, EFER);
                sregs.fs = flat(0, 3, 0);
                sregs.gs = sregs.fs;
                sregs.ldt = kvm_segment {
                    unusable: 1,
                    ..kvm_segment::default()
                };
                sregs.tr = kvm_segment {
                    limit: 0x67,
                    selector: TASK_SELECTOR,
                    type_: 11,
                    present: 1,
                    ..kvm_segment::default()
                };
            }
        }
    }
}

#[cfg(test)]
mod tests;
