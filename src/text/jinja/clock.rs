//! `strftime_now`: formats the local time like C's strftime in the locale "C", as transformers does (`datetime.now()`
//! in its chat_template_utils.py).
//!
//! Conversions and flags are those of glibc, which Python on Linux uses, and Python's own `%f`.

use std::time::SystemTime;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};

/// A point in time.
struct Moment {
    /// Seconds since 1970 in UTC.
    since: i64,
    /// Local date and time.
    here: DateTime,
}

/// Largest width of a conversion in characters.
const WIDEST: usize = 1024;

/// Padding of a conversion.
#[derive(Default)]
struct Flags {
    /// The flag `-`, `_` or `0`.
    fill: Option<char>,
    upper: bool,
    swap: bool,
    width: usize,
}

impl Flags {
    fn number(&self, number: u64, width: usize, fill: char) -> String {
        let (width, fill) = match self.fill {
            Some('-') => (0, '0'),
            Some('_') => (width, ' '),
            Some(_) => (width, '0'),
            None => (width, fill),
        };
        let digits = number.to_string();
        let missing = width.max(self.width).saturating_sub(digits.len());
        format!("{}{digits}", fill.to_string().repeat(missing))
    }

    fn word(&self, word: &str) -> String {
        let word = if self.upper { word.to_uppercase() } else { word.to_owned() };
        let fill = if self.fill == Some('0') { "0" } else { " " };
        format!("{}{word}", fill.repeat(self.width.saturating_sub(word.len())))
    }
}

/// Formats the current local time.
pub(super) fn strftime_now(format: &str) -> String {
    let since = Timestamp::try_from(SystemTime::now()).map_or(0, Timestamp::as_second);
    strftime(format, since, offset(since))
}

/// Offset of local time from UTC at a time, in seconds, by `TZ` or /etc/localtime; if these are unusable it is UTC, as
/// in the C library and in Python.
fn offset(since: i64) -> i32 {
    let zone = TimeZone::try_system().unwrap_or(TimeZone::UTC);
    zone.to_offset(Timestamp::from_second(since).unwrap_or(Timestamp::UNIX_EPOCH)).seconds()
}

/// Formats the time `since` seconds after the beginning of 1970, where local time is `offset` seconds ahead of UTC.
fn strftime(format: &str, since: i64, offset: i32) -> String {
    let offset = Offset::from_seconds(offset).unwrap_or(Offset::UTC);
    let here = offset.to_datetime(Timestamp::from_second(since).unwrap_or(Timestamp::UNIX_EPOCH));
    let mut out = String::new();
    write(&mut out, format, &Moment { since, here });
    out
}

