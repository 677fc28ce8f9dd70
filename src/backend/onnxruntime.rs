//! ONNX Runtime on the CPU, opened at run time. It implements all of ONNX, so it is the preferred CPU reference.
//!
//! The library is searched in `WATUS_ONNXRUNTIME_LIB` (the file or its folder; empty for none), then where
//! `scripts/setup-onnxruntime.sh` installs it, then by the dynamic loader ([`library`]). The oldest supported version
//! is 1.17. Its log is discarded, since its errors contain what matters.

pub mod library;

use std::panic::catch_unwind;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use half::f16;
use ort::environment::Environment;
use ort::session::{Session as OrtSession, SessionInputValue, SessionOutputs, builder::GraphOptimizationLevel};
use ort::value::{DynValue, PrimitiveTensorElementType, Tensor as OrtTensor, TensorRef};

use self::library::{Broken, Found, Library, Place};
use super::{Backend, BackendError, BackendInfo, Session, check_inputs, cpu};
use crate::diagnostic::Diagnostic;
use crate::onnx;
use crate::tensor::{DType, Tensor, TensorData, TensorSpec};

/// Disables the library's telemetry, and the machine identifier that it would create. To be called before the library
/// is loaded, while the process has one thread.
#[allow(unsafe_code)]
pub fn disable_telemetry() {
    // Microsoft's telemetry in the official libraries writes ~/.cache/Microsoft as they are loaded; `with_telemetry(false)`,
    // which is said later, is too late for that.
    // SAFETY: the process has one thread yet: this is the first that `main` does.
    unsafe { std::env::set_var("ORT_DISABLE_TELEMETRY", "1") };
}

/// The opened library.
pub struct OnnxRuntime {
    environment: Environment,
    library: Library,
}

/// The result of opening the library.
enum Opened {
    Absent,
    Ready(OnnxRuntime),
    Broken(Broken),
}

/// Why the library is not open.
enum Closed {
    Absent,
    Unusable(String),
}

impl OnnxRuntime {
    /// Opens the library once; `None` if there is none. A library that the user named but that cannot be used is an
    /// error.
    pub fn find() -> Result<Option<&'static Self>, BackendError> {
        match Self::opened() {
            Opened::Ready(runtime) => Ok(Some(runtime)),
            Opened::Broken(broken) if broken.named => Err(broken.error()),
            Opened::Broken(_) | Opened::Absent => Ok(None),
        }
    }

    /// Finds out whether there is a usable library by opening it in this process.
    pub fn look() -> Found {
        match Self::opened() {
            Opened::Ready(runtime) => Found::Ready(runtime.library.clone()),
            Opened::Broken(broken) => Found::Broken(broken.clone()),
            Opened::Absent => Found::Absent,
        }
    }

    /// Path and version of the library.
    pub fn library(&self) -> &Library {
        &self.library
    }

    fn opened() -> &'static Opened {
        static OPENED: OnceLock<Opened> = OnceLock::new();
        OPENED.get_or_init(|| match (library::given_up(), Place::find()) {
            (Some(broken), _) => Opened::Broken(broken.clone()),
            (None, None) => Opened::Absent,
            (None, Some(place)) => match Self::open(&place) {
                Ok(runtime) => Opened::Ready(runtime),
                Err(Closed::Absent) => Opened::Absent,
                Err(Closed::Unusable(why)) => Opened::Broken(place.broken(why)),
            },
        })
    }

    fn open(place: &Place) -> Result<Self, Closed> {
        if let Some(fault) = place.fault() {
            return Err(Closed::Unusable(fault));
        }
        // ort takes for granted what a library need not do.
        let environment = catch_unwind(|| environment(place));
        let environment = environment.unwrap_or_else(|_| Err(Closed::Unusable("it is not what it says".to_owned())))?;
        Ok(Self { environment, library: place.library() })
    }

    /// Prepares a float32 graph for operands in the caller's memory.
    pub(super) fn prepare(&self, graph: &onnx::Model) -> Result<PreparedGraph, BackendError> {
        let load = |error: onnx::OnnxError| BackendError::Load(error.into());
        let session = self.session(ModelSource::Bytes(&graph.to_bytes().map_err(load)?))?;
        let names = graph.inputs().map_err(load)?.into_iter().map(|spec| spec.name).collect();
        Ok(PreparedGraph { session, names })
    }

    /// Opens a session on a model file (weights beside it are found) or on a model's bytes.
    fn session(&self, model: ModelSource<'_>) -> Result<OrtSession, BackendError> {
        let build = || -> ort::Result<OrtSession> {
            let builder = OrtSession::builder(&self.environment)?;
            let mut builder =
                builder.with_intra_threads(cpu::threads())?.with_optimization_level(GraphOptimizationLevel::All)?;
            match model {
                ModelSource::File(path) => builder.commit_from_file(path),
                ModelSource::Bytes(bytes) => builder.commit_from_memory(bytes),
            }
        };
        build().map_err(|error| BackendError::Load(sentence(&error).into()))
    }
}

