//! Sessions in a child process under limits: the CPU reference, whose graphs come from strangers, and TensorRT's
//! engines before they are verified, since a library that crashes or hangs must not take this process with it. A
//! message is a line of JSON, followed by tensors as `.npy` files.

mod child;
mod proof_process;

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use child::child_main;
pub use proof_process::ProofProcess;

use super::cpu::{NAME, Named, info, info_of, named_engine};
use super::onnxruntime::library::{self, Broken, Found, Library, Place, SET_UP};
use super::tensorrt::{TensorRt, Version};
use super::{Backend, BackendError, BackendInfo, Session, check_inputs};
use crate::confined::{self, Confined, ConfinedError, ENABLE, Limits, NOT_ENABLED};
use crate::diagnostic::Diagnostic;
use crate::memory::Memory;
use crate::tensor::{Tensor, TensorSpec, read_npy, write_npy};

/// Hidden argument that starts a child.
pub const SUBCOMMAND: &str = "__session";

/// Default limits for a graph: most of the machine's memory, and more time than any reasonable graph takes.
pub fn default_limits() -> Limits {
    let available = Memory::of_this_machine().map_or(0, |memory| memory.available);
    Limits { memory: (available / 4 * 3).max(1 << 30), time: Duration::from_secs(15 * 60) }
}

/// Time limit for loading an engine and for one run. Both take seconds; but the compiler of TensorRT-RTX 1.6.1 never
/// ends on some graphs, depending on the names of their nodes (seen with GreaterOrEqual and GRU on an H100 and an
/// H200).
const ENGINE_TIME: Duration = Duration::from_secs(10 * 60);

/// Starts child processes of `executable`, which must have the subcommand [`SUBCOMMAND`]. As a [`Backend`] it is the
/// CPU reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Isolated {
    /// Path of the program that is started: this one, or another that calls `enable_child_processes`.
    pub executable: PathBuf,
    /// Limits of the CPU reference; the time for loading, and for each run.
    pub limits: Limits,
    /// Time limit of TensorRT for loading, and for each run. Its memory is not limited, since CUDA reserves more
    /// address space than there is memory.
    pub engine_time: Duration,
}

impl Isolated {
    /// With the default limits.
    pub fn new(executable: PathBuf) -> Self {
        Self { executable, limits: default_limits(), engine_time: ENGINE_TIME }
    }

    /// Children of the running program; an error where it has not said that it can be started again.
    pub fn of_this_program() -> Result<Self, BackendError> {
        Ok(Self::new(this_program()?.to_owned()))
    }
}

/// The running program, if children of it may be started.
pub fn this_program() -> Result<&'static Path, BackendError> {
    let missing = || BackendError::Unavailable { what: NOT_ENABLED.to_owned(), help: ENABLE.to_owned() };
    confined::program().ok_or_else(missing)
}

/// A request to the child.
#[derive(Debug, Serialize, Deserialize)]
enum Question {
    /// Open ONNX Runtime and report which library it is.
    Library,
    /// Open an ONNX file with ONNX Runtime or rten. The path is in bytes, since it need not be UTF-8.
    Open { path: Vec<u8>, by_runtime: bool },
    /// Load an engine file with TensorRT.
    Engine { path: Vec<u8>, tf32: bool },
    /// Run on the tensors that follow.
    Run,
}

/// A child's reply.
#[derive(Debug, Serialize, Deserialize)]
enum ChildReply {
    Library(Found),
    Unavailable {
        what: String,
        help: String,
    },
    Opened {
        info: BackendInfo,
        inputs: Vec<TensorSpec>,
        outputs: Vec<TensorSpec>,
    },
    /// A run's outputs, which follow.
    Ran,
    Load(Diagnostic),
    Run(Diagnostic),
    Input {
        name: String,
        message: Diagnostic,
    },
}

fn encode(message: &impl Serialize, tensors: &[Tensor]) -> Result<Vec<u8>, String> {
    let mut bytes = serde_json::to_vec(message).map_err(|error| error.to_string())?;
    bytes.push(b'\n');
    for tensor in tensors {
        write_npy(&mut bytes, tensor).map_err(|error| error.to_string())?;
    }
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, Vec<Tensor>), String> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or("a message without an end")?;
    let message = serde_json::from_slice(&bytes[..end]).map_err(|error| error.to_string())?;
    let (mut rest, mut tensors) = (&bytes[end + 1..], Vec::new());
    while !rest.is_empty() {
        tensors.push(read_npy(&mut rest).map_err(|error| error.to_string())?);
    }
    Ok((message, tensors))
}