fn write(out: &mut String, format: &str, moment: &Moment) {
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let after = rest[at + 1..].trim_start_matches(['-', '_', '0', '^', '#']);
        let mut flags = Flags::default();
        for flag in rest[at + 1..rest.len() - after.len()].chars() {
            match flag {
                '^' => flags.upper = true,
                '#' => flags.swap = true,
                _ => flags.fill = Some(flag),
            }
        }
        let code = after.trim_start_matches(|c: char| c.is_ascii_digit());
        flags.width = after[..after.len() - code.len()].parse().unwrap_or_default();
        // Other eras and digits are those of the locale, and "C" has none.
        let code = code.strip_prefix(['E', 'O']).unwrap_or(code);
        let whole = rest.len() - code.len();
        let Some(letter) = code.chars().next() else {
            out.push_str(&rest[at..]);
            return;
        };
        let end = whole + letter.len_utf8();
        let converted = if flags.width <= WIDEST { convert(letter, &flags, moment) } else { None };
        match converted {
            Some(text) => out.push_str(&text),
            None => out.push_str(&rest[at..end]),
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
}

/// Value, width and padding of a numeric conversion.
fn number(letter: char, moment: &Moment) -> Option<(u64, usize, char)> {
    let (date, time, week) = (moment.here.date(), moment.here.time(), moment.here.iso_week_date());
    let [year, week_year, of_year] =
        [date.year(), week.year(), date.day_of_year()].map(|number| u64::from(number.unsigned_abs()));
    let sunday = date.weekday().to_sunday_zero_offset();
    let [month, day, week, since_sunday] =
        [date.month(), date.day(), week.week(), sunday].map(|number| u64::from(number.unsigned_abs()));
    let [hour, minute, second] =
        [time.hour(), time.minute(), time.second()].map(|number| u64::from(number.unsigned_abs()));
    let (twelve, since_monday) = ((hour + 11) % 12 + 1, (since_sunday + 6) % 7);
    let (number, width) = match letter {
        'C' => (year / 100, 2),
        'd' | 'e' => (day, 2),
        'g' => (week_year % 100, 2),
        'G' => (week_year, 4),
        'H' | 'k' => (hour, 2),
        'I' | 'l' => (twelve, 2),
        'j' => (of_year, 3),
        'm' => (month, 2),
        'M' => (minute, 2),
        's' => (moment.since.unsigned_abs(), 1),
        'S' => (second, 2),
        'u' => (since_monday + 1, 1),
        // Weeks begin on a Sunday, or for %W on a Monday; days before the year's first one are in week 0.
        'U' => ((of_year + 6 - since_sunday) / 7, 2),
        'V' => (week, 2),
        'w' => (since_sunday, 1),
        'W' => ((of_year + 6 - since_monday) / 7, 2),
        'y' => (year % 100, 2),
        'Y' => (year, 1),
        _ => return None,
    };
    Some((number, width, if matches!(letter, 'e' | 'k' | 'l') { ' ' } else { '0' }))
}

fn convert(letter: char, flags: &Flags, moment: &Moment) -> Option<String> {
    if let Some((number, width, fill)) = number(letter, moment) {
        return Some(flags.number(number, width, fill));
    }
    let whole = |format: &str| {
        let mut text = String::new();
        write(&mut text, format, moment);
        Some(flags.word(&text))
    };
    let name = |code: &str| {
        let name = moment.here.strftime(code).to_string();
        Some(flags.word(&if flags.swap { name.to_uppercase() } else { name }))
    };
    let half = if moment.here.hour() < 12 { "AM" } else { "PM" };
    match letter {
        'a' => name("%a"),
        'A' => name("%A"),
        'b' | 'h' => name("%b"),
        'B' => name("%B"),
        'c' => whole("%a %b %e %H:%M:%S %Y"),
        'D' | 'x' => whole("%m/%d/%y"),
        'f' => Some("000000".to_owned()),
        'F' => whole("%Y-%m-%d"),
        'n' => Some("\n".to_owned()),
        'p' => Some(flags.word(&if flags.swap { half.to_lowercase() } else { half.to_owned() })),
        'P' => Some(flags.word(&half.to_lowercase())),
        'r' => whole("%I:%M:%S %p"),
        'R' => whole("%H:%M"),
        't' => Some("\t".to_owned()),
        'T' | 'X' => whole("%H:%M:%S"),
        // Python's `now()` knows no zone.
        'z' | 'Z' => Some(String::new()),
        '%' => Some("%".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values are those of Python's `datetime(…).strftime` on Linux.
    #[test]
    fn dates() {
        // 2024-02-28 23:59:59, 2026-01-01 09:05:07, 2027-01-03 12:00:00.
        let (february, new_year, sunday) = (1_709_164_799, 1_767_258_307, 1_798_977_600);
        for (format, seconds, expected) in [
            ("%d %b %Y %A %H:%M:%S %%", 0, "01 Jan 1970 Thursday 00:00:00 %"),
            ("%Y-%m-%d %a %B", february, "2024-02-28 Wed February"),
            ("%F %j %y", february + 1, "2024-02-29 060 24"),
            ("%-d %-m %-j %e|%_m|%k|%l", new_year, "1 1 1  1| 1| 9| 9"),
            ("%I:%M %p %P %-I", new_year, "09:05 AM am 9"),
            ("%I %p|%r|%R|%T|%X", sunday, "12 PM|12:00:00 PM|12:00|12:00:00|12:00:00"),
            ("%c|%x|%D|%C|%h", new_year, "Thu Jan  1 09:05:07 2026|01/01/26|01/01/26|20|Jan"),
            ("%U %W %V %G %g %u %w", new_year, "00 00 01 2026 26 4 4"),
            ("%U %W %V %G %g %u %w", sunday, "01 00 53 2026 26 7 0"),
            ("%U %W %V %G", 1_735_516_800, "52 53 01 2025"),
            ("%U %W %V %G %j", 1_609_372_800, "52 52 53 2020 366"),
            ("%U %W %V %G %j", 1_609_459_200, "00 00 53 2020 001"),
            ("%^a %^B %#p %#a %10d %010Y %3m %_5d", new_year, "THU JANUARY am THU 0000000001 0000002026 001     1"),
            ("%-H|%5a|%05a|%12F", new_year, "9|  Thu|00Thu|  2026-01-01"),
            ("%-y|%_H|%^p|%#B|%-C|%8T", 1_109_998_800, "5| 5|AM|MARCH|20|05:00:00"),
            ("%z%Z|%n|%t", new_year, "|\n|\t"),
            ("100% sure %", 0, "100% sure %"),
            ("%Od %EY %Q", new_year, "01 2026 %Q"),
        ] {
            assert_eq!(strftime(format, seconds, 0), expected, "{format}");
        }
    }

    /// Environment variable of a child process of the test, with the time to compute the offset at.
    const ASKED: &str = "WATUS_TEST_OFFSET_AT";

    /// Expected values are those of Python's `time.localtime(…).tm_gmtoff` and `datetime.fromtimestamp(…).strftime(…)`
    /// with the same `TZ`. Rules are written out, so that no time zone database is needed: Warsaw's, New York's,
    /// Kathmandu's.
    #[test]
    #[allow(clippy::print_stdout)]
    fn it_is_the_time_on_the_wall() {
        if let Ok(since) = std::env::var(ASKED) {
            println!("offset={};", offset(since.parse().unwrap()));
            return;
        }
        let (warsaw, new_york, kathmandu) = ("CET-1CEST,M3.5.0,M10.5.0/3", "EST5EDT,M3.2.0,M11.1.0", "<+0545>-5:45");
        let name = format!("{}::it_is_the_time_on_the_wall", module_path!().split_once("::").unwrap().1);
        for (zone, since, ahead, format, expected) in [
            (warsaw, 1_767_223_800, 3600, "%F %T %A %j %V %s", "2026-01-01 00:30:00 Thursday 001 01 1767223800"),
            (warsaw, 1_785_535_200, 7200, "%d %b %Y %H:%M", "01 Aug 2026 00:00"),
            // Before and after clocks are put forward.
            (warsaw, 1_774_745_999, 3600, "%H:%M", "01:59"),
            (warsaw, 1_774_746_000, 7200, "%H:%M", "03:00"),
            (new_york, 1_767_258_307, -18_000, "%c", "Thu Jan  1 04:05:07 2026"),
            // A machine that does not know the time yet.
            (new_york, 0, -18_000, "%F %T %A %j %U %G-%V %Y", "1969-12-31 19:00:00 Wednesday 365 52 1970-01 1969"),
            (kathmandu, 1_709_164_799, 20_700, "%F %H:%M %p %j", "2024-02-29 05:44 AM 060"),
            ("<-12>12", 1_767_258_307, -43_200, "%F %H:%M|%z%Z|", "2025-12-31 21:05||"),
            // No zones: UTC.
            ("", 1_767_258_307, 0, "%H:%M", "09:05"),
            ("Nowhere/Nothing", 1_785_535_200, 0, "%H:%M", "22:00"),
            (":/etc/passwd", 1_785_535_200, 0, "%H:%M", "22:00"),
            ("/dev/null", 1_785_535_200, 0, "%H:%M", "22:00"),
        ] {
            assert_eq!(strftime(format, since, ahead), expected, "{zone}, {format}");
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            child.args([name.as_str(), "--exact", "--nocapture"]).env("TZ", zone).env(ASKED, since.to_string());
            let said = String::from_utf8(child.output().unwrap().stdout).unwrap();
            assert!(said.contains(&format!("offset={ahead};")), "{zone} at {since}: {said}");
        }
    }
}
