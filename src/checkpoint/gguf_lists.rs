//! Lists in a GGUF's metadata, stored in the file's form: as separate values numbers would take eight times the memory,
//! and strings three times.

use std::borrow::Cow;

use super::gguf_reader::{Parsed, Reader, Scalar};

/// A list of numbers or booleans of one type.
#[derive(Debug, Clone, PartialEq)]
pub struct Numbers {
    kind: u32,
    width: usize,
    bytes: Vec<u8>,
}

/// Bytes of a number with ggml's type number `kind`.
fn width(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

impl Numbers {
    pub(super) fn read(reader: &mut Reader, kind: u32, count: usize) -> Parsed<Self> {
        let width = width(kind).ok_or_else(|| format!("metadata type {kind} is unknown"))?;
        let length = count.checked_mul(width).ok_or("a list's length is out of range")?;
        Ok(Self { kind, width, bytes: reader.take(length)?.to_vec() })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.width
    }

    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn value(&self, at: usize) -> Option<Scalar> {
        let start = at.checked_mul(self.width)?;
        let rest = self.bytes.get(start..start.checked_add(self.width)?)?;
        Reader { rest, end: "" }.scalar(self.kind).ok()
    }

    /// An integer or boolean.
    pub fn integer(&self, at: usize) -> Option<i64> {
        match self.value(at)? {
            Scalar::Integer(value) => Some(value),
            Scalar::Bool(value) => Some(i64::from(value)),
            _ => None,
        }
    }

    /// A floating-point number.
    pub fn float(&self, at: usize) -> Option<f64> {
        match self.value(at)? {
            Scalar::Float(value) => Some(value),
            _ => None,
        }
    }
}

/// A list of strings, stored consecutively with the end of each.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Texts {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Texts {
    pub(super) fn read(reader: &mut Reader, count: usize) -> Parsed<Self> {
        // Measured first: lists that grow while they are read take twice their room.
        let mut ahead = Reader { rest: reader.rest, end: reader.end };
        let mut length = 0;
        for _ in 0..count {
            let size = ahead.size()?;
            length += ahead.take(size)?.len();
        }
        let mut texts = Self { bytes: Vec::with_capacity(length), ends: Vec::with_capacity(count) };
        for _ in 0..count {
            let size = reader.size()?;
            texts.bytes.extend_from_slice(reader.take(size)?);
            texts.ends.push(texts.bytes.len());
        }
        Ok(texts)
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The strings in order. Some vocabularies contain tokens that are not UTF-8, which are replaced but keep their
    /// index.
    pub fn iter(&self) -> impl Iterator<Item = Cow<'_, str>> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let ranges = starts.zip(self.ends.iter().copied());
        ranges.map(move |(start, end)| String::from_utf8_lossy(self.bytes.get(start..end).unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(bytes: &[u8]) -> Reader<'_> {
        Reader { rest: bytes, end: "truncated" }
    }

    fn text(text: &[u8]) -> Vec<u8> {
        [&u64::try_from(text.len()).unwrap().to_le_bytes()[..], text].concat()
    }

    #[test]
    fn lists_take_the_room_they_take_in_the_file() {
        // 300 000 of one byte, the width that grew most.
        let mut source = reader(&[7; 300_000]);
        let numbers = Numbers::read(&mut source, 0, 300_000).unwrap();
        assert_eq!((numbers.len(), numbers.bytes.capacity(), source.rest.len()), (300_000, 300_000, 0));
        assert_eq!((numbers.integer(299_999), numbers.integer(300_000), numbers.float(0)), (Some(7), None, None));
        let file = text(b"a").repeat(10_000);
        let texts = Texts::read(&mut reader(&file), 10_000).unwrap();
        assert_eq!(texts.iter().filter(|text| text == "a").count(), 10_000);
        assert!(texts.bytes.capacity() + 8 * texts.ends.capacity() <= file.len());
    }

    #[test]
    fn values_are_what_was_written() {
        let floats = Numbers::read(&mut reader(&[1.5f32.to_le_bytes(), (-2f32).to_le_bytes()].concat()), 6, 2).unwrap();
        assert_eq!(
            (floats.float(0), floats.float(1), floats.float(2), floats.integer(0)),
            (Some(1.5), Some(-2.0), None, None)
        );
        let flags = Numbers::read(&mut reader(&[0, 1]), 7, 2).unwrap();
        assert_eq!((flags.integer(0), flags.integer(1), flags.is_empty()), (Some(0), Some(1), false));
        let file = [text(b"one"), text(b""), text(b"\xFFx")].concat();
        let texts = Texts::read(&mut reader(&file), 3).unwrap();
        assert_eq!(texts.iter().collect::<Vec<_>>(), ["one", "", "\u{fffd}x"]);
        assert_eq!((texts.len(), texts.is_empty()), (3, false));
    }

    #[test]
    fn counts_beyond_the_file_allocate_nothing() {
        let cases = [(0, usize::MAX), (12, usize::MAX), (12, usize::MAX / 8), (9, 1), (13, 1)];
        for (kind, count) in cases {
            assert!(Numbers::read(&mut reader(&[0; 64]), kind, count).is_err(), "{kind} {count}");
        }
        for length in [u64::MAX, 57] {
            let file = [&length.to_le_bytes()[..], &[0; 56]].concat();
            assert!(Texts::read(&mut reader(&file), usize::MAX).is_err());
        }
    }
}
