//! The real client against a hub that misbehaves: each fault is one clear error or a bounded retry, and the cache never
//! holds a byte that was not checked.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::hub::{COMMIT, Fault, Hub};
use support::leftovers;
use watus_build::fetch::{FetchError, Fetched, Fetcher, HubSettings, Lock, Retry};
use watus_build::progress::{Event, Progress, Silent};
use watus_build::recipe::SourcePlan;

/// Reproducible bytes.
fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut random = watus_build::tensor::SplitMix64(seed);
    (0..length).map(|_| random.next_u64() as u8).collect()
}

struct World {
    hub: Hub,
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let files = [
            ("config.json", b"{\"a\": 1}\n".to_vec(), false),
            ("model.safetensors", bytes(300_000, 1), true),
            ("onnx/model.onnx", bytes(70_000, 2), true),
            ("README.md", b"# hi\n".to_vec(), false),
        ];
        Self { hub: Hub::start(&files), folder: tempfile::tempdir().unwrap() }
    }

    fn fetcher(&self) -> Fetcher {
        Fetcher {
            hub: HubSettings {
                endpoint: self.hub.endpoint.clone(),
                token: None,
                cache: self.folder.path().join("hub"),
            },
            cache: self.folder.path().join("cache"),
            offline: false,
            rehash: false,
            retry: Retry {
                attempts: 4,
                pause: Duration::from_millis(5),
                longest: Duration::from_secs(2),
                ..Retry::default()
            },
            progress: Arc::new(Silent),
            cancel: Arc::default(),
        }
    }

    fn lock(&self) -> Lock {
        Lock::open(&self.folder.path().join("watus.lock")).unwrap()
    }

    fn fetch(&self) -> Result<Fetched, FetchError> {
        self.fetch_with(&self.fetcher(), &mut self.lock())
    }

    fn fetch_with(&self, fetcher: &Fetcher, lock: &mut Lock) -> Result<Fetched, FetchError> {
        let fetched = fetcher.fetch(&source("main", &["*.json", "**/*.onnx", "*.safetensors"]), lock)?;
        lock.save()?;
        Ok(fetched)
    }

    /// Everything fetched is what the hub has, and nothing else lies in the cache.
    fn check(&self, fetched: &Fetched) {
        let names: Vec<&str> = fetched.files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["config.json", "model.safetensors", "onnx/model.onnx"]);
        assert_eq!(fs::read(&fetched.files[0].path).unwrap(), b"{\"a\": 1}\n");
        assert_eq!(fs::read(&fetched.files[1].path).unwrap(), bytes(300_000, 1));
        assert_eq!(fs::read(&fetched.files[2].path).unwrap(), bytes(70_000, 2));
        assert_eq!(leftovers(self.folder.path()), Vec::<String>::new());
    }

    /// After a failure, no blob may be there that is not whole.
    fn nothing_corrupt(&self) {
        for name in support::tree(self.folder.path()) {
            if let Some(digest) = name.split("/blobs/").nth(1)
                && !name.ends_with(".incomplete")
                && digest.len() == 64
            {
                let found = watus_build::artifact::sha256_file(&self.folder.path().join(&name)).unwrap();
                assert_eq!(found, digest, "{name}");
            }
        }
    }
}

fn source(revision: &str, files: &[&str]) -> SourcePlan {
    SourcePlan::Hub {
        repository: "org/model".into(),
        revision: revision.into(),
        files: files.iter().map(|file| (*file).to_owned()).collect(),
        file: None,
    }
}

#[test]
fn fetches_into_the_shared_cache_layout() {
    let world = World::new();
    let fetched = world.fetch().unwrap();
    world.check(&fetched);
    assert_eq!(fetched.commit.as_deref(), Some(COMMIT));
    let repo = world.folder.path().join("hub/models--org--model");
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    let link = fs::read_link(repo.join(format!("snapshots/{COMMIT}/onnx/model.onnx"))).unwrap();
    assert!(link.starts_with("../../../blobs"), "{}", link.display());
    assert!(!world.hub.log().iter().any(|line| line.contains("README")), "only what was asked for");
}

