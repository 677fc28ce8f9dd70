//! One suite of small graphs, held against every backend.
//!
//! Each case is a graph, its inputs and the expected outputs, computed here by hand or by plain loops. A backend may
//! leave a case out only by name and with a reason. Where TensorRT has no GPU, its half of the suite is the build:
//! every graph must be accepted by the real builder.
#![allow(clippy::unwrap_used, clippy::neg_cmp_op_on_partial_ord)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use support::tensorrt_or_skip;
use watus_build::backend::Backend;
use watus_build::backend::cpu::Cpu;
use watus_build::backend::onnxruntime::OnnxRuntime;
use watus_build::backend::tensorrt::{BuildOptions, TensorRt, device::Device};
use watus_build::onnx::GraphBuilder;
use watus_build::progress::Silent;
use watus_build::tensor::{DType, Tensor, TensorData};
use watus_build::verify::compare_tensors;

struct Case {
    name: &'static str,
    path: PathBuf,
    inputs: Vec<Tensor>,
    expected: Vec<Tensor>,
}

fn f32s(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_f32(shape.to_vec(), values.to_vec()).unwrap()
}

fn seeded(shape: &[usize], seed: u64) -> Tensor {
    Tensor::seeded(DType::Float32, shape.to_vec(), seed).unwrap()
}

fn map(tensor: &Tensor, f: impl Fn(f32) -> f32) -> Tensor {
    f32s(tensor.shape(), &tensor.as_f32().unwrap().iter().map(|value| f(*value)).collect::<Vec<_>>())
}

fn fixed(shape: &[usize]) -> Vec<Option<usize>> {
    shape.iter().copied().map(Some).collect()
}

/// Builds a case: `build` gets the graph with inputs x0, x1, … and names the output tensors.
fn case(
    folder: &Path,
    name: &'static str,
    inputs: Vec<Tensor>,
    expected: Vec<Tensor>,
    build: impl Fn(&mut GraphBuilder) -> Vec<String>,
) -> Case {
    let mut graph = GraphBuilder::new(name, 17);
    for (index, input) in inputs.iter().enumerate() {
        graph.input(&format!("x{index}"), input.dtype(), &fixed(input.shape()));
    }
    let outputs = build(&mut graph);
    for (output, tensor) in outputs.iter().zip(&expected) {
        graph.output(output, tensor.dtype(), &fixed(tensor.shape()));
    }
    let path = folder.join(format!("{name}.onnx"));
    let model = graph.finish(&path).unwrap();
    std::fs::write(&path, model.to_bytes().unwrap()).unwrap();
    Case { name, path, inputs, expected }
}

/// Valid-padding-free 2-D convolution with bias, by its definition. x (1, c, h, w), weight (o, c, k, k).
fn convolution(x: &Tensor, weight: &Tensor, bias: &[f32], stride: usize, pad: usize) -> Tensor {
    let (&[_, c, h, w], &[o, _, k, _]) = (x.shape(), weight.shape()) else { panic!("4-D") };
    let (xs, ws) = (x.as_f32().unwrap(), weight.as_f32().unwrap());
    let size = |length: usize| (length + 2 * pad - k) / stride + 1;
    let mut out = Vec::new();
    for oc in 0..o {
        for oy in 0..size(h) {
            for ox in 0..size(w) {
                let mut sum = f64::from(bias[oc]);
                for ic in 0..c {
                    for ky in 0..k {
                        for kx in 0..k {
                            let (y, x) = (oy * stride + ky, ox * stride + kx);
                            if y >= pad && x >= pad && y - pad < h && x - pad < w {
                                let value = xs[(ic * h + y - pad) * w + x - pad];
                                sum += f64::from(value) * f64::from(ws[((oc * c + ic) * k + ky) * k + kx]);
                            }
                        }
                    }
                }
                out.push(sum as f32);
            }
        }
    }
    f32s(&[1, o, size(h), size(w)], &out)
}

fn matmul(a: &Tensor, b: &Tensor) -> Tensor {
    let (&[m, k], &[_, n]) = (a.shape(), b.shape()) else { panic!("2-D") };
    let (x, y) = (a.as_f32().unwrap(), b.as_f32().unwrap());
    let sum = |i: usize, j: usize| (0..k).map(|l| f64::from(x[i * k + l]) * f64::from(y[l * n + j])).sum::<f64>();
    f32s(&[m, n], &(0..m * n).map(|at| sum(at / n, at % n) as f32).collect::<Vec<_>>())
}

