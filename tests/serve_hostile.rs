//! The server among strangers: what they send ends nothing, stalls nobody, and is no fault of the engine's.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Map, Value, json};
use support::server::{Reply, Server};
use support::{output, repository, tensorrt_or_skip, watus};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const JSON: &str = "Content-Type: application/json\r\n";

/// The tiny GGUF Llama as an engine directory, with a template.
fn tiny(scratch: &Path) -> PathBuf {
    tiny_with(scratch, "{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}")
}

fn tiny_with(scratch: &Path, template: &str) -> PathBuf {
    fs::copy(repository().join("tests/data/gguf/llama.gguf"), scratch.join("tiny.gguf")).unwrap();
    fs::write(scratch.join("chat.jinja"), template).unwrap();
    let recipe = "version: 1\nname: tiny\nkind: llm\nsource: { path: tiny.gguf }\nmax_batch_size: 4\nmax_input_len: 120\n\
                  max_output_len: 136\nchat_template: chat.jinja\n";
    fs::write(scratch.join("tiny.yaml"), recipe).unwrap();
    let (code, _, stderr) = output(watus(scratch).args(["build", "tiny.yaml"]));
    assert_eq!(code, 0, "{stderr}");
    scratch.join("engines/tiny")
}

fn chat(content: &str, more: Value) -> Value {
    let mut body =
        json!({"model": "local-trt-llm", "max_tokens": 3, "messages": [{"role": "user", "content": content}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// A chain of references, each a link to the next.
fn chain(links: usize, link: impl Fn(Value) -> Value) -> Value {
    let mut defs: Map<String, Value> =
        (0..links).map(|at| (format!("a{at}"), link(json!({"$ref": format!("#/$defs/a{}", at + 1)})))).collect();
    defs.insert(format!("a{links}"), json!({"type": "string"}));
    json!({"type": "object", "properties": {"x": {"$ref": "#/$defs/a0"}}, "$defs": defs})
}

fn many(count: usize, name: impl Fn(usize) -> String) -> Map<String, Value> {
    (0..count).map(|at| (name(at), json!({"type": "string"}))).collect()
}

#[test]
fn schemas_are_refused_before_they_cost() {
    if !tensorrt_or_skip("schemas_are_refused_before_they_cost") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let server = Server::start(scratch.path(), &tiny(scratch.path()), &[]);
    let innocent = server.complete("ABC", 8)["choices"][0]["text"].clone();
    let wide = json!({"anyOf": [{"type": "string"}, {"type": "null"}, {"type": "integer"}]});
    let schemas = [
        chain(245, |next| json!({"type": "object", "properties": {"x": next}})),
        chain(1000, |next| json!({"type": "array", "items": next})),
        chain(1000, |next| json!({"allOf": [next]})),
        chain(1000, |next| json!({"anyOf": [next, {"type": "null"}]})),
        chain(2000, |next| next),
        json!({"type": "object", "patternProperties": many(500, |at| format!("^a{at}(x|y)*z{{1,30}}"))}),
        json!({"type": "object", "properties": many(1000, |at| format!("p{at}"))}),
        json!({"type": "object", "properties": many(5000, |at| format!("p{at}"))}),
        json!({"type": "object", "properties": {"x": {"pattern": "a?".repeat(5000)}}}),
        json!({"type": "object", "properties": {"x": {"allOf": vec![wide; 12]}}}),
        json!({"type": "object", "properties": {"x": {"enum": ["y".repeat(4_700_000)]}}}),
        json!({"type": "object", "properties": {"x": {"$ref": "http://evil.example/"}}}),
        // What no grammar enforces.
        json!({"type": "object", "properties": {"x": {"type": "array", "uniqueItems": true}}}),
        // Within every bound, and still too much: each link doubles what is intersected. The child's deadline.
        chain(24, |next| {
            let side = |name: &str| json!({"type": "object", "properties": {name: next.clone()}});
            json!({"allOf": [side("l"), side("r"), side("l")]})
        }),
    ];
    for (index, schema) in schemas.iter().enumerate() {
        let format =
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}});
        let function = json!({"name": "grasp", "strict": true, "parameters": schema});
        let tool = json!({"tools": [{"type": "function", "function": function}]});
        for (body, named) in [(format, "response_format"), (tool, "grasp")] {
            let reply = server.post(CHAT, &chat("AB", body));
            let shown = &reply.body[..reply.body.len().min(400)];
            assert_eq!((reply.status, reply.code().as_str()), (400, "unsupported_value"), "{index}: {shown}");
            assert!(reply.body.contains(named) && reply.body.len() < 1500, "{index}: {shown}");
        }
    }
    let pattern = json!({"properties": {"x": {"pattern": "a("}}});
    let pattern = json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": pattern}}});
    let reply = server.post(CHAT, &chat("AB", pattern));
    assert_eq!((reply.status, reply.code().as_str()), (400, "unsupported_value"), "{}", reply.body);
    let circle =
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}});
    assert_eq!(server.post(CHAT, &chat("AB", circle)).status, 400);
    assert!(server.log().lines().all(|line| line.len() < 2000), "a schema is in the log");
    let format = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}});
    // A tree works; one that this model's few letters cannot spell is refused before the answer begins.
    let reply =
        server.post(CHAT, &chat("AB", format(json!({"type": "object", "properties": {"next": {"$ref": "#"}}}))));
    assert_eq!(reply.json()["choices"][0]["message"]["content"], "{}", "{}", reply.body);
    let spelled = json!({"type": "object", "properties": {"name": {"enum": ["a"]}}, "required": ["name"]});
    let reply = server.post(CHAT, &chat("AB", format(spelled)));
    assert!(reply.status == 400 && reply.body.contains("no token of the model"), "{}", reply.body);
    assert_eq!(server.complete("ABC", 8)["choices"][0]["text"], innocent);
}