#[test]
fn second_time_needs_no_network_and_a_lock_pins_the_commit() {
    let world = World::new();
    world.fetch().unwrap();
    world.hub.clear_log();
    world.hub.push("89abcdef0123456789abcdef0123456789abcdef", "model.safetensors", bytes(10, 9));
    world.check(&world.fetch().unwrap());
    assert_eq!(world.hub.log(), Vec::<String>::new());

    let mut lock = world.lock();
    lock.update = true;
    let fetched = world.fetch_with(&world.fetcher(), &mut lock).unwrap();
    assert_eq!(fetched.commit.as_deref(), Some("89abcdef0123456789abcdef0123456789abcdef"));
    assert_eq!(fs::read(&fetched.files[1].path).unwrap(), bytes(10, 9));
}

#[test]
fn offline_uses_the_cache_or_says_what_is_missing() {
    let world = World::new();
    let offline = Fetcher { offline: true, ..world.fetcher() };
    let error = world.fetch_with(&offline, &mut world.lock()).unwrap_err();
    assert!(matches!(error, FetchError::Offline { .. }), "{error}");
    world.fetch().unwrap();
    world.check(&world.fetch_with(&offline, &mut world.lock()).unwrap());
    // Without a lock entry, the cache's own refs do.
    let mut empty = Lock::open(&world.folder.path().join("other.lock")).unwrap();
    world.check(&world.fetch_with(&offline, &mut empty).unwrap());
    assert!(world.hub.log().len() <= 4, "{:?}", world.hub.log());
}

#[test]
fn passing_faults_are_ridden_out() {
    let cases = [
        ("resolve", Fault::Status(503, "", None), 3),
        ("resolve", Fault::Status(429, "", Some(1)), 2),
        ("api", Fault::Status(500, "", None), 2),
        ("safetensors", Fault::Cut(100_000), 3),
        ("safetensors", Fault::Cut(0), 2),
        ("safetensors", Fault::Corrupt, 1),
        ("safetensors", Fault::TooLong, 1),
        ("safetensors", Fault::WrongRange, 1),
        ("resolve", Fault::IgnoreRange, 10),
    ];
    for (path, fault, times) in cases {
        let world = World::new();
        world.hub.fault(path, fault.clone(), times);
        let fetched = world.fetch().unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        world.check(&fetched);
    }
}

#[test]
fn a_cut_download_resumes_in_a_later_run() {
    let world = World::new();
    world.hub.fault("safetensors", Fault::Cut(200_000), 1);
    world.hub.fault("safetensors", Fault::Status(503, "", None), 100);
    let error = world.fetch().unwrap_err();
    assert!(error.to_string().contains("goes on where it stopped"), "{error}");
    world.nothing_corrupt();
    let world = World {
        hub: Hub::start(&[
            ("config.json", b"{\"a\": 1}\n".to_vec(), false),
            ("model.safetensors", bytes(300_000, 1), true),
            ("onnx/model.onnx", bytes(70_000, 2), true),
        ]),
        ..world
    };
    world.check(&world.fetch().unwrap());
    let ranges: Vec<String> = world.hub.log().into_iter().filter(|line| line.contains("safetensors")).collect();
    assert_eq!(ranges.len(), 1);
    assert!(ranges[0].ends_with(" 200000-"), "{ranges:?}");
}

#[test]
fn a_server_that_ignores_ranges_never_doubles_a_file() {
    let world = World::new();
    world.hub.fault("safetensors", Fault::Cut(200_000), 1);
    world.hub.fault("safetensors", Fault::IgnoreRange, 100);
    world.check(&world.fetch().unwrap());
}

#[test]
fn a_stale_part_file_costs_one_retry_and_no_corruption() {
    let world = World::new();
    let digest = watus_build::artifact::sha256(&bytes(300_000, 1));
    let part = world.folder.path().join(format!("hub/models--org--model/blobs/{digest}.incomplete"));
    for length in [1_000, 300_000, 400_000] {
        let _ = fs::remove_dir_all(world.folder.path().join("hub"));
        fs::create_dir_all(part.parent().unwrap()).unwrap();
        fs::write(&part, bytes(length, 77)).unwrap();
        world.check(&world.fetch().unwrap());
    }
}

