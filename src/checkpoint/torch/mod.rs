//! Reads PyTorch's `.pt` files: a zip of one pickle and the raw storages of its tensors (torch 1.6 and later).
//!
//! From a path to an [`Item`], a reference into the pickled objects, with access to attributes, modules and tensors. No
//! code in the file is executed; see `pickle.rs`. The layout is that of torch's `torch/serialization.py`.

mod pickle;

use std::collections::HashMap;
use std::io::Cursor;
use std::path::Path;

pub use pickle::{Node, Object, Pickle, Ref};

use super::CheckpointError;
use super::encoding::Encoding;
use super::mapped::Mapped;
use crate::diagnostic::Diagnostic;

/// Largest pickle in bytes; it contains names and numbers, the weights are outside.
const PICKLE_LIMIT: u64 = 64 << 20;
/// Most files in the archive; there is one per tensor.
const ENTRY_LIMIT: usize = 100_000;
/// Deepest nesting of modules.
const DEPTH_LIMIT: usize = 64;

/// An opened `.pt` file.
#[derive(Debug)]
pub struct TorchFile {
    file: Mapped,
    pickle: Pickle,
    /// Offset and length of each storage in bytes, by its key.
    storages: HashMap<String, (usize, usize)>,
}

/// A tensor: its storage, and its layout in it.
#[derive(Debug, Clone, PartialEq)]
pub struct TorchTensor<'a> {
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Distance in elements between neighbours along each dimension.
    pub strides: Vec<usize>,
    /// Index of the first element in the storage.
    pub offset: usize,
    /// Storage of the elements; `None` for integers.
    pub encoding: Option<Encoding>,
    /// Bytes of an element.
    pub element: usize,
    /// The whole storage.
    pub storage: &'a [u8],
}

impl TorchFile {
    /// Opens a file and reads its pickle; tensors stay in the mapped file.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let file = Mapped::open(path)?;
        let (pickle, storages) = read(file.bytes()).map_err(|message| CheckpointError::new(path, message))?;
        Ok(Self { file, pickle, storages })
    }

    /// The outermost pickled object.
    pub fn root(&self) -> Item<'_> {
        Item { file: self, at: self.pickle.root() }
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }
}

type Contents = (Pickle, HashMap<String, (usize, usize)>);

fn read(bytes: &[u8]) -> Result<Contents, Diagnostic> {
    if bytes.starts_with(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19") {
        return Err(Diagnostic::new("saved by torch before 1.6").with_help("load it with torch once and save it again"));
    }
    let bad = |error: zip::result::ZipError| format!("not a whole .pt file: {error}");
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(bad)?;
    if archive.len() > ENTRY_LIMIT {
        return Err(format!("{} files in the archive make no sense", archive.len()).into());
    }
    let (mut pickle, mut storages) = (None, HashMap::new());
    for index in 0..archive.len() {
        let entry = archive.by_index(index).map_err(bad)?;
        let name = entry.name().map_err(bad)?.into_owned();
        let (_, inner) = name.split_once('/').unwrap_or(("", &name));
        if inner == "constants.pkl" || inner.starts_with("code/") {
            let error = Diagnostic::new("a TorchScript archive, not a checkpoint");
            return Err(error.with_help("take the .pt the model was exported from"));
        }
        let wanted = inner == "data.pkl" || inner == "byteorder" || inner.starts_with("data/");
        if !wanted {
            continue;
        }
        // torch stores everything as it is; a compressed entry would be somebody's bomb.
        if entry.compression() != zip::CompressionMethod::Stored {
            return Err(format!("`{name}` is compressed, which torch never does").into());
        }
        let start = entry.data_start().and_then(|start| usize::try_from(start).ok());
        let length = usize::try_from(entry.size()).ok();
        let range = start.zip(length).and_then(|(start, length)| Some((start, start.checked_add(length)?)));
        let data = range.and_then(|(start, end)| bytes.get(start..end));
        let (Some((start, end)), Some(data)) = (range, data) else {
            return Err(format!("truncated: `{name}` ends beyond the file; fetch it again").into());
        };
        match inner {
            "data.pkl" if entry.size() > PICKLE_LIMIT => return Err("its pickle is too long".into()),
            "data.pkl" if pickle.is_some() => return Err("it holds two pickles".into()),
            "data.pkl" => pickle = Some(Pickle::parse(data)?),
            "byteorder" if data != b"little" => return Err("saved on a big-endian machine".into()),
            "byteorder" => {}
            _ => drop(storages.insert(inner.trim_start_matches("data/").to_owned(), (start, end - start))),
        }
    }
    let pickle = pickle.ok_or("no data.pkl: not a checkpoint of torch")?;
    Ok((pickle, storages))
}

