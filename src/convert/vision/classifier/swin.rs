//! Swin (Liu et al., 2021): attention within windows that are shifted in every other block, with patch merging between
//! stages.

use super::builder::{Attention, ClassifierGraph, Read};
use crate::convert::vision::net::{Map, Tokens, dim};

/// Added to the scores of positions that a shift has moved next to each other from different sides of the image.
const APART: f32 = -100.0;

/// A feature map with channels last, `[batch, height, width, channels]`.
#[derive(Debug, Clone)]
struct Grid {
    name: String,
    height: usize,
    width: usize,
    channels: usize,
}

impl Grid {
    fn shape(&self) -> [i64; 4] {
        [-1, dim(self.height), dim(self.width), dim(self.channels)]
    }
}

pub(super) fn swin(builder: &mut ClassifierGraph<'_>, image: &Map) -> Read<String> {
    let mut x = builder.swin_embeddings(image)?;
    let (depths, heads) = (builder.sizes("depths")?, builder.sizes("num_heads")?);
    if depths.len() != heads.len() {
        return Err(builder.config.error("`depths` and `num_heads` differ in length"));
    }
    let window = builder.square("window_size", 7)?;
    for (stage, (depth, heads)) in depths.iter().zip(&heads).enumerate() {
        // A map that is no larger than a window is one window, not shifted.
        let whole = x.height.min(x.width) <= window;
        let size = if whole { x.height.min(x.width) } else { window };
        for block in 0..*depth {
            let stem = format!("swin.encoder.layers.{stage}.blocks.{block}");
            builder.net.graph.scope(&format!("/swin/encoder/layers.{stage}/blocks.{block}"));
            let shift = if whole || block % 2 == 0 { 0 } else { window / 2 };
            x = builder.swin_block(&stem, &x, &SwinWindows { size, trained: window, shift, heads: *heads })?;
        }
        if stage + 1 < depths.len() {
            builder.net.graph.scope(&format!("/swin/encoder/layers.{stage}/downsample"));
            x = builder.merge_patches(&format!("swin.encoder.layers.{stage}.downsample"), &x)?;
        }
    }
    builder.net.graph.scope("/swin");
    let eps = builder.number("layer_norm_eps", 1e-5)?;
    let normed = builder.norm(&x.name, "swin.layernorm", x.channels, eps)?;
    let mean = builder.net.node("ReduceMean", &[&normed], &[("axes", [1, 2].into()), ("keepdims", 0.into())]);
    let classes = builder.classes;
    builder.linear(&mean, "classifier", [classes, x.channels], true)
}

/// The attention windows of a block.
#[derive(Debug, Clone, Copy)]
struct SwinWindows {
    size: usize,
    /// Window size that the table of biases was trained for.
    trained: usize,
    shift: usize,
    heads: usize,
}

