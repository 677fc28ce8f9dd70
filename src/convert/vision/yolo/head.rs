//! The heads of YOLO models: boxes and classes, mask coefficients and prototypes, or classes of the image.

use super::blocks::Emitter;
use super::module::{Module, Read};
use crate::convert::vision::net::{Conv, Map, dim};

/// Raw predictions of a head at one level: `[batch, 4 · bins, cells]` and `[batch, classes, cells]`.
struct PyramidLevel {
    height: usize,
    width: usize,
    stride: [f32; 2],
}

/// Output of a detection head.
pub(super) struct Detected {
    /// Number of anchors, the columns of the output.
    pub(super) anchors: usize,
    pub(super) classes: usize,
    /// `[batch, 4 + classes, anchors]`: centre, width and height in input pixels, then probabilities.
    pub(super) output: String,
}

impl Emitter {
    /// Emits a detection head. `one2one_*` branches of end-to-end heads are left out: with the one-to-many branches the
    /// model is the same, followed by non-maximum suppression.
    pub(super) fn detect(&mut self, module: &Module<'_>, maps: &[Map], image: [usize; 2]) -> Read<Detected> {
        let (bins, classes) = (module.size("reg_max")?, module.size("nc")?);
        let (boxes, scores) = (module.child("cv2")?.children()?, module.child("cv3")?.children()?);
        if maps.is_empty() || boxes.len() != maps.len() || scores.len() != maps.len() {
            return Err(module.error(format!(
                "{} levels, {} box and {} class branches",
                maps.len(),
                boxes.len(),
                scores.len()
            )));
        }
        let (mut levels, mut box_names, mut score_names) = (Vec::new(), Vec::new(), Vec::new());
        for ((map, boxes), scores) in maps.iter().zip(&boxes).zip(&scores) {
            let (sides, probable) = (self.block(boxes, map)?, self.block(scores, map)?);
            if sides.channels != 4 * bins || probable.channels != classes {
                let (have, all) = (sides.channels, probable.channels);
                return Err(module.error(format!(
                    "it says {classes} classes and {bins} bins a side, its branches have {all} and {have} channels"
                )));
            }
            if (sides.height, sides.width) != (probable.height, probable.width) {
                return Err(module.error("its box and class branches differ in size"));
            }
            box_names.push(self.flatten(module, &sides));
            score_names.push(self.flatten(module, &probable));
            let ratio = |image: usize, size: usize| image as f32 / size as f32;
            let stride = [ratio(image[0], sides.height), ratio(image[1], sides.width)];
            levels.push(PyramidLevel { height: sides.height, width: sides.width, stride });
        }
        let anchors = levels.iter().map(|level| level.height * level.width).sum();
        let distances = self.join(module, &box_names);
        let distances = if bins > 1 { self.expect_distance(module, &distances, bins, anchors)? } else { distances };
        let boxes = self.boxes(module, &distances, &levels);
        let logits = self.join(module, &score_names);
        let scores = self.net.node("Sigmoid", &[&logits], &[]);
        let output = self.net.concat(&[&boxes, &scores], 1);
        Ok(Detected { anchors, classes, output })
    }

    fn flatten(&mut self, module: &Module<'_>, x: &Map) -> String {
        self.net.graph.scope(&module.scope());
        self.net.reshape(&x.name, &[-1, dim(x.channels), dim(x.height * x.width)])
    }

    /// Concatenates the levels.
    pub(super) fn join(&mut self, module: &Module<'_>, levels: &[String]) -> String {
        self.net.graph.scope(&module.scope());
        let names: Vec<&str> = levels.iter().map(String::as_str).collect();
        self.net.concat(&names, 2)
    }

    /// Distances to the sides, each the mean of a distribution over 0…bins - 1 (Li et al., Generalized Focal Loss,
    /// 2020): `[batch, 4 · bins, anchors]` to `[batch, 4, anchors]`, in cells.
    fn expect_distance(&mut self, module: &Module<'_>, x: &str, bins: usize, anchors: usize) -> Read<String> {
        let dfl = module.child("dfl")?;
        self.net.graph.scope(&dfl.scope());
        let x = self.net.reshape(x, &[-1, 4, dim(bins), dim(anchors)]);
        let x = self.net.transpose(&x, [0, 2, 1, 3]); // (batch, bins, 4, anchors)
        let x = Map { name: self.net.softmax(&x, 1), channels: bins, height: 4, width: anchors };
        let conv = Conv {
            name: format!("{}.conv", dfl.path),
            shape: [1, bins, 1, 1],
            weight: (0..bins).map(|bin| bin as f32).collect(),
            bias: None,
            stride: [1; 2],
            padding: [0; 2],
            dilation: [1; 2],
            groups: 1,
        };
        self.net.graph.scope(&format!("{}/conv", dfl.scope()));
        let mean = self.net.conv(&x, &conv).ok_or_else(|| dfl.error("it does not fit"))?;
        self.net.graph.scope(&dfl.scope());
        Ok(self.net.reshape(&mean.name, &[-1, 4, dim(anchors)]))
    }

