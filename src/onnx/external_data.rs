//! External data: the files that contain a model's weights. Until its references are checked to stay in its folder and
//! within their files, a crafted model could leak any file of the machine, or memory behind a mapped file, through its
//! outputs.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use onnx_protobuf::{ModelProto, StringStringEntryProto, TensorProto, tensor_proto::DataLocation};

use super::tensors::{exclusive, shared};
use super::{element_bits, elements, graph::entry};
use crate::artifact::is_contained;
use crate::diagnostic::Diagnostic;

/// Location of a tensor's data.
#[derive(Debug, PartialEq, Eq)]
struct DataPlace {
    location: String,
    offset: u64,
    /// Length in bytes by shape and element type.
    length: u64,
}

impl DataPlace {
    /// Parses a tensor's `external_data`; `None` if the tensor contains its data.
    fn of(tensor: &TensorProto) -> Result<Option<Self>, Diagnostic> {
        if !is_external(tensor) {
            return Ok(None);
        }
        let name = &tensor.name;
        let mut entries: BTreeMap<&str, &str> = BTreeMap::new();
        for entry in &tensor.external_data {
            if entries.insert(&entry.key, &entry.value).is_some() {
                // Readers differ in which of the two they take.
                return Err(faulty(format!("tensor `{name}` gives `{}` of its external data twice", entry.key)));
            }
        }
        let location = entries.get("location").copied().unwrap_or_default();
        if !is_contained(location) {
            let what = format!("tensor `{name}` keeps its data in `{location}`, outside the model's folder");
            return Err(Diagnostic::new(what)
                .with_help("external data belongs beside or below the model: move it there and export again"));
        }
        let number = |key: &str| match entries.get(key) {
            None => Ok(None),
            Some(text) => match text.parse::<u64>() {
                Ok(number) if text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(Some(number)),
                _ => Err(faulty(format!("tensor `{name}` in `{location}` has {key} `{text}`, which is no size"))),
            },
        };
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        let needed = needed(tensor).ok_or_else(|| {
            faulty(format!(
                "tensor `{name}` in `{location}` has shape {:?} of element type {}, of no known size",
                tensor.dims, tensor.data_type
            ))
        })?;
        if let Some(length) = length.filter(|length| *length != needed) {
            return Err(faulty(format!(
                "tensor `{name}` in `{location}` has length {length}, its shape {:?} takes {needed} bytes",
                tensor.dims
            )));
        }
        Ok(Some(Self { location: location.to_owned(), offset, length: needed }))
    }

    /// The complete `external_data` entries: rten requires offset and length, and accepts no checksum.
    fn entries(self) -> Vec<StringStringEntryProto> {
        vec![
            entry("location", self.location),
            entry("offset", self.offset.to_string()),
            entry("length", self.length.to_string()),
        ]
    }
}

/// The error for an invalid reference in the model itself.
fn faulty(what: String) -> Diagnostic {
    Diagnostic::new(what).with_help("the file is damaged or was made by a faulty exporter: fetch or export it again")
}

fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location.enum_value_or_default() == DataLocation::EXTERNAL
}

/// Bytes of a tensor's data; `None` for strings, unknown types and invalid shapes.
fn needed(tensor: &TensorProto) -> Option<u64> {
    Some(elements(tensor)?.checked_mul(element_bits(tensor.data_type)?)?.div_ceil(8))
}

/// Checks without the files that every external tensor, wherever it is, names a file beside or below the model, and the
/// right number of bytes.
pub(super) fn check(model: &ModelProto) -> Result<(), Diagnostic> {
    shared::tensors(model).into_iter().try_for_each(|tensor| DataPlace::of(tensor).map(drop))
}

