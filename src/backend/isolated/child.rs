//! The child process's side: opens a model and runs it in this process.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::{ChildReply, Question, decode, encode};
use crate::backend::cpu::{Cpu, Reference};
use crate::backend::tensorrt::{TensorRt, plan};
use crate::backend::{Backend, BackendError, Session};
use crate::confined::serve;
use crate::regular_file;
use crate::tensor::Tensor;

/// Main function of a child.
pub fn child_main() -> Result<(), String> {
    // A panic is told in the answer; what the hook prints would only be in its way.
    std::panic::set_hook(Box::new(|_| {}));
    let mut session = None;
    serve(move |question| {
        let answer = answer(question, &mut session).and_then(|(reply, tensors)| encode(&reply, &tensors));
        let failed = |message: String| encode(&ChildReply::Run(format!("CPU reference: {message}").into()), &[]);
        answer.or_else(failed).unwrap_or_default()
    })
}

fn path_of(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}

fn load(path: &Path, tf32: bool) -> Result<Box<dyn Session>, BackendError> {
    let file = regular_file::read(path, u64::MAX)
        .map_err(|error| BackendError::Load(format!("cannot read {}: {error}", path.display()).into()))?;
    TensorRt::open()?.load(plan::split(&file).1, tf32)
}

/// Keeps a session for later requests, and returns its description.
fn keep(opened: Box<dyn Session>, session: &mut Option<Box<dyn Session>>) -> (ChildReply, Vec<Tensor>) {
    let (info, inputs, outputs) = (opened.info(), opened.inputs().to_vec(), opened.outputs().to_vec());
    *session = Some(opened);
    (ChildReply::Opened { info, inputs, outputs }, Vec::new())
}

fn answer(question: &[u8], session: &mut Option<Box<dyn Session>>) -> Result<(ChildReply, Vec<Tensor>), String> {
    let (question, inputs): (Question, _) = decode(question)?;
    let result = match question {
        Question::Library => Reference::library().map(|found| (ChildReply::Library(found), Vec::new())),
        Question::Open { path, by_runtime } => {
            let path = path_of(path);
            let opened = if by_runtime { Reference.open(&path) } else { Cpu.open(&path) };
            opened.map(|opened| keep(opened, session))
        }
        Question::Engine { path, tf32 } => load(&path_of(path), tf32).map(|opened| keep(opened, session)),
        Question::Run => {
            let session = session.as_mut().ok_or("there is no model yet")?;
            session.run(&inputs).map(|outputs| (ChildReply::Ran, outputs))
        }
    };
    Ok(result.unwrap_or_else(|error| {
        let reply = match error {
            BackendError::Load(message) => ChildReply::Load(message),
            BackendError::Input { name, message } => ChildReply::Input { name, message },
            BackendError::Unavailable { what, help } => ChildReply::Unavailable { what, help },
            other => ChildReply::Run(other.into()),
        };
        (reply, Vec::new())
    }))
}
