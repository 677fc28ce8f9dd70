//! Explains why TensorRT could not build a model, from the graph: its own messages are assertions of its source,
//! without a remedy.

use std::collections::HashSet;

use onnx_protobuf::{GraphProto, NodeProto};

use super::Model;
use super::attributes::{Attributes, graphs, input};
use crate::diagnostic::Diagnostic;

/// An operator whose output size depends on values.
#[derive(Debug, PartialEq)]
struct ByValues {
    operator: &'static str,
    why: &'static str,
    way: &'static str,
    /// Whether TensorRT supports it (NvInfer.h since 8.5: INMSLayer, INonZeroLayer); TensorRT-RTX 1.6 supports none.
    in_tensorrt: bool,
}

const MASKED: &str = "export the model with a mask instead of a choice, `torch.where(mask, x, 0)` for `x[mask]`, and choose \
                      after the engine";

const BY_VALUES: &[ByValues] = &[
    ByValues {
        operator: "NonMaxSuppression",
        why: "how many boxes are kept depends on their scores",
        way: "export the model without it (Ultralytics: `nms=False`): `kind: yolo` does it after the engine",
        in_tensorrt: true,
    },
    ByValues { operator: "NonZero", why: "how many places it finds depends on values", way: MASKED, in_tensorrt: true },
    ByValues { operator: "Compress", why: "how much is left depends on values", way: MASKED, in_tensorrt: false },
    ByValues {
        operator: "Unique",
        why: "how many values are different depends on them",
        way: "export the model without it, and look for what is different after the engine",
        in_tensorrt: false,
    },
];

/// Inputs whose values are a size or determine one: operator, index, name (ONNX, docs/Operators.md).
const SIZES: &[(&str, usize, &str)] = &[
    ("AffineGrid", 1, "size"),
    ("BlackmanWindow", 0, "size"),
    ("CenterCropPad", 1, "shape"),
    ("ConstantOfShape", 0, "shape"),
    ("DFT", 1, "dft_length"),
    ("Expand", 1, "shape"),
    ("HammingWindow", 0, "size"),
    ("HannWindow", 0, "size"),
    ("Loop", 0, "number of rounds"),
    ("MaxUnpool", 2, "output_shape"),
    ("OneHot", 1, "depth"),
    ("Pad", 1, "pads"),
    ("Range", 0, "start"),
    ("Range", 1, "limit"),
    ("Range", 2, "delta"),
    ("Reshape", 1, "shape"),
    ("Resize", 2, "scales"),
    ("Resize", 3, "sizes"),
    ("Slice", 1, "starts"),
    ("Slice", 2, "ends"),
    ("Split", 1, "split"),
    ("STFT", 1, "frame_step"),
    ("STFT", 3, "frame_length"),
    ("Tile", 1, "repeats"),
    ("TopK", 1, "k"),
    ("Upsample", 1, "scales"),
];

/// Why a node cannot be built.
#[derive(Debug, PartialEq)]
enum Cause<'m> {
    Values(&'static ByValues),
    /// The input with this name is not known before the model runs.
    Size {
        called: &'static str,
        from: &'m str,
    },
    Nothing,
}

/// Why `tensorrt` did not build a model, if its graph reveals it: node and operator, and a hint. `said` is the error
/// of our shim (cpp/src/builder.cc), with TensorRT's messages.
pub(super) fn explain(model: &Model, tensorrt: &str, said: &str) -> Option<Diagnostic> {
    let mut nodes = Vec::new();
    let mut varying = HashSet::new();
    walk(&model.proto.graph, &mut varying, &mut nodes);
    let (node, cause) = if said.starts_with("TensorRT cannot read") {
        // "node 'nz' (NonZero): …", the first of them first.
        let place = |node: &NodeProto| said.find(&format!("node '{}' ({}):", node.name, node.op_type));
        nodes.into_iter().filter_map(|found| Some((place(found.0)?, found))).min_by_key(|(place, _)| *place)?.1
    } else if said.starts_with("TensorRT could not build") {
        stumbled(nodes, said)?
    } else {
        return None;
    };
    let label = node.label();
    let (why, way) = match cause {
        Cause::Values(by) => {
            let elsewhere =
                if by.in_tensorrt && tensorrt.contains("RTX") { "; TensorRT on a Jetson has it" } else { "" };
            (format!(": {}", by.why), format!("{}{elsewhere}", by.way))
        }
        Cause::Size { called, from } if model.inputs().is_ok_and(|all| all.iter().any(|spec| spec.name == from)) => (
            format!(": its {called} is the input `{from}`, and an engine has sizes that are known when it is built"),
            format!(
                "give it a value in the recipe, `inputs: {{ {from}: VALUE }}`, or export the model with a constant"
            ),
        ),
        Cause::Size { called, from } => (
            format!(
                ": its {called} (`{from}`) is computed from values, and an engine has sizes that are known when it is \
                 built"
            ),
            "export the model with a constant there, or give the inputs that it follows from a value in the recipe \
             (`inputs:`)"
                .to_owned(),
        ),
        Cause::Nothing => {
            (String::new(), "export the model with other operators there; what TensorRT says follows".to_owned())
        }
    };
    Some(Diagnostic::new(format!("{label}: {tensorrt} does not build it{why}")).with_help(way))
}

