//! Weights packed as integers: GPTQ, AWQ and compressed-tensors, written here as their packages write them, decode to
//! (q - zero) · scale to the bit, and a model of them says what it says with those values as plain floats.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::f16;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use support::{output, tensorrt_or_skip, watus};
use watus_build::checkpoint::Checkpoint;
use watus_build::convert;
use watus_build::executor::{CpuExecutor, Executor, Rows};
use watus_build::tensor::SplitMix64;

/// A tensor to be written.
type Plain = (Dtype, Vec<usize>, Vec<u8>);

fn words(shape: [usize; 2], values: &[u32]) -> Plain {
    (Dtype::I32, shape.to_vec(), values.iter().flat_map(|word| word.to_le_bytes()).collect())
}

fn halves(shape: [usize; 2], values: &[f16]) -> Plain {
    (Dtype::F16, shape.to_vec(), values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

/// A matrix as integers, before anybody packs it. `[outputs, inputs]`, groups of inputs.
struct Quantised {
    outputs: usize,
    inputs: usize,
    bits: u32,
    groups: usize,
    /// Each input's group.
    order: Vec<usize>,
    /// `[output][input]`
    q: Vec<u32>,
    /// `[group][output]`
    zeros: Vec<u32>,
    scales: Vec<f16>,
}

impl Quantised {
    fn random(random: &mut SplitMix64, [outputs, inputs]: [usize; 2], case: &Case) -> Self {
        let group = case.group.unwrap_or(inputs);
        let groups = inputs.div_ceil(group);
        let mut below = |limit: u64| random.next_u64() % limit;
        let top = 1 << case.bits;
        let mut order: Vec<usize> = (0..inputs).map(|input| input / group).collect();
        if case.shuffled {
            (1..inputs).rev().for_each(|at| order.swap(at, below(at as u64 + 1) as usize));
        }
        let q = (0..outputs * inputs).map(|_| below(top) as u32).collect();
        // A zero point of 0 cannot be said by GPTQ's first version.
        let zeros =
            (0..groups * outputs).map(|_| if case.symmetric { top as u32 / 2 } else { 1 + below(top - 1) as u32 });
        let zeros = zeros.collect();
        let scales = (0..groups * outputs).map(|_| f16::from_f32((1.0 + below(100) as f32 / 50.0) / top as f32 * 0.4));
        Self { outputs, inputs, bits: case.bits, groups, order, q, zeros, scales: scales.collect() }
    }

    fn value(&self, output: usize, input: usize) -> f32 {
        let at = self.order[input] * self.outputs + output;
        (self.q[output * self.inputs + input] as f32 - self.zeros[at] as f32) * self.scales[at].to_f32()
    }

    fn floats(&self) -> Vec<f32> {
        (0..self.outputs).flat_map(|o| (0..self.inputs).map(move |i| self.value(o, i))).collect()
    }

    /// `values[i]` at `place(i)` = (word, integer within).
    fn pack(&self, count: usize, values: impl Iterator<Item = (u32, (usize, usize))>) -> Vec<u32> {
        let mut packed = vec![0_u32; count];
        values.for_each(|(value, (word, within))| packed[word] |= value << (self.bits * within as u32));
        packed
    }

    fn gptq(&self, raise: u32) -> Vec<(&'static str, Plain)> {
        let (n, k, per) = (self.outputs, self.inputs, 32 / self.bits as usize);
        let pairs = (0..n).flat_map(|o| (0..k).map(move |i| (o, i)));
        let q = pairs.map(|(o, i)| (self.q[o * k + i], (i / per * n + o, i % per)));
        let pairs = (0..self.groups).flat_map(|g| (0..n).map(move |o| (g, o)));
        let zeros = pairs.map(|(g, o)| (self.zeros[g * n + o] - raise, (g * (n / per) + o / per, o % per)));
        let order: Vec<u8> = self.order.iter().flat_map(|group| (*group as i32).to_le_bytes()).collect();
        vec![
            ("qweight", words([k / per, n], &self.pack(k / per * n, q))),
            ("qzeros", words([self.groups, n / per], &self.pack(self.groups * n / per, zeros))),
            ("scales", halves([self.groups, n], &self.scales)),
            ("g_idx", (Dtype::I32, vec![k], order)),
        ]
    }

    fn awq(&self) -> Vec<(&'static str, Plain)> {
        // Integer i of a word is column ORDER[i] of eight.
        const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
        let (n, k) = (self.outputs, self.inputs);
        let triples =
            |rows: usize| (0..rows).flat_map(move |r| (0..n / 8).flat_map(move |w| (0..8).map(move |i| (r, w, i))));
        let q = triples(k).map(|(r, w, i)| (self.q[(8 * w + ORDER[i]) * k + r], (r * (n / 8) + w, i)));
        let zeros = triples(self.groups).map(|(g, w, i)| (self.zeros[g * n + 8 * w + ORDER[i]], (g * (n / 8) + w, i)));
        vec![
            ("qweight", words([k, n / 8], &self.pack(k * n / 8, q))),
            ("qzeros", words([self.groups, n / 8], &self.pack(self.groups * n / 8, zeros))),
            ("scales", halves([self.groups, n], &self.scales)),
        ]
    }

    fn tensors(&self, symmetric: bool, plain: bool) -> Vec<(&'static str, Plain)> {
        let (n, k, per, g) = (self.outputs, self.inputs, 32 / self.bits as usize, self.groups);
        let across = k.div_ceil(per);
        let pairs = (0..n).flat_map(|o| (0..k).map(move |i| (o, i)));
        let q = pairs.map(|(o, i)| (self.q[o * k + i], (o * across + i / per, i % per)));
        let by_output = |group: usize, output: usize| group * n + output;
        let scales: Vec<f16> = (0..n).flat_map(|o| (0..g).map(move |group| self.scales[by_output(group, o)])).collect();
        let shape = [n as i64, k as i64].iter().flat_map(|size| size.to_le_bytes()).collect();
        let mut parts = vec![
            ("weight_packed", words([n, across], &self.pack(n * across, q))),
            ("weight_scale", halves([n, g], &scales)),
            ("weight_shape", (Dtype::I64, vec![2], shape)),
        ];
        if plain {
            // Older releases keep zero points a signed byte each.
            let zeros = (0..n).flat_map(|o| (0..g).map(move |group| (o, group)));
            let half = 1 << (self.bits - 1);
            let zeros = zeros.map(|(o, group)| (self.zeros[by_output(group, o)] as i32 - half) as i8);
            parts.push(("weight_zero_point", (Dtype::I8, vec![n, g], zeros.map(|zero| zero as u8).collect())));
        } else if !symmetric {
            let pairs = (0..n).flat_map(|o| (0..g).map(move |group| (o, group)));
            let zeros = pairs.map(|(o, group)| (self.zeros[by_output(group, o)], (o / per * g + group, o % per)));
            parts.push(("weight_zero_point", words([n.div_ceil(per), g], &self.pack(n.div_ceil(per) * g, zeros))));
        }
        parts
    }
}

struct Case {
    name: &'static str,
    bits: u32,
    group: Option<usize>,
    shuffled: bool,
    symmetric: bool,
}

impl Case {
    fn config(&self) -> Value {
        let group = self.group.map_or(-1, |group| group as i64);
        match self.name {
            "gptq" => {
                json!({"quant_method": "gptq", "bits": self.bits, "group_size": group, "desc_act": self.shuffled})
            }
            "gptq_v2" => {
                json!({"quant_method": "gptq", "checkpoint_format": "gptq_v2", "bits": self.bits, "group_size": group})
            }
            "awq" => {
                json!({"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": true, "version": "gemm"})
            }
            _ => {
                let strategy = if self.group.is_some() { "group" } else { "channel" };
                let weights = json!({"num_bits": self.bits, "type": "int", "strategy": strategy, "symmetric": self.symmetric,
                                     "group_size": self.group});
                json!({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": {
                       "targets": ["Linear"], "weights": weights, "input_activations": null}}})
            }
        }
    }

    fn parts(&self, matrix: &Quantised) -> Vec<(&'static str, Plain)> {
        match self.name {
            "gptq" => matrix.gptq(1),
            "gptq_v2" => matrix.gptq(0),
            "awq" => matrix.awq(),
            _ => matrix.tensors(self.symmetric, self.name.ends_with("plain")),
        }
    }
}

