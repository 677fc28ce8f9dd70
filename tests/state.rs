//! Beginnings of prompts that return, over restarts: what is read from disk computes what was computed, nobody sees another's,
//! and whatever the files look like, answers are right.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use support::server::Server;
use support::{output, repository, tensorrt_or_skip, watus};
use watus_build::checkpoint::Checkpoint;
use watus_build::convert;
use watus_build::executor::{CpuExecutor, Executor, Rows};
use watus_build::generation::{Generator, Request};
use watus_build::prefix_store::StateDir;
use watus_build::spec::KvCache;
use watus_build::text::{Text, text_files};

const MAX_LEN: usize = 256;
const LARGE: u64 = 1 << 30;
/// Tokens of the instructions.
const INSTRUCTIONS: usize = 80;

fn checkpoint() -> Arc<Checkpoint> {
    Arc::new(Checkpoint::open(&[repository().join("tests/data/gguf/llama.gguf")]).unwrap())
}

/// The tiny GGUF Llama with `slots` slots.
fn executor(slots: usize, kv_cache: KvCache) -> CpuExecutor {
    let checkpoint = checkpoint();
    let mut model = convert::describe(&checkpoint.config_path, &checkpoint.config, MAX_LEN).unwrap();
    model.locate(&checkpoint).unwrap();
    CpuExecutor::new(model, checkpoint, slots, MAX_LEN).unwrap().with_kv_cache(kv_cache)
}

/// A generator that keeps nothing.
fn plain(slots: usize) -> Generator {
    let scratch = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint();
    let gguf = checkpoint.gguf.as_ref().unwrap();
    for (name, content) in text_files(&checkpoint.config_path, gguf, &checkpoint.config).unwrap() {
        fs::write(scratch.path().join(name), content).unwrap();
    }
    let text = Arc::new(Text::open(scratch.path()).unwrap());
    Generator::new(Box::new(executor(slots, KvCache::Auto)), text, 200)
}

/// A generator that keeps beginnings in `folder`.
fn keeping(folder: &Path, slots: usize) -> Generator {
    let mut generator = plain(slots);
    let layout = generator.executor().kv_layout().unwrap();
    let store = StateDir::open(folder).unwrap().store("tiny".to_owned(), layout, LARGE).unwrap();
    generator.keep_prefixes(store).unwrap();
    generator
}

/// Instructions of a kind, and a question after them.
fn prompt(kind: u32, question: u32) -> Vec<u32> {
    let instructions = (0..INSTRUCTIONS as u32).map(|at| 3 + (at * 7 + kind * at * at) % 50);
    instructions.chain((0..20).map(|at| 3 + (question * 11 + at * question) % 50)).collect()
}

/// Number of reused tokens, and the answer's tokens.
fn ask(generator: &mut Generator, scope: u64, prompt: &[u32]) -> (usize, Vec<u32>) {
    let mut tokens = Vec::new();
    let request = Request { prompt: prompt.to_vec(), scope, max_tokens: 6, ignore_end: true, ..Request::default() };
    let usage = generator.answer(request, |piece| {
        tokens.push(piece.choice.token);
        true
    });
    (usage.unwrap().reused, tokens)
}

