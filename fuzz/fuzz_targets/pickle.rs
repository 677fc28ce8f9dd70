//! A PyTorch checkpoint whose pickle is anything at all: read, looked through and converted without a panic.
#![no_main]

use std::io::{Cursor, Write};

use libfuzzer_sys::fuzz_target;
use watus_build::checkpoint::torch::TorchFile;
use watus_build::convert::vision::{yolo_model, yolo_root};
use zip::write::SimpleFileOptions;

fn archive(pickle: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut add = |name: &str, bytes: &[u8]| {
        zip.start_file(name, stored).expect("a name");
        zip.write_all(bytes).expect("memory");
    };
    add("m/data.pkl", pickle);
    // The storages that the seeds name; values do not matter.
    for key in 0..40 {
        add(&format!("m/data/{key}"), &[60; 4096]);
    }
    zip.finish().expect("memory").into_inner()
}

fuzz_target!(|pickle: &[u8]| {
    let path = std::env::temp_dir().join(format!("watus-fuzz-{}.pt", std::process::id()));
    std::fs::write(&path, archive(pickle)).expect("a scratch file");
    let Ok(file) = TorchFile::open(&path) else { return };
    let _ = yolo_root(&file).modules("");
    if let Ok(converted) = yolo_model(&file, [64, 64], Some(1)) {
        converted.model.to_bytes().expect("a converted model can be written");
    }
});
