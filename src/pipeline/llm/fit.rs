//! Fits a language model to a machine: the precision, the sequences and the lengths for which its memory suffices. Of a hub's
//! safetensors only the small files are fetched for that.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;

use super::memory::MemoryPlan;
use super::{OpenedSource, judge, open};
use crate::backend::BackendError;
use crate::checkpoint::{Checkpoint, read_json};
use crate::convert::{self, LayerTypes, Transformer};
use crate::diagnostic::Diagnostic;
use crate::fetch::{Fetcher, Lock, exactly};
use crate::memory::format_bytes;
use crate::pipeline::room::Room;
use crate::quantize::{OriginalModel, QuantisedBits, Schemes};
use crate::recipe::{LlmPlan, ModelPlan, Plan, SourcePlan};
use crate::spec::{KvCache, Precision, Shapes};

/// Most sequences, prompt tokens and answer tokens that are chosen: a recipe's defaults.
const MOST: (usize, usize, usize) = (4, 2048, 512);

/// Settings of a language model's recipe that decide on memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pipeline) struct LlmSettings {
    pub(in crate::pipeline) precision: Precision,
    pub(in crate::pipeline) kv_cache: KvCache,
    /// Sequences decoded together.
    pub(in crate::pipeline) slots: usize,
    /// Longest prompt and longest answer in tokens.
    pub(in crate::pipeline) lengths: (usize, usize),
}

/// Settings that fit, and what is known of model and memory.
#[derive(Debug, Clone)]
pub(in crate::pipeline) struct LlmFit {
    pub(in crate::pipeline) settings: LlmSettings,
    pub(in crate::pipeline) family: &'static str,
    pub(in crate::pipeline) parameters: usize,
    /// Positions that the model was trained for.
    pub(in crate::pipeline) positions: usize,
    /// Whether the weights come as integers.
    pub(in crate::pipeline) is_packed: bool,
    /// Bytes of a position's keys and values.
    pub(in crate::pipeline) position_bytes: usize,
    /// What running it takes, in words: bytes, and of what.
    pub(in crate::pipeline) memory: String,
    /// Bytes that the settings would take which are tried first.
    pub(in crate::pipeline) wanted: u64,
}

/// A model, and what is known of its weights.
struct SeenModel {
    model: Transformer,
    weights: SeenWeights,
}

enum SeenWeights {
    /// They are here.
    Here(Arc<Checkpoint>),
    /// Floats that are not here yet.
    Floats,
    /// Packed integers that are not here yet, in files of so many bytes.
    Packed(u64),
}

/// Looks at a plan's model and fits it to `room`. The plan's own settings do not count.
pub(in crate::pipeline) fn fit(plan: &Plan, room: &Room, fetcher: &Fetcher, lock: &mut Lock) -> anyhow::Result<LlmFit> {
    look(plan, fetcher, lock)?.fit(&plan.name, room)
}

fn look(plan: &Plan, fetcher: &Fetcher, lock: &mut Lock) -> anyhow::Result<SeenModel> {
    let mut plan = plan.clone();
    let ModelPlan::Llm { llm } = &mut plan.model else { anyhow::bail!("{} is not a language model", plan.name) };
    // Whatever length a model has, it has this one.
    *llm = LlmPlan { max_batch_size: 1, max_input_len: 1, max_output_len: 1, ..llm.clone() };
    // Offline everything is here, or nothing.
    if matches!(plan.source, SourcePlan::Hub { file: None, .. }) && !fetcher.offline {
        let ahead = judge::look_ahead(&plan, fetcher, lock)?;
        if let Some(seen) = described(&ahead, fetcher, lock)? {
            return Ok(seen);
        }
    }
    // Whether there is a chat template is for the build to say: then there is a recipe that can name one.
    if let ModelPlan::Llm { llm } = &mut plan.model {
        llm.chat_template = Some(PathBuf::new());
    }
    let OpenedSource { checkpoint, model, .. } = open(&plan, fetcher, lock)?;
    Ok(SeenModel { model, weights: SeenWeights::Here(checkpoint) })
}

/// A repository's model by its config.json and the sizes of its files; `None` if it names none.
fn described(source: &SourcePlan, fetcher: &Fetcher, lock: &mut Lock) -> anyhow::Result<Option<SeenModel>> {
    let SourcePlan::Hub { repository, revision, files, .. } = source else { return Ok(None) };
    let named = files.iter().filter(|name| name.rsplit('/').next() == Some("config.json"));
    let Some(config) = named.min_by_key(|name| name.matches('/').count()) else { return Ok(None) };
    let Some(pinned) = lock.get(repository, revision).cloned() else { return Ok(None) };
    let alone = SourcePlan::Hub {
        repository: repository.clone(),
        revision: revision.clone(),
        files: vec![config.clone()],
        file: None,
    };
    let fetched = fetcher.fetch(&alone, lock)?;
    let path = &fetched.files.first().context("no config.json was fetched")?.path;
    let values = read_json(path)?;
    let model = convert::describe(path, &values, 2)?;
    let weights = match values.get("quantization_config").filter(|value| !value.is_null()) {
        None => SeenWeights::Floats,
        Some(_) => {
            let is_wanted = |name: &String| name.ends_with(".safetensors") && files.contains(&exactly(name));
            let sizes = pinned.files.iter().filter(|(name, _)| is_wanted(name)).map(|(_, file)| file.size);
            SeenWeights::Packed(sizes.fold(0, u64::saturating_add))
        }
    };
    Ok(Some(SeenModel { model, weights }))
}