#[test]
fn lasting_faults_are_one_clear_error() {
    let cases: [(&str, Fault, &[&str]); 7] = [
        ("api", Fault::Status(403, "GatedRepo", None), &["gated", "HF_TOKEN"]),
        ("api", Fault::Status(401, "", None), &["access denied", "HF_TOKEN"]),
        ("api", Fault::Status(404, "RevisionNotFound", None), &["no such revision"]),
        ("resolve", Fault::Status(429, "", None), &["gave up after 4 tries", "429"]),
        ("resolve", Fault::Status(500, "", None), &["gave up", "status 500"]),
        ("safetensors", Fault::Corrupt, &["model.safetensors", "does not match its hash", "nothing was kept"]),
        ("safetensors", Fault::Cut(0), &["gave up after 4 tries: model.safetensors"]),
    ];
    for (path, fault, expected) in cases {
        let world = World::new();
        world.hub.fault(path, fault.clone(), 1000);
        let error = world.fetch().unwrap_err().to_string();
        for part in expected {
            assert!(error.contains(part), "{fault:?}: `{error}` lacks `{part}`");
        }
        world.nothing_corrupt();
    }
}

#[test]
fn missing_repositories_and_patterns_are_told_apart() {
    let world = World::new();
    let fetch = |source: SourcePlan| world.fetcher().fetch(&source, &mut world.lock()).unwrap_err().to_string();
    let other = SourcePlan::Hub { repository: "org/other".into(), revision: "main".into(), files: vec![], file: None };
    assert!(fetch(other).contains("does not exist"));
    let error = fetch(source("main", &["*.gguf"]));
    assert!(error.contains("no file matches *.gguf") && error.contains("config.json"), "{error}");
}

#[test]
fn names_that_leave_the_cache_are_refused() {
    for name in ["../evil.json", "/etc/evil.json", "a/../../evil.json"] {
        let world = World { hub: Hub::start(&[(name, b"x".to_vec(), false)]), folder: tempfile::tempdir().unwrap() };
        let error = world.fetch().unwrap_err();
        assert!(matches!(error, FetchError::UnsafeName { .. }), "{error}");
        assert_eq!(support::tree(world.folder.path()), Vec::<String>::new());
    }
    // Names that would forge lines are passed over: macOS leaves an "Icon\r" in repositories.
    let odd = ["a\nerror: forged.json", "a\u{1b}[2J.json", "Icon\r"];
    let files = odd.iter().chain(&["config.json"]).map(|name| (*name, b"{}".to_vec(), false));
    let world = World { hub: Hub::start(&files.collect::<Vec<_>>()), folder: tempfile::tempdir().unwrap() };
    let names: Vec<String> = world.fetch().unwrap().files.into_iter().map(|file| file.name).collect();
    assert_eq!(names, ["config.json"]);
}

#[test]
fn tokens_reach_the_hub() {
    let world = World::new();
    world.hub.require_token("hf_secret");
    assert!(world.fetch().unwrap_err().to_string().contains("gated"));
    let mut fetcher = world.fetcher();
    fetcher.hub.token = Some("hf_secret".into());
    world.check(&world.fetch_with(&fetcher, &mut world.lock()).unwrap());
}

#[test]
fn rehash_finds_and_mends_rot() {
    let world = World::new();
    let fetched = world.fetch().unwrap();
    let blob = fs::canonicalize(&fetched.files[1].path).unwrap();
    let mut rotten = fs::read(&blob).unwrap();
    rotten[1000] ^= 4;
    fs::write(&blob, rotten).unwrap();
    let rehash = Fetcher { rehash: true, ..world.fetcher() };
    world.check(&world.fetch_with(&rehash, &mut world.lock()).unwrap());
}

#[test]
fn url_sources_are_checked_too() {
    let world = World::new();
    let url = format!("{}/org/model/resolve/main/model.safetensors", world.hub.endpoint);
    let fetch = |sha256: &str| {
        world.fetcher().fetch(&SourcePlan::Url { url: url.clone(), sha256: sha256.into() }, &mut world.lock())
    };
    let right = watus_build::artifact::sha256(&bytes(300_000, 1));
    assert_eq!(fs::read(&fetch(&right).unwrap().files[0].path).unwrap(), bytes(300_000, 1));
    let error = fetch(&watus_build::artifact::sha256(b"other")).unwrap_err();
    assert!(matches!(error, FetchError::WrongHash { .. }), "{error}");
    assert_eq!(leftovers(world.folder.path()), Vec::<String>::new());
}

#[test]
fn a_full_disk_is_told_before_anything_is_downloaded() {
    let world = World::new();
    let mut lock = world.lock();
    let digest = watus_build::fetch::Digest::Sha256("0".repeat(64));
    let file = watus_build::fetch::LockedFile { size: u64::MAX / 4, digest };
    let files = std::iter::once(("huge.safetensors".to_owned(), file)).collect();
    lock.set("org/model", "main", watus_build::fetch::LockedSource { commit: COMMIT.into(), files });
    let error = world.fetch_with(&world.fetcher(), &mut lock).unwrap_err();
    assert!(matches!(error, FetchError::DiskFull { .. }), "{error}");
    assert!(error.to_string().contains("HF_HOME"));
    assert_eq!(world.hub.log(), Vec::<String>::new());
}

