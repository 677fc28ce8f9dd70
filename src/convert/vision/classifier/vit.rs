//! ViT (Dosovitskiy et al., 2020), DeiT (Touvron et al., 2020) and BEiT (Bao et al., 2021): patches as tokens.
//!
//! The tokens before the patches (class, distillation) are not separate constants: a padded row of zeros gets them with
//! its position embedding, so that the batch size need not be known.

use super::builder::{Attention, ClassifierGraph, Read};
use crate::convert::vision::net::{Map, Tokens, dim};

/// Differences between the families.
struct VitFamily {
    prefix: &'static str,
    /// Names of the tokens before the patches.
    tokens: &'static [&'static str],
}

const VIT: VitFamily = VitFamily { prefix: "vit", tokens: &["cls_token"] };
const DEIT: VitFamily = VitFamily { prefix: "deit", tokens: &["cls_token", "distillation_token"] };
const BEIT: VitFamily = VitFamily { prefix: "beit", tokens: &["cls_token"] };

pub(super) fn vit(builder: &mut ClassifierGraph<'_>, image: &Map) -> Read<String> {
    let x = builder.encode(&VIT, image)?;
    builder.token_logits(&x, 0, "classifier")
}

/// DeiT: with a teacher the outputs of both heads are averaged; without, the distillation token only takes part in
/// attention.
pub(super) fn deit(builder: &mut ClassifierGraph<'_>, image: &Map) -> Read<String> {
    let x = builder.encode(&DEIT, image)?;
    if builder.weights.has("classifier.weight") {
        return builder.token_logits(&x, 0, "classifier");
    }
    let class = builder.token_logits(&x, 0, "cls_classifier")?;
    let distilled = builder.token_logits(&x, 1, "distillation_classifier")?;
    let sum = builder.net.node("Add", &[&class, &distilled], &[]);
    Ok(builder.net.scale(&sum, 0.5))
}

pub(super) fn beit(builder: &mut ClassifierGraph<'_>, image: &Map) -> Read<String> {
    let x = builder.encode(&BEIT, image)?;
    if builder.config.get("use_mean_pooling").is_some_and(|value| value == false) {
        return builder.token_logits(&x, 0, "classifier");
    }
    let patches = builder.net.slice(&x.name, 1, 1, x.count);
    let mean = builder.net.node("ReduceMean", &[&patches], &[("axes", [1].into()), ("keepdims", 0.into())]);
    let eps = builder.number("layer_norm_eps", 1e-12)?;
    let normed = builder.norm(&mean, "beit.pooler.layernorm", x.width, eps)?;
    let classes = builder.classes;
    builder.linear(&normed, "classifier", [classes, x.width], true)
}

