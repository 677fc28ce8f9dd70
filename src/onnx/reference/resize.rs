//! Resize. rten substitutes linear for cubic, multiplies by reciprocals where the last bit decides a nearest pixel, and
//! only resizes the last two axes. Since resizing is separable, what rten does not do becomes a matrix (or a list of
//! indices) per axis, if sizes are known.

pub(in crate::onnx) mod nearest;

use onnx_protobuf::NodeProto;

use super::{Done, Rewritten};
use crate::onnx::attributes::{Attributes, input};
use crate::onnx::editor::{Editor, output, wanted};
use crate::onnx::facts::{Facts, Values, elem, layout::resolve};
use crate::onnx::graph::Attribute;

/// Largest size of an axis whose pixels are computed individually.
const SIZE_LIMIT: i64 = 1 << 16;
/// Most elements of the matrix of an axis.
const MATRIX_LIMIT: i64 = 1 << 24;

pub(super) fn resize(edit: &mut Editor<'_>, node: &mut NodeProto) -> Rewritten {
    if edit.facts().opset() < 11 {
        // Resize-10 is Upsample-9 that may also make smaller.
        "Upsample".clone_into(&mut node.op_type);
        return Ok(Done::Changed);
    }
    let (x, y) = (wanted(node, 0)?, output(node, 0)?);
    let how = How::of(node)?;
    let axes = match how.axes(node, edit.facts()) {
        Ok(axes) => axes,
        Err(_) if how.right_at_any_size(node, edit.facts()) => return Ok(Done::Kept),
        Err(reason) => return Err(reason),
    };
    let fact = edit.facts().get(&x);
    let rank = fact.rank().ok_or("the rank of what it resizes is not known")?;
    let float = fact.elem.is_none_or(elem::is_float);
    let linear = how.mode == Mode::Linear;
    if let Some(axis) = axes.iter().find(|axis| axis.to > SIZE_LIMIT && !(linear && how.plain)) {
        return Err(format!("a size of {} is not computed, {SIZE_LIMIT} is the limit", axis.to));
    }
    let usual = rank <= 4 && axes.iter().all(|axis| axis.at + 2 >= rank);
    if usual && float && how.plain && axes.iter().all(|axis| how.agrees(axis)) {
        return Ok(Done::Kept);
    }
    let mut made = x;
    for axis in &axes {
        if axis.to > SIZE_LIMIT {
            return Err(format!("a size of {} along its axis {} is not computed", axis.to, axis.at));
        }
        let coordinates: Vec<f32> = (0..axis.to).map(|place| how.coordinate(place, axis)).collect();
        made = match (how.mode, how.transformation) {
            (Mode::Nearest(rounding), kind) if kind != Transformation::Crop => {
                let places: Vec<i64> = coordinates.iter().map(|at| rounding.place(*at, axis.from)).collect();
                let places = edit.ints(&places);
                edit.op("Gather", &[&made, &places], &[("axis", index(axis.at)?.into())])
            }
            _ if float && axis.to.checked_mul(axis.from).is_some_and(|count| count <= MATRIX_LIMIT) => {
                let rows: Vec<Vec<f32>> = coordinates.iter().map(|at| how.row(*at, axis)).collect();
                multiplied(edit, &made, axis.at, rank, &rows)?
            }
            _ => return Err(format!("from {} to {} elements of its type are not computed", axis.from, axis.to)),
        };
    }
    edit.make("Identity", &[&made], &[&y], &[]);
    Ok(Done::Replaced)
}

fn index(at: usize) -> Result<i64, String> {
    i64::try_from(at).map_err(|_| "its rank is too large".to_owned())
}

