//! The CPU reference in a child process under limits. A message is a line of JSON, then tensors as `.npy` files.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Reference;
use crate::backend::{Backend, BackendError, BackendInfo, Session, check_inputs};
use crate::confined::{Confined, ConfinedError, Limits, serve};
use crate::memory::Memory;
use crate::tensor::{Tensor, TensorSpec, read_npy, write_npy};

/// The hidden subcommand a child is started with.
pub const SUBCOMMAND: &str = "__reference";

/// What a graph may use where nobody says otherwise: most of the memory there is, and longer than any honest one takes.
pub fn default_limits() -> Limits {
    let available = Memory::of_this_machine().map_or(0, |memory| memory.available);
    Limits { memory: (available / 4 * 3).max(1 << 30), time: Duration::from_secs(15 * 60) }
}

/// The reference backend in a child of `executable`, which answers to [`SUBCOMMAND`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IsolatedCpu {
    /// This tool.
    pub executable: PathBuf,
    /// For loading, and for each run.
    pub limits: Limits,
}

impl IsolatedCpu {
    /// With the default limits.
    pub fn new(executable: PathBuf) -> Self {
        Self { executable, limits: default_limits() }
    }
}

/// What the parent asks.
#[derive(Debug, Serialize, Deserialize)]
enum Question {
    /// The path's bytes, which need not be text.
    Open(Vec<u8>),
    /// The tensors that follow are the inputs.
    Run,
}

/// What the child answers.
#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    Opened {
        info: BackendInfo,
        inputs: Vec<TensorSpec>,
        outputs: Vec<TensorSpec>,
    },
    /// The tensors that follow are the outputs.
    Ran,
    Load(String),
    Run(String),
    Input {
        name: String,
        message: String,
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

impl Backend for IsolatedCpu {
    fn info(&self) -> BackendInfo {
        Reference.info()
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Session>, BackendError> {
        let name = path.display().to_string();
        let lost = |error: ConfinedError| BackendError::Load(lost(&name, &error));
        let mut child = Confined::start(&self.executable, SUBCOMMAND, self.limits).map_err(lost)?;
        let broken = |message: String| BackendError::Load(format!("CPU reference: {name}: {message}"));
        let question = encode(&Question::Open(path.as_os_str().as_bytes().to_vec()), &[]).map_err(broken)?;
        let answer = child.ask(&question).map_err(lost)?;
        match decode::<Reply>(&answer).map_err(broken)? {
            (Reply::Opened { info, inputs, outputs }, _) => {
                Ok(Box::new(IsolatedSession { child, info, name, inputs, outputs }))
            }
            (other, _) => Err(other.into_error()),
        }
    }
}

impl Reply {
    fn into_error(self) -> BackendError {
        match self {
            Reply::Load(message) => BackendError::Load(message),
            Reply::Run(message) => BackendError::Run(message),
            Reply::Input { name, message } => BackendError::Input { name, message },
            Reply::Opened { .. } | Reply::Ran => {
                BackendError::Run("CPU reference: its process answered another question".to_owned())
            }
        }
    }
}

/// A sentence for work without an answer.
fn lost(model: &str, error: &ConfinedError) -> String {
    let hint = match error {
        ConfinedError::Io(_) | ConfinedError::Starved => "start the command again",
        _ => {
            "`watus-build inspect` shows what the graph holds; a sound one needs a machine with more memory or patience"
        }
    };
    format!("CPU reference: {model}: {error}\n  hint: {hint}")
}

struct IsolatedSession {
    child: Confined,
    info: BackendInfo,
    /// The model, for messages.
    name: String,
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
        let broken = |message: String| BackendError::Run(format!("CPU reference: {}: {message}", self.name));
        let question = encode(&Question::Run, inputs).map_err(broken)?;
        let answer = self.child.ask(&question).map_err(|error| BackendError::Run(lost(&self.name, &error)))?;
        let outputs = match decode::<Reply>(&answer).map_err(broken)? {
            (Reply::Ran, outputs) => outputs,
            (other, _) => return Err(other.into_error()),
        };
        let same = |(spec, output): (&TensorSpec, &Tensor)| spec.dtype == output.dtype();
        if outputs.len() != self.outputs.len() || !self.outputs.iter().zip(&outputs).all(same) {
            return Err(broken("its process gave other outputs than the model has".to_owned()));
        }
        Ok(outputs)
    }
}

/// The child's main.
pub fn child_main() -> Result<(), String> {
    // A panic is told in the answer; what the hook prints would only be in its way.
    std::panic::set_hook(Box::new(|_| {}));
    let mut session = None;
    serve(move |question| {
        let answer = answer(question, &mut session).and_then(|(reply, tensors)| encode(&reply, &tensors));
        let failed = |message: String| encode(&Reply::Run(format!("CPU reference: {message}")), &[]);
        answer.or_else(failed).unwrap_or_default()
    })
}

fn answer(question: &[u8], session: &mut Option<Box<dyn Session>>) -> Result<(Reply, Vec<Tensor>), String> {
    let (question, inputs): (Question, _) = decode(question)?;
    let result = match question {
        Question::Open(path) => Reference.open(&PathBuf::from(std::ffi::OsString::from_vec(path))).map(|opened| {
            let reply = Reply::Opened {
                info: opened.info(),
                inputs: opened.inputs().to_vec(),
                outputs: opened.outputs().to_vec(),
            };
            *session = Some(opened);
            (reply, Vec::new())
        }),
        Question::Run => {
            let session = session.as_mut().ok_or("there is no model yet")?;
            session.run(&inputs).map(|outputs| (Reply::Ran, outputs))
        }
    };
    Ok(result.unwrap_or_else(|error| {
        let reply = match error {
            BackendError::Load(message) => Reply::Load(message),
            BackendError::Input { name, message } => Reply::Input { name, message },
            other => Reply::Run(other.to_string()),
        };
        (reply, Vec::new())
    }))
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
        let bytes = encode(&Reply::Ran, &tensors).unwrap();
        let (reply, found): (Reply, _) = decode(&bytes).unwrap();
        assert!(matches!(reply, Reply::Ran));
        assert_eq!(found, tensors);
        assert!(decode::<Reply>(&bytes[..bytes.len() - 1]).is_err());
        assert!(decode::<Reply>(b"{}").is_err());
    }
}
