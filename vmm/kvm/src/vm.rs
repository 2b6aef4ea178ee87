//! The VM: opened, given its memory, told which MSRs and quirks come to us.
#![allow(unsafe_code)]

use engine::{EngineError, cpuid};
use kvm_bindings::{
    CpuId, KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_X86_USER_SPACE_MSR, KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
    KVM_MEM_LOG_DIRTY_PAGES, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_EXIT_REASON_UNKNOWN, KVM_X86_QUIRK_FIX_HYPERCALL_INSN, kvm_cpuid_entry2,
    kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};

use crate::BRAND;
use crate::errors::call;
use crate::ram::Ram;
use crate::trampoline::{self, Kind, Trampoline};

/// Slots of RAM begin here; 0 is the trampoline's.
const FIRST_RAM_SLOT: u32 = 1;
/// FS_BASE, GS_BASE, KERNEL_GS_BASE.
const FREE_MSRS: (u32, u32) = (engine::msr::number::FS_BASE, 3);

/// What KVM must be able to do.
pub const NEEDED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "user memory"),
    (Cap::SyncRegs, "synchronised registers"),
    (Cap::ImmediateExit, "immediate exits"),
    (Cap::NestedState, "nested state"),
    (Cap::Xsave, "XSAVE state"),
    (Cap::Debugregs, "debug registers"),
    (Cap::VcpuEvents, "vCPU events"),
    (Cap::X86UserSpaceMsr, "MSR exits"),
    (Cap::X86MsrFilter, "MSR filters"),
];

pub struct Vm {
    pub fd: VmFd,
    /// Slot and size of each region of RAM, with its first frame.
    slots: Vec<(u32, usize, u64)>,
}

impl Vm {
    pub fn new(kvm: &Kvm, ram: &Ram, trampoline: &Trampoline) -> Result<Self, EngineError> {
        for (cap, what) in NEEDED {
            if !kvm.check_extension(*cap) {
                return Err(EngineError::Hypervisor(format!(
                    "this kernel's KVM has no {what}: a Linux of 5.14 or later is needed"
                )));
            }
        }
        let fd = kvm.create_vm().map_err(|e| call("create a VM", e))?;
        let mut vm = Self {
            fd,
            slots: Vec::new(),
        };
        vm.map(0, trampoline::BASE, trampoline.host(), trampoline.size(), 0)?;
        for (region, slot) in ram.regions().iter().zip(FIRST_RAM_SLOT..) {
            let len = region.len as usize;
            vm.map(slot, region.gpa, region.host, len, KVM_MEM_LOG_DIRTY_PAGES)?;
            vm.slots.push((slot, len, region.gpa >> 12));
        }
        vm.route_msrs()?;
        if kvm.check_extension_raw(KVM_CAP_DISABLE_QUIRKS2.into())
            & KVM_X86_QUIRK_FIX_HYPERCALL_INSN as i32
            != 0
        {
            // Otherwise VMCALL would be patched in the guest's memory.
            vm.enable(
                KVM_CAP_DISABLE_QUIRKS2,
                u64::from(KVM_X86_QUIRK_FIX_HYPERCALL_INSN),
            )?;
        }
        Ok(vm)
    }

    fn map(
        &self,
        slot: u32,
        gpa: u64,
        host: *const u8,
        len: usize,
        flags: u32,
    ) -> Result<(), EngineError> {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: gpa,
            memory_size: len as u64,
            userspace_addr: host as u64,
        };
        // SAFETY: the engine keeps the memory mapped longer than the VM (fields are dropped in
        // order), and no two slots overlap: RAM ends below the trampoline or begins above it.
        unsafe { self.fd.set_user_memory_region(region) }.map_err(|e| call("map memory", e))
    }

    fn enable(&self, cap: u32, argument: u64) -> Result<(), EngineError> {
        let mut request = kvm_enable_cap {
            cap,
            ..Default::default()
        };
        request.args[0] = argument;
        self.fd
            .enable_cap(&request)
            .map_err(|e| call("enable a capability", e))
    }

    /// Every MSR but the bases comes to us.
    fn route_msrs(&self) -> Result<(), EngineError> {
        let reasons =
            KVM_MSR_EXIT_REASON_FILTER | KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN;
        self.enable(KVM_CAP_X86_USER_SPACE_MSR, u64::from(reasons))?;
        let range = MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base: FREE_MSRS.0,
            msr_count: FREE_MSRS.1,
            bitmap: &[0b111],
        };
        self.fd
            .set_msr_filter(MsrFilterDefaultAction::DENY, &[range])
            .map_err(|e| call("filter MSRs", e))
    }

    /// Makes KVM drop what it has derived from the guest's page tables.
    ///
    /// With shadow paging it notices the guest's own writes to them and nobody else's. There is no
    /// call for this; removing a slot, any slot, has the effect (`kvm_arch_flush_shadow_memslot`).
    pub fn forget_page_tables(&self, trampoline: &Trampoline) -> Result<(), EngineError> {
        self.map(0, trampoline::BASE, trampoline.host(), 0, 0)?;
        self.map(0, trampoline::BASE, trampoline.host(), trampoline.size(), 0)
    }

    /// Frames of RAM that were written since the last call, ascending.
    pub fn take_dirty(&self) -> Result<Vec<u64>, EngineError> {
        let mut frames = Vec::new();
        for &(slot, len, first) in &self.slots {
            let words = self
                .fd
                .get_dirty_log(slot, len)
                .map_err(|e| call("tell the dirty pages", e))?;
            for (i, word) in (0..).zip(words) {
                let mut word = word;
                while word != 0 {
                    frames.push(first + 64 * i + u64::from(word.trailing_zeros()));
                    word &= word - 1;
                }
            }
        }
        Ok(frames)
    }
}

/// The table for KVM: the guest's own, so that KVM knows which registers and bits there are, and
/// SVM or VMX for the trampoline. The guest never sees this one, its CPUID is intercepted.
pub fn cpuid_for_kvm(kind: Kind) -> Result<CpuId, EngineError> {
    const SVM_LEAF: u32 = 0x8000_000a;
    let highest = match kind {
        Kind::Svm => SVM_LEAF,
        Kind::Vmx => cpuid::MAX_EXTENDED,
    };
    let indexed = |leaf| matches!(leaf, 4 | 7);
    let mut entries = Vec::new();
    let basic = 0..=cpuid::MAX_BASIC;
    for function in basic.chain(0x8000_0000..=highest) {
        for index in 0..if indexed(function) { 4 } else { 1 } {
            let [mut eax, mut ebx, mut ecx, edx] = cpuid::leaf(BRAND, function, index);
            match function {
                1 if kind == Kind::Vmx => ecx |= 1 << 5,
                0x8000_0000 => eax = highest,
                0x8000_0001 if kind == Kind::Svm => ecx |= 1 << 2,
                // Revision 1, 8 ASIDs, no optional features.
                SVM_LEAF => (eax, ebx) = (1, 8),
                _ => {}
            }
            entries.push(kvm_cpuid_entry2 {
                function,
                index,
                flags: if indexed(function) {
                    KVM_CPUID_FLAG_SIGNIFCANT_INDEX
                } else {
                    0
                },
                eax,
                ebx,
                ecx,
                edx,
                ..Default::default()
            });
        }
    }
    CpuId::from_entries(&entries)
        .map_err(|e| EngineError::Hypervisor(format!("the CPUID table: {e:?}")))
}