/// The node that the builder's messages name.
fn stumbled<'m>(nodes: Vec<(&'m NodeProto, Cause<'m>)>, said: &str) -> Option<(&'m NodeProto, Cause<'m>)> {
    let (special, others): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|(_, cause)| *cause != Cause::Nothing);
    // "Network has dynamic or shape inputs", "missing values for shape input tensor k".
    let of_sizes = said.contains("shape input");
    let named = special.iter().position(|(node, _)| mentions(said, &node.name));
    let named = named.or_else(|| {
        special.iter().position(|(_, cause)| match cause {
            Cause::Size { .. } => of_sizes,
            Cause::Values(_) => said.contains("has no runners"),
            Cause::Nothing => false,
        })
    });
    if let Some(at) = named {
        return special.into_iter().nth(at);
    }
    // A layer made of several nodes, or one without memory, is not the node's fault.
    let mut others = others.into_iter().filter(|(node, _)| mentions(said, &node.name));
    let only = others.next()?;
    let is_plain = !["memory", "workspace"].iter().any(|word| said.contains(word));
    (others.next().is_none() && is_plain).then_some(only)
}

/// Whether a text contains a node's name; TensorRT appends numbers to layer names.
fn mentions(text: &str, name: &str) -> bool {
    let is_part = |letter: Option<char>| letter.is_some_and(|letter| letter.is_alphanumeric() || letter == '/');
    !name.is_empty()
        && text.match_indices(name).any(|(at, _)| {
            let (before, after) = (text[..at].chars().next_back(), text[at + name.len()..].chars().next());
            !is_part(before) && before != Some('_') && !is_part(after)
        })
}

/// Collects the suspicious nodes, in subgraphs too. `varying` are the tensors whose values are not known before the
/// model runs; a tensor's shape is not one of its values.
fn walk<'m>(graph: &'m GraphProto, varying: &mut HashSet<&'m str>, found: &mut Vec<(&'m NodeProto, Cause<'m>)>) {
    let constants: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    varying.extend(graph.input.iter().map(|input| input.name.as_str()).filter(|name| !constants.contains(name)));
    for node in &graph.node {
        found.push((node, cause(node, varying)));
        let mut has_inner = false;
        for inner in graphs(node) {
            has_inner = true;
            walk(inner, varying, found);
        }
        let varies = has_inner || node.input.iter().any(|name| varying.contains(name.as_str()));
        if varies && !matches!(node.op_type.as_str(), "Shape" | "Size") {
            varying.extend(node.output.iter().map(String::as_str).filter(|name| !name.is_empty()));
        }
    }
}

