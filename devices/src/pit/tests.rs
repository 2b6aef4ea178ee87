use super::*;

/// Programs a channel: control word, then the count's two bytes, at `tick`.
fn program(pit: &mut Pit, tick: u64, channel: u8, mode: u8, count: u16) {
    let now = time_of(tick);
    pit.advance(now);
    let [low, high] = count.to_le_bytes();
    let port = 0x40 + u16::from(channel);
    pit.write(now, 0x43, channel << 6 | 0x30 | mode << 1);
    pit.write(now, port, low);
    pit.write(now, port, high);
    pit.advance(now);
}

fn count(pit: &mut Pit, tick: u64, channel: u8) -> u16 {
    let now = time_of(tick);
    pit.advance(now);
    pit.write(now, 0x43, channel << 6);
    let port = 0x40 + u16::from(channel);
    u16::from_le_bytes([pit.read(now, port), pit.read(now, port)])
}

/// OUT of channel 0 at each tick.
fn outputs(pit: &mut Pit, ticks: std::ops::Range<u64>) -> String {
    ticks
        .map(|tick| {
            if pit.advance(time_of(tick)).level {
                '1'
            } else {
                '0'
            }
        })
        .collect()
}

#[test]
fn ticks_and_times_are_inverse() {
    for tick in [0, 1, 2, 1_193_181, 1_193_182, 1_193_183, 1 << 40, 1 << 54] {
        let at = time_of(tick);
        assert_eq!(ticks(at), tick);
        assert!(at == 0 || ticks(at - 1) < tick);
    }
    assert_eq!(ticks(1_000_000_000), FREQUENCY);
    assert_eq!(time_of(u64::MAX), u64::MAX, "past the end of time");
}

// The wave forms of the data sheet's figures, with the count 4 written at tick 10: it is in the
// counter at tick 11.
#[test]
fn mode_0_rises_at_terminal_count_and_stays() {
    let mut pit = Pit::new(0);
    program(&mut pit, 10, 0, 0, 4);
    assert_eq!(pit.next_deadline(), Some(time_of(15)));
    assert_eq!(outputs(&mut pit, 10..20), "0000011111");
    assert_eq!(pit.next_deadline(), None);
    assert_eq!(
        count(&mut pit, 20, 0),
        0xfffb,
        "it goes on counting below zero"
    );
}

#[test]
fn mode_2_is_low_for_one_clock_of_each_period() {
    let mut pit = Pit::new(0);
    program(&mut pit, 10, 0, 2, 4);
    assert_eq!(outputs(&mut pit, 10..20), "1111011101");
    let values: Vec<u16> = (20..25).map(|tick| count(&mut pit, tick, 0)).collect();
    assert_eq!(values, [3, 2, 1, 4, 3]);
    assert_eq!(pit.next_deadline(), Some(time_of(27)));
}

#[test]
fn mode_3_is_a_square_wave() {
    let mut pit = Pit::new(0);
    program(&mut pit, 10, 0, 3, 4);
    assert_eq!(outputs(&mut pit, 11..21), "1100110011");
    let mut pit = Pit::new(0);
    program(&mut pit, 10, 0, 3, 5);
    assert_eq!(
        outputs(&mut pit, 11..21),
        "1110011100",
        "odd counts are high one clock longer"
    );
    let values: Vec<u16> = (21..26).map(|tick| count(&mut pit, tick, 0)).collect();
    assert_eq!(values, [4, 2, 0, 4, 2]);
}

#[test]
fn mode_4_strobes_once() {
    let mut pit = Pit::new(0);
    program(&mut pit, 10, 0, 4, 3);
    assert_eq!(pit.next_deadline(), Some(time_of(15)));
    assert_eq!(outputs(&mut pit, 10..18), "11110111");
    assert_eq!(pit.next_deadline(), None);
}

#[test]
fn modes_1_and_5_wait_for_the_gate() {
    let mut pit = Pit::new(0);
    program(&mut pit, 10, 2, 1, 3);
    let out2 = |pit: &mut Pit, tick| pit.read(time_of(tick), 0x61) & 0x20 != 0;
    assert!(out2(&mut pit, 12));
    pit.write(time_of(20), 0x61, 1);
    assert!(!out2(&mut pit, 21));
    assert!(!out2(&mut pit, 23));
    assert!(out2(&mut pit, 24));
    let mut pit = Pit::new(0);
    program(&mut pit, 10, 2, 5, 3);
    pit.write(time_of(20), 0x61, 1);
    assert!(out2(&mut pit, 23));
    assert!(!out2(&mut pit, 24));
    assert!(out2(&mut pit, 25));
}

#[test]
fn rising_edges_are_reported_once_each_and_merged_when_late() {
    let mut pit = Pit::new(0);
    program(&mut pit, 10, 0, 2, 100);
    let mut edges = 0;
    for tick in 11..=1011 {
        edges += u32::from(pit.advance(time_of(tick)).rose);
    }
    assert_eq!(edges, 10);
    assert!(
        pit.advance(time_of(1511)).rose,
        "five periods at once are one report"
    );
    assert!(!pit.advance(time_of(1511)).rose);
}

