//! External data: where a model says its weights are. A model file is hostile until its references stay in its folder,
//! else a crafted one could feed any file of the machine through the network and out of its outputs.

use onnx_protobuf::{ModelProto, TensorProto, tensor_proto::DataLocation};

use crate::artifact::is_contained;

fn location(tensor: &TensorProto) -> Option<&str> {
    if tensor.data_location.enum_value_or_default() != DataLocation::EXTERNAL {
        return None;
    }
    let entry = tensor.external_data.iter().find(|entry| entry.key == "location");
    Some(entry.map_or("", |entry| entry.value.as_str()))
}

/// Tensors of the graph that may be external: initializers and attribute tensors of nodes.
fn tensors(model: &ModelProto) -> impl Iterator<Item = &TensorProto> {
    let graph = &model.graph;
    let attributes = graph.node.iter().flat_map(|node| &node.attribute).filter_map(|attribute| attribute.t.as_ref());
    graph.initializer.iter().chain(attributes)
}

/// Every external tensor must name a file beside or below the model.
pub(super) fn check(model: &ModelProto) -> Result<(), String> {
    for tensor in tensors(model) {
        if let Some(location) = location(tensor)
            && !is_contained(location)
        {
            return Err(format!("tensor `{}` keeps its data in `{location}`, outside the model's folder", tensor.name));
        }
    }
    Ok(())
}

/// The files named, each once, sorted.
pub(super) fn files(model: &ModelProto) -> Vec<String> {
    let mut files: Vec<String> = tensors(model).filter_map(location).map(str::to_owned).collect();
    files.sort();
    files.dedup();
    files
}

/// Renames the files to `weights-N.data` beside the model, names every runtime accepts (rten reads no other folder and
/// no other extension). Returns (old, new).
pub(super) fn flatten(model: &mut ModelProto) -> Vec<(String, String)> {
    let renamed = files(model).into_iter().enumerate().map(|(index, old)| (old, format!("weights-{index}.data")));
    let renamed: Vec<(String, String)> = renamed.collect();
    let Some(graph) = model.graph.as_mut() else { return renamed };
    let attributes = graph.node.iter_mut().flat_map(|node| &mut node.attribute).filter_map(|a| a.t.as_mut());
    let external = graph.initializer.iter_mut().chain(attributes).filter(|tensor| location(tensor).is_some());
    for entry in external.flat_map(|tensor| &mut tensor.external_data).filter(|entry| entry.key == "location") {
        if let Some((_, new)) = renamed.iter().find(|(old, _)| *old == entry.value) {
            entry.value.clone_from(new);
        }
    }
    renamed
}
