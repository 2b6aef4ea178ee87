use super::*;

use crate::trampoline::{Kind, Trampoline};

fn with(test: impl FnOnce(&mut Vmcb)) {
    let mut trampoline = Trampoline::new(Kind::Svm).expect("memory");
    let mut vmcb = Vmcb::new(trampoline.block());
    for at in (0..4096).step_by(4) {
        vmcb.page.set_u32(at, 0xa5a5_a5a5);
    }
    test(&mut vmcb);
}

/// Bits as APM vol. 2, table B-1 has them.
#[test]
fn intercepts_are_where_the_manual_has_them() {
    with(|vmcb| {
        vmcb.set_control(true, Some(Event::Exception(13, Some(0x18))));
        // RDTSC 14, RDPMC 15, CPUID 18, INVLPGA 26.
        assert_eq!(vmcb.page.u32(0x0c), 1 << 14 | 1 << 15 | 1 << 18 | 1 << 26);
        // VMRUN to RDTSCP, MONITOR, MWAIT, XSETBV, RDPRU.
        assert_eq!(
            vmcb.page.u32(0x10),
            0xff | 1 << 10 | 1 << 11 | 1 << 13 | 1 << 14
        );
        assert_eq!([0, 4, 8, 0x14].map(|at| vmcb.page.u32(at)), [0; 4]);
        assert_eq!(vmcb.page.u32(0x58), 1, "ASID");
        assert_eq!(vmcb.page.u32(0x68), 1, "shadow");
        assert_eq!(
            (vmcb.page.u32(0xa8), vmcb.page.u32(0xac)),
            (0x8000_0b0d, 0x18),
            "EVENTINJ"
        );
        // The save area is left as it is.
        assert_eq!(vmcb.page.u32(0x400), 0xa5a5_a5a5);
    });
}

#[test]
fn segments_come_back() {
    let s = Segment {
        selector: 0x33,
        access: 0xd0fb,
        base: 0x1234_5678_9abc,
        limit: 0xffff_f000,
    };
    with(|vmcb| {
        vmcb.set_segment(at::CS, &s);
        assert_eq!(vmcb.segment(at::CS), s);
        vmcb.set_segment(
            at::DS,
            &Segment {
                access: access::UNUSABLE,
                ..s
            },
        );
        assert_eq!(vmcb.segment(at::DS).access, 0);
    });
}
