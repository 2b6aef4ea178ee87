//! What the trampoline tells VMX: which exits it wants, where it goes on after one, and that the guest's
//! physical addresses are the VM's.

use engine::EngineError;
use kvm_bindings::Msrs;

use crate::errors::call;
use crate::vmcs::REVISION;

/// The capability MSRs (SDM vol. 3, appendix A).
mod msr {
    pub const BASIC: u32 = 0x480;
    pub const CPU_2: u32 = 0x48b;
    pub const EPT: u32 = 0x48c;
    pub const PIN: u32 = 0x48d;
    pub const CPU: u32 = 0x48e;
    pub const EXIT: u32 = 0x48f;
    pub const ENTRY: u32 = 0x490;
}

/// Bits of the controls (SDM vol. 3, tables 25-6 to 25-16).
mod cpu {
    pub const MWAIT: u32 = 1 << 10;
    pub const RDPMC: u32 = 1 << 11;
    pub const RDTSC: u32 = 1 << 12;
    pub const MSR_BITMAPS: u32 = 1 << 28;
    pub const MONITOR: u32 = 1 << 29;
    pub const SECOND: u32 = 1 << 31;
}

mod cpu_2 {
    pub const EPT: u32 = 1 << 1;
    pub const RDTSCP: u32 = 1 << 3;
    pub const UNRESTRICTED: u32 = 1 << 7;
    pub const RDRAND: u32 = 1 << 11;
    pub const RDSEED: u32 = 1 << 16;
}

mod exit {
    pub const SAVE_DEBUG: u32 = 1 << 2;
    pub const TO_64_BIT: u32 = 1 << 9;
    pub const SAVE_EFER: u32 = 1 << 20;
    pub const LOAD_EFER: u32 = 1 << 21;
}

mod entry {
    pub const LOAD_DEBUG: u32 = 1 << 2;
    pub const TO_LONG: u32 = 1 << 9;
    pub const LOAD_EFER: u32 = 1 << 15;
}

const CPU_WANTED: u32 =
    cpu::MWAIT | cpu::MONITOR | cpu::RDPMC | cpu::RDTSC | cpu::MSR_BITMAPS | cpu::SECOND;
const CPU_2_WANTED: u32 = cpu_2::EPT | cpu_2::UNRESTRICTED | cpu_2::RDTSCP;
const EXIT_WANTED: u32 = exit::SAVE_DEBUG | exit::TO_64_BIT | exit::SAVE_EFER | exit::LOAD_EFER;
const ENTRY_WANTED: u32 = entry::LOAD_DEBUG | entry::LOAD_EFER;

/// The controls of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controls {
    pub pin: u32,
    pub cpu: u32,
    pub cpu_2: u32,
    pub exit: u32,
    entry: u32,
}

/// Where an exit goes, and the tables that the entry refers to.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    pub rip: u64,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    /// ES, CS, SS, DS, FS, GS, TR.
    pub selectors: [u16; 7],
    /// Guest-physical address of 4 KiB of zeros: no MSR is intercepted here.
    pub msr_bitmap: u64,
    pub ept_pointer: u64,
}

/// A capability MSR of controls: bits that must be set, bits that may be.
struct Allowed {
    must: u32,
    may: u32,
}

impl Allowed {
    fn of(value: u64) -> Self {
        Self {
            must: value as u32,
            may: (value >> 32) as u32,
        }
    }

    /// The controls with all of `wanted`; the error names what cannot be had.
    fn with(&self, what: &str, wanted: u32) -> Result<u32, EngineError> {
        let missing = wanted & !self.may;
        if missing != 0 {
            return Err(EngineError::Hypervisor(format!(
                "KVM's nested VMX lacks {what} controls {missing:#x}"
            )));
        }
        Ok(self.must | wanted)
    }
}

impl Controls {
    /// Those that are wanted, as if nothing else had to be set.
    #[cfg(test)]
    pub const EVERYTHING: Self = Self {
        pin: 0,
        cpu: CPU_WANTED,
        cpu_2: CPU_2_WANTED,
        exit: EXIT_WANTED,
        entry: ENTRY_WANTED,
    };

    /// As the vCPU's VMX can have them.
    pub fn of(read: impl Fn(u32) -> Result<u64, EngineError>) -> Result<Self, EngineError> {
        let basic = read(msr::BASIC)?;
        if basic as u32 & 0x7fff_ffff != REVISION {
            return Err(EngineError::Hypervisor(format!(
                "KVM lays its VMCS out in a way that this program does not know (revision {:#x}, not \
                 {REVISION:#x})",
                basic as u32
            )));
        }
        let allowed = |index| read(index).map(Allowed::of);
        let second = allowed(msr::CPU_2)?;
        if second.may & (cpu_2::EPT | cpu_2::UNRESTRICTED) != cpu_2::EPT | cpu_2::UNRESTRICTED {
            return Err(EngineError::Hypervisor(
                "KVM's nested VMX has no unrestricted guest, in which code runs without paging"
                    .to_owned(),
            ));
        }
        // Bit 6: tables of four levels; 14: in write-back memory; 17: 1 GiB pages.
        let needed = 1 << 6 | 1 << 14 | 1 << 17;
        if read(msr::EPT)? & needed != needed {
            return Err(EngineError::Hypervisor(
                "KVM's nested EPT lacks 1 GiB pages or write-back tables".to_owned(),
            ));
        }
        // Where these cannot be intercepted KVM's own setting holds: hidden, they fault.
        let random = second.may & (cpu_2::RDRAND | cpu_2::RDSEED);
        Ok(Self {
            pin: allowed(msr::PIN)?.with("pin-based", 0)?,
            cpu: allowed(msr::CPU)?.with("processor-based", CPU_WANTED)?,
            cpu_2: second.with("secondary processor-based", CPU_2_WANTED | random)?,
            exit: allowed(msr::EXIT)?.with("exit", EXIT_WANTED)?,
            entry: allowed(msr::ENTRY)?.with("entry", ENTRY_WANTED)?,
        })
    }

    /// Those of the entry, to a guest in long mode or another.
    pub fn entry(&self, long: bool) -> u32 {
        self.entry | if long { entry::TO_LONG } else { 0 }
    }
}

/// Reads one MSR of the vCPU.
pub fn read_msr(vcpu: &kvm_ioctls::VcpuFd, index: u32) -> Result<u64, EngineError> {
    let entry = kvm_bindings::kvm_msr_entry {
        index,
        ..Default::default()
    };
    let mut msrs = Msrs::from_entries(&[entry]).expect("one entry fits");
    match vcpu.get_msrs(&mut msrs) {
        Ok(1) => Ok(msrs.as_slice()[0].data),
        Ok(_) => Err(EngineError::Hypervisor(format!(
            "KVM has no MSR {index:#x}: its nested VMX is off"
        ))),
        Err(e) => Err(call("read MSRs", e)),
    }
}