impl ClassifierGraph<'_> {
    /// Logits from one token of the encoder's output.
    fn token_logits(&mut self, x: &Tokens, token: usize, stem: &str) -> Read<String> {
        let one = self.net.slice(&x.name, 1, token, token + 1);
        let flat = self.net.reshape(&one, &[-1, dim(x.width)]);
        let classes = self.classes;
        self.linear(&flat, stem, [classes, x.width], true)
    }

    fn encode(&mut self, family: &VitFamily, image: &Map) -> Read<Tokens> {
        let prefix = family.prefix;
        let (width, patch) = (self.config.size("hidden_size")?, self.square("patch_size", 16)?);
        let trained = self.square("image_size", 224)?;
        let stem = format!("{prefix}.embeddings.patch_embeddings.projection");
        self.net.graph.scope(&format!("/{prefix}/embeddings"));
        let grid = self.patches(image, &stem, patch, width)?;
        let window = [grid.height, grid.width];
        let positions = self.weights.has(&format!("{prefix}.embeddings.position_embeddings"));
        if (positions || prefix != "beit") && (image.height != trained || image.width != trained) {
            return Err(self
                .config
                .error(format!(
                    "its position embeddings are for {trained} x {trained} pixels, the recipe asks for {} x {}",
                    image.height, image.width
                ))
                .with_help("leave the size out, or use a model trained at that size"));
        }
        let patches = self.net.tokens(&grid);
        let mut x = self.embed(family, &patches, positions)?;
        let eps = self.number("layer_norm_eps", 1e-12)?;
        let shared = "beit.encoder.relative_position_bias.relative_position_bias_table";
        let shared = if self.weights.has(shared) { Some(self.relative_bias(shared, window)?) } else { None };
        for index in 0..self.config.size("num_hidden_layers")? {
            let layer = format!("{prefix}.encoder.layer.{index}");
            self.net.graph.scope(&format!("/{prefix}/encoder/layer.{index}"));
            x = self.layer(&layer, &x, eps, window, shared.as_deref())?;
        }
        // A BEiT that averages its patches normalises the average instead.
        self.net.graph.scope(&format!("/{prefix}"));
        if self.weights.has(&format!("{prefix}.layernorm.weight")) {
            x.name = self.norm(&x.name, &format!("{prefix}.layernorm"), width, eps)?;
        }
        Ok(x)
    }

    /// Prepends the tokens to the patches and adds position embeddings.
    fn embed(&mut self, family: &VitFamily, patches: &Tokens, positions: bool) -> Read<Tokens> {
        let (first, width) = (family.tokens.len(), patches.width);
        let count = first + patches.count;
        let name = format!("{}.embeddings.position_embeddings", family.prefix);
        let mut table = if positions { self.read(&name, &[1, count, width])? } else { vec![0.0; count * width] };
        for (row, token) in table.chunks_mut(width).zip(family.tokens) {
            let token = self.read(&format!("{}.embeddings.{token}", family.prefix), &[1, 1, width])?;
            row.iter_mut().zip(token).for_each(|(have, token)| *have += token);
        }
        let pads = self.net.graph.integers(&[0, dim(first), 0, 0, 0, 0]);
        let padded = self.net.node("Pad", &[&patches.name, &pads], &[]);
        let table = self.net.constant(&name, &[1, count, width], table);
        Ok(Tokens { name: self.net.node("Add", &[&padded, &table], &[]), count, width })
    }

    /// An encoder layer, with norms before attention and MLP.
    fn layer(&mut self, stem: &str, x: &Tokens, eps: f32, window: [usize; 2], shared: Option<&str>) -> Read<Tokens> {
        let (width, inner) = (x.width, self.config.size("intermediate_size")?);
        let own = format!("{stem}.attention.attention.relative_position_bias.relative_position_bias_table");
        let own = if self.weights.has(&own) { Some(self.relative_bias(&own, window)?) } else { None };
        let plan = Attention {
            heads: self.config.size("num_attention_heads")?,
            qkv: format!("{stem}.attention.attention"),
            output: format!("{stem}.attention.output.dense"),
        };
        let bias = own.as_deref().or(shared);
        let normed = self.norm(&x.name, &format!("{stem}.layernorm_before"), width, eps)?;
        let y = self.attention(&Tokens { name: normed, ..x.clone() }, &plan, |net, scores| match bias {
            Some(bias) => net.node("Add", &[&scores, bias], &[]),
            None => scores,
        })?;
        let y = self.layer_scale(&y.name, &format!("{stem}.lambda_1"), width)?;
        let x = self.add(x, &y);
        let normed = self.norm(&x.name, &format!("{stem}.layernorm_after"), width, eps)?;
        let y = self.linear(&normed, &format!("{stem}.intermediate.dense"), [inner, width], true)?;
        let activation = self.activation("hidden_act")?;
        let y = self.net.activate(&y, activation);
        let y = self.linear(&y, &format!("{stem}.output.dense"), [width, inner], true)?;
        let y = self.layer_scale(&y, &format!("{stem}.lambda_2"), width)?;
        Ok(self.add(&x, &y))
    }

    /// Multiplies by a learned scale, if the checkpoint has one.
    fn layer_scale(&mut self, x: &str, name: &str, width: usize) -> Read<String> {
        if !self.weights.has(name) {
            return Ok(x.to_owned());
        }
        let scale = self.weight(name, &[width], &[width])?;
        Ok(self.net.node("Mul", &[x, &scale], &[]))
    }

    /// BEiT's bias of every pair of tokens, `[1, heads, count, count]`: a table row for each offset between patches,
    /// and three for pairs with the class token. For other image sizes the table is interpolated, as in BEiT's code.
    fn relative_bias(&mut self, table: &str, window: [usize; 2]) -> Read<String> {
        let heads = self.config.size("num_attention_heads")?;
        let side = 2 * (self.square("image_size", 224)? / self.square("patch_size", 16)?).max(1) - 1;
        let values = self.read(table, &[side * side + 3, heads])?;
        let (near, special) = values.split_at(side * side * heads);
        let [height, width] = window.map(|size| 2 * size - 1);
        let near = resize(near, [side, side, heads], [height, width]);
        let (count, rows) = (window[0] * window[1] + 1, height * width);
        let row = |query: usize, key: usize| match (query, key) {
            (0, 0) => rows + 2,
            (_, 0) => rows + 1,
            (0, _) => rows,
            _ => {
                let place = |token: usize| ((token - 1) / window[1], (token - 1) % window[1]);
                let ((qy, qx), (ky, kx)) = (place(query), place(key));
                (qy + window[0] - 1 - ky) * width + qx + window[1] - 1 - kx
            }
        };
        let all: Vec<f32> = near.into_iter().chain(special.iter().copied()).collect();
        let mut bias = Vec::with_capacity(heads * count * count);
        for head in 0..heads {
            bias.extend((0..count * count).map(|pair| all[row(pair / count, pair % count) * heads + head]));
        }
        Ok(self.net.constant(&format!("{table}.bias"), &[1, heads, count, count], bias))
    }
}

/// Bilinear interpolation of `[height, width, channels]`, pixel centres aligned (torch's `align_corners=False`).
fn resize(values: &[f32], [height, width, channels]: [usize; 3], [new_height, new_width]: [usize; 2]) -> Vec<f32> {
    if (height, width) == (new_height, new_width) {
        return values.to_vec();
    }
    let source = |index: usize, size: usize, new: usize| {
        let at = ((index as f32 + 0.5) * size as f32 / new as f32 - 0.5).max(0.0);
        let low = (at as usize).min(size - 1);
        (low, (low + 1).min(size - 1), at - low as f32)
    };
    let mut out = Vec::with_capacity(new_height * new_width * channels);
    for y in 0..new_height {
        let (top, bottom, down) = source(y, height, new_height);
        for x in 0..new_width {
            let (left, right, along) = source(x, width, new_width);
            let mix = |row: usize, channel: usize| {
                let at = |column: usize| values[(row * width + column) * channels + channel];
                at(left) * (1.0 - along) + at(right) * along
            };
            out.extend((0..channels).map(|c| mix(top, c) * (1.0 - down) + mix(bottom, c) * down));
        }
    }
    out
}
