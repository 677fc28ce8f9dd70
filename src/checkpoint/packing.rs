//! Parses `quantization_config`: which package packed the weights, and in what layout. Every field is honoured, known
//! to have no effect on readers of the weights, or refused by name.
//!
//! Fields are those of AutoGPTQ and GPTQModel (`quantization/config.py`), AutoAWQ (`models/_config.py`), compressed-tensors
//! (`quant_config.py`, `quant_args.py`) and AutoRound, which exports to the first two.

mod targets;

use serde_json::{Map, Value};

use super::words::per_word;
use crate::spec::HeadRecord;
use targets::ModuleTarget;

/// Layout of packed words, by package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// GPTQ: words along the inputs. `raise` is added to stored zero points; 1 in version 1.
    Gptq { raise: u32 },
    /// AWQ: words along the outputs.
    Awq,
    /// compressed-tensors: words along the inputs of each output.
    Tensors,
}

/// How a checkpoint's matrices are packed: in one layout, all by one scheme or each by the one whose target fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packings {
    pub(super) layout: Layout,
    /// In the order in which targets count.
    schemes: Vec<(ModuleTarget, Packing)>,
}

/// The packing of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packing {
    pub(super) layout: Layout,
    pub(super) bits: u32,
    /// Number of inputs that share a scale; `None` if all do.
    pub(super) group: Option<usize>,
    /// Whether every matrix has a group index for its inputs.
    pub(super) shuffled: bool,
    /// Whether every matrix has zero points.
    pub(super) shifted: bool,
}

/// Fields that are read here, or implied by the tensors: packed matrices, order of inputs, zero points.
const SAID_BY_TENSORS: &[&str] = &[
    "quant_method",
    "method",
    "bits",
    "group_size",
    "sym",
    "desc_act",
    "static_groups",
    "lm_head",
    "block_name_to_quantize",
    "to_quant_block_names",
    "module_name_preceding_first_block",
    "modules_in_block_to_quantize",
    "modules_to_not_convert",
    "ignore",
    "model_name_or_path",
    "model_file_base_name",
];

/// Fields about how the integers were determined, or how a package runs them.
const MAKING: &[&str] = &[
    "version",
    "meta",
    "quantizer",
    "provider",
    "autoround_version",
    "backend",
    "damp_percent",
    "damp_auto_increment",
    "true_sequential",
    "act_group_aware",
    "hyb_act",
    "mse",
    "gptaq",
    "gptaq_alpha",
    "dataset",
    "tokenizer",
    "batch_size",
    "train_bs",
    "iters",
    "nsamples",
    "seqlen",
    "model_seqlen",
    "max_input_length",
    "pad_token_id",
    "lr",
    "minmax_lr",
    "amp",
    "enable_minmax_tuning",
    "enable_norm_bias_tuning",
    "enable_quanted_input",
    "gradient_accumulate_steps",
    "low_gpu_mem_usage",
    "low_cpu_mem_usage",
    "not_use_best_mse",
    "scale_dtype",
    "super_bits",
    "super_group_size",
    "act_data_type",
    "act_group_size",
    "act_sym",
    "act_dynamic",
    "cache_block_outputs",
    "offload_to_disk",
    "offload_to_disk_path",
    "pack_impl",
    "use_cuda_fp16",
    "use_exllama",
    "use_exllama_v2",
    "disable_exllama",
    "exllama_config",
    "do_fuse",
    "modules_to_fuse",
    "fuse_max_seq_len",
];

/// Accepted values of some fields of GPTQ and AWQ; other values mean another layout.
const INTEGERS: &[(&str, &[&str])] =
    &[("act_bits", &["16"]), ("data_type", &["\"int\""]), ("pack_dtype", &["\"int32\""])];
const GPTQ: &[(&str, &[&str])] =
    &[("checkpoint_format", &["\"gptq\"", "\"gptq_v2\""]), ("format", &["\"gptq\"", "\"gptq_v2\""])];
const AWQ: &[(&str, &[&str])] = &[
    ("checkpoint_format", &["\"gemm\""]),
    ("format", &["\"gemm\""]),
    ("w_bit", &["4"]),
    ("q_group_size", &[]),
    ("zero_point", &["true"]),
];

/// Fields of compressed-tensors about the progress of quantisation and how to run it. Scales of an 8-bit KV cache only
/// matter to runtimes that have one.
const TENSORS: &[&str] = &[
    "quant_method",
    "format",
    "config_groups",
    "ignore",
    "kv_cache_scheme",
    "quantization_status",
    "global_compression_ratio",
    "version",
    "run_compressed",
    "dequantize",
    "provider",
    "autoround_version",
];
const GROUP: &[&str] = &["targets", "weights", "format"];
/// Fields of weights in compressed-tensors. The order of inputs (`actorder`) is stored as a tensor.
const WEIGHTS: &[&str] = &[
    "num_bits",
    "type",
    "strategy",
    "group_size",
    "symmetric",
    "actorder",
    "observer",
    "observer_kwargs",
    "scale_dtype",
    "zp_dtype",
];