#[test]
fn the_deadline_is_exactly_when_the_edge_comes() {
    let mut pit = Pit::new(0);
    program(&mut pit, 7, 0, 2, 11_932);
    let mut seen = 0;
    for _ in 0..1000 {
        let at = pit.next_deadline().expect("periodic");
        assert!(at > seen);
        assert!(!pit.advance(at - 1).rose);
        assert!(pit.advance(at).rose);
        seen = at;
    }
}

#[test]
fn a_new_count_waits_for_the_period_to_end() {
    let mut pit = Pit::new(0);
    program(&mut pit, 10, 0, 2, 10);
    let now = time_of(15);
    pit.advance(now);
    pit.write(now, 0x40, 4);
    pit.write(now, 0x40, 0);
    let edges: Vec<u64> = (16..40)
        .filter(|tick| pit.advance(time_of(*tick)).rose)
        .collect();
    assert_eq!(edges, [21, 25, 29, 33, 37]);
}

#[test]
fn late_looks_find_the_edge_at_which_a_new_count_came_in() {
    let mut pit = Pit::new(0);
    program(&mut pit, 10, 0, 2, 10);
    let now = time_of(15);
    pit.advance(now);
    pit.write(now, 0x40, 0xff);
    pit.write(now, 0x40, 0xff);
    assert!(pit.advance(time_of(30)).rose, "the old period ended at 21");
    assert_eq!(pit.next_deadline(), Some(time_of(21 + 0xffff)));
}

#[test]
fn byte_access_modes_and_bcd() {
    let mut pit = Pit::new(0);
    pit.write(0, 0x43, 0b0001_0100);
    pit.write(0, 0x40, 200);
    assert_eq!(pit.channels[0].read(1), 200, "low byte only");
    pit.write(0, 0x43, 0b0010_0100);
    pit.write(0, 0x40, 2);
    assert_eq!(pit.channels[0].read(1), 2, "high byte only");
    pit.write(0, 0x43, 0b0011_0101);
    pit.write(0, 0x40, 0x34);
    pit.write(0, 0x40, 0x12);
    assert_eq!(count(&mut pit, 1, 0), 0x1234);
    assert_eq!(count(&mut pit, 36, 0), 0x1199, "BCD borrows at 10");
    assert_eq!(pit.next_deadline(), Some(time_of(1 + 1234)));
}

#[test]
fn a_latched_count_holds_until_read() {
    let mut pit = Pit::new(0);
    program(&mut pit, 10, 0, 2, 0x5000);
    let now = time_of(11 + 0x100);
    pit.write(now, 0x43, 0);
    let later = time_of(11 + 0x300);
    pit.write(later, 0x43, 0);
    assert_eq!([pit.read(later, 0x40), pit.read(later, 0x40)], [0x00, 0x4f]);
    assert_eq!(
        [pit.read(later, 0x40), pit.read(later, 0x40)],
        [0x00, 0x4d],
        "unlatched"
    );
}

#[test]
fn read_back_gives_status_then_count() {
    let mut pit = Pit::new(0);
    program(&mut pit, 10, 2, 0, 0x1234);
    pit.write(time_of(10), 0x61, 1);
    let now = time_of(10);
    pit.write(now, 0x43, 0b1100_1000);
    assert_eq!(pit.read(now, 0x42) & 0x7f, 0x30, "mode 0, two bytes");
    let now = time_of(1_000_000);
    pit.write(now, 0x43, 0b1110_1000);
    assert_eq!(
        pit.read(now, 0x42) & 0x80,
        0x80,
        "OUT is high after the terminal count"
    );
}

#[test]
fn the_gate_of_channel_2_stops_its_count() {
    let mut pit = Pit::new(0);
    pit.write(0, 0x61, 1);
    program(&mut pit, 10, 2, 0, 1000);
    pit.write(time_of(111), 0x61, 0);
    assert_eq!(count(&mut pit, 500, 2), 900);
    pit.write(time_of(600), 0x61, 1);
    assert_eq!(count(&mut pit, 650, 2), 850);
}

#[test]
fn calibration_as_linux_does_it() {
    // pit_calibrate_tsc: channel 2 in mode 0 for 10 ms, polled through port 61h bit 5.
    let mut pit = Pit::new(0);
    let start = 1_000_000;
    let control = pit.read(start, 0x61);
    pit.write(start, 0x61, control & !2 | 1);
    pit.write(start, 0x43, 0xb0);
    let latch: u16 = 11_931;
    pit.write(start, 0x42, latch as u8);
    pit.write(start, 0x42, (latch >> 8) as u8);
    let mut now = start;
    while pit.read(now, 0x61) & 0x20 == 0 {
        now += 1_000;
    }
    assert!(
        (now - start).abs_diff(10_000_000) < 3_000,
        "{} ns",
        now - start
    );
}

#[test]
fn the_end_of_time_does_not_overflow() {
    let mut pit = Pit::new(0);
    program(&mut pit, 10, 0, 3, 0);
    for now in [u64::MAX / 2, u64::MAX - 1, u64::MAX] {
        pit.advance(now);
        pit.write(now, 0x40, 1);
        pit.write(now, 0x40, 0);
        pit.read(now, 0x40);
        pit.next_deadline();
    }
}
