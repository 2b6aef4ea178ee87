use super::calendar::{from_unix, to_unix};
use super::*;

const S: u64 = NS_PER_S;
/// 2026-11-21 12:34:56 UTC, a Saturday.
const START: u64 = 1_795_264_496;

fn rtc() -> Rtc {
    Rtc::new(START * S, 512 << 20)
}

fn read(rtc: &mut Rtc, now: u64, index: u8) -> u8 {
    rtc.advance(now);
    rtc.write(now, 0x70, index);
    rtc.read(now, 0x71)
}

fn write(rtc: &mut Rtc, now: u64, index: u8, value: u8) {
    rtc.advance(now);
    rtc.write(now, 0x70, index);
    rtc.write(now, 0x71, value);
}

fn clock(rtc: &mut Rtc, now: u64) -> [u8; 8] {
    [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| read(rtc, now, index))
}

#[test]
fn calendar_round_trips() {
    let mut seen = from_unix(-62_167_219_200);
    assert_eq!((seen.year, seen.month, seen.day), (0, 1, 1));
    // Every day of 2,000 years follows the one before.
    for day in 1..730_485i64 {
        let unix = -62_167_219_200 + day * 86_400 + 43_200;
        let date = from_unix(unix);
        assert_eq!(to_unix(&date), unix);
        let next = if date.day > 1 {
            (seen.year, seen.month, seen.day + 1)
        } else {
            (date.year, date.month, 1)
        };
        assert_eq!((date.year, date.month, date.day), next);
        seen = date;
    }
}

#[test]
fn shows_bcd_time_that_advances() {
    let mut rtc = rtc();
    assert_eq!(
        clock(&mut rtc, 0),
        [0x20, 0x26, 0x11, 0x21, 7, 0x12, 0x34, 0x56]
    );
    assert_eq!(
        clock(&mut rtc, 4 * S - 1),
        [0x20, 0x26, 0x11, 0x21, 7, 0x12, 0x34, 0x59]
    );
    assert_eq!(
        clock(&mut rtc, 4 * S),
        [0x20, 0x26, 0x11, 0x21, 7, 0x12, 0x35, 0x00]
    );
}

#[test]
fn rolls_over_year_and_leap_day() {
    let at = |year, month, day| {
        to_unix(&DateTime {
            year,
            month,
            day,
            hour: 23,
            minute: 59,
            second: 59,
        }) as u64
    };
    let mut rtc = Rtc::new(at(1999, 12, 31) * S, 0);
    assert_eq!(
        clock(&mut rtc, 0),
        [0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x59]
    );
    assert_eq!(clock(&mut rtc, S), [0x20, 0x00, 0x01, 0x01, 7, 0, 0, 0]);
    let mut rtc = Rtc::new(at(2024, 2, 28) * S, 0);
    assert_eq!(clock(&mut rtc, S)[2..4], [0x02, 0x29]);
    let mut rtc = Rtc::new(at(2100, 2, 28) * S, 0);
    assert_eq!(
        clock(&mut rtc, S)[2..4],
        [0x03, 0x01],
        "2100 is no leap year"
    );
}

#[test]
fn binary_and_12_hour_formats() {
    let mut rtc = rtc();
    write(&mut rtc, 0, 0x0b, B_24H | B_BINARY);
    assert_eq!(clock(&mut rtc, 0), [20, 26, 11, 21, 7, 12, 34, 56]);
    write(&mut rtc, 0, 0x0b, 0);
    assert_eq!(read(&mut rtc, 0, 4), 0x92, "12 pm");
    assert_eq!(read(&mut rtc, 12 * 3600 * S, 4), 0x12, "12 am");
    assert_eq!(read(&mut rtc, 13 * 3600 * S, 4), 0x01);
}

#[test]
fn setting_the_time_as_linux_does() {
    let mut rtc = rtc();
    let now = S + 300_000_000;
    write(&mut rtc, now, 0x0b, B_24H | B_SET);
    write(&mut rtc, now, 0x0a, 0x70 | 0x26);
    for (index, value) in [
        (9, 0x30),
        (8, 0x12),
        (7, 0x31),
        (4, 0x23),
        (2, 0x59),
        (0, 0x58),
    ] {
        write(&mut rtc, now, index, value);
    }
    assert_eq!(
        read(&mut rtc, now + 5 * S, 0),
        0x58,
        "stopped while it is set"
    );
    let set = now + 5 * S;
    write(&mut rtc, set, 0x0b, B_24H);
    write(&mut rtc, set, 0x0a, 0x26);
    assert_eq!(clock(&mut rtc, set)[5..], [0x23, 0x59, 0x58]);
    // The divider starts half a second before its first update.
    assert_eq!(read(&mut rtc, set + S / 2 - 1, 0), 0x58);
    assert_eq!(read(&mut rtc, set + S / 2, 0), 0x59);
    assert_eq!(
        clock(&mut rtc, set + S + S / 2),
        [0x20, 0x31, 0x01, 0x01, 4, 0, 0, 0]
    );
}

