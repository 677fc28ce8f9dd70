//! Reads the header of a serialized engine, without TensorRT.
//!
//! TensorRT 8.6 and later: four bytes of tag, then the serialization version; the TensorRT version stands at bytes 24 to 27 (NVIDIA/TensorRT,
//! samples/common/sampleEngines.cpp, `--getPlanVersionOnly`). RTX uses the same places with its own tag, and keeps the
//! plan's length at bytes 16 to 23 (seen in plans of 1.6 and 1.7). TensorRT 8.5 has a tag of its own, no version, and at bytes 16
//! to 23 the length of what follows the first 24 (seen in plans of 8.5.3).

use super::{Family, Version};

/// Most bytes of metadata before a plan; they are a page of JSON.
const METADATA_LIMIT: usize = 16 << 20;

/// Splits an engine file into the metadata before the plan, as Ultralytics writes it (a 32-bit little-endian length and
/// as many bytes of JSON), and the plan. A plain plan is an engine file without metadata.
pub fn split(file: &[u8]) -> (Option<serde_json::Value>, &[u8]) {
    let metadata = || {
        let length = usize::try_from(u32::from_le_bytes(file.get(..4)?.try_into().ok()?)).ok()?;
        let json = file.get(4..4usize.checked_add(length).filter(|_| length <= METADATA_LIMIT)?)?;
        Some((serde_json::from_slice(json).ok()?, &file[4 + length..]))
    };
    match Header::parse(file).map_or_else(metadata, |_| None) {
        Some((metadata, plan)) => (Some(metadata), plan),
        None => (None, file),
    }
}

/// Joins metadata and plan to an engine file.
pub fn join(metadata: &serde_json::Value, plan: &[u8]) -> Vec<u8> {
    let json = metadata.to_string().into_bytes();
    let length = u32::try_from(json.len()).unwrap_or(u32::MAX);
    [&length.to_le_bytes()[..], &json, plan].concat()
}

/// Bytes that [`Header::parse`] reads.
pub const LENGTH: usize = 28;

/// The header of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Header {
    /// TensorRT version that built it; `None` for an unknown serialization version.
    pub version: Option<Version>,
    /// TensorRT or TensorRT-RTX.
    pub family: Family,
    /// Length of the whole plan in bytes, if the header contains it.
    pub length: Option<u64>,
}

impl Header {
    /// Parses the first [`LENGTH`] bytes; `None` if they are no plan's.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let length = u64::from_le_bytes(bytes.get(16..24)?.try_into().ok()?);
        let family = match bytes.get(..4)? {
            b"vtrt" => Family::Rtx,
            b"ftrt" => Family::Enterprise,
            b"ptrt" => {
                return Some(Self { version: None, family: Family::Enterprise, length: length.checked_add(24) });
            }
            _ => return None,
        };
        let serialization = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?);
        let &[major, minor, patch, _build] = bytes.get(24..LENGTH)? else { return None };
        let version = Version { family, major: major.into(), minor: minor.into(), patch: patch.into() };
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

    #[test]
    fn reads_tensorrt_8_5() {
        // The first bytes of a plan by TensorRT 8.5.3 of 71,401 bytes.
        let bytes = *b"ptrt\0\0\0\0\xe8\0\0\0\0\0\0\0\xd1\x16\x01\0\0\0\0\0\x02\x80\x01\0";
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(header, Header { version: None, family: Family::Enterprise, length: Some(71_401) });
    }

    #[test]
    fn metadata_come_off_again() {
        let plan = *b"vtrt\0\0\0\0\x02\0\0\0\0\0\0\0\x5c\x87\x0e\0\0\0\0\0\x01\x06\x01\x78";
        let metadata = serde_json::json!({ "names": { "0": "wąż" } });
        let file = join(&metadata, &plan);
        assert_eq!(split(&file), (Some(metadata), &plan[..]));
        assert_eq!(split(&plan), (None, &plan[..]));
        for damaged in [&file[..3], &file[..20], b"\xff\xff\xff\xffvtrt", b"\x02\0\0\0{]rest", b""] {
            assert_eq!(split(damaged).0, None, "{damaged:?}");
        }
    }
}