fn cases() -> Vec<Case> {
    let case = |name, bits, group, shuffled, symmetric| Case { name, bits, group, shuffled, symmetric };
    vec![
        case("gptq", 4, Some(16), false, false),
        case("gptq", 4, Some(16), true, false),
        case("gptq", 4, None, false, true),
        case("gptq", 8, Some(32), true, false),
        case("gptq_v2", 4, Some(16), true, false),
        case("gptq_v2", 8, None, false, false),
        case("awq", 4, Some(16), false, false),
        case("awq", 4, None, false, false),
        case("compressed-tensors", 4, Some(16), false, true),
        case("compressed-tensors", 4, Some(16), false, false),
        case("compressed-tensors", 8, None, false, true),
        case("compressed-tensors", 8, Some(16), false, false),
        case("compressed-tensors, plain", 4, Some(16), false, false),
        case("compressed-tensors, plain", 8, None, false, false),
    ]
}

fn write(folder: &Path, config: &Value, tensors: &BTreeMap<String, Plain>) -> Vec<PathBuf> {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    vec![folder.join("config.json"), folder.join("model.safetensors")]
}

/// The tiny Llama's tensors and configuration.
fn llama() -> (Value, BTreeMap<String, Plain>) {
    let folder = support::repository().join("tests/data/llm/llama");
    let config = serde_json::from_str(&fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
    (config, read(&folder.join("model.safetensors")))
}

fn read(path: &Path) -> BTreeMap<String, Plain> {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let plain = |view: TensorView<'_>| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    file.tensors().into_iter().map(|(name, view)| (name, plain(view))).collect()
}

fn logits(paths: &[PathBuf]) -> Vec<f32> {
    let checkpoint = Arc::new(Checkpoint::open(paths).unwrap());
    let mut model = convert::describe(&checkpoint.config_path, &checkpoint.config, 64).unwrap();
    model.locate(&checkpoint).unwrap();
    let tokens: Vec<u32> = (0..20).map(|i| (7 * i + 3) % 64).collect();
    CpuExecutor::new(model, checkpoint, 1, 64).unwrap().prefill(0, 0, &tokens, Rows::All).unwrap()
}

/// The tiny Llama with its projections packed, and the same with their values as plain floats.
fn packed_llama(scratch: &Path, case: &Case, seed: u64) -> (Vec<PathBuf>, Vec<PathBuf>, BTreeMap<String, Plain>) {
    packed(scratch, llama(), case, seed)
}

fn packed(
    scratch: &Path,
    (mut config, mut plain): (Value, BTreeMap<String, Plain>),
    case: &Case,
    seed: u64,
) -> (Vec<PathBuf>, Vec<PathBuf>, BTreeMap<String, Plain>) {
    let mut packed = plain.clone();
    let mut random = SplitMix64(seed);
    let projections: Vec<String> = plain.keys().filter(|name| name.ends_with("proj.weight")).cloned().collect();
    assert_eq!(projections.len(), 14);
    for name in projections {
        let shape = [plain[&name].1[0], plain[&name].1[1]];
        let matrix = Quantised::random(&mut random, shape, case);
        let floats = matrix.floats().iter().flat_map(|value| value.to_le_bytes()).collect();
        plain.insert(name.clone(), (Dtype::F32, shape.to_vec(), floats));
        packed.remove(&name);
        let stem = name.trim_end_matches("weight");
        packed.extend(case.parts(&matrix).into_iter().map(|(part, tensor)| (format!("{stem}{part}"), tensor)));
    }
    let floats = write(&scratch.join("plain"), &config, &plain);
    config["quantization_config"] = case.config();
    (write(&scratch.join("packed"), &config, &packed), floats, plain)
}

#[test]
fn packed_weights_are_their_formula() {
    for (seed, case) in cases().iter().enumerate() {
        let scratch = tempfile::tempdir().unwrap();
        let (packed, floats, plain) = packed_llama(scratch.path(), case, seed as u64);
        let what = format!("{} of {} bits, group {:?}", case.name, case.bits, case.group);
        let checkpoint = Checkpoint::open(&packed).unwrap();
        for (name, (_, shape, bytes)) in plain.iter().filter(|(name, _)| name.ends_with("proj.weight")) {
            let view = checkpoint.expect(name, shape).unwrap();
            let mut values = vec![0.0; shape[0] * shape[1]];
            view.read(0, &mut values);
            assert!(bytemuck::cast_slice::<f32, u8>(&values) == &bytes[..], "{what}: {name}");
            let mut row = vec![0.0; shape[1]];
            view.read_row(shape[0] - 1, &mut row);
            assert_eq!(row, values[values.len() - shape[1]..], "{what}: {name}, a row alone");
        }
        assert!(logits(&packed) == logits(&floats), "{what}");
    }
}

#[test]
fn damaged_packing_is_one_error() {
    let open = |case: &Case, damage: &dyn Fn(&mut Value, &mut BTreeMap<String, Plain>)| -> String {
        let scratch = tempfile::tempdir().unwrap();
        let (paths, ..) = packed_llama(scratch.path(), case, 1);
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&paths[0]).unwrap()).unwrap();
        let mut tensors = read(&paths[1]);
        damage(&mut config, &mut tensors);
        let paths = write(&scratch.path().join("damaged"), &config, &tensors);
        let checkpoint = match Checkpoint::open(&paths) {
            Ok(checkpoint) => checkpoint,
            Err(error) => return error.to_string(),
        };
        let model = convert::describe(&checkpoint.config_path, &checkpoint.config, 64);
        model.and_then(|mut model| model.locate(&checkpoint)).expect_err("damaged").to_string()
    };
    const UP: &str = "model.layers.0.mlp.up_proj";
    let part = |name: &str| format!("{UP}.{name}");
    let all = cases();
    let (gptq, awq, tensors) = (&all[1], &all[6], &all[8]);
    let no_scales = open(gptq, &|_, all| drop(all.remove(&part("scales"))));
    assert!(no_scales.contains("up_proj.scales is missing"), "{no_scales}");
    let order = open(gptq, &|_, all| all.get_mut(&part("g_idx")).unwrap().2[..4].copy_from_slice(&9_i32.to_le_bytes()));
    assert!(order.contains("an input is in group 9 of 2"), "{order}");
    let group = open(awq, &|config, _| config["quantization_config"]["group_size"] = 8.into());
    assert!(group.contains("shape [3, 32]") && group.contains("[6, 32]"), "{group}");
    let shape = open(tensors, &|_, all| all.get_mut(&part("weight_shape")).unwrap().2[8..].fill(255));
    assert!(shape.contains("do not hold"), "{shape}");
    let bits = open(gptq, &|config, _| config["quantization_config"]["bits"] = 3.into());
    assert!(bits.contains("weights of 3 bits: not supported") && bits.contains("hint: GPTQ, AWQ"), "{bits}");
    let gemv = open(awq, &|config, _| config["quantization_config"]["version"] = "gemv".into());
    assert!(gemv.contains("`gemv`"), "{gemv}");
    let marlin = open(tensors, &|config, _| config["quantization_config"]["format"] = "marlin-24".into());
    assert!(marlin.contains("`marlin-24`"), "{marlin}");
}

