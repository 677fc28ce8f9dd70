//! The attention blocks of YOLO11 (position-sensitive) and YOLO12 (area attention).
//!
//! Both compute with channels before positions: a 1 x 1 convolution's output `[batch, channels, height, width]` is
//! reshaped to heads, never transposed to a sequence and back, which is the same sum over the same elements.

use super::blocks::Emitter;
use super::module::{Module, Read};
use crate::convert::vision::net::{Map, dim};

impl Emitter {
    /// C2PSA: half of the channels bypass the inner blocks, half pass through them.
    pub(super) fn c2psa(&mut self, module: &Module<'_>, x: &Map) -> Read<Map> {
        let y = self.part(module, "cv1", x)?;
        let [a, b] = self.halves(module, &y, module.size("c")?)?;
        let b = self.part(module, "m", &b)?;
        let joined = self.concat(module, &[a, b])?;
        self.part(module, "cv2", &joined)
    }

    pub(super) fn psa_block(&mut self, module: &Module<'_>, x: &Map) -> Read<Map> {
        let shortcut = module.flag("add");
        let y = self.attention(&module.child("attn")?, x)?;
        let x = if shortcut { self.add(module, x, &y)? } else { y };
        let y = self.part(module, "ffn", &x)?;
        if shortcut { self.add(module, &x, &y) } else { Ok(y) }
    }

    /// softmax((q · scale)ᵀ k) over all positions, plus a depthwise convolution of the values as position encoding.
    fn attention(&mut self, module: &Module<'_>, x: &Map) -> Read<Map> {
        let (heads, key, value) = (module.size("num_heads")?, module.size("key_dim")?, module.size("head_dim")?);
        let qkv = self.part(module, "qkv", x)?;
        let row = 2 * key + value;
        if heads == 0 || heads * row != qkv.channels || heads * value != x.channels {
            return Err(module.error(format!("{heads} heads of {row} are not the {} channels of qkv", qkv.channels)));
        }
        self.net.graph.scope(&module.scope());
        let count = dim(x.height * x.width);
        let split = self.net.reshape(&qkv.name, &[-1, dim(heads), dim(row), count]); // (batch, heads, 2 key + value, count)
        let parts = self.net.split(&split, 2, &[key, key, value]);
        let scale = module.attribute("scale").and_then(|scale| scale.number());
        let scale = scale.map_or((key as f32).powf(-0.5), |scale| scale as f32);
        let y = self.attend(&parts, scale);
        let y = self.unfold(&y, x);
        let values = self.unfold(&parts[2], x);
        let places = self.part(module, "pe", &values)?;
        let sum = self.add(module, &y, &places)?;
        self.part(module, "proj", &sum)
    }

    /// q, k `[…, key, count]`, v `[…, value, count]` to v · softmax(scale · qᵀ k)ᵀ, `[…, value, count]`.
    fn attend(&mut self, parts: &[String], scale: f32) -> String {
        let queries = self.net.transpose(&parts[0], [0, 1, 3, 2]);
        let scores = self.net.node("MatMul", &[&queries, &parts[1]], &[]);
        let scores = self.net.scale(&scores, scale);
        let weights = self.net.softmax(&scores, -1);
        let weights = self.net.transpose(&weights, [0, 1, 3, 2]);
        self.net.node("MatMul", &[&parts[2], &weights], &[])
    }

    /// Heads `[batch, heads, channels / heads, count]` to a map of `like`'s shape.
    fn unfold(&mut self, x: &str, like: &Map) -> Map {
        let name = self.net.reshape(x, &[-1, dim(like.channels), dim(like.height), dim(like.width)]);
        Map { name, ..like.clone() }
    }

    pub(super) fn a2c2f(&mut self, module: &Module<'_>, x: &Map) -> Read<Map> {
        let mut parts = vec![self.part(module, "cv1", x)?];
        self.grow(module, &mut parts)?;
        let joined = self.concat(module, &parts)?;
        let y = self.part(module, "cv2", &joined)?;
        // Large models scale the block's output and add its input.
        let Some((shape, gamma)) = module.values("gamma")? else { return Ok(y) };
        if shape.iter().product::<usize>() != y.channels {
            return Err(module.error(format!("`gamma` has shape {shape:?}, the block {} channels", y.channels)));
        }
        self.net.graph.scope(&module.scope());
        let gamma = self.net.constant(&format!("{}.gamma", module.path), &[1, y.channels, 1, 1], gamma);
        let scaled = Map { name: self.net.node("Mul", &[&gamma, &y.name], &[]), ..y };
        self.add(module, x, &scaled)
    }