/// Source of a model.
enum ModelSource<'a> {
    File(&'a Path),
    Bytes(&'a [u8]),
}

fn environment(place: &Place) -> Result<Environment, Closed> {
    // ort takes a name without a folder for one beside this executable, then asks the loader.
    let builder = ort::init_from(&place.path).map_err(|error| not_loaded(place, &error))?;
    let silent = Arc::new(|_: ort::logging::LogLevel, _: &str, _: &str, _: &str, _: &str| {});
    let environment = builder.with_name("watus-build").with_telemetry(false).with_logger(silent).build();
    environment.map_err(|error| Closed::Unusable(format!("it does not start: {}", one_line(error.message()))))
}

fn not_loaded(place: &Place, error: &ort::LoadDynamicError) -> Closed {
    use ort::LoadDynamicError as Error;
    let why = match error {
        // The loader's own words are the cause; it says by name what it does not find.
        Error::Dlopen { error, .. } => {
            let words = std::error::Error::source(error).map_or_else(|| error.to_string(), |source| source.to_string());
            if place.is_missing(&words) {
                return Closed::Absent;
            }
            format!("it cannot be opened: {}", one_line(&words))
        }
        Error::MissingApi { .. } => "it is another library: it has no OrtGetApiBase".to_owned(),
        Error::InvalidVersionString => "its version is no text".to_owned(),
        Error::BadVersion { version_str, .. } => library::too_old(version_str),
    };
    Closed::Unusable(why)
}

/// The library's error as one line.
fn sentence(error: &ort::Error) -> String {
    format!("{}: {}", cpu::NAME, one_line(error.message()))
}

fn one_line(words: &str) -> String {
    let lines: Vec<&str> = words.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join(" ")
}

impl Backend for &'static OnnxRuntime {
    fn info(&self) -> BackendInfo {
        cpu::info_of(&self.library.engine())
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Session>, BackendError> {
        let unusable = |error: onnx::OnnxError| BackendError::Load(error.into());
        let model = onnx::Model::load(path).map_err(unusable)?;
        let specs = |specs: Result<Vec<TensorSpec>, onnx::OnnxError>| specs.map_err(unusable);
        let (inputs, outputs) = (specs(model.inputs())?, specs(model.outputs())?);
        if let Some(why) = model.beyond_runtime() {
            return Err(BackendError::Load(format!("{}: {}: {why}", cpu::NAME, path.display()).into()));
        }
        let session = self.session(ModelSource::File(path));
        let session = session.map_err(|error| BackendError::Load(format!("{error} ({})", path.display()).into()))?;
        Ok(Box::new(RuntimeSession { info: self.info(), session, inputs, outputs }))
    }
}

struct RuntimeSession {
    info: BackendInfo,
    session: OrtSession,
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
}

impl Session for RuntimeSession {
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
        let run = |error: ort::Error| BackendError::Run(sentence(&error).into());
        let named = self.inputs.iter().zip(inputs).map(|(spec, tensor)| Ok((spec.name.as_str(), value(tensor)?)));
        let named = named.collect::<ort::Result<Vec<_>>>().map_err(run)?;
        let results = self.session.run(named).map_err(run)?;
        self.outputs.iter().map(|spec| read(spec, &results)).collect()
    }
}