/// Whether a value means the same as an absent field: null, false, zero, or empty.
pub fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(is) => !is,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// Refuses a field of `fields` that is in no list and has a meaningful value.
fn all_known(fields: &Map<String, Value>, lists: &[&[&str]], values: &[&[(&str, &[&str])]]) -> Result<(), String> {
    for (field, value) in fields.iter().filter(|(_, value)| !says_nothing(value)) {
        if lists.iter().any(|list| list.contains(&field.as_str())) {
            continue;
        }
        let text = value.to_string();
        let known = values.iter().copied().flatten().find(|(name, _)| name == field);
        if !known.is_some_and(|(_, allowed)| allowed.is_empty() || allowed.contains(&text.as_str())) {
            let shown: String = text.chars().take(60).collect();
            return Err(format!("`quantization_config` with `{field}: {shown}`"));
        }
    }
    Ok(())
}

fn bits_of(value: Option<i64>) -> Result<u32, String> {
    match value {
        Some(bits @ (4 | 8)) => u32::try_from(bits).map_err(|error| error.to_string()),
        other => Err(format!("weights of {} bits", other.map_or("unknown".to_owned(), |bits| bits.to_string()))),
    }
}

fn group_of(value: Option<i64>) -> Result<Option<usize>, String> {
    match value {
        None | Some(-1) => Ok(None),
        Some(size) => match usize::try_from(size) {
            Ok(size) if size > 0 => Ok(Some(size)),
            _ => Err(format!("groups of {size} inputs")),
        },
    }
}

fn number(fields: &Map<String, Value>, field: &str) -> Option<i64> {
    fields.get(field).and_then(Value::as_i64)
}

impl Packings {
    /// Parses a `quantization_config`; the error names what is not supported.
    pub fn read(config: &Value) -> Result<Self, String> {
        let Some(fields) = config.as_object() else {
            return Err("a `quantization_config` that is no object".to_owned());
        };
        // Rotations that are applied to activations when the model runs.
        if fields.get("transform_config").is_some_and(|transform| !says_nothing(transform)) {
            return Err("weights quantised after a rotation (`transform_config`)".to_owned());
        }
        match fields.get("quant_method").and_then(Value::as_str).unwrap_or("unknown") {
            "gptq" => gptq(fields).map(Self::of_all),
            "awq" => awq(fields).map(Self::of_all),
            "compressed-tensors" => tensors(fields),
            other => Err(format!("weights quantised with `{other}`")),
        }
    }

    /// One packing for every matrix.
    fn of_all(packing: Packing) -> Self {
        Self { layout: packing.layout, schemes: vec![(ModuleTarget::Linear, packing)] }
    }

    /// The packing of an output matrix in a file of its own.
    pub(super) fn of_head(head: &HeadRecord) -> Result<Self, String> {
        let bits = bits_of(Some(i64::from(head.bits)))?;
        if head.group_size == 0 {
            return Err("groups of 0 inputs".to_owned());
        }
        let (group, shifted) = (Some(head.group_size), !head.symmetric);
        Ok(Self::of_all(Packing { layout: Layout::Tensors, bits, group, shuffled: false, shifted }))
    }

    /// The packing of the matrix of a module; `None` if there is none for it.
    pub(super) fn of(&self, module: &str) -> Option<Packing> {
        self.schemes.iter().find(|(target, _)| target.fits(module)).map(|(_, packing)| *packing)
    }
}

impl Packing {
    /// Number of integers in a word.
    pub(super) fn count(self) -> usize {
        per_word(self.bits)
    }
}

fn gptq(fields: &Map<String, Value>) -> Result<Packing, String> {
    if fields.get("dynamic").is_some_and(|dynamic| !says_nothing(dynamic)) {
        return Err("GPTQ that differs from module to module (`dynamic`)".to_owned());
    }
    let (bits, group) = (bits_of(number(fields, "bits"))?, group_of(number(fields, "group_size"))?);
    all_known(fields, &[SAID_BY_TENSORS, MAKING], &[INTEGERS, GPTQ])?;
    let is_second = |field: &str| fields.get(field).and_then(Value::as_str) == Some("gptq_v2");
    let raise = u32::from(!is_second("checkpoint_format") && !is_second("format"));
    let flag = |field: &str| fields.get(field).and_then(Value::as_bool) == Some(true);
    let shuffled = flag("desc_act") && !flag("static_groups") && group.is_some();
    Ok(Packing { layout: Layout::Gptq { raise }, bits, group, shuffled, shifted: false })
}

