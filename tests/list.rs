//! `list` and `remove`: what is shown with which sizes, what goes, and what stays whatever is asked for.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::{output, repository, tree, watus};

const OLD: &str = "0123456789abcdef0123456789abcdef01234567";
const NEW: &str = "fedcba9876543210fedcba9876543210fedcba98";

fn write(path: &Path, bytes: usize) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, vec![b'x'; bytes]).unwrap();
}

/// An engine directory of an earlier version of the tool (a manifest of tests/data/engines) with `more` files of some bytes.
fn engine(folder: &Path, more: &[(&str, usize)]) {
    let text = fs::read_to_string(repository().join("tests/data/engines/onnx.json")).unwrap();
    let mut manifest: Value = serde_json::from_str(&text).unwrap();
    manifest["tool"] = "watus-build 0.0.9".into();
    for (name, bytes) in [("model.onnx", 10), ("onnx.engine", 90)].iter().chain(more) {
        write(&folder.join(name), *bytes);
        manifest["files"][*name] = json!({ "sha256": "0".repeat(64), "bytes": bytes });
    }
    fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
}

/// A repository of two revisions that share a file of 1000 bytes; `main` is the newer one.
fn repository_in(hub: &Path) -> PathBuf {
    let folder = hub.join("models--org--model");
    for (blob, bytes) in [("shared", 1000), ("old", 200), ("new", 50)] {
        write(&folder.join("blobs").join(blob), bytes);
    }
    for (commit, own) in [(OLD, "old"), (NEW, "new")] {
        let snapshot = folder.join("snapshots").join(commit);
        fs::create_dir_all(snapshot.join("deep")).unwrap();
        symlink("../../blobs/shared", snapshot.join("weights")).unwrap();
        symlink(format!("../../../blobs/{own}"), snapshot.join("deep/config")).unwrap();
        symlink("/etc/hostname", snapshot.join("out")).unwrap();
    }
    write(&folder.join("refs/main"), 0);
    fs::write(folder.join("refs/main"), NEW).unwrap();
    folder
}

/// Everything that there can be, below a scratch folder.
fn furnish(scratch: &Path) {
    engine(&scratch.join("engines/a"), &[("images/p.png", 7)]);
    engine(&scratch.join("elsewhere/b"), &[]);
    fs::create_dir_all(scratch.join("engines/torn")).unwrap();
    fs::write(scratch.join("engines/torn/manifest.json"), "{ \"format\": 99, \"tool\": \"watus-build 9\" }").unwrap();
    write(&scratch.join("engines/notes/thesis.tex"), 5);
    write(&scratch.join("engines/.a.staging-1-0/half.engine"), 300);
    write(&scratch.join("engines/.a.staging-old/mine"), 5);
    let repository = repository_in(&scratch.join("hf/hub"));
    // Linked as a build links a store's weights.
    fs::create_dir_all(scratch.join("engines/a/images")).unwrap();
    fs::remove_file(scratch.join("engines/a/images/p.png")).unwrap();
    fs::hard_link(repository.join("blobs/new"), scratch.join("engines/a/images/p.png")).unwrap();
    let cache = scratch.join("cache");
    let hash = "5".repeat(64);
    for (name, bytes) in [
        (format!("url/{hash}/m.onnx"), 20),
        ("pypi/0123456789abcdef/m.pt".to_owned(), 30),
        ("hashes.json".to_owned(), 2),
        (format!("kernels/{hash}.ptx"), 40),
        (format!("kernels/{hash}.rtx"), 60),
        ("timing/TensorRT-10.3.0-Orin-8.7.timing".to_owned(), 80),
        ("mine.txt".to_owned(), 5),
        ("kernels/mine.ptx".to_owned(), 5),
        (format!("url/{}/m.onnx.incomplete", "6".repeat(64)), 9),
    ] {
        write(&cache.join(name), bytes);
    }
}

fn inventory(scratch: &Path, more: &[&str]) -> Value {
    let (code, stdout, stderr) = output(watus(scratch).args(["list", "--json"]).args(more));
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    serde_json::from_str(&stdout).unwrap()
}