/// Multiplies each lane along an axis by rows of weights.
fn multiplied(edit: &mut Editor<'_>, x: &str, at: usize, rank: usize, rows: &[Vec<f32>]) -> Result<String, String> {
    let (to, from) = (rows.len(), rows.first().map_or(0, Vec::len));
    if at + 2 == rank {
        let weights = edit.floats(vec![to, from], &rows.concat());
        return Ok(edit.op("MatMul", &[&weights, x], &[]));
    }
    let columns: Vec<f32> =
        (0..from).flat_map(|column| rows.iter().filter_map(move |row| row.get(column).copied())).collect();
    let weights = edit.floats(vec![from, to], &columns);
    if at + 1 == rank {
        return Ok(edit.op("MatMul", &[x, &weights], &[]));
    }
    let order: Vec<usize> = (0..rank).filter(|axis| *axis != at).chain([at]).collect();
    let back: Vec<usize> = (0..rank).filter_map(|axis| order.iter().position(|other| *other == axis)).collect();
    let perm = |order: &[usize]| -> Result<Vec<i64>, String> { order.iter().map(|axis| index(*axis)).collect() };
    let (order, back) = (perm(&order)?, perm(&back)?);
    let last = edit.op("Transpose", &[x], &[("perm", Attribute::Ints(order))]);
    let made = edit.op("MatMul", &[&last, &weights], &[]);
    Ok(edit.op("Transpose", &[&made], &[("perm", Attribute::Ints(back))]))
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Rounding {
    PreferFloor,
    PreferCeil,
    Floor,
    Ceil,
}

impl Rounding {
    fn place(self, at: f32, size: i64) -> i64 {
        let rounded = match self {
            Rounding::PreferFloor => (at - 0.5).ceil(),
            Rounding::PreferCeil => (at + 0.5).floor(),
            Rounding::Floor => at.floor(),
            Rounding::Ceil => at.ceil(),
        };
        (rounded as i64).clamp(0, size - 1)
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Nearest(Rounding),
    Linear,
    /// Cubic interpolation with the coefficient `cubic_coeff_a`.
    Cubic(f32),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Transformation {
    HalfPixel,
    Symmetric,
    PytorchHalfPixel,
    AlignCorners,
    Asymmetric,
    Crop,
}

/// An axis that is resized.
#[derive(Debug, Clone, Copy)]
struct Axis {
    at: usize,
    from: i64,
    to: i64,
    /// Scale as given, or `to / from`.
    scale: f32,
    /// `from · scale`, which may be fractional.
    length: f32,
    /// rten's reciprocal of the scale.
    inverse: f32,
    /// Region of interest, of `Crop`.
    roi: (f32, f32),
}

/// The attributes of a Resize.
struct How {
    mode: Mode,
    transformation: Transformation,
    exclude_outside: bool,
    /// Whether rten supports these attributes.
    plain: bool,
}

impl How {
    fn of(node: &NodeProto) -> Result<Self, String> {
        let rounding = match node.text("nearest_mode").unwrap_or("round_prefer_floor") {
            "round_prefer_floor" => Rounding::PreferFloor,
            "round_prefer_ceil" => Rounding::PreferCeil,
            "floor" => Rounding::Floor,
            "ceil" => Rounding::Ceil,
            other => return Err(format!("its nearest_mode {other} is not computed")),
        };
        let mode = match node.text("mode").unwrap_or("nearest") {
            "nearest" => Mode::Nearest(rounding),
            "linear" => Mode::Linear,
            "cubic" => Mode::Cubic(node.float("cubic_coeff_a", -0.75)),
            other => return Err(format!("its mode {other} is not computed")),
        };
        let transformation = match node.text("coordinate_transformation_mode").unwrap_or("half_pixel") {
            "half_pixel" => Transformation::HalfPixel,
            "half_pixel_symmetric" => Transformation::Symmetric,
            "pytorch_half_pixel" => Transformation::PytorchHalfPixel,
            "align_corners" => Transformation::AlignCorners,
            "asymmetric" => Transformation::Asymmetric,
            "tf_crop_and_resize" if node.float("extrapolation_value", 0.0) == 0.0 => Transformation::Crop,
            other => return Err(format!("its coordinate_transformation_mode {other} is not computed")),
        };
        if node.int("antialias", 0) != 0 && !matches!(mode, Mode::Nearest(_)) {
            return Err("antialias is not computed".to_owned());
        }
        let exclude_outside = node.int("exclude_outside", 0) != 0;
        let plain = !matches!(mode, Mode::Cubic(_))
            && !matches!(transformation, Transformation::Symmetric | Transformation::Crop)
            && !exclude_outside
            && node.int("antialias", 0) == 0
            && node.get("axes").is_none()
            && node.text("keep_aspect_ratio_policy").unwrap_or("stretch") == "stretch"
            && node.float("extrapolation_value", 0.0) == 0.0
            && node.float("cubic_coeff_a", -0.75) == -0.75;
        Ok(Self { mode, transformation, exclude_outside, plain })
    }

    /// The axes whose size changes, if sizes are known.
    fn axes(&self, node: &NodeProto, facts: &Facts<'_>) -> Result<Vec<Axis>, String> {
        let x = facts.input(node, 0);
        let rank = x.rank().ok_or("the rank of what it resizes is not known")?;
        let listed = match node.ints("axes") {
            Some(axes) => axes.iter().map(|axis| resolve(*axis, rank)).collect::<Option<Vec<usize>>>(),
            None => Some((0..rank).collect()),
        };
        let listed = listed.ok_or("its axes are none of its input")?;
        let unknown = || "the size before or after is not known".to_owned();
        let targets = targets(node, facts, &listed).ok_or_else(unknown)?;
        let roi = facts.input(node, 1).floats().unwrap_or_default();
        let mut axes = Vec::new();
        for (place, (at, (to, scale))) in listed.iter().zip(targets).enumerate() {
            let part = match (self.transformation, roi.get(place), roi.get(place + listed.len())) {
                (Transformation::Crop, Some(start), Some(end)) => (*start, *end),
                (Transformation::Crop, _, _) => return Err("its roi is not known".to_owned()),
                _ => (0.0, 1.0),
            };
            // A batch of any size stays as it is.
            let from = match (x.dim(*at), to, scale) {
                (Some(from), _, _) => from,
                (None, None, None) if *at < 2 && self.plain => continue,
                (None, _, Some(1.0)) => continue,
                _ => return Err(unknown()),
            };
            let to = match (to, scale) {
                (Some(to), _) => to,
                (None, Some(scale)) => (from as f32 * scale).floor() as i64,
                _ => return Err(unknown()),
            };
            if from < 1 || to < 1 {
                return Err("it resizes nothing, or to nothing".to_owned());
            }
            let (given, ratio) = (scale.is_some(), to as f32 / from as f32);
            let scale = scale.unwrap_or(ratio);
            let length = if given { from as f32 * scale } else { to as f32 };
            if self.transformation == Transformation::AlignCorners && length.fract() != 0.0 {
                return Err("align_corners with scales that give no whole size: runtimes differ".to_owned());
            }
            let inverse = if given { 1.0 / scale } else { from as f32 / to as f32 };
            if to != from || scale != 1.0 || self.transformation == Transformation::Crop {
                axes.push(Axis { at: *at, from, to, scale, length, inverse, roi: part });
            }
        }
        Ok(axes)
    }

    /// Whether rten is correct for every size.
    fn right_at_any_size(&self, node: &NodeProto, facts: &Facts<'_>) -> bool {
        let scales = facts.input(node, 2).floats().filter(|scales| !scales.is_empty());
        let all = |holds: fn(f32) -> bool| scales.is_some_and(|scales| scales.iter().copied().all(holds));
        let by_size = input(node, 3).is_some();
        self.plain
            && match (self.mode, self.transformation) {
                // Powers of two have exact reciprocals.
                (Mode::Nearest(_), _) => all(|scale| scale.to_bits() & 0x7f_ffff == 0),
                (_, Transformation::AlignCorners) => by_size || all(|scale| scale.fract() == 0.0),
                _ => true,
            }
    }

    /// Whether rten chooses the same pixels along an axis.
    fn agrees(&self, axis: &Axis) -> bool {
        let Mode::Nearest(rounding) = self.mode else { return true };
        let last = axis.from as f32 - 1.0;
        (0..axis.to).all(|place| {
            let rightly = rounding.place(self.coordinate(place, axis), axis.from);
            // As rten 0.27 has it (ops/resize.rs: input_coord, nearest_resize).
            let at = place as f32;
            let at = match self.transformation {
                Transformation::Asymmetric => axis.inverse * at,
                Transformation::PytorchHalfPixel if axis.to == 1 => 0.0,
                Transformation::AlignCorners if axis.to == 1 => 0.0,
                Transformation::AlignCorners => at * last / (axis.to as f32 - 1.0),
                _ => axis.inverse * (at + 0.5) - 0.5,
            };
            let at = at.clamp(0.0, last);
            let half = at.fract() == 0.5;
            let theirs = match rounding {
                Rounding::Ceil => at.ceil(),
                Rounding::Floor => at.floor(),
                Rounding::PreferCeil if half => at.ceil(),
                Rounding::PreferFloor if half => at.floor(),
                _ => at.round(),
            };
            theirs as i64 == rightly
        })
    }

    /// Coordinate in the input of an index in the output (ONNX, Resize: coordinate_transformation_mode), in float32 as
    /// in onnxruntime.
    fn coordinate(&self, place: i64, axis: &Axis) -> f32 {
        let (at, from, to) = (place as f32, axis.from as f32, axis.to as f32);
        let half = (at + 0.5) / axis.scale - 0.5;
        match self.transformation {
            Transformation::HalfPixel => half,
            Transformation::Symmetric => {
                let center = from / 2.0;
                center * (1.0 - to / axis.length) + half
            }
            Transformation::PytorchHalfPixel if axis.to == 1 => 0.0,
            Transformation::PytorchHalfPixel => half,
            Transformation::AlignCorners if axis.to == 1 => 0.0,
            Transformation::AlignCorners => at * (from - 1.0) / (to - 1.0),
            Transformation::Asymmetric => at / axis.scale,
            Transformation::Crop => {
                let (start, end) = axis.roi;
                match axis.to {
                    1 => 0.5 * (start + end) * (from - 1.0),
                    _ => start * (from - 1.0) + at * (end - start) * (from - 1.0) / (to - 1.0),
                }
            }
        }
    }

    /// Weights of an axis' elements at a coordinate.
    fn row(&self, at: f32, axis: &Axis) -> Vec<f32> {
        let (size, last) = (usize::try_from(axis.from).unwrap_or(1), axis.from - 1);
        let mut row = vec![0.0; size];
        // Outside of what is cropped there is extrapolation_value, 0.
        if self.transformation == Transformation::Crop && !(0.0..=last as f32).contains(&at) {
            return row;
        }
        let (floor, t) = (at.floor(), at - at.floor());
        let taps: Vec<(i64, f32)> = match self.mode {
            Mode::Nearest(rounding) => vec![(rounding.place(at, axis.from), 1.0)],
            Mode::Linear => vec![(floor as i64, 1.0 - t), (floor as i64 + 1, t)],
            Mode::Cubic(a) => {
                cubic(a, t).into_iter().enumerate().map(|(i, w)| (floor as i64 - 1 + i as i64, w)).collect()
            }
        };
        let inside = |place: i64| (0..=last).contains(&place);
        let kept = |place: i64| !self.exclude_outside || inside(place);
        let sum: f32 = taps.iter().filter(|(place, _)| kept(*place)).map(|(_, weight)| weight).sum();
        for (place, weight) in taps.into_iter().filter(|(place, _)| kept(*place)) {
            let place = usize::try_from(place.clamp(0, last)).unwrap_or(0);
            if let Some(slot) = row.get_mut(place) {
                *slot += if self.exclude_outside { weight / sum } else { weight };
            }
        }
        row
    }
}

/// Weights of the four neighbours at a distance `t` after the second (Keys, 1981; `a` is cubic_coeff_a).
fn cubic(a: f32, t: f32) -> [f32; 4] {
    let far = |d: f32| ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a;
    let near = |d: f32| ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0;
    [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]
}

/// Size or scale of each listed axis, whichever is given.
fn targets(node: &NodeProto, facts: &Facts<'_>, listed: &[usize]) -> Option<Vec<(Option<i64>, Option<f32>)>> {
    let scales = facts.input(node, 2).floats().filter(|scales| !scales.is_empty());
    if let Some(scales) = scales {
        return (scales.len() == listed.len()).then(|| scales.iter().map(|scale| (None, Some(*scale))).collect());
    }
    input(node, 3)?;
    let Some(Values::Ints(sizes)) = &facts.input(node, 3).values else { return None };
    (sizes.len() == listed.len()).then_some(())?;
    let policy = node.text("keep_aspect_ratio_policy").unwrap_or("stretch");
    if policy == "stretch" {
        return Some(sizes.iter().map(|size| (*size, None)).collect());
    }
    // The smallest, or largest, of the scales is that of all axes.
    let x = facts.input(node, 0);
    let ratio = |(at, size): (&usize, &Option<i64>)| Some((*size)? as f32 / x.dim(*at)? as f32);
    let ratios: Vec<f32> = listed.iter().zip(sizes).map(ratio).collect::<Option<_>>()?;
    let scale = ratios.into_iter().reduce(if policy == "not_larger" { f32::min } else { f32::max })?;
    let sized = |at: &usize| Some((Some((scale * x.dim(*at)? as f32 + 0.5).floor() as i64), Some(scale)));
    listed.iter().map(sized).collect()
}
