//! A look at a GGUF while it is still on its way, so that what cannot be read is said before gigabytes have come.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use super::FetchError;
use super::http::{Download, Inspection};
use super::retry::Failure;
use crate::checkpoint::{Gguf, Judgement};

/// Bytes of a GGUF before its header is looked at for the first time.
const FIRST: u64 = 4 << 20;
/// No header is longer; what is not decided by then is left to whoever opens the file.
const LONGEST_HEADER: u64 = 256 << 20;

/// What is looked at of a file of this name.
pub(super) fn inspection(name: &str) -> Option<Inspection> {
    name.ends_with(".gguf").then_some(Inspection { first: FIRST, needs_more })
}

/// Judges the first bytes of a GGUF that is on its way; true when more are needed.
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
            let (name, kept) = (download.name.clone(), crate::memory::text(have));
            Err(Failure::Final(FetchError::Unreadable { name, message, kept }))
        }
    }
}
