//! The server: what it answers, refuses and survives, on a tiny model; and the real clients on SmolLM2.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use support::server::Server;
use support::{output, repository, skip, tensorrt_or_skip, watus};

/// The tiny GGUF Llama as an engine directory, with a template.
fn tiny(scratch: &Path) -> PathBuf {
    fs::copy(repository().join("tests/data/gguf/llama.gguf"), scratch.join("tiny.gguf")).unwrap();
    let template = "{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}";
    fs::write(scratch.join("chat.jinja"), template).unwrap();
    let recipe = "version: 1\nname: tiny\nkind: llm\nsource: { path: tiny.gguf }\nmax_batch_size: 4\nmax_input_len: 120\n\
                  max_output_len: 136\nchat_template: chat.jinja\n";
    fs::write(scratch.join("tiny.yaml"), recipe).unwrap();
    let (code, _, stderr) = output(watus(scratch).args(["build", "tiny.yaml"]));
    assert_eq!(code, 0, "{stderr}");
    scratch.join("engines/tiny")
}

fn chat(content: &str, more: Value) -> Value {
    let mut body = json!({"model": "local-trt-llm", "messages": [{"role": "user", "content": content}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

const CHAT: &str = "/v1/chat/completions";
const JSON: &str = "Content-Type: application/json\r\n";

#[test]
fn answers_refusals_and_errors() {
    if !tensorrt_or_skip("answers_refusals_and_errors") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let engine = tiny(scratch.path());
    let server = Server::start(scratch.path(), &engine, &["--name", "local-trt-llm", "--name", "robot"]);
    let reply = server.post(CHAT, &chat("AB", json!({"max_tokens": 5, "model": "robot"})));
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert!(reply.headers.contains("x-request-id: req-"), "{}", reply.headers);
    assert_eq!(reply.json()["model"], "robot");
    // Without /v1, as old configurations have the address; with a name of its own for the request.
    let named = Server::request(
        "POST",
        "/chat/completions",
        &format!("{JSON}X-Request-Id: mine\r\n"),
        &chat("A", json!({})).to_string(),
    );
    assert!(server.exchange(&named).headers.contains("x-request-id: mine"));
    let models = server.get("/v1/models").json();
    assert_eq!(models["data"].as_array().unwrap().len(), 2);
    let health = server.get("/health").json();
    assert_eq!((&health["status"], &health["state"], &health["slots"]), (&json!("ok"), &json!("ready"), &json!(4)));
    let page = server.get("/");
    assert!(page.headers.contains("content-security-policy") && page.body.starts_with("<!doctype html>"));

    let deep = "[".repeat(5000);
    let long = chat(&"A".repeat(500), json!({}));
    let tool = |parameters: Value| json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}]});
    let endless = json!({"type": "object", "properties": {"a": {"$ref": "#/x/y"}}, "required": ["a"]});
    let bodies: [(&str, String, u16, &str); 11] = [
        (CHAT, String::new(), 400, "invalid_request_error"),
        (CHAT, "{\"model\": ".to_owned(), 400, "invalid_request_error"),
        (CHAT, format!("{{\"messages\": {deep}"), 400, "invalid_request_error"),
        (CHAT, chat("x", json!({"model": "other"})).to_string(), 404, "model_not_found"),
        (CHAT, chat("x", json!({"messages": "x"})).to_string(), 400, "invalid_request_error"),
        (CHAT, long.to_string(), 400, "context_length_exceeded"),
        (CHAT, chat("x", json!({"n": 2})).to_string(), 400, "unsupported_value"),
        (CHAT, chat("x", tool(endless)).to_string(), 400, "unsupported_value"),
        ("/v1/completions", json!({"model": "robot"}).to_string(), 400, "invalid_request_error"),
        ("/v1/completions", json!({"model": "robot", "prompt": [1, 99_999]}).to_string(), 400, "invalid_request_error"),
        ("/v1/embeddings", json!({"model": "robot", "input": "x"}).to_string(), 404, "not_found"),
    ];
    for (path, body, status, code) in bodies {
        let reply = server.exchange(&Server::request("POST", path, JSON, &body));
        assert_eq!((reply.status, reply.code().as_str()), (status, code), "{}", &body[..body.len().min(200)]);
        assert!(reply.headers.contains("content-type: application/json"), "{}", reply.headers);
    }
    let status = |request: &str| server.exchange(request).status;
    assert_eq!(status(&Server::request("POST", CHAT, "Content-Type: text/plain\r\n", "{}")), 415);
    assert_eq!(status(&Server::request("POST", CHAT, &format!("{JSON}Origin: http://evil.example\r\n"), "{}")), 403);
    assert_eq!(status(&Server::request("GET", CHAT, "", "")), 405);
    assert_eq!(status(&Server::request("GET", "/v2/what", "", "")), 404);
    assert_eq!(
        status(&format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{JSON}Content-Length: 99999999999\r\n\r\n")),
        413
    );
    assert_eq!(status(&Server::request("GET", "/health", &format!("X-Long: {}\r\n", "x".repeat(64 << 10)), "")), 431);
    assert_eq!(status("nonsense\r\n\r\n"), 400);

    // Events, each whole, up to the end.
    let streamed = server.post(CHAT, &chat("AB", json!({"max_tokens": 5, "stream": true})));
    assert!(streamed.headers.contains("content-type: text/event-stream"), "{}", streamed.headers);
    let mut events: Vec<&str> = streamed.body.split("\n\n").filter(|event| !event.is_empty()).collect();
    assert_eq!(events.pop(), Some("data: [DONE]"));
    let said: String = events
        .iter()
        .map(|event| serde_json::from_str::<Value>(event.strip_prefix("data: ").unwrap()).unwrap())
        .map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned())
        .collect();
    let whole = server.post(CHAT, &chat("AB", json!({"max_tokens": 5}))).json();
    assert_eq!(said, whole["choices"][0]["message"]["content"].as_str().unwrap());
    // What was said is not in the log; what went wrong is.
    let log = server.log();
    assert!(log.contains("\"finish_reason\":\"length\"") && log.contains("\"error\":\"The model `other`"), "{log}");
    assert!(!log.contains("uAB"), "{log}");
    assert_eq!(log.matches("The model `other`").count(), 1, "{log}");
}

