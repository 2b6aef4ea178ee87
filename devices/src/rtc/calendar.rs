//! The proleptic Gregorian calendar in UTC, without leap seconds.

/// A date and time as the clock's registers have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DateTime {
    /// 0 to 9999.
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

const DAY_S: i64 = 86_400;
/// Days of 400 years.
const ERA_DAYS: i64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH_DAYS: i64 = 719_468;

/// Unix seconds of a date. Fields beyond their range carry over (day 32 is the next month's).
pub fn to_unix(time: &DateTime) -> i64 {
    // Years begin in March here, so that the leap day is the last of the year.
    let month = (i64::from(time.month) + 11) % 12;
    let year = i64::from(time.year) - i64::from(month < 2);
    let month = (month + 10) % 12;
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * month + 2) / 5 + i64::from(time.day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * ERA_DAYS + day_of_era - EPOCH_DAYS;
    days * DAY_S
        + i64::from(time.hour) * 3600
        + i64::from(time.minute) * 60
        + i64::from(time.second)
}

/// The date of a Unix second. Years are modulo 10,000, all that the clock can show.
pub fn from_unix(unix: i64) -> DateTime {
    let days = unix.div_euclid(DAY_S) + EPOCH_DAYS;
    let in_day = unix.rem_euclid(DAY_S);
    let era = days.div_euclid(ERA_DAYS);
    let day_of_era = days.rem_euclid(ERA_DAYS);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = (shifted + 2) % 12 + 1;
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    DateTime {
        year: year.rem_euclid(10_000) as u16,
        month: month as u8,
        day: day as u8,
        hour: (in_day / 3600) as u8,
        minute: (in_day / 60 % 60) as u8,
        second: (in_day % 60) as u8,
    }
}

/// 1 is Sunday, as the clock counts.
pub fn weekday(unix: i64) -> u8 {
    // 1970-01-01 was a Thursday.
    ((unix.div_euclid(DAY_S) + 4).rem_euclid(7) + 1) as u8
}

/// The first second after `unix` whose hour, minute and second are these; `None` matches any.
pub fn next_match(unix: i64, hour: Option<u32>, minute: Option<u32>, second: Option<u32>) -> i64 {
    let differs = |want: Option<u32>, is: i64| want.is_some_and(|want| i64::from(want) != is);
    let mut at = unix + 1;
    // Ends: each step goes to the start of the next hour, minute or second, and at most 24 + 60 +
    // 60 of those come before a match.
    loop {
        let in_day = at.rem_euclid(DAY_S);
        if differs(hour, in_day / 3600) {
            at += 3600 - in_day % 3600;
        } else if differs(minute, in_day / 60 % 60) {
            at += 60 - in_day % 60;
        } else if differs(second, in_day % 60) {
            at += 1;
        } else {
            return at;
        }
    }
}
