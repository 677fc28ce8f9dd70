//! Checks the header of a GGUF while it downloads, so that an unsupported file is refused before gigabytes have
//! arrived.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use super::FetchError;
use super::http::{Download, Inspection};
use super::retry::Failure;
use crate::checkpoint::{Gguf, Judgement};

/// Bytes of a GGUF after which its header is checked for the first time.
const FIRST: u64 = 4 << 20;
/// Longest header in bytes; if it is undecided by then, the file is checked when it is opened.
const LONGEST_HEADER: u64 = 256 << 20;

/// The check for a file of this name, if there is one.
pub(super) fn inspection(name: &str) -> Option<Inspection> {
    name.ends_with(".gguf").then_some(Inspection { first: FIRST, needs_more })
}

/// Checks the first bytes of a GGUF that is downloading; true if more are needed.
fn needs_more(download: &Download, file: &mut File, done: u64, total: u64) -> Result<bool, Failure> {
    let have = done.min(LONGEST_HEADER);
    let mut start = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    (&mut *file).take(have).read_to_end(&mut start)?;
    file.seek(SeekFrom::End(0))?;
    match Gguf::judge(&start, total) {
        Judgement::Readable => Ok(false),
        Judgement::Undecided => Ok(have < LONGEST_HEADER),
        Judgement::Refused(message) => {
            let (name, kept) = (download.name.clone(), crate::memory::format_bytes(have));
            Err(Failure::Final(FetchError::Unreadable { name, message, kept: kept.into() }))
        }
    }
}