#[test]
fn answers_made_together_are_what_they_are_alone() {
    if !tensorrt_or_skip("answers_made_together_are_what_they_are_alone") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let engine = tiny(scratch.path());
    let prompt = |index: usize| -> String {
        let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrstuvwxyz";
        // Some share beginnings; some need several passes.
        let length = 1 + index * 37 % 100;
        (0..length).map(|at| char::from(letters[(at * (1 + index % 4) + index % 3) % letters.len()])).collect()
    };
    let ask =
        |server: &Server, index: usize| server.complete(&prompt(index), 8 + index % 40)["choices"][0]["text"].clone();
    let alone: Vec<Value> = {
        let server = Server::start(scratch.path(), &engine, &[]);
        (0..64).map(|index| ask(&server, index)).collect()
    };
    let server = Server::start(scratch.path(), &engine, &["--queue", "64"]);
    let together: Vec<Value> = std::thread::scope(|scope| {
        let server = &server;
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                scope
                    .spawn(move || (worker..64).step_by(4).map(|index| (index, ask(server, index))).collect::<Vec<_>>())
            })
            .collect();
        let mut all: Vec<(usize, Value)> = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
        all.sort_by_key(|(index, _)| *index);
        all.into_iter().map(|(_, text)| text).collect()
    });
    for (index, (together, alone)) in together.iter().zip(&alone).enumerate() {
        assert_eq!(together, alone, "request {index}");
    }
    assert!(server.metric("watus_tokens_total{kind=\"reused\"}") > 0.0);
}

