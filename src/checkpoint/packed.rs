//! Reads weights packed as small integers in 32-bit words, with a scale and a zero point per group of inputs: GPTQ, AWQ
//! and compressed-tensors. weight = (q - zero) · scale, exactly: zero points are not rounded.
//!
//! Layouts are those of the packages that write them: AutoGPTQ and GPTQModel (v1 keeps zero - 1), AutoAWQ, compressed-tensors
//! (integers raised by half their range). How integers lie in words is in `words.rs`.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use rayon::prelude::*;
use serde_json::Value;

use super::encoding::Encoding;
use super::packing::{Layout, Packing, Packings};
use super::words::{WordGrid, WordPlace, word};
use super::{CheckpointError, Entry};

/// Suffixes of the tensors that represent a packed matrix "STEM.weight": "STEM.qweight" and so on.
pub(super) const PARTS: [&str; 9] = [
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
];

/// The tensors of a packed matrix, with their meaning.
#[derive(Debug, Clone)]
pub(super) struct Packed {
    packing: Packing,
    words: Entry,
    scales: Entry,
    zeros: Option<Entry>,
    /// Each input's group, if groups are not consecutive.
    order: Option<Entry>,
    /// `[outputs, inputs]`.
    pub(super) shape: [usize; 2],
    groups: usize,
}

/// Finds the packed matrices among a checkpoint's tensors, by the names of the matrices they represent.
pub(super) fn find<'a>(
    path: &Path,
    config: &Value,
    tensors: &BTreeMap<String, Entry>,
    bytes: &dyn Fn(&Entry) -> Option<&'a [u8]>,
) -> Result<BTreeMap<String, Packed>, CheckpointError> {
    let Some(quantization) = config.get("quantization_config").filter(|config| config.is_object()) else {
        return Ok(BTreeMap::new());
    };
    // What is not supported is said where the configuration is read.
    let Ok(packings) = Packings::read(quantization) else { return Ok(BTreeMap::new()) };
    matrices(path, &packings, tensors, bytes)
}

/// Finds the matrices that are packed by known packings; `path` is for messages.
pub(super) fn matrices<'a>(
    path: &Path,
    packings: &Packings,
    tensors: &BTreeMap<String, Entry>,
    bytes: &dyn Fn(&Entry) -> Option<&'a [u8]>,
) -> Result<BTreeMap<String, Packed>, CheckpointError> {
    let suffix = if packings.layout == Layout::Tensors { ".weight_packed" } else { ".qweight" };
    let mut found = BTreeMap::new();
    for (name, words) in tensors.iter().filter(|(name, _)| name.ends_with(suffix)) {
        let stem = name.trim_end_matches(suffix);
        let packed = match (tensors.contains_key(&format!("{stem}.weight")), packings.of(stem)) {
            (true, _) => Err("it is there in floats too".to_owned()),
            (false, None) => Err("no scheme of `config_groups` has a target for it".to_owned()),
            (false, Some(packing)) => packed_matrix(packing, stem, words, tensors, bytes),
        };
        let packed = packed.map_err(|what| {
            CheckpointError::new(path, format!("tensor `{name}`: {what}"))
                .with_help("fetch the checkpoint again, or take one whose quantization_config fits its tensors")
        })?;
        found.insert(format!("{stem}.weight"), packed);
    }
    Ok(found)
}

/// The tensors beside a matrix's words, and the shape they give the matrix.
struct Companions<'p> {
    scales: &'p Entry,
    zeros: Option<&'p Entry>,
    order: Option<&'p Entry>,
    /// `[outputs, inputs]`.
    shape: [usize; 2],
}

fn packed_matrix<'a>(
    packing: Packing,
    stem: &str,
    words: &Entry,
    tensors: &BTreeMap<String, Entry>,
    bytes: &dyn Fn(&Entry) -> Option<&'a [u8]>,
) -> Result<Packed, String> {
    let found = companions(packing, stem, words, tensors, bytes)?;
    let [outputs, inputs] = found.shape;
    let groups = packing.group.map_or(1, |group| inputs.div_ceil(group));
    if outputs == 0 || inputs == 0 {
        return Err("it is empty".to_owned());
    }
    check_companions(packing, stem, &found, groups)?;
    let order = match found.order {
        Some(entry) if is_ordered(stem, entry, bytes, inputs, groups)? => Some(entry.clone()),
        _ => None,
    };
    let (scales, zeros, shape) = (found.scales.clone(), found.zeros.cloned(), found.shape);
    Ok(Packed { packing, words: words.clone(), scales, zeros, order, shape, groups })
}

