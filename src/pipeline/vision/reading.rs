//! Determines what a classifier's output holds: the recipe decides, unless the model's last nodes contradict it.

use std::path::Path;

use anyhow::bail;

use crate::diagnostic::Diagnostic;
use crate::onnx::{Ending, Model};
use crate::spec::ClassifierOutput;

/// How to interpret the output of a model, whose file the user knows as `place`, and warnings about it. `default`
/// applies if neither the recipe nor the model's last nodes decide.
pub(super) fn reading(
    (model, place): (&Model, &Path),
    said: Option<ClassifierOutput>,
    default: ClassifierOutput,
) -> anyhow::Result<(ClassifierOutput, Option<String>)> {
    use ClassifierOutput::{Expectation, Logits, Multilabel, MultilabelProbabilities, Probabilities};
    let ending = model.ending();
    let Some(said) = said else {
        return Ok(match (default, &ending) {
            (Logits, Ending::Softmax(node)) => (Probabilities, Some(found(node, "probabilities", Probabilities))),
            (Logits, Ending::Sigmoid(node)) => {
                let what = "probabilities of labels that do not exclude each other";
                (MultilabelProbabilities, Some(found(node, what, MultilabelProbabilities)))
            }
            _ => (default, None),
        });
    };
    let (node, makes, way) = match (said, &ending) {
        (Logits | Multilabel, Ending::Softmax(node)) => (node, "probabilities already", "leave `output:` out"),
        (Logits | Multilabel, Ending::Sigmoid(node)) => {
            let way = "leave `output:` out, or say `output: multilabel_probabilities`";
            (node, "probabilities of labels that do not exclude each other already", way)
        }
        (Probabilities | Expectation, Ending::Sigmoid(node)) => {
            let what = "probabilities of labels that do not exclude each other";
            (node, what, "leave `output:` out, or say `output: multilabel_probabilities`")
        }
        (Expectation, Ending::LogSoftmax(node)) => (node, "logarithms of probabilities", EXPORT),
        (Multilabel | MultilabelProbabilities | Probabilities, Ending::LogSoftmax(node)) => {
            (node, "logarithms of probabilities", "say `output: logits`: the softmax of these gives the probabilities")
        }
        (Probabilities, Ending::Scores(node)) => (node, SCORES, "say `output: logits`: they get a softmax"),
        (MultilabelProbabilities, Ending::Scores(node)) => {
            (node, SCORES, "say `output: multilabel`: each gets a sigmoid")
        }
        (Expectation, Ending::Scores(node)) => (node, SCORES, EXPORT),
        _ => return Ok((said, None)),
    };
    bail!(
        Diagnostic::new(format!(
            "{}: the recipe says `output: {}`, and {node}, with which the model ends, makes {makes}",
            place.display(),
            said.word()
        ))
        .with_help(way)
    )
}

const SCORES: &str = "scores of any size";
const EXPORT: &str = "export the model with a Softmax at its end";

fn found(node: &str, what: &str, output: ClassifierOutput) -> String {
    format!("{node}, with which the model ends, makes {what}, and so they are read (`output: {}`)", output.word())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::GraphBuilder;
    use crate::tensor::{DType, Tensor};

    fn model(last: &str) -> Model {
        let mut graph = GraphBuilder::new("g", 17);
        graph.input("x", DType::Float32, &[Some(1), Some(2)]);
        graph.initializer("w", &Tensor::from_f32(vec![2, 2], vec![0.5; 4]).unwrap());
        let scores = graph.node("MatMul", &["x", "w"], &[]);
        graph.node_named(last, &[&scores], &["y"], &[]);
        graph.output("y", DType::Float32, &[Some(1), Some(2)]);
        graph.finish(Path::new("g.onnx")).unwrap()
    }

    #[test]
    fn what_recipe_and_model_say_agrees_or_is_told() {
        use ClassifierOutput::*;
        for (last, said, read, noted) in [
            ("Softmax", None, Probabilities, true),
            ("Sigmoid", None, MultilabelProbabilities, true),
            // The softmax of log-probabilities gives the probabilities.
            ("LogSoftmax", None, Logits, false),
            ("Identity", None, Logits, false),
            ("Tanh", None, Logits, false),
            ("Softmax", Some(Expectation), Expectation, false),
            ("Softmax", Some(Values), Values, false),
            ("Sigmoid", Some(MultilabelProbabilities), MultilabelProbabilities, false),
            ("Identity", Some(Multilabel), Multilabel, false),
            ("LogSoftmax", Some(Logits), Logits, false),
            ("Tanh", Some(Probabilities), Probabilities, false),
        ] {
            let (output, note) = reading((&model(last), Path::new("g.onnx")), said, Logits).unwrap();
            assert_eq!((output, note.is_some()), (read, noted), "{last}, {said:?}: {note:?}");
            let word = format!("`output: {}`", read.word());
            assert!(note.is_none_or(|note| note.contains(last) && note.contains(&word)), "{last}");
        }
        for (last, said, makes, way) in [
            ("Softmax", Logits, "probabilities already", "leave `output:` out"),
            ("Softmax", Multilabel, "probabilities already", "leave `output:` out"),
            ("Sigmoid", Logits, "do not exclude each other already", "multilabel_probabilities"),
            ("Sigmoid", Expectation, "do not exclude each other", "multilabel_probabilities"),
            ("LogSoftmax", Probabilities, "logarithms", "`output: logits`"),
            ("Identity", Probabilities, "scores of any size", "`output: logits`"),
            ("Identity", MultilabelProbabilities, "scores of any size", "`output: multilabel`"),
            ("Identity", Expectation, "scores of any size", "a Softmax at its end"),
        ] {
            let error = reading((&model(last), Path::new("g.onnx")), Some(said), Logits).unwrap_err().to_string();
            let begin = format!("g.onnx: the recipe says `output: {}`, and node '", said.word());
            assert!(error.starts_with(&begin) && error.contains(makes) && error.contains(way), "{error}");
        }
        // What a checkpoint's `problem_type` says is not guessed anew.
        assert_eq!(reading((&model("Softmax"), Path::new("g.onnx")), None, Values).unwrap(), (Values, None));
    }
}
