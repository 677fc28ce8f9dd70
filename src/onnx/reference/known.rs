//! Lists what rten 0.27 is known to compute by ONNX's specification.
//!
//! From ONNX's node tests (onnx 1.23.2, `tests/node_tests.rs`), and from comparisons with onnxruntime 1.32 for older
//! opsets, `com.microsoft` and sequences. Attributes that rten itself refuses are not repeated here.

use onnx_protobuf::{ModelProto, NodeProto};

use super::super::attributes::{Attributes, input};
use super::super::facts::Facts;

/// Newest opset of the node tests.
const NEWEST: i64 = 28;

/// Operators of a domain, from an opset on.
struct Known {
    domain: &'static str,
    since: i64,
    operators: &'static str,
}

const KNOWN: &[Known] = &[
    // As they are.
    Known {
        domain: "",
        since: 1,
        operators: "Abs Acos Acosh Add And Asin Asinh Atan Atanh Attention AveragePool BitCast Ceil Clip Concat \
            ConcatFromSequence Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace \
            DequantizeLinear Div Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm \
            GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GridSample GRU HardSigmoid HardSwish Identity If \
            InstanceNormalization IsNaN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log Loop LpNormalization \
            MatMulInteger Max MaxPool Mean Min Mod Mul Neg NonZero Not Or PRelu RMSNormalization Range Reciprocal ReduceL1 \
            ReduceL2 ReduceLogSum ReduceLogSumExp ReduceProd ReduceSum ReduceSumSquare Relu Reshape ReverseSequence \
            RotaryEmbedding Round Scatter ScatterElements ScatterND SequenceAt SequenceConstruct SequenceEmpty SequenceErase \
            SequenceInsert SequenceLength Shape Sigmoid SimplifiedLayerNormalization Sin Sinh Size Slice Softsign Split \
            SplitToSequence Sqrt Squeeze Sub Sum Swish Tan Tanh Tile TopK Transpose Trilu Unsqueeze Where Xor",
    },
    // Written otherwise, always or in some cases.
    Known {
        domain: "",
        since: 1,
        operators: "ArgMax ArgMin Cast CastLike Celu Dropout DynamicQuantizeLinear GroupNormalization Hardmax IsInf LRN \
            LogSoftmax MatMul MeanVarianceNormalization Mish OneHot Pad Pow QuantizeLinear ReduceMax ReduceMean \
            ReduceMin Resize Selu Shrink Sign Softmax Softplus SpaceToDepth ThresholdedRelu",
    },
    // Before, it could be asked to train; Upsample had one scale by axis.
    Known { domain: "", since: 7, operators: "BatchNormalization Upsample" },
    Known {
        domain: "com.microsoft",
        since: 1,
        operators: "BiasGelu DynamicQuantizeLSTM FastGelu Gelu MatMulNBits MultiHeadAttention QuickGelu RotaryEmbedding \
            SkipLayerNormalization SkipSimplifiedLayerNormalization",
    },
];

/// Inputs that rten ignores, or that were not compared.
const WITHOUT: &[(&str, usize, &str)] = &[
    ("Attention", 6, "nonpad_kv_seqlen"),
    ("LSTM", 7, "P (peepholes)"),
    ("MultiHeadAttention", 4, "key_padding_mask"),
    ("MultiHeadAttention", 5, "attention_bias"),
    ("MultiHeadAttention", 6, "past_key"),
    ("MultiHeadAttention", 7, "past_value"),
];

/// Attributes that must have one of some values: operator, name, default, values.
const ONLY: &[(&str, &str, i64, &[i64])] = &[
    ("GRU", "linear_before_reset", 0, &[1]),
    // With 4, activations are int8: off by 2 % from what the weights say.
    ("MatMulNBits", "accuracy_level", 0, &[0, 1, 2, 3]),
];

/// Refuses unknown opsets.
pub(super) fn check_model(model: &ModelProto) -> Result<(), String> {
    for import in &model.opset_import {
        if matches!(import.domain.as_str(), "" | "ai.onnx") && import.version > NEWEST {
            return Err(format!("opset {} is newer than what was compared ({NEWEST})", import.version));
        }
    }
    Ok(())
}

/// Outputs that only exist in training.
const TRAINED: &[(&str, usize)] = &[("BatchNormalization", 1)];

/// Refuses an operator, input or attribute that is not known to be computed correctly.
pub(super) fn check(node: &NodeProto, facts: &Facts<'_>) -> Result<(), String> {
    let domain = if node.is_standard() { "" } else { node.domain.as_str() };
    let op = node.op_type.as_str();
    let row = KNOWN.iter().find(|row| row.domain == domain && row.operators.split(' ').any(|name| name == op));
    let Some(row) = row else {
        let domain = if domain.is_empty() { String::new() } else { format!(" of {domain}") };
        return Err(format!("the operator {op}{domain} is not computed"));
    };
    if domain.is_empty() && facts.opset() < row.since {
        return Err(format!("{op} is computed from opset {} on, the model has {}", row.since, facts.opset()));
    }
    for (_, index, name) in WITHOUT.iter().filter(|(other, _, _)| *other == op) {
        if input(node, *index).is_some() {
            return Err(format!("its input {name} is not computed with"));
        }
    }
    if TRAINED.iter().any(|(other, most)| *other == op && node.output.iter().skip(*most).any(|name| !name.is_empty())) {
        return Err("it is asked to train: it has more outputs than at inference".to_owned());
    }
    for (_, name, default, values) in ONLY.iter().filter(|(other, _, _, _)| *other == op) {
        let value = node.int(name, *default);
        if !values.contains(&value) {
            return Err(format!("its {name} {value} is not computed"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operator_is_in_one_row_of_its_domain() {
        let mut seen = std::collections::HashSet::new();
        for row in KNOWN {
            for name in row.operators.split(' ') {
                assert!(!name.is_empty() && seen.insert((row.domain, name)), "{name}");
            }
        }
        for (op, _, _) in WITHOUT {
            assert!(seen.iter().any(|(_, name)| name == op), "{op}");
        }
    }
}