/// A `tokenizer.json` with one token more than the model has rows, which the manifest knows.
fn with_an_orphan(engine: &Path) {
    let path = engine.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let orphan = json!({"id": 5000, "content": "[PAD]", "single_word": false, "lstrip": false, "rstrip": false,
                        "normalized": false, "special": true});
    tokenizer["added_tokens"].as_array_mut().unwrap().push(orphan);
    fs::write(&path, tokenizer.to_string()).unwrap();
    let path = engine.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let text = tokenizer.to_string();
    manifest["files"]["tokenizer.json"] =
        json!({"sha256": watus_build::artifact::sha256(text.as_bytes()), "bytes": text.len()});
    fs::write(&path, manifest.to_string()).unwrap();
}

#[test]
fn a_bad_request_is_no_broken_engine() {
    if !tensorrt_or_skip("a_bad_request_is_no_broken_engine") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let engine = tiny(scratch.path());
    with_an_orphan(&engine);
    // Special tokens in contents are words; who asks for them gets them, as far as the model has them.
    let server = Server::start(scratch.path(), &engine, &["--allow-special-tokens"]);
    let invalid = |reply: &Reply| {
        assert_eq!((reply.status, reply.code().as_str()), (400, "invalid_request_error"), "{}", reply.body);
    };
    invalid(&server.post(CHAT, &chat("A[PAD]B", json!({}))));
    invalid(&server.post(CHAT, &chat("A[PAD]B", json!({"stream": true}))));
    let text = |more: Value| {
        let mut body = json!({"model": "local-trt-llm", "prompt": "AB", "max_tokens": 3});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    invalid(&server.post(TEXT, &text(json!({"prompt": "A[PAD]B"}))));
    invalid(&server.post(TEXT, &text(json!({"prompt": [1, 5000]}))));
    invalid(&server.post(TEXT, &text(json!({"prompt": []}))));
    invalid(&server.post(TEXT, &text(json!({"logit_bias": {"5000": 1}}))));
    invalid(&server.post(CHAT, &chat("AB", json!({"logit_bias": {"4294967295": -100}}))));
    invalid(&server.post(TEXT, &text(json!({"min_p": 7}))));
    for foreign in [
        json!({"guided_regex": "a+"}),
        json!({"min_tokens": 3}),
        json!({"echo": true}),
        json!({"best_of": 2}),
        json!({"chat_template": "x"}),
        json!({"stop_token_ids": [1]}),
    ] {
        for reply in [server.post(CHAT, &chat("AB", foreign.clone())), server.post(TEXT, &text(foreign.clone()))] {
            assert_eq!((reply.status, reply.code().as_str()), (400, "unsupported_value"), "{foreign}: {}", reply.body);
        }
    }
    assert_eq!(server.post(CHAT, &chat("AB", json!({"min_tokens": 0, "add_generation_prompt": true}))).status, 200);
    let function = json!({"type": "function", "function": {"name": "f"}});
    invalid(&server.post(CHAT, &chat("AB", json!({"tools": [function, function]}))));
    assert_eq!(server.get("/v1/models/%ff").code(), "not_found");
    assert_eq!(server.complete("ABC", 4)["usage"]["completion_tokens"], 4);
    drop(server);
    let server = Server::start(scratch.path(), &engine, &[]);
    assert_eq!(server.post(CHAT, &chat("A[PAD]B", json!({}))).status, 200, "words are words");
}

#[test]
fn megabytes_are_refused_before_they_are_tokens() {
    if !tensorrt_or_skip("megabytes_are_refused_before_they_are_tokens") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let server = Server::start(scratch.path(), &tiny(scratch.path()), &["--queue", "16"]);
    let before = server.metric("watus_memory_bytes{kind=\"resident\"}");
    let size = 7_900_000;
    let big = |letter: &str| letter.repeat(size);
    let values = "1,".repeat(size / 2);
    let cases: Vec<(&str, String, u16)> = vec![
        (CHAT, chat(&big("7"), json!({})).to_string(), 400),
        (CHAT, chat(&big(" "), json!({})).to_string(), 400),
        (TEXT, json!({"model": "local-trt-llm", "prompt": big("7")}).to_string(), 400),
        (TEXT, format!("{{\"model\": \"local-trt-llm\", \"prompt\": [{values}1]}}"), 400),
        (CHAT, chat("AB", json!({"chat_template_kwargs": {"x": big("x")}})).to_string(), 400),
        (
            CHAT,
            chat("AB", json!({"tools": [{"type": "function", "function": {"name": "f", "description": big("x")}}]}))
                .to_string(),
            400,
        ),
        (CHAT, chat("AB", json!({"messages": [{"role": big("x"), "content": ""}]})).to_string(), 400),
        (CHAT, chat("AB", json!({"model": big("x")})).to_string(), 404),
        (CHAT, chat("AB", json!({"metadata": {"x": big("x")}})).to_string(), 200),
        (CHAT, format!("{{\"metadata\": [{values}1], {}", &chat("AB", json!({})).to_string()[1..]), 400),
    ];
    for (path, body, status) in &cases {
        let request = Server::request("POST", path, JSON, body);
        // Five at once, as a flood would come.
        std::thread::scope(|scope| {
            let replies: Vec<_> = (0..5).map(|_| scope.spawn(|| server.exchange(&request))).collect();
            for reply in replies.into_iter().map(|reply| reply.join().unwrap()) {
                assert!(reply.status == *status || reply.status == 429, "{}…: {}", &body[..60], reply.body);
                assert!(reply.body.len() < 2000, "{}…", &body[..60]);
            }
        });
    }
    assert_eq!(
        server
            .post(CHAT, &chat("AB", json!({"messages": [{"role": "user", "content": vec![json!({}); 300_000]}]})))
            .status,
        400
    );
    // A body over the limit is read, so that the client hears why.
    let large = Server::request("POST", CHAT, JSON, &" ".repeat((8 << 20) + 1));
    assert_eq!(server.exchange(&large).status, 413);
    let expecting = format!(
        "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{JSON}Connection: close\r\nExpect: 100-continue\r\n\
                             Content-Length: 9000000\r\n\r\n"
    );
    assert_eq!(server.exchange(&expecting).status, 413);
    let grown = server.metric("watus_memory_bytes{kind=\"resident\"}") - before;
    assert!(grown < 500e6, "{:.0} MB more", grown / 1e6);
    assert!(server.log().lines().all(|line| line.len() < 2000));
    server.wait_until_idle();
    assert_eq!(server.complete("ABC", 4)["usage"]["completion_tokens"], 4);
}

#[test]
fn templates_that_blow_up_are_one_error() {
    if !tensorrt_or_skip("templates_that_blow_up_are_one_error") {
        return;
    }
    let bombs = [
        "{% set ns = namespace(x='AAAAAAAA') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='AAAAAAAA') %}{% for i in range(60) %}{% set ns.x = ns.x | replace('A', 'AA') %}{% endfor %}",
        "{% set ns = namespace(x=[1, 2]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
        "{{ [1] | batch(1000000000, 'x') }}",
        "{{ 'a\nb' | indent(2000000000) }}",
        "{{ 'A' * 100000000000 }}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ];
    let scratch = tempfile::tempdir().unwrap();
    // One engine; the template is only used when somebody says the word.
    for bomb in bombs {
        let template = format!(
            "{{% if messages[0].content == 'BANG' %}}{bomb}{{% else %}}u{{{{ messages[0].content }}}}{{% endif %}}"
        );
        let server = Server::start(scratch.path(), &tiny_with(scratch.path(), &template), &[]);
        for _ in 0..2 {
            // A machine that is busy with other tests says so, and that it may be asked again.
            let mut replies = (0..20).map(|_| server.post(CHAT, &chat("BANG", json!({}))));
            let reply = replies.find(|reply| reply.status != 503).expect("20 times too busy");
            assert_eq!(reply.status, 400, "{bomb}: {}", reply.body);
            assert!(reply.body.contains("chat template"), "{bomb}: {}", reply.body);
            assert_eq!(server.post(CHAT, &chat("AB", json!({}))).status, 200, "{bomb}");
        }
        assert!(server.metric("watus_memory_bytes{kind=\"resident\"}") < 1.5e9, "{bomb}");
    }
}

#[test]
fn children_that_are_killed_are_replaced() {
    if !tensorrt_or_skip("children_that_are_killed_are_replaced") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let server = Server::start(scratch.path(), &tiny(scratch.path()), &[]);
    for round in 1..4 {
        // Each a schema of its own: those that are known are not tried again.
        let schema = json!({"type": "object", "properties": {format!("next{round}"): {"$ref": "#"}}});
        let format =
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}});
        assert_eq!(server.post(CHAT, &chat("AB", format)).status, 200, "{round}");
        assert_eq!(server.kill_children(), 2, "one that renders, one that compiles");
    }
}