#[test]
fn a_bad_lock_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("watus.lock");
    let entry = |commit: &str, file: &str| {
        format!(
            "version: 1\nsources:\n  a/b@main:\n    commit: {commit}\n    files:\n      {file}: {{ size: 1, sha256: {} }}\n",
            "0".repeat(64)
        )
    };
    for text in [entry("main", "a"), entry(COMMIT, "../a"), "version: 9\nsources: {}\n".into(), "[".into()] {
        fs::write(&path, &text).unwrap();
        let error = Lock::open(&path).unwrap_err().to_string();
        assert!(error.contains("watus.lock"), "{error}");
    }
    fs::write(&path, entry(COMMIT, "a")).unwrap();
    assert!(Lock::open(Path::new(&path)).unwrap().get("a/b", "main").is_some());
}

/// Keeps the warnings.
#[derive(Default)]
struct Warnings(Mutex<Vec<String>>);

impl Progress for Warnings {
    fn event(&self, event: Event<'_>) {
        if let Event::Warning(text) = event {
            self.0.lock().unwrap().push(text.to_owned());
        }
    }
}

#[test]
fn waits_are_announced_and_bounded() {
    let drip = Fault::Drip(10, Duration::from_millis(20));
    let cases: [(&str, Fault, usize, &str, &str); 9] = [
        (
            "safetensors",
            Fault::Status(429, "", Some(86_400)),
            1,
            "asks to wait 86400 s, and 2 s are waited at most",
            "",
        ),
        ("api", Fault::Status(503, "", Some(86_400)), 1, "org/model@main: the server asks to wait 86400 s", ""),
        (
            "safetensors",
            Fault::Status(429, "", Some(1)),
            9,
            "asks to wait 1 s, and 2 s",
            "(429); trying again in 1.0 s (try 2 of 4)",
        ),
        (
            "api",
            Fault::Status(503, "", None),
            9,
            "gave up after 4 tries",
            "status 503; trying again in 0.0 s (try 4 of 4)",
        ),
        ("safetensors", drip.clone(), 9, "gave up after 4 tries: model.safetensors: stalled", "stalled: "),
        ("api", drip, 9, "gave up after 4 tries", "org/model@main: timeout"),
        ("safetensors", Fault::Silence, 9, "gave up after 4 tries", "model.safetensors: timeout"),
        ("api", Fault::Silence, 9, "gave up after 4 tries", "org/model@main: timeout"),
        // A byte more each time is no progress that could go on for ever.
        ("safetensors", Fault::Cut(1), 99, "gave up after 4 tries", "(try 4 of 4)"),
    ];
    for (path, fault, times, expected, warning) in cases {
        let world = World::new();
        world.hub.fault(path, fault.clone(), times);
        let warnings = Arc::new(Warnings::default());
        let mut fetcher = world.fetcher();
        fetcher.progress = Arc::clone(&warnings) as Arc<dyn Progress>;
        if matches!(fault, Fault::Drip(..) | Fault::Silence) {
            fetcher.retry.stall = Duration::from_millis(500);
            fetcher.retry.answer = Duration::from_secs(1);
        }
        let error = world.fetch_with(&fetcher, &mut world.lock()).unwrap_err().to_string();
        assert!(error.contains(expected), "{fault:?}: `{error}` lacks `{expected}`");
        let said = warnings.0.lock().unwrap().join("\n");
        assert!(said.contains(warning), "{fault:?}: `{said}` lacks `{warning}`");
        world.nothing_corrupt();
    }
}

#[test]
fn redirects_are_followed_and_a_token_stays_with_its_origin() {
    let name = "/org/model/resolve/0123456789abcdef0123456789abcdef01234567/model.safetensors";
    for path in ["/api/models", "model.safetensors"] {
        let world = World::new();
        world.hub.require_token("hf_secret");
        // The same host, another port.
        let other = World::new();
        let target = if path == "model.safetensors" { name } else { "/api/models/org/model/revision/main?blobs=true" };
        world.hub.fault(path, Fault::Redirect(format!("{}{target}", other.hub.endpoint)), 1);
        // And on, by a path alone.
        other.hub.fault(path, Fault::Redirect(target.to_owned()), 1);
        let mut fetcher = world.fetcher();
        fetcher.hub.token = Some("hf_secret".into());
        world.check(&world.fetch_with(&fetcher, &mut world.lock()).unwrap());
        assert_eq!(other.hub.tokens(), [None, None], "{path}");
        assert!(world.hub.tokens().iter().all(Option::is_some));
    }
}

