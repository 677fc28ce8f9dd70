//! Rotary position embeddings (Su et al. 2021) and their scaling for longer contexts: frequencies, and a factor of
//! cosine and sine. Angles are float32 products as in `transformers`, so that large positions are rounded alike.

use std::f64::consts::PI;

use super::config::Config;
use crate::checkpoint::CheckpointError;

/// Rotary frequencies of one kind of layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Radians per position, one for each pair of rotary dimensions.
    pub frequencies: Vec<f32>,
    /// Factor of cosine and sine.
    pub factor: f32,
}

impl Rope {
    /// Number of rotated dimensions of a head.
    pub fn dimension(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Cosines and sines of a range of positions, `[positions, dimension()]` each.
    pub fn tables(&self, positions: std::ops::Range<usize>) -> (Vec<f32>, Vec<f32>) {
        let d = self.dimension();
        let (mut cos, mut sin) = (vec![0.0; positions.len() * d], vec![0.0; positions.len() * d]);
        for ((cos, sin), position) in cos.chunks_exact_mut(d).zip(sin.chunks_exact_mut(d)).zip(positions) {
            self.table(position, cos, sin);
        }
        (cos, sin)
    }

    /// Writes cosine and sine of `position`, each value twice (pairs are i and i + d/2). `cos` and `sin` have length
    /// `dimension()`.
    fn table(&self, position: usize, cos: &mut [f32], sin: &mut [f32]) {
        let half = self.frequencies.len();
        for (index, frequency) in self.frequencies.iter().enumerate() {
            let angle = f64::from(position as f32 * frequency);
            let (s, c) = angle.sin_cos();
            let factor = f64::from(self.factor);
            (cos[index], sin[index]) = ((c * factor) as f32, (s * factor) as f32);
            (cos[index + half], sin[index + half]) = (cos[index], sin[index]);
        }
    }
}

/// Parameters of the frequencies besides the scaling's own fields.
pub(super) struct Base {
    pub(super) theta: f64,
    pub(super) dimension: usize,
    /// Longest sequence of the model, `max_position_embeddings`.
    pub(super) max_position: usize,
    /// Longest sequence in tokens that the model will be used for.
    pub(super) length: usize,
}

fn plain(theta: f64, dimension: usize) -> Vec<f64> {
    // float32 steps, as torch computes 1 / base ** (arange(0, d, 2) / d).
    let exponent = |index: usize| (2 * index) as f32 / dimension as f32;
    (0..dimension / 2).map(|index| f64::from(1.0 / (theta as f32).powf(exponent(index)))).collect()
}

/// Kind of the scaling. Phi-3's first configurations call LongRoPE "su" or "yarn" (`configuration_phi3.py`).
pub(super) fn kind_of<'a>(scaling: &Config<'a>) -> &'a str {
    let (kind, old) = (scaling.text("rope_type"), scaling.text("type"));
    match kind.or(old).unwrap_or("default") {
        "su" => "longrope",
        "yarn" if scaling.get("long_factor").is_some() => "longrope",
        kind => kind,
    }
}

/// The length before scaling: a field beside the scaling takes precedence over one in it, as in transformers 5
/// (`modeling_rope_utils.py`, `standardize_rope_params`).
pub(super) fn original_length(config: &Config, scaling: &Config) -> Result<Option<usize>, CheckpointError> {
    let field = "original_max_position_embeddings";
    let within = scaling.optional_size(field)?;
    Ok(config.optional_size(field)?.or(within))
}

/// Computes the frequencies. `scaling` is `rope_scaling` or `rope_parameters`, and `outer` the configuration around it.
pub(super) fn rope(outer: &Config, scaling: Option<Config>, base: &Base) -> Result<Rope, CheckpointError> {
    let frequencies = plain(base.theta, base.dimension);
    let kind = scaling.as_ref().map_or("default", kind_of);
    let Some(scaling) = scaling.filter(|_| kind != "default") else { return Ok(narrow(frequencies, 1.0)) };
    let original = original_length(outer, &scaling)?;
    match kind {
        "linear" => {
            let factor = scaling.positive("factor")?;
            Ok(narrow(frequencies.iter().map(|f| f / factor).collect(), 1.0))
        }
        "dynamic" => {
            // bloc97's NTK-aware base change, for the longest sequence instead of the present one.
            let factor = scaling.positive("factor")?;
            let ratio = base.length.max(base.max_position) as f64 / base.max_position as f64;
            let d = base.dimension as f64;
            let theta = base.theta * ((factor * ratio) - (factor - 1.0)).powf(d / (d - 2.0));
            Ok(narrow(plain(theta, base.dimension), 1.0))
        }
        "llama3" => {
            let original = original.ok_or_else(|| missing(outer))?;
            llama3(&scaling, &frequencies, original)
        }
        "yarn" => yarn(&scaling, base, &frequencies, original.unwrap_or(base.max_position)),
        "longrope" => {
            let original = original.ok_or_else(|| missing(outer))?;
            longrope(&scaling, base, &frequencies, original)
        }
        // From a GGUF: Llama 3's scaling, computed by its converter.
        "factors" => {
            // What its converter computed them from.
            scaling.pass("factor");
            let factors = factors(&scaling, "factors", frequencies.len())?;
            Ok(narrow(frequencies.iter().zip(factors).map(|(f, factor)| f / factor).collect(), 1.0))
        }
        other => Err(outer
            .error(format!("rotary scaling `{other}` is not supported"))
            .with_help("these are: linear, dynamic, llama3, yarn, longrope")),
    }
}

