//! A GGUF file that is anything at all: judged by its beginning, opened, read, described, and its vocabulary written as a
//! hub's files without a panic. What is refused by its beginning does not open.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use watus_build::checkpoint::{Checkpoint, Gguf, Judgement};
use watus_build::convert;
use watus_build::text::text_files;

fuzz_target!(|data: &[u8]| {
    let path = std::env::temp_dir().join(format!("watus-fuzz-{}.gguf", std::process::id()));
    fs::write(&path, data).expect("a scratch file");
    let _ = Gguf::judge(&data[..data.len() / 2], data.len() as u64);
    let judgement = Gguf::judge(data, data.len() as u64);
    assert_ne!(judgement, Judgement::Undecided, "there is no more to come");
    let Ok(checkpoint) = Checkpoint::open(&[path]) else { return };
    if let Judgement::Refused(why) = &judgement {
        assert!(!why.message.contains("not a whole GGUF file"), "{why}");
    }
    for name in checkpoint.names() {
        let Ok(view) = checkpoint.tensor(name) else { continue };
        let mut values = vec![0.0; view.rows() * view.columns()];
        view.read(0, &mut values);
    }
    if let Ok(mut model) = convert::describe(&checkpoint.config_path, &checkpoint.config, 64) {
        let _ = model.locate(&checkpoint);
    }
    let gguf = checkpoint.gguf.as_ref().expect("a GGUF");
    for (name, content) in text_files(&checkpoint.config_path, gguf, &checkpoint.config).unwrap_or_default() {
        serde_json::from_str::<Value>(&content).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
});
