//! ResNet (He et al., 2015) and ConvNeXt (Liu et al., 2022).

use super::builder::{ClassifierGraph, Geometry, Read};
use crate::convert::vision::net::{BatchNorm, Conv, Map, Nonlinearity, Tokens};

/// torch's default, which config.json does not contain.
const BATCH_NORM_EPS: f32 = 1e-5;

pub(super) fn resnet(builder: &mut ClassifierGraph<'_>, image: &Map) -> Read<String> {
    let config = builder.config;
    config.only("layer_type", &["bottleneck", "basic"])?;
    let basic = config.text("layer_type") == Some("basic");
    let activation = match config.text("hidden_act") {
        None => Nonlinearity::Relu,
        Some(_) => builder.activation("hidden_act")?,
    };
    let (sizes, depths) = (builder.sizes("hidden_sizes")?, builder.sizes("depths")?);
    if sizes.len() != depths.len() {
        return Err(config.error("`depths` and `hidden_sizes` differ in length"));
    }
    // Within a block it is always ReLU, ResNetConvLayer's default (`modeling_resnet.py`): the layers do not pass theirs on.
    let inner_activation = Nonlinearity::Relu;
    builder.net.graph.scope("/resnet/embedder");
    let width = config.optional_size("embedding_size")?.unwrap_or(64);
    let x = builder.normed_conv(image, "resnet.embedder.embedder", width, 7, 2)?;
    let x = Map { name: builder.net.activate(&x.name, activation), ..x };
    let small = config.error("the picture is too small");
    let mut x = builder.net.max_pool(&x, 3, 2, 1).ok_or(small)?;
    for (stage, (size, depth)) in sizes.iter().zip(&depths).enumerate() {
        for layer in 0..*depth {
            let stem = format!("resnet.encoder.stages.{stage}.layers.{layer}");
            builder.net.graph.scope(&format!("/resnet/encoder/stages.{stage}/layers.{layer}"));
            let halve = layer == 0 && (stage > 0 || config.flag("downsample_in_first_stage"));
            let stride = if halve { 2 } else { 1 };
            let y = if basic {
                let y = builder.normed_conv(&x, &format!("{stem}.layer.0"), *size, 3, stride)?;
                let y = Map { name: builder.net.activate(&y.name, inner_activation), ..y };
                builder.normed_conv(&y, &format!("{stem}.layer.1"), *size, 3, 1)?
            } else {
                let early = config.flag("downsample_in_bottleneck");
                let strides = if early { [stride, 1] } else { [1, stride] };
                let inner = size / 4;
                let y = builder.normed_conv(&x, &format!("{stem}.layer.0"), inner, 1, strides[0])?;
                let y = Map { name: builder.net.activate(&y.name, inner_activation), ..y };
                let y = builder.normed_conv(&y, &format!("{stem}.layer.1"), inner, 3, strides[1])?;
                let y = Map { name: builder.net.activate(&y.name, inner_activation), ..y };
                builder.normed_conv(&y, &format!("{stem}.layer.2"), *size, 1, 1)?
            };
            let beside = if x.channels != *size || stride != 1 {
                builder.normed_conv(&x, &format!("{stem}.shortcut"), *size, 1, stride)?
            } else {
                x
            };
            let sum = builder.net.node("Add", &[&y.name, &beside.name], &[]);
            x = Map { name: builder.net.activate(&sum, activation), ..y };
        }
    }
    builder.net.graph.scope("/pooler");
    let pooled = builder.net.global_average(&x);
    builder.net.graph.scope("/classifier");
    let classes = builder.classes;
    builder.linear(&pooled, "classifier.1", [classes, x.channels], true)
}

