//! The architectural state of the vCPU: what a saved machine keeps and what state hashes cover.

use serde::{Deserialize, Serialize};

/// A segment register with its hidden part (SDM vol. 3, 3.4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub selector: u16,
    /// Access rights as in bits 8..24 of a descriptor's second doubleword, moved to bit 0: type (0-3),
    /// S (4), DPL (5-6), P (7), AVL (12), L (13), D/B (14), G (15). Bit 16 set: unusable (null).
    pub access: u32,
    pub base: u64,
    /// In bytes, granularity applied.
    pub limit: u32,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorTable {
    pub base: u64,
    pub limit: u16,
}

/// Model-specific registers that are plain storage for the guest or part of its state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msrs {
    pub efer: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub tsc_aux: u64,
    /// Written value minus clock at the write (IA32_TIME_STAMP_COUNTER writes), wrapping.
    pub tsc_offset: u64,
    pub misc_enable: u64,
}

/// The processor's signature: what CPUID leaf 1 gives in EAX, and what RDX holds after a reset (SDM
/// vol. 3, "Processor State After Reset"). Family 6, model 36h, stepping 1.
pub const PROCESSOR_SIGNATURE: u32 = 0x0003_0661;

/// The whole architectural state of the vCPU at a boundary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuState {
    /// Retired instructions, one per REP iteration.
    pub count: u64,
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [Segment; 6],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: DescriptorTable,
    pub idtr: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    /// DR0 to DR3, DR6, DR7.
    pub dr: [u64; 6],
    pub xcr0: u64,
    pub msrs: Msrs,
    /// x87, MXCSR and XMM0 to XMM15 as the 512-byte image of FXSAVE64 (SDM vol. 1, 10.5.1),
    /// reserved and software-available bytes zero.
    #[serde(with = "serde_bytes")]
    pub fxsave: Vec<u8>,
    /// CPL. Follows SS.DPL; kept apart for real mode and the moments of a mode switch.
    pub cpl: u8,
    /// In HLT.
    pub halted: bool,
    /// No interrupt is taken before the next instruction has retired (STI, MOV SS, POP SS).
    pub interrupt_shadow: bool,
    /// A #DB is due before the next instruction, and DR6 says why: the last instruction was single-stepped
    /// (SDM vol. 3, 25.4.2, pending debug exceptions).
    pub debug_due: bool,
    /// Shut down by a triple fault.
    pub shutdown: bool,
}

impl CpuState {
    /// The state at power-on and after a reset (SDM vol. 3, table 10-1), but at position 0 and with
    /// CS:IP as given by the processor: F000:FFF0 with base FFFF0000.
    pub fn at_reset() -> Self {
        let data = Segment {
            selector: 0,
            access: 0x93,
            base: 0,
            limit: 0xffff,
        };
        let mut segments = [data; 6];
        segments[1] = Segment {
            selector: 0xf000,
            access: 0x9b,
            base: 0xffff_0000,
            limit: 0xffff,
        };
        let mut gpr = [0; 16];
        gpr[2] = u64::from(PROCESSOR_SIGNATURE); // RDX
        Self {
            count: 0,
            gpr,
            rip: 0xfff0,
            rflags: 2,
            segments,
            ldtr: Segment {
                selector: 0,
                access: 0x82,
                base: 0,
                limit: 0xffff,
            },
            tr: Segment {
                selector: 0,
                access: 0x8b,
                base: 0,
                limit: 0xffff,
            },
            gdtr: DescriptorTable {
                base: 0,
                limit: 0xffff,
            },
            idtr: DescriptorTable {
                base: 0,
                limit: 0xffff,
            },
            cr0: 0x6000_0010,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            dr: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
            xcr0: 1,
            msrs: Msrs {
                pat: 0x0007_0406_0007_0406,
                misc_enable: 1,
                ..Msrs::default()
            },
            fxsave: reset_fxsave(),
            cpl: 0,
            halted: false,
            interrupt_shadow: false,
            debug_due: false,
            shutdown: false,
        }
    }

    /// A hash of the registers, for comparing replicas. Covers every field.
    pub fn hash(&self) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        for word in self.words() {
            hasher.update(&word.to_le_bytes());
        }
        hasher.update(&self.fxsave);
        hasher.digest()
    }

    fn words(&self) -> Vec<u64> {
        // Taken apart by name so that a new field cannot be forgotten here.
        let Self {
            count,
            gpr,
            rip,
            rflags,
            segments,
            ldtr,
            tr,
            gdtr,
            idtr,
            cr0,
            cr2,
            cr3,
            cr4,
            cr8,
            dr,
            xcr0,
            msrs,
            fxsave: _,
            cpl,
            halted,
            interrupt_shadow,
            debug_due,
            shutdown,
        } = self;
        let Msrs {
            efer,
            star,
            lstar,
            cstar,
            sfmask,
            kernel_gs_base,
            sysenter_cs,
            sysenter_esp,
            sysenter_eip,
            pat,
            tsc_aux,
            tsc_offset,
            misc_enable,
        } = msrs;
        let mut words = vec![*count, *rip, *rflags, *cr0, *cr2, *cr3, *cr4, *cr8, *xcr0];
        words.extend(gpr);
        words.extend(dr);
        for s in segments.iter().chain([ldtr, tr]) {
            words.extend([
                u64::from(s.selector) << 32 | u64::from(s.access),
                s.base,
                u64::from(s.limit),
            ]);
        }
        for t in [gdtr, idtr] {
            words.extend([t.base, u64::from(t.limit)]);
        }
        words.extend([
            *efer,
            *star,
            *lstar,
            *cstar,
            *sfmask,
            *kernel_gs_base,
            *sysenter_cs,
            *sysenter_esp,
            *sysenter_eip,
            *pat,
            *tsc_aux,
            *tsc_offset,
            *misc_enable,
        ]);
        words.push(
            u64::from(*cpl)
                | u64::from(*halted) << 8
                | u64::from(*interrupt_shadow) << 9
                | u64::from(*shutdown) << 10
                | u64::from(*debug_due) << 11,
        );
        words
    }
}

/// FXSAVE image after reset: FCW 0040h (SDM vol. 3, table 10-1), all registers zero, MXCSR 1F80h.
fn reset_fxsave() -> Vec<u8> {
    let mut image = vec![0; 512];
    image[0] = 0x40;
    image[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    image[28..32].copy_from_slice(&0xffffu32.to_le_bytes());
    image
}
