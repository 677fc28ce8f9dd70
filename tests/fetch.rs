//! The real client against a hub that misbehaves: each fault is one clear error or a bounded retry, and the cache never
//! holds a byte that was not checked.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use support::hub::{COMMIT, Fault, Hub};
use support::leftovers;
use watus_build::fetch::{FetchError, Fetched, Fetcher, HubSettings, Lock, Retry};
use watus_build::progress::Silent;
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
            retry: Retry { attempts: 4, pause: Duration::from_millis(5), longest: Duration::from_secs(2) },
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
