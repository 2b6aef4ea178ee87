use super::*;

/// The pair as PC software sets it up: vectors 20h and 28h, normal EOI, nothing masked.
fn pic() -> Pic {
    let mut pic = Pic::new();
    for (base, vector) in [(0x20, 0x20), (0xa0, 0x28)] {
        pic.write(base, 0x11);
        pic.write(base + 1, vector);
        pic.write(base + 1, 4);
        pic.write(base + 1, 1);
        pic.write(base + 1, 0);
    }
    pic
}

fn isr(pic: &mut Pic, base: u16) -> u8 {
    pic.write(base, 0x0b);
    pic.read(base)
}

fn irr(pic: &mut Pic, base: u16) -> u8 {
    pic.write(base, 0x0a);
    pic.read(base)
}

#[test]
fn nothing_is_pending_before_initialisation() {
    let mut pic = Pic::new();
    pic.set_line(0, true);
    assert!(!pic.interrupt_pending());
    assert_eq!(pic.read(0x21), 0xff);
}

#[test]
fn higher_priority_interrupts_lower_and_not_the_reverse() {
    let mut pic = pic();
    pic.pulse(4);
    assert_eq!(pic.acknowledge(), 0x24);
    assert!(!pic.interrupt_pending());
    pic.pulse(6);
    assert!(!pic.interrupt_pending(), "6 waits for 4");
    pic.pulse(1);
    assert_eq!(pic.acknowledge(), 0x21);
    assert_eq!(isr(&mut pic, 0x20), 0b1_0010);
    pic.write(0x20, 0x20);
    assert_eq!(
        isr(&mut pic, 0x20),
        0b1_0000,
        "non-specific EOI ends the highest"
    );
    pic.write(0x20, 0x64);
    assert_eq!(isr(&mut pic, 0x20), 0, "specific EOI");
    assert_eq!(pic.acknowledge(), 0x26);
}

#[test]
fn an_edge_is_one_interrupt_however_long_the_line_stays_high() {
    let mut pic = pic();
    pic.set_line(0, true);
    assert_eq!(pic.acknowledge(), 0x20);
    pic.write(0x20, 0x20);
    assert!(!pic.interrupt_pending());
    pic.set_line(0, true);
    assert!(!pic.interrupt_pending());
    pic.pulse(0);
    assert!(pic.interrupt_pending());
}

#[test]
fn a_level_asks_again_until_it_falls() {
    let mut pic = pic();
    pic.set_line(11, true);
    assert_eq!(pic.acknowledge(), 0x2b);
    pic.write(0xa0, 0x20);
    pic.write(0x20, 0x20);
    assert!(pic.interrupt_pending(), "still high");
    assert_eq!(pic.acknowledge(), 0x2b);
    pic.set_line(11, false);
    pic.write(0xa0, 0x20);
    pic.write(0x20, 0x20);
    assert!(!pic.interrupt_pending());
}

#[test]
fn a_level_that_falls_before_the_acknowledge_is_spurious() {
    let mut pic = pic();
    pic.set_line(5, true);
    assert!(pic.interrupt_pending());
    pic.set_line(5, false);
    assert_eq!(pic.acknowledge(), 0x27);
    assert_eq!(
        isr(&mut pic, 0x20),
        0,
        "a spurious interrupt is not in service"
    );
}

#[test]
fn slave_requests_come_through_line_2() {
    let mut pic = pic();
    pic.pulse(8);
    pic.pulse(12);
    pic.pulse(3);
    assert_eq!(pic.acknowledge(), 0x28);
    assert_eq!(isr(&mut pic, 0x20), 0b100);
    assert_eq!(isr(&mut pic, 0xa0), 1);
    pic.write(0xa0, 0x20);
    pic.write(0x20, 0x20);
    assert_eq!(pic.acknowledge(), 0x2c, "12 is on the slave, so before 3");
    pic.write(0xa0, 0x20);
    pic.write(0x20, 0x20);
    assert_eq!(pic.acknowledge(), 0x23);
}

#[test]
fn masks_hold_and_do_not_forget() {
    let mut pic = pic();
    pic.write(0x21, 0b1);
    pic.pulse(0);
    assert!(!pic.interrupt_pending());
    assert!(!pic.would_notice(0));
    assert_eq!(irr(&mut pic, 0x20), 1);
    pic.write(0x21, 0);
    assert!(!pic.would_notice(0), "it asks already");
    assert_eq!(pic.acknowledge(), 0x20);
    assert!(pic.would_notice(0));
    pic.write(0x21, 0b100);
    assert!(!pic.would_notice(8), "the cascade is masked");
}

#[test]
fn automatic_eoi_and_rotation() {
    let mut pic = Pic::new();
    pic.write(0x20, 0x13);
    pic.write(0x21, 0x40);
    pic.write(0x21, 0x03);
    pic.write(0x21, 0);
    pic.write(0x20, 0x80);
    pic.pulse(3);
    assert_eq!(pic.acknowledge(), 0x43);
    assert_eq!(isr(&mut pic, 0x20), 0);
    // 3 has become the lowest, so 4 is the highest.
    pic.pulse(0);
    pic.pulse(4);
    assert_eq!(pic.acknowledge(), 0x44);
    assert_eq!(pic.acknowledge(), 0x40);
}

#[test]
fn rotate_on_eoi_and_set_priority() {
    let mut pic = pic();
    pic.pulse(1);
    pic.acknowledge();
    pic.write(0x20, 0xa0);
    pic.pulse(1);
    pic.pulse(7);
    assert_eq!(
        pic.acknowledge(),
        0x27,
        "1 is lowest after its rotating EOI"
    );
    pic.write(0x20, 0x20);
    pic.write(0x20, 0xc6);
    pic.pulse(7);
    pic.pulse(0);
    assert_eq!(pic.acknowledge(), 0x27, "6 is lowest, so 7 is highest");
}

#[test]
fn special_mask_mode_lets_lower_lines_through() {
    let mut pic = pic();
    pic.pulse(1);
    pic.acknowledge();
    pic.write(0x21, 0b10);
    pic.pulse(4);
    assert!(!pic.interrupt_pending());
    pic.write(0x20, 0x68);
    assert_eq!(pic.acknowledge(), 0x24);
    pic.write(0x20, 0x20);
    assert_eq!(
        isr(&mut pic, 0x20),
        0b10,
        "the masked line stays in service"
    );
}

#[test]
fn poll_acknowledges() {
    let mut pic = pic();
    pic.write(0x20, 0x0c);
    assert_eq!(pic.read(0x20), 0);
    pic.pulse(6);
    pic.write(0x20, 0x0c);
    assert_eq!(pic.read(0x20), 0x86);
    assert_eq!(isr(&mut pic, 0x20), 0x40);
}

#[test]
fn elcr_keeps_the_wired_edges() {
    let mut pic = pic();
    pic.write(0x4d0, 0xff);
    pic.write(0x4d1, 0xff);
    assert_eq!((pic.read(0x4d0), pic.read(0x4d1)), (0xf8, 0xde));
}

#[test]
fn vectors_come_only_after_the_whole_initialisation() {
    let mut pic = Pic::new();
    pic.write(0x20, 0x11);
    pic.set_line(0, true);
    assert!(!pic.interrupt_pending());
    pic.write(0x21, 0x30);
    pic.write(0x21, 4);
    assert!(!pic.interrupt_pending());
    pic.write(0x21, 1);
    assert!(pic.interrupt_pending());
    assert_eq!(pic.acknowledge(), 0x30);
}
