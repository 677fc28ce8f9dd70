//! Emits the layers of vision networks: convolutions, activations, attention, with all shapes known.
//!
//! Shapes are static except for the batch, which is -1 in every reshape, so that one graph serves any batch. Uses only
//! primitives of opset 17 ([`super::OPSET`]).

use crate::onnx::{Attribute, GraphBuilder};
use crate::tensor::Tensor;

/// A feature map `[batch, channels, height, width]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub(super) struct Map {
    pub(super) name: String,
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
}

/// A sequence `[batch, count, width]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub(super) struct Tokens {
    pub(super) name: String,
    pub(super) count: usize,
    pub(super) width: usize,
}

/// A convolution's weights and geometry.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Conv {
    /// State-dict name of the module, for the initializers.
    pub(super) name: String,
    /// `(out, in / groups, kernel height, kernel width)`; for a transposed convolution `(in, out / groups, …)`.
    pub(super) shape: [usize; 4],
    pub(super) weight: Vec<f32>,
    /// One value per output channel.
    pub(super) bias: Option<Vec<f32>>,
    pub(super) stride: [usize; 2],
    pub(super) padding: [usize; 2],
    pub(super) dilation: [usize; 2],
    pub(super) groups: usize,
}

/// A batch normalisation's statistics and parameters, one value per channel.
pub(super) struct BatchNorm {
    pub(super) gamma: Vec<f32>,
    pub(super) beta: Vec<f32>,
    pub(super) mean: Vec<f32>,
    pub(super) variance: Vec<f32>,
    pub(super) eps: f32,
}

impl Conv {
    /// Folds in the batch normalisation that follows, in float32: `s = γ / √(σ² + ε)`, `W' = W · s`,
    /// `b' = β + (b - μ) · s` (Ioffe & Szegedy, 2015, algorithm 2). `None` if a variance is negative.
    pub(super) fn fold(&mut self, norm: &BatchNorm) -> Option<()> {
        let outputs = self.shape[0];
        let scale = |(gamma, variance): (&f32, &f32)| gamma / (variance + norm.eps).sqrt();
        let scales: Vec<f32> = norm.gamma.iter().zip(&norm.variance).map(scale).collect();
        if scales.iter().any(|scale| !scale.is_finite()) {
            return None;
        }
        let filter = self.weight.len() / outputs;
        for (filter, scale) in self.weight.chunks_mut(filter).zip(&scales) {
            filter.iter_mut().for_each(|weight| *weight *= scale);
        }
        let bias = self.bias.take().unwrap_or_else(|| vec![0.0; outputs]);
        let folded = bias.iter().zip(&norm.mean).zip(&scales).zip(&norm.beta);
        self.bias = Some(folded.map(|(((bias, mean), scale), beta)| beta + (bias - mean) * scale).collect());
        Some(())
    }
}

/// Element-wise activations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Nonlinearity {
    Identity,
    /// x · sigmoid(x).
    Silu,
    /// x · Φ(x), by erf.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    Relu,
    LeakyRelu(f32),
}

