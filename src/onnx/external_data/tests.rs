//! Tests with references to data outside the folder or the file, or without meaning, in every place of a model where a
//! tensor can be.

use std::os::unix::fs::symlink;

use onnx_protobuf::{
    AttributeProto, FunctionProto, GraphProto, Message, NodeProto, OperatorSetIdProto, SparseTensorProto,
    TrainingInfoProto, tensor_proto::DataType,
};

use super::*;
use crate::onnx::Model;

/// An external tensor of four float32 with these entries.
fn tensor(entries: &[(&str, &str)]) -> TensorProto {
    TensorProto {
        name: "w".to_owned(),
        dims: vec![4],
        data_type: DataType::FLOAT as i32,
        data_location: DataLocation::EXTERNAL.into(),
        external_data: entries.iter().map(|(key, value)| entry(key, (*value).to_owned())).collect(),
        ..TensorProto::default()
    }
}

/// A model that contains only a graph.
fn model(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: 8,
        opset_import: vec![OperatorSetIdProto { version: 17, ..OperatorSetIdProto::default() }],
        graph: Some(graph).into(),
        ..ModelProto::default()
    }
}

fn initializer(tensor: TensorProto) -> ModelProto {
    model(GraphProto { initializer: vec![tensor], ..GraphProto::default() })
}

fn node(attribute: AttributeProto) -> NodeProto {
    NodeProto { op_type: "Constant".to_owned(), attribute: vec![attribute], ..NodeProto::default() }
}

fn graph(node: NodeProto) -> GraphProto {
    GraphProto { node: vec![node], ..GraphProto::default() }
}

/// The tensor in every place of a model where one can be.
fn everywhere(tensor: &TensorProto) -> Vec<(&'static str, ModelProto)> {
    let one = || tensor.clone();
    let sparse = |values: bool| {
        let mut sparse = SparseTensorProto::default();
        let field = if values { &mut sparse.values } else { &mut sparse.indices };
        *field = Some(one()).into();
        sparse
    };
    let none = AttributeProto::default;
    let single = || AttributeProto { t: Some(one()).into(), ..none() };
    let holding = |graph: GraphProto| node(AttributeProto { g: Some(graph).into(), ..none() });
    let inner = || GraphProto { initializer: vec![one()], ..GraphProto::default() };
    let function = FunctionProto { node: vec![node(single())], ..FunctionProto::default() };
    let default = FunctionProto { attribute_proto: vec![single()], ..FunctionProto::default() };
    let training = TrainingInfoProto { algorithm: Some(inner()).into(), ..TrainingInfoProto::default() };
    let first = TrainingInfoProto { initialization: Some(inner()).into(), ..TrainingInfoProto::default() };
    let empty = || model(GraphProto::default());
    let with = |sparse| model(GraphProto { sparse_initializer: vec![sparse], ..GraphProto::default() });
    vec![
        ("initializer", initializer(one())),
        ("sparse initializer's values", with(sparse(true))),
        ("sparse initializer's indices", with(sparse(false))),
        ("attribute", model(graph(node(single())))),
        ("list in an attribute", model(graph(node(AttributeProto { tensors: vec![one()], ..none() })))),
        ("sparse", model(graph(node(AttributeProto { sparse_tensor: Some(sparse(true)).into(), ..none() })))),
        ("sparse list", model(graph(node(AttributeProto { sparse_tensors: vec![sparse(false)], ..none() })))),
        ("subgraph", model(graph(holding(inner())))),
        ("subgraph's subgraph", model(graph(holding(graph(holding(inner())))))),
        ("list of subgraphs", model(graph(node(AttributeProto { graphs: vec![inner()], ..none() })))),
        ("function", ModelProto { functions: vec![function], ..empty() }),
        ("function's default", ModelProto { functions: vec![default], ..empty() }),
        ("training", ModelProto { training_info: vec![training], ..empty() }),
        ("training's start", ModelProto { training_info: vec![first], ..empty() }),
    ]
}

/// Writes a model, with a data file of 64 bytes beside it.
fn write(folder: &Path, proto: &ModelProto) -> PathBuf {
    let path = folder.join("m.onnx");
    fs::write(&path, proto.write_to_bytes().unwrap()).unwrap();
    fs::write(folder.join("w.data"), [0; 64]).unwrap();
    path
}

