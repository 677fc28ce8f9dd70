//! Decode steps on our own kernels: a few sequences' next tokens through all layers and the head, each weight read once.
//! The one file that launches them.
#![allow(unsafe_code)]

use cudarc::driver::{CudaFunction, DeviceRepr, LaunchConfig, PushKernelArg};

use super::buffers::Buffer;
use super::kernels::{self, Address, device_error, word};
use super::state::State;
use crate::backend::BackendError;
use crate::backend::tensorrt::device::Device;
use crate::convert::{Activation, Role, Transformer};
use crate::tensor::DType;

/// Source of the kernels.
pub(super) const SOURCE: &str = include_str!("decode.cu");

/// As decode.cu has them.
const COLUMNS: usize = 64;
const LANES: usize = 32;
const SPAN: usize = 64;
const GROUP: usize = 16;
const LARGEST_HEAD: usize = 256;
/// Sequences of a step at most.
pub(super) const ROWS: usize = 4;
/// Blocks of a product for each multiprocessor: enough reads on their way to fill the memory's pipes, and not so many that
/// adding up their shares takes longer. A step of a 7B model on an H100: 6.88 ms with 3, 7.34 with 6, 7.24 with 12.
const BLOCKS: usize = 3;
/// A block reads at least so many inputs of its columns.
const LEAST_SHARE: usize = 256;

/// Arguments of a product; see decode.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Product {
    x: Address,
    norm: Address,
    weights: Address,
    bias: Address,
    residual: Address,
    out: Address,
    partial: Address,
    counters: Address,
    inputs: u32,
    outputs: u32,
    rows: u32,
    gated: u32,
    gelu: u32,
    wide: u32,
    eps: f32,
    cap: f32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    qkv: Address,
    query_norm: Address,
    key_norm: Address,
    cos: Address,
    sin: Address,
    keys: Address,
    values: Address,
    cached: Address,
    count: Address,
    heads: u32,
    kv_heads: u32,
    dim: u32,
    rotary: u32,
    capacity: u32,
    eps: f32,
    scale: f32,
    _end: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Attend {
    qkv: Address,
    keys: Address,
    values: Address,
    out: Address,
    partial: Address,
    counters: Address,
    cached: Address,
    heads: u32,
    kv_heads: u32,
    dim: u32,
    capacity: u32,
    window: u32,
    cap: f32,
}

// SAFETY: plain numbers, laid out as decode.cu declares them.
unsafe impl DeviceRepr for Product {}
// SAFETY: as above.
unsafe impl DeviceRepr for Place {}
// SAFETY: as above.
unsafe impl DeviceRepr for Attend {}

/// The kernels of one element type, and what lies between them.
pub(super) struct Decode {
    products: Vec<(usize, CudaFunction)>,
    place: CudaFunction,
    attend: CudaFunction,
    norm_add: CudaFunction,
    multiprocessors: usize,
    qkv: Buffer,
    attended: Buffer,
    middle: Buffer,
    apart: Buffer,
    inner: Buffer,
    partial: Buffer,
    counters: Buffer,
    attention: Buffer,
    attention_counters: Buffer,
    /// Place of each role among a layer's weights.
    roles: Vec<Role>,
}

/// Whether the kernels can take a model's steps.
pub(super) fn supports(model: &Transformer, dtype: DType) -> bool {
    let d = model.head_dim;
    let qkv = (model.heads + 2 * model.kv_heads) * d;
    let sizes = [model.hidden_size, qkv, model.heads * d, model.intermediate_size, model.vocab_size];
    matches!(dtype, DType::Float16 | DType::BFloat16)
        && d.is_multiple_of(4)
        && d <= LARGEST_HEAD
        && model.group() <= GROUP
        && model.ropes.iter().all(|rope| rope.dimension().is_multiple_of(2))
        // Eight elements are read at once.
        && sizes.iter().all(|size| size.is_multiple_of(8))
}

