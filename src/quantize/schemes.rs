//! Chooses what of a model is quantised, and by which scheme: the layers' matrices, and the output matrix (LM head).

use anyhow::bail;

use super::{OriginalModel, Scheme};
use crate::convert::{Part, Transformer};
use crate::diagnostic::Diagnostic;

/// What is asked for: bits of the integers, `None` for matrices that stay as the checkpoint has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuantisedBits {
    /// Of the layers' matrices.
    pub layers: Option<u32>,
    /// Of the output matrix.
    pub head: Option<u32>,
}

/// The schemes of a model; `None` for matrices that stay as the checkpoint has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Schemes {
    /// Of the layers' matrices.
    pub layers: Option<Scheme>,
    /// Of the output matrix.
    pub head: Option<Scheme>,
}

impl Schemes {
    /// The schemes of a model called `name` that holds floats, by its sizes alone: its checkpoint need not be here.
    pub fn of_floats(name: &str, model: &Transformer, bits: QuantisedBits) -> Result<Self, Diagnostic> {
        let weights = model.layer_weights(0).into_iter().filter(|weight| weight.role.is_matrix());
        let matrices: Vec<Part> = weights.flat_map(|weight| weight.parts).collect();
        let layers = bits.layers.map(|bits| Scheme::choose(name, &matrices, bits, None)).transpose()?;
        let group = layers.map(|layers: Scheme| layers.group);
        let head = bits.head.map(|bits| Scheme::choose(name, &[model.output_matrix()], bits, group)).transpose()?;
        Ok(Self { layers, head })
    }

    /// Chooses schemes with groups of `group_size` inputs if that is given, else of the most that divide a model's sizes. Matrices
    /// that are quantised already are refused.
    pub fn choose(original: OriginalModel<'_>, bits: QuantisedBits, group_size: Option<usize>) -> anyhow::Result<Self> {
        let name = original.name;
        let mut schemes = Self::default();
        if let Some(bits) = bits.layers {
            let matrices: Vec<_> = original.matrices().collect();
            for part in &matrices {
                if original.checkpoint.tensor(&part.tensor)?.is_packed() {
                    bail!(
                        Diagnostic::new(format!("{name}: `{}` is quantised already", part.tensor))
                            .with_help("leave out `precision`, or take a checkpoint in float16 or bfloat16")
                    );
                }
            }
            schemes.layers = Some(Scheme::choose(name, &matrices, bits, group_size)?);
        }
        let Some(bits) = bits.head else { return Ok(schemes) };
        let part = original.model.output_matrix();
        let view = original.checkpoint.tensor(&part.tensor)?;
        // A GGUF's blocks are rounded anew with the layers'; alone they stay packed as they are.
        let is_small = schemes.layers.is_none() && view.integers().is_some_and(|integers| integers.bits <= bits);
        if view.is_packed() || is_small {
            bail!(
                Diagnostic::new(format!("{name}: `{}`, the output matrix, is quantised already", part.tensor))
                    .with_help("write `build: { head: fp16 }`, which keeps it as the checkpoint has it")
            );
        }
        // The layers' groups divide its inputs, which are theirs.
        let group_size = schemes.layers.map_or(group_size, |layers| Some(layers.group));
        schemes.head = Some(Scheme::choose(name, &[part], bits, group_size)?);
        Ok(schemes)
    }
}