impl SeenModel {
    /// The first settings that fit, from those that give most.
    fn fit(&self, name: &str, room: &Room) -> anyhow::Result<LlmFit> {
        let is_packed = self.is_packed()?;
        let (mut wanted, mut least) = (None, None::<(LlmSettings, MemoryPlan)>);
        for settings in self.ladder(is_packed, room) {
            let memory = match self.memory(name, settings, room) {
                Ok(memory) => memory,
                // Its sizes divide into no groups.
                Err(_) if settings.precision.bits().is_some() => continue,
                Err(error) => return Err(error),
            };
            let wanted = *wanted.get_or_insert(memory.total());
            if memory.total() <= room.budget() {
                let model = &self.model;
                let types = LayerTypes { dtype: settings.precision.dtype(), kv_cache: settings.kv_cache };
                return Ok(LlmFit {
                    settings,
                    family: model.family,
                    parameters: model.parameters(),
                    positions: model.max_position,
                    is_packed,
                    position_bytes: model.kv_bytes(types),
                    memory: format!("{}: {}", format_bytes(memory.total()), memory.parts()),
                    wanted,
                });
            }
            if least.is_none_or(|(_, least)| memory.total() < least.total()) {
                least = Some((settings, memory));
            }
        }
        let (settings, memory) = least.with_context(|| format!("{name}: nothing is known of its memory"))?;
        Err(BackendError::Build(too_large(name, settings, memory, room)).into())
    }

