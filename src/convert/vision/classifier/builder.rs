//! Layers that the image classifiers share, with weights from a checkpoint: linear layers, norms, attention.

use crate::checkpoint::Checkpoint;
use crate::convert::Config;
use crate::convert::vision::net::{Conv, Map, Net, Nonlinearity, Tokens, dim};

pub(super) use crate::convert::config::Read;

/// Emits a classifier's graph.
pub(super) struct ClassifierGraph<'a> {
    pub(super) net: Net,
    pub(super) weights: &'a Checkpoint,
    pub(super) config: Config<'a>,
    pub(super) classes: usize,
}

/// Parameters of an attention layer.
pub(super) struct Attention {
    pub(super) heads: usize,
    /// Stems of the tensors `query`, `key`, `value`.
    pub(super) qkv: String,
    /// Stem of the output's tensors.
    pub(super) output: String,
}

impl ClassifierGraph<'_> {
    /// A tensor's values, which must be finite and of this shape.
    pub(super) fn read(&self, name: &str, shape: &[usize]) -> Read<Vec<f32>> {
        let view = self.weights.expect(name, shape)?;
        let mut values = vec![0.0; shape.iter().product()];
        view.read(0, &mut values);
        if values.iter().any(|value| !value.is_finite()) {
            let message = format!("tensor `{name}` holds values that are not finite: training diverged");
            return Err(self.config.error(message));
        }
        Ok(values)
    }

    /// Adds a tensor as a constant, reshaped to as many elements.
    pub(super) fn weight(&mut self, name: &str, stored: &[usize], shape: &[usize]) -> Read<String> {
        let values = self.read(name, stored)?;
        Ok(self.net.constant(name, shape, values))
    }

    /// Adds matrices `[outputs, inputs]` below each other, each times a factor, transposed to `[inputs, outputs]`.
    fn matrix(&mut self, name: &str, parts: &[(String, f32)], [outputs, inputs]: [usize; 2]) -> Read<String> {
        let columns = outputs * parts.len();
        let mut matrix = vec![0.0; inputs * columns];
        for (part, (stem, factor)) in parts.iter().enumerate() {
            let values = self.read(&format!("{stem}.weight"), &[outputs, inputs])?;
            for (row, line) in values.chunks(inputs).enumerate() {
                for (column, value) in line.iter().enumerate() {
                    matrix[column * columns + part * outputs + row] = value * factor;
                }
            }
        }
        Ok(self.net.constant(name, &[inputs, columns], matrix))
    }

    /// x · Wᵀ + b over the last axis, without b unless `bias`.
    pub(super) fn linear(&mut self, x: &str, stem: &str, [outputs, inputs]: [usize; 2], bias: bool) -> Read<String> {
        let matrix = self.matrix(&format!("{stem}.weight"), &[(stem.to_owned(), 1.0)], [outputs, inputs])?;
        let product = self.net.node("MatMul", &[x, &matrix], &[]);
        if !bias {
            return Ok(product);
        }
        let bias = self.weight(&format!("{stem}.bias"), &[outputs], &[outputs])?;
        Ok(self.net.node("Add", &[&product, &bias], &[]))
    }

    /// Layer normalisation over the last axis.
    pub(super) fn norm(&mut self, x: &str, stem: &str, size: usize, eps: f32) -> Read<String> {
        let weight = self.weight(&format!("{stem}.weight"), &[size], &[size])?;
        let bias = self.weight(&format!("{stem}.bias"), &[size], &[size])?;
        Ok(self.net.layer_norm(x, -1, eps, &weight, &bias))
    }

    /// A convolution with the checkpoint's weights; an error if its shape does not fit.
    pub(super) fn convolve(&mut self, x: &Map, stem: &str, outputs: usize, geometry: &Geometry) -> Read<Map> {
        let Geometry { kernel, stride, padding, groups, bias } = *geometry;
        let shape = [outputs, x.channels / groups.max(1), kernel[0], kernel[1]];
        let conv = Conv {
            name: stem.to_owned(),
            shape,
            weight: self.read(&format!("{stem}.weight"), &shape)?,
            bias: if bias { Some(self.read(&format!("{stem}.bias"), &[outputs])?) } else { None },
            stride,
            padding: [padding; 2],
            dilation: [1; 2],
            groups,
        };
        self.fit(x, stem, &conv)
    }

    pub(super) fn fit(&mut self, x: &Map, stem: &str, conv: &Conv) -> Read<Map> {
        let place = format!("{} channels of {} x {}", x.channels, x.height, x.width);
        let error = self.config.error(format!("`{stem}` does not fit {place}: the picture is too small"));
        self.net.conv(x, conv).ok_or(error)
    }

    /// Attention over a sequence (Vaswani et al., 2017), with q, k and v from one product. `adjust` may change the
    /// scaled scores `[batch, heads, count, count]`.
    pub(super) fn attention(
        &mut self,
        x: &Tokens,
        plan: &Attention,
        adjust: impl FnOnce(&mut Net, String) -> String,
    ) -> Read<Tokens> {
        let (width, heads) = (x.width, plan.heads);
        if heads == 0 || !width.is_multiple_of(heads) {
            return Err(self.config.error(format!("{heads} heads cannot share {width} dimensions evenly")));
        }
        let size = width / heads;
        // Scores are scaled by scaling the queries, in their weights.
        let scale = (size as f32).powf(-0.5);
        let stems = [("query", scale), ("key", 1.0), ("value", 1.0)];
        let stems = stems.map(|(part, factor)| (format!("{}.{part}", plan.qkv), factor));
        let matrix = self.matrix(&format!("{}.qkv.weight", plan.qkv), &stems, [width, width])?;
        let mut fused = self.net.node("MatMul", &[&x.name, &matrix], &[]);
        // Any of the three may have no bias (BEiT's keys have none), which adds nothing.
        let biases = stems.map(|(stem, factor)| (format!("{stem}.bias"), factor));
        if biases.iter().any(|(name, _)| self.weights.has(name)) {
            let mut bias = Vec::with_capacity(3 * width);
            for (name, factor) in &biases {
                let part = if self.weights.has(name) { self.read(name, &[width])? } else { vec![0.0; width] };
                bias.extend(part.into_iter().map(|value| value * factor));
            }
            let bias = self.net.constant(&format!("{}.qkv.bias", plan.qkv), &[3 * width], bias);
            fused = self.net.node("Add", &[&fused, &bias], &[]);
        }
        let parts = self.net.split(&fused, 2, &[width; 3]);
        let mut heads_of = |part: &str, perm: [i64; 4]| {
            let cut = self.net.reshape(part, &[-1, dim(x.count), dim(heads), dim(size)]);
            self.net.transpose(&cut, perm)
        };
        let query = heads_of(&parts[0], [0, 2, 1, 3]);
        let key = heads_of(&parts[1], [0, 2, 3, 1]);
        let value = heads_of(&parts[2], [0, 2, 1, 3]);
        let scores = self.net.node("MatMul", &[&query, &key], &[]); // (batch, heads, count, count)
        let scores = adjust(&mut self.net, scores);
        let probabilities = self.net.softmax(&scores, -1);
        let mixed = self.net.node("MatMul", &[&probabilities, &value], &[]);
        let mixed = self.net.transpose(&mixed, [0, 2, 1, 3]);
        let mixed = self.net.reshape(&mixed, &[-1, dim(x.count), dim(width)]);
        Ok(Tokens { name: self.linear(&mixed, &plan.output, [width, width], true)?, ..x.clone() })
    }

    /// x + y of the same shape.
    pub(super) fn add(&mut self, x: &Tokens, y: &str) -> Tokens {
        Tokens { name: self.net.node("Add", &[&x.name, y], &[]), ..x.clone() }
    }

    /// Embeds patches as tokens: a convolution with stride equal to its kernel.
    pub(super) fn patches(&mut self, x: &Map, stem: &str, patch: usize, width: usize) -> Read<Map> {
        let geometry = Geometry { kernel: [patch; 2], stride: [patch; 2], ..Geometry::default() };
        self.convolve(x, stem, width, &geometry)
    }

    /// The activation named by `field`.
    pub(super) fn activation(&self, field: &str) -> Read<Nonlinearity> {
        Ok(match self.config.text(field).unwrap_or("gelu") {
            "gelu" => Nonlinearity::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Nonlinearity::GeluTanh,
            "relu" => Nonlinearity::Relu,
            "silu" | "swish" => Nonlinearity::Silu,
            other => return Err(self.config.error(format!("`{field}: {other}` is not supported"))),
        })
    }

    /// A field that is one size, or a pair of equal sizes.
    pub(super) fn square(&self, field: &str, default: usize) -> Read<usize> {
        match self.config.numbers(field).as_deref() {
            Some([a, b]) if a == b && *a >= 1.0 && *a < 65_536.0 => Ok(*a as usize),
            Some(_) => Err(self.config.error(format!("`{field}` is not square, which is not supported"))),
            None => Ok(self.config.optional_size(field)?.unwrap_or(default)),
        }
    }

    /// A number of at least 0.
    pub(super) fn number(&self, field: &str, default: f32) -> Read<f32> {
        Ok(self.config.optional_not_negative(field)?.map_or(default, |value| value as f32))
    }

    /// A list of positive sizes.
    pub(super) fn sizes(&self, field: &str) -> Read<Vec<usize>> {
        let list = self.config.numbers(field).unwrap_or_default();
        let whole = |value: &f64| (value.fract() == 0.0 && (1.0..65_536.0).contains(value)).then_some(*value as usize);
        let sizes: Option<Vec<usize>> = list.iter().map(whole).collect();
        let sizes = sizes.filter(|sizes| !sizes.is_empty() && sizes.len() <= 16);
        sizes.ok_or_else(|| self.config.error(format!("`{field}` is missing or no list of sizes")))
    }
}

/// A convolution's geometry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    pub(super) kernel: [usize; 2],
    pub(super) stride: [usize; 2],
    pub(super) padding: usize,
    pub(super) groups: usize,
    pub(super) bias: bool,
}

impl Default for Geometry {
    fn default() -> Self {
        Self { kernel: [1; 2], stride: [1; 2], padding: 0, groups: 1, bias: true }
    }
}
