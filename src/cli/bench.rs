//! `bench`: how fast an engine is here.

use std::path::PathBuf;

use anyhow::Context as _;

use super::session::{self, Choice};
use super::{Environment, Exit, print, print_json};
use crate::artifact::write_file;
use crate::bench;
use crate::manifest::Manifest;
use crate::onnx::Model;
use crate::progress::Event;
use crate::tensor::{Tensor, TensorSpec};

/// Measure an engine's latency and throughput on seeded inputs
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Engine directories, or .onnx files for the CPU reference
    #[arg(required = true)]
    engines: Vec<PathBuf>,
    /// Who computes
    #[arg(long, value_enum, default_value = "auto")]
    backend: Choice,
    /// Timed runs
    #[arg(short = 'n', long, default_value_t = 200)]
    iterations: usize,
    /// Untimed runs before
    #[arg(long, default_value_t = 20)]
    warmup: usize,
    /// Batch size of an engine with a dynamic one [default: the one it is tuned for]
    #[arg(long)]
    batch: Option<usize>,
    /// Print JSON instead of Markdown
    #[arg(long)]
    json: bool,
    /// Write a latency chart
    #[arg(long, value_name = "FILE.svg")]
    chart: Option<PathBuf>,
}

pub(super) fn execute(args: &Args, environment: &Environment) -> anyhow::Result<Exit> {
    let mut reports = Vec::new();
    let notes = crate::doctor::performance_notes();
    for path in &args.engines {
        let is_model = path.extension().is_some_and(|extension| extension == "onnx");
        let (name, specs, batch, mut session) = if is_model {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            (name, Model::load(path)?.inputs()?, 1, session::open_onnx(path, args.backend)?)
        } else {
            let manifest = Manifest::load(path)?;
            let session = session::open(path, &manifest, args.backend)?;
            let batch = manifest.tuned_batch();
            (manifest.name, manifest.inputs, batch, session)
        };
        let inputs = seeded(&specs, args.batch.unwrap_or(batch))
            .with_context(|| format!("{name} has an input no tensor fits"))?;
        environment.progress.event(Event::Stage(&format!("{name}: {} runs", args.warmup + args.iterations)));
        let mut report = bench::measure(&name, &mut *session, &inputs, args.warmup, args.iterations)?;
        report.notes.clone_from(&notes);
        reports.push(report);
    }
    if args.json {
        print_json(&reports)?;
    } else {
        print(bench::markdown(&reports).trim_end())?;
    }
    if let Some(path) = &args.chart {
        let svg = bench::svg(&reports).map_err(anyhow::Error::msg)?;
        write_file(path, svg.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(Exit::Success)
}

fn seeded(specs: &[TensorSpec], batch: usize) -> Option<Vec<Tensor>> {
    specs.iter().zip(1..).map(|(spec, seed)| Tensor::seeded(spec.dtype, spec.shape_with(batch), seed)).collect()
}