#[test]
fn update_in_progress_shortly_before_the_second() {
    let mut rtc = rtc();
    assert_eq!(read(&mut rtc, S - UIP_NS - 1, 0x0a) & A_UIP, 0);
    assert_eq!(read(&mut rtc, S - UIP_NS, 0x0a) & A_UIP, A_UIP);
    assert_eq!(read(&mut rtc, S, 0x0a) & A_UIP, 0);
}

#[test]
fn update_interrupt_every_second_until_acknowledged() {
    let mut rtc = rtc();
    write(&mut rtc, S / 2, 0x0b, B_24H | C_UPDATE);
    read(&mut rtc, S / 2, 0x0c);
    assert_eq!(rtc.next_deadline(), Some(S));
    rtc.advance(S - 1);
    assert!(!rtc.irq());
    rtc.advance(S);
    assert!(rtc.irq());
    assert_eq!(
        rtc.next_deadline(),
        None,
        "nothing new until it is acknowledged"
    );
    // The periodic flag rises whether its interrupt is enabled or not.
    assert_eq!(read(&mut rtc, S, 0x0c), C_IRQF | C_UPDATE | C_PERIODIC);
    assert!(!rtc.irq());
    assert_eq!(rtc.next_deadline(), Some(2 * S));
}

#[test]
fn periodic_interrupt_rates() {
    for (rate, hz) in [(3, 8192), (6, 1024), (15, 2), (1, 256), (2, 128)] {
        let mut rtc = rtc();
        write(&mut rtc, 0, 0x0a, 0x20 | rate);
        write(&mut rtc, 0, 0x0b, B_24H | C_PERIODIC);
        let mut count = 0;
        while let Some(at) = rtc.next_deadline().filter(|at| *at <= S) {
            rtc.advance(at - 1);
            assert!(!rtc.irq(), "not before its time");
            rtc.advance(at);
            assert!(rtc.irq());
            read(&mut rtc, at, 0x0c);
            count += 1;
        }
        assert_eq!(count, hz);
    }
}

#[test]
fn alarm_matches_exactly_or_with_wildcards() {
    let mut rtc = rtc();
    for (index, value) in [(5, 0x13), (3, 0x00), (1, 0x10)] {
        write(&mut rtc, 0, index, value);
    }
    write(&mut rtc, 0, 0x0b, B_24H | C_ALARM);
    let from = |h: u64, m: u64, s: u64| (h * 3600 + m * 60 + s - (12 * 3600 + 34 * 60 + 56)) * S;
    assert_eq!(rtc.next_deadline(), Some(from(13, 0, 10)));
    write(&mut rtc, 0, 5, 0xff);
    assert_eq!(rtc.next_deadline(), Some(from(13, 0, 10)));
    write(&mut rtc, 0, 3, 0xc0);
    assert_eq!(rtc.next_deadline(), Some(from(12, 35, 10)));
    let at = from(12, 35, 10);
    rtc.advance(at);
    assert_eq!(
        read(&mut rtc, at, 0x0c),
        C_IRQF | C_ALARM | C_UPDATE | C_PERIODIC
    );
    write(&mut rtc, at, 1, 0x75);
    assert_eq!(rtc.next_deadline(), None, "second 75 never comes");
}

#[test]
fn any_bytes_are_some_time() {
    let mut rtc = rtc();
    for value in [0x00, 0x7f, 0x99, 0xff] {
        for index in [0x32, 9, 8, 7, 6, 4, 2, 0] {
            write(&mut rtc, u64::MAX - 1, index, value);
        }
        clock(&mut rtc, u64::MAX);
        rtc.next_deadline();
        assert!(rtc.is_valid());
    }
}

#[test]
fn cmos_memory_says_how_much_ram_there_is() {
    let mut rtc = rtc();
    let mut word = |low| u16::from_le_bytes([read(&mut rtc, 0, low), read(&mut rtc, 0, low + 1)]);
    assert_eq!(word(0x15), 640);
    assert_eq!(word(0x30), 0xffff);
    assert_eq!(word(0x34), (512 - 16) * 16);
    assert_eq!(read(&mut rtc, 0, 0x0d), D_VALID);
}