#[test]
fn keys_queues_and_clients_that_go_away() {
    if !tensorrt_or_skip("keys_queues_and_clients_that_go_away") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let engine = smollm2(scratch.path());
    fs::write(scratch.path().join("keys"), "first-key\n\nsecond-key\n").unwrap();
    let more = ["--api-key-file", "keys", "--queue", "2", "--cors-origin", "http://robot.local", "--timeout", "600"];
    let mut server = Server::start(scratch.path(), &engine, &more);
    assert_eq!(server.get("/v1/models").code(), "invalid_api_key");
    assert_eq!((server.get("/metrics").status, server.get("/health").status, server.get("/").status), (401, 200, 200));
    for (key, status) in [("first-key", 200), ("second-key", 200), ("third-key", 401), ("", 401), ("first-ke", 401)] {
        let request = Server::request("GET", "/v1/models", &format!("Authorization: Bearer {key}\r\n"), "");
        assert_eq!(server.exchange(&request).status, status, "{key}");
    }
    let preflight = "Origin: http://robot.local\r\nAccess-Control-Request-Method: POST\r\n";
    let allowed = server.exchange(&Server::request("OPTIONS", CHAT, preflight, ""));
    assert_eq!(allowed.status, 204);
    assert!(allowed.headers.contains("access-control-allow-origin: http://robot.local"), "{}", allowed.headers);

    // Four run, two wait, and the seventh is told to come back.
    let authorized = format!("{JSON}Authorization: Bearer first-key\r\n");
    let endless = chat("Tell a very long story.", json!({"stream": true})).to_string();
    let request = Server::request("POST", CHAT, &authorized, &endless);
    let paused: Vec<std::net::TcpStream> = (0..6).map(|_| server.raw(&request)).collect();
    let mut refused = None;
    for _ in 0..8 {
        let reply = server.raw(&request);
        let mut lines = BufReader::new(reply);
        let mut status = String::new();
        lines.read_line(&mut status).unwrap();
        if status.contains("429") {
            let mut rest = String::new();
            lines.read_to_string(&mut rest).unwrap();
            refused = Some(rest.to_lowercase());
            break;
        }
    }
    let refused = refused.expect("a full queue refuses");
    assert!(refused.contains("retry-after: 1") && refused.contains("rate_limit_exceeded"), "{refused}");
    drop(paused);
    // Whoever went away holds no slot: as many as there are slots answer again, to the end.
    let short = Server::request("POST", CHAT, &authorized, &chat("AB", json!({"max_tokens": 3})).to_string());
    let mut answered = 0;
    while answered < 4 {
        let reply = server.exchange(&short);
        assert!(matches!(reply.status, 200 | 429), "{}", reply.body);
        answered += usize::from(reply.status == 200);
    }
    assert!(server.log().contains("the client went away"), "{}", server.log());

    // Asked to end, it ends what it has begun.
    let mut last = server.raw(&Server::request(
        "POST",
        CHAT,
        &authorized,
        &chat("AB", json!({"stream": true, "max_tokens": 30})).to_string(),
    ));
    let mut first = [0; 64];
    last.read_exact(&mut first).unwrap();
    server.ask_to_end();
    let mut rest = String::new();
    last.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("\"finish_reason\":") && rest.contains("data: [DONE]"), "{rest}");
    assert!(server.wait().success());
}

