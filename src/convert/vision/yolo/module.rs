//! A torch module of a checkpoint: its class, path, attributes and tensors. Each error names the path.

use crate::checkpoint::CheckpointError;
use crate::checkpoint::torch::{Item, TorchTensor};
use crate::convert::vision::net::{BatchNorm, Conv, Nonlinearity};

/// Deepest nesting: modules of a crafted file may contain themselves.
const DEPTH_LIMIT: usize = 24;

pub(super) use crate::convert::config::Read;

/// A module and its path.
#[derive(Debug, Clone)]
pub(super) struct Module<'a> {
    item: Item<'a>,
    /// Class name without its package.
    pub(super) class: &'a str,
    /// Path in the state dict, e.g. `model.2.m.0.cv1`.
    pub(super) path: String,
    /// Scope of the module that calls it.
    outer: String,
    /// Name within that scope. It may contain dots, since a `ModuleList` is no scope of its own.
    within: String,
    depth: usize,
}

impl<'a> Module<'a> {
    /// The layers of a model, a sequence that is iterated and not called.
    pub(super) fn layers(model: Item<'a>) -> Read<Vec<Module<'a>>> {
        let sequence = model.children().into_iter().find(|(name, _)| *name == "model");
        let (_, sequence) = sequence.ok_or_else(|| model.error("the model has no layers (`model`)"))?;
        let layers = sequence.children();
        layers
            .into_iter()
            .map(|(name, item)| {
                let path = format!("model.{name}");
                Module::new(item, path.clone(), String::new(), path, 0)
            })
            .collect()
    }

    fn new(item: Item<'a>, path: String, outer: String, within: String, depth: usize) -> Read<Self> {
        let Some((_, class)) = item.class() else {
            return Err(item.error(format!("layer `{path}` is no module")));
        };
        if depth > DEPTH_LIMIT {
            return Err(item.error(format!("layer `{path}` nests too deep")));
        }
        Ok(Self { item, class, path, outer, within, depth })
    }

    /// Scope of its nodes in the notation of torch's exporter: `/model.2/m.0/cv1`.
    pub(super) fn scope(&self) -> String {
        format!("{}/{}", self.outer, self.within)
    }

    pub(super) fn error(&self, message: impl std::fmt::Display) -> CheckpointError {
        self.item.error(format!("layer `{}` ({}): {message}", self.path, self.class))
    }

    fn descend(&self, name: &str, item: Item<'a>) -> Read<Module<'a>> {
        let path = format!("{}.{name}", self.path);
        let (outer, within) = match self.class {
            "ModuleList" => (self.outer.clone(), format!("{}.{name}", self.within)),
            "Sequential" => (self.scope(), format!("{}.{name}", self.within)),
            _ => (self.scope(), name.to_owned()),
        };
        Module::new(item, path, outer, within, self.depth + 1)
    }

    pub(super) fn children(&self) -> Read<Vec<Module<'a>>> {
        self.item.children().into_iter().map(|(name, item)| self.descend(name, item)).collect()
    }

    pub(super) fn find(&self, name: &str) -> Read<Option<Module<'a>>> {
        let found = self.item.children().into_iter().find(|(have, item)| *have == name && !item.is_none());
        found.map(|(name, item)| self.descend(name, item)).transpose()
    }