#[test]
fn redirects_that_lead_nowhere_are_errors() {
    let cases = [
        ("/loop", "redirects more than 10 times"),
        ("ftp://me:secret@host/x", "cannot fetch ftp://host/x: only http and https"),
        ("http://me:secret@/x?sig=secret", "cannot fetch http:///x?…"),
    ];
    for (location, expected) in cases {
        let world = World::new();
        world.hub.fault("/api/models", Fault::Redirect(location.to_owned()), 1000);
        world.hub.fault("/loop", Fault::Redirect("/loop".to_owned()), 1000);
        let error = world.fetch().unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains("secret"), "{location}: {error}");
    }
}

#[test]
fn revisions_are_one_segment_of_an_address() {
    let cases = [("refs/pr/1", "refs%2Fpr%2F1"), ("a?b#c", "a%3Fb%23c"), ("50% ü", "50%25%20%C3%BC"), ("v1.0", "v1.0")];
    for (revision, escaped) in cases {
        let world = World::new();
        world.fetcher().fetch(&source(revision, &["*.json"]), &mut world.lock()).unwrap();
        let expected = format!("GET /api/models/org/model/revision/{escaped}?blobs=true");
        assert_eq!(world.hub.log()[0], expected);
        // And again from what the cache remembers of the revision.
        let offline = Fetcher { offline: true, ..world.fetcher() };
        offline.fetch(&source(revision, &["*.json"]), &mut world.lock()).unwrap();
    }
    let world = World::new();
    for revision in ["../../x", "/x", ""] {
        let error = world.fetcher().fetch(&source(revision, &["*.json"]), &mut world.lock()).unwrap_err();
        assert!(matches!(error, FetchError::UnsafeName { .. }), "{error}");
    }
    assert_eq!(world.hub.log(), Vec::<String>::new());
}

#[test]
fn addresses_are_sent_encoded_and_shown_without_secrets() {
    let world = World { hub: Hub::start(&[("a%20b.bin", bytes(100, 3), true)]), folder: tempfile::tempdir().unwrap() };
    let host = world.hub.endpoint.strip_prefix("http://").unwrap();
    let right = watus_build::artifact::sha256(&bytes(100, 3));
    let fetch = |url: String, sha256: &str| {
        world.fetcher().fetch(&SourcePlan::Url { url, sha256: sha256.into() }, &mut world.lock())
    };
    let url = |name: &str| format!("http://me:secret@{host}/org/model/resolve/main/{name}");
    assert_eq!(fs::read(&fetch(url("a b.bin"), &right).unwrap().files[0].path).unwrap(), bytes(100, 3));
    let wrong = watus_build::artifact::sha256(b"other");
    let cases = [
        (url("missing.bin?sig=secret"), "missing.bin?…"),
        (url("a b.bin"), "does not match its hash (from http://127.0.0.1"),
        (url(".."), "would leave the cache"),
        (url("."), "would leave the cache"),
        ("http://me:secret@ho st/x.bin".to_owned(), "cannot fetch http://ho"),
    ];
    for (url, expected) in cases {
        let error = fetch(url.clone(), &wrong).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains("secret"), "{url}: {error}");
    }
    let offline = Fetcher { offline: true, ..world.fetcher() };
    let source = SourcePlan::Url { url: url("x.bin"), sha256: wrong };
    let error = offline.fetch(&source, &mut world.lock()).unwrap_err().to_string();
    assert!(error.contains("x.bin is not in the cache") && !error.contains("secret"), "{error}");
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let world = World::new();
    let pipe = world.folder.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    for sha256 in [None, Some("0".repeat(64))] {
        let source = SourcePlan::Path { path: pipe.clone(), sha256 };
        let error = world.fetcher().fetch(&source, &mut world.lock()).unwrap_err().to_string();
        assert!(error.contains("it is a pipe, not a file") && error.contains("hint: "), "{error}");
    }
    assert!(Lock::open(&pipe).unwrap_err().to_string().contains("it is a pipe, not a file"));
    // A folder's files are those that are files.
    let folder = SourcePlan::Path { path: world.folder.path().to_owned(), sha256: None };
    assert!(world.fetcher().fetch(&folder, &mut world.lock()).unwrap().files.is_empty());
}

