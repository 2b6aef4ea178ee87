//! The control block of the nested guest (AMD64 APM vol. 2, appendix B): the trampoline's VMRUN
//! loads the guest from it, and each intercepted instruction leaves the guest in it.
#![allow(unsafe_code)]

use engine::Segment;
use engine::bits::access;

/// Offsets of the fields used.
pub mod at {
    pub const INTERCEPTS: usize = 0x000;
    pub const ASID: usize = 0x058;
    pub const INTERRUPT_STATE: usize = 0x068;
    pub const EXIT_CODE: usize = 0x070;
    pub const EXIT_INT_INFO: usize = 0x088;
    pub const EVENT_INJECTION: usize = 0x0a8;
    /// End of the control area's part that is rewritten before each VMRUN.
    pub const CONTROL_END: usize = 0x0d8;
    pub const ES: usize = 0x400;
    pub const CS: usize = 0x410;
    pub const SS: usize = 0x420;
    pub const DS: usize = 0x430;
    pub const GDTR: usize = 0x460;
    pub const IDTR: usize = 0x480;
    pub const CPL: usize = 0x4cb;
    pub const EFER: usize = 0x4d0;
    pub const CR4: usize = 0x548;
    pub const CR3: usize = 0x550;
    pub const CR0: usize = 0x558;
    pub const DR7: usize = 0x560;
    pub const DR6: usize = 0x568;
    pub const RFLAGS: usize = 0x570;
    pub const RIP: usize = 0x578;
    pub const RSP: usize = 0x5d8;
    pub const RAX: usize = 0x5f8;
    pub const CR2: usize = 0x640;
    pub const PAT: usize = 0x668;
}

/// Exit codes (appendix C).
pub mod exit {
    pub const RDTSC: u64 = 0x6e;
    pub const RDPMC: u64 = 0x6f;
    pub const CPUID: u64 = 0x72;
    pub const INVLPGA: u64 = 0x7a;
    pub const VMRUN: u64 = 0x80;
    pub const VMMCALL: u64 = 0x81;
    pub const VMLOAD: u64 = 0x82;
    pub const VMSAVE: u64 = 0x83;
    pub const STGI: u64 = 0x84;
    pub const CLGI: u64 = 0x85;
    pub const SKINIT: u64 = 0x86;
    pub const RDTSCP: u64 = 0x87;
    pub const MONITOR: u64 = 0x8a;
    pub const MWAIT: u64 = 0x8b;
    pub const MWAIT_ARMED: u64 = 0x8c;
    pub const XSETBV: u64 = 0x8d;
    pub const RDPRU: u64 = 0x8e;
    /// The guest's state was refused.
    pub const INVALID: u64 = u64::MAX;
}

/// Codes of the intercepted instructions.
pub const INTERCEPTED: [u64; 16] = [
    exit::RDTSC,
    exit::RDPMC,
    exit::CPUID,
    exit::INVLPGA,
    exit::VMRUN,
    exit::VMMCALL,
    exit::VMLOAD,
    exit::VMSAVE,
    exit::STGI,
    exit::CLGI,
    exit::SKINIT,
    exit::RDTSCP,
    exit::MONITOR,
    exit::MWAIT,
    exit::XSETBV,
    exit::RDPRU,
];

/// The vector of debug exceptions.
pub const DB: u8 = 1;

/// DR6.BS: a single step.
pub const SINGLE_STEP: u64 = 1 << 14;

/// An event that VMRUN delivers to the guest (APM vol. 2, 15.20).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Interrupt(u8),
    Exception(u8, Option<u32>),
}

impl Event {
    pub const DEBUG: Self = Self::Exception(DB, None);

    fn encode(self) -> u64 {
        const VALID: u64 = 1 << 31;
        match self {
            Self::Interrupt(vector) => u64::from(vector) | VALID,
            Self::Exception(vector, None) => u64::from(vector) | 3 << 8 | VALID,
            Self::Exception(vector, Some(error)) => {
                u64::from(vector) | 3 << 8 | 1 << 11 | VALID | u64::from(error) << 32
            }
        }
    }
}

