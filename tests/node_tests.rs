//! Single operators against ONNX's own node tests, and against onnxruntime where those do not reach: each is right, or refused
//! by name, and none is wrong. `tests/data/onnx/cases.py` writes them.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use serde_json::Value;
use support::{onnxruntime_or_skip, output, repository, skip, tensorrt_or_skip};
use watus_build::backend::cpu::Cpu;
use watus_build::backend::onnxruntime::OnnxRuntime;
use watus_build::backend::tensorrt::{TensorRt, device::Device};
use watus_build::backend::{Backend, BackendError, BackendInfo, Session};
use watus_build::onnx::Model;
use watus_build::tensor::{DType, Tensor, TensorSpec, read_npy};

/// Sums in float32 are nearer the truth than expected values that were rounded to float16 at each step.
const HALF: (f64, f64) = (5e-3, 1e-3);

struct Case {
    group: String,
    name: String,
    operators: String,
    folder: PathBuf,
    tolerance: (f64, f64),
    inputs: usize,
    outputs: usize,
}

/// A Python with onnx and onnxruntime.
fn python() -> Option<OsString> {
    std::env::var_os("WATUS_ORACLE_PYTHON").filter(|python| Path::new(python).exists())
}

/// Where the cases are, written once for all tests; `WATUS_NODE_CASES` names what was written on another machine.
fn folder() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let written = FOLDER.get_or_init(|| {
        if let Some(folder) = std::env::var_os("WATUS_NODE_CASES") {
            return Some(PathBuf::from(folder));
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("node-tests");
        let mut script = Command::new(python()?);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let (code, stdout, stderr) = output(script.arg(repository().join("tests/data/onnx/cases.py")).arg(&folder));
        assert_eq!(code, 0, "{stdout}{stderr}");
        Some(folder)
    });
    written.as_deref()
}

/// The cases, or `None` where there is no Python to write them. Printed: what could not be written.
fn cases(test: &str) -> Option<Vec<Case>> {
    let Some(folder) = folder() else {
        skip(test, "set WATUS_ORACLE_PYTHON to what scripts/setup-oracles.sh prints");
        return None;
    };
    let listed: Value = serde_json::from_slice(&fs::read(folder.join("cases.json")).unwrap()).unwrap();
    let (mut cases, mut left_out) = (Vec::new(), 0);
    for case in listed.as_array().unwrap() {
        if case.get("left_out").is_some() {
            left_out += 1;
            continue;
        }
        let text = |key: &str| case[key].as_str().unwrap().to_owned();
        let number = |key: &str| case[key].as_f64().unwrap();
        let count = |key: &str| usize::try_from(case[key].as_u64().unwrap()).unwrap();
        let operators: Vec<&str> =
            case["operators"].as_array().unwrap().iter().map(|op| op.as_str().unwrap()).collect();
        cases.push(Case {
            folder: folder.join(text("group")).join(text("name")),
            group: text("group"),
            name: text("name"),
            operators: operators.join("+"),
            tolerance: (number("rtol"), number("atol")),
            inputs: count("inputs"),
            outputs: count("outputs"),
        });
    }
    println!("{left_out} cases have inputs or outputs that are no tensors of ours (float64, strings, sequences, …)");
    Some(cases)
}

enum Verdict {
    Right,
    Refused(String),
    Wrong(String),
}

fn tensors(case: &Case, what: &str, count: usize) -> Vec<Tensor> {
    let read = |at: usize| read_npy(File::open(case.folder.join(format!("{what}_{at}.npy"))).unwrap()).unwrap();
    (0..count).map(read).collect()
}