/// Whether a tensor has this type, which is not a float type.
fn is(entry: &Entry, kind: &str) -> bool {
    entry.encoding.as_ref().err().is_some_and(|have| have == kind)
}

fn companions<'p, 'a>(
    packing: Packing,
    stem: &str,
    words: &Entry,
    tensors: &'p BTreeMap<String, Entry>,
    bytes: &dyn Fn(&Entry) -> Option<&'a [u8]>,
) -> Result<Companions<'p>, String> {
    let part = |name: &str| tensors.get(&format!("{stem}.{name}"));
    let needed = |name: &str| part(name).ok_or_else(|| format!("{stem}.{name} is missing"));
    let [rows, columns] = words.shape[..] else { return Err(format!("shape {:?} is no matrix's", words.shape)) };
    if !is(words, "I32") {
        return Err("it is not made of 32-bit words".to_owned());
    }
    let count = packing.count();
    let times = |size: usize| size.checked_mul(count).ok_or_else(|| "too large".to_owned());
    let (scales, zeros, order, shape) = match packing.layout {
        Layout::Gptq { .. } => (needed("scales")?, Some(needed("qzeros")?), part("g_idx"), [columns, times(rows)?]),
        Layout::Awq => (needed("scales")?, Some(needed("qzeros")?), None, [times(columns)?, rows]),
        Layout::Tensors => {
            let stated = needed("weight_shape")?;
            let stated = bytes(stated).filter(|bytes| is(stated, "I64") && bytes.len() == 16);
            let stated = stated.ok_or_else(|| format!("{stem}.weight_shape is not two numbers"))?;
            let number = |at: usize| stated[at..at + 8].try_into().ok().map(u64::from_le_bytes);
            let size = |at: usize| number(at).and_then(|size| usize::try_from(size).ok()).unwrap_or(0);
            let shape = [size(0), size(8)];
            if shape[0] != rows || shape[1].div_ceil(count) != columns {
                return Err(format!("{columns} words for each of {rows} outputs do not hold {shape:?}"));
            }
            (needed("weight_scale")?, part("weight_zero_point"), part("weight_g_idx"), shape)
        }
    };
    Ok(Companions { scales, zeros, order, shape })
}

/// Checks that scales and zero points match the matrix, and that none is missing.
fn check_companions(packing: Packing, stem: &str, found: &Companions<'_>, groups: usize) -> Result<(), String> {
    let Companions { scales, zeros, order, shape: [outputs, _] } = *found;
    let expect = |name: &str, entry: &Entry, wanted: [usize; 2]| match entry.shape[..] == wanted {
        true => Ok(()),
        false => Err(format!("{stem}.{name} has shape {:?}, {wanted:?} goes with it", entry.shape)),
    };
    let by_output = packing.layout == Layout::Tensors;
    expect("scales", scales, if by_output { [outputs, groups] } else { [groups, outputs] })?;
    if !matches!(scales.encoding, Ok(Encoding::F16 | Encoding::BF16 | Encoding::F32)) {
        return Err("its scales are no floats".to_owned());
    }
    if let Some(zeros) = zeros {
        let packed = outputs.div_ceil(packing.count());
        if by_output && is(zeros, "I8") {
            expect("zero points", zeros, [outputs, groups])?;
        } else if is(zeros, "I32") {
            expect("zero points", zeros, if by_output { [packed, groups] } else { [groups, packed] })?;
        } else {
            return Err("its zero points are no integers".to_owned());
        }
    }
    if packing.shuffled && order.is_none() {
        return Err(format!("{stem}.g_idx is missing, and the inputs are in an order of their own (`desc_act`)"));
    }
    if packing.shifted && zeros.is_none() {
        return Err(format!(
            "{stem}.weight_zero_point is missing, and the integers have zero points (`symmetric: false`)"
        ));
    }
    Ok(())
}