/// The page. All access is volatile: KVM writes it while the vCPU runs, and so may the guest.
pub struct Vmcb {
    page: *mut u8,
}

// SAFETY: `Vmcb` is the only one in this process that touches the page, through `&mut self` or
// volatile reads.
unsafe impl Send for Vmcb {}

impl Vmcb {
    /// # Safety
    /// `page` is the start of 4096 mapped, writable bytes, aligned to 4096, that stay mapped as long
    /// as the result is in use.
    pub unsafe fn new(page: *mut u8) -> Self {
        Self { page }
    }

    fn get<T: Copy, const BYTES: usize>(&self, at: usize) -> T {
        assert!(at + BYTES <= 4096 && size_of::<T>() == BYTES && at.is_multiple_of(BYTES));
        // SAFETY: inside the page, by the assertion, and aligned.
        unsafe { self.page.add(at).cast::<T>().read_volatile() }
    }

    fn put<T: Copy, const BYTES: usize>(&mut self, at: usize, v: T) {
        assert!(at + BYTES <= 4096 && size_of::<T>() == BYTES && at.is_multiple_of(BYTES));
        // SAFETY: as in `get`.
        unsafe { self.page.add(at).cast::<T>().write_volatile(v) }
    }

    pub fn u64(&self, at: usize) -> u64 {
        self.get::<u64, 8>(at)
    }

    pub fn u32(&self, at: usize) -> u32 {
        self.get::<u32, 4>(at)
    }

    pub fn u8(&self, at: usize) -> u8 {
        self.get::<u8, 1>(at)
    }

    pub fn set_u64(&mut self, at: usize, v: u64) {
        self.put::<u64, 8>(at, v);
    }

    pub fn set_u32(&mut self, at: usize, v: u32) {
        self.put::<u32, 4>(at, v);
    }

    pub fn set_u8(&mut self, at: usize, v: u8) {
        self.put::<u8, 1>(at, v);
    }

    /// A segment register. GDTR and IDTR are in the same form.
    pub fn segment(&self, at: usize) -> Segment {
        let word = self.u32(at);
        let attributes = word >> 16;
        Segment {
            selector: word as u16,
            access: attributes & 0xff | (attributes & 0xf00) << 4,
            base: self.u64(at + 8),
            limit: self.u32(at + 4),
        }
    }

    pub fn set_segment(&mut self, at: usize, s: &Segment) {
        let attributes = if s.access & access::UNUSABLE != 0 {
            0
        } else {
            s.access & 0xff | s.access >> 4 & 0xf00
        };
        self.set_u32(at, u32::from(s.selector) | attributes << 16);
        self.set_u32(at + 4, s.limit);
        self.set_u64(at + 8, s.base);
    }

    /// Whether an interrupt shadow stands.
    pub fn shadow(&self) -> bool {
        self.u32(at::INTERRUPT_STATE) & 1 != 0
    }

    /// Writes the control area as VMRUN is to find it: the guest may have written over it.
    pub fn set_control(&mut self, shadow: bool, event: Option<Event>) {
        for offset in (0..at::CONTROL_END).step_by(8) {
            self.set_u64(offset, 0);
        }
        for code in INTERCEPTED {
            // Vectors 3 and 4 begin with the codes 60h and 80h.
            let word = at::INTERCEPTS + 0xc + 4 * usize::from(code >= 0x80);
            self.set_u32(word, self.u32(word) | 1 << (code & 0x1f));
        }
        // Without L2 nested paging ASIDs mean nothing, but 0 is refused.
        self.set_u32(at::ASID, 1);
        self.set_u32(at::INTERRUPT_STATE, u32::from(shadow));
        self.set_u64(at::EVENT_INJECTION, event.map_or(0, Event::encode));
    }

    /// The event whose delivery was broken off, as EVENTINJ takes it.
    pub fn interrupted_event(&self) -> Option<u64> {
        let info = self.u64(at::EXIT_INT_INFO);
        (info & 1 << 31 != 0).then_some(info)
    }
}

#[cfg(test)]
mod tests;