fn judge(backend: &dyn Backend, case: &Case) -> Verdict {
    let compute = || -> Result<Vec<Tensor>, BackendError> {
        let mut session = backend.open(&case.folder.join("model.onnx"))?;
        session.run(&tensors(case, "in", case.inputs))
    };
    let outputs = match compute() {
        Ok(outputs) => outputs,
        Err(error) => return Verdict::Refused(error.to_string()),
    };
    let expected = tensors(case, "out", case.outputs);
    if outputs.len() != expected.len() {
        return Verdict::Wrong(format!("{} outputs, {} are right", outputs.len(), expected.len()));
    }
    for (index, (have, want)) in outputs.iter().zip(&expected).enumerate() {
        if (have.dtype(), have.shape()) != (want.dtype(), want.shape()) {
            let (have, want) = ((have.dtype(), have.shape()), (want.dtype(), want.shape()));
            return Verdict::Wrong(format!("output {index} is {have:?}, {want:?} is right"));
        }
        let (mut relative, mut absolute) = case.tolerance;
        if want.dtype() == DType::Float16 {
            (relative, absolute) = (relative.max(HALF.0), absolute.max(HALF.1));
        }
        // Zeros that are sums of large values are as near as float32 comes to them (DFT).
        let largest = want.to_f64().into_iter().filter(|value| value.is_finite()).fold(0.0, |a: f64, b| a.max(b.abs()));
        absolute = absolute.max(1e-6 * largest);
        // As numpy.testing.assert_allclose, which is how ONNX compares.
        let close = |have: f64, want: f64| {
            have == want || (have.is_nan() && want.is_nan()) || (have - want).abs() <= absolute + relative * want.abs()
        };
        let pairs = have.to_f64().into_iter().zip(want.to_f64());
        if let Some((have, want)) = pairs.into_iter().find(|(have, want)| !close(*have, *want)) {
            return Verdict::Wrong(format!("output {index} holds {have}, {want} is right"));
        }
    }
    Verdict::Right
}

/// Judges all cases, prints the counts, and wants none wrong but those that are known, and as many right as there were.
fn check(backend: &dyn Backend, cases: &[Case], known_wrong: &[(&str, &str)], floors: &[(&str, usize)]) {
    let mut counts: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    let mut refused: BTreeMap<&str, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    let tell = std::env::var_os("WATUS_NODE_TESTS").is_some();
    for case in cases {
        let count = counts.entry(&case.group).or_default();
        if tell {
            println!("case {}/{}", case.group, case.name);
        }
        match judge(backend, case) {
            Verdict::Right => count[0] += 1,
            Verdict::Refused(why) => {
                count[1] += 1;
                *refused.entry(&case.operators).or_default() += 1;
                if tell {
                    println!("refused {}/{}: {}", case.group, case.name, why.replace('\n', " "));
                }
            }
            Verdict::Wrong(how) => {
                count[2] += 1;
                println!("wrong {}/{}: {how}", case.group, case.name);
                if known_wrong.iter().all(|(name, _)| *name != case.name) {
                    wrong.push(format!("{}/{} ({}): {how}", case.group, case.name, case.operators));
                }
            }
        }
    }
    let name = backend.info().name;
    for (group, [right, refused, wrong]) in &counts {
        println!("{name}: {group}: {right} right, {refused} refused, {wrong} wrong");
    }
    let mut refused: Vec<(&str, usize)> = refused.into_iter().collect();
    refused.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let most: Vec<String> = refused.iter().take(40).map(|(operators, count)| format!("{operators} {count}")).collect();
    println!("{name}: refused most: {}", most.join(", "));
    assert!(wrong.is_empty(), "{name}: {} wrong:\n{}", wrong.len(), wrong.join("\n"));
    for (group, floor) in floors {
        let right = counts.get(group).map_or(0, |count| count[0]);
        assert!(right >= *floor, "{name}: {group}: {right} right, there were {floor}");
    }
}

/// Cases that were right when this was written; more is better, less is something lost.
const CPU_RIGHT: &[(&str, usize)] = &[("node", 1030), ("onnxruntime", 800)];

const RUNTIME_RIGHT: &[(&str, usize)] = &[("node", 1425), ("onnxruntime", 870)];
/// Cases it computes otherwise than ONNX says, with the reason.
const RUNTIME_WRONG: &[(&str, &str)] = &[];

#[test]
fn the_cpu_reference_is_right_or_refuses() {
    let Some(cases) = cases("the_cpu_reference_is_right_or_refuses") else { return };
    check(&Cpu, &cases, &[], CPU_RIGHT);
}

#[test]
fn onnxruntime_is_right_or_refuses() {
    if !onnxruntime_or_skip("onnxruntime_is_right_or_refuses") {
        return;
    }
    let Some(cases) = cases("onnxruntime_is_right_or_refuses") else { return };
    check(&OnnxRuntime::find().unwrap().unwrap(), &cases, RUNTIME_WRONG, RUNTIME_RIGHT);
}

