//! The first bytes of a serialized engine, readable without TensorRT.
//!
//! Four bytes of tag, then the serialization version; the TensorRT version stands at bytes 24 to 27 (NVIDIA/TensorRT,
//! samples/common/sampleEngines.cpp, `--getPlanVersionOnly`). RTX uses the same places with its own tag, and keeps the
//! plan's length at bytes 16 to 23 (seen in plans of 1.6 and 1.7).

use super::{Family, Version};

/// Bytes [`Header::parse`] looks at.
pub const LENGTH: usize = 28;

/// What a plan says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Header {
    /// The TensorRT that built it; `None` for an unknown serialization version.
    pub version: Option<Version>,
    /// TensorRT or RTX.
    pub family: Family,
    /// Length of the whole plan, where the header has it.
    pub length: Option<u64>,
}

impl Header {
    /// Reads the first [`LENGTH`] bytes; `None` if this is no plan.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let family = match bytes.get(..4)? {
            b"vtrt" => Family::Rtx,
            b"ftrt" => Family::Enterprise,
            _ => return None,
        };
        let serialization = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?);
        let &[major, minor, patch, _build] = bytes.get(24..LENGTH)? else { return None };
        let version = Version { family, major: major.into(), minor: minor.into(), patch: patch.into() };
        let length = u64::from_le_bytes(bytes.get(16..24)?.try_into().ok()?);
        Some(Self {
            version: (serialization == 0).then_some(version),
            family,
            length: (family == Family::Rtx).then_some(length),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_families_and_refuses_the_rest() {
        // The first bytes of a plan by TensorRT-RTX 1.6.1.120.
        let mut bytes = *b"vtrt\0\0\0\0\x02\0\0\0\0\0\0\0\x5c\x87\x0e\0\0\0\0\0\x01\x06\x01\x78";
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(header.version.unwrap().to_string(), "TensorRT-RTX 1.6.1");
        assert_eq!(header.length, Some(952_156));
        bytes[..4].copy_from_slice(b"ftrt");
        bytes[24..].copy_from_slice(&[10, 3, 0, 30]);
        let header = Header::parse(&bytes).unwrap();
        assert_eq!((header.version.unwrap().to_string().as_str(), header.length), ("TensorRT 10.3.0", None));
        bytes[4] = 1;
        assert_eq!(Header::parse(&bytes).unwrap().version, None);
        assert_eq!(Header::parse(&bytes[..27]), None);
        assert_eq!(Header::parse(b"{\"a\": 1}                      "), None);
    }
}