/// Checks the files of the model at `path`: each must be a regular file in the model's folder, long enough for every
/// tensor.
pub(super) fn check_files(model: &ModelProto, path: &Path) -> Result<(), Diagnostic> {
    let mut lengths: BTreeMap<String, u64> = BTreeMap::new();
    for tensor in shared::tensors(model) {
        let Some(place) = DataPlace::of(tensor)? else { continue };
        let length = match lengths.get(&place.location) {
            Some(length) => *length,
            None => {
                let length = file_length(path, &place.location).map_err(|why| {
                    why.map_message(|why| {
                        format!("tensor `{}` keeps its data in `{}`, {why}", tensor.name, place.location)
                    })
                })?;
                lengths.insert(place.location.clone(), length);
                length
            }
        };
        if place.offset.checked_add(place.length).is_none_or(|end| end > length) {
            let what = format!(
                "tensor `{}` wants {} bytes from offset {} of `{}`, which has {length}",
                tensor.name, place.length, place.offset, place.location
            );
            return Err(Diagnostic::new(what).with_help("is the file whole? fetch or export model and data again"));
        }
    }
    Ok(())
}

const THEMSELVES: &str = "put the data themselves beside the model";

/// The length of a data file, or why it is refused. The file is not opened, since a pipe would wait for its writer.
fn file_length(model: &Path, location: &str) -> Result<u64, Diagnostic> {
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Diagnostic::new("which is missing").with_help("put it beside the model"),
        _ => Diagnostic::new(format!("which cannot be read: {error}")),
    };
    let file = model.with_file_name(location);
    let metadata = fs::metadata(&file).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(Diagnostic::new("which is not a regular file").with_help(THEMSELVES));
    }
    let real = fs::canonicalize(&file).map_err(unreadable)?;
    let homes = homes(model).map_err(unreadable)?;
    if !real.starts_with(&homes.below) && homes.blobs.is_none_or(|blobs| real.parent() != Some(blobs.as_path())) {
        let what = format!("which is a link to {}, outside the model's folder", real.display());
        return Err(Diagnostic::new(what).with_help(THEMSELVES));
    }
    Ok(metadata.len())
}

/// Folders where a model's data may be.
struct Homes {
    /// The folder of the model under its given name, and all below it.
    below: PathBuf,
    /// The blobs folder of the hub's cache, not below it, if `snapshots/COMMIT/model.onnx` and its data are links into
    /// it.
    blobs: Option<PathBuf>,
}

fn homes(model: &Path) -> io::Result<Homes> {
    let folder = model.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let real = fs::canonicalize(model)?;
    let blobs = real.parent().filter(|folder| folder.ends_with("blobs")).map(Path::to_owned);
    Ok(Homes { below: fs::canonicalize(folder)?, blobs })
}

/// The names of all data files, sorted, without repetitions.
pub(super) fn files(model: &ModelProto) -> Vec<String> {
    let location = |tensor: &TensorProto| Some(DataPlace::of(tensor).ok()??.location);
    let mut files: Vec<String> = shared::tensors(model).into_iter().filter_map(location).collect();
    files.sort();
    files.dedup();
    files
}

/// Renames the files to `weights-N.data` beside the model, which every runtime accepts (rten reads no other folder or
/// extension), and writes offsets and lengths explicitly. Returns pairs (old, new).
pub(super) fn flatten(model: &mut ModelProto) -> Vec<(String, String)> {
    let renamed = files(model).into_iter().enumerate().map(|(index, old)| (old, format!("weights-{index}.data")));
    let renamed: BTreeMap<String, String> = renamed.collect();
    rewrite(model, |place| match renamed.get(&place.location) {
        Some(new) => DataPlace { location: new.clone(), ..place },
        None => place,
    });
    renamed.into_iter().collect()
}

/// Writes location, offset and length of every external tensor, and no other entry; returns whether anything changed.
pub(super) fn make_explicit(model: &mut ModelProto) -> bool {
    const KEYS: [&str; 3] = ["location", "offset", "length"];
    let whole = |tensor: &TensorProto| {
        let has = |key: &&str| tensor.external_data.iter().any(|entry| entry.key == **key);
        !is_external(tensor) || (tensor.external_data.len() == KEYS.len() && KEYS.iter().all(has))
    };
    if shared::tensors(model).into_iter().all(whole) {
        return false;
    }
    rewrite(model, |place| place);
    true
}

fn rewrite(model: &mut ModelProto, change: impl Fn(DataPlace) -> DataPlace) {
    for tensor in exclusive::tensors(model) {
        // What cannot be read was refused when the model was.
        let Ok(Some(place)) = DataPlace::of(tensor) else { continue };
        tensor.external_data = change(place).entries();
    }
}

#[cfg(test)]
mod tests;