    pub(super) fn child(&self, name: &str) -> Read<Module<'a>> {
        self.find(name)?.ok_or_else(|| self.error(format!("part `{name}` is missing")))
    }

    pub(super) fn attribute(&self, name: &str) -> Option<Item<'a>> {
        self.item.get(name).filter(|item| !item.is_none())
    }

    /// A non-negative integer attribute below any real size.
    pub(super) fn size(&self, name: &str) -> Read<usize> {
        let value = self.attribute(name).and_then(|item| item.integer());
        let size = value.and_then(|value| usize::try_from(value).ok()).filter(|size| *size < 1 << 20);
        size.ok_or_else(|| self.error(format!("`{name}` is missing or no size")))
    }

    pub(super) fn size_or(&self, name: &str, default: usize) -> Read<usize> {
        if self.attribute(name).is_none() { Ok(default) } else { self.size(name) }
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.attribute(name).and_then(|item| item.integer()) == Some(1)
    }

    /// An attribute that is one number for both directions, or one for each.
    pub(super) fn pair(&self, name: &str) -> Read<[usize; 2]> {
        let item = self.attribute(name);
        let whole = |item: Item<'_>| usize::try_from(item.integer()?).ok().filter(|size| *size < 1 << 16);
        let pair = item.and_then(|item| match &item.elements()[..] {
            [] => whole(item).map(|size| [size; 2]),
            [height, width] => Some([whole(*height)?, whole(*width)?]),
            _ => None,
        });
        pair.ok_or_else(|| self.error(format!("`{name}` is missing or no size (padding by name is not supported)")))
    }

    /// An attribute that is one number for both directions, or two equal ones.
    pub(super) fn square(&self, name: &str) -> Read<usize> {
        let [a, b] = self.pair(name)?;
        if a == b { Ok(a) } else { Err(self.error(format!("`{name}` is not the same in both directions"))) }
    }

    pub(super) fn tensor(&self, name: &str) -> Read<Option<TorchTensor<'a>>> {
        let found = self.item.tensors().into_iter().find(|(have, _)| *have == name);
        found.map(|(name, item)| item.tensor(&format!("{}.{name}", self.path))).transpose()
    }

    /// Shape and values of a tensor, which must be finite; `None` if absent.
    pub(super) fn values(&self, name: &str) -> Read<Option<(Vec<usize>, Vec<f32>)>> {
        let Some(tensor) = self.tensor(name)? else { return Ok(None) };
        let values = tensor.to_f32().ok_or_else(|| self.error(format!("`{name}` holds no floats")))?;
        if values.iter().any(|value| !value.is_finite()) {
            return Err(self.error(format!("`{name}` holds values that are not finite: training diverged")));
        }
        Ok(Some((tensor.shape, values)))
    }

    fn vector(&self, name: &str, length: usize) -> Read<Vec<f32>> {
        match self.values(name)? {
            Some((shape, values)) if shape == [length] => Ok(values),
            _ => Err(self.error(format!("`{name}` is missing or has not {length} elements"))),
        }
    }

    /// Weights and geometry of a `Conv2d` or `ConvTranspose2d`.
    pub(super) fn convolution(&self) -> Read<Conv> {
        let transposed = match self.class {
            "Conv2d" => false,
            "ConvTranspose2d" => true,
            _ => return Err(self.error("a convolution was expected")),
        };
        if self.attribute("padding_mode").and_then(|item| item.text()).is_some_and(|mode| mode != "zeros") {
            return Err(self.error("only padding with zeros is supported"));
        }
        if transposed && self.pair("output_padding")? != [0, 0] {
            return Err(self.error("output padding is not supported"));
        }
        let (shape, weight) = self.values("weight")?.ok_or_else(|| self.error("`weight` is missing"))?;
        let shape: [usize; 4] = shape.try_into().map_err(|_| self.error("`weight` has not four dimensions"))?;
        if shape.contains(&0) {
            return Err(self.error("`weight` is empty"));
        }
        let groups = self.size_or("groups", 1)?;
        let outputs = if transposed { shape[1] * groups } else { shape[0] };
        let bias = if self.tensor("bias")?.is_some() { Some(self.vector("bias", outputs)?) } else { None };
        Ok(Conv {
            name: self.path.clone(),
            shape,
            weight,
            bias,
            stride: self.pair("stride")?,
            padding: self.pair("padding")?,
            dilation: self.pair("dilation")?,
            groups,
        })
    }

    /// Folds this `BatchNorm2d` into the convolution before it.
    pub(super) fn fold_into(&self, conv: &mut Conv) -> Read<()> {
        if self.class != "BatchNorm2d" {
            return Err(self.error("batch normalisation was expected"));
        }
        let outputs = conv.shape[0];
        let eps = self.attribute("eps").and_then(|item| item.number()).ok_or_else(|| self.error("`eps` is missing"))?;
        let norm = BatchNorm {
            gamma: self.vector("weight", outputs)?,
            beta: self.vector("bias", outputs)?,
            mean: self.vector("running_mean", outputs)?,
            variance: self.vector("running_var", outputs)?,
            eps: eps as f32,
        };
        conv.fold(&norm).ok_or_else(|| self.error("`running_var` is negative"))
    }

    /// The activation that this module computes.
    pub(super) fn activation(&self) -> Read<Nonlinearity> {
        Ok(match self.class {
            "SiLU" => Nonlinearity::Silu,
            "Identity" => Nonlinearity::Identity,
            "ReLU" => Nonlinearity::Relu,
            "LeakyReLU" => {
                let slope = self.attribute("negative_slope").and_then(|item| item.number());
                Nonlinearity::LeakyRelu(slope.unwrap_or(0.01) as f32)
            }
            _ => return Err(self.error("this activation is not supported")),
        })
    }
}
