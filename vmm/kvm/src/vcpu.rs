//! The vCPU's file: runs it, and keeps what the last run left in its registers.
#![allow(unsafe_code)]

use std::os::fd::AsRawFd;

use engine::EngineError;
use kvm_bindings::nested::KvmNestedStateBuffer;
use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR,
    KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SET_TPR,
    KVM_EXIT_SHUTDOWN, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR, KVM_STATE_NESTED_GUEST_MODE,
    KVM_STATE_NESTED_RUN_PENDING, KVM_SYNC_X86_VALID_FIELDS, kvm_debugregs, kvm_msr_entry,
    kvm_regs, kvm_sync_regs, kvm_vcpu_events, kvm_xsave,
};
use kvm_ioctls::{SyncReg, VcpuFd};

use crate::block::{DB, SINGLE_STEP};
use crate::errors::{call, stopped};
use crate::trampoline::{self, Kind};

/// `_IOW(KVMIO, 0x86, struct kvm_interrupt)`.
const KVM_INTERRUPT: libc::Ioctl = 0x4004_ae86;
/// `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`.
const KVM_SET_SIGNAL_MASK: libc::Ioctl = 0x4004_ae8b;

/// Why KVM_RUN came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raw {
    /// A signal, or at once because that was asked for.
    Interrupted,
    PortRead {
        port: u16,
        size: u8,
        count: u32,
    },
    PortWrite {
        port: u16,
        size: u8,
        count: u32,
    },
    MemoryRead {
        addr: u64,
        size: u8,
    },
    MemoryWrite {
        addr: u64,
        size: u8,
        value: u64,
    },
    Halt,
    Window,
    Shutdown,
    ReadMsr {
        index: u32,
    },
    WriteMsr {
        index: u32,
        value: u64,
    },
    /// A breakpoint or a step, or the guest's own: with DR6's bits that say so.
    Debug {
        dr6: u64,
    },
    /// Nothing to do.
    Nothing,
}

/// Where the vCPU stands as KVM sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nesting {
    pub in_guest: bool,
    /// The entry has been executed, and no instruction of the guest since.
    pub entering: bool,
}

pub struct Vcpu {
    fd: VcpuFd,
    /// Registers as the last run left them, or as they were set since.
    pub seen: kvm_sync_regs,
    /// The general registers in `seen` were set, and KVM does not know yet.
    unsynced: bool,
}

impl Vcpu {
    pub fn new(mut fd: VcpuFd) -> Self {
        fd.get_kvm_run().kvm_valid_regs = u64::from(KVM_SYNC_X86_VALID_FIELDS);
        Self {
            fd,
            seen: kvm_sync_regs::default(),
            unsynced: false,
        }
    }

    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Runs the vCPU; with `settle` only to the end of the instruction that the last exit is of.
    pub fn run(&mut self, settle: bool) -> Result<Raw, EngineError> {
        self.fd.set_kvm_immediate_exit(u8::from(settle));
        self.unsynced = false;
        let result = self.fd.run().map(drop);
        self.seen = self.fd.sync_regs();
        match result {
            Ok(()) => self.reason(),
            Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => Ok(Raw::Interrupted),
            Err(e) => Err(call("run the guest", e)),
        }
    }