fn refused(path: &Path) -> String {
    Model::load(path).unwrap_err().to_string()
}

#[test]
fn a_tensor_is_found_wherever_it_is() {
    let scratch = tempfile::tempdir().unwrap();
    for (place, proto) in everywhere(&tensor(&[("location", "w.data"), ("offset", "60")])) {
        let error = refused(&write(scratch.path(), &proto));
        assert!(error.contains("`w` wants 16 bytes from offset 60 of `w.data`, which has 64"), "{place}: {error}");
    }
    for (place, proto) in everywhere(&tensor(&[("location", "../w.data")])) {
        assert!(refused(&write(scratch.path(), &proto)).contains("outside the model's folder"), "{place}");
    }
    for (place, mut proto) in everywhere(&tensor(&[("location", "w.data")])) {
        let path = write(scratch.path(), &proto);
        Model::load(&path).unwrap_or_else(|error| panic!("{place}: {error}"));
        assert_eq!(flatten(&mut proto), [("w.data".to_owned(), "weights-0.data".to_owned())], "{place}");
        let place_of = |tensor: &TensorProto| DataPlace::of(tensor).unwrap();
        let places: Vec<DataPlace> = shared::tensors(&proto).into_iter().filter_map(place_of).collect();
        assert_eq!(places, [DataPlace { location: "weights-0.data".to_owned(), offset: 0, length: 16 }], "{place}");
        assert!(!make_explicit(&mut proto), "{place}: offset and length are there");
    }
}

#[test]
fn offsets_and_lengths_stay_in_the_file() {
    let scratch = tempfile::tempdir().unwrap();
    type Case<'a> = (&'a [(&'a str, &'a str)], Option<&'a str>);
    let cases: &[Case<'_>] = &[
        (&[], None),
        (&[("offset", "0"), ("length", "16")], None),
        (&[("offset", "48")], None),
        (&[("offset", "48"), ("checksum", "abc")], None),
        (&[("offset", "49")], Some("from offset 49 of `w.data`, which has 64")),
        (&[("offset", "64")], Some("from offset 64")),
        (&[("offset", "65536")], Some("from offset 65536")),
        (&[("offset", "9223372036854775807")], Some("from offset 9223372036854775807")),
        (&[("offset", "18446744073709551615")], Some("from offset 18446744073709551615")),
        (&[("offset", "18446744073709551616")], Some("offset `18446744073709551616`, which is no size")),
        (&[("offset", "-8")], Some("offset `-8`, which is no size")),
        (&[("offset", "+8")], Some("offset `+8`, which is no size")),
        (&[("offset", "0x8")], Some("no size")),
        (&[("offset", "")], Some("no size")),
        (&[("length", "15")], Some("has length 15, its shape [4] takes 16 bytes")),
        (&[("length", "64")], Some("has length 64, its shape [4] takes 16 bytes")),
        (&[("length", "-1")], Some("length `-1`, which is no size")),
        (&[("offset", "0"), ("offset", "8")], Some("gives `offset` of its external data twice")),
        (&[("location", "m.onnx")], Some("gives `location` of its external data twice")),
    ];
    for (entries, expected) in cases {
        let entries = [&[("location", "w.data")][..], *entries].concat();
        let path = write(scratch.path(), &initializer(tensor(&entries)));
        match (Model::load(&path), expected) {
            (Ok(_), None) => {}
            (Err(error), Some(part)) => {
                let error = error.to_string();
                assert!(error.contains(*part) && error.contains("`w`") && error.contains("hint: "), "{error}");
            }
            (outcome, expected) => panic!("{entries:?}: {outcome:?} instead of {expected:?}"),
        }
    }
    assert!(refused(&write(scratch.path(), &initializer(tensor(&[])))).contains("outside the model's folder"));
}

