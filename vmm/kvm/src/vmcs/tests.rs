use super::*;
use crate::trampoline::{Kind, Trampoline};

const CONTROLS: Controls = Controls::EVERYTHING;

fn with(test: impl FnOnce(&mut Vmcs)) {
    let mut trampoline = Trampoline::new(Kind::Vmx).expect("memory");
    let mut vmcs = Vmcs::new(trampoline.block(), CONTROLS, Trampoline::vmx_host());
    test(&mut vmcs);
}

fn long_mode() -> CpuState {
    let mut s = CpuState::at_reset();
    s.cr0 = 0x8001_0013;
    s.cr4 = 0x620;
    s.msrs.efer = 0xd01;
    s.rflags = 0x202;
    s
}

/// What is loaded is stored again, but for what the vCPU has and what VMX wants set.
#[test]
fn a_state_comes_back() {
    with(|vmcs| {
        let mut s = long_mode();
        s.tr.access = access::UNUSABLE;
        vmcs.load(&s, [0; 4]);
        let got = vmcs.store();
        assert_eq!((got.cr0, got.cr4, got.efer), (s.cr0, s.cr4, s.msrs.efer));
        assert_eq!((got.rip, got.rflags, got.rsp), (s.rip, s.rflags, s.gpr[4]));
        assert_eq!(got.segments[1].base, s.segments[1].base);
        assert!(got.rax.is_none() && got.cr2.is_none() && got.dr6.is_none());
        let tr = got.based.expect("VMX switches TR").tr;
        assert_eq!(tr, segments::NO_TASK);
        // The processor's own: NE, VMXE.
        assert_eq!(vmcs.page.u64(at::CR0) & cr0::NE, cr0::NE);
        assert_eq!(vmcs.page.u64(at::CR4) & VMXE, VMXE);
    });
}

/// A processor may leave all its rights to a register that has become unusable.
#[test]
fn an_unusable_segment_has_no_rights_but_the_cpl() {
    with(|vmcs| {
        let mut s = long_mode();
        s.cpl = 3;
        s.segments[2].access = access::UNUSABLE;
        vmcs.load(&s, [0; 4]);
        assert_eq!(vmcs.cpl(), 3);
        vmcs.page.set_u32(at::RIGHTS, 0x1_c0f3);
        let es = segments::canonical(vmcs.store().segments[0], segments::Use::Data);
        assert_eq!((es.access, es.limit), (access::UNUSABLE, 0));
    });
}

/// An entry finds the control fields as they must be, whatever the guest has written there, and its own
/// state as it was.
#[test]
fn what_the_guest_destroys_is_written_anew() {
    with(|vmcs| {
        vmcs.load(&long_mode(), [1, 2, 3, 4]);
        let before: Vec<u32> = at::ALL.step_by(4).map(|at| vmcs.page.u32(at)).collect();
        for offset in at::ALL.step_by(4) {
            if !at::GUEST.iter().any(|part| part.contains(&offset)) && offset != at::CR0_SHADOW {
                vmcs.page.set_u32(offset, 0xa5a5_a5a5);
            }
        }
        vmcs.prepare(None);
        let after: Vec<u32> = at::ALL.step_by(4).map(|at| vmcs.page.u32(at)).collect();
        for (i, (before, after)) in before.iter().zip(&after).enumerate() {
            assert!(before == after || 4 * i == at::CR0_SHADOW + 4, "{}", 4 * i);
        }
    });
}

/// SDM vol. 3, 27.3.1.5: which shadow goes with which flags.
#[test]
fn shadows_fit_the_flags() {
    with(|vmcs| {
        let mut s = long_mode();
        s.interrupt_shadow = true;
        for (flags, state, pending) in [
            (0x202, BLOCKED_BY_STI, 0),
            (0x002, BLOCKED_BY_MOV_SS, 0),
            (0x302, BLOCKED_BY_MOV_SS, PENDING_STEP),
        ] {
            s.rflags = flags;
            vmcs.load(&s, [0; 4]);
            assert_eq!(vmcs.page.u32(at::INTERRUPTIBILITY), state, "{flags:#x}");
            assert_eq!(vmcs.page.u64(at::PENDING_DEBUG), pending, "{flags:#x}");
            assert!(vmcs.store().shadow);
        }
    });
}

/// SDM vol. 3, table 25-17; real mode has no error codes.
#[test]
fn events_are_encoded_as_the_manual_has_them() {
    with(|vmcs| {
        let mut s = long_mode();
        for (protected, event, field, error) in [
            (true, Event::Interrupt(0x31), 0x8000_0031, 0),
            (true, Event::Exception(13, Some(0x18)), 0x8000_0b0d, 0x18),
            (true, Event::UNDEFINED, 0x8000_0306, 0),
            (false, Event::PROTECTION, 0x8000_030d, 0),
        ] {
            s.cr0 = if protected { 0x8001_0013 } else { 0x10 };
            vmcs.load(&s, [0; 4]);
            vmcs.prepare(Some(event));
            assert_eq!(vmcs.page.u32(at::ENTRY_EVENT), field, "{event:?}");
            assert_eq!(vmcs.page.u32(at::ENTRY_ERROR), error, "{event:?}");
        }
    });
}

#[test]
fn exits_are_told_apart() {
    with(|vmcs| {
        vmcs.load(&long_mode(), [0; 4]);
        for (reason, want) in [
            (16, Intercept::Rdtsc),
            (51, Intercept::Rdtscp),
            (10, Intercept::Cpuid),
            (2, Intercept::TripleFault),
            (18, Intercept::Undefined),
            (57, Intercept::Undefined),
            (31, Intercept::NoMsr),
        ] {
            vmcs.page.set_u32(at::REASON, reason);
            assert_eq!(vmcs.intercept(), want);
        }
        vmcs.page.set_u32(at::REASON, 28);
        vmcs.page.set_u64(at::QUALIFICATION, 3 << 8);
        assert_eq!(vmcs.intercept(), Intercept::SetCr0(3));
        for reason in [9, 0xffff, 0x8000_0021, 300] {
            vmcs.page.set_u32(at::REASON, reason);
            assert!(matches!(vmcs.intercept(), Intercept::Stopped(_)));
        }
    });
}