impl Decode {
    /// Compiles them and makes room for steps of `rows` sequences of up to `longest` positions.
    pub(super) fn new(
        device: &Device,
        model: &Transformer,
        dtype: DType,
        (rows, longest): (usize, usize),
    ) -> Result<Self, BackendError> {
        let module = kernels::load(device, SOURCE)?;
        let kind = if dtype == DType::BFloat16 { "bf16" } else { "f16" };
        let function = |name: &str| module.load_function(&format!("{name}_{kind}")).map_err(device_error);
        let product = |rows: usize| {
            let name = format!("product_{kind}_{rows}");
            Ok::<_, BackendError>((rows, module.load_function(&name).map_err(device_error)?))
        };
        let multiprocessors = device.multiprocessors()?;
        let (hidden, d) = (model.hidden_size, model.head_dim);
        let qkv = (model.heads + 2 * model.kv_heads) * d;
        let shapes = [
            (hidden, qkv),
            (model.heads * d, hidden),
            (hidden, 2 * model.intermediate_size),
            (model.intermediate_size, hidden),
            (hidden, model.vocab_size),
        ];
        let partial = shapes.iter().map(|(k, n)| splits(multiprocessors, *k, *n) * rows * n).max().unwrap_or(1);
        let tiles = shapes.iter().map(|(_, n)| n.div_ceil(COLUMNS)).max().unwrap_or(1);
        let parts = longest.div_ceil(SPAN);
        let buffer = |elements: usize, size: usize| Buffer::new(&device.stream, elements * size, "decode steps");
        let activations = |width: usize| buffer(rows * width, dtype.size());
        Ok(Self {
            products: vec![product(1)?, product(2)?, product(4)?],
            place: function("place")?,
            attend: function("attend")?,
            norm_add: function("norm_add")?,
            multiprocessors,
            qkv: activations(qkv)?,
            attended: activations(model.heads * d)?,
            middle: activations(hidden)?,
            apart: activations(hidden)?,
            inner: activations(2 * model.intermediate_size)?,
            partial: buffer(partial, 4)?,
            counters: buffer(tiles, 4)?,
            attention: buffer(rows * model.heads * parts * (d + 2), 4)?,
            attention_counters: buffer(rows * model.kv_heads, 4)?,
            roles: model.layer_weights(0).iter().map(|weight| weight.role).collect(),
        })
    }

    /// Bytes between the kernels.
    pub(super) fn scratch_bytes(&self) -> usize {
        let buffers =
            [&self.qkv, &self.attended, &self.middle, &self.apart, &self.inner, &self.partial, &self.attention];
        buffers.iter().map(|buffer| buffer.len()).sum()
    }

    /// Puts a step of `rows` sequences on the stream, the first of which is in `slot`: the hidden states in
    /// `State::hidden[0]` to those of the last layer.
    pub(super) fn enqueue(&self, state: &mut State, rows: usize, slot: usize) -> Result<(), BackendError> {
        state.turn(rows, 1)?;
        let model = &state.model;
        let (hidden, inner) = (model.hidden_size, model.intermediate_size);
        let (wide, qkv) = (model.heads * model.head_dim, (model.heads + 2 * model.kv_heads) * model.head_dim);
        let gelu = u32::from(model.activation == Activation::Gelu);
        for (index, kind) in model.layers.iter().enumerate() {
            let weight = |role: Role| -> Address {
                let at = self.roles.iter().position(|have| *have == role);
                at.map_or(0, |at| state.weights.layers[index][at].address())
            };
            let (input, output) = (state.hidden[index % 2].address(), state.hidden[(index + 1) % 2].address());
            let plain = Product { rows: word(rows), eps: model.norm_eps, gelu, ..Product::default() };
            let sized =
                |inputs: usize, outputs: usize| Product { inputs: word(inputs), outputs: word(outputs), ..plain };
            self.product(
                state,
                Product {
                    x: input,
                    norm: weight(Role::AttentionNorm),
                    weights: weight(Role::Qkv),
                    bias: weight(Role::QkvBias),
                    out: self.qkv.address(),
                    ..sized(hidden, qkv)
                },
            )?;
            self.attention(state, (index, rows, slot), (weight(Role::QueryNorm), weight(Role::KeyNorm)), *kind)?;
            let attended = Product {
                x: self.attended.address(),
                weights: weight(Role::Output),
                bias: weight(Role::OutputBias),
                ..sized(wide, hidden)
            };
            self.join(state, attended, weight(Role::PostAttentionNorm), (input, self.middle.address()))?;
            self.product(
                state,
                Product {
                    x: self.middle.address(),
                    norm: weight(Role::MlpNorm),
                    weights: weight(Role::GateUp),
                    bias: weight(Role::GateUpBias),
                    out: self.inner.address(),
                    ..sized(hidden, 2 * inner)
                },
            )?;
            let down = Product {
                x: self.inner.address(),
                gated: 1,
                weights: weight(Role::Down),
                bias: weight(Role::DownBias),
                ..sized(inner, hidden)
            };
            self.join(state, down, weight(Role::PostMlpNorm), (self.middle.address(), output))?;
        }
        Ok(())
    }