impl Isolated {
    /// Finds ONNX Runtime by opening it in a child: a library that crashes when it is opened is broken, without further
    /// damage.
    pub fn library(&self) -> Result<Found, BackendError> {
        self.look().map(|(_, found)| found)
    }

    /// Starts a child and finds its library. If the library ended the child, a new one is returned.
    fn look(&self) -> Result<(Confined, Found), BackendError> {
        let lost = |error: ConfinedError| BackendError::Load(lost("starting it", &Who::Rten, &error));
        let mut child = Confined::start(&self.executable, SUBCOMMAND, self.limits).map_err(lost)?;
        // What ended one child would end the next.
        if let Some(broken) = library::given_up() {
            return Ok((child, Found::Broken(broken.clone())));
        }
        let broken = |message: String| BackendError::Load(format!("{}: {message}", Who::Rten).into());
        let question = encode(&Question::Library, &[]).map_err(broken)?;
        let error = match child.ask(&question) {
            Ok(answer) => {
                return match decode::<ChildReply>(&answer).map_err(broken)? {
                    (ChildReply::Library(found), _) => Ok((child, found)),
                    (other, _) => Err(other.into_error()),
                };
            }
            Err(error) => error,
        };
        let ended = matches!(error, ConfinedError::Died(_) | ConfinedError::TooLong(_));
        let Some(place) = Place::find().filter(|_| ended) else { return Err(lost(error)) };
        let child = Confined::start(&self.executable, SUBCOMMAND, self.limits).map_err(lost)?;
        let named = place.named || named_engine()? == Some(Named::OnnxRuntime);
        let broken = Broken { named, ..place.broken(format!("opening it failed: {error}")) };
        Ok((child, Found::Broken(broken)))
    }

    /// Starts a child, with the library that it uses, or `None` for rten. A broken library that the user named is an
    /// error.
    fn start(&self) -> Result<(Confined, Option<Library>), BackendError> {
        match self.look()? {
            (child, Found::Ready(library)) => Ok((child, Some(library))),
            (child, Found::Absent) => Ok((child, None)),
            (_, Found::Broken(broken)) if broken.named => Err(broken.error()),
            (child, Found::Broken(broken)) => {
                library::give_up(broken);
                Ok((child, None))
            }
        }
    }
}

impl Backend for Isolated {
    fn info(&self) -> BackendInfo {
        let library = self.start().ok().and_then(|(_, library)| library);
        library.map_or_else(info, |library| info_of(&library.engine()))
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Session>, BackendError> {
        let (child, library) = self.start()?;
        let question = Question::Open { path: path.as_os_str().as_bytes().to_vec(), by_runtime: library.is_some() };
        opened(child, library.map_or(Who::Rten, Who::OnnxRuntime), path, &question)
    }
}

impl Isolated {
    /// Loads an engine file on the GPU; `tf32` must be as it was built.
    pub fn load(&self, tensorrt: &TensorRt, engine: &Path, tf32: bool) -> Result<Box<dyn Session>, BackendError> {
        let question = Question::Engine { path: engine.as_os_str().as_bytes().to_vec(), tf32 };
        opened(self.start_engine()?, Who::TensorRt(tensorrt.version), engine, &question)
    }

    fn start_engine(&self) -> Result<Confined, BackendError> {
        let limits = Limits { memory: u64::MAX, time: self.engine_time };
        Confined::start(&self.executable, SUBCOMMAND, limits)
            .map_err(|error| BackendError::Load(error.to_string().into()))
    }
}

/// The session of the file that a child was asked to open.
fn opened(mut child: Confined, who: Who, path: &Path, question: &Question) -> Result<Box<dyn Session>, BackendError> {
    let name = path.display().to_string();
    let broken = |message: String| BackendError::Load(format!("{who}: {name}: {message}").into());
    let question = encode(question, &[]).map_err(broken)?;
    let answer = child.ask(&question).map_err(|error| BackendError::Load(lost(&name, &who, &error)))?;
    match decode::<ChildReply>(&answer).map_err(broken)? {
        (ChildReply::Opened { info, inputs, outputs }, _) => {
            Ok(Box::new(IsolatedSession { child, info, name, who, inputs, outputs }))
        }
        (other, _) => Err(other.into_error()),
    }
}

/// The backend in a child, for messages.
#[derive(Debug, Clone)]
enum Who {
    Rten,
    OnnxRuntime(Library),
    TensorRt(Version),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Rten | Who::OnnxRuntime(_) => f.write_str(NAME),
            Who::TensorRt(version) => version.fmt(f),
        }
    }
}

