//! A user's way through the tool, as docs/journey.md writes it down: the same commands, in the same order, by an installed
//! program with an empty home.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::server::Server;
use support::{output, repository, tensorrt_or_skip, tree};

/// An installed program, the home of a user, and what has been said so far.
struct Journey {
    root: tempfile::TempDir,
    /// Commands of the document that are still to come.
    written: Vec<String>,
    said: String,
}

impl Journey {
    fn begin() -> Self {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for folder in ["bin", "home"] {
            fs::create_dir(path(folder)).unwrap();
        }
        // As large as a program with its debug information is, a link takes no time.
        let program = Path::new(env!("CARGO_BIN_EXE_watus-build"));
        if fs::hard_link(program, path("bin/watus-build")).is_err() {
            fs::copy(program, path("bin/watus-build")).unwrap();
        }
        fs::copy(repository().join("tests/data/gguf/llama.gguf"), path("home/model.gguf")).unwrap();
        let text = fs::read_to_string(repository().join("docs/journey.md")).unwrap();
        let (mut written, mut kind) = (Vec::new(), None);
        let mut recipe = String::new();
        for line in text.lines() {
            match (line.strip_prefix("```"), kind) {
                (Some(begun), None) => kind = Some(begun),
                (Some(_), Some(_)) => kind = None,
                (None, Some("sh")) => written.push(line.split("   #").next().unwrap().trim().to_owned()),
                (None, Some("yaml")) => recipe.push_str(&format!("{line}\n")),
                _ => {}
            }
        }
        fs::write(path("home/chat.yaml"), recipe).unwrap();
        Self { root, written, said: String::new() }
    }

    fn home(&self) -> PathBuf {
        self.root.path().join("home")
    }

    /// A shell in the user's home, which finds the program and the machine's libraries.
    fn shell(&self, line: &str) -> Command {
        let mut command = Command::new("sh");
        // The user has none of whoever runs the test.
        for name in
            ["WATUS_CACHE_DIR", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HF_ENDPOINT", "SUDO_USER"]
        {
            command.env_remove(name);
        }
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let data = std::env::var_os("XDG_DATA_HOME").map_or_else(|| home.join(".local/share"), PathBuf::from);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.root.path().join("bin").display()));
        // `exec`: a signal is for the program.
        command.env("HOME", self.home()).env("XDG_DATA_HOME", data).current_dir(self.home());
        command.args(["-c", &format!("exec {line}")]);
        command
    }

    /// The document's next command, which must be this one.
    fn next(&mut self, line: &str) {
        assert!(!self.written.is_empty(), "docs/journey.md ends before `{line}`");
        assert_eq!(self.written.remove(0), line, "the next command of docs/journey.md");
    }

    /// Runs the document's next command, with `more` for this test's machine. Both what it prints and its exit code are looked at.
    fn step(&mut self, line: &str, more: &str, code: i32, parts: &[&str]) -> (String, String) {
        self.next(line);
        self.run(line, more, code, parts)
    }

    fn run(&mut self, line: &str, more: &str, code: i32, parts: &[&str]) -> (String, String) {
        let (found, stdout, stderr) = output(&mut self.shell(&format!("{line} {more}")));
        self.said.push_str(&format!("$ {line} {more}\n{stdout}{stderr}"));
        assert_eq!(found, code, "{}", self.said);
        for part in parts {
            assert!(stdout.contains(part) || stderr.contains(part), "no {part:?} in\n{}", self.said);
        }
        // Whatever fails says what to do.
        assert!(code == 0 || stderr.contains("\n  hint: "), "no next step in\n{}", self.said);
        (stdout, stderr)
    }
}