#[test]
fn clients_do_not_see_each_other() {
    if !tensorrt_or_skip("clients_do_not_see_each_other") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let engine = tiny(scratch.path());
    fs::write(scratch.path().join("keys"), "one\ntwo\n").unwrap();
    // The template's first letter and these words are nobody's secret.
    fs::write(scratch.path().join("shared.txt"), "COMMON INSTRUCTIONS OF THE ROBOT").unwrap();
    let more = ["--api-key-file", "keys", "--shared-system", "shared.txt"];
    let server = Server::start(scratch.path(), &engine, &more);
    let cached = |key: &str, user: &str, system: &str, said: &str| {
        let mut body = json!({"model": "local-trt-llm", "max_tokens": 2,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": said}]});
        if !user.is_empty() {
            body["user"] = user.into();
        }
        let headers = format!("{JSON}X-API-Key: {key}\r\n");
        let reply = server.exchange(&Server::request("POST", CHAT, &headers, &body.to_string()));
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    let secret = "THE DOOR CODE OF THE LABORATORY IS 4711";
    cached("one", "", "BE BRIEF", secret);
    assert!(cached("one", "", "BE BRIEF", secret) > 30, "one's own is reused");
    assert!(cached("two", "", "BE BRIEF", secret) <= 2, "another key");
    for guess in ["THE DOOR CODE OF THE LABORATORY IS 9", "THE DOOR CODE OF THE LABORATORY IS 4", secret] {
        // Each guess by somebody else: one's own guesses are one's own.
        let somebody = format!("eve {guess}");
        // At most what all conversations begin with.
        assert!(cached("two", &somebody, "BE BRIEF", guess) <= 2, "another key, {guess}");
        assert!(cached("one", &somebody, "BE BRIEF", guess) <= 2, "another user, {guess}");
    }
    // What the operator names is shared, to its end and no further.
    let system = "COMMON INSTRUCTIONS OF THE ROBOT";
    cached("one", "ann", system, secret);
    let shared = cached("two", "bob", system, "A DIFFERENT QUESTION");
    assert!(shared > 10, "{shared}");
    assert_eq!(cached("two", "eve", system, secret), shared);
}

#[test]
fn only_its_own_names_and_keys_open_the_server() {
    if !tensorrt_or_skip("only_its_own_names_and_keys_open_the_server") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let engine = tiny(scratch.path());
    fs::write(scratch.path().join("keys"), "k\n").unwrap();
    let server = Server::start(scratch.path(), &engine, &["--api-key-file", "keys", "--allowed-host", "robot.local"]);
    let host = |name: &str, path: &str| {
        server.exchange(&format!("GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n")).status
    };
    for (name, status) in [
        ("localhost:8080", 200),
        ("127.0.0.1", 200),
        ("[::1]:1", 200),
        ("Robot.local:99", 200),
        ("evil.example:8080", 403),
        ("", 403),
        ("127.0.0.1.evil.example", 403),
    ] {
        for path in ["/health", "/", "/health/ready"] {
            assert_eq!(host(name, path), status, "{name} {path}");
        }
    }
    assert_eq!(host("evil.example", "/metrics"), 403);
    assert_eq!(host("localhost", "http://evil.example/health"), 403, "the request's own authority counts");
    let origin = "GET /health HTTP/1.1\r\nHost: localhost\r\nOrigin: junk://localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(server.exchange(origin).status, 403);
    for strange in [
        "GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        "GET /health HTTP/1.1\r\nConnection: close\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        assert_eq!(server.exchange(strange).status, 400, "{strange:?}");
    }
    let long = format!("X-Long: {}\r\n", "x".repeat(33_000));
    assert!(matches!(server.exchange(&Server::request("GET", "/health", &long, "")).status, 400 | 431));
    let with =
        |header: &str| server.exchange(&Server::request("GET", "/v1/models", &format!("{header}\r\n"), "")).status;
    for header in ["Authorization: Bearer k", "authorization: bearer k", "API-Key: k", "X-API-Key: k"] {
        assert_eq!(with(header), 200, "{header}");
    }
    // An old key is one guess, however often it is shown.
    assert!((0..40).all(|_| with("X-API-Key: old") == 401));
    assert_eq!(with("X-API-Key: k"), 200);
    // Guesses: some are told that they are wrong, then it is too many; whoever waits gets in.
    let guesses: Vec<u16> = (0..40).map(|at| with(&format!("X-API-Key: guess-{at}"))).collect();
    assert!(guesses.starts_with(&[401, 401, 401]) && guesses.contains(&429), "{guesses:?}");
    let braked = server.exchange(&Server::request("GET", "/v1/models", "X-API-Key: guess\r\n", ""));
    assert!(braked.status != 429 || braked.headers.contains("retry-after: 1"), "{}", braked.headers);
    while with("X-API-Key: k") != 200 {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(host("localhost", "/health"), 200);
}

/// Behind a proxy all come from one address: who guesses is told apart by what the proxy says of him, if it is trusted.
#[test]
fn a_proxys_clients_are_told_apart() {
    if !tensorrt_or_skip("a_proxys_clients_are_told_apart") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let engine = tiny(scratch.path());
    fs::write(scratch.path().join("keys"), "k\n").unwrap();
    for trusted in [true, false] {
        let proxy = if trusted { "127.0.0.1" } else { "10.9.8.7" };
        let server = Server::start(scratch.path(), &engine, &["--api-key-file", "keys", "--trusted-proxy", proxy]);
        let ask = |client: &str, key: &str| {
            let headers = format!("X-Forwarded-For: {client}\r\nX-API-Key: {key}\r\n");
            server.exchange(&Server::request("GET", "/v1/models", &headers, "")).status
        };
        // What the guesser puts before his own address is not the proxy's word.
        let guesses: Vec<u16> =
            (0..40).map(|at| ask(&format!("10.0.0.{at}, 10.0.0.66"), &format!("guess-{at}"))).collect();
        assert!(guesses.contains(&429), "{guesses:?}");
        assert_eq!(ask("10.0.0.1", "k"), if trusted { 200 } else { 429 });
    }
}

/// A server whose standard error is what a test makes it.
fn start_with(scratch: &Path, engine: &Path, stderr: Stdio, limit: Option<u32>) -> (std::process::Child, String) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = watus(scratch);
    if let Some(files) = limit {
        let plain = command;
        command = Command::new("sh");
        command.current_dir(scratch).env("WATUS_CACHE_DIR", scratch.join("cache")).env("HF_HOME", scratch.join("hf"));
        command.arg("-c").arg(format!("ulimit -n {files}; exec \"$0\" \"$@\"")).arg(plain.get_program());
    }
    command.arg("serve").arg(engine).args(["--backend", "cpu", "--drain", "2", "--port", &port.to_string()]);
    (command.stderr(stderr).spawn().unwrap(), format!("127.0.0.1:{port}"))
}

fn get(address: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some((text.split(' ').nth(1)?.parse().ok()?, text))
}

fn wait_until_ready(address: &str) {
    while get(address, "/health/ready").is_none_or(|(status, _)| status != 200) {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn signal(child: &std::process::Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

#[test]
fn nobody_waits_for_who_reads_the_log() {
    if !tensorrt_or_skip("nobody_waits_for_who_reads_the_log") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let engine = tiny(scratch.path());
    // A pipe that nobody reads: 64 KiB, then it is full; the queue after it holds a thousand lines.
    let (mut child, address) = start_with(scratch.path(), &engine, Stdio::piped(), None);
    wait_until_ready(&address);
    for _ in 0..2500 {
        assert_eq!(get(&address, "/v1/models/x").unwrap().0, 404);
    }
    assert_eq!(get(&address, "/health").unwrap().0, 200);
    let metrics = get(&address, "/metrics").unwrap().1;
    let dropped = metrics.lines().find_map(|line| line.strip_prefix("watus_log_lines_dropped_total ")).unwrap();
    assert!(dropped.parse::<u64>().unwrap() > 0, "{dropped}");
    signal(&child, rustix::process::Signal::TERM);
    assert!(child.wait().unwrap().success(), "it ends although nobody reads");
    // A full disk behind the log, from the first line on.
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (mut child, address) = start_with(scratch.path(), &engine, full.into(), None);
    wait_until_ready(&address);
    // And SIGHUP ends it as SIGTERM does.
    signal(&child, rustix::process::Signal::HUP);
    assert!(child.wait().unwrap().success());
}

#[test]
fn no_signal_cuts_answers_off() {
    if !tensorrt_or_skip("no_signal_cuts_answers_off") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let engine = tiny(scratch.path());
    let (mut child, address) = start_with(scratch.path(), &engine, Stdio::piped(), None);
    wait_until_ready(&address);
    for ignored in [rustix::process::Signal::USR1, rustix::process::Signal::USR2] {
        signal(&child, ignored);
        assert_eq!(get(&address, "/health").unwrap().0, 200);
    }
    signal(&child, rustix::process::Signal::QUIT);
    assert!(child.wait().unwrap().success(), "SIGQUIT ends it as SIGTERM does");
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(log.contains("SIGUSR1 is ignored") && log.contains("SIGUSR2 is ignored"), "{log}");
}

#[test]
fn idle_connections_make_room() {
    if !tensorrt_or_skip("idle_connections_make_room") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let engine = tiny(scratch.path());
    let (mut child, address) = start_with(scratch.path(), &engine, Stdio::null(), Some(96));
    wait_until_ready(&address);
    let idle: Vec<TcpStream> = (0..300).filter_map(|_| TcpStream::connect(&address).ok()).collect();
    let half: Vec<TcpStream> = (0..50)
        .filter_map(|_| {
            let mut stream = TcpStream::connect(&address).ok()?;
            stream.write_all(b"GET /health HT").ok()?;
            Some(stream)
        })
        .collect();
    // Those that say nothing would be cut off after 15 s; nobody waits for that.
    let begun = std::time::Instant::now();
    let asked: Vec<u16> = (0..10).map(|_| get(&address, "/health").map_or(0, |reply| reply.0)).collect();
    println!("health among {} silent connections: {:?}", idle.len() + half.len(), begun.elapsed() / 10);
    assert_eq!(asked, [200; 10]);
    assert_eq!(get(&address, "/v1/models").unwrap().0, 200);
    drop((idle, half));
    signal(&child, rustix::process::Signal::TERM);
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_end_is_told() {
    if !tensorrt_or_skip("the_end_is_told") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let recipe = repository().join("recipes/smollm2-135m.yaml");
    let (code, _, stderr) = output(watus(scratch.path()).env_remove("WATUS_CACHE_DIR").arg("build").arg(recipe));
    assert_eq!(code, 0, "{stderr}");
    let mut server = Server::start(scratch.path(), &scratch.path().join("engines/smollm2-135m"), &["--drain", "4"]);
    let story = chat("Tell a very long story.", json!({"stream": true, "max_tokens": 512, "logit_bias": {"2": -100}}));
    let mut running = server.raw(&Server::request("POST", CHAT, JSON, &story.to_string()));
    let mut first = [0; 64];
    running.read_exact(&mut first).unwrap();
    server.ask_to_end();
    // While it ends, it says so to whoever asks, and takes no more.
    // (A connection that comes in the very moment, and has not asked yet, is closed.)
    let draining = loop {
        if let Some((503, body)) = get(&server.address, "/health/ready") {
            break body;
        }
    };
    assert!(draining.contains("draining"), "{draining}");
    assert_eq!(server.post(CHAT, &chat("AB", json!({}))).code(), "not_ready");
    let mut rest = String::new();
    running.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("shutting_down") && !rest.contains("[DONE]"), "{rest}");
    assert!(server.wait().success());
    let log = server.log();
    assert!(
        log.contains("\"status\":503") && log.contains("--drain") && !log.contains("the client went away"),
        "{log}"
    );
}
