//! Reads a GGUF's header sequentially: sizes, strings, names and scalars (ggml, docs/gguf.md).

/// Longest key in bytes (docs/gguf.md).
const NAME_LIMIT: usize = 65_535;

pub(super) type Parsed<T> = Result<T, String>;

/// A number or boolean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scalar {
    Integer(i64),
    Float(f64),
    Bool(bool),
}

/// Reads a header sequentially.
pub(super) struct Reader<'a> {
    pub(super) rest: &'a [u8],
    /// The error if the bytes end too early.
    pub(super) end: &'static str,
}

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, count: usize) -> Parsed<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(self.end)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| "truncated".to_owned())
    }

    pub(super) fn u32(&mut self) -> Parsed<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Parsed<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn size(&mut self) -> Parsed<usize> {
        usize::try_from(self.u64()?).map_err(|_| "a size is out of range".to_owned())
    }

    pub(super) fn text(&mut self) -> Parsed<String> {
        let length = self.size()?;
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    /// Reads a key or a tensor's name.
    pub(super) fn name(&mut self) -> Parsed<String> {
        let length = self.size()?;
        if length > NAME_LIMIT {
            return Err(format!("a name of {length} bytes makes no sense"));
        }
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    /// Reads a scalar with ggml's type number `kind`.
    pub(super) fn scalar(&mut self, kind: u32) -> Parsed<Scalar> {
        use Scalar::{Bool, Float, Integer};
        Ok(match kind {
            0 => Integer(i64::from(u8::from_le_bytes(self.array()?))),
            1 => Integer(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Integer(i64::from(u16::from_le_bytes(self.array()?))),
            3 => Integer(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Integer(i64::from(self.u32()?)),
            5 => Integer(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Float(f64::from(f32::from_le_bytes(self.array()?))),
            7 => Bool(self.array::<1>()? != [0]),
            10 => Integer(i64::try_from(self.u64()?).unwrap_or(i64::MAX)),
            11 => Integer(i64::from_le_bytes(self.array()?)),
            12 => Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("metadata type {other} is unknown")),
        })
    }
}