    fn reason(&mut self) -> Result<Raw, EngineError> {
        let rip = self.seen.regs.rip;
        let run = self.fd.get_kvm_run();
        let exit = &run.__bindgen_anon_1;
        Ok(match run.exit_reason {
            KVM_EXIT_INTR => Raw::Interrupted,
            KVM_EXIT_IO => {
                // SAFETY: the exit reason says which variant it is.
                let io = unsafe { exit.io };
                let (port, size, count) = (io.port, io.size, io.count);
                if u32::from(io.direction) == KVM_EXIT_IO_IN {
                    Raw::PortRead { port, size, count }
                } else {
                    Raw::PortWrite { port, size, count }
                }
            }
            KVM_EXIT_MMIO => {
                // SAFETY: the exit reason says which variant it is.
                let mmio = unsafe { exit.mmio };
                let (addr, size) = (mmio.phys_addr, mmio.len.min(8) as u8);
                if mmio.is_write == 0 {
                    Raw::MemoryRead { addr, size }
                } else {
                    let value = u64::from_le_bytes(mmio.data) & mask(size);
                    Raw::MemoryWrite { addr, size, value }
                }
            }
            KVM_EXIT_HLT => Raw::Halt,
            KVM_EXIT_IRQ_WINDOW_OPEN => Raw::Window,
            KVM_EXIT_SHUTDOWN => Raw::Shutdown,
            KVM_EXIT_SET_TPR => Raw::Nothing,
            KVM_EXIT_DEBUG => {
                // SAFETY: the exit reason says which variant it is.
                let dr6 = unsafe { exit.debug.arch.dr6 };
                Raw::Debug { dr6 }
            }
            KVM_EXIT_X86_RDMSR => {
                // SAFETY: the exit reason says which variant it is.
                let index = unsafe { exit.msr.index };
                Raw::ReadMsr { index }
            }
            KVM_EXIT_X86_WRMSR => {
                // SAFETY: the exit reason says which variant it is.
                let msr = unsafe { exit.msr };
                Raw::WriteMsr {
                    index: msr.index,
                    value: msr.data,
                }
            }
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: the exit reason says which variant it is.
                let why = unsafe { exit.internal };
                return Err(stopped(&internal(why.suberror, &why.data), rip));
            }
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: the exit reason says which variant it is.
                let why = unsafe { exit.fail_entry.hardware_entry_failure_reason };
                let what = format!("the processor refused its state (reason {why:#x})");
                return Err(stopped(&what, rip));
            }
            other => {
                let what = format!("an exit that this program does not know (reason {other})");
                return Err(stopped(&what, rip));
            }
        })
    }

    /// The `i`th element of the port exit.
    pub fn port_data(&mut self, i: u32, size: u8) -> u32 {
        let mut bytes = [0; 4];
        let at = self.port_element(i, size);
        // SAFETY: KVM says that the elements lie in the mapping of kvm_run.
        unsafe { at.copy_to_nonoverlapping(bytes.as_mut_ptr(), usize::from(size.min(4))) };
        u32::from_le_bytes(bytes)
    }

    /// Answers the `i`th element of the port exit.
    pub fn set_port_data(&mut self, i: u32, size: u8, value: u32) {
        let bytes = value.to_le_bytes();
        let at = self.port_element(i, size);
        // SAFETY: as above.
        unsafe { at.copy_from_nonoverlapping(bytes.as_ptr(), usize::from(size.min(4))) };
    }

    fn port_element(&mut self, i: u32, size: u8) -> *mut u8 {
        let run = self.fd.get_kvm_run();
        // SAFETY: the last exit was one of a port.
        let io = unsafe { run.__bindgen_anon_1.io };
        assert!(i < io.count && size == io.size, "an element of the exit");
        let offset = io.data_offset as usize + i as usize * usize::from(size);
        // SAFETY: the offset is KVM's own, into the mapping that kvm_run is the start of.
        unsafe { std::ptr::from_mut(run).cast::<u8>().add(offset) }
    }

    /// Answers a read of memory outside RAM.
    pub fn set_memory_data(&mut self, value: u64) {
        self.fd.get_kvm_run().__bindgen_anon_1.mmio.data = value.to_le_bytes();
    }

    /// Answers an MSR exit; None: #GP(0).
    pub fn answer_msr(&mut self, value: Option<u64>) {
        let run = self.fd.get_kvm_run();
        // SAFETY: the last exit was one of an MSR.
        let msr = unsafe { &mut run.__bindgen_anon_1.msr };
        msr.error = u8::from(value.is_none());
        if let Some(value) = value {
            msr.data = value;
        }
    }

    /// Sets the general registers at the next run.
    pub fn set_regs(&mut self, regs: kvm_regs) {
        self.seen.regs = regs;
        self.fd.sync_regs_mut().regs = regs;
        self.fd.set_sync_dirty_reg(SyncReg::Register);
        self.unsynced = true;
    }

    /// Tells KVM the general registers now: a step is one from where KVM knows the vCPU to be.
    pub fn sync_regs(&mut self) -> Result<(), EngineError> {
        if std::mem::take(&mut self.unsynced) {
            self.fd.clear_sync_dirty_reg(SyncReg::Register);
            self.fd
                .set_regs(&self.seen.regs)
                .map_err(|e| call("set its registers", e))?;
        }
        Ok(())
    }

    pub fn request_window(&mut self, on: bool) {
        self.fd.get_kvm_run().request_interrupt_window = u8::from(on);
    }

    pub fn set_cr8(&mut self, cr8: u64) {
        self.fd.get_kvm_run().cr8 = cr8;
    }

    /// Queues an external interrupt for the guest's next instruction.
    pub fn interrupt(&mut self, vector: u8) -> Result<(), EngineError> {
        let request = kvm_bindings::kvm_interrupt {
            irq: u32::from(vector),
        };
        // SAFETY: the request is valid for the call.
        let failed = unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_INTERRUPT, &request) };
        if failed != 0 {
            return Err(call("queue an interrupt", std::io::Error::last_os_error()));
        }
        self.seen.events.interrupt.injected = 1;
        Ok(())
    }

    /// Sets which signals are blocked while the guest runs (the kernel's 64-bit set).
    pub fn set_signal_mask(&self, blocked: u64) -> Result<(), EngineError> {
        #[repr(C)]
        struct Request {
            len: u32,
            set: [u8; 8],
        }
        let request = Request {
            len: 8,
            set: blocked.to_ne_bytes(),
        };
        // SAFETY: the request is valid for the call.
        let failed = unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_SET_SIGNAL_MASK, &request) };
        if failed != 0 {
            return Err(call("set signals", std::io::Error::last_os_error()));
        }
        Ok(())
    }

    pub fn nesting(&self) -> Result<Nesting, EngineError> {
        let mut state = Box::new(KvmNestedStateBuffer::empty());
        self.fd
            .nested_state(&mut state)
            .map_err(|e| call("tell its nested state", e))?;
        let flags = u32::from(state.flags);
        Ok(Nesting {
            in_guest: flags & KVM_STATE_NESTED_GUEST_MODE != 0,
            entering: flags & KVM_STATE_NESTED_RUN_PENDING != 0,
        })
    }

    /// Leaves the nested guest, whatever the vCPU does there; on Intel it is in VMX operation then, with
    /// no VMCS.
    pub fn leave_guest(&self, kind: Kind) -> Result<(), EngineError> {
        let mut state = Box::new(KvmNestedStateBuffer::empty());
        // The header alone: no guest mode; on AMD interrupts are held (GIF 0) until VMRUN.
        state.size = size_of::<kvm_bindings::kvm_nested_state>() as u32;
        match kind {
            Kind::Svm => state.format = kvm_bindings::KVM_STATE_NESTED_FORMAT_SVM as u16,
            Kind::Vmx => {
                state.format = kvm_bindings::KVM_STATE_NESTED_FORMAT_VMX as u16;
                state.hdr.vmx.vmxon_pa = trampoline::HOST_AREA;
                state.hdr.vmx.vmcs12_pa = u64::MAX;
            }
        }
        self.fd
            .set_nested_state(&state)
            .map_err(|e| call("leave the nested guest", e))
    }

    /// Whether an event is on its way into the guest, which no state of the guest can show.
    pub fn event_in_flight(&self) -> bool {
        let e = &self.seen.events;
        e.exception.injected != 0
            || e.exception.pending != 0
            || e.interrupt.injected != 0
            || e.nmi.injected != 0
            || e.nmi.pending != 0
    }

    /// Whether a #DB is on its way: the only exception that may be when an exit's instruction has
    /// completed, after a single step.
    pub fn debug_due(&self) -> bool {
        let e = &self.seen.events.exception;
        (e.injected != 0 || e.pending != 0) && e.nr == DB
    }

    /// Queues the #DB of a single step.
    pub fn raise_step(&mut self) -> Result<(), EngineError> {
        let mut registers = self.debug_registers()?;
        registers.dr6 |= SINGLE_STEP;
        self.set_debug_registers(&registers)?;
        self.raise(DB, None)
    }

    /// Queues an exception for the guest.
    pub fn raise(&mut self, vector: u8, error: Option<u32>) -> Result<(), EngineError> {
        let exception = &mut self.seen.events.exception;
        exception.injected = 1;
        exception.nr = vector;
        exception.has_error_code = u8::from(error.is_some());
        exception.error_code = error.unwrap_or(0);
        let mut events = self.seen.events;
        // All but what these name is taken from it.
        events.flags = 0;
        self.fd
            .set_vcpu_events(&events)
            .map_err(|e| call("queue an exception", e))
    }

    /// Forgets all events.
    pub fn clear_events(&mut self) -> Result<(), EngineError> {
        self.seen.events = kvm_vcpu_events::default();
        self.fd
            .set_vcpu_events(&self.seen.events)
            .map_err(|e| call("forget its events", e))
    }

    pub fn msrs(&self, entries: &[(u32, u64)]) -> kvm_bindings::Msrs {
        let entries: Vec<kvm_msr_entry> = entries
            .iter()
            .map(|&(index, data)| kvm_msr_entry {
                index,
                data,
                ..Default::default()
            })
            .collect();
        kvm_bindings::Msrs::from_entries(&entries).expect("a few entries fit")
    }

    pub fn set_msrs(&self, entries: &[(u32, u64)]) -> Result<(), EngineError> {
        let set = self
            .fd
            .set_msrs(&self.msrs(entries))
            .map_err(|e| call("set MSRs", e))?;
        match entries.get(set) {
            None => Ok(()),
            Some((index, value)) => Err(EngineError::Hypervisor(format!(
                "KVM refused to set MSR {index:#x} to {value:#x}"
            ))),
        }
    }

    pub fn msr(&self, index: u32) -> Result<u64, EngineError> {
        let mut msrs = self.msrs(&[(index, 0)]);
        match self.fd.get_msrs(&mut msrs) {
            Ok(1) => Ok(msrs.as_slice()[0].data),
            Ok(_) => Err(EngineError::Hypervisor(format!(
                "KVM refused to read MSR {index:#x}"
            ))),
            Err(e) => Err(call("read MSRs", e)),
        }
    }

    pub fn debug_registers(&self) -> Result<kvm_debugregs, EngineError> {
        self.fd
            .get_debug_regs()
            .map_err(|e| call("tell its debug registers", e))
    }

    pub fn set_debug_registers(&self, registers: &kvm_debugregs) -> Result<(), EngineError> {
        self.fd
            .set_debug_regs(registers)
            .map_err(|e| call("set its debug registers", e))
    }

    pub fn xsave(&self) -> Result<kvm_xsave, EngineError> {
        self.fd
            .get_xsave()
            .map_err(|e| call("tell its floating-point state", e))
    }

    pub fn set_xsave(&self, area: &kvm_xsave) -> Result<(), EngineError> {
        // SAFETY: the area has 4096 bytes, which is all that KVM reads unless dynamic features
        // (AMX) were asked for, which nobody does here.
        unsafe { self.fd.set_xsave(area) }.map_err(|e| call("set its floating-point state", e))
    }
}

fn mask(size: u8) -> u64 {
    u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)))
}

/// An internal error in words (`KVM_INTERNAL_ERROR_*`).
fn internal(suberror: u32, data: &[u64; 16]) -> String {
    let what = match suberror {
        1 => "an instruction that it cannot emulate",
        2 => "two exceptions at once",
        3 => "an exit while an event was delivered",
        4 => "an exit that it did not expect",
        _ => "an internal error",
    };
    format!(
        "{what} (suberror {suberror}, data {:#x} {:#x} {:#x})",
        data[0], data[1], data[2]
    )
}
