//! A language model through the library: the logits after every token of a sequence, as `.npy` [tokens, vocabulary].
//!
//! ```sh
//! cargo run --release --example llm_logits -- ENGINE cpu|tensorrt TOKENS.json OUT.npy [PREFILLED]
//! ```
//!
//! The first PREFILLED tokens (default: all) go in at once, the others one by one, as in an answer.

use std::path::Path;

use anyhow::{Context as _, bail};
use watus_build::engine_dir::model::{Runner, open_executor};
use watus_build::executor::{Rows, Step, WantedLogits};
use watus_build::manifest::Manifest;
use watus_build::tensor::{Tensor, write_npy};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, runner, tokens, out, prefilled @ ..] = &arguments[..] else {
        bail!("usage: llm_logits ENGINE cpu|tensorrt TOKENS.json OUT.npy [PREFILLED]");
    };
    let folder = Path::new(folder);
    let manifest = Manifest::load(folder)?;
    let record = manifest.contents.llm().context("not a language model")?;
    let runner = if runner == "cpu" { Runner::Cpu } else { Runner::TensorRt { tf32: manifest.tf32 } };
    let mut executor = open_executor(folder, record, runner, &mut |_, _| {})?;
    let tokens: Vec<u32> = serde_json::from_str(&std::fs::read_to_string(tokens)?)?;
    let first = prefilled.first().map_or(Ok(tokens.len()), |count| count.parse())?.clamp(1, tokens.len());
    let mut logits = executor.prefill(0, 0, &tokens[..first], Rows::All)?;
    for (position, token) in tokens.iter().enumerate().skip(first) {
        logits.extend(executor.decode(&[Step { slot: 0, token: *token, position, wanted: WantedLogits::All }])?);
    }
    let shape = vec![tokens.len(), executor.vocab_size()];
    let tensor = Tensor::from_f32(shape, logits).context("logits do not fill their shape")?;
    write_npy(std::io::BufWriter::new(std::fs::File::create(out)?), &tensor)?;
    Ok(())
}
