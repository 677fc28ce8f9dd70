//! What TensorRT's parser takes without a word and then computes wrongly: it checks no upper bound of the opset, and
//! reads some inputs it does not use.

use super::Model;

/// The first complaint about a model for a TensorRT whose parser knows opsets up to `newest`.
pub(super) fn complaint(model: &Model, newest: i64) -> Option<String> {
    let opset = model.opset();
    if opset > newest {
        return Some(format!(
            "opset {opset} is newer than this TensorRT's parser knows ({newest}), which does not check it: export with \
             opset {newest} or below"
        ));
    }
    // ONNX Attention-24: input 6 is nonpad_kv_seqlen. Seen with TensorRT-RTX 1.6.1: parsed, and used by no layer.
    let mut attention = model.proto.graph.node.iter().filter(|node| node.op_type == "Attention");
    let ignored = attention.find(|node| node.input.get(6).is_some_and(|input| !input.is_empty()))?;
    let name = &ignored.name;
    Some(format!("node '{name}' (Attention): TensorRT ignores its input nonpad_kv_seqlen: use a mask"))
}