#[test]
fn half_a_request_holds_nothing_up() {
    if !tensorrt_or_skip("half_a_request_holds_nothing_up") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let engine = tiny(scratch.path());
    let mut server = Server::start(scratch.path(), &engine, &["--drain", "1"]);
    let half = format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{JSON}Content-Length: 100\r\n\r\n{{\"model\"");
    let mut waiting: Vec<_> = (0..20).map(|_| server.raw(&half)).collect();
    waiting.extend((0..20).map(|_| server.raw("POST /v1/chat/compl")));
    assert_eq!(server.complete("ABC", 4)["usage"]["completion_tokens"], 4);
    // A reader that does not read: its answer is made all the same, and its slot is free again.
    let mut deaf = server.raw(&Server::request("POST", CHAT, JSON, &chat("AB", json!({"stream": true})).to_string()));
    deaf.flush().unwrap();
    server.wait_until_idle();
    server.ask_to_end();
    assert!(server.wait().success());
    // And the address is free for the next.
    let port = server.address.rsplit(':').next().unwrap().to_owned();
    let again = Server::start(scratch.path(), &engine, &["--port", &port]);
    assert_eq!(again.complete("ABC", 4)["usage"]["completion_tokens"], 4);
}

#[test]
fn an_answer_that_takes_too_long_is_ended() {
    if !tensorrt_or_skip("an_answer_that_takes_too_long_is_ended") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let engine = smollm2(scratch.path());
    let server = Server::start(scratch.path(), &engine, &["--timeout", "1"]);
    let story = chat("Tell a very long story.", json!({"max_tokens": 512, "logit_bias": {"2": -100}}));
    let reply = server.post(CHAT, &story);
    assert_eq!((reply.status, reply.code().as_str()), (504, "deadline_exceeded"));
    assert!(reply.headers.contains("x-should-retry: false"), "{}", reply.headers);
    let mut streamed = story;
    streamed["stream"] = true.into();
    let reply = server.post(CHAT, &streamed);
    assert_eq!(reply.status, 200);
    let last = reply.body.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last.starts_with("data: {\"error\"") && last.contains("deadline_exceeded"), "{last}");
    server.wait_until_idle();
}