fn softmax_rows(x: &Tensor) -> Tensor {
    let width = *x.shape().last().unwrap();
    let rows = x.as_f32().unwrap().chunks(width).flat_map(|row| {
        let largest = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f32 = row.iter().map(|value| (value - largest).exp()).sum();
        row.iter().map(move |value| (value - largest).exp() / sum).collect::<Vec<_>>()
    });
    f32s(x.shape(), &rows.collect::<Vec<_>>())
}

fn suite(folder: &Path) -> Vec<Case> {
    let mut cases = Vec::new();
    let x = seeded(&[2, 3, 4], 1);

    for (name, op, f) in [
        ("relu", "Relu", (|v: f32| v.max(0.0)) as fn(f32) -> f32),
        ("sigmoid", "Sigmoid", |v| 1.0 / (1.0 + (-v).exp())),
        ("tanh", "Tanh", f32::tanh),
        ("exp", "Exp", f32::exp),
        ("abs", "Abs", f32::abs),
        ("neg", "Neg", |v| -v),
    ] {
        cases.push(case(folder, name, vec![x.clone()], vec![map(&x, f)], |graph| vec![graph.node(op, &["x0"], &[])]));
    }

    let row = seeded(&[4], 2);
    let broadcast = |f: fn(f32, f32) -> f32| {
        let row = row.as_f32().unwrap();
        let values = x.as_f32().unwrap().iter().enumerate().map(|(at, value)| f(*value, row[at % 4]));
        f32s(x.shape(), &values.collect::<Vec<_>>())
    };
    for (name, op, f) in [
        ("add_broadcast", "Add", (|a, b| a + b) as fn(f32, f32) -> f32),
        ("sub_broadcast", "Sub", |a, b| a - b),
        ("mul_broadcast", "Mul", |a, b| a * b),
        ("div_broadcast", "Div", |a, b| a / b),
        ("max_broadcast", "Max", f32::max),
    ] {
        let inputs = vec![x.clone(), row.clone()];
        cases.push(case(folder, name, inputs, vec![broadcast(f)], |graph| vec![graph.node(op, &["x0", "x1"], &[])]));
    }

    let (a, b) = (seeded(&[5, 7], 3), seeded(&[7, 6], 4));
    let product = matmul(&a, &b);
    cases.push(case(folder, "matmul", vec![a.clone(), b.clone()], vec![product.clone()], |graph| {
        vec![graph.node("MatMul", &["x0", "x1"], &[])]
    }));
    cases.push(case(folder, "matmul_constant", vec![a.clone()], vec![product.clone()], |graph| {
        graph.initializer("w", &b);
        vec![graph.node("MatMul", &["x0", "w"], &[])]
    }));
    cases.push(case(folder, "softmax", vec![product.clone()], vec![softmax_rows(&product)], |graph| {
        vec![graph.node("Softmax", &["x0"], &[("axis", (-1).into())])]
    }));

    // Image layers: odd sizes, stride, padding.
    let image = seeded(&[1, 3, 9, 7], 5);
    let weight = seeded(&[4, 3, 3, 3], 6);
    let bias = [0.5, -0.25, 0.0, 1.0];
    for (name, stride, pad) in [("conv", 1, 0), ("conv_padded_strided", 2, 1)] {
        let expected = convolution(&image, &weight, &bias, stride, pad);
        cases.push(case(folder, name, vec![image.clone()], vec![expected], |graph| {
            graph.initializer("w", &weight);
            graph.initializer("b", &f32s(&[4], &bias));
            let attributes = [("strides", [stride as i64; 2].into()), ("pads", [pad as i64; 4].into())];
            vec![graph.node("Conv", &["x0", "w", "b"], &attributes)]
        }));
    }
    let grid = f32s(&[1, 1, 4, 4], &(0..16).map(|v| v as f32).collect::<Vec<_>>());
    let window = [("kernel_shape", [2, 2].into()), ("strides", [2, 2].into())];
    cases.push(case(
        folder,
        "max_pool",
        vec![grid.clone()],
        vec![f32s(&[1, 1, 2, 2], &[5.0, 7.0, 13.0, 15.0])],
        |graph| vec![graph.node("MaxPool", &["x0"], &window)],
    ));
    cases.push(case(
        folder,
        "average_pool",
        vec![grid.clone()],
        vec![f32s(&[1, 1, 2, 2], &[2.5, 4.5, 10.5, 12.5])],
        |graph| vec![graph.node("AveragePool", &["x0"], &window)],
    ));
    cases.push(case(folder, "global_average_pool", vec![grid.clone()], vec![f32s(&[1, 1, 1, 1], &[7.5])], |graph| {
        vec![graph.node("GlobalAveragePool", &["x0"], &[])]
    }));
    let small = f32s(&[1, 1, 1, 2], &[1.0, 2.0]);
    let doubled = f32s(&[1, 1, 2, 4], &[1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 2.0, 2.0]);
    cases.push(case(folder, "resize_nearest", vec![small], vec![doubled], |graph| {
        graph.initializer("scales", &f32s(&[4], &[1.0, 1.0, 2.0, 2.0]));
        let attributes = [
            ("mode", "nearest".into()),
            ("coordinate_transformation_mode", "asymmetric".into()),
            ("nearest_mode", "floor".into()),
        ];
        vec![graph.node("Resize", &["x0", "", "scales"], &attributes)]
    }));

    // Shapes and indices.
    let six = f32s(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    cases.push(case(
        folder,
        "transpose",
        vec![six.clone()],
        vec![f32s(&[3, 2], &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0])],
        |graph| vec![graph.node("Transpose", &["x0"], &[("perm", [1, 0].into())])],
    ));
    cases.push(case(folder, "reshape", vec![six.clone()], vec![f32s(&[3, 2], six.as_f32().unwrap())], |graph| {
        let shape = graph.integers(&[-1, 2]);
        vec![graph.node("Reshape", &["x0", &shape], &[])]
    }));
    cases.push(case(
        folder,
        "concat",
        vec![six.clone(), six.clone()],
        vec![f32s(&[2, 6], &[1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 4.0, 5.0, 6.0])],
        |graph| vec![graph.node("Concat", &["x0", "x1"], &[("axis", 1.into())])],
    ));
    cases.push(case(folder, "slice", vec![six.clone()], vec![f32s(&[2, 2], &[2.0, 3.0, 5.0, 6.0])], |graph| {
        let (start, end, axis) = (graph.integers(&[1]), graph.integers(&[3]), graph.integers(&[1]));
        vec![graph.node("Slice", &["x0", &start, &end, &axis], &[])]
    }));
    cases.push(case(
        folder,
        "split_two_outputs",
        vec![six.clone()],
        vec![f32s(&[2, 1], &[1.0, 4.0]), f32s(&[2, 2], &[2.0, 3.0, 5.0, 6.0])],
        |graph| {
            let sizes = graph.integers(&[1, 2]);
            graph.node_named("Split", &["x0", &sizes], &["left", "right"], &[("axis", 1.into())]);
            vec!["left".into(), "right".into()]
        },
    ));
    let indices = Tensor::new(vec![2], TensorData::I64(vec![2, 0])).unwrap();
    cases.push(case(
        folder,
        "gather_int64_input",
        vec![six.clone(), indices],
        vec![f32s(&[2, 2], &[3.0, 1.0, 6.0, 4.0])],
        |graph| vec![graph.node("Gather", &["x0", "x1"], &[("axis", 1.into())])],
    ));
    cases.push(case(folder, "reduce_mean", vec![six.clone()], vec![f32s(&[2, 1], &[2.0, 5.0])], |graph| {
        vec![graph.node("ReduceMean", &["x0"], &[("axes", [1].into()), ("keepdims", 1.into())])]
    }));
    cases.push(case(
        folder,
        "arg_max_int64_output",
        vec![six.clone()],
        vec![Tensor::new(vec![2, 1], TensorData::I64(vec![2, 2])).unwrap()],
        |graph| vec![graph.node("ArgMax", &["x0"], &[("axis", 1.into()), ("keepdims", 1.into())])],
    ));

    // RMS normalisation spelled out in primitives, as the LLM lowering does (Zhang and Sennrich, 2019).
    let hidden = seeded(&[3, 8], 7);
    let gain = seeded(&[8], 8);
    let rows = hidden.as_f32().unwrap().chunks(8).flat_map(|row| {
        let mean = row.iter().map(|value| value * value).sum::<f32>() / 8.0;
        let scale = 1.0 / (mean + 1e-5).sqrt();
        row.iter().zip(gain.as_f32().unwrap()).map(move |(value, gain)| value * scale * gain).collect::<Vec<_>>()
    });
    let normed = f32s(&[3, 8], &rows.collect::<Vec<_>>());
    cases.push(case(folder, "rms_norm_primitives", vec![hidden], vec![normed], |graph| {
        graph.initializer("gain", &gain);
        let (two, epsilon) = (graph.scalar(2.0), graph.scalar(1e-5));
        let square = graph.node("Pow", &["x0", &two], &[]);
        let mean = graph.node("ReduceMean", &[&square], &[("axes", [-1].into()), ("keepdims", 1.into())]);
        let shifted = graph.node("Add", &[&mean, &epsilon], &[]);
        let root = graph.node("Sqrt", &[&shifted], &[]);
        let scaled = graph.node("Div", &["x0", &root], &[]);
        vec![graph.node("Mul", &[&scaled, "gain"], &[])]
    }));
    cases
}

