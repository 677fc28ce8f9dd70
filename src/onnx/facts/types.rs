//! Infers element types of a node's outputs, by ONNX's operator specification.

use onnx_protobuf::NodeProto;

use super::{Fact, elem};
use crate::onnx::attributes::{Attributes, input};

/// Operators whose first output has type and shape of the first input.
pub(super) const LIKE_FIRST: &str = "Abs Acos Acosh Asin Asinh Atan Atanh BatchNormalization BitwiseNot Cast \
    CastLike Ceil Celu Clip Cos Cosh CumSum DequantizeLinear Dropout Elu Erf Exp EyeLike Floor Gelu \
    GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsInf IsNaN LRN \
    LayerNormalization LeakyRelu Log LogSoftmax LpNormalization MeanVarianceNormalization Mish Neg Not PRelu \
    QuantizeLinear RMSNormalization Reciprocal Relu ReverseSequence RotaryEmbedding Round Scatter ScatterElements \
    ScatterND Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu \
    Trilu";
/// Operators that broadcast their inputs.
pub(super) const BROADCAST: &str = "Add And BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less \
    LessOrEqual Max Mean Min Mod Mul Or Pow Sub Sum Where Xor";
/// Reductions over axes, which may be kept with size 1.
pub(super) const REDUCTIONS: &str = "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin \
    ReduceProd ReduceSum ReduceSumSquare";
/// Operators with boolean outputs.
const TRUTHS: &str = "And Equal Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual Not Or Xor";
/// Other operators whose output has the type of the first input.
const KEEPS_TYPE: &str = "AveragePool Compress Concat Conv ConvTranspose DepthToSpace Einsum Expand \
    Flatten GRU Gather GatherElements GatherND Gemm GlobalAveragePool GlobalMaxPool GridSample LSTM LpPool MatMul \
    MaxPool Pad RNN Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd \
    ReduceSum ReduceSumSquare Reshape Resize Slice SpaceToDepth Split Squeeze Tile TopK Transpose Unsqueeze \
    Upsample";

/// Whether a list of operators contains `name`.
pub(super) fn among(list: &str, name: &str) -> bool {
    list.split(' ').any(|other| other == name)
}

/// Element types of the outputs; `None` where unknown.
pub(super) fn elems(node: &NodeProto, inputs: &[&Fact]) -> Vec<Option<i32>> {
    let of = |index: usize| inputs.get(index).and_then(|fact| fact.elem);
    let op = node.op_type.as_str();
    let attribute = |name: &str| node.get(name).and_then(|to| i32::try_from(to.i).ok()).filter(|elem| *elem != 0);
    let tensor = |name: &str| node.get(name).and_then(|value| value.t.as_ref()).map(|tensor| tensor.data_type);
    match op {
        _ if among(TRUTHS, op) => vec![Some(elem::BOOL)],
        "Cast" => vec![attribute("to")],
        "CastLike" | "Where" => vec![of(1)],
        "EyeLike" => vec![attribute("dtype").or(of(0))],
        "Shape" | "Size" | "NonZero" | "ArgMax" | "ArgMin" | "NonMaxSuppression" => vec![Some(elem::INT64)],
        "OneHot" => vec![of(2)],
        "DequantizeLinear" => vec![attribute("output_dtype").or(of(1))],
        "QuantizeLinear" => {
            vec![if input(node, 2).is_some() { of(2) } else { attribute("output_dtype").or(Some(elem::UINT8)) }]
        }
        "DynamicQuantizeLinear" => vec![Some(elem::UINT8), Some(elem::FLOAT), Some(elem::UINT8)],
        "MatMulInteger" | "ConvInteger" => vec![Some(elem::INT32)],
        "Constant" if node.get("value").is_some() => vec![tensor("value")],
        "Constant" if node.get("value_float").is_some() || node.get("value_floats").is_some() => {
            vec![Some(elem::FLOAT)]
        }
        "Constant" if node.get("value_int").is_some() || node.get("value_ints").is_some() => vec![Some(elem::INT64)],
        "ConstantOfShape" => vec![Some(tensor("value").unwrap_or(elem::FLOAT))],
        "TopK" | "MaxPool" => vec![of(0), Some(elem::INT64)],
        "Dropout" => vec![of(0), Some(elem::BOOL)],
        "LSTM" | "GRU" | "RNN" | "Split" => vec![of(0); node.output.len()],
        _ if [LIKE_FIRST, BROADCAST, REDUCTIONS, KEEPS_TYPE].iter().any(|list| among(list, op)) => vec![of(0)],
        _ => Vec::new(),
    }
}