/// A reference to a pickled object.
#[derive(Debug, Clone, Copy)]
pub struct Item<'a> {
    file: &'a TorchFile,
    at: Ref,
}

impl<'a> Item<'a> {
    /// The pickled value.
    pub fn node(&self) -> &'a Node {
        self.file.pickle.node(self.at)
    }

    fn to(self, at: Ref) -> Item<'a> {
        Item { file: self.file, at }
    }

    /// The string, if it is one.
    pub fn text(&self) -> Option<&'a str> {
        match self.node() {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The integer, if it is one.
    pub fn integer(&self) -> Option<i64> {
        match self.node() {
            Node::Int(value) => Some(*value),
            Node::Bool(value) => Some(i64::from(*value)),
            _ => None,
        }
    }

    /// The number, if it is one.
    pub fn number(&self) -> Option<f64> {
        match self.node() {
            Node::Float(value) => Some(*value),
            // Configuration numbers are small.
            _ => self.integer().and_then(|value| i32::try_from(value).ok()).map(f64::from),
        }
    }

    /// Whether it is `None`.
    pub fn is_none(&self) -> bool {
        matches!(self.node(), Node::None)
    }

    /// The elements of a list or tuple.
    pub fn elements(&self) -> Vec<Item<'a>> {
        let list = match self.node() {
            Node::List(list) | Node::Tuple(list) => list,
            Node::Object(object) => &object.elements,
            _ => return Vec::new(),
        };
        list.iter().map(|at| self.to(*at)).collect()
    }

    /// The items of a dict, ordered or not.
    pub fn items(&self) -> Vec<(Item<'a>, Item<'a>)> {
        let items = match self.node() {
            Node::Dict(items) => items,
            Node::Object(object) => &object.items,
            _ => return Vec::new(),
        };
        items.iter().map(|(key, value)| (self.to(*key), self.to(*value))).collect()
    }

    /// A dict's item, or an object's attribute; the last of several with this name.
    pub fn get(&self, name: &str) -> Option<Item<'a>> {
        let in_items = |item: &Item<'a>| item.items().into_iter().rev().find(|(key, _)| key.text() == Some(name));
        if let Some((_, value)) = in_items(self) {
            return Some(value);
        }
        let Node::Object(Object { state: Some(state), .. }) = self.node() else { return None };
        in_items(&self.to(*state)).map(|(_, value)| value)
    }

    /// Module and name of an object's class.
    pub fn class(&self) -> Option<(&'a str, &'a str)> {
        let Node::Object(object) = self.node() else { return None };
        match self.file.pickle.node(object.class) {
            Node::Global { module, name } => Some((module, name)),
            _ => None,
        }
    }

    /// The child modules of a torch module with their names, in order.
    pub fn children(&self) -> Vec<(&'a str, Item<'a>)> {
        self.members("_modules")
    }

    /// The own parameters and buffers of a torch module that are not None, in order.
    pub fn tensors(&self) -> Vec<(&'a str, Item<'a>)> {
        let mut all = self.members("_parameters");
        all.extend(self.members("_buffers"));
        all.retain(|(_, item)| !item.is_none());
        all
    }

    fn members(&self, kind: &str) -> Vec<(&'a str, Item<'a>)> {
        let items = self.get(kind).map(|item| item.items()).unwrap_or_default();
        items.into_iter().filter_map(|(name, item)| Some((name.text()?, item))).collect()
    }

    /// This module and all below it, outermost first, with their paths; an error if they nest too deep.
    pub fn modules(&self, path: &str) -> Result<Vec<(String, Item<'a>)>, CheckpointError> {
        let mut found = Vec::new();
        let mut pending = vec![(path.to_owned(), *self, 0)];
        while let Some((path, item, depth)) = pending.pop() {
            if depth > DEPTH_LIMIT || found.len() > ENTRY_LIMIT {
                return Err(self.error(format!("the modules at `{path}` nest too deep")));
            }
            let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            let children = item.children().into_iter().rev();
            pending.extend(children.map(|(name, child)| (join(name), child, depth + 1)));
            found.push((path, item));
        }
        Ok(found)
    }

    /// An error about this file.
    pub fn error(&self, message: impl Into<Diagnostic>) -> CheckpointError {
        CheckpointError::new(self.file.path(), message)
    }

    /// The tensor or parameter; `name` is for messages.
    pub fn tensor(&self, name: &str) -> Result<TorchTensor<'a>, CheckpointError> {
        self.read_tensor().map_err(|message| self.error(format!("tensor `{name}`: {message}")))
    }

    fn read_tensor(&self) -> Result<TorchTensor<'a>, String> {
        let Node::Object(object) = self.node() else { return Err("not a tensor".to_owned()) };
        let arguments = self.to(object.arguments).elements();
        match self.class() {
            // A parameter wraps its tensor, which wraps nothing.
            Some(("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state")) => {
                let inner =
                    arguments.first().filter(|inner| inner.class().is_some_and(|(_, name)| name.contains("tensor")));
                inner.ok_or("a parameter without a tensor")?.read_tensor()
            }
            Some(("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor")) => rebuild(self.file, &arguments),
            Some((module, name)) => Err(format!("made by {module}.{name}, which is not supported")),
            None => Err("not a tensor".to_owned()),
        }
    }
}

