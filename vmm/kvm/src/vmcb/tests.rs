use super::*;

/// A page of its own.
#[repr(align(4096))]
struct Page([u8; 4096]);

fn with(test: impl FnOnce(&mut Vmcb)) -> Box<Page> {
    let mut page = Box::new(Page([0xa5; 4096]));
    // SAFETY: the page outlives the block, is aligned and as long as it must be.
    let mut vmcb = unsafe { Vmcb::new(page.0.as_mut_ptr()) };
    test(&mut vmcb);
    page
}

/// Bits as APM vol. 2, table B-1 has them.
#[test]
fn intercepts_are_where_the_manual_has_them() {
    let page = with(|vmcb| vmcb.set_control(true, Some(Event::Exception(13, Some(0x18)))));
    let word = |at: usize| {
        u32::from_le_bytes([page.0[at], page.0[at + 1], page.0[at + 2], page.0[at + 3]])
    };
    // RDTSC 14, RDPMC 15, CPUID 18, INVLPGA 26.
    assert_eq!(word(0x0c), 1 << 14 | 1 << 15 | 1 << 18 | 1 << 26);
    // VMRUN to RDTSCP, MONITOR, MWAIT, XSETBV, RDPRU.
    assert_eq!(word(0x10), 0xff | 1 << 10 | 1 << 11 | 1 << 13 | 1 << 14);
    assert_eq!((word(0), word(4), word(8), word(0x14)), (0, 0, 0, 0));
    assert_eq!(word(0x58), 1, "ASID");
    assert_eq!(word(0x68), 1, "shadow");
    assert_eq!((word(0xa8), word(0xac)), (0x8000_0b0d, 0x18), "EVENTINJ");
    // The save area is left as it is.
    assert_eq!(page.0[0x400], 0xa5);
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