    /// Converts distances left, top, right, bottom from each cell's centre to centre, width and height in pixels.
    fn boxes(&mut self, module: &Module<'_>, distances: &str, levels: &[PyramidLevel]) -> String {
        let anchors: usize = levels.iter().map(|level| level.height * level.width).sum();
        let (mut centers, mut strides) = (vec![0.0; 2 * anchors], vec![0.0; 4 * anchors]); // (2, anchors), (4, anchors)
        let mut at = 0;
        for PyramidLevel { height, width, stride } in levels {
            for cell in 0..height * width {
                centers[at] = (cell % width) as f32 + 0.5;
                centers[anchors + at] = (cell / width) as f32 + 0.5;
                for side in 0..4 {
                    strides[side * anchors + at] = stride[1 - side % 2];
                }
                at += 1;
            }
        }
        self.net.graph.scope(&module.scope());
        let centers = self.net.constant(&format!("{}.anchors", module.path), &[1, 2, anchors], centers);
        // Strides are the same in both directions but for odd sizes.
        let strides = self.net.constant(&format!("{}.strides", module.path), &[1, 4, anchors], strides);
        let near = self.net.slice(distances, 1, 0, 2);
        let far = self.net.slice(distances, 1, 2, 4);
        let near = self.net.node("Sub", &[&centers, &near], &[]);
        let far = self.net.node("Add", &[&centers, &far], &[]);
        let sum = self.net.node("Add", &[&near, &far], &[]);
        let size = self.net.node("Sub", &[&far, &near], &[]);
        let middle = self.net.scale(&sum, 0.5);
        let boxes = self.net.concat(&[&middle, &size], 1);
        self.net.node("Mul", &[&boxes, &strides], &[])
    }

    /// Emits a segmentation head: boxes, classes and mask coefficients `[batch, 4 + classes + masks, anchors]`, and
    /// prototypes `[batch, masks, height, width]` (Bolya et al., YOLACT, 2019).
    pub(super) fn segment(
        &mut self,
        module: &Module<'_>,
        maps: &[Map],
        image: [usize; 2],
    ) -> Read<(Detected, usize, Map)> {
        let masks = module.size("nm")?;
        let first = maps.first().ok_or_else(|| module.error("it has no input"))?;
        let proto = self.prototypes(&module.child("proto")?, first)?;
        let branches = module.child("cv4")?.children()?;
        if branches.len() != maps.len() {
            return Err(module.error(format!("{} levels, {} mask branches", maps.len(), branches.len())));
        }
        let mut coefficients = Vec::new();
        for (branch, map) in branches.iter().zip(maps) {
            let y = self.block(branch, map)?;
            if y.channels != masks || proto.channels != masks {
                return Err(module.error(format!("{masks} masks, branches of {} and {}", y.channels, proto.channels)));
            }
            coefficients.push(self.flatten(module, &y));
        }
        let coefficients = self.join(module, &coefficients);
        let detected = self.detect(module, maps, image)?;
        self.net.graph.scope(&module.scope());
        let output = self.net.concat(&[&detected.output, &coefficients], 1);
        Ok((Detected { output, ..detected }, masks, proto))
    }

    fn prototypes(&mut self, module: &Module<'_>, x: &Map) -> Read<Map> {
        if module.class != "Proto" {
            return Err(module.error("this module is not supported"));
        }
        let y = self.part(module, "cv1", x)?;
        let y = self.part(module, "upsample", &y)?;
        let y = self.part(module, "cv2", &y)?;
        self.part(module, "cv3", &y)
    }

    /// Emits a classification head: probabilities `[batch, classes]`.
    pub(super) fn classify(&mut self, module: &Module<'_>, maps: &[Map]) -> Read<(String, usize)> {
        let [x] = maps else { return Err(module.error("one input was expected")) };
        let y = self.part(module, "conv", x)?;
        let linear = module.child("linear")?;
        let (weight, bias) = (linear.values("weight")?, linear.values("bias")?);
        let (Some((shape, weight)), Some((bias_shape, bias))) = (weight, bias) else {
            return Err(linear.error("weight or bias is missing"));
        };
        let &[classes, inputs] = &shape[..] else { return Err(linear.error("its weight is no matrix")) };
        if inputs != y.channels || bias_shape != [classes] {
            return Err(linear.error(format!("weights of shape {shape:?} do not fit {} channels", y.channels)));
        }
        self.net.graph.scope(&format!("{}/pool", module.scope()));
        let pooled = self.net.global_average(&y);
        self.net.graph.scope(&linear.scope());
        let weight = self.net.constant(&format!("{}.weight", linear.path), &[classes, inputs], weight);
        let bias = self.net.constant(&format!("{}.bias", linear.path), &[classes], bias);
        let logits = self.net.node("Gemm", &[&pooled, &weight, &bias], &[("transB", 1.into())]);
        self.net.graph.scope(&module.scope());
        Ok((self.net.softmax(&logits, 1), classes))
    }
}