/// `_rebuild_tensor_v2(storage, offset, size, stride, …)`.
fn rebuild<'a>(file: &'a TorchFile, arguments: &[Item<'a>]) -> Result<TorchTensor<'a>, String> {
    let [storage, offset, size, stride, ..] = arguments else { return Err("too few arguments".to_owned()) };
    let Node::Persistent(id) = storage.node() else { return Err("no storage".to_owned()) };
    let id = storage.to(*id).elements();
    let [_, kind, key, ..] = &id[..] else { return Err("a storage without a key".to_owned()) };
    let Node::Global { name: kind, .. } = kind.node() else { return Err("a storage without a type".to_owned()) };
    let (encoding, element) = match kind.as_str() {
        "FloatStorage" => (Some(Encoding::F32), 4),
        "HalfStorage" => (Some(Encoding::F16), 2),
        "BFloat16Storage" => (Some(Encoding::BF16), 2),
        "LongStorage" | "DoubleStorage" => (None, 8),
        "IntStorage" => (None, 4),
        "ByteStorage" | "BoolStorage" | "CharStorage" => (None, 1),
        other => return Err(format!("{other} is not supported")),
    };
    let key = key.text().ok_or("a storage without a key")?;
    let (start, length) = file.storages.get(key).copied().ok_or_else(|| format!("its storage `{key}` is missing"))?;
    let storage = file.file.bytes().get(start..start + length).ok_or("its storage ends beyond the file")?;
    let sizes = |item: &Item| -> Option<Vec<usize>> {
        item.elements().iter().map(|item| usize::try_from(item.integer()?).ok()).collect()
    };
    let shape = sizes(size).ok_or("no shape")?;
    let strides = sizes(stride).filter(|strides| strides.len() == shape.len()).ok_or("no strides")?;
    let offset = offset.integer().and_then(|offset| usize::try_from(offset).ok()).ok_or("no offset")?;
    let tensor = TorchTensor { shape, strides, offset, encoding, element, storage };
    match tensor.last() {
        // A stride of 0 repeats elements; nothing we read is larger than its storage.
        Some(last) if last.max(tensor.count()).checked_mul(element).is_some_and(|end| end <= storage.len()) => {
            Ok(tensor)
        }
        _ => Err(format!("shape {:?} does not fit its storage of {length} bytes", tensor.shape)),
    }
}

impl TorchTensor<'_> {
    /// Number of elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Index after the last element in the storage; 0 for an empty tensor; `None` on overflow.
    fn last(&self) -> Option<usize> {
        crate::tensor::element_count(&self.shape)?;
        if self.shape.contains(&0) {
            return Some(0);
        }
        self.shape.iter().zip(&self.strides).try_fold(self.offset.checked_add(1)?, |last, (size, stride)| {
            last.checked_add((size - 1).checked_mul(*stride)?)
        })
    }

    /// The values in row-major order; `None` for integers.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        let encoding = self.encoding?;
        let mut index = vec![0; self.shape.len()];
        let mut values = vec![0.0; self.count()];
        for value in &mut values {
            let at: usize = self.offset + index.iter().zip(&self.strides).map(|(i, stride)| i * stride).sum::<usize>();
            encoding.decode(&self.storage[at * self.element..][..self.element], std::slice::from_mut(value));
            for (i, size) in index.iter_mut().zip(&self.shape).rev() {
                *i += 1;
                if *i < *size {
                    break;
                }
                *i = 0;
            }
        }
        Some(values)
    }
}