/// An input that refers to values in row-major order.
fn view<'a, T>(shape: &'a [usize], values: &'a [T]) -> ort::Result<SessionInputValue<'a>>
where
    T: PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static,
{
    Ok(TensorRef::from_array_view((shape, values))?.into())
}

/// An input that refers to a host tensor; booleans are copied.
fn value(tensor: &Tensor) -> ort::Result<SessionInputValue<'_>> {
    let shape = tensor.shape();
    match tensor.data() {
        TensorData::F32(values) => view(shape, values),
        TensorData::F16(values) => view(shape, values),
        TensorData::I8(values) => view(shape, values),
        TensorData::U8(values) => view(shape, values),
        TensorData::I32(values) => view(shape, values),
        TensorData::I64(values) => view(shape, values),
        TensorData::Bool(values) => {
            let values: Vec<bool> = values.iter().map(|value| *value != 0).collect();
            Ok(OrtTensor::from_array((shape, values))?.into())
        }
    }
}

/// A float32 graph that runs on borrowed values.
pub(super) struct PreparedGraph {
    session: OrtSession,
    names: Vec<String>,
}

impl PreparedGraph {
    /// Runs on (shape, values) in the order of the graph's inputs; returns the values of each output, in order.
    pub(super) fn run<'a>(
        &mut self,
        inputs: impl Iterator<Item = (&'a [usize], &'a [f32])>,
    ) -> Result<Vec<Vec<f32>>, BackendError> {
        let run = |error: ort::Error| BackendError::Run(sentence(&error).into());
        let named = self.names.iter().zip(inputs);
        let named = named.map(|(name, (shape, values))| Ok((name.as_str(), view(shape, values)?)));
        let named = named.collect::<ort::Result<Vec<_>>>().map_err(run)?;
        let results = self.session.run(named).map_err(run)?;
        results.values().map(|value| Ok(value.try_extract_tensor::<f32>().map_err(run)?.1.to_vec())).collect()
    }
}

fn elements<T>(value: &DynValue) -> ort::Result<(Vec<usize>, Vec<T>)>
where
    T: PrimitiveTensorElementType + Clone,
{
    let (shape, values) = value.try_extract_tensor::<T>()?;
    Ok((shape.iter().map(|dim| usize::try_from(*dim).unwrap_or(0)).collect(), values.to_vec()))
}

/// Copies an output to a host tensor.
fn read(spec: &TensorSpec, results: &SessionOutputs<'_>) -> Result<Tensor, BackendError> {
    let told = |what: &str| Diagnostic::new(format!("CPU reference: output {spec} {what}"));
    let wrong = |what: &str| BackendError::Run(told(what));
    let value = results.get(spec.name.as_str()).ok_or_else(|| wrong("did not come back"))?;
    let typed = || -> ort::Result<Option<(Vec<usize>, TensorData)>> {
        let with = |(shape, data)| Some((shape, data));
        fn parts<T>(parts: (Vec<usize>, Vec<T>), data: fn(Vec<T>) -> TensorData) -> (Vec<usize>, TensorData) {
            (parts.0, data(parts.1))
        }
        Ok(match spec.dtype {
            DType::Float32 => with(parts(elements::<f32>(value)?, TensorData::F32)),
            DType::Float16 => with(parts(elements::<f16>(value)?, TensorData::F16)),
            DType::Int8 => with(parts(elements::<i8>(value)?, TensorData::I8)),
            DType::UInt8 => with(parts(elements::<u8>(value)?, TensorData::U8)),
            DType::Int32 => with(parts(elements::<i32>(value)?, TensorData::I32)),
            DType::Int64 => with(parts(elements::<i64>(value)?, TensorData::I64)),
            DType::Bool => {
                let (shape, values) = elements::<bool>(value)?;
                with((shape, TensorData::Bool(values.into_iter().map(u8::from).collect())))
            }
            DType::BFloat16 => None,
        })
    };
    let parts = typed().map_err(|error| wrong(&format!("came back otherwise: {}", error.message())))?;
    let (shape, data) = parts
        .ok_or_else(|| BackendError::Run(told("cannot be read").with_help("have it cast to float32 in the graph")))?;
    Tensor::new(shape, data).ok_or_else(|| wrong("does not fill its shape"))
}
