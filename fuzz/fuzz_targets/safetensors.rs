//! A folder of a configuration and a safetensors file is a checkpoint or one error: opened, read to the last tensor,
//! described and looked through without a panic.
//!
//! The input is config.json, a zero byte, and the header's JSON. The header's length and as many bytes of data as it speaks
//! of are added, else hardly any file would be whole.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use watus_build::checkpoint::Checkpoint;
use watus_build::convert;

/// Bytes of data.
const LARGEST: u64 = 128 << 10;

/// Where the last tensor ends.
fn end(header: &[u8]) -> u64 {
    let Ok(Value::Object(header)) = serde_json::from_slice(header) else { return 0 };
    header.values().filter_map(|tensor| tensor["data_offsets"][1].as_u64()).max().unwrap_or(0).min(LARGEST)
}

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let (config, header) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let folder = std::env::temp_dir().join(format!("watus-fuzz-safetensors-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a scratch folder");
    let paths = ["config.json", "model.safetensors"].map(|name| folder.join(name));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.resize(file.len() + end(header) as usize, 60);
    fs::write(&paths[0], config).expect("a scratch file");
    fs::write(&paths[1], file).expect("a scratch file");
    let Ok(checkpoint) = Checkpoint::open(&paths) else { return };
    for name in checkpoint.names() {
        let Ok(view) = checkpoint.tensor(name) else { continue };
        let mut values = vec![0.0; view.rows() * view.columns()];
        view.read(0, &mut values);
    }
    if let Ok(mut model) = convert::describe(&checkpoint.config_path, &checkpoint.config, 64) {
        let _ = model.locate(&checkpoint);
    }
});
