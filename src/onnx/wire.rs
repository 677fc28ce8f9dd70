//! Checks an ONNX file's bytes before the protobuf parser reads them.
//!
//! rust-protobuf 3.4 (which `onnx-protobuf` is tied to) recurses without limit through unknown groups
//! (RUSTSEC-2024-0437), so a crafted file could end the process. ONNX has no groups at all: this walk follows every
//! field the parser would descend into (onnx.proto, IR version 11) and refuses a group or too deep a nesting.
#![deny(clippy::as_conversions)]

/// Sub-messages of each message, as (field number, message).
type Fields = &'static [(u64, WireMessage)];

#[derive(Clone, Copy)]
struct WireMessage(fn() -> Fields);

const NONE: WireMessage = WireMessage(|| &[]);
const MODEL: WireMessage =
    WireMessage(|| &[(8, NONE), (7, GRAPH), (14, NONE), (20, TRAINING), (25, FUNCTION), (26, NONE)]);
const TRAINING: WireMessage = WireMessage(|| &[(1, GRAPH), (2, GRAPH), (3, NONE), (4, NONE)]);
const FUNCTION: WireMessage = WireMessage(|| &[(7, NODE), (9, NONE), (11, ATTRIBUTE), (12, VALUE), (14, NONE)]);
const GRAPH: WireMessage = WireMessage(|| {
    &[(1, NODE), (5, TENSOR), (15, SPARSE), (11, VALUE), (12, VALUE), (13, VALUE), (14, ANNOTATION), (16, NONE)]
});
const NODE: WireMessage = WireMessage(|| &[(5, ATTRIBUTE), (9, NONE), (10, DEVICE)]);
const ATTRIBUTE: WireMessage = WireMessage(|| {
    &[(5, TENSOR), (6, GRAPH), (22, SPARSE), (14, TYPE), (10, TENSOR), (11, GRAPH), (23, SPARSE), (15, TYPE)]
});
const TENSOR: WireMessage = WireMessage(|| &[(3, NONE), (13, NONE), (16, NONE)]);
const SPARSE: WireMessage = WireMessage(|| &[(1, TENSOR), (2, TENSOR)]);
const ANNOTATION: WireMessage = WireMessage(|| &[(2, NONE)]);
const VALUE: WireMessage = WireMessage(|| &[(2, TYPE), (4, NONE)]);
const TYPE: WireMessage =
    WireMessage(|| &[(1, TENSOR_TYPE), (4, ELEMENT), (5, MAP), (7, NONE), (8, TENSOR_TYPE), (9, ELEMENT)]);
const TENSOR_TYPE: WireMessage = WireMessage(|| &[(2, SHAPE)]);
const ELEMENT: WireMessage = WireMessage(|| &[(1, TYPE)]);
const MAP: WireMessage = WireMessage(|| &[(2, TYPE)]);
const SHAPE: WireMessage = WireMessage(|| &[(1, NONE)]);
const DEVICE: WireMessage = WireMessage(|| &[(2, SHARDING)]);
const SHARDING: WireMessage = WireMessage(|| &[(3, NONE), (4, SHARDED)]);
const SHARDED: WireMessage = WireMessage(|| &[(2, NONE)]);

/// Deepest nesting of messages; the parser itself stops at 100.
const DEPTH_LIMIT: u32 = 64;

/// Checks a serialized ModelProto.
pub(super) fn check_model(bytes: &[u8]) -> Result<(), String> {
    walk(bytes, MODEL, 0)
}

fn walk(mut bytes: &[u8], message: WireMessage, depth: u32) -> Result<(), String> {
    if depth > DEPTH_LIMIT {
        return Err("graphs are nested too deeply".to_owned());
    }
    let fields = (message.0)();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let (field, wire_type) = (key >> 3, key & 7);
        match wire_type {
            0 => {
                varint(&mut bytes)?;
            }
            1 => {
                take(&mut bytes, 8)?;
            }
            2 => {
                let length = varint(&mut bytes)?;
                let body = take(&mut bytes, length)?;
                if let Some((_, inner)) = fields.iter().find(|(number, _)| *number == field) {
                    walk(body, *inner, depth + 1)?;
                }
            }
            5 => {
                take(&mut bytes, 4)?;
            }
            other => return Err(format!("field {field} has wire type {other}, which ONNX does not use")),
        }
    }
    Ok(())
}

fn varint(bytes: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let Some((first, rest)) = bytes.split_first() else { break };
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("the file ends inside a number".to_owned())
}

fn take<'a>(bytes: &mut &'a [u8], length: u64) -> Result<&'a [u8], String> {
    let length = usize::try_from(length).ok().filter(|length| *length <= bytes.len());
    let length = length.ok_or_else(|| "the file is cut off".to_owned())?;
    let (body, rest) = bytes.split_at(length);
    *bytes = rest;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_truncation_and_depth_are_refused() {
        assert!(check_model(&[]).is_ok());
        assert!(check_model(&[0x08, 0x09]).is_ok(), "ir_version 9");
        // Field 60 as a start-group tag: the parser's unbounded recursion.
        assert!(check_model(&[0xe3, 0x03]).unwrap_err().contains("wire type 3"));
        // The same inside graph (7).
        assert!(check_model(&[0x3a, 0x02, 0xe3, 0x03]).unwrap_err().contains("wire type 3"));
        assert!(check_model(&[0x3a, 0x05, 0x00]).unwrap_err().contains("cut off"));
        assert!(check_model(&[0x08, 0x80]).unwrap_err().contains("inside a number"));
        // A subgraph in an attribute of a node of a graph, forty times over.
        let mut bytes = Vec::new();
        for _ in 0..40 {
            for tag in [0x32, 0x2a, 0x0a] {
                // attribute.g = 6, node.attribute = 5, graph.node = 1
                let mut outer = vec![tag];
                let mut length = bytes.len();
                while length >= 0x80 {
                    outer.push((length & 0x7f | 0x80).try_into().unwrap());
                    length >>= 7;
                }
                outer.push(length.try_into().unwrap());
                outer.extend_from_slice(&bytes);
                bytes = outer;
            }
        }
        assert!(walk(&bytes, GRAPH, 0).unwrap_err().contains("nested"));
    }
}