impl ChildReply {
    fn into_error(self) -> BackendError {
        match self {
            ChildReply::Load(message) => BackendError::Load(message),
            ChildReply::Run(message) => BackendError::Run(message),
            ChildReply::Input { name, message } => BackendError::Input { name, message },
            ChildReply::Unavailable { what, help } => BackendError::Unavailable { what, help },
            ChildReply::Library(_) | ChildReply::Opened { .. } | ChildReply::Ran => {
                BackendError::Run("CPU reference: its process answered another question".into())
            }
        }
    }
}

/// The message for a request that was not answered, and what to do.
fn lost(model: &str, who: &Who, error: &ConfinedError) -> Diagnostic {
    let begin = format!("{who}: {model}");
    match (error, who) {
        (ConfinedError::Io(_) | ConfinedError::Starved, _) => {
            Diagnostic::new(format!("{begin}: {error}")).with_help("start the command again")
        }
        (ConfinedError::TooLong(_) | ConfinedError::Died(_), Who::TensorRt(_)) => {
            Diagnostic::new(format!("{begin}: {error}, inside TensorRT, where the engine is loaded or run")).with_help(
                "this TensorRT has a fault that this graph meets; for some it is the names of its nodes that matter: export \
                 the model again with others, change its shapes, or take another TensorRT (`watus-build doctor` shows which \
                 one is used)",
            )
        }
        (ConfinedError::Died(death), Who::OnnxRuntime(library)) if !death.is_too_large() => {
            Diagnostic::new(format!("{begin}: {library}: {error}")).with_help(format!(
                "if other models fare alike the library is damaged: {SET_UP} brings it again, and `{}=` computes with rten",
                library::VARIABLE
            ))
        }
        _ => Diagnostic::new(format!("{begin}: {error}")).with_help(
            "`watus-build inspect` shows what the graph holds; a sound one needs a machine with more memory or patience",
        ),
    }
}

struct IsolatedSession {
    child: Confined,
    info: BackendInfo,
    /// Name of the model, for messages.
    name: String,
    who: Who,
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
}

impl Session for IsolatedSession {
    fn info(&self) -> BackendInfo {
        self.info.clone()
    }

    fn inputs(&self) -> &[TensorSpec] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorSpec] {
        &self.outputs
    }

    fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, BackendError> {
        check_inputs(&self.inputs, inputs)?;
        let broken = |message: String| BackendError::Run(format!("{}: {}: {message}", self.who, self.name).into());
        let question = encode(&Question::Run, inputs).map_err(broken)?;
        let lost = |error: ConfinedError| BackendError::Run(lost(&self.name, &self.who, &error));
        let answer = self.child.ask(&question).map_err(lost)?;
        let outputs = match decode::<ChildReply>(&answer).map_err(broken)? {
            (ChildReply::Ran, outputs) => outputs,
            (other, _) => return Err(other.into_error()),
        };
        let same = |(spec, output): (&TensorSpec, &Tensor)| spec.dtype == output.dtype();
        if outputs.len() != self.outputs.len() || !self.outputs.iter().zip(&outputs).all(same) {
            return Err(broken("its process gave other outputs than the model has".to_owned()));
        }
        Ok(outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn messages_round_trip() {
        let tensors = [
            Tensor::seeded(DType::Float16, vec![2, 3], 1).unwrap(),
            Tensor::seeded(DType::Bool, vec![], 2).unwrap(),
            Tensor::seeded(DType::Int64, vec![0, 7], 3).unwrap(),
        ];
        let bytes = encode(&ChildReply::Ran, &tensors).unwrap();
        let (reply, found): (ChildReply, _) = decode(&bytes).unwrap();
        assert!(matches!(reply, ChildReply::Ran));
        assert_eq!(found, tensors);
        assert!(decode::<ChildReply>(&bytes[..bytes.len() - 1]).is_err());
        assert!(decode::<ChildReply>(b"{}").is_err());
    }

    /// As a test's program does not: it would run all tests again.
    #[test]
    fn a_program_that_has_not_said_so_is_not_started_again() {
        let error = Isolated::of_this_program().unwrap_err().to_string();
        let expected = "this program has not said that it can be started again as a child\n  hint: call \
                        `watus_build::enable_child_processes()` first thing in its `main`";
        assert_eq!(error, expected);
        let limits = Limits { memory: 1 << 30, time: Duration::from_secs(1) };
        assert_eq!(confined::start(SUBCOMMAND, limits).unwrap_err().to_string(), expected);
    }
}
