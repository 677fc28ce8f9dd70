//! YOLOv8n as an ONNX graph with seeded weights: every layer of the real detector (backbone, neck, decoupled head,
//! distribution focal loss decoding), batch normalisation folded, 3,151,904 parameters as the published model has.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use watus_build::onnx::{GraphBuilder, Model, OnnxError};
use watus_build::tensor::{DType, SplitMix64, Tensor};

const CLASSES: usize = 80;
const REG_MAX: usize = 16;

/// A feature map: tensor name, channels, height (= width).
#[derive(Clone)]
struct Map {
    name: String,
    channels: usize,
    size: usize,
}

struct Net {
    graph: GraphBuilder,
    random: SplitMix64,
    layers: usize,
}

impl Net {
    /// Convolution with bias, same padding.
    fn conv2d(&mut self, x: &Map, channels: usize, kernel: usize, stride: usize) -> Map {
        self.layers += 1;
        let fan_in = x.channels * kernel * kernel;
        // Uniform with variance 2 / fan_in: SiLU halves the power, so activations neither die nor explode.
        let bound = (6.0 / fan_in as f32).sqrt();
        let mut weights = |count: usize, bound: f32| (0..count).map(|_| self.random.symmetric() * bound).collect();
        let shape = vec![channels, x.channels, kernel, kernel]; // (out, in, kernel, kernel)
        let weight = Tensor::from_f32(shape, weights(channels * fan_in, bound)).unwrap();
        let bias = Tensor::from_f32(vec![channels], weights(channels, 0.1)).unwrap();
        let weight = self.graph.initializer(&format!("conv{}.weight", self.layers), &weight);
        let bias = self.graph.initializer(&format!("conv{}.bias", self.layers), &bias);
        let (kernel, stride) = (i64::try_from(kernel).unwrap(), i64::try_from(stride).unwrap());
        let name = self.graph.node(
            "Conv",
            &[&x.name, &weight, &bias],
            &[("kernel_shape", [kernel; 2].into()), ("strides", [stride; 2].into()), ("pads", [kernel / 2; 4].into())],
        );
        Map { name, channels, size: x.size / stride as usize }
    }

    /// Convolution and SiLU.
    fn conv(&mut self, x: &Map, channels: usize, kernel: usize, stride: usize) -> Map {
        let y = self.conv2d(x, channels, kernel, stride);
        let gate = self.graph.node("Sigmoid", &[&y.name], &[]);
        Map { name: self.graph.node("Mul", &[&y.name, &gate], &[]), ..y }
    }

    fn concat(&mut self, maps: &[&Map]) -> Map {
        let names: Vec<&str> = maps.iter().map(|map| map.name.as_str()).collect();
        let name = self.graph.node("Concat", &names, &[("axis", 1.into())]);
        Map { name, channels: maps.iter().map(|map| map.channels).sum(), size: maps[0].size }
    }

    /// Cross-stage partial block with two convolutions per bottleneck.
    fn c2f(&mut self, x: &Map, channels: usize, bottlenecks: usize, shortcut: bool) -> Map {
        let half = channels / 2;
        let split = self.conv(x, channels, 1, 1);
        let (a, b) = (format!("{}.a", split.name), format!("{}.b", split.name));
        let sizes = self.graph.integers(&[half as i64, half as i64]);
        self.graph.node_named("Split", &[&split.name, &sizes], &[&a, &b], &[("axis", 1.into())]);
        let part = |name: String| Map { name, channels: half, size: x.size };
        let mut parts = vec![part(a), part(b)];
        for _ in 0..bottlenecks {
            let input = parts[parts.len() - 1].clone();
            let inner = self.conv(&input, half, 3, 1);
            let mut output = self.conv(&inner, half, 3, 1);
            if shortcut {
                output.name = self.graph.node("Add", &[&input.name, &output.name], &[]);
            }
            parts.push(output);
        }
        let joined = self.concat(&parts.iter().collect::<Vec<_>>());
        self.conv(&joined, channels, 1, 1)
    }

    /// Spatial pyramid pooling, three poolings in a row.
    fn sppf(&mut self, x: &Map) -> Map {
        let mut parts = vec![self.conv(x, x.channels / 2, 1, 1)];
        for _ in 0..3 {
            let last = parts[parts.len() - 1].clone();
            let attributes = [("kernel_shape", [5; 2].into()), ("pads", [2; 4].into()), ("strides", [1; 2].into())];
            let name = self.graph.node("MaxPool", &[&last.name], &attributes);
            parts.push(Map { name, ..last });
        }
        let joined = self.concat(&parts.iter().collect::<Vec<_>>());
        self.conv(&joined, x.channels, 1, 1)
    }

    fn upsample(&mut self, x: &Map) -> Map {
        let scales = Tensor::from_f32(vec![4], vec![1.0, 1.0, 2.0, 2.0]).unwrap();
        self.layers += 1;
        let scales = self.graph.initializer(&format!("scales{}", self.layers), &scales);
        let attributes = [
            ("mode", "nearest".into()),
            ("coordinate_transformation_mode", "asymmetric".into()),
            ("nearest_mode", "floor".into()),
        ];
        let name = self.graph.node("Resize", &[&x.name, "", &scales], &attributes);
        Map { name, channels: x.channels, size: x.size * 2 }
    }

