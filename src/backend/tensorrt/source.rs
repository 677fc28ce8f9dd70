//! Prepares models for TensorRT, in the same way for a build and for an ONNX file that is opened directly, so that
//! tests of one hold for the other.

use std::path::Path;

use super::Version;
use crate::backend::BackendError;
use crate::diagnostic::Diagnostic;
use crate::onnx::Model;

/// Options of the preparation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// Whether the model is built in half precision.
    pub half: bool,
    /// Whether to build even what is known to be computed wrongly; `None` where the user has no way to ask for that.
    pub force: Option<bool>,
}

impl Wish {
    fn forced(self) -> bool {
        self.force == Some(true)
    }
}

/// Prepares a model for TensorRT, or refuses by name what TensorRT would compute differently. `fix` sets shapes and
/// values that the file leaves open. Returns what `fix` returned, and the model to build from if it is not the given
/// one.
pub fn ready<T, E: From<BackendError>>(
    model: &mut Model,
    version: Version,
    wish: Wish,
    fix: impl FnOnce(&mut Model) -> Result<T, E>,
) -> Result<(T, Option<Model>), E> {
    model.name_nameless();
    if let Some(quantised) = model.quantised(wish.half).filter(|_| !wish.forced()) {
        return Err(refused(model, quantised).into());
    }
    let fixed = fix(model)?;
    model.make_explicit();
    let lean = lean(model, version, wish.forced())?;
    let built = lean.as_ref().unwrap_or(&*model);
    if let Some(fault) = built.parser_fault(version.parser()).filter(|_| !wish.forced()) {
        let or = if wish.force.is_some() { "; or try with --force" } else { "" };
        return Err(refused(model, Diagnostic::new(format!("{fault}{or}"))).into());
    }
    Ok((fixed, lean))
}

fn refused(model: &Model, why: Diagnostic) -> BackendError {
    BackendError::Build(why.at(model.path().display()))
}

/// The model for TensorRT's parser: simplified, written so that the parser interprets it correctly, in an opset it
/// supports. `None` if nothing has to change. The CPU reference runs the original, so an error made here is found by
/// verification.
pub fn lean(model: &Model, version: Version, force: bool) -> Result<Option<Model>, BackendError> {
    let newest = version.parser().newest;
    let mut lean = model.clone();
    let mut changed = lean.simplify();
    changed |= lean.prepare_for_tensorrt();
    if lean.opset() > newest {
        let mut older = lean.clone();
        match older.to_opset(newest) {
            Ok(_) => (lean, changed) = (older, true),
            // It is tried as it is.
            Err(_) if force => {}
            Err(error) => return Err(BackendError::Build(error.into())),
        }
    }
    Ok(changed.then_some(lean))
}

/// Writes a model beside its original file, where its external data is, or to a temporary file, and passes the path to
/// `build`, whose errors are rewritten to name the original file and the nodes.
pub(super) fn with_file<T>(
    model: &Model,
    build: impl FnOnce(&Path) -> Result<T, BackendError>,
) -> Result<T, BackendError> {
    let beside = model.path().parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = if model.external_files().is_empty() { std::env::temp_dir() } else { beside.to_owned() };
    let about = |error: String| BackendError::Build(format!("{}: {error}", folder.display()).into());
    let bytes = model.to_bytes().map_err(|error| BackendError::Build(error.into()))?;
    let file = tempfile::Builder::new().prefix(".watus-").suffix(".onnx").tempfile_in(&folder);
    let file = file.map_err(|error| about(error.to_string()))?;
    std::fs::write(file.path(), bytes).map_err(|error| about(error.to_string()))?;
    let (written, own) = (file.path().to_string_lossy().into_owned(), model.path().to_string_lossy());
    build(file.path()).map_err(|error| match error {
        BackendError::Build(said) => {
            BackendError::Build(said.map_message(|text| model.name_nodes(&text.replace(&written, &own))))
        }
        other => other,
    })
}

/// The error of a model that could not be built, preceded by the reason that its graph reveals; `place` is the user's
/// file.
pub fn explained(model: &Model, place: &Path, version: Version, said: Diagnostic) -> Diagnostic {
    match model.not_built(&version.to_string(), &said.message) {
        Some(told) => Diagnostic { words: Some(said.to_string().into()), ..told.at(place.display()) },
        None => said,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::tensorrt::Family;
    use crate::onnx::GraphBuilder;
    use crate::tensor::DType;

    const RTX: Version = Version { family: Family::Rtx, major: 1, minor: 6, patch: 1 };

    fn model(op: &str) -> Model {
        let mut graph = GraphBuilder::new("g", 17);
        graph.input("x", DType::Float32, &[Some(2), Some(2)]);
        graph.node_named(op, &["x", "x", "x"], &["y"], &[]);
        graph.output("y", DType::Float32, &[None, None]);
        graph.finish(Path::new("g.onnx")).unwrap()
    }

    fn ready_for(op: &str, force: Option<bool>) -> Result<(u8, Option<Model>), BackendError> {
        ready(&mut model(op), RTX, Wish { half: false, force }, |_| Ok::<u8, BackendError>(7))
    }

    #[test]
    fn what_is_refused_says_what_to_do_and_whether_it_can_be_forced() {
        let refused = |op: &str, force| ready_for(op, force).unwrap_err().to_string();
        let told = refused("RoiAlign", Some(false));
        assert!(told.starts_with("g.onnx: node 'RoiAlign_0' (RoiAlign): "), "{told}");
        assert!(told.ends_with("; or try with --force"), "{told}");
        assert!(!refused("RoiAlign", None).contains("--force"));
        assert!(refused("QuantizeLinear", None).contains("it comes quantised"));
        assert!(ready_for("RoiAlign", Some(true)).is_ok());
    }

    #[test]
    fn a_copy_is_given_where_the_parser_would_misread_the_model() {
        let (fixed, lean) = ready_for("Trilu", None).unwrap();
        assert!(fixed == 7 && lean.is_some());
        assert!(ready_for("Sum", None).unwrap().1.is_none());
    }

    #[test]
    fn the_reason_stands_before_tensorrts_words() {
        let said = || "TensorRT cannot read g.onnx\n  node 'NonZero_0' (NonZero): false".to_owned();
        let told = explained(&model("NonZero"), Path::new("m/g.onnx"), RTX, said().into()).to_string();
        assert!(
            told.starts_with("m/g.onnx: node 'NonZero_0' (NonZero): TensorRT-RTX 1.6.1 does not build it"),
            "{told}"
        );
        assert!(told.contains("\n  hint: ") && told.ends_with(&format!("\n  {}", said())), "{told}");
        assert_eq!(explained(&model("Relu"), Path::new("g.onnx"), RTX, said().into()), Diagnostic::new(said()));
    }

    #[test]
    fn errors_are_of_the_file_that_was_named() {
        let failed: Result<(), _> = with_file(&model("Relu"), |path| {
            assert!(Model::load(path).is_ok());
            Err(BackendError::Build(format!("cannot read {}: node #0", path.display()).into()))
        });
        assert_eq!(failed.unwrap_err().to_string(), "cannot read g.onnx: node 'Relu_0' (Relu)");
    }
}
