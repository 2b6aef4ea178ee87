//! The control block of the nested guest, whichever processor's it is: a VMCB on AMD ([`crate::vmcb`]), a
//! VMCS on Intel ([`crate::vmcs`]).
//!
//! An entry loads the guest from it, an intercept leaves the guest in it. The two have different parts
//! of the guest's state; of the rest the vCPU's own registers are the guest's.

use engine::{CpuState, DescriptorTable, Segment};
use kvm_bindings::kvm_regs;

use crate::page::Page;
use crate::walk::Paging;

/// The vector of debug exceptions.
pub const DB: u8 = 1;

/// DR6.BS: a single step.
pub const SINGLE_STEP: u64 = 1 << 14;

/// An event that an entry delivers to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Interrupt(u8),
    Exception(u8, Option<u32>),
}

impl Event {
    pub const DEBUG: Self = Self::Exception(DB, None);
    /// #UD.
    pub const UNDEFINED: Self = Self::Exception(6, None);
    /// #GP(0).
    pub const PROTECTION: Self = Self::Exception(13, Some(0));
}

/// Why the guest was left for the trampoline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Intercept {
    Rdtsc,
    Rdtscp,
    Rdpmc,
    Cpuid,
    /// An instruction that the guest's processor does not have.
    Undefined,
    /// RDMSR or WRMSR of a number that the processor always intercepts; none of those is there.
    NoMsr,
    /// INVD, which does nothing here.
    Invd,
    /// MOV to CR0 of the general register of this number, with another NE than before.
    SetCr0(u8),
    /// MOV to CR4 that sets what the guest's processor does not have.
    SetCr4,
    TripleFault,
    /// The guest cannot go on; why.
    Stopped(String),
}

/// What the block has of the guest's state. None: the vCPU's own is the guest's.
pub struct Switched {
    pub rax: Option<u64>,
    pub rsp: u64,
    pub rip: u64,
    pub rflags: u64,
    pub cr0: u64,
    pub cr2: Option<u64>,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub dr6: Option<u64>,
    pub dr7: u64,
    pub cpl: u8,
    pub shadow: bool,
    /// ES, CS, SS, DS.
    pub segments: [Segment; 4],
    pub based: Option<Based>,
    pub gdtr: DescriptorTable,
    pub idtr: DescriptorTable,
}

/// The segment registers with a base of their own.
#[derive(Clone, Copy, Debug)]
pub struct Based {
    pub fs: Segment,
    pub gs: Segment,
    pub ldtr: Segment,
    pub tr: Segment,
}

/// Offsets of registers in the block's page.
pub struct Layout {
    pub rip: usize,
    pub rsp: usize,
    pub rflags: usize,
    pub dr7: usize,
    pub cr0: usize,
    pub cr3: usize,
    pub cr4: usize,
    pub efer: usize,
}

/// The control block.
pub trait Block: Send {
    /// Makes it hold the guest in this state; with PAE paging `pdptes` are the four entries at CR3.
    fn load(&mut self, state: &CpuState, pdptes: [u64; 4]);
    /// What it holds.
    fn store(&self) -> Switched;
    /// Before an entry: writes anew what the guest may have written over, and the event to deliver.
    fn prepare(&mut self, event: Option<Event>);
    /// After an intercept: which.
    fn intercept(&self) -> Intercept;
    /// Bytes of the intercepted instruction, where the processor tells.
    fn instruction_len(&self) -> Option<u64>;

    /// The memory that it is in, and where the registers lie there that both processors have in it.
    fn page(&self) -> &Page;
    fn page_mut(&mut self) -> &mut Page;
    fn layout(&self) -> &'static Layout;

    fn rip(&self) -> u64 {
        self.page().get(self.layout().rip)
    }

    fn set_rip(&mut self, rip: u64) {
        let at = self.layout().rip;
        self.page_mut().put(at, rip);
    }

    fn rsp(&self) -> u64 {
        self.page().get(self.layout().rsp)
    }

    fn rflags(&self) -> u64 {
        self.page().get(self.layout().rflags)
    }

    fn set_rflags(&mut self, rflags: u64) {
        let at = self.layout().rflags;
        self.page_mut().put(at, rflags);
    }

    fn dr7(&self) -> u64 {
        self.page().get(self.layout().dr7)
    }

    fn set_dr7(&mut self, dr7: u64) {
        let at = self.layout().dr7;
        self.page_mut().put(at, dr7);
    }

    fn paging(&self) -> Paging {
        let (page, layout) = (self.page(), self.layout());
        Paging {
            cr0: page.get(layout.cr0),
            cr3: page.get(layout.cr3),
            cr4: page.get(layout.cr4),
            efer: page.get(layout.efer),
        }
    }

    fn cpl(&self) -> u8;
    fn code_segment(&self) -> Segment;
    /// Whether an interrupt shadow stands.
    fn shadow(&self) -> bool;
    fn end_shadow(&mut self);

    /// RAX, which is here or among the vCPU's registers.
    fn rax(&self, regs: &kvm_regs) -> u64;
    fn set_rax(&mut self, regs: &mut kvm_regs, rax: u64);
    /// Notes a single step in DR6, if that is here.
    fn note_step(&mut self) -> bool;

    /// CR0 and CR4 as the guest sees them, from what the vCPU has while the guest runs.
    fn seen_by_guest(&self, cr0: u64, cr4: u64) -> (u64, u64);
    /// What CR0.NE reads as from now on, where it is not the processor's own.
    fn set_numeric_error(&mut self, on: bool);
}
