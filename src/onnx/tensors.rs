//! Visits every tensor of a model, wherever onnx.proto (IR version 11) allows one: initializers, dense and sparse,
//! attributes of nodes, subgraphs in attributes, functions, training graphs.

/// The visitor, for shared and for mutable references. It keeps a list of what is left, so that nesting needs no stack.
macro_rules! walk {
    ($get:ident $(, $mutable:tt)?) => {
        use onnx_protobuf::{AttributeProto, GraphProto, ModelProto, SparseTensorProto, TensorProto};

        /// All tensors, in no particular order.
        pub(in crate::onnx) fn tensors(model: &$($mutable)? ModelProto) -> Vec<&$($mutable)? TensorProto> {
            let mut found: Vec<&$($mutable)? TensorProto> = Vec::new();
            let mut sparse: Vec<&$($mutable)? SparseTensorProto> = Vec::new();
            let mut attributes: Vec<&$($mutable)? AttributeProto> = Vec::new();
            let mut graphs: Vec<&$($mutable)? GraphProto> = model.graph.$get().into_iter().collect();
            for training in &$($mutable)? model.training_info {
                graphs.extend(training.initialization.$get());
                graphs.extend(training.algorithm.$get());
            }
            for function in &$($mutable)? model.functions {
                attributes.extend(&$($mutable)? function.attribute_proto);
                for node in &$($mutable)? function.node {
                    attributes.extend(&$($mutable)? node.attribute);
                }
            }
            loop {
                if let Some(attribute) = attributes.pop() {
                    found.extend(attribute.t.$get());
                    found.extend(&$($mutable)? attribute.tensors);
                    sparse.extend(attribute.sparse_tensor.$get());
                    sparse.extend(&$($mutable)? attribute.sparse_tensors);
                    graphs.extend(attribute.g.$get());
                    graphs.extend(&$($mutable)? attribute.graphs);
                } else if let Some(graph) = graphs.pop() {
                    found.extend(&$($mutable)? graph.initializer);
                    sparse.extend(&$($mutable)? graph.sparse_initializer);
                    for node in &$($mutable)? graph.node {
                        attributes.extend(&$($mutable)? node.attribute);
                    }
                } else {
                    break;
                }
            }
            for tensor in sparse {
                found.extend(tensor.values.$get());
                found.extend(tensor.indices.$get());
            }
            found
        }
    };
}

/// Shared references.
pub(super) mod shared {
    walk!(as_ref);
}

/// Mutable references.
pub(super) mod exclusive {
    walk!(as_mut, mut);
}