    pub(super) fn area_block(&mut self, module: &Module<'_>, x: &Map) -> Read<Map> {
        let y = self.area_attention(&module.child("attn")?, x)?;
        let x = self.add(module, x, &y)?;
        let y = self.part(module, "mlp", &x)?;
        self.add(module, &x, &y)
    }

    /// Attention within `area` bands of rows (Tian et al., YOLOv12, 2025). Two releases differ in how q, k and v are made:
    /// by one convolution, heads outermost, or by `qk` and `v`.
    fn area_attention(&mut self, module: &Module<'_>, x: &Map) -> Read<Map> {
        let (heads, size) = (module.size("num_heads")?, module.size("head_dim")?);
        let area = module.size_or("area", 1)?;
        let count = x.height * x.width;
        if heads == 0 || area == 0 || heads * size != x.channels {
            return Err(module.error(format!("{heads} heads of {size} are not {} channels", x.channels)));
        }
        if !count.is_multiple_of(area) {
            return Err(module
                .error(format!("{} x {} positions cannot be cut into {area} areas", x.height, x.width))
                .with_help("choose an `image_size` that is a multiple of 64"));
        }
        let bands = Bands { heads, area, count };
        let (parts, values) = if let Some(fused) = module.find("qkv")? {
            let y = self.block(&fused, x)?;
            self.expect(module, &y, 3 * x.channels)?;
            self.net.graph.scope(&module.scope());
            let bands = self.bands(&y.name, bands, 3 * size);
            let parts = self.net.split(&bands, 2, &[size; 3]);
            let values = self.merge(&parts[2], x, &Bands { heads, area, count });
            (parts, values)
        } else if let (Some(qk), Some(v)) = (module.find("qk")?, module.find("v")?) {
            let y = self.block(&qk, x)?;
            self.expect(module, &y, 2 * x.channels)?;
            let values = self.block(&v, x)?;
            self.expect(module, &values, x.channels)?;
            let halves = self.halves(module, &y, x.channels)?;
            let maps = [&halves[0].name, &halves[1].name, &values.name];
            (maps.map(|map| self.bands(map, bands, size)).to_vec(), values)
        } else {
            return Err(module.error("it has neither `qkv` nor `qk` and `v`: an unknown release of YOLO12"));
        };
        self.net.graph.scope(&module.scope());
        let y = self.attend(&parts, (size as f32).powf(-0.5));
        let y = self.merge(&y, x, &bands);
        let places = self.part(module, "pe", &values)?;
        let sum = self.add(module, &y, &places)?;
        self.part(module, "proj", &sum)
    }

    fn expect(&self, module: &Module<'_>, y: &Map, channels: usize) -> Read<()> {
        if y.channels == channels {
            return Ok(());
        }
        Err(module
            .error(format!("its queries, keys and values have {} channels, {channels} were expected", y.channels)))
    }

    /// Splits into heads and areas: `[batch, heads · size, height, width]` to
    /// `[batch · area, heads, size, count / area]`.
    fn bands(&mut self, x: &str, Bands { heads, area, count }: Bands, size: usize) -> String {
        if area == 1 {
            return self.net.reshape(x, &[-1, dim(heads), dim(size), dim(count)]);
        }
        let cut = self.net.reshape(x, &[-1, dim(heads), dim(size), dim(area), dim(count / area)]);
        let outer = self.net.transpose(&cut, [0, 3, 1, 2, 4]);
        self.net.reshape(&outer, &[-1, dim(heads), dim(size), dim(count / area)])
    }

    /// Merges heads and areas back into a map of `like`'s shape.
    fn merge(&mut self, x: &str, like: &Map, Bands { heads, area, count }: &Bands) -> Map {
        if *area == 1 {
            return self.unfold(x, like);
        }
        let size = like.channels / heads;
        let cut = self.net.reshape(x, &[-1, dim(*area), dim(*heads), dim(size), dim(count / area)]);
        let inner = self.net.transpose(&cut, [0, 2, 3, 1, 4]);
        self.unfold(&inner, like)
    }
}

/// How positions are split for attention.
#[derive(Debug, Clone, Copy)]
struct Bands {
    heads: usize,
    area: usize,
    count: usize,
}