#[test]
fn what_cannot_be_served_says_so() {
    if !tensorrt_or_skip("what_cannot_be_served_says_so") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let engine = tiny(scratch.path());
    let run = |arguments: &[&str]| output(watus(scratch.path()).args(arguments));
    let (code, _, stderr) = run(&["serve", "nowhere"]);
    assert!(code != 0 && stderr.contains("nowhere"), "{stderr}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, _, stderr) = run(&["serve", "engines/tiny", "--backend", "cpu", "--port", &port]);
    assert!(code == 1 && stderr.contains("another server has this port"), "{stderr}");
    fs::write(scratch.path().join("keys"), "\n").unwrap();
    let (code, _, stderr) = run(&["serve", "engines/tiny", "--api-key-file", "keys"]);
    assert!(code == 1 && stderr.contains("holds no key"), "{stderr}");
    // No GPU is no reason to answer slowly without a word.
    if watus_build::backend::tensorrt::device::Device::open().is_err() {
        let (code, _, stderr) = run(&["serve", "engines/tiny", "--port", "0"]);
        assert!(code == 8 && stderr.contains("--backend cpu"), "{code}: {stderr}");
    }
    let (code, unit, stderr) =
        run(&["service", "install", "engines/tiny", "--print", "--user", "robot", "--port", "9090"]);
    assert_eq!(code, 0, "{stderr}");
    for line in ["User=robot", "Type=notify", "NoNewPrivileges=yes", "Restart=on-failure", "WatchdogSec=120"] {
        assert!(unit.lines().any(|have| have == line), "no {line} in\n{unit}");
    }
    assert!(unit.contains(&format!("serve {} --host=127.0.0.1 --port=9090", engine.canonicalize().unwrap().display())));
    assert!(!unit.lines().any(|line| line.starts_with("PrivateDevices")), "{unit}");
    let (_, keeping, _) = run(&[
        "service",
        "install",
        "engines/tiny",
        "--print",
        "--user",
        "robot",
        "--state",
        "/var/lib/watus-build/tiny",
    ]);
    assert!(keeping.contains(" --state=/var/lib/watus-build/tiny --state-size=2048 "), "{keeping}");
    assert!(keeping.lines().any(|line| line == "StateDirectory=watus-build/tiny"), "{keeping}");
    assert!(!unit.contains("StateDirectory"), "{unit}");
    let path = scratch.path().join("watus-build.service");
    for unit in [&unit, &keeping] {
        fs::write(&path, unit).unwrap();
        if let Ok(checked) = Command::new("systemd-analyze").arg("verify").arg(&path).output() {
            assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        }
    }
}

/// SmolLM2-135M-Instruct as the shipped recipe names it. What was fetched for other tests is not fetched again.
fn smollm2(scratch: &Path) -> PathBuf {
    let recipe = repository().join("recipes/smollm2-135m.yaml");
    let mut build = watus(scratch);
    build.env_remove("WATUS_CACHE_DIR");
    let (code, _, stderr) = output(build.arg("build").arg(recipe));
    assert_eq!(code, 0, "{stderr}");
    scratch.join("engines/smollm2-135m")
}

#[test]
fn a_prediction_is_verified_and_counted() {
    if !tensorrt_or_skip("a_prediction_is_verified_and_counted") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let engine = smollm2(scratch.path());
    let ask = |server: &Server, more: Value| {
        let mut body = chat("Write five sentences about the sea.", json!({"max_tokens": 60, "temperature": 0}));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let reply = server.post(CHAT, &body);
        assert_eq!(reply.status, 200, "{}", reply.body);
        let answer = reply.json();
        (answer["choices"][0]["message"]["content"].clone(), answer["usage"]["completion_tokens_details"].clone())
    };
    let plain = Server::start(scratch.path(), &engine, &["--no-speculation"]);
    let (want, details) = ask(&plain, json!({}));
    assert_eq!(
        (&details["accepted_prediction_tokens"], &details["rejected_prediction_tokens"]),
        (&json!(0), &json!(0))
    );
    let prediction = |content: Value| json!({"prediction": {"type": "content", "content": content}});
    assert_eq!(ask(&plain, prediction(want.clone())), (want.clone(), details));
    assert_eq!(plain.metric("watus_speculative_tokens_total{kind=\"drafted\"}"), 0.0);
    drop(plain);
    let server = Server::start(scratch.path(), &engine, &[]);
    let (have, details) = ask(&server, prediction(want.clone()));
    assert_eq!(have, want);
    let accepted = details["accepted_prediction_tokens"].as_u64().unwrap();
    assert!(accepted > 30, "{details}");
    // A wrong one, in parts, changes nothing; nor does a stream.
    let wrong = json!([{"type": "text", "text": "The sea is"}, {"type": "text", "text": "nothing like this at all."}]);
    assert_eq!(ask(&server, prediction(wrong)).0, want);
    let mut streamed = prediction(want.clone());
    streamed["stream"] = true.into();
    let mut body = chat("Write five sentences about the sea.", json!({"max_tokens": 60, "temperature": 0}));
    body.as_object_mut().unwrap().extend(streamed.as_object().unwrap().clone());
    let events = server.post(CHAT, &body).body;
    let chunks =
        events.split("\n\n").filter_map(|event| serde_json::from_str::<Value>(event.strip_prefix("data: ")?).ok());
    let said: String =
        chunks.map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned()).collect();
    assert_eq!(json!(said), want);
    let (drafted, all) = (
        server.metric("watus_speculative_tokens_total{kind=\"drafted\"}"),
        server.metric("watus_speculative_tokens_total{kind=\"accepted\"}"),
    );
    assert!(all >= accepted as f64 && drafted >= all, "{all} of {drafted}");
    assert!(server.log().contains("\"accepted_tokens\":"), "{}", server.log());
    let refused = server.post(CHAT, &chat("x", json!({"prediction": {"type": "tokens"}})));
    assert_eq!((refused.status, refused.json()["error"]["param"].clone()), (400, json!("prediction.type")));
}

#[test]
fn a_recipes_text_is_drafted_from() {
    if !tensorrt_or_skip("a_recipes_text_is_drafted_from") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    tiny(scratch.path());
    let recipe = fs::read_to_string(scratch.path().join("tiny.yaml")).unwrap();
    fs::write(scratch.path().join("tiny.yaml"), format!("{recipe}speculation: {{ text: manual.txt }}\n")).unwrap();
    let build = || output(watus(scratch.path()).args(["build", "tiny.yaml"]));
    let (code, _, stderr) = build();
    assert!(code != 0 && stderr.contains("manual.txt"), "{stderr}");
    fs::write(scratch.path().join("manual.txt"), b"not UTF-8: \xff").unwrap();
    let (code, _, stderr) = build();
    assert!(code != 0 && stderr.contains("UTF-8"), "{stderr}");
    fs::write(scratch.path().join("manual.txt"), "A manual that answers quote.").unwrap();
    let (code, _, stderr) = build();
    assert_eq!(code, 0, "{stderr}");
    let engine = scratch.path().join("engines/tiny");
    assert_eq!(fs::read_to_string(engine.join("speculation.txt")).unwrap(), "A manual that answers quote.");
    let server = Server::start(scratch.path(), &engine, &[]);
    assert_eq!(server.complete("ABC", 4)["usage"]["completion_tokens"], 4);
}