#[test]
fn pip_is_given_a_package_and_no_option() {
    let world = World::new();
    let cases = [
        ("--requirement", "1.0"),
        ("-r", "1.0"),
        ("", "1.0"),
        ("p", ""),
        ("p", "1.0 -r x"),
        ("p", "*"),
        ("./p", "1.0"),
    ];
    for (package, version) in cases {
        let source =
            SourcePlan::Pypi { package: package.into(), version: version.into(), file: "f".into(), sha256: None };
        let error = world.fetcher().fetch(&source, &mut world.lock()).unwrap_err().to_string();
        assert!(error.contains("no package with one exact version"), "{package} {version}: {error}");
    }
}

#[test]
fn nothing_beside_a_recipe_is_run_by_python() {
    let scratch = tempfile::tempdir().unwrap();
    let run = "open('was_run', 'w').close()\n";
    // What Python would import from the folder it starts in, and what pip would be told to build.
    for name in ["pip.py", "sitecustomize.py", "setup.py"] {
        fs::write(scratch.path().join(name), run).unwrap();
    }
    fs::write(scratch.path().join("more.txt"), ".\n").unwrap();
    let recipe =
        "version: 1\nname: m\nkind: onnx\nsource: { pypi: no-such-package, package_version: '1.0', file: m.onnx }\n";
    fs::write(scratch.path().join("m.yaml"), recipe).unwrap();
    let mut command = support::watus(scratch.path());
    command.env("PIP_NO_INDEX", "1").env("PIP_REQUIREMENT", scratch.path().join("more.txt"));
    let (code, _, stderr) = support::output(command.args(["fetch", "m.yaml"]));
    assert!(code != 0 && stderr.contains("pip could not download no-such-package==1.0"), "{stderr}");
    let ran: Vec<String> = support::tree(scratch.path()).into_iter().filter(|name| name.ends_with("was_run")).collect();
    assert_eq!(ran, Vec::<String>::new());
}

/// JetPack's Python is 3.8 or 3.10: what is only taken out of a wheel must not ask for more.
#[test]
fn a_wheel_for_a_newer_python_gives_its_file() {
    use std::io::Write as _;
    let scratch = tempfile::tempdir().unwrap();
    let wheel = scratch.path().join("far_ahead-1.0-py3-none-any.whl");
    let mut archive = zip::ZipWriter::new(fs::File::create(&wheel).unwrap());
    let metadata = "Metadata-Version: 2.1\nName: far-ahead\nVersion: 1.0\nRequires-Python: >=3.13\n";
    let files = [
        ("far_ahead/m.onnx", "weights"),
        ("far_ahead-1.0.dist-info/METADATA", metadata),
        ("far_ahead-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
        ("far_ahead-1.0.dist-info/RECORD", ""),
    ];
    for (name, text) in files {
        archive.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(text.as_bytes()).unwrap();
    }
    archive.finish().unwrap();
    let recipe = "version: 1\nname: m\nkind: onnx\nsource: { pypi: far-ahead, package_version: '1.0', file: far_ahead/m.onnx }\n";
    fs::write(scratch.path().join("m.yaml"), recipe).unwrap();
    let mut command = support::watus(scratch.path());
    command.env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", scratch.path());
    let (code, _, stderr) = support::output(command.args(["fetch", "m.yaml"]));
    assert_eq!(code, 0, "{stderr}");
    let brought = support::tree(scratch.path()).into_iter().find(|name| name.ends_with("m.onnx")).unwrap();
    assert_eq!(fs::read_to_string(scratch.path().join(brought)).unwrap(), "weights");
}

#[test]
fn lock_files_are_guarded_as_recipes_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("watus.lock");
    let cases =
        [(format!("a: {}", "[".repeat(40_000)).into_bytes(), "too many brackets"), (b"\xFF\xFEv\0".to_vec(), "UTF-16")];
    for (bytes, expected) in cases {
        fs::write(&path, bytes).unwrap();
        let error = Lock::open(&path).unwrap_err().to_string();
        assert!(error.contains("watus.lock") && error.contains(expected), "{error}");
    }
    fs::write(&path, "\u{feff}version: 1\nsources: {}\n").unwrap();
    Lock::open(&path).unwrap();
}
