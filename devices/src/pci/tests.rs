use crate::testkit::{Driver, Machine};

#[test]
fn mechanism_1_is_found_as_linux_looks_for_it() {
    let mut machine = Machine::new();
    // pci_check_type1.
    machine.out(0xcfb, 1, 0x01);
    let saved = machine.inp(0xcf8, 4);
    machine.out(0xcf8, 4, 0x8000_0000);
    assert_eq!(machine.inp(0xcf8, 4), 0x8000_0000);
    machine.out(0xcf8, 4, saved);
    assert_eq!(machine.config(0, 0), 0x1237_8086);
    assert_eq!(machine.config(0, 8) >> 16, 0x0600);
    assert_eq!(machine.config(1, 0), 0x7000_8086);
    assert_eq!(machine.config(1, 8) >> 16, 0x0601);
}

#[test]
fn absent_functions_read_as_all_ones() {
    let mut machine = Machine::new();
    for slot in 6..32 {
        assert_eq!(machine.config(slot, 0), u32::MAX);
    }
    machine.out(0xcf8, 4, 1 << 31 | 1 << 16);
    assert_eq!(machine.inp(0xcfc, 4), u32::MAX, "bus 1");
    machine.out(0xcf8, 4, 1 << 31 | 2 << 11 | 1 << 8);
    assert_eq!(machine.inp(0xcfc, 4), u32::MAX, "function 1");
    machine.out(0xcf8, 4, 2 << 11);
    assert_eq!(machine.inp(0xcfc, 4), u32::MAX, "not enabled");
}

#[test]
fn bytes_and_words_of_a_register() {
    let mut machine = Machine::new();
    machine.out(0xcf8, 4, 1 << 31 | 2 << 11);
    assert_eq!(machine.inp(0xcfc, 2), 0x1af4);
    assert_eq!(machine.inp(0xcfe, 2), 0x1041);
    assert_eq!(machine.inp(0xcfd, 1), 0x1a);
    machine.out(0xcf8, 4, 1 << 31 | 2 << 11 | 0x3c);
    machine.out(0xcfc, 1, 0x0a);
    assert_eq!(
        machine.inp(0xcfc, 2),
        0x010a,
        "line written, pin INTA# kept"
    );
}

#[test]
fn virtio_functions_are_preset_as_firmware_would() {
    let mut machine = Machine::new();
    for (slot, id, line) in [(2, 1, 11), (3, 2, 5), (4, 4, 9), (5, 3, 10)] {
        assert_eq!(machine.config(slot, 0), (0x1040 + id) << 16 | 0x1af4);
        assert_eq!(
            machine.config(slot, 4) & 0x10_0006,
            0x10_0006,
            "list, master, memory"
        );
        assert_eq!(machine.config(slot, 0x3c) & 0xffff, 0x100 | line);
        let bar = Driver::bar_of(&mut machine, slot);
        assert!(crate::MMIO_WINDOW.contains(&bar));
        assert_eq!(
            machine.config(slot, 0x10) & 0xf,
            4,
            "64-bit memory, not prefetchable"
        );
    }
}

#[test]
fn bars_are_sized_and_moved() {
    let mut machine = Machine::new();
    let old = Driver::bar_of(&mut machine, 2);
    machine.set_config(2, 0x10, u32::MAX);
    machine.set_config(2, 0x14, u32::MAX);
    assert_eq!(machine.config(2, 0x10), 0xffff_c004);
    assert_eq!(machine.config(2, 0x14), u32::MAX);
    assert_eq!(machine.config(2, 0x18), 0, "no further BAR");
    machine.set_config(2, 0x10, 0xd000_0000);
    machine.set_config(2, 0x14, 0x1);
    assert_eq!(machine.read(old + 18, 2) & 0xffff, 0xffff);
    assert_eq!(machine.read(0x1_d000_0000 + 18, 2), 2);
    machine.set_config(2, 4, 0x4);
    assert_eq!(
        machine.read(0x1_d000_0000 + 18, 2) & 0xffff,
        0xffff,
        "decoding is off"
    );
}

