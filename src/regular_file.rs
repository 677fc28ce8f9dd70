//! Opens regular files only: reading a pipe waits for a writer that may never come, and a device has no end.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::diagnostic::Diagnostic;

const AS_UTF_8: &str = "save it as UTF-8";

fn check(metadata: &Metadata) -> io::Result<()> {
    let kind = metadata.file_type();
    let what = if kind.is_file() {
        return Ok(());
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(io::Error::other(format!("it is {what}, not a file")))
}

/// Opens `path` for reading; the error says what it is if it is not a regular file.
pub fn open(path: &Path) -> io::Result<File> {
    // Asked first, since opening alone does something to some devices.
    check(&fs::metadata(path)?)?;
    // A pipe that took the file's place in the meantime must not be waited for. Regular files ignore the flag.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    check(&file.metadata()?)?;
    Ok(file)
}

/// Reads a file of at most `limit` bytes; a larger one is an error.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // However long it said it was: it may grow while it is read.
    open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= limit) {
        return Ok(bytes);
    }
    Err(io::Error::other(format!("longer than {} MiB", limit >> 20)))
}

/// Reads UTF-8 text of at most `limit` bytes, without the byte order mark that some editors write.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    let bytes = read(path, limit)?;
    if bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]) {
        return Err(io::Error::other(Diagnostic::new("it is in UTF-16").with_help(AS_UTF_8)));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        io::Error::other(Diagnostic::new(format!("byte {at} is not UTF-8")).with_help(AS_UTF_8))
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_named_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
        let cases = [
            (pipe, "a pipe"),
            (folder.path().join("socket"), "a socket"),
            (folder.path().to_owned(), "a directory"),
            ("/dev/zero".into(), "a device"),
        ];
        for (path, what) in cases {
            let error = read(&path, 10).unwrap_err().to_string();
            assert!(error.contains(what), "{}: {error}", path.display());
        }
    }

    #[test]
    fn texts_are_read_as_editors_write_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        let cases: [(&[u8], Result<&str, &str>); 6] = [
            (b"a: 1\n", Ok("a: 1\n")),
            (b"\xEF\xBB\xBFa: 1\n", Ok("a: 1\n")),
            (b"\xFF\xFEa\0", Err("UTF-16")),
            (b"\xFE\xFF\0a", Err("UTF-16")),
            (b"a: \xC3", Err("byte 3 is not UTF-8")),
            (b"01234567890123456789", Err("longer")),
        ];
        for (bytes, expected) in cases {
            fs::write(&path, bytes).unwrap();
            match (read_text(&path, 16), expected) {
                (Ok(text), Ok(wanted)) => assert_eq!(text, wanted),
                (Err(error), Err(wanted)) => assert!(error.to_string().contains(wanted), "{error}"),
                (found, wanted) => panic!("{found:?} instead of {wanted:?}"),
            }
        }
    }
}