/// Writes what `change` makes of each model beside it as `file`, where it makes anything, and compares in onnxruntime.
fn check_rewritten(file: &str, least: usize, change: impl Fn(&mut Model) -> bool) {
    let (Some(folder), Some(cases)) = (folder(), cases(file)) else { return };
    let mut count = 0;
    for case in &cases {
        let Ok(mut model) = Model::load(&case.folder.join("model.onnx")) else { continue };
        if change(&mut model) {
            fs::write(case.folder.join(file), model.to_bytes().unwrap()).unwrap();
            count += 1;
        }
    }
    assert!(count >= least, "{count} of {} were rewritten, there were {least}", cases.len());
    let mut script = Command::new(python().unwrap());
    let (code, stdout, stderr) =
        output(script.arg(repository().join("tests/data/onnx/compare.py")).arg(folder).arg(file));
    println!("{}", stdout.lines().next().unwrap_or_default());
    assert_eq!(code, 0, "{stdout}{stderr}");
}

#[test]
fn simplified_graphs_compute_the_same() {
    // As TensorRT is given them.
    check_rewritten("simplified.onnx", 300, |model| {
        let simplified = model.simplify();
        model.prepare_for_tensorrt() || simplified
    });
}

#[test]
fn older_opsets_compute_the_same() {
    // What cannot be written is refused, and is not compared.
    check_rewritten("older.onnx", 150, |model| model.to_opset(17).unwrap_or(false));
}

/// Cases that engines compute otherwise than ONNX says, with the reason: none is known. What TensorRT-RTX 1.6.1 got wrong as
/// it came is written otherwise (src/onnx/parser.rs) or refused (src/onnx/check.rs).
const TENSORRT_WRONG: &[(&str, &str)] = &[];

/// How long an engine of one node may take, where others take a second. TensorRT-RTX 1.6.1's compiler runs for ever on some
/// graphs, by the names of their nodes; `build` and `verify` load engines in a child that they end.
const STANDS_STILL: Duration = Duration::from_secs(120);

/// TensorRT in threads that are left behind where they stand still.
struct Watched(Arc<TensorRt>);

/// What [`Watched`] asks of a thread: inputs, and where the outputs go.
type Asked = (Vec<Tensor>, mpsc::Sender<Result<Vec<Tensor>, BackendError>>);

struct WatchedSession {
    info: BackendInfo,
    specs: [Vec<TensorSpec>; 2],
    questions: mpsc::Sender<Asked>,
}

fn in_time<T>(answer: &mpsc::Receiver<Result<T, BackendError>>) -> Result<T, BackendError> {
    answer.recv_timeout(STANDS_STILL).unwrap_or_else(|_| Err(BackendError::Load("STANDS STILL".into())))
}

impl Backend for Watched {
    fn info(&self) -> BackendInfo {
        self.0.info()
    }

    fn open(&self, onnx: &Path) -> Result<Box<dyn Session>, BackendError> {
        let (tensorrt, onnx) = (Arc::clone(&self.0), onnx.to_owned());
        let (questions, asked) = mpsc::channel::<Asked>();
        let (opened, answer) = mpsc::channel();
        std::thread::spawn(move || {
            let mut session = match tensorrt.open(&onnx) {
                Ok(session) => session,
                Err(error) => return drop(opened.send(Err(error))),
            };
            let specs = [session.inputs().to_vec(), session.outputs().to_vec()];
            let _ = opened.send(Ok((session.info(), specs)));
            for (inputs, outputs) in asked {
                let _ = outputs.send(session.run(&inputs));
            }
        });
        let (info, specs) = in_time(&answer)?;
        Ok(Box::new(WatchedSession { info, specs, questions }))
    }
}

impl Session for WatchedSession {
    fn info(&self) -> BackendInfo {
        self.info.clone()
    }

    fn inputs(&self) -> &[TensorSpec] {
        &self.specs[0]
    }

    fn outputs(&self) -> &[TensorSpec] {
        &self.specs[1]
    }

    fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, BackendError> {
        let (outputs, answer) = mpsc::channel();
        self.questions.send((inputs.to_vec(), outputs)).unwrap();
        in_time(&answer)
    }
}

#[test]
fn engines_are_right_or_refused() {
    if !tensorrt_or_skip("engines_are_right_or_refused") {
        return;
    }
    if let Err(error) = Device::open() {
        // As in tests/conformance.rs: CI need not have one.
        eprintln!("engines_are_right_or_refused: no GPU ({error}), so nothing is executed");
        return;
    }
    let Some(cases) = cases("engines_are_right_or_refused") else { return };
    check(&Watched(TensorRt::open().unwrap()), &cases, TENSORRT_WRONG, &[]);
}