#[test]
fn a_users_way_from_an_empty_home_to_an_empty_home() {
    if !tensorrt_or_skip("a_users_way_from_an_empty_home_to_an_empty_home") {
        return;
    }
    let mut user = Journey::begin();
    let before = tree(&user.home());
    user.step("watus-build --version", "", 0, &["watus-build "]);
    let robot = format!("--root {}", repository().join("tests/data/roots/jetpack-7.2").display());
    user.step("watus-build doctor", &robot, 0, &["JetPack 7.2", "build   yes", "llm     yes"]);
    user.step("watus-build recipe check chat.yaml", "", 0, &["chat.yaml: ok, chat from path:model.gguf"]);
    user.step("watus-build fetch chat.yaml", "", 0, &["chat: model.gguf"]);
    user.step("watus-build build chat.yaml --dry-run", "", 0, &["because it was never built here"]);
    user.step("watus-build build chat.yaml", "", 0, &["chat: built, ", "engines/chat"]);
    user.step("watus-build verify engines/chat", "", 0, &["ok   chat: hashes"]);
    user.step("watus-build run engines/chat --raw \"ABC\"", "--backend cpu --max-tokens 4", 0, &["[4 tokens at "]);
    served(&mut user);
    let line = "watus-build service install engines/chat --rebuild --print";
    let (unit, _) = user.step(line, "--user robot", 0, &["ExecStart=", " serve ", " --rebuild "]);
    let place = user.home().canonicalize().unwrap().join("engines/chat");
    assert!(unit.contains(&*place.to_string_lossy()), "{unit}");
    upgraded(&mut user);
    user.step("watus-build list", "", 0, &["engines in engines\n  chat  llm ", "cached\n", "together "]);
    let (stdout, _) =
        user.step("watus-build remove chat --dry-run", "", 0, &["would remove engines/chat, ", "would free "]);
    assert_eq!(stdout.lines().count(), 2, "{stdout}");
    user.run("watus-build remove chat", "", 1, &["there is no terminal to ask on"]);
    user.next("watus-build remove chat");
    user.run("watus-build remove chat", "--yes", 0, &["removed engines/chat"]);
    user.step("watus-build remove --cache url,pypi,hashes,kernels,rtx,timing,leftovers", "--yes", 0, &["freed"]);
    user.run("watus-build list", "", 0, &["nothing is built in `engines`, and nothing is cached"]);
    assert_eq!(user.written, Vec::<String>::new(), "docs/journey.md goes on");
    // Empty folders are left, and no file.
    let files: Vec<String> = tree(&user.home()).into_iter().filter(|name| !user.home().join(name).is_dir()).collect();
    assert_eq!(files, before, "{}", user.said);
}

/// The server answers, is seen by `monitor`, and keeps its engine.
fn served(user: &mut Journey) {
    user.next("watus-build serve engines/chat");
    let server = Server::spawn(user.shell("watus-build serve engines/chat --backend cpu --port 0"));
    assert_eq!(server.complete("ABC", 2)["usage"]["completion_tokens"], 2);
    let more = format!("--server http://{}", server.address);
    let (seen, _) = user.step("watus-build monitor --json -n 1", &more, 0, &[]);
    let reading: Value = serde_json::from_str(&seen).unwrap();
    assert_eq!((seen.lines().count(), &reading["server"]["requests_running"]), (1, &0.into()), "{seen}");
    assert!(reading["memory"]["total_bytes"].as_u64().unwrap() > 0, "{seen}");
    user.run("watus-build remove chat", "--yes", 1, &["engines/chat is in use: a program runs it"]);
    user.run("watus-build remove engines/chat", "--dry-run", 1, &["hint: stop the `serve` or `run`"]);
}

/// An older version of the tool has built the engine: the command that `serve` names mends it.
fn upgraded(user: &mut Journey) {
    let path = user.home().join("engines/chat/manifest.json");
    let mut manifest: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    manifest["tool"] = "watus-build 0.0.9".into();
    manifest["key"]["tool"] = "0.0.9".into();
    fs::write(&path, manifest.to_string()).unwrap();
    user.next("watus-build serve engines/chat");
    let said = &["chat was built by watus-build 0.0.9", "hint: build it again here: `watus-build build "];
    let (_, stderr) = user.run("watus-build serve engines/chat", "--backend cpu --port 0", 6, said);
    user.run("watus-build list", "", 0, &["does not fit: it was built by watus-build 0.0.9", "-> `watus-build build "]);
    let command = stderr.split('`').nth(1).unwrap().to_owned();
    let recipe = user.home().canonicalize().unwrap().join("chat.yaml");
    assert_eq!(command, format!("watus-build build {}", recipe.display()));
    user.next("watus-build build chat.yaml");
    user.run(&command, "", 0, &["chat: built, "]);
    let server = Server::spawn(user.shell("watus-build serve engines/chat --backend cpu --port 0"));
    assert_eq!(server.complete("ABC", 1)["usage"]["completion_tokens"], 1);
}