    /// Whether the layers' matrices are integers.
    fn is_packed(&self) -> anyhow::Result<bool> {
        let checkpoint = match &self.weights {
            SeenWeights::Floats => return Ok(false),
            SeenWeights::Packed(_) => return Ok(true),
            SeenWeights::Here(checkpoint) => checkpoint,
        };
        let weights = self.model.layer_weights(0).into_iter().filter(|weight| weight.role.is_matrix());
        for part in weights.flat_map(|weight| weight.parts) {
            let view = checkpoint.tensor(&part.tensor)?;
            if view.is_packed() || view.encoding.dtype().is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Settings to try in this order: fewer sequences rather than fewer bits, and short lengths last.
    fn ladder(&self, is_packed: bool, room: &Room) -> Vec<LlmSettings> {
        let model = &self.model;
        let (slots, input, output) = MOST;
        let output = output.min(model.max_position / 4).max(1);
        let lengths = (input.min(model.max_position.saturating_sub(output)).max(1), output);
        // Some activations of Gemma 3 exceed float16 (`recipes/gemma-3-4b.yaml`), in which integers are computed with.
        let precisions: &[Precision] = match model.family.starts_with("gemma3") && room.has_bfloat16() {
            _ if is_packed => &[Precision::Fp16],
            true => &[Precision::Bf16],
            false => &[Precision::Fp16, Precision::Int8, Precision::Int4],
        };
        let kv_cache = KvCache::Auto;
        let mut ladder = Vec::new();
        for precision in precisions.iter().copied() {
            ladder.extend([slots, 2, 1].map(|slots| LlmSettings { precision, kv_cache, slots, lengths }));
        }
        let Some(last) = ladder.last().copied() else { return ladder };
        // As `build` takes it.
        let kv_cache = if model.head_dim.is_multiple_of(16) { KvCache::Int8 } else { KvCache::Auto };
        for part in [1, 2, 4] {
            let lengths = ((lengths.0 / part).max(1), (lengths.1 / part).max(1));
            ladder.push(LlmSettings { kv_cache, lengths, ..last });
        }
        ladder
    }

    fn memory(&self, name: &str, settings: LlmSettings, room: &Room) -> anyhow::Result<MemoryPlan> {
        let LlmSettings { precision, kv_cache, slots, lengths: (input, output) } = settings;
        let shapes = Shapes::new(slots, (input, input + output), room.family());
        let types = LayerTypes { dtype: precision.dtype(), kv_cache };
        // The head's default, as a plan has it.
        let bits = QuantisedBits { layers: precision.bits(), head: (precision == Precision::Int4).then_some(8) };
        let (checkpoint, schemes) = match &self.weights {
            SeenWeights::Packed(files) => {
                return Ok(MemoryPlan::packed(*files, &self.model, &shapes, types, room.shared));
            }
            SeenWeights::Floats => (None, Schemes::of_floats(name, &self.model, bits)?),
            SeenWeights::Here(checkpoint) => {
                let original = OriginalModel { name, checkpoint, model: &self.model };
                (Some(&**checkpoint), Schemes::choose(original, bits, None)?)
            }
        };
        MemoryPlan::new((checkpoint, &self.model), &shapes, types, (schemes, room.shared))
    }
}

fn too_large(name: &str, settings: LlmSettings, memory: MemoryPlan, room: &Room) -> Diagnostic {
    let LlmSettings { precision, slots, lengths: (input, output), .. } = settings;
    let sequences = if slots == 1 { "one sequence".to_owned() } else { format!("{slots} sequences") };
    Diagnostic::new(format!(
        "{name}: it is too large for this machine: in {precision}, with {sequences} of {input} + {output} tokens, running it takes {} \
         ({}); {}, of which a tenth is left to others",
        format_bytes(memory.total()),
        memory.parts(),
        room.text(),
    ))
    .with_help("take a smaller model, or one in fewer bits; or end what else takes memory, and try again")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::spec::{Family, Version};

    /// Llama 3.1 8B, by its config.json.
    fn llama_8b() -> Value {
        json!({
            "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
            "num_key_value_heads": 8, "num_hidden_layers": 32, "vocab_size": 128_256, "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "hidden_act": "silu",
        })
    }

    fn seen(config: &Value, weights: SeenWeights) -> SeenModel {
        SeenModel { model: convert::describe(Path::new("config.json"), config, 2).unwrap(), weights }
    }

    fn room(free: u64, tensorrt: Option<Version>) -> Room {
        Room { free, place: "Orin".to_owned(), shared: false, tensorrt }
    }

    /// The sums were done by hand: 6.98e9 weights in layers, 0.53e9 in the head, 131,072 bytes of a position.
    #[test]
    fn memory_decides_on_sequences_then_bits_then_lengths() {
        let (fp16, int8, int4) = (Precision::Fp16, Precision::Int8, Precision::Int4);
        let whole = (2048, 512);
        for (free, settings) in [
            (80_000, Some((fp16, KvCache::Auto, 4, whole))),
            (24_000, Some((fp16, KvCache::Auto, 4, whole))),
            (16_000, Some((int8, KvCache::Auto, 4, whole))),
            (10_000, Some((int4, KvCache::Auto, 4, whole))),
            (7_600, Some((int4, KvCache::Auto, 2, whole))),
            (7_200, Some((int4, KvCache::Auto, 1, whole))),
            (6_500, Some((int4, KvCache::Int8, 1, (512, 128)))),
            (4_000, None),
        ] {
            let found = seen(&llama_8b(), SeenWeights::Floats).fit("llama", &room(free * 1_000_000, None));
            match (found, settings) {
                (Ok(found), Some((precision, kv_cache, slots, lengths))) => {
                    assert_eq!(found.settings, LlmSettings { precision, kv_cache, slots, lengths }, "{free} MB");
                    assert_eq!((found.family, found.parameters, found.positions), ("llama", 8_030_261_248, 131_072));
                    // With `fp16`, four sequences of 2,560 tokens.
                    assert!((17_000_000_000..17_500_000_000).contains(&found.wanted), "{}", found.wanted);
                }
                (Err(error), None) => {
                    let told = error.to_string();
                    assert!(
                        told.contains("too large for this machine: in int4, with one sequence of 512 + 128"),
                        "{told}"
                    );
                    assert!(told.contains("4.0 GB free on Orin"), "{told}");
                }
                (found, _) => panic!("{free} MB: {found:?}"),
            }
        }
    }

    #[test]
    fn what_is_packed_stays_so_and_short_models_stay_short() {
        let packed = seen(&llama_8b(), SeenWeights::Packed(5_700_000_000));
        let fitted = packed.fit("m", &room(12_000_000_000, None)).unwrap();
        assert_eq!((fitted.settings.precision, fitted.settings.slots, fitted.is_packed), (Precision::Fp16, 4, true));
        assert!(packed.fit("m", &room(6_000_000_000, None)).is_err());
        let mut short = llama_8b();
        short["max_position_embeddings"] = 1024.into();
        let fitted = seen(&short, SeenWeights::Floats).fit("m", &room(80_000_000_000, None)).unwrap();
        assert_eq!(fitted.settings.lengths, (768, 256));
    }

    #[test]
    fn gemma_3_is_bfloat16_where_there_is_one() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/llm/gemma3/config.json");
        let config = read_json(&path).unwrap();
        let version = |major| Version { family: Family::Enterprise, major, minor: 0, patch: 0 };
        for (tensorrt, precision) in
            [(None, Precision::Bf16), (Some(version(10)), Precision::Bf16), (Some(version(8)), Precision::Fp16)]
        {
            let model = seen(&config, SeenWeights::Floats);
            let fitted = model.fit("m", &room(8_000_000_000, tensorrt)).unwrap();
            assert_eq!((fitted.settings.precision, fitted.family), (precision, "gemma3"), "{tensorrt:?}");
        }
    }
}