/// A Llama whose inputs can be cut into groups of 64, in float16.
fn wide_llama() -> (Value, BTreeMap<String, Plain>) {
    let (mut config, mut tensors) = llama();
    let sizes = [("hidden_size", 64), ("intermediate_size", 128), ("head_dim", 16)];
    sizes.iter().for_each(|(field, size)| config[*field] = json!(size));
    let mut random = SplitMix64(11);
    for (name, (dtype, shape, bytes)) in &mut tensors {
        let wide = |size: usize| match size {
            32 | 48 => {
                if size == 32 {
                    64
                } else {
                    128
                }
            }
            16 => 32, // two key heads
            other => other,
        };
        *shape = shape.iter().map(|size| wide(*size)).collect();
        if name.ends_with("embed_tokens.weight") || name.ends_with("lm_head.weight") {
            *shape = vec![64, 64];
        }
        let count: usize = shape.iter().product();
        let scale = if shape.len() == 1 { 0.1 } else { 0.25 };
        let offset = if shape.len() == 1 { 1.0 } else { 0.0 };
        let mut draw = || (0..4).map(|_| (random.next_u64() % 2001) as f32 / 1000.0 - 1.0).sum::<f32>() / 2.0;
        *bytes = (0..count).flat_map(|_| f16::from_f32(offset + scale * draw()).to_le_bytes()).collect();
        *dtype = Dtype::F16;
    }
    (config, tensors)
}