pub(super) fn convnext(builder: &mut ClassifierGraph<'_>, image: &Map) -> Read<String> {
    let (sizes, depths) = (builder.sizes("hidden_sizes")?, builder.sizes("depths")?);
    if sizes.len() != depths.len() {
        return Err(builder.config.error("`depths` and `hidden_sizes` differ in length"));
    }
    let patch = builder.square("patch_size", 4)?;
    builder.net.graph.scope("/convnext/embeddings");
    let x = builder.patches(image, "convnext.embeddings.patch_embeddings", patch, sizes[0])?;
    let mut x = builder.map_norm(&x, "convnext.embeddings.layernorm")?;
    for (stage, (size, depth)) in sizes.iter().zip(&depths).enumerate() {
        let stem = format!("convnext.encoder.stages.{stage}");
        let scope = format!("/convnext/encoder/stages.{stage}");
        if stage > 0 {
            builder.net.graph.scope(&format!("{scope}/downsampling_layer"));
            let normed = builder.map_norm(&x, &format!("{stem}.downsampling_layer.0"))?;
            x = builder.patches(&normed, &format!("{stem}.downsampling_layer.1"), 2, *size)?;
        }
        for layer in 0..*depth {
            builder.net.graph.scope(&format!("{scope}/layers.{layer}"));
            x = builder.convnext_layer(&format!("{stem}.layers.{layer}"), &x)?;
        }
    }
    builder.net.graph.scope("/convnext");
    let pooled = builder.net.global_average(&x);
    let eps = builder.number("layer_norm_eps", 1e-12)?;
    let normed = builder.norm(&pooled, "convnext.layernorm", x.channels, eps)?;
    let classes = builder.classes;
    builder.linear(&normed, "classifier", [classes, x.channels], true)
}

impl ClassifierGraph<'_> {
    /// A convolution without bias, with its batch normalisation folded in.
    fn normed_conv(&mut self, x: &Map, stem: &str, outputs: usize, kernel: usize, stride: usize) -> Read<Map> {
        let shape = [outputs, x.channels, kernel, kernel];
        let weight = self.read(&format!("{stem}.convolution.weight"), &shape)?;
        let part = |name: &str| self.read(&format!("{stem}.normalization.{name}"), &[outputs]);
        let norm = BatchNorm {
            gamma: part("weight")?,
            beta: part("bias")?,
            mean: part("running_mean")?,
            variance: part("running_var")?,
            eps: BATCH_NORM_EPS,
        };
        let mut conv = Conv {
            name: format!("{stem}.convolution"),
            shape,
            weight,
            bias: None,
            stride: [stride; 2],
            padding: [kernel / 2; 2],
            dilation: [1; 2],
            groups: 1,
        };
        let negative = || self.config.error(format!("tensor `{stem}.normalization.running_var` is negative"));
        conv.fold(&norm).ok_or_else(negative)?;
        self.fit(x, stem, &conv)
    }

    /// Layer normalisation over channels; ConvNeXt's epsilon is 1e-6 everywhere but at the end.
    fn map_norm(&mut self, x: &Map, stem: &str) -> Read<Map> {
        let shape = [x.channels, 1, 1];
        let weight = self.weight(&format!("{stem}.weight"), &[x.channels], &shape)?;
        let bias = self.weight(&format!("{stem}.bias"), &[x.channels], &shape)?;
        Ok(Map { name: self.net.layer_norm(&x.name, 1, 1e-6, &weight, &bias), ..x.clone() })
    }

    fn convnext_layer(&mut self, stem: &str, x: &Map) -> Read<Map> {
        let channels = x.channels;
        let depthwise = Geometry { kernel: [7; 2], padding: 3, groups: channels, ..Geometry::default() };
        let y = self.convolve(x, &format!("{stem}.dwconv"), channels, &depthwise)?;
        let Tokens { name, .. } = self.net.tokens(&y); // (batch, height · width, channels)
        let name = self.norm(&name, &format!("{stem}.layernorm"), channels, 1e-6)?;
        let name = self.linear(&name, &format!("{stem}.pwconv1"), [4 * channels, channels], true)?;
        let activation = self.activation("hidden_act")?;
        let name = self.net.activate(&name, activation);
        let mut name = self.linear(&name, &format!("{stem}.pwconv2"), [channels, 4 * channels], true)?;
        let scale = format!("{stem}.layer_scale_parameter");
        if self.weights.has(&scale) {
            let scale = self.weight(&scale, &[channels], &[channels])?;
            name = self.net.node("Mul", &[&name, &scale], &[]);
        }
        let y = self.net.map(&name, &y);
        Ok(Map { name: self.net.node("Add", &[&x.name, &y.name], &[]), ..y })
    }
}