/// Lets a generator save what it has to, until it has written so many beginnings.
fn saved(generator: &mut Generator, written: u64) {
    for _ in 0..20_000 {
        if generator.kept_prefixes().written == written {
            return;
        }
        generator.step().unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{:?} instead of {written} written", generator.kept_prefixes());
}

/// Whether there is nothing that could still be saved.
fn is_settled(generator: &mut Generator) -> bool {
    for _ in 0..100 {
        generator.step().unwrap();
    }
    generator.is_idle()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

#[test]
fn what_is_imported_computes_what_was_computed() {
    let prompt: Vec<u32> = prompt(1, 2);
    for kept in [KvCache::Auto, KvCache::Int8] {
        let mut one = executor(2, kept);
        one.prefill(0, 0, &prompt[..INSTRUCTIONS], Rows::None).unwrap();
        let layers = one.kv_layout().unwrap().layers;
        for positions in [INSTRUCTIONS, 64, 17] {
            let exported: Vec<Vec<u8>> = (0..layers).map(|layer| one.export(0, layer, positions).unwrap()).collect();
            one.copy(0, 1, positions).unwrap();
            let expected = one.prefill(1, positions, &prompt[positions..], Rows::All).unwrap();
            let mut other = executor(3, kept);
            // What the slot held before is in nobody's way.
            other.prefill(2, 0, &[9; 100], Rows::None).unwrap();
            for (layer, bytes) in exported.iter().enumerate() {
                other.import(2, layer, positions, bytes).unwrap();
            }
            let imported = other.prefill(2, positions, &prompt[positions..], Rows::All).unwrap();
            assert_eq!(bits(&imported), bits(&expected), "{kept:?}, {positions} positions");
            let again: Vec<Vec<u8>> = (0..layers).map(|layer| other.export(2, layer, positions).unwrap()).collect();
            assert!(again == exported, "{kept:?}, {positions} positions");
        }
    }
}

#[test]
fn what_does_not_fit_an_executor_is_refused() {
    let mut one = executor(2, KvCache::Auto);
    one.prefill(0, 0, &prompt(1, 2)[..10], Rows::None).unwrap();
    let layers = one.kv_layout().unwrap().layers;
    let good = one.export(0, 0, 10).unwrap();
    for (slot, layer, positions) in [(2, 0, 10), (0, layers, 10), (0, 0, 0), (0, 0, MAX_LEN + 1), (1, 0, 10)] {
        let error = one.export(slot, layer, positions).unwrap_err();
        assert!(!error.is_fatal() && error.to_string().contains("cannot be exported"), "{error}");
    }
    let wrong = [(2, 0, 10, 0), (0, layers, 10, 0), (0, 0, 9, 0), (0, 0, 10, 1), (0, 0, 0, good.len())];
    for (slot, layer, positions, missing) in wrong {
        let bytes = &good[missing..];
        assert!(!one.import(slot, layer, positions, bytes).unwrap_err().is_fatal());
    }
    one.import(1, 0, 10, &good).unwrap();
}

#[test]
fn instructions_are_read_once_for_all_starts() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = keeping(folder.path(), 2);
    let expected: Vec<Vec<u32>> = (1..7).map(|question| ask(&mut plain(1), 0, &prompt(1, question)).1).collect();
    assert_eq!(ask(&mut first, 7, &prompt(1, 1)), (0, expected[0].clone()));
    assert!(is_settled(&mut first), "what came once is not saved");
    assert_eq!(ask(&mut first, 7, &prompt(1, 2)), (INSTRUCTIONS, expected[1].clone()));
    saved(&mut first, 1);
    assert_eq!(ask(&mut first, 7, &prompt(1, 3)), (INSTRUCTIONS, expected[2].clone()));
    assert!(is_settled(&mut first));
    assert_eq!((first.kept_prefixes().stored, first.kept_prefixes().written), (1, 1), "once is enough");
    drop(first);
    // The first request after a restart, and one that waits beside it.
    let mut second = keeping(folder.path(), 2);
    assert_eq!(second.kept_prefixes().loaded, 1);
    assert_eq!(ask(&mut second, 7, &prompt(1, 4)), (INSTRUCTIONS, expected[3].clone()));
    // Another kind's take both slots; what was there is read again from disk.
    for question in 1..4 {
        ask(&mut second, 7, &prompt(2, question));
        ask(&mut second, 9, &prompt(3, question));
    }
    saved(&mut second, 2);
    let before = second.kept_prefixes().loaded;
    assert_eq!(ask(&mut second, 7, &prompt(1, 5)), (INSTRUCTIONS, expected[4].clone()));
    assert_eq!(second.kept_prefixes().loaded, before + 1);
    // All of what was asked, but for the token whose logits are wanted.
    drop(second);
    let mut third = keeping(folder.path(), 1);
    assert_eq!(ask(&mut third, 7, &prompt(1, 6)[..INSTRUCTIONS]).0, INSTRUCTIONS - 1);
    assert_eq!(ask(&mut third, 7, &prompt(1, 6)).1, expected[5]);
}

#[test]
fn what_is_stored_is_for_the_same_scope() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = keeping(folder.path(), 1);
    for question in 1..3 {
        ask(&mut first, 7, &prompt(1, question));
    }
    saved(&mut first, 1);
    drop(first);
    let expected = ask(&mut plain(1), 0, &prompt(1, 3)).1;
    // From the slot that was filled at the start, and from disk.
    for fills in [false, true] {
        let mut other = keeping(folder.path(), 1);
        if fills {
            ask(&mut other, 7, &[9; 100]);
        }
        assert_eq!(ask(&mut other, 8, &prompt(1, 3)), (0, expected.clone()), "another's");
        assert_eq!(ask(&mut other, 7, &prompt(1, 3)), (INSTRUCTIONS, expected.clone()), "one's own");
    }
    // What the operator names is everybody's, to its end and no further.
    for fills in [false, true] {
        let mut other = keeping(folder.path(), 1);
        other.share(prompt(1, 3)[..70].to_vec());
        if fills {
            ask(&mut other, 7, &[9; 100]);
        }
        assert_eq!(ask(&mut other, 8, &prompt(1, 3)), (70, expected.clone()), "shared");
    }
}

#[test]
fn a_conversation_is_not_saved_turn_by_turn() {
    let folder = tempfile::tempdir().unwrap();
    let mut generator = keeping(folder.path(), 1);
    let mut turn = prompt(1, 1);
    for more in 0..4 {
        let (reused, answer) = ask(&mut generator, 7, &turn);
        assert_eq!(reused > 0, more > 0);
        turn.extend(answer);
        turn.extend([4 + more; 8]);
    }
    assert!(is_settled(&mut generator));
    assert_eq!(generator.kept_prefixes().stored, 0);
}

