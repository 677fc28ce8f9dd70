//! Converts preprocessor_config.json to a [`Preprocess`].
//!
//! Implements the processors of ViT, DeiT, BEiT, Swin, ConvNeXt and ResNet (`transformers`, `image_processing_*.py`):
//! resize, centre crop, rescale, normalise. Older files have sizes as numbers and processors in
//! `feature_extractor_type`.

use serde_json::Value;

use super::Read;
use crate::convert::Config;
use crate::vision::{Color, Preprocess, Resample, Resize};

/// Size from which ConvNeXt's and ResNet's processor resizes both sides to the input size; below it crops.
const WARP_FROM: u32 = 384;

/// A size: one number, or a dict of height and width, or of the shortest edge.
enum ProcessorSize {
    Both([u32; 2]),
    ShortestEdge(u32),
}

/// A boolean field of the processor.
fn switch(config: &Config<'_>, field: &str, default: bool) -> bool {
    config.get(field).and_then(Value::as_bool).unwrap_or(default)
}

/// Mean and divisor of each channel, for bytes.
fn normalisation(config: &Config<'_>) -> Read<([f32; 3], [f32; 3])> {
    let scale = if switch(config, "do_rescale", true) {
        config.optional_positive("rescale_factor")?.unwrap_or(1.0 / 255.0)
    } else {
        1.0
    };
    let three = |field: &str, default: f64| -> Read<[f64; 3]> {
        let values = config.numbers(field).unwrap_or(vec![default; 3]);
        values.try_into().map_err(|_| config.error(format!("`{field}` has not three numbers")))
    };
    let (mean, std) = if switch(config, "do_normalize", true) {
        (three("image_mean", 0.5)?, three("image_std", 0.5)?)
    } else {
        ([0.0; 3], [1.0; 3])
    };
    // (byte · scale - mean) / std = (byte - mean / scale) / (std / scale)
    let bytes = |values: [f64; 3]| values.map(|value| (value / scale) as f32);
    if bytes(mean).iter().any(|mean| !mean.is_finite()) || bytes(std).iter().any(|std| !std.is_finite() || *std == 0.0)
    {
        return Err(config.error("`image_mean` and `image_std` must be finite, and `image_std` not 0"));
    }
    Ok((bytes(mean), bytes(std)))
}

/// Reads the preprocessing. `trained` is the model's own size, for files without one.
pub fn preprocess(config: &Config<'_>, trained: Option<[u32; 2]>) -> Read<Preprocess> {
    let kind = config.text("image_processor_type").or(config.text("feature_extractor_type")).unwrap_or("");
    let known = ["ViT", "DeiT", "Deit", "Beit", "ConvNext", "ConvNeXT", "Bit"];
    if !kind.is_empty() && !known.iter().any(|name| kind.starts_with(name)) {
        return Err(config
            .error(format!("image processor `{kind}` is not supported"))
            .with_help("say `preprocess:` in the recipe"));
    }
    let convnext = kind.starts_with("ConvNe");
    let size = size(config, "size")?;
    let (mut resize, mut target) = match (switch(config, "do_resize", true), size) {
        (false, _) => (None, trained),
        (true, Some(ProcessorSize::Both(size))) => (Some(Resize::Both(size)), Some(size)),
        (true, Some(ProcessorSize::ShortestEdge(edge))) if convnext && edge >= WARP_FROM => {
            (Some(Resize::Both([edge; 2])), Some([edge; 2]))
        }
        (true, Some(ProcessorSize::ShortestEdge(edge))) if convnext => {
            let share = config.optional_positive("crop_pct")?.unwrap_or(224.0 / 256.0);
            if !(0.01..=1.0).contains(&share) {
                return Err(config.error(format!("`crop_pct` is {share}; it must be from 0.01 to 1")));
            }
            (Some(Resize::ShortestEdge((f64::from(edge) / share) as u32)), Some([edge; 2]))
        }
        (true, Some(ProcessorSize::ShortestEdge(edge))) => (Some(Resize::ShortestEdge(edge)), None),
        (true, None) => (trained.map(Resize::Both), trained),
    };
    if switch(config, "do_center_crop", false)
        && let Some(crop) = crop_size(config)?
    {
        target = Some(crop);
    }
    let target = target.or(trained);
    // Nothing is cut off: the plain form says the same.
    if matches!((resize, target), (Some(Resize::Both(size)), Some(target)) if size == target) {
        resize = None;
    }
    let resample = match config.get("resample").and_then(Value::as_i64).unwrap_or(2) {
        0 => Resample::Nearest,
        1 => Resample::Lanczos,
        2 => Resample::Bilinear,
        3 => Resample::Bicubic,
        other => return Err(config.error(format!("`resample: {other}` is not supported"))),
    };
    let (mean, std) = normalisation(config)?;
    Ok(Preprocess { size: target, fit: None, resize, resample: Some(resample), color: Some(Color::Rgb), mean, std })
}

fn size(config: &Config<'_>, field: &str) -> Read<Option<ProcessorSize>> {
    let Some(value) = config.get(field) else { return Ok(None) };
    let wrong = || config.error(format!("`{field}` is {value}, which is no size"));
    let whole = |value: &Value| {
        value.as_u64().and_then(|size| u32::try_from(size).ok()).filter(|size| (1..16_384).contains(size))
    };
    if let Some(edge) = value.get("shortest_edge") {
        return Ok(Some(ProcessorSize::ShortestEdge(whole(edge).ok_or_else(wrong)?)));
    }
    if let (Some(height), Some(width)) = (value.get("height"), value.get("width")) {
        return Ok(Some(ProcessorSize::Both([whole(height).ok_or_else(wrong)?, whole(width).ok_or_else(wrong)?])));
    }
    let side = whole(value).ok_or_else(wrong)?;
    let kind = config.text("feature_extractor_type").or(config.text("image_processor_type")).unwrap_or("");
    // ConvNeXt's and BiT's old files mean the shortest edge by a number, the others both sides.
    let edge = kind.starts_with("ConvNe") || kind.starts_with("Bit");
    Ok(Some(if edge { ProcessorSize::ShortestEdge(side) } else { ProcessorSize::Both([side; 2]) }))
}

fn crop_size(config: &Config<'_>) -> Read<Option<[u32; 2]>> {
    Ok(size(config, "crop_size")?.map(|size| match size {
        ProcessorSize::Both(size) => size,
        ProcessorSize::ShortestEdge(edge) => [edge; 2],
    }))
}