fn narrow(frequencies: Vec<f64>, factor: f64) -> Rope {
    Rope { frequencies: frequencies.into_iter().map(|f| f as f32).collect(), factor: factor as f32 }
}

fn missing(outer: &Config) -> CheckpointError {
    outer.error("`original_max_position_embeddings` is missing, which the rotary scaling needs")
}

fn factors(scaling: &Config, field: &str, count: usize) -> Result<Vec<f64>, CheckpointError> {
    let factors = scaling.numbers(field).filter(|f| f.len() == count && f.iter().all(|f| (*f as f32) > 0.0));
    factors.ok_or_else(|| scaling.error(format!("`{field}` must have {count} numbers above 0")))
}

/// Llama 3.1's scaling: low frequencies are divided, high ones kept, those between interpolated
/// (`modeling_rope_utils.py`).
fn llama3(scaling: &Config, frequencies: &[f64], original: usize) -> Result<Rope, CheckpointError> {
    let (factor, low, high) =
        (scaling.positive("factor")?, scaling.positive("low_freq_factor")?, scaling.positive("high_freq_factor")?);
    if high <= low {
        return Err(scaling.error(format!("`high_freq_factor` is {high}; it must be above `low_freq_factor`, {low}")));
    }
    let original = original as f64;
    let scaled = frequencies.iter().map(|frequency| {
        let wavelength = 2.0 * PI / frequency;
        if wavelength < original / high {
            *frequency
        } else if wavelength > original / low {
            frequency / factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            (1.0 - smooth) * frequency / factor + smooth * frequency
        }
    });
    Ok(narrow(scaled.collect(), 1.0))
}

/// YaRN (Peng et al. 2023, section 3): a ramp between interpolated and kept frequencies, and a temperature.
fn yarn(scaling: &Config, base: &Base, frequencies: &[f64], original: usize) -> Result<Rope, CheckpointError> {
    let factor = scaling.optional_positive("factor")?.unwrap_or(base.max_position as f64 / original as f64);
    let (fast, slow) = (
        scaling.optional_positive("beta_fast")?.unwrap_or(32.0),
        scaling.optional_positive("beta_slow")?.unwrap_or(1.0),
    );
    let d = base.dimension as f64;
    let correction = |rotations: f64| d * (original as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * base.theta.ln());
    let (mut low, mut high) = (correction(fast), correction(slow));
    if scaling.get("truncate").and_then(serde_json::Value::as_bool).unwrap_or(true) {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, mut high) = (low.max(0.0), high.min(d - 1.0));
    if low == high {
        high += 0.001;
    }
    let scaled = frequencies.iter().enumerate().map(|(index, frequency)| {
        let kept = 1.0 - ((index as f64 - low) / (high - low)).clamp(0.0, 1.0);
        frequency / factor * (1.0 - kept) + frequency * kept
    });
    let temperature = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    // Zero counts as absent.
    let scale = |field: &str| -> Result<Option<f64>, CheckpointError> {
        Ok(scaling.optional_not_negative(field)?.filter(|scale| *scale > 0.0))
    };
    let (one, all) = (scale("mscale")?, scale("mscale_all_dim")?);
    let attention = match (scaling.optional_positive("attention_factor")?, one, all) {
        (Some(given), ..) => given,
        (None, Some(one), Some(all)) => temperature(one) / temperature(all),
        _ => temperature(1.0),
    };
    Ok(narrow(scaled.collect(), attention))
}

/// LongRoPE (Ding et al. 2024): one list of factors for models used up to their original length, one beyond.
///
/// `transformers` switches lists when a sequence crosses the border, which invalidates its cache; here the longest
/// sequence the engine is built for decides, for all.
fn longrope(scaling: &Config, base: &Base, frequencies: &[f64], original: usize) -> Result<Rope, CheckpointError> {
    let (long, short) = ("long_factor", "short_factor");
    let (list, other) = if base.length > original { (long, short) } else { (short, long) };
    scaling.pass(other);
    let factors = factors(scaling, list, frequencies.len())?;
    let stretch = base.max_position as f64 / original as f64;
    let stretch = scaling.optional_positive("factor")?.unwrap_or(stretch);
    let default = if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / (original as f64).ln()).sqrt() };
    let attention = scaling.optional_positive("attention_factor")?.unwrap_or(default);
    Ok(narrow(frequencies.iter().zip(factors).map(|(f, factor)| f / factor).collect(), attention))
}