#[test]
fn a_damaged_file_costs_time_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let expected = ask(&mut plain(1), 0, &prompt(1, 3)).1;
    // At the beginning, in the header, in the first layer, in the last, at the end.
    for place in [0.0, 0.001, 0.3, 0.9, 0.9999] {
        let mut first = keeping(folder.path(), 1);
        for question in 1..3 {
            ask(&mut first, 7, &prompt(1, question));
        }
        saved(&mut first, 1);
        drop(first);
        let files = fs::read_dir(folder.path().join("prefixes")).unwrap().map(|entry| entry.unwrap().path());
        let stored: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|end| end == "prefix")).collect();
        let [path] = &stored[..] else { panic!("{stored:?}") };
        let mut bytes = fs::read(path).unwrap();
        let at = (bytes.len() as f64 * place) as usize;
        bytes[at] ^= 0x10;
        fs::write(path, bytes).unwrap();
        let mut second = keeping(folder.path(), 1);
        assert_eq!(second.kept_prefixes().stored, 0, "byte {at}");
        assert!(!path.exists());
        assert_eq!(ask(&mut second, 7, &prompt(1, 3)), (0, expected.clone()), "byte {at}");
    }
}

/// The tiny GGUF Llama as an engine directory.
fn tiny(scratch: &Path) -> PathBuf {
    fs::copy(repository().join("tests/data/gguf/llama.gguf"), scratch.join("tiny.gguf")).unwrap();
    let recipe = "version: 1\nname: tiny\nkind: llm\nsource: { path: tiny.gguf }\nmax_batch_size: 2\nmax_input_len: 120\n\
                  max_output_len: 136\n";
    fs::write(scratch.join("tiny.yaml"), recipe).unwrap();
    let (code, _, stderr) = output(watus(scratch).args(["build", "tiny.yaml"]));
    assert_eq!(code, 0, "{stderr}");
    scratch.join("engines/tiny")
}

/// A prompt's continuation, and how many of its tokens were cached.
fn complete(server: &Server, key: &str, prompt: &[u32]) -> (Value, u64) {
    let body = json!({"model": "local-trt-llm", "prompt": prompt, "max_tokens": 4, "temperature": 0});
    let headers = format!("Content-Type: application/json\r\nX-API-Key: {key}\r\n");
    let reply = server.exchange(&Server::request("POST", "/v1/completions", &headers, &body.to_string()));
    assert_eq!(reply.status, 200, "{}", reply.body);
    let reply = reply.json();
    let cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    (reply["choices"][0]["text"].clone(), cached)
}

#[test]
fn a_server_goes_on_where_it_was_killed() {
    if !tensorrt_or_skip("a_server_goes_on_where_it_was_killed") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let engine = tiny(scratch.path());
    let more = ["--state", "kept"];
    let stateless = Server::start(scratch.path(), &engine, &[]);
    let expected: Vec<Value> = (1..5).map(|question| complete(&stateless, "one", &prompt(1, question)).0).collect();
    assert_eq!(stateless.metric("watus_stored_prefixes"), 0.0);
    drop(stateless);
    let server = Server::start(scratch.path(), &engine, &more);
    assert_eq!(complete(&server, "one", &prompt(1, 1)), (expected[0].clone(), 0));
    assert_eq!(complete(&server, "one", &prompt(1, 2)), (expected[1].clone(), INSTRUCTIONS as u64));
    while server.metric("watus_stored_prefixes") < 1.0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let (code, _, stderr) =
        output(watus(scratch.path()).arg("serve").arg(&engine).args(["--backend", "cpu", "--port", "0"]).args(more));
    assert!(code == 1 && stderr.contains("in use by another server"), "{code}: {stderr}");
    drop(server); // SIGKILL
    let server = Server::start(scratch.path(), &engine, &more);
    assert_eq!(complete(&server, "two", &prompt(1, 3)), (expected[2].clone(), 0), "another key's");
    assert_eq!(complete(&server, "one", &prompt(1, 4)), (expected[3].clone(), INSTRUCTIONS as u64));
    drop(server);
    // Killed whenever it may be writing, with a new beginning each time.
    for round in 0..8 {
        let server = Server::start(scratch.path(), &engine, &more);
        let kind = 2 + round % 4;
        let (text, _) = complete(&server, "one", &prompt(kind, 1));
        assert_eq!(complete(&server, "one", &prompt(kind, 1)).0, text);
        complete(&server, "one", &prompt(kind, 2));
        assert!(!server.log().contains("it is removed"), "{}", server.log());
        std::thread::sleep(Duration::from_millis(u64::from(round) * 3));
    }
    let server = Server::start(scratch.path(), &engine, &more);
    assert_eq!(complete(&server, "one", &prompt(1, 3)).0, expected[2]);
    let names = fs::read_dir(scratch.path().join("kept/prefixes")).unwrap();
    let left: Vec<String> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(left.iter().all(|name| !name.contains("staging")), "{left:?}");
}