    /// The last hidden states to logits. Only where the output matrix is `[hidden, vocabulary]`.
    pub(super) fn head(&self, state: &State, rows: usize) -> Result<(), BackendError> {
        let model = &state.model;
        self.product(
            state,
            Product {
                x: state.hidden[model.layers.len() % 2].address(),
                norm: state.weights.norm.address(),
                weights: state.weights.output.address(),
                out: state.logits.address(),
                inputs: word(model.hidden_size),
                outputs: word(model.vocab_size),
                rows: word(rows),
                wide: 1,
                eps: model.norm_eps,
                cap: model.logit_softcap.unwrap_or(0.0),
                ..Product::default()
            },
        )
    }

    /// residual + product, or residual + norm(product).
    fn join(
        &self,
        state: &State,
        product: Product,
        norm: Address,
        (residual, out): (Address, Address),
    ) -> Result<(), BackendError> {
        if norm == 0 {
            return self.product(state, Product { residual, out, ..product });
        }
        let x = self.apart.address();
        self.product(state, Product { out: x, ..product })?;
        let (size, eps) = (product.outputs, product.eps);
        let mut launch = state.device.stream.launch_builder(&self.norm_add);
        launch.arg(&x).arg(&norm).arg(&residual).arg(&out).arg(&size).arg(&eps);
        let config = LaunchConfig { grid_dim: (product.rows, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: arguments as decode.cu declares them; buffers were sized for the model.
        unsafe { launch.launch(config) }.map(drop).map_err(device_error)
    }

    fn product(&self, state: &State, mut product: Product) -> Result<(), BackendError> {
        (product.partial, product.counters) = (self.partial.address(), self.counters.address());
        let (inputs, outputs, rows) = (product.inputs as usize, product.outputs as usize, product.rows as usize);
        let function = self.products.iter().find(|(most, _)| *most >= rows);
        let (_, function) = function.ok_or_else(|| BackendError::Run(format!("a step of {rows} sequences")))?;
        let splits = splits(self.multiprocessors, inputs, outputs);
        let mut launch = state.device.stream.launch_builder(function);
        launch.arg(&product);
        let grid_dim = (word(outputs.div_ceil(COLUMNS)), word(splits), 1);
        let config = LaunchConfig { grid_dim, block_dim: (256, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: as above.
        unsafe { launch.launch(config) }.map(drop).map_err(device_error)
    }

    fn attention(
        &self,
        state: &State,
        (index, rows, slot): (usize, usize, usize),
        (query_norm, key_norm): (Address, Address),
        kind: crate::convert::LayerKind,
    ) -> Result<(), BackendError> {
        let model = &state.model;
        let (keys, values) = state.cache(index, slot, state.capacity);
        let (cos, sin) = &state.rotary[kind.rope];
        let (heads, kv_heads) = (word(model.heads), word(model.kv_heads));
        let (cached, count) = state.places();
        let place = Place {
            qkv: self.qkv.address(),
            query_norm,
            key_norm,
            cos: cos.address(),
            sin: sin.address(),
            keys,
            values,
            cached,
            count,
            heads,
            kv_heads,
            dim: word(model.head_dim),
            rotary: word(model.ropes[kind.rope].dimension()),
            capacity: word(state.capacity),
            eps: model.norm_eps,
            scale: model.attention_scale,
            _end: 0,
        };
        let grid_dim = (heads + 2 * kv_heads, word(rows), 1);
        let mut launch = state.device.stream.launch_builder(&self.place);
        launch.arg(&place);
        // SAFETY: as above.
        unsafe { launch.launch(LaunchConfig { grid_dim, block_dim: (32, 1, 1), shared_mem_bytes: 0 }) }
            .map_err(device_error)?;
        let attend = Attend {
            qkv: self.qkv.address(),
            keys,
            values,
            out: self.attended.address(),
            partial: self.attention.address(),
            counters: self.attention_counters.address(),
            cached,
            heads,
            kv_heads,
            dim: word(model.head_dim),
            capacity: word(state.capacity),
            window: kind.window.map_or(0, word),
            cap: model.attention_softcap.unwrap_or(0.0),
        };
        let grid_dim = (word(state.capacity.div_ceil(SPAN)), kv_heads, word(rows));
        let mut launch = state.device.stream.launch_builder(&self.attend);
        launch.arg(&attend);
        // SAFETY: as above.
        unsafe { launch.launch(LaunchConfig { grid_dim, block_dim: (128, 1, 1), shared_mem_bytes: 0 }) }
            .map(drop)
            .map_err(device_error)
    }
}

/// Into how many shares the inputs of a product are cut.
fn splits(multiprocessors: usize, inputs: usize, outputs: usize) -> usize {
    let wanted = (multiprocessors * BLOCKS + outputs.div_ceil(COLUMNS) / 2) / outputs.div_ceil(COLUMNS);
    let most = inputs.div_ceil(LEAST_SHARE.max(LANES));
    wanted.clamp(1, most.max(1))
}