/// A dimension in ONNX's type.
pub(super) fn dim(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

fn dims(pair: [usize; 2]) -> [i64; 2] {
    pair.map(dim)
}

/// A graph under construction.
pub(super) struct Net {
    pub(super) graph: GraphBuilder,
}

impl Net {
    pub(super) fn node(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        self.graph.node(op, inputs, attributes)
    }

    /// A float32 constant.
    pub(super) fn constant(&mut self, name: &str, shape: &[usize], values: Vec<f32>) -> String {
        if self.graph.has_initializer(name) {
            return name.to_owned();
        }
        let tensor = Tensor::from_f32(shape.to_vec(), values).expect("constants fill their shape");
        self.graph.initializer(name, &tensor)
    }

    pub(super) fn reshape(&mut self, x: &str, shape: &[i64]) -> String {
        let shape = self.graph.integers(shape);
        self.node("Reshape", &[x, &shape], &[])
    }

    pub(super) fn transpose<const N: usize>(&mut self, x: &str, perm: [i64; N]) -> String {
        self.node("Transpose", &[x], &[("perm", perm.into())])
    }

    pub(super) fn split(&mut self, x: &str, axis: i64, sizes: &[usize]) -> Vec<String> {
        let list: Vec<i64> = sizes.iter().map(|size| dim(*size)).collect();
        let list = self.graph.integers(&list);
        self.graph.node_outputs("Split", &[x, &list], sizes.len(), &[("axis", axis.into())])
    }

    pub(super) fn concat(&mut self, parts: &[&str], axis: i64) -> String {
        self.node("Concat", parts, &[("axis", axis.into())])
    }

    /// Elements `from..to` along an axis.
    pub(super) fn slice(&mut self, x: &str, axis: i64, from: usize, to: usize) -> String {
        let bounds = [[dim(from)], [dim(to)], [axis]].map(|bound| self.graph.integers(&bound));
        self.node("Slice", &[x, &bounds[0], &bounds[1], &bounds[2]], &[])
    }

    /// Multiplies by a constant.
    pub(super) fn scale(&mut self, x: &str, factor: f32) -> String {
        let factor = self.graph.scalar(factor);
        self.node("Mul", &[x, &factor], &[])
    }

    pub(super) fn softmax(&mut self, x: &str, axis: i64) -> String {
        self.node("Softmax", &[x], &[("axis", axis.into())])
    }

    /// A convolution; `None` if channels disagree or the map becomes empty.
    pub(super) fn conv(&mut self, x: &Map, conv: &Conv) -> Option<Map> {
        let [out, per_group, kernel_height, kernel_width] = conv.shape;
        let size = |size: usize, axis: usize, kernel: usize| {
            let reach = conv.dilation[axis].checked_mul(kernel.checked_sub(1)?)?.checked_add(1)?;
            let room = size.checked_add(conv.padding[axis].checked_mul(2)?)?.checked_sub(reach)?;
            Some(room.checked_div(conv.stride[axis])? + 1)
        };
        if per_group.checked_mul(conv.groups)? != x.channels || !out.is_multiple_of(conv.groups.max(1)) {
            return None;
        }
        let (height, width) = (size(x.height, 0, kernel_height)?, size(x.width, 1, kernel_width)?);
        let name = self.convolve("Conv", x, conv, [kernel_height, kernel_width]);
        Some(Map { name, channels: out, height, width })
    }

    /// A transposed convolution without output padding; `None` if channels disagree or the map becomes empty.
    pub(super) fn conv_transpose(&mut self, x: &Map, conv: &Conv) -> Option<Map> {
        let [inputs, per_group, kernel_height, kernel_width] = conv.shape;
        let size = |size: usize, axis: usize, kernel: usize| {
            let reach = size.checked_sub(1)?.checked_mul(conv.stride[axis])?.checked_add(kernel)?;
            reach.checked_sub(2 * conv.padding[axis])
        };
        if inputs != x.channels || conv.dilation != [1, 1] {
            return None;
        }
        let (height, width) = (size(x.height, 0, kernel_height)?, size(x.width, 1, kernel_width)?);
        let name = self.convolve("ConvTranspose", x, conv, [kernel_height, kernel_width]);
        Some(Map { name, channels: per_group.checked_mul(conv.groups)?, height, width })
    }

    fn convolve(&mut self, op: &str, x: &Map, conv: &Conv, kernel: [usize; 2]) -> String {
        let weight = self.constant(&format!("{}.weight", conv.name), &conv.shape, conv.weight.clone());
        let mut inputs = vec![x.name.clone(), weight];
        if let Some(bias) = &conv.bias {
            inputs.push(self.constant(&format!("{}.bias", conv.name), &[bias.len()], bias.clone()));
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let [top, left] = dims(conv.padding);
        self.node(
            op,
            &inputs,
            &[
                ("kernel_shape", dims(kernel).into()),
                ("strides", dims(conv.stride).into()),
                ("pads", [top, left, top, left].into()),
                ("dilations", dims(conv.dilation).into()),
                ("group", dim(conv.groups).into()),
            ],
        )
    }

    pub(super) fn max_pool(&mut self, x: &Map, kernel: usize, stride: usize, padding: usize) -> Option<Map> {
        let size = |size: usize| Some((size + 2 * padding).checked_sub(kernel)?.checked_div(stride)? + 1);
        let (height, width) = (size(x.height)?, size(x.width)?);
        let attributes = [
            ("kernel_shape", dims([kernel; 2]).into()),
            ("strides", dims([stride; 2]).into()),
            ("pads", [dim(padding); 4].into()),
        ];
        let name = self.node("MaxPool", &[&x.name], &attributes);
        Some(Map { name, channels: x.channels, height, width })
    }

    pub(super) fn activate(&mut self, x: &str, activation: Nonlinearity) -> String {
        match activation {
            Nonlinearity::Identity => x.to_owned(),
            Nonlinearity::Silu => {
                let gate = self.node("Sigmoid", &[x], &[]);
                self.node("Mul", &[x, &gate], &[])
            }
            Nonlinearity::Relu => self.node("Relu", &[x], &[]),
            Nonlinearity::LeakyRelu(slope) => self.node("LeakyRelu", &[x], &[("alpha", slope.into())]),
            Nonlinearity::Gelu => {
                // x · (1 + erf(x / √2)) / 2 (Hendrycks & Gimpel, 2016).
                let scaled = self.scale(x, std::f32::consts::FRAC_1_SQRT_2);
                let erf = self.node("Erf", &[&scaled], &[]);
                let one = self.graph.scalar(1.0);
                let sum = self.node("Add", &[&erf, &one], &[]);
                let product = self.node("Mul", &[x, &sum], &[]);
                self.scale(&product, 0.5)
            }
            Nonlinearity::GeluTanh => {
                // x · (1 + tanh(√(2/π) · (x + 0.044715 x³))) / 2, the same paper.
                let square = self.node("Mul", &[x, x], &[]);
                let cube = self.node("Mul", &[&square, x], &[]);
                let small = self.scale(&cube, 0.044_715);
                let inner = self.node("Add", &[x, &small], &[]);
                let inner = self.scale(&inner, (2.0 / std::f32::consts::PI).sqrt());
                let tanh = self.node("Tanh", &[&inner], &[]);
                let one = self.graph.scalar(1.0);
                let sum = self.node("Add", &[&tanh, &one], &[]);
                let product = self.node("Mul", &[x, &sum], &[]);
                self.scale(&product, 0.5)
            }
        }
    }

    /// Layer normalisation (Ba et al., 2016) over `axis`: mean 0, variance 1, then weight and bias, whose shape must
    /// broadcast. Written as primitives, since TensorRT 8.5 lacks the operator.
    pub(super) fn layer_norm(&mut self, x: &str, axis: i64, eps: f32, weight: &str, bias: &str) -> String {
        let over = [("axes", [axis].into()), ("keepdims", 1.into())];
        let mean = self.node("ReduceMean", &[x], &over);
        let centered = self.node("Sub", &[x, &mean], &[]);
        let square = self.node("Mul", &[&centered, &centered], &[]);
        let variance = self.node("ReduceMean", &[&square], &over);
        let eps = self.graph.scalar(eps);
        let sum = self.node("Add", &[&variance, &eps], &[]);
        let deviation = self.node("Sqrt", &[&sum], &[]);
        let unit = self.node("Div", &[&centered, &deviation], &[]);
        let scaled = self.node("Mul", &[&unit, weight], &[]);
        self.node("Add", &[&scaled, bias], &[])
    }

    /// Mean over height and width, `[batch, channels]`.
    pub(super) fn global_average(&mut self, x: &Map) -> String {
        let mean = self.node("GlobalAveragePool", &[&x.name], &[]);
        self.node("Flatten", &[&mean], &[("axis", 1.into())])
    }

    /// A map's pixels as a sequence in row-major order: `[batch, height · width, channels]`.
    pub(super) fn tokens(&mut self, x: &Map) -> Tokens {
        let count = x.height * x.width;
        let flat = self.reshape(&x.name, &[-1, dim(x.channels), dim(count)]);
        Tokens { name: self.transpose(&flat, [0, 2, 1]), count, width: x.channels }
    }

    /// Converts a sequence of pixels back to a map of `like`'s shape.
    pub(super) fn map(&mut self, tokens: &str, like: &Map) -> Map {
        let flat = self.transpose(tokens, [0, 2, 1]);
        let name = self.reshape(&flat, &[-1, dim(like.channels), dim(like.height), dim(like.width)]);
        Map { name, ..like.clone() }
    }
}
