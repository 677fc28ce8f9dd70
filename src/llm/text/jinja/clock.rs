//! `strftime_now`: the date as C's strftime writes it, in the locale "C", of the time on the wall, which transformers takes, too
//! (`datetime.now()` in its chat_template_utils.py).
//!
//! Conversions and flags are those of glibc, which Python on Linux passes on, and Python's own `%f`.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds of a day.
const DAY: i64 = 86_400;

/// A point in time, in its parts.
struct Moment {
    /// Since 1970, in UTC.
    since: i64,
    /// Since midnight here.
    seconds: u64,
    year: u64,
    /// 0 to 11.
    month: u64,
    /// 1 to 31.
    day: u64,
    /// 0 to 365.
    of_year: u64,
    /// 0 is Sunday.
    weekday: u64,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
/// Characters that a conversion may be wide.
const WIDEST: usize = 1024;

fn leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

impl Moment {
    /// Of seconds since 1970 in UTC, where clocks are `offset` seconds ahead of it.
    fn of(since: i64, offset: i64) -> Self {
        let here = since.saturating_add(offset);
        let (days, seconds) = (here.div_euclid(DAY), here.rem_euclid(DAY).unsigned_abs());
        // Civil date of a day number (Howard Hinnant, "chrono-compatible low-level date algorithms").
        let z = u64::try_from(days + 719_468).unwrap_or(0);
        let (era, of_era) = (z / 146_097, z % 146_097);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        // Years begin in March here.
        let from_march = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * from_march + 2) / 153;
        let day = from_march - (153 * shifted + 2) / 5 + 1;
        let month = if shifted < 10 { shifted + 2 } else { shifted - 10 };
        let year = year_of_era + era * 400 + u64::from(month <= 1);
        let of_year = if month <= 1 { from_march - 306 } else { from_march + 59 + u64::from(leap(year)) };
        // 1970 began on a Thursday.
        let weekday = (days + 4).rem_euclid(7).unsigned_abs();
        Self { since, seconds, year, month, day, of_year, weekday }
    }

    /// Year and week of ISO 8601: the week with the year's first Thursday is its first.
    fn week(&self) -> (u64, u64) {
        let weekday = (self.weekday + 6) % 7;
        let length = 365 + u64::from(leap(self.year));
        // The day of the year of this week's Thursday.
        match (self.of_year + 3).checked_sub(weekday) {
            None => {
                let before = self.year - 1;
                (before, (self.of_year + 3 + 365 + u64::from(leap(before)) - weekday) / 7 + 1)
            }
            Some(thursday) if thursday >= length => (self.year + 1, (thursday - length) / 7 + 1),
            Some(thursday) => (self.year, thursday / 7 + 1),
        }
    }
}

/// How a conversion's number is filled up.
#[derive(Default)]
struct Flags {
    /// `-`, `_` or `0`.
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

/// The time now.
pub(super) fn strftime_now(format: &str) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let since = i64::try_from(since).unwrap_or(0);
    strftime(format, since, offset(since))
}

/// How far clocks here are ahead of UTC at a time, as the C library knows it from `TZ` or /etc/localtime, and as Python has it;
/// where they say nothing of use, that is UTC.
fn offset(since: i64) -> i64 {
    let time: libc::time_t = since;
    let mut parts = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are of live values of this frame, and all zeros is a `tm`. What it reads of the environment is
    // changed by nobody in this program.
    #[allow(unsafe_code)]
    let parts = unsafe {
        if libc::localtime_r(&raw const time, parts.as_mut_ptr()).is_null() {
            return 0;
        }
        parts.assume_init()
    };
    parts.tm_gmtoff
}

/// The time, `since` seconds after the beginning of 1970, where clocks are `offset` seconds ahead.
fn strftime(format: &str, since: i64, offset: i64) -> String {
    let mut out = String::new();
    write(&mut out, format, &Moment::of(since, offset));
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

fn convert(letter: char, flags: &Flags, moment: &Moment) -> Option<String> {
    let whole = |format: &str| {
        let mut text = String::new();
        write(&mut text, format, moment);
        Some(flags.word(&text))
    };
    let number = |number: u64, width: usize| Some(flags.number(number, width, '0'));
    let spaced = |number: u64| Some(flags.number(number, 2, ' '));
    let (hour, week) = (moment.seconds / 3600, moment.week());
    let twelve = (hour + 11) % 12 + 1;
    let (day, month) = (*DAYS.get(moment.weekday as usize)?, *MONTHS.get(moment.month as usize)?);
    let name = |name: &str| Some(if flags.swap { flags.word(&name.to_uppercase()) } else { flags.word(name) });
    let half = if hour < 12 { "AM" } else { "PM" };
    match letter {
        'a' => name(&day[..3]),
        'A' => name(day),
        'b' | 'h' => name(&month[..3]),
        'B' => name(month),
        'c' => whole("%a %b %e %H:%M:%S %Y"),
        'C' => number(moment.year / 100, 2),
        'd' => number(moment.day, 2),
        'D' | 'x' => whole("%m/%d/%y"),
        'e' => spaced(moment.day),
        'f' => Some("000000".to_owned()),
        'F' => whole("%Y-%m-%d"),
        'g' => number(week.0 % 100, 2),
        'G' => number(week.0, 4),
        'H' => number(hour, 2),
        'I' => number(twelve, 2),
        'j' => number(moment.of_year + 1, 3),
        'k' => spaced(hour),
        'l' => spaced(twelve),
        'm' => number(moment.month + 1, 2),
        'M' => number(moment.seconds / 60 % 60, 2),
        'n' => Some("\n".to_owned()),
        'p' => Some(flags.word(&if flags.swap { half.to_lowercase() } else { half.to_owned() })),
        'P' => Some(flags.word(&half.to_lowercase())),
        'r' => whole("%I:%M:%S %p"),
        'R' => whole("%H:%M"),
        's' => number(moment.since.unsigned_abs(), 1),
        'S' => number(moment.seconds % 60, 2),
        't' => Some("\t".to_owned()),
        'T' | 'X' => whole("%H:%M:%S"),
        'u' => number((moment.weekday + 6) % 7 + 1, 1),
        'U' => number((moment.of_year + 7 - moment.weekday) / 7, 2),
        'V' => number(week.1, 2),
        'w' => number(moment.weekday, 1),
        'W' => number((moment.of_year + 7 - (moment.weekday + 6) % 7) / 7, 2),
        'y' => number(moment.year % 100, 2),
        'Y' => number(moment.year, 1),
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

    /// Set for a child of the test that asks for the offset at this time.
    const ASKED: &str = "WATUS_TEST_OFFSET_AT";

    /// Expected values are those of Python's `time.localtime(…).tm_gmtoff` and `datetime.fromtimestamp(…).strftime(…)` with
    /// the same `TZ`. Rules are spelled out, so that no database of zones has to be here: Warsaw's, New York's, Kathmandu's.
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