fn script(name: &str) -> Option<Command> {
    let python = std::env::var("WATUS_ORACLE_PYTHON").ok()?;
    let mut command = Command::new(python);
    command.arg(repository().join("tests/data/serve").join(name));
    Some(command)
}

#[test]
fn openai_and_pydantic_ai_are_content() {
    let Some(mut clients) = script("clients.py") else {
        return skip("openai_and_pydantic_ai_are_content", "WATUS_ORACLE_PYTHON names no Python; `make test` does");
    };
    if !tensorrt_or_skip("openai_and_pydantic_ai_are_content") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let server = Server::start(scratch.path(), &smollm2(scratch.path()), &["--queue", "8"]);
    let (code, stdout, stderr) = output(clients.args([&format!("http://{}", server.address), "local-trt-llm"]));
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert_eq!(stdout.lines().filter(|line| line.starts_with("ok ")).count(), 18, "{stdout}");
    // The same list of promises, as a command for any server.
    let (code, stdout, stderr) =
        output(watus(scratch.path()).args(["verify", "--serve", &format!("http://{}", server.address)]));
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(!stdout.contains("FAIL"), "{stdout}");
}

#[test]
fn the_examples_work() {
    let Ok(python) = std::env::var("WATUS_ORACLE_PYTHON") else {
        return skip("the_examples_work", "WATUS_ORACLE_PYTHON names no Python; `make test` does");
    };
    if !tensorrt_or_skip("the_examples_work") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let server = Server::start(scratch.path(), &smollm2(scratch.path()), &[]);
    let run = |program: &str, name: &str| {
        let mut command = Command::new(program);
        command
            .arg(repository().join("examples/serve").join(name))
            .env("WATUS_URL", format!("http://{}", server.address));
        let (code, stdout, stderr) = output(&mut command);
        assert_eq!(code, 0, "{name}: {stdout}{stderr}");
        stdout
    };
    assert!(run(&python, "stream.py").contains("The capital of France is Paris.\n[first token after"));
    assert!(run(&python, "agent.py").contains("room="));
    assert!(!run(&python, "warstwa_llm.py").trim().is_empty());
    let curl = run("bash", "curl.sh");
    assert!(curl.contains("data: [DONE]") && curl.contains("\\\"country\\\": \\\"France\\\""), "{curl}");
    let figures = server.get("/metrics").body;
    let board = fs::read_to_string(repository().join("examples/serve/grafana.json")).unwrap();
    let board: Value = serde_json::from_str(&board).unwrap();
    let queries = board["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    for query in queries.map(|target| target["expr"].as_str().unwrap()) {
        for name in
            query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("watus_"))
        {
            assert!(figures.contains(&format!("\n{name}")), "the dashboard asks for {name}, which is no figure");
        }
    }
}

#[test]
fn the_page_works_in_a_browser() {
    let test = "the_page_works_in_a_browser";
    let Some(mut page) = script("page.py") else {
        return skip(test, "WATUS_ORACLE_PYTHON names no Python; `make test` does");
    };
    if !Path::new("/usr/bin/chromium").exists() || !Path::new("/usr/bin/chromedriver").exists() {
        return skip(test, "Debian's chromium and chromium-driver are not installed");
    }
    if !tensorrt_or_skip(test) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let server = Server::start(scratch.path(), &smollm2(scratch.path()), &[]);
    let screenshot = scratch.path().join("page.png");
    let (code, stdout, stderr) = output(page.arg(format!("http://{}", server.address)).arg(&screenshot));
    assert_eq!((code, stdout.trim()), (0, "ok page"), "{stderr}");
    assert!(fs::metadata(screenshot).unwrap().len() > 5000);
}