impl ClassifierGraph<'_> {
    fn swin_embeddings(&mut self, image: &Map) -> Read<Grid> {
        let (patch, width) = (self.square("patch_size", 4)?, self.config.size("embed_dim")?);
        let trained = self.square("image_size", 224)?;
        let positions = self.weights.has("swin.embeddings.position_embeddings");
        if positions && (image.height != trained || image.width != trained) {
            return Err(self.config.error(format!(
                "its position embeddings are for {trained} x {trained} pixels, the recipe asks for {} x {}",
                image.height, image.width
            )));
        }
        self.net.graph.scope("/swin/embeddings");
        let pad = |size: usize| size.next_multiple_of(patch) - size;
        let padded = self.pad(&image.name, &[0, 0, pad(image.height), pad(image.width)]);
        let image = Map {
            name: padded,
            height: image.height.next_multiple_of(patch),
            width: image.width.next_multiple_of(patch),
            ..image.clone()
        };
        let map = self.patches(&image, "swin.embeddings.patch_embeddings.projection", patch, width)?;
        let mut x = self.net.tokens(&map);
        x.name = self.norm(&x.name, "swin.embeddings.norm", width, 1e-5)?;
        if positions {
            let shape = [1, x.count, width];
            let table = self.weight("swin.embeddings.position_embeddings", &shape, &shape)?;
            x = self.add(&x, &table);
        }
        let grid = Grid { name: String::new(), height: map.height, width: map.width, channels: width };
        Ok(Grid { name: self.net.reshape(&x.name, &grid.shape()), ..grid })
    }

    /// Pads zeros at the end of each axis.
    fn pad(&mut self, x: &str, after: &[usize; 4]) -> String {
        if after.iter().all(|count| *count == 0) {
            return x.to_owned();
        }
        let pads: Vec<i64> = [0; 4].into_iter().chain(after.iter().map(|count| dim(*count))).collect();
        let pads = self.net.graph.integers(&pads);
        self.net.node("Pad", &[x, &pads], &[])
    }

    fn swin_block(&mut self, stem: &str, x: &Grid, windows: &SwinWindows) -> Read<Grid> {
        let SwinWindows { size, shift, heads, .. } = *windows;
        let eps = self.number("layer_norm_eps", 1e-5)?;
        let normed = self.norm(&x.name, &format!("{stem}.layernorm_before"), x.channels, eps)?;
        let (height, width) = (x.height.next_multiple_of(size), x.width.next_multiple_of(size));
        let padded = self.pad(&normed, &[0, height - x.height, width - x.width, 0]);
        let grid = Grid { name: padded, height, width, channels: x.channels };
        let rolled = self.roll(&grid, [shift; 2]);
        let (rows, columns, count) = (height / size, width / size, size * size);
        let (rows_i, columns_i, size_i, channels) = (dim(rows), dim(columns), dim(size), dim(x.channels));
        let cut = self.net.reshape(&rolled, &[-1, rows_i, size_i, columns_i, size_i, channels]);
        let cut = self.net.transpose(&cut, [0, 1, 3, 2, 4, 5]);
        let cut = self.net.reshape(&cut, &[-1, dim(count), channels]); // (batch · windows, size², channels)
        let mut bias = self.window_bias(stem, windows)?;
        if shift > 0 {
            bias = self.shift_mask(&grid, windows, &bias);
        }
        let plan = Attention {
            heads,
            qkv: format!("{stem}.attention.self"),
            output: format!("{stem}.attention.output.dense"),
        };
        let tokens = Tokens { name: cut, count, width: x.channels };
        let y = self.attention(&tokens, &plan, |net, scores| {
            if shift == 0 {
                return net.node("Add", &[&scores, &bias], &[]);
            }
            // The mask differs by window, so windows get an axis of their own, which broadcasts with the batch's.
            let (heads, count) = (dim(heads), dim(count));
            let apart = net.reshape(&scores, &[-1, rows_i * columns_i, heads, count, count]);
            let masked = net.node("Add", &[&apart, &bias], &[]);
            net.reshape(&masked, &[-1, heads, count, count])
        })?;
        let y = self.net.reshape(&y.name, &[-1, rows_i, columns_i, size_i, size_i, channels]);
        let y = self.net.transpose(&y, [0, 1, 3, 2, 4, 5]);
        let grid = Grid { name: String::new(), ..grid };
        let y = Grid { name: self.net.reshape(&y, &grid.shape()), ..grid };
        let mut y = self.roll(&y, [height - shift, width - shift].map(|by| by * usize::from(shift > 0)));
        if (height, width) != (x.height, x.width) {
            y = self.net.slice(&y, 1, 0, x.height);
            y = self.net.slice(&y, 2, 0, x.width);
        }
        let x = Grid { name: self.net.node("Add", &[&x.name, &y], &[]), ..x.clone() };
        let normed = self.norm(&x.name, &format!("{stem}.layernorm_after"), x.channels, eps)?;
        let ratio = self.number("mlp_ratio", 4.0)?;
        let inner = (ratio * x.channels as f32) as usize;
        let y = self.linear(&normed, &format!("{stem}.intermediate.dense"), [inner, x.channels], true)?;
        let activation = self.activation("hidden_act")?;
        let y = self.net.activate(&y, activation);
        let y = self.linear(&y, &format!("{stem}.output.dense"), [x.channels, inner], true)?;
        Ok(Grid { name: self.net.node("Add", &[&x.name, &y], &[]), ..x })
    }

    /// Rolls rows and columns by `by` towards the start, as torch.roll.
    fn roll(&mut self, x: &Grid, by: [usize; 2]) -> String {
        let mut name = x.name.clone();
        for (axis, (by, size)) in by.into_iter().zip([x.height, x.width]).enumerate() {
            if by == 0 || by == size {
                continue;
            }
            let axis = dim(axis) + 1;
            let (head, tail) = (self.net.slice(&name, axis, 0, by), self.net.slice(&name, axis, by, size));
            name = self.net.concat(&[&tail, &head], axis);
        }
        name
    }

    /// The learned bias of every pair of positions in a window, `[1, heads, size², size²]`.
    fn window_bias(&mut self, stem: &str, windows: &SwinWindows) -> Read<String> {
        let SwinWindows { size, trained, heads, .. } = *windows;
        let table = format!("{stem}.attention.self.relative_position_bias_table");
        let side = 2 * trained - 1;
        let values = self.read(&table, &[side * side, heads])?;
        if size != trained {
            return Err(self
                .config
                .error(format!("a map of {size} positions a side meets windows of {trained}"))
                .with_help("use a larger picture"));
        }
        let count = size * size;
        let row = |query: usize, key: usize| {
            (query / size + size - 1 - key / size) * side + query % size + size - 1 - key % size
        };
        let mut bias = Vec::with_capacity(heads * count * count);
        for head in 0..heads {
            bias.extend((0..count * count).map(|pair| values[row(pair / count, pair % count) * heads + head]));
        }
        Ok(self.net.constant(&format!("{table}.bias"), &[1, heads, count, count], bias))
    }

    /// Sum of bias and shift mask, `[windows, heads, size², size²]`.
    fn shift_mask(&mut self, grid: &Grid, windows: &SwinWindows, bias: &str) -> String {
        let SwinWindows { size, shift, .. } = *windows;
        let (rows, columns, count) = (grid.height / size, grid.width / size, size * size);
        let region = |at: usize, length: usize| usize::from(at >= length - size) + usize::from(at >= length - shift);
        let mut mask = Vec::with_capacity(rows * columns * count * count);
        for window in 0..rows * columns {
            let of = |position: usize| {
                let y = window / columns * size + position / size;
                let x = window % columns * size + position % size;
                3 * region(y, grid.height) + region(x, grid.width)
            };
            mask.extend((0..count * count).map(|pair| if of(pair / count) == of(pair % count) { 0.0 } else { APART }));
        }
        let name = format!("shift-{}x{}-{size}", grid.height, grid.width);
        let mask = self.net.constant(&name, &[rows * columns, 1, count, count], mask);
        self.net.node("Add", &[bias, &mask], &[])
    }

    /// Merges every two by two positions into one with twice the channels.
    fn merge_patches(&mut self, stem: &str, x: &Grid) -> Read<Grid> {
        let (height, width) = (x.height.div_ceil(2), x.width.div_ceil(2));
        let padded = self.pad(&x.name, &[0, x.height % 2, x.width % 2, 0]);
        let cut = self.net.reshape(&padded, &[-1, dim(height), 2, dim(width), 2, dim(x.channels)]);
        // Column by column of the four: (batch, height, width, column, row, channels).
        let cut = self.net.transpose(&cut, [0, 1, 3, 4, 2, 5]);
        let grid = Grid { name: String::new(), height, width, channels: 4 * x.channels };
        let joined = self.net.reshape(&cut, &grid.shape());
        let normed = self.norm(&joined, &format!("{stem}.norm"), grid.channels, 1e-5)?;
        let channels = 2 * x.channels;
        let name = self.linear(&normed, &format!("{stem}.reduction"), [channels, grid.channels], false)?;
        Ok(Grid { name, channels, ..grid })
    }
}