fn cause<'m>(node: &'m NodeProto, varying: &HashSet<&str>) -> Cause<'m> {
    if !node.is_standard() {
        return Cause::Nothing;
    }
    let operator = node.op_type.as_str();
    if let Some(by) = BY_VALUES.iter().find(|by| by.operator == operator) {
        return Cause::Values(by);
    }
    let sizes = SIZES.iter().filter(|(name, ..)| *name == operator);
    let mut given = sizes.filter_map(|(_, at, called)| Some((*called, input(node, *at)?)));
    let unknown = given.find(|(_, from)| varying.contains(from));
    unknown.map_or(Cause::Nothing, |(called, from)| Cause::Size { called, from })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::onnx::{Attribute, GraphBuilder};
    use crate::tensor::DType;

    const RTX: &str = "TensorRT-RTX 1.6.1";
    /// An error of TensorRT-RTX 1.6.1, shortened; the node is called `made`.
    const RUNNERS: &str = "TensorRT could not build the engine\n  TensorRT: [tacticSupply.cpp::getSupportedFormats::48] \
                           Internal Error (Assertion !layerImpls.empty() failed. made_0 has no runners that implement it)";
    const PROFILE: &str = "TensorRT could not build the engine\n  TensorRT: API Usage Error (Network has dynamic or shape \
                           inputs, but no optimization profile has been defined.)";
    const VALUES: &str = "TensorRT could not build the engine\n  TensorRT: API Usage Error (Optimization profile 0 is \
                          missing values for shape input tensor k.)";

    /// A model whose node `made` reads `x`, `k` and tensors computed from them.
    fn model(operator: &str, inputs: &[&str]) -> Model {
        let mut graph = GraphBuilder::new("g", 17);
        graph.input("x", DType::Float32, &[Some(1), Some(6)]);
        graph.input("k", DType::Int64, &[Some(1)]);
        graph.node_named("Cast", &["x"], &["cast"], &[("to", 7_i64.into())]);
        graph.node_named("Shape", &["cast"], &["shape"], &[]);
        graph.node_named(operator, inputs, &["y"], &[]);
        graph.output("y", DType::Float32, &[None]);
        let mut model = graph.finish(Path::new("g.onnx")).unwrap();
        let node = model.proto.graph.as_mut().unwrap().node.last_mut().unwrap();
        node.name = "made".to_owned();
        model
    }

    #[test]
    fn the_node_and_the_way_out_are_told() {
        let unread = |operator: &str| {
            format!(
                "TensorRT cannot read m.onnx\n  node 'made' ({operator}): Assertion failed: creator &&\n  node 'x' (Y): z"
            )
        };
        // Operator, its inputs, what TensorRT says, and what is told.
        let cases: [(&str, &[&str], String, &str, &str); 11] = [
            ("NonMaxSuppression", &["x", "x"], RUNNERS.to_owned(), "boxes are kept depends", "`nms=False`"),
            ("NonMaxSuppression", &["x", "x"], RUNNERS.replace("made_0", "{Foreign}"), "boxes", "on a Jetson has it"),
            ("NonZero", &["x"], unread("NonZero"), "how many places", "torch.where(mask, x, 0)"),
            ("Compress", &["x", "x"], unread("Compress"), "how much is left", "torch.where(mask, x, 0)"),
            ("Unique", &["x"], unread("Unique"), "how many values are different", "after the engine"),
            ("TopK", &["x", "k"], PROFILE.to_owned(), "its k is the input `k`", "`inputs: { k: VALUE }`"),
            ("TopK", &["x", "k"], VALUES.to_owned(), "its k is the input `k`", "a constant"),
            ("Expand", &["x", "cast"], unread("Expand"), "its shape (`cast`) is computed from values", "(`inputs:`)"),
            ("Slice", &["x", "shape", "k"], PROFILE.to_owned(), "its ends is the input `k`", "VALUE"),
            ("Det", &["x"], unread("Det"), "TensorRT-RTX 1.6.1 does not build it\n", "with other operators there"),
            (
                "TopK",
                &["x", "shape"],
                "TensorRT could not build the engine\n  TensorRT: ITopKLayer made: K exceeds 3840".to_owned(),
                "does not build it\n",
                "with other operators there",
            ),
        ];
        for (operator, inputs, said, why, way) in cases {
            let told = model(operator, inputs).not_built(RTX, &said).unwrap_or_default().to_string();
            assert!(told.starts_with(&format!("node 'made' ({operator}): {RTX} does not build it")), "{said}: {told}");
            let (first, hint) = told.split_once("  hint: ").unwrap();
            assert!(first.contains(why) && hint.contains(way), "{said}: {told}");
        }
        let told = model("NonZero", &["x"]).not_built("TensorRT 10.3.0", &unread("NonZero")).unwrap().to_string();
        assert!(!told.contains("Jetson"), "{told}");
    }

    #[test]
    fn what_the_graph_does_not_explain_is_left_alone() {
        let nothing: [(&str, &[&str], &str); 6] = [
            ("NonZero", &["x"], "the build was killed, most likely because memory ran out"),
            ("NonZero", &["x"], "TensorRT could not build the engine\n  TensorRT: no words of any node"),
            ("Relu", &["x"], PROFILE),
            ("Reshape", &["x", "shape"], PROFILE),
            (
                "Relu",
                &["x"],
                "TensorRT could not build the engine\n  TensorRT: unmade_0, /made/x and _made has no runners",
            ),
            (
                "Relu",
                &["x"],
                "TensorRT could not build the engine\n  TensorRT: no implementation for node made due to insufficient \
                 workspace",
            ),
        ];
        for (operator, inputs, said) in nothing {
            assert_eq!(model(operator, inputs).not_built(RTX, said), None, "{said}");
        }
    }

    #[test]
    fn nodes_of_inner_graphs_are_told_too() {
        let mut branch = GraphBuilder::new("branch", 17);
        branch.node_named("NonZero", &["x"], &["found"], &[]);
        branch.output("found", DType::Int64, &[None, None]);
        let mut graph = GraphBuilder::new("g", 17);
        graph.input("x", DType::Float32, &[Some(6)]);
        let branches: [(&str, Attribute); 1] = [("then_branch", branch.subgraph())];
        graph.node_named("If", &["x"], &["y"], &branches);
        graph.output("y", DType::Int64, &[None, None]);
        let model = graph.finish(Path::new("g.onnx")).unwrap();
        let said = "TensorRT cannot read g.onnx\n  node 'NonZero_0' (NonZero): no";
        let told = model.not_built(RTX, said).unwrap().to_string();
        assert!(told.starts_with("node 'NonZero_0' (NonZero)") && told.contains("how many places"), "{told}");
    }
}