/// Whether groups are not consecutive; an error if a group index is not below `groups`.
fn is_ordered<'a>(
    stem: &str,
    entry: &Entry,
    bytes: &dyn Fn(&Entry) -> Option<&'a [u8]>,
    inputs: usize,
    groups: usize,
) -> Result<bool, String> {
    let known = bytes(entry).filter(|_| is(entry, "I32") && entry.shape == [inputs]);
    let known = known.ok_or_else(|| format!("{stem}'s order of groups is not {inputs} numbers"))?;
    let group = |bytes: &[u8]| i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let mut list = known.chunks_exact(4).map(group);
    let inside = |group: i32| usize::try_from(group).is_ok_and(|group| group < groups);
    // compressed-tensors writes -1 where there is no order.
    if list.clone().all(|group| group == -1) {
        return Ok(false);
    }
    match list.find(|group| !inside(*group)) {
        Some(bad) => Err(format!("an input is in group {bad} of {groups}")),
        None => Ok(true),
    }
}

/// A packed matrix in mapped files.
#[derive(Debug, Clone, Copy)]
pub(super) struct PackedView<'a> {
    packed: &'a Packed,
    words: &'a [u8],
    scales: &'a [u8],
    zeros: Option<&'a [u8]>,
    order: Option<&'a [u8]>,
}

/// Outputs decoded together, so that neighbouring words are read together.
const BLOCK: usize = 16;

impl Packed {
    pub(super) fn encoding(&self) -> Encoding {
        if self.packing.bits == 4 { Encoding::INT4 } else { Encoding::INT8 }
    }

    /// Location of the words.
    pub(super) fn words(&self) -> &Entry {
        &self.words
    }

    /// A view with the bytes of each tensor; `None` if one is shorter than its shape.
    pub(super) fn view<'a>(&'a self, bytes: &dyn Fn(&Entry) -> Option<&'a [u8]>) -> Option<PackedView<'a>> {
        let sized = |entry: &Entry, size: usize| {
            let elements = crate::tensor::element_count(&entry.shape)?;
            bytes(entry).filter(|bytes| elements.checked_mul(size) == Some(bytes.len()))
        };
        let scale = match self.scales.encoding {
            Ok(Encoding::F32) => 4,
            _ => 2,
        };
        let zero = |entry: &Entry| if plain_zeros(entry) { 1 } else { 4 };
        Some(PackedView {
            packed: self,
            words: sized(&self.words, 4)?,
            scales: sized(&self.scales, scale)?,
            zeros: self.zeros.as_ref().map(|zeros| sized(zeros, zero(zeros))).map_or(Some(None), |z| z.map(Some))?,
            order: self.order.as_ref().map(|order| sized(order, 4)).map_or(Some(None), |o| o.map(Some))?,
        })
    }
}

/// Whether zero points are bytes instead of packed.
fn plain_zeros(entry: &Entry) -> bool {
    entry.encoding.as_ref().err().is_some_and(|kind| kind == "I8")
}

/// An integer of up to eight bits as float.
fn small(value: u32) -> f32 {
    f32::from(u16::try_from(value).unwrap_or(u16::MAX))
}

impl<'a> PackedView<'a> {
    /// Locations of its tensors.
    pub(super) fn entries(&self) -> impl Iterator<Item = &'a Entry> + use<'a> {
        let Packed { words, scales, zeros, order, .. } = self.packed;
        [words, scales].into_iter().chain(zeros).chain(order)
    }
}