#[test]
fn shapes_and_types_must_have_a_size() {
    let scratch = tempfile::tempdir().unwrap();
    for (dims, kind, expected) in [
        (vec![4], DataType::FLOAT as i32, None),
        (vec![], DataType::COMPLEX128 as i32, None),
        (vec![127], DataType::INT4 as i32, None),
        (vec![129], DataType::INT4 as i32, Some("wants 65 bytes")),
        (vec![0, 9], DataType::DOUBLE as i32, None),
        (vec![1], DataType::STRING as i32, Some("of no known size")),
        (vec![1], 0, Some("of no known size")),
        (vec![1], 99, Some("of no known size")),
        (vec![-4], DataType::FLOAT as i32, Some("of no known size")),
        (vec![1 << 62, 1 << 62], DataType::FLOAT as i32, Some("of no known size")),
        (vec![1 << 62], DataType::FLOAT as i32, Some("of no known size")),
        (vec![1 << 40], DataType::FLOAT as i32, Some("wants 4398046511104 bytes")),
    ] {
        let tensor = TensorProto { dims: dims.clone(), data_type: kind, ..tensor(&[("location", "w.data")]) };
        let loaded = Model::load(&write(scratch.path(), &initializer(tensor)));
        match expected {
            None => assert!(loaded.is_ok(), "{dims:?} of {kind}: {loaded:?}"),
            Some(part) => {
                let error = loaded.unwrap_err().to_string();
                assert!(error.contains(part), "{dims:?} of {kind}: {error}");
            }
        }
    }
}

#[test]
fn data_are_regular_files_of_the_models_folder() {
    let scratch = tempfile::tempdir().unwrap();
    let (inside, outside) = (scratch.path().join("model"), scratch.path().join("secret"));
    fs::create_dir_all(inside.join("sub")).unwrap();
    fs::write(&outside, [1; 64]).unwrap();
    fs::write(inside.join("sub/real"), [0; 64]).unwrap();
    symlink(&outside, inside.join("out")).unwrap();
    symlink(scratch.path(), inside.join("up")).unwrap();
    symlink("sub/real", inside.join("within")).unwrap();
    symlink("/dev/zero", inside.join("zero")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, inside.join("pipe"), rustix::fs::Mode::RUSR).unwrap();
    for (location, expected) in [
        ("sub/real", None),
        ("within", None),
        ("out", Some("outside the model's folder")),
        ("up/secret", Some("outside the model's folder")),
        ("zero", Some("not a regular file")),
        ("pipe", Some("not a regular file")),
        ("sub", Some("not a regular file")),
        ("missing", Some("which is missing")),
        ("sub/real/x", Some("cannot be read")),
    ] {
        let path = write(&inside, &initializer(tensor(&[("location", location)])));
        match (Model::load(&path), expected) {
            (Ok(_), None) => {}
            (Err(error), Some(part)) => assert!(error.to_string().contains(part), "{location}: {error}"),
            (outcome, _) => panic!("{location}: {outcome:?}"),
        }
        Model::read(&path).unwrap_or_else(|error| panic!("a look needs no data, {location}: {error}"));
    }
}

#[test]
fn the_hub_caches_links_are_followed_into_its_blobs() {
    let scratch = tempfile::tempdir().unwrap();
    let (snapshot, blobs) = (scratch.path().join("snapshots/abc"), scratch.path().join("blobs"));
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir(&blobs).unwrap();
    let proto = initializer(tensor(&[("location", "w.data")]));
    fs::write(blobs.join("1111"), proto.write_to_bytes().unwrap()).unwrap();
    fs::write(blobs.join("2222"), [0; 64]).unwrap();
    symlink("../../blobs/1111", snapshot.join("m.onnx")).unwrap();
    symlink("../../blobs/2222", snapshot.join("w.data")).unwrap();
    Model::load(&snapshot.join("m.onnx")).unwrap();
    // A link elsewhere is not the cache's.
    fs::write(scratch.path().join("secret"), [0; 64]).unwrap();
    fs::remove_file(snapshot.join("w.data")).unwrap();
    symlink("../../secret", snapshot.join("w.data")).unwrap();
    assert!(refused(&snapshot.join("m.onnx")).contains("outside the model's folder"));
}

#[test]
fn the_model_is_a_regular_file_too() {
    let scratch = tempfile::tempdir().unwrap();
    let pipe = scratch.path().join("pipe.onnx");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
    for path in [pipe.as_path(), Path::new("/dev/zero"), scratch.path()] {
        assert!(refused(path).contains("is not a regular file"));
    }
}
