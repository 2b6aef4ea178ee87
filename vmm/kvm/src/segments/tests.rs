use super::*;

#[test]
fn the_canonical_form_survives_both_ways() {
    for (what, s) in [
        (Use::Code, (8, 0xa09b, 0, u32::MAX)),
        (Use::Data, (16, 0xc093, 0, u32::MAX)),
        (Use::Based, (0, access::UNUSABLE, 0x7f00_0000_1000, 0)),
        (Use::Stack(3), (0x2b, 0xc0f3, 0, u32::MAX)),
        (Use::Ldt, (0, access::UNUSABLE, 0, 0)),
        (Use::Task, (0x40, 0x8b, 0x3000, 0x67)),
    ] {
        let s = Segment {
            selector: s.0,
            access: s.1,
            base: s.2,
            limit: s.3,
        };
        assert_eq!(canonical(s, what), s, "{what:?}");
        assert_eq!(canonical(from_kvm(&to_kvm(&s)), what), s, "{what:?} by KVM");
    }
}

/// What KVM touches up in what it hands out, and the control block has as it was.
#[test]
fn both_sources_give_the_same() {
    let raw = Segment {
        selector: 0x10,
        access: 0x4092,
        base: 0,
        limit: u32::MAX,
    };
    let touched = Segment {
        access: 0xc093,
        ..raw
    };
    assert_eq!(canonical(raw, Use::Data), canonical(touched, Use::Data));
    let null = Segment {
        access: 0x40f0 & !access::P,
        base: 0x55,
        ..raw
    };
    let unusable = Segment {
        access: access::UNUSABLE,
        base: 0,
        limit: 0,
        ..raw
    };
    assert_eq!(canonical(null, Use::Data), unusable);
    assert_eq!(canonical(null, Use::Based).base, 0x55);
    assert_eq!(canonical(raw, Use::Stack(3)).access & 0x60, 0x60);
}