impl PackedView<'_> {
    fn scale(&self, index: usize) -> f32 {
        let two = |at: usize| [self.scales[at], self.scales[at + 1]];
        match self.packed.scales.encoding {
            Ok(Encoding::F32) => f32::from_bits(word(self.scales, index)),
            Ok(Encoding::BF16) => bf16::from_le_bytes(two(2 * index)).to_f32(),
            _ => f16::from_le_bytes(two(2 * index)).to_f32(),
        }
    }

    /// The zero point of an output's group, in the numbers of the words.
    fn zero(&self, output: usize, group: usize) -> f32 {
        let Packed { packing, groups, shape: [outputs, _], .. } = *self.packed;
        let Packing { layout, bits, .. } = packing;
        let half = 1 << (bits - 1);
        let Some(zeros) = self.zeros else { return small(half) };
        match layout {
            Layout::Gptq { raise } => {
                let grid = WordGrid::along_rows([groups, outputs], bits);
                small(grid.read(zeros, [group, output]) + raise)
            }
            Layout::Awq => small(WordGrid::awq([groups, outputs]).read(zeros, [group, output])),
            Layout::Tensors if self.packed.zeros.as_ref().is_some_and(plain_zeros) => {
                small(half) + f32::from(i8::from_le_bytes([zeros[output * groups + group]]))
            }
            Layout::Tensors => small(WordGrid::along_columns([outputs, groups], bits).read(zeros, [output, group])),
        }
    }

    /// How the integers lie in their words, and whether as `[outputs, inputs]`: GPTQ and AWQ keep `[inputs, outputs]`.
    fn grid(&self) -> (WordGrid, bool) {
        let Packed { packing, shape: [outputs, inputs], .. } = *self.packed;
        match packing.layout {
            Layout::Gptq { .. } => (WordGrid::along_columns([inputs, outputs], packing.bits), false),
            Layout::Awq => (WordGrid::awq([inputs, outputs]), false),
            Layout::Tensors => (WordGrid::along_rows([outputs, inputs], packing.bits), true),
        }
    }

    pub(super) fn bits(&self) -> u32 {
        self.packed.packing.bits
    }

    /// Number of inputs that share a scale.
    pub(super) fn group(&self) -> usize {
        self.packed.packing.group.unwrap_or(self.packed.shape[1])
    }

    /// The group of each input, if groups are not consecutive.
    pub(super) fn order(&self) -> Option<Vec<usize>> {
        let order = self.order.filter(|_| self.packed.groups > 1)?;
        let inputs = self.packed.shape[1];
        Some((0..inputs).map(|input| usize::try_from(word(order, input)).unwrap_or(0)).collect())
    }

    /// Scale and zero point of a group of an output's inputs.
    pub(super) fn terms(&self, output: usize, group: usize) -> (f32, f32) {
        let Packed { packing, groups, shape: [outputs, _], .. } = *self.packed;
        let by_output = packing.layout == Layout::Tensors;
        let index = if by_output { output * groups + group } else { group * outputs + output };
        (self.scale(index), self.zero(output, group))
    }

    /// Decodes rows `first..` to float32 into `out`, as many as fit, on all cores.
    pub(super) fn read(&self, first: usize, out: &mut [f32]) {
        let [_, inputs] = self.packed.shape;
        out.par_chunks_mut(inputs * BLOCK).enumerate().for_each(|(block, out)| self.block(first + block * BLOCK, out));
    }

    /// Decodes a few neighbouring rows.
    fn block(&self, first: usize, out: &mut [f32]) {
        let Packed { packing, groups, shape: [_, inputs], .. } = *self.packed;
        let rows = out.len() / inputs;
        let mut terms = Vec::with_capacity(groups * rows);
        for group in 0..groups {
            terms.extend((first..first + rows).map(|output| self.terms(output, group)));
        }
        self.each(first, rows, |row, input, q| {
            let own = match (self.order, packing.group) {
                (Some(order), _) => usize::try_from(word(order, input)).unwrap_or(0),
                (None, Some(size)) => input / size,
                (None, None) => 0,
            };
            let (scale, zero) = terms[own * rows + row];
            out[row * inputs + input] = (small(q) - zero) * scale;
        });
    }

    /// Reads the integers of rows `first..` into `out`, as many rows as fit.
    pub(super) fn integers(&self, first: usize, out: &mut [u8]) {
        let [_, inputs] = self.packed.shape;
        let rows = out.len() / inputs;
        self.each(first, rows, |row, input, q| out[row * inputs + input] = u8::try_from(q).unwrap_or(u8::MAX));
    }

    /// Calls `with` for (row from 0, input, integer) of `rows` rows from `first`, grouped by input.
    #[inline(always)]
    fn each(&self, first: usize, rows: usize, mut with: impl FnMut(usize, usize, u32)) {
        let ([_, inputs], bits) = (self.packed.shape, self.bits());
        let (grid, by_output) = self.grid();
        let place = |at: usize, is_row: bool| if is_row { grid.row(at) } else { grid.column(at) };
        let outputs: Vec<WordPlace> = (first..first + rows).map(|output| place(output, by_output)).collect();
        for input in 0..inputs {
            let of_input = place(input, !by_output);
            for (row, of_output) in outputs.iter().enumerate() {
                with(row, input, (of_input + *of_output).read(self.words, bits));
            }
        }
    }
}