/// Cases a backend cannot do, with the reason.
const CPU_LEAVES_OUT: &[(&str, &str)] = &[];

fn check(backend: &dyn Backend, cases: &[Case], leaves_out: &[(&str, &str)], tolerance: f64) {
    let mut failures = Vec::new();
    for case in cases.iter().filter(|case| leaves_out.iter().all(|(name, _)| *name != case.name)) {
        let outputs = backend.open(&case.path).and_then(|mut session| session.run(&case.inputs));
        match outputs {
            Err(error) => failures.push(format!("{}: {error}", case.name)),
            Ok(outputs) => {
                assert_eq!(outputs.len(), case.expected.len(), "{}", case.name);
                for (have, want) in outputs.iter().zip(&case.expected) {
                    assert_eq!((have.dtype(), have.shape()), (want.dtype(), want.shape()), "{}", case.name);
                    let found = compare_tensors(case.name, "output", have, want);
                    if !(found.relative_error <= tolerance) {
                        failures.push(format!("{}: {found:?}", case.name));
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn cpu_reference_conforms() {
    let folder = tempfile::tempdir().unwrap();
    check(&Cpu, &suite(folder.path()), CPU_LEAVES_OUT, 1e-5);
}

#[test]
fn onnxruntime_conforms() {
    if !support::onnxruntime_or_skip("onnxruntime_conforms") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    check(&OnnxRuntime::find().unwrap().unwrap(), &suite(folder.path()), &[], 1e-5);
}

#[test]
fn tensorrt_conforms() {
    if !tensorrt_or_skip("tensorrt_conforms") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cases = suite(folder.path());
    let tensorrt = TensorRt::open().unwrap();
    if Device::open().is_ok() {
        return check(&*tensorrt, &cases, &[], 1e-4);
    }
    eprintln!("tensorrt_conforms: no GPU, so the graphs are built and not executed");
    for case in &cases {
        let options = BuildOptions::default();
        let built = tensorrt.build(&case.path, &options, &[], Arc::new(Silent), Arc::default());
        let built = built.unwrap_or_else(|error| panic!("{}: {error}", case.name));
        assert_eq!(&built.bytes()[..4], b"vtrt", "{}", case.name);
    }
}

#[test]
fn wrong_inputs_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let cases = suite(folder.path());
    let case = cases.iter().find(|case| case.name == "matmul").unwrap();
    let mut session = Cpu.open(&case.path).unwrap();
    let error = session.run(&case.inputs[..1]).unwrap_err().to_string();
    assert!(error.contains("2 inputs, 1 were given"), "{error}");
    let error = session.run(&[case.inputs[0].clone(), seeded(&[3, 3], 1)]).unwrap_err().to_string();
    assert!(error.contains("input `x1`") && error.contains("[7, 6]"), "{error}");
}
