//! The attention part of a layer's graph: heads, rotary embedding, rounding of keys and values, softmax.

use super::{LayerContext, LayerEmitter, Past, Weights};
use crate::convert::Role;
use crate::spec::KvCache;
use crate::tensor::DType;

impl LayerEmitter<'_> {
    /// The output of the layer's attention, from its normed input `x`.
    pub(super) fn attention(&mut self, x: &str, context: &LayerContext, weights: &mut Weights) -> String {
        let model = self.model;
        let (query, key) = (model.heads * model.head_dim, model.kv_heads * model.head_dim);
        let roles = (Role::Qkv, model.qkv_bias.then_some(Role::QkvBias));
        let qkv = self.linear(x, roles, &[query, key, key], weights);
        let norm = |emitter: &mut Self, weights: &mut Weights, role: Role| {
            model.qk_norm.then(|| weights(&mut emitter.graph, role).remove(0))
        };
        let (query_norm, key_norm) = (norm(self, weights, Role::QueryNorm), norm(self, weights, Role::KeyNorm));
        let q = self.heads(&qkv[0], model.heads, query_norm.as_deref());
        let k = self.heads(&qkv[1], model.kv_heads, key_norm.as_deref());
        let v = self.heads(&qkv[2], model.kv_heads, None);
        let q = self.rotate(&q, context.cos, context.sin);
        let (k, v) = match self.kv_cache {
            KvCache::Auto => (self.rotate(&k, context.cos, context.sin), v),
            KvCache::Int8 => {
                let parts = self.rotate_apart(&k, context.cos, context.sin);
                (self.round_rows(parts), self.round_rows(vec![v]))
            }
        };
        let scale = self.constant(model.attention_scale);
        let q = self.node("Mul", &[&q, &scale], &[]);
        // [batch, heads, chunk, d] -> [batch, kv_heads, group · chunk, d]: the same memory.
        let q = self.reshape(&q, &[0, model.kv_heads as i64, -1, model.head_dim as i64]);
        let attended = self.attend(&q, &k, &v, context);
        let attended = self.reshape(&attended, &[0, model.heads as i64, -1, model.head_dim as i64]);
        let attended = self.node("Transpose", &[&attended], &[("perm", [0, 2, 1, 3].into())]);
        let attended = self.reshape(&attended, &[0, 0, query as i64]);
        self.read.push(attended.clone());
        let roles = (Role::Output, model.output_bias.then_some(Role::OutputBias));
        self.linear(&attended, roles, &[model.hidden_size], weights).remove(0)
    }

    /// softmax(q · `[past, k]`ᵀ + mask) · `[past, v]`; also names the new (or joined) keys and values as outputs.
    fn attend(&mut self, q: &str, k: &str, v: &str, context: &LayerContext) -> String {
        let (k, v) = match context.past {
            Past::Joined { key, value } => {
                self.graph.node_named("Concat", &[key, k], &[context.key], &[("axis", 2.into())]);
                self.graph.node_named("Concat", &[value, v], &[context.value], &[("axis", 2.into())]);
                (context.key, context.value)
            }
            _ => {
                self.graph.node_named("Identity", &[k], &[context.key], &[]);
                self.graph.node_named("Identity", &[v], &[context.value], &[]);
                (k, v)
            }
        };
        let mut scores = self.scores(q, k);
        if let Past::Apart { key, .. } = context.past {
            let cached = self.scores(q, key);
            scores = self.node("Concat", &[&cached, &scores], &[("axis", 3.into())]);
        }
        if let Some(cap) = self.model.attention_softcap {
            scores = self.softcap(&scores, cap, Self::constant);
        }
        let masked = self.node("Add", &[&scores, context.mask], &[]);
        let weights = self.node("Softmax", &[&masked], &[("axis", (-1).into())]);
        let Past::Apart { value, length, .. } = context.past else {
            return self.product(&weights, v);
        };
        let slice = |emitter: &mut Self, from: i64, to: i64| {
            let (from, to, axis) =
                (emitter.graph.integers(&[from]), emitter.graph.integers(&[to]), emitter.graph.integers(&[3]));
            emitter.node("Slice", &[&weights, &from, &to, &axis], &[])
        };
        let cached = slice(self, 0, length as i64);
        let new = slice(self, length as i64, i64::MAX);
        let cached = self.product(&cached, value);
        let new = self.product(&new, v);
        self.node("Add", &[&cached, &new], &[])
    }

    fn scores(&mut self, q: &str, k: &str) -> String {
        let transposed = self.node("Transpose", &[k], &[("perm", [0, 1, 3, 2].into())]);
        self.product(q, &transposed)
    }

    /// `[batch, chunk, heads · head_dim]` to `[batch, heads, chunk, head_dim]`, normed if the model has QK norms.
    fn heads(&mut self, x: &str, heads: usize, norm: Option<&str>) -> String {
        let mut x = self.reshape(x, &[0, 0, heads as i64, self.model.head_dim as i64]);
        if let Some(weight) = norm {
            x = self.norm(&x, weight);
        }
        self.node("Transpose", &[&x], &[("perm", [0, 2, 1, 3].into())])
    }

    /// Rotates pairs (i, i + d/2) of the first `d` dimensions: x · cos + (-x2, x1) · sin.
    fn rotate(&mut self, x: &str, cos: &str, sin: &str) -> String {
        let rotary = self.model.rotary_dim();
        let rest = self.model.head_dim - rotary;
        let parts = if rest > 0 { self.split(x, &[rotary, rest], -1) } else { vec![x.to_owned()] };
        let halves = self.split(&parts[0], &[rotary / 2, rotary / 2], -1);
        let negated = self.node("Neg", &[&halves[1]], &[]);
        let turned = self.node("Concat", &[&negated, &halves[0]], &[("axis", (-1).into())]);
        let a = self.node("Mul", &[&parts[0], cos], &[]);
        let b = self.node("Mul", &[&turned, sin], &[]);
        let rotated = self.node("Add", &[&a, &b], &[]);
        match parts.get(1) {
            Some(rest) => self.node("Concat", &[&rotated, rest], &[("axis", (-1).into())]),
            None => rotated,
        }
    }

    /// The result of [`Self::rotate`] in unjoined parts: the two rotated halves, and the dimensions that are not
    /// rotated.
    fn rotate_apart(&mut self, x: &str, cos: &str, sin: &str) -> Vec<String> {
        let rotary = self.model.rotary_dim();
        let (half, rest) = (rotary / 2, self.model.head_dim - rotary);
        let sizes = [half, half, rest];
        let mut parts = self.split(x, if rest > 0 { &sizes } else { &sizes[..2] }, -1);
        let (cos, sin) = (self.split(cos, &[half; 2], -1), self.split(sin, &[half; 2], -1));
        let turn = |emitter: &mut Self, (own, other): (&str, &str), at: usize, op: &str| {
            let a = emitter.node("Mul", &[own, &cos[at]], &[]);
            let b = emitter.node("Mul", &[other, &sin[at]], &[]);
            emitter.node(op, &[&a, &b], &[])
        };
        let low = turn(self, (&parts[0], &parts[1]), 0, "Sub");
        let high = turn(self, (&parts[1], &parts[0]), 1, "Add");
        parts.splice(..2, [low, high]);
        parts
    }

    /// Rounds rows (the last axis, in parts) as an int8 cache does: to multiples of 1/127 of their largest magnitude.
    /// Rounded before attention, so that an answer does not depend on how its prompt was cut into passes. In parts,
    /// because TensorRT-RTX 1.6 reduces a concatenated axis wrongly.
    fn round_rows(&mut self, parts: Vec<String>) -> String {
        let float = self.dtype == DType::Float32;
        let wide: Vec<String> =
            parts.iter().map(|x| if float { x.clone() } else { self.cast(x, DType::Float32) }).collect();
        let largest = wide.iter().fold(None, |largest: Option<String>, x| {
            let sizes = self.node("Abs", &[x], &[]);
            let own = self.node("ReduceMax", &[&sizes], &[("axes", [-1].into()), ("keepdims", 1.into())]);
            Some(largest.map_or(own.clone(), |other| self.node("Max", &[&other, &own], &[])))
        });
        let (share, least) = (self.graph.scalar(1.0 / 127.0), self.graph.scalar(1e-30));
        let scale = self.node("Mul", &[&largest.unwrap_or_default(), &share], &[]);
        let scale = self.node("Add", &[&scale, &least], &[]); // a row of zeros stays one
        let mut rounded = Vec::new();
        for x in &wide {
            let units = self.node("Div", &[x, &scale], &[]);
            let whole = self.node("Round", &[&units], &[]);
            let value = self.node("Mul", &[&whole, &scale], &[]);
            rounded.push(if float { value } else { self.cast(&value, self.dtype) });
        }
        match &rounded[..] {
            [one] => one.clone(),
            several => {
                let several: Vec<&str> = several.iter().map(String::as_str).collect();
                self.node("Concat", &several, &[("axis", (-1).into())])
            }
        }
    }
}