#[test]
fn everything_is_listed_with_its_size_and_nothing_else() {
    let scratch = tempfile::tempdir().unwrap();
    let (code, stdout, _) = output(watus(scratch.path()).arg("list"));
    assert_eq!((code, stdout.contains("nothing is built in `engines`, and nothing is cached")), (0, true), "{stdout}");
    furnish(scratch.path());
    let seen = inventory(scratch.path(), &["elsewhere"]);
    let manifest = |path: &str| fs::metadata(scratch.path().join(path).join("manifest.json")).unwrap().len();
    let engines: Vec<_> = seen["engines"].as_array().unwrap().iter().collect();
    let sizes: Vec<_> = engines
        .iter()
        .map(|engine| {
            let bytes = |field: &str| engine[field].as_u64().unwrap();
            (engine["path"].as_str().unwrap(), bytes("bytes"), bytes("freed_bytes"))
        })
        .collect();
    let (a, b) = (manifest("engines/a"), manifest("elsewhere/b"));
    let torn = manifest("engines/torn");
    // The picture of `a` is a file of the hub's cache as well.
    assert_eq!(
        sizes,
        [("engines/a", 150 + a, 100 + a), ("engines/torn", torn, torn), ("elsewhere/b", 100 + b, 100 + b)]
    );
    assert_eq!(
        (&engines[0]["kind"], &engines[0]["precision"], &engines[0]["tool"]),
        (&"onnx".into(), &"fp32".into(), &"watus-build 0.0.9".into())
    );
    assert_eq!((&engines[0]["tensorrt"], &engines[0]["gpu"]), (&"TensorRT-RTX 1.6.1".into(), &Value::Null));
    assert!(engines[0]["built"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(engines[0]["proof"], json!({ "outcome": "never-verified" }));
    let fit = &engines[0]["fit"];
    let why = fit["why"].as_str().unwrap();
    assert_eq!(
        (&fit["outcome"], why.starts_with("was built by watus-build 0.0.9, this is ")),
        (&"misfit".into(), true),
        "{fit}"
    );
    assert_eq!(fit["rebuild"], "`watus-build build RECIPE`");
    assert!(
        engines[1]["problem"]["message"].as_str().unwrap().contains("format 99 is not supported"),
        "{}",
        engines[1]
    );
    let cached: Vec<_> = seen["cache"].as_array().unwrap().iter().collect();
    let sizes: Vec<_> = cached
        .iter()
        .map(|item| (item["kind"].as_str().unwrap(), item["name"].as_str().unwrap(), item["bytes"].as_u64().unwrap()))
        .collect();
    assert_eq!(
        sizes,
        [
            ("hub", "hub:org/model", 1250 + 40),
            ("url", "url:555555555555/m.onnx", 20),
            ("pypi", "pypi:0123456789ab/m.pt", 30),
            ("hashes", "hashes", 2),
            ("kernels", "kernels", 40),
            ("rtx", "rtx", 60),
            ("timing", "timing", 80),
            ("leftovers", "leftovers", 309),
        ]
    );
    assert_eq!(cached[0]["freed_bytes"], 1240, "{}", cached[0]);
    let revisions = cached[0]["revisions"].as_array().unwrap();
    let revision = |index: usize| {
        let revision: &Value = &revisions[index];
        (
            revision["commit"].as_str().unwrap(),
            &revision["refs"],
            revision["bytes"].as_u64(),
            revision["freed_bytes"].as_u64(),
        )
    };
    assert_eq!(revision(0), (OLD, &json!([]), Some(1200), Some(200)));
    assert_eq!(revision(1), (NEW, &json!(["main"]), Some(1050), Some(0)));
    // The link that leads out of the repository is none of its files.
    assert_eq!(
        revisions[1]["files"],
        json!([{ "name": "deep/config", "bytes": 50 }, { "name": "weights", "bytes": 1000 }])
    );
    let sum = (150 + a) + torn + (100 + b) + (1250 + 40) + 20 + 30 + 2 + 40 + 60 + 80 + 309;
    assert_eq!(seen["bytes"], sum - 50, "what has two names counts once");
    let (code, stdout, stderr) = output(watus(scratch.path()).args(["list", "elsewhere/b"]));
    assert_eq!((code, stderr.as_str()), (0, ""));
    for said in [
        "engines in elsewhere\n  b     onnx fp32, ",
        "never verified; does not fit: it was built by watus-build 0.0.9",
        "-> `watus-build build RECIPE -o elsewhere`",
        "    @0123456789ab",
        "    @fedcba987654 (main)",
        "2 revisions; 50 B of it shared with engines",
        "left by work that ended early, in 2 places",
    ] {
        assert!(stdout.contains(said), "no {said:?} in\n{stdout}");
    }
    let (code, _, stderr) = output(watus(scratch.path()).args(["list", "nowhere"]));
    assert_eq!((code, stderr.contains("nowhere: not a folder\n  hint: ")), (1, true), "{stderr}");
}

#[test]
fn what_is_removed_is_gone_and_the_rest_is_as_it_was() {
    let scratch = tempfile::tempdir().unwrap();
    furnish(scratch.path());
    let remove = |arguments: &[&str]| output(watus(scratch.path()).arg("remove").args(arguments));
    let before = tree(scratch.path());
    let (code, stdout, stderr) = remove(&["a", "hub:org/model@main", "--dry-run"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    // The picture of `a` and the new revision's file are one: freed with both.
    assert!(
        stdout.contains("would remove engines/a, ") && stdout.contains("would remove hub:org/model@fedcba987654, 50 B"),
        "{stdout}"
    );
    let manifest = fs::metadata(scratch.path().join("engines/a/manifest.json")).unwrap().len();
    let freed = format!("would free {:.1} kB\n", (150 + manifest) as f64 / 1e3);
    assert!(stdout.ends_with(&freed), "{stdout}");
    let (code, _, stderr) = remove(&["a"]);
    assert_eq!((code, stderr.contains("there is no terminal to ask on\n  hint: --yes ")), (1, true), "{stderr}");
    assert_eq!(tree(scratch.path()), before);
    let gone = |arguments: &[&str], parts: &[&str]| {
        let before = tree(scratch.path());
        let (code, stdout, stderr) = remove(&[arguments, &["--yes"][..]].concat());
        assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}: {stdout}");
        let left = tree(scratch.path());
        let gone: Vec<&String> = before.iter().filter(|name| !left.contains(name)).collect();
        for name in &gone {
            assert!(parts.iter().any(|part| name.starts_with(part)), "{arguments:?} removed {name}");
        }
        for part in parts {
            assert!(gone.iter().any(|name| name.starts_with(part)), "{arguments:?} left {part}");
        }
        stdout
    };
    let hub = "hf/hub/models--org--model";
    let snapshot = format!("{hub}/snapshots/{OLD}");
    let stdout = gone(&["hub:org/model@0123456"], &[snapshot.as_str(), format!("{hub}/blobs/old").as_str()]);
    assert!(stdout.contains("removed hub:org/model@0123456789ab\n200 B freed"), "{stdout}");
    gone(
        &["--cache", "kernels,timing", "--cache", "leftovers"],
        &[
            format!("cache/kernels/{}.ptx", "5".repeat(64)).as_str(),
            "cache/timing/TensorRT-10.3.0-Orin-8.7.timing",
            "engines/.a.staging-1-0",
            format!("cache/url/{}/m.onnx.incomplete", "6".repeat(64)).as_str(),
        ],
    );
    gone(
        &["engines/a/", "torn", "pypi:0123456789ab/m.pt"],
        &["engines/a", "engines/torn", "cache/pypi/0123456789abcdef"],
    );
    gone(&["--in", "elsewhere", "b"], &["elsewhere/b"]);
    // The only revision that is left is the repository.
    gone(
        &["hub:org/model@main", "--cache", "hub,url,rtx,hashes"],
        &[hub, "cache/url", "cache/kernels", "cache/hashes.json"],
    );
    let left = inventory(scratch.path(), &[]);
    assert_eq!((&left["engines"], &left["cache"]), (&json!([]), &json!([])));
    for kept in ["engines/notes/thesis.tex", "engines/.a.staging-old/mine", "cache/mine.txt", "cache/kernels/mine.ptx"]
    {
        assert!(scratch.path().join(kept).is_file(), "{kept}");
    }
    let (code, stdout, _) = remove(&["--cache", "hub", "--yes"]);
    assert_eq!((code, stdout.as_str()), (0, "nothing of that kind is cached\n"));
}

#[test]
fn what_is_used_or_not_listed_stays() {
    type Prepare = fn(&Path) -> Option<File>;
    let cases: [(&[&str], Prepare, &str); 12] = [
        (&["nobody"], |_| None, "`nobody` is neither a listed engine"),
        (&["elsewhere/b"], |_| None, "--in DIR looks for engines in another folder"),
        (&["notes"], |_| None, "`notes` is neither a listed engine"),
        (&["../engines/../../etc"], |_| None, "is neither a listed engine"),
        (
            &["hub:org/model@v9"],
            |_| None,
            "hub:org/model has no revision `v9` here\n  hint: it has 0123456789ab, fedcba987654",
        ),
        (
            &["a", "--in", "elsewhere"],
            |scratch| {
                engine(&scratch.join("elsewhere/a"), &[]);
                None
            },
            "2 engines are called `a`: engines/a, elsewhere/a\n  hint: give the path of one",
        ),
        (
            &["a"],
            |scratch| {
                let folder = File::open(scratch.join("engines/a")).unwrap();
                folder.lock_shared().unwrap();
                Some(folder)
            },
            "engines/a is in use: a program runs it\n  hint: stop the `serve` or `run`",
        ),
        (
            &["a"],
            |scratch| {
                let staged = scratch.join("engines/.a.staging-7-7");
                fs::create_dir(&staged).unwrap();
                let staged = File::open(staged).unwrap();
                staged.lock().unwrap();
                Some(staged)
            },
            "engines/a is in use: a build is about to replace it",
        ),
        (
            &["a", "torn"],
            |scratch| {
                write(&scratch.join("engines/torn/thesis.tex"), 5);
                None
            },
            "engines/torn holds `thesis.tex`, which watus-build did not put there; it was left as it is",
        ),
        (
            &["link"],
            |scratch| {
                symlink(scratch.join("elsewhere/b"), scratch.join("engines/link")).unwrap();
                None
            },
            "engines/link is a link to ",
        ),
        (
            &["hub:org/model"],
            |scratch| {
                let blobs = scratch.join("hf/hub/models--org--model/blobs");
                let _ = fs::remove_file(scratch.join("engines/a/images/p.png"));
                symlink(blobs.join("new"), scratch.join("engines/a/images/p.png")).unwrap();
                None
            },
            "hub:org/model is needed: engines/a has links to its files\n  hint: remove that engine as well",
        ),
        (
            &["--cache", "hub"],
            |scratch| {
                let part = scratch.join("hf/hub/models--org--model/blobs/more.incomplete");
                write(&part, 1);
                let part = File::open(part).unwrap();
                part.lock().unwrap();
                Some(part)
            },
            "hub:org/model is in use: something is being written to ",
        ),
    ];
    for (arguments, prepare, said) in cases {
        let scratch = tempfile::tempdir().unwrap();
        furnish(scratch.path());
        let held = prepare(scratch.path());
        let before = tree(scratch.path());
        for more in [&["--yes"][..], &["--dry-run"]] {
            let (code, stdout, stderr) = output(watus(scratch.path()).arg("remove").args(arguments).args(more));
            assert_eq!((code, stdout.as_str(), stderr.contains(said)), (1, "", true), "{arguments:?}: {stderr}");
            assert!(stderr.contains("\n  hint: "), "{arguments:?}: {stderr}");
            assert_eq!(tree(scratch.path()), before, "{arguments:?}: all stays, also what could have gone");
        }
        drop(held);
    }
    // With the engine that has the links, the repository goes.
    let scratch = tempfile::tempdir().unwrap();
    furnish(scratch.path());
    fs::remove_file(scratch.path().join("engines/a/images/p.png")).unwrap();
    let blob = scratch.path().join("hf/hub/models--org--model/blobs/new");
    symlink(&blob, scratch.path().join("engines/a/images/p.png")).unwrap();
    let (code, stdout, stderr) = output(watus(scratch.path()).args(["remove", "hub:org/model", "a", "--yes"]));
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    assert!(!blob.exists() && !scratch.path().join("engines/a").exists());
    let (code, _, stderr) = output(watus(scratch.path()).args(["remove", "--yes"]));
    assert_eq!((code, stderr.contains("NAME")), (2, true), "{stderr}");
}
