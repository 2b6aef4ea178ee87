//! Where the VMCS has which field, as KVM lays it out for the hypervisors of its guests; and the numbers that
//! stand in some of them.

/// Where the fields used lie (the names are those of SDM vol. 3, appendix B, in short).
pub mod at {
    pub const REVISION: usize = 0;
    pub const LAUNCH_STATE: usize = 8;
    pub const MSR_BITMAP: usize = 56;
    pub const EPT_POINTER: usize = 120;
    pub const LINK_POINTER: usize = 176;
    pub const DEBUGCTL: usize = 184;
    pub const EFER: usize = 200;
    pub const PDPTE0: usize = 216;
    pub const HOST_EFER: usize = 264;
    pub const CR0_MASK: usize = 344;
    pub const CR4_MASK: usize = 352;
    pub const CR0_SHADOW: usize = 360;
    pub const QUALIFICATION: usize = 408;
    pub const CR0: usize = 424;
    pub const CR3: usize = 432;
    pub const CR4: usize = 440;
    /// ES, CS, SS, DS, FS, GS, LDTR, TR, GDTR, IDTR.
    pub const BASES: usize = 448;
    pub const DR7: usize = 528;
    pub const RSP: usize = 536;
    pub const RIP: usize = 544;
    pub const RFLAGS: usize = 552;
    pub const PENDING_DEBUG: usize = 560;
    pub const SYSENTER_ESP: usize = 568;
    pub const SYSENTER_EIP: usize = 576;
    pub const HOST_CR0: usize = 584;
    pub const HOST_CR3: usize = 592;
    pub const HOST_CR4: usize = 600;
    pub const HOST_RIP: usize = 672;
    pub const PIN_CONTROLS: usize = 744;
    pub const CPU_CONTROLS: usize = 748;
    pub const EXIT_CONTROLS: usize = 768;
    pub const ENTRY_CONTROLS: usize = 780;
    pub const ENTRY_EVENT: usize = 788;
    pub const ENTRY_ERROR: usize = 792;
    pub const CPU_CONTROLS_2: usize = 804;
    pub const INSTRUCTION_ERROR: usize = 808;
    pub const REASON: usize = 812;
    pub const IDT_VECTORING: usize = 824;
    pub const INSTRUCTION_LEN: usize = 832;
    /// In the order of the bases.
    pub const LIMITS: usize = 840;
    /// ES to TR.
    pub const RIGHTS: usize = 880;
    pub const INTERRUPTIBILITY: usize = 912;
    pub const ACTIVITY: usize = 916;
    pub const SYSENTER_CS: usize = 920;
    /// ES to TR.
    pub const SELECTORS: usize = 964;
    /// ES, CS, SS, DS, FS, GS, TR.
    pub const HOST_SELECTORS: usize = 982;
    /// First byte of the fields that are rewritten before each entry, but for the guest's own state and
    /// what tells of an intercept, and the byte behind them.
    pub const ALL: std::ops::Range<usize> = 0..1000;
    /// The guest's state, which stays.
    pub const GUEST: [std::ops::Range<usize>; 5] =
        [184..208, 216..248, 424..584, 840..924, 964..980];
}

/// Numbers of registers in the fields that are in the order of `at::BASES`.
pub mod register {
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
    pub const LDTR: usize = 6;
    pub const TR: usize = 7;
    pub const GDTR: usize = 8;
    pub const IDTR: usize = 9;
}

/// Basic exit reasons (SDM vol. 3, appendix C).
pub mod reason {
    pub const TRIPLE_FAULT: u32 = 2;
    pub const TASK_SWITCH: u32 = 9;
    pub const CPUID: u32 = 10;
    pub const GETSEC: u32 = 11;
    pub const INVD: u32 = 13;
    pub const RDPMC: u32 = 15;
    pub const RDTSC: u32 = 16;
    /// VMCALL, and the instructions of VMX.
    pub const VMX: std::ops::RangeInclusive<u32> = 18..=27;
    pub const CONTROL_REGISTER: u32 = 28;
    pub const RDMSR: u32 = 31;
    pub const WRMSR: u32 = 32;
    pub const MWAIT: u32 = 36;
    pub const MONITOR: u32 = 39;
    pub const EPT_VIOLATION: u32 = 48;
    pub const INVEPT: u32 = 50;
    pub const RDTSCP: u32 = 51;
    pub const INVVPID: u32 = 53;
    pub const XSETBV: u32 = 55;
    pub const RDRAND: u32 = 57;
    pub const VMFUNC: u32 = 59;
    pub const RDSEED: u32 = 61;
    /// Bit 31: the entry failed.
    pub const ENTRY_FAILED: u32 = 1 << 31;
    /// None: no exit there was.
    pub const NONE: u32 = 0xffff;
}