#[test]
fn capabilities_lead_to_the_structures() {
    let mut machine = Machine::new();
    let mut at = machine.config(3, 0x34) & 0xff;
    let mut kinds = Vec::new();
    while at != 0 {
        let head = machine.config(3, at);
        assert_eq!(head & 0xff, 0x09);
        let (offset, length) = (machine.config(3, at + 8), machine.config(3, at + 12));
        assert!(offset + length <= 0x4000);
        kinds.push(head >> 24);
        at = head >> 8 & 0xff;
    }
    kinds.sort_unstable();
    assert_eq!(kinds, [1, 2, 3, 4, 5]);
}

#[test]
fn the_window_reaches_the_bar_through_configuration_space() {
    let mut machine = Machine::new();
    let mut window = |offset: u32, len: u32| {
        machine.set_config(3, 0x84 + 4, 0);
        machine.set_config(3, 0x84 + 8, offset);
        machine.set_config(3, 0x84 + 12, len);
        machine.config(3, 0x84 + 16)
    };
    assert_eq!(window(18, 2), 1, "one queue");
    assert_eq!(window(0x2000, 4), 2048, "capacity");
    machine.set_config(3, 0x84 + 8, 20);
    machine.set_config(3, 0x84 + 12, 1);
    machine.set_config(3, 0x84 + 16, 1);
    let bar = Driver::bar_of(&mut machine, 3);
    assert_eq!(machine.read(bar + 20, 1), 1, "ACKNOWLEDGE was written");
}

#[test]
fn the_router_moves_and_cuts_lines() {
    let mut machine = Machine::new();
    machine.init_pic();
    let driver = Driver::start(&mut machine, 4, 8, 0);
    let mut driver = driver;
    driver.add(&machine, 0, &[(0x1000, 16, true)]);
    driver.notify(&mut machine, 0);
    assert_eq!(machine.board.acknowledge_interrupt(), 0x29);
    machine.out(0xa0, 1, 0x20);
    machine.out(0x20, 1, 0x20);
    assert!(machine.board.interrupt_pending(), "a level");
    // Slot 4 is on PIRQ D.
    machine.set_config(1, 0x60, 0x8905_0b0a);
    assert!(!machine.board.interrupt_pending(), "unrouted");
    machine.set_config(1, 0x60, 0x0505_0b0a);
    assert_eq!(machine.board.acknowledge_interrupt(), 0x25);
    machine.out(0x20, 1, 0x20);
    machine.set_config(4, 4, 0x406);
    assert!(!machine.board.interrupt_pending(), "INTx disabled");
    assert_eq!(machine.config(4, 4) >> 16 & 8, 8, "status still says so");
    machine.set_config(4, 4, 0x006);
    assert!(machine.board.interrupt_pending());
    assert_eq!(driver.isr(&mut machine), 1);
    assert!(
        !machine.board.interrupt_pending(),
        "reading ISR takes the line down"
    );
}

#[test]
fn the_routing_table_sums_to_zero_and_agrees_with_the_lines() {
    let mut machine = Machine::new();
    let table = machine.board.pci_routing_table();
    assert_eq!(&table[..4], b"$PIR");
    assert_eq!(
        usize::from(u16::from_le_bytes([table[6], table[7]])),
        table.len()
    );
    assert_eq!(
        table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
        0
    );
    for entry in table[32..].chunks(16) {
        let slot = u32::from(entry[1] >> 3);
        let link = u32::from(entry[2]);
        let routed = machine.config(1, link & !3) >> (8 * (link & 3)) & 0xff;
        assert_eq!(machine.config(slot, 0x3c) & 0xff, routed);
        assert_ne!(u16::from_le_bytes([entry[3], entry[4]]) >> routed & 1, 0);
    }
}
