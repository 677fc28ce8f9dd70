//! What TensorRT's parser takes without a word and then computes wrongly: it checks no upper bound of the opset, and
//! reads some inputs it does not use.

use onnx_protobuf::ModelProto;

/// Complaints about a model for a TensorRT whose parser knows opsets up to `newest`.
pub(super) fn complaints(model: &ModelProto, newest: i64) -> Vec<String> {
    let mut found = Vec::new();
    let opset = model.opset_import.iter().find(|opset| matches!(opset.domain.as_str(), "" | "ai.onnx"));
    if let Some(opset) = opset.filter(|opset| opset.version > newest) {
        found.push(format!(
            "opset {} is newer than this TensorRT's parser knows ({newest}), which does not check it: export with opset \
             {newest} or below",
            opset.version
        ));
    }
    // ONNX Attention-24: input 6 is nonpad_kv_seqlen. Seen with TensorRT-RTX 1.6.1: parsed, and used by no layer.
    let ignored = model.graph.node.iter().filter(|node| node.op_type == "Attention");
    for node in ignored.filter(|node| node.input.get(6).is_some_and(|input| !input.is_empty())) {
        found
            .push(format!("node '{}' (Attention): TensorRT ignores its input nonpad_kv_seqlen: use a mask", node.name));
    }
    found
}