/// Builds `name` from the folder of that name or another; exit code and what was said.
fn build(scratch: &Path, name: &str, source: &str, more: &str) -> (i32, String) {
    fs::write(scratch.join(source).join("tokenizer.json"), support::tokenizer()).unwrap();
    let recipe = format!(
        "version: 1\nname: {name}\nkind: llm\nsource: {{ path: {source} }}\nmax_input_len: 24\nmax_output_len: 16\n{more}"
    );
    fs::write(scratch.join(format!("{name}.yaml")), recipe).unwrap();
    let (code, _, stderr) = output(watus(scratch).args(["build", &format!("{name}.yaml")]));
    (code, stderr)
}

/// What the manifest of an engine built there says.
fn manifest(scratch: &Path, name: &str) -> Value {
    let path = scratch.join("engines").join(name).join("manifest.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Where there is a GPU, each build proves the packed kernels: its answers, by unpacking and by packed decoding, against
/// the CPU's.
#[test]
fn layouts_that_stay_packed_are_built() {
    if !tensorrt_or_skip("layouts_that_stay_packed_are_built") {
        return;
    }
    let case = |name, bits, group, shuffled, symmetric| Case { name, bits, group, shuffled, symmetric };
    let cases = [
        case("gptq", 4, Some(32), true, false),
        case("gptq", 8, Some(64), false, false),
        case("awq", 4, Some(64), false, false),
        case("compressed-tensors", 4, Some(32), false, true),
        case("compressed-tensors", 8, None, false, true),
    ];
    for (seed, case) in cases.iter().enumerate() {
        let scratch = tempfile::tempdir().unwrap();
        packed(scratch.path(), wide_llama(), case, seed as u64);
        let more = if seed == 0 { "build: { kv_cache: int8 }\n" } else { "" };
        let (code, said) = build(scratch.path(), "model", "packed", more);
        assert_eq!(code, 0, "{} of {} bits: {said}", case.name, case.bits);
        println!("{} of {} bits: {}", case.name, case.bits, said.lines().last().unwrap_or_default());
    }
}

#[test]
fn a_model_is_quantised_while_it_is_built() {
    if !tensorrt_or_skip("a_model_is_quantised_while_it_is_built") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let (config, tensors) = wide_llama();
    write(&scratch.path().join("plain"), &config, &tensors);
    for (precision, most) in [("int8", 0.008), ("int4", 0.11)] {
        let (code, said) = build(scratch.path(), precision, "plain", &format!("build: {{ precision: {precision} }}\n"));
        assert_eq!(code, 0, "{said}");
        let folder = scratch.path().join("engines").join(precision);
        let checkpoint =
            Checkpoint::open(&[folder.join("config.json"), folder.join("weights/model.safetensors")]).unwrap();
        for (name, (_, shape, bytes)) in &tensors {
            let mut values = vec![0.0; shape.iter().product()];
            checkpoint.expect(name, shape).unwrap().read(0, &mut values);
            let pairs = bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).zip(&values);
            let (lost, all) =
                pairs.fold((0.0, 0.0), |(lost, all), (want, have)| (lost + (want - have).powi(2), all + want * want));
            let error = (lost / all).sqrt();
            // With layers in 4 bits the output matrix has 8.
            let head = precision == "int4" && name == "lm_head.weight";
            let most = if head { 0.008 } else { most };
            let packed = head || name.ends_with("proj.weight");
            assert!(
                if packed { error > 0.0 && error < most } else { error == 0.0 },
                "{precision}: {name} is off by {error}"
            );
        }
        let quality = &manifest(scratch.path(), precision)["quality"];
        assert!(quality["divergence"].as_f64().unwrap() > 0.0 && quality["tokens"].as_u64().unwrap() > 10, "{quality}");
        let (code, answer, _) = output(watus(scratch.path()).args([
            "run",
            &format!("engines/{precision}"),
            "--backend",
            "cpu",
            "--raw",
            "--max-tokens",
            "4",
            "w3 w10",
        ]));
        assert!(code == 0 && !answer.trim().is_empty());
        // What is quantised is not quantised again.
        let more = format!("build: {{ precision: {precision} }}\n");
        let inside = format!("engines/{precision}-copy");
        write(
            &scratch.path().join(&inside),
            &serde_json::from_str(&fs::read_to_string(folder.join("config.json")).unwrap()).unwrap(),
            &read(&folder.join("weights/model.safetensors")),
        );
        let (code, said) = build(scratch.path(), "again", &inside, &more);
        assert!(code != 0 && said.contains("is quantised already"), "{said}");
    }
    // Inputs that are large on a text are rounded with more care.
    let divergence = |name: &str| manifest(scratch.path(), name)["quality"]["divergence"].as_f64().unwrap();
    let words: Vec<String> = (0..400).map(|at| format!("w{}", (at * 7 + at / 9 + 3) % 60)).collect();
    fs::write(scratch.path().join("text.txt"), words.join(" ")).unwrap();
    for precision in ["int8", "int4"] {
        let (name, more) = (
            format!("calibrated-{precision}"),
            format!("build: {{ precision: {precision}, calibration: text.txt }}\n"),
        );
        let (code, said) = build(scratch.path(), &name, "plain", &more);
        assert_eq!(code, 0, "{said}");
        // The scales cancel out, but for rounding.
        let (plain, calibrated) = (divergence(precision), divergence(&name));
        assert!(calibrated != plain && calibrated < 1.5 * plain, "{precision}: {plain} without, {calibrated} with");
    }
    let (code, said) = build(scratch.path(), "lost", "plain", "build: { precision: int4, calibration: no.txt }\n");
    assert!(code != 0 && said.contains("no.txt"), "{said}");
    let (code, said) = build(scratch.path(), "plainly", "plain", "build: { calibration: text.txt }\n");
    assert!(code != 0 && said.contains("calibration belongs to"), "{said}");
    let strict = "build: { precision: int4, group_size: 32 }\nverify: { divergence: 1e-9 }\n";
    let (code, said) = build(scratch.path(), "strict", "plain", strict);
    assert!(
        code != 0 && said.contains("quantisation: on ") && !scratch.path().join("engines/strict").exists(),
        "{said}"
    );
    let (code, said) = build(scratch.path(), "odd", "plain", "build: { precision: int4, group_size: 48 }\n");
    assert!(code != 0 && said.contains("groups of 48 inputs are not supported"), "{said}");
    let (code, said) = build(scratch.path(), "large", "plain", "build: { precision: int8, group_size: 128 }\n");
    assert!(code != 0 && said.contains("group_size 128 does not divide"), "{said}");
}

/// Where there is a GPU, each build proves it there.
#[test]
fn keys_and_values_are_kept_in_8_bits() {
    if !tensorrt_or_skip("keys_and_values_are_kept_in_8_bits") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let (config, tensors) = wide_llama();
    write(&scratch.path().join("plain"), &config, &tensors);
    for precision in ["fp32", "fp16", "bf16"] {
        let more = format!("build: {{ precision: {precision}, kv_cache: int8 }}\n");
        let (code, said) = build(scratch.path(), precision, "plain", &more);
        assert_eq!(code, 0, "{precision}: {said}");
        let manifest = manifest(scratch.path(), precision);
        assert_eq!(manifest["llm"]["kv_type"], "int8");
        let divergence = manifest["quality"]["divergence"].as_f64().unwrap();
        assert!(divergence > 0.0 && divergence < 2e-3, "{precision}: {divergence}");
    }
    // Nothing is lost, and nothing judged, where nothing is asked for.
    let (code, said) = build(scratch.path(), "auto", "plain", "build: { kv_cache: auto }\n");
    assert!(code == 0 && manifest(scratch.path(), "auto")["quality"].is_null(), "{said}");
    let (code, said) =
        build(scratch.path(), "strict", "plain", "build: { kv_cache: int8 }\nverify: { divergence: 1e-12 }\n");
    assert!(code != 0 && said.contains("it diverges from the checkpoint"), "{said}");
    let (config, tensors) = llama();
    write(&scratch.path().join("narrow"), &config, &tensors);
    let (code, said) = build(scratch.path(), "small", "narrow", "build: { kv_cache: int8 }\n");
    assert!(code != 0 && said.contains("heads of 8 elements cannot be kept in 8 bits"), "{said}");
}

/// A model that comes quantised is judged by a reference, if the recipe has one.
#[test]
fn a_reference_judges_what_comes_quantised() {
    if !tensorrt_or_skip("a_reference_judges_what_comes_quantised") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let case = Case { name: "gptq", bits: 4, group: Some(32), shuffled: false, symmetric: false };
    let (_, _, floats) = packed(scratch.path(), wide_llama(), &case, 5);
    // The same values: nothing was lost.
    let same = "verify: { reference: { path: plain }, divergence: 1e-6, perplexity: 1.000001 }\n";
    let (code, said) = build(scratch.path(), "same", "packed", same);
    assert_eq!(code, 0, "{said}");
    // Others: all was.
    let (config, mut others) = (wide_llama().0, floats);
    others.extend(wide_llama().1.into_iter().filter(|(name, _)| name.ends_with("proj.weight")));
    write(&scratch.path().join("others"), &config, &others);
    let (code, said) = build(scratch.path(), "other", "packed", "verify: { reference: { path: others } }\n");
    assert!(code != 0 && said.contains("quantisation: on "), "{said}");
    let (code, said) = build(scratch.path(), "none", "packed", "verify: { reference: { path: nowhere } }\n");
    assert!(code != 0 && said.contains("the reference of `verify`") && said.contains("nowhere"), "{said}");
}

#[test]
fn a_packed_model_is_built_and_answers() {
    if !tensorrt_or_skip("a_packed_model_is_built_and_answers") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    packed_llama(scratch.path(), &cases()[1], 3);
    let run = |arguments: &[&str]| output(watus(scratch.path()).args(arguments));
    let answers = ["packed", "plain"].map(|name| {
        let (code, stderr) = build(scratch.path(), name, name, "");
        assert_eq!(code, 0, "{stderr}");
        let engine = format!("engines/{name}");
        let (code, stdout, stderr) =
            run(&["run", &engine, "--backend", "cpu", "--raw", "--max-tokens", "8", "w3 w10 w17"]);
        assert_eq!(code, 0, "{stderr}");
        stdout
    });
    assert!(!answers[0].trim().is_empty() && answers[0] == answers[1], "{answers:?}");
}