fn awq(fields: &Map<String, Value>) -> Result<Packing, String> {
    let version = fields.get("version").and_then(Value::as_str).unwrap_or("gemm");
    if !version.eq_ignore_ascii_case("gemm") {
        return Err(format!("AWQ's layout `{version}`"));
    }
    if fields.get("zero_point").and_then(Value::as_bool) == Some(false) {
        return Err("AWQ without zero points".to_owned());
    }
    let group = group_of(number(fields, "group_size").or_else(|| number(fields, "q_group_size")))?;
    match bits_of(number(fields, "bits").or_else(|| number(fields, "w_bit")))? {
        4 => {}
        bits => return Err(format!("AWQ of {bits} bits")),
    }
    all_known(fields, &[SAID_BY_TENSORS, MAKING], &[INTEGERS, AWQ])?;
    Ok(Packing { layout: Layout::Awq, bits: 4, group, shuffled: false, shifted: false })
}

/// Most schemes of a checkpoint.
const MOST_SCHEMES: usize = 64;

fn tensors(fields: &Map<String, Value>) -> Result<Packings, String> {
    let format = fields.get("format").and_then(Value::as_str).unwrap_or("unknown");
    if format != "pack-quantized" {
        return Err(format!("compressed-tensors' format `{format}`"));
    }
    let is_dense = |sparsity: &Value| says_nothing(sparsity) || sparsity.get("format").is_some_and(|it| it == "dense");
    if !fields.get("sparsity_config").is_none_or(is_dense) {
        return Err("compressed-tensors' sparse weights (`sparsity_config`)".to_owned());
    }
    let groups = fields.get("config_groups").and_then(Value::as_object);
    let groups: Vec<&Value> = groups.into_iter().flat_map(|groups| groups.values()).collect();
    let packings = groups.iter().map(|group| scheme(group)).collect::<Result<Vec<_>, _>>()?;
    all_known(fields, &[TENSORS, &["sparsity_config"]], &[])?;
    match packings[..] {
        [] => Err("compressed-tensors without a scheme (`config_groups`)".to_owned()),
        // What it is for, tensors say.
        [packing] => Ok(Packings::of_all(packing)),
        _ if packings.len() > MOST_SCHEMES => Err(format!("compressed-tensors with {} schemes", packings.len())),
        _ => {
            let mut schemes = Vec::new();
            for (group, packing) in groups.into_iter().zip(packings.iter().copied()) {
                let targets = group.get("targets").and_then(Value::as_array);
                for target in targets.into_iter().flatten() {
                    schemes.push((ModuleTarget::read(target.as_str().unwrap_or_default())?, packing));
                }
            }
            schemes.sort_by(|a, b| a.0.cmp(&b.0));
            if schemes.windows(2).any(|pair| pair[0].0 == pair[1].0) {
                return Err("compressed-tensors with two schemes for one target (`targets`)".to_owned());
            }
            Ok(Packings { layout: Layout::Tensors, schemes })
        }
    }
}

/// One of compressed-tensors' `config_groups`.
fn scheme(group: &Value) -> Result<Packing, String> {
    let Value::Object(scheme) = group else {
        return Err("compressed-tensors with a scheme that is no object".to_owned());
    };
    if ["input_activations", "output_activations"].iter().any(|side| scheme.get(*side).is_some_and(|it| !it.is_null()))
    {
        return Err("quantised activations".to_owned());
    }
    let Some(Value::Object(weights)) = scheme.get("weights") else {
        return Err("compressed-tensors without `weights`".to_owned());
    };
    let (kind, strategy) = (weights.get("type"), weights.get("strategy").and_then(Value::as_str));
    if kind.is_some_and(|kind| kind != "int") || !matches!(strategy, Some("group" | "channel")) {
        let text = Value::Object(weights.clone()).to_string();
        return Err(format!("compressed-tensors' weights {}", text.chars().take(200).collect::<String>()));
    }
    let group = group_of(number(weights, "group_size"))?;
    let bits = bits_of(number(weights, "num_bits"))?;
    all_known(scheme, &[GROUP], &[])?;
    all_known(weights, &[WEIGHTS], &[])?;
    if scheme.get("format").and_then(Value::as_str).is_some_and(|format| format != "pack-quantized") {
        return Err("compressed-tensors whose groups have a format of their own".to_owned());
    }
    let shifted = weights.get("symmetric").and_then(Value::as_bool) == Some(false);
    Ok(Packing { layout: Layout::Tensors, bits, group, shuffled: false, shifted })
}
