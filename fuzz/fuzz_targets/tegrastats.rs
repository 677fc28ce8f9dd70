//! Lines of tegrastats, which may come from another machine: none panics, and what is written of one is read as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use watus_build::sensors::tegrastats::{Dialect, line, parse};

/// Longest line that is read; numbers may be written longer than they came.
const LONGEST: usize = 16 << 10;

fuzz_target!(|data: &[u8]| {
    let Some(readings) = parse(&String::from_utf8_lossy(data)) else { return };
    for dialect in [Dialect::R35, Dialect::R36, Dialect::R38, Dialect::R39] {
        let written = line(&readings, dialect);
        if written.len() <= LONGEST {
            let again = parse(&written).expect("a line of tegrastats");
            assert_eq!(line(&again, dialect), written);
        }
    }
});
