//! Lines of NVIDIA's `tegrastats`, read ([`parse()`]) and written ([`line()`]).
//!
//! The fields are those of the Jetson Linux Developer Guide ("Tegrastats Utility"); what each release makes of them is known
//! from lines that it printed:
//!
//! | L4T | JetPack | what differs |
//! |---|---|---|
//! | 35 | 5 | `CPU@44.5C`, a place that is off is `CV0@-256C`; `VIC_FREQ 729` |
//! | 36 | 6 | `cpu@52.562C`, a place that is off is not told; `NVDEC off`, `VIC 36%@115` |
//! | 38 | 7.0, 7.1 | `NVENC0_FREQ @0`; Thor's GPU has clocks and no load: `GR3D_FREQ @[0,0,0]` |
//! | 39 | 7.2 | the most beside what is now: `cpu@50.718C/50.718C`, `VDD_CPU_CV 2643mW/2643mW/2643mW` |

mod format;
mod parse;

pub use format::line;
pub use parse::parse;

/// How a release writes its lines, by its L4T number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Dialect {
    R35,
    R36,
    R38,
    R39,
}

impl Dialect {
    /// The dialect of a Jetson Linux release such as "36.4.4"; releases beyond those that are known write as the nearest one.
    pub fn of_l4t(release: &str) -> Option<Self> {
        let major: u32 = release.split('.').next()?.parse().ok()?;
        Some(match major {
            0..=35 => Self::R35,
            36 => Self::R36,
            37 | 38 => Self::R38,
            _ => Self::R39,
        })
    }
}

#[cfg(test)]
mod tests;