    /// Raw predictions of one level, (1, 4 * REG_MAX + CLASSES, size * size).
    fn head(&mut self, x: &Map) -> String {
        let mut branch = |width: usize, outputs: usize| {
            let y = self.conv(x, width, 3, 1);
            let y = self.conv(&y, width, 3, 1);
            self.conv2d(&y, outputs, 1, 1)
        };
        let (boxes, scores) = (branch(64, 4 * REG_MAX), branch(80, CLASSES));
        let joined = self.concat(&[&boxes, &scores]);
        let shape = self.graph.integers(&[1, joined.channels as i64, -1]);
        self.graph.node("Reshape", &[&joined.name, &shape], &[])
    }

    /// Boxes in pixels and class probabilities, (1, 4 + CLASSES, anchors).
    fn decode(&mut self, levels: &[(String, usize)], image: usize) {
        let names: Vec<&str> = levels.iter().map(|(name, _)| name.as_str()).collect();
        let raw = self.graph.node("Concat", &names, &[("axis", 2.into())]);
        let sizes = self.graph.integers(&[4 * REG_MAX as i64, CLASSES as i64]);
        self.graph.node_named("Split", &[&raw, &sizes], &["boxes", "scores"], &[("axis", 1.into())]);
        let anchors: usize = levels.iter().map(|(_, size)| size * size).sum();
        let count = anchors as i64;

        // The distance to each side is the mean of a distribution over 0…15 (Li et al., Generalized Focal Loss, 2020).
        let shape = self.graph.integers(&[1, 4, REG_MAX as i64, count]);
        let bins = self.graph.node("Reshape", &["boxes", &shape], &[]);
        let bins = self.graph.node("Transpose", &[&bins], &[("perm", [0, 2, 1, 3].into())]); // (1, 16, 4, anchors)
        let bins = self.graph.node("Softmax", &[&bins], &[("axis", 1.into())]);
        let values = Tensor::from_f32(vec![1, REG_MAX, 1, 1], (0..REG_MAX).map(|bin| bin as f32).collect()).unwrap();
        let values = self.graph.initializer("dfl.weight", &values);
        let distances = self.graph.node("Conv", &[&bins, &values], &[("kernel_shape", [1; 2].into())]);
        let shape = self.graph.integers(&[1, 4, count]);
        let distances = self.graph.node("Reshape", &[&distances, &shape], &[]);

        let halves = self.graph.integers(&[2, 2]);
        self.graph.node_named("Split", &[&distances, &halves], &["near", "far"], &[("axis", 1.into())]);
        let (mut centers, mut strides) = (vec![0.0; 2 * anchors], vec![0.0; anchors]);
        let mut index = 0;
        for (_, size) in levels {
            for y in 0..*size {
                for x in 0..*size {
                    centers[index] = x as f32 + 0.5;
                    centers[anchors + index] = y as f32 + 0.5;
                    strides[index] = (image / size) as f32;
                    index += 1;
                }
            }
        }
        let centers = self.graph.initializer("anchors", &Tensor::from_f32(vec![1, 2, anchors], centers).unwrap());
        let strides = self.graph.initializer("strides", &Tensor::from_f32(vec![1, 1, anchors], strides).unwrap());
        let low = self.graph.node("Sub", &[&centers, "near"], &[]);
        let high = self.graph.node("Add", &[&centers, "far"], &[]);
        let sum = self.graph.node("Add", &[&low, &high], &[]);
        let two = self.graph.scalar(2.0);
        let middle = self.graph.node("Div", &[&sum, &two], &[]);
        let extent = self.graph.node("Sub", &[&high, &low], &[]);
        let boxes = self.graph.node("Concat", &[&middle, &extent], &[("axis", 1.into())]);
        let boxes = self.graph.node("Mul", &[&boxes, &strides], &[]);
        let scores = self.graph.node("Sigmoid", &["scores"], &[]);
        self.graph.node_named("Concat", &[&boxes, &scores], &["output0"], &[("axis", 1.into())]);
        self.graph.output("output0", DType::Float32, &[Some(1), Some(4 + CLASSES), Some(anchors)]);
    }
}

/// The detector for square images of `image` pixels, a multiple of 32.
pub fn yolov8n(path: &Path, image: usize, seed: u64) -> Result<Model, OnnxError> {
    let mut net = Net { graph: GraphBuilder::new("yolov8n", 17), random: SplitMix64(seed), layers: 0 };
    let name = net.graph.input("images", DType::Float32, &[Some(1), Some(3), Some(image), Some(image)]);
    let x = Map { name, channels: 3, size: image };
    let x = net.conv(&x, 16, 3, 2);
    let x = net.conv(&x, 32, 3, 2);
    let x = net.c2f(&x, 32, 1, true);
    let x = net.conv(&x, 64, 3, 2);
    let p3 = net.c2f(&x, 64, 2, true);
    let x = net.conv(&p3, 128, 3, 2);
    let p4 = net.c2f(&x, 128, 2, true);
    let x = net.conv(&p4, 256, 3, 2);
    let x = net.c2f(&x, 256, 1, true);
    let p5 = net.sppf(&x);

    let x = net.upsample(&p5);
    let x = net.concat(&[&x, &p4]);
    let n4 = net.c2f(&x, 128, 1, false);
    let x = net.upsample(&n4);
    let x = net.concat(&[&x, &p3]);
    let n3 = net.c2f(&x, 64, 1, false);
    let x = net.conv(&n3, 64, 3, 2);
    let x = net.concat(&[&x, &n4]);
    let o4 = net.c2f(&x, 128, 1, false);
    let x = net.conv(&o4, 128, 3, 2);
    let x = net.concat(&[&x, &p5]);
    let o5 = net.c2f(&x, 256, 1, false);

    let levels: Vec<(String, usize)> = [&n3, &o4, &o5].into_iter().map(|map| (net.head(map), map.size)).collect();
    net.decode(&levels, image);
    net.graph.finish(path)
}
