//! `kill -9` at twenty random moments of fetch and build, then a rerun: the right result each time, nothing left behind.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use support::hub::Hub;
use support::{leftovers, onnx_recipe, output, tensorrt_or_skip, watus};
use watus_build::tensor::SplitMix64;

#[test]
fn killed_at_random_moments_a_rerun_is_right() {
    if !tensorrt_or_skip("killed_at_random_moments_a_rerun_is_right") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let model = support::yolov8n::yolov8n(&scratch.path().join("m.onnx"), 64, 3).unwrap().to_bytes().unwrap();
    let hub = Hub::start(&[("model.onnx", model.clone(), true), ("config.json", b"{}".to_vec(), false)]);
    hub.pace(Duration::from_micros(300));
    let recipe = "version: 1\nname: killed\nkind: onnx\nsource: { hub: org/model, files: ['*'] }\n";
    fs::write(scratch.path().join("killed.yaml"), recipe).unwrap();
    let command = || {
        let mut command = watus(scratch.path());
        command.env("HF_ENDPOINT", &hub.endpoint).args(["build", "killed.yaml"]);
        command
    };
    // How long an undisturbed run takes here decides what "random moment" means.
    let start = Instant::now();
    let (code, _, stderr) = output(&mut command());
    assert_eq!(code, 0, "{stderr}");
    let whole = start.elapsed();

    let mut random = SplitMix64(0xdead);
    let mut killed = 0;
    for round in 0..20 {
        let _ = fs::remove_dir_all(scratch.path().join("engines"));
        if round % 2 == 0 {
            let _ = fs::remove_dir_all(scratch.path().join("hf"));
            let _ = fs::remove_file(scratch.path().join("watus.lock"));
        }
        let mut child = command().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(random.below(1000) as f64 / 1000.0));
        killed += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();

        let (code, stdout, stderr) = output(&mut command());
        assert_eq!(code, 0, "round {round}: {stderr}");
        assert!(stdout.starts_with("killed: "), "{stdout}");
        let (code, stdout, _) = output(watus(scratch.path()).args(["verify", "engines/killed"]));
        assert_eq!(code, 0, "round {round}: {stdout}");
        assert_eq!(leftovers(scratch.path()), Vec::<String>::new(), "round {round}");
        let blob = watus_build::artifact::sha256(&model);
        let blob = scratch.path().join("hf/hub/models--org--model/blobs").join(blob);
        assert_eq!(fs::read(blob).unwrap(), model, "round {round}");
    }
    assert!(killed >= 5, "only {killed} of 20 runs were still going when killed");
}

#[test]
fn a_file_that_may_not_grow_is_an_error_and_leaves_nothing() {
    use watus_build::onnx::GraphBuilder;
    use watus_build::tensor::{DType, Tensor, write_npy};
    let scratch = tempfile::tempdir().unwrap();
    let mut graph = GraphBuilder::new("g", 17);
    graph.input("x", DType::Float32, &[Some(65_536)]);
    graph.node_named("Relu", &["x"], &["y"], &[]);
    graph.output("y", DType::Float32, &[Some(65_536)]);
    let model = graph.finish(&scratch.path().join("g.onnx")).unwrap();
    fs::write(scratch.path().join("g.onnx"), model.to_bytes().unwrap()).unwrap();
    let x = Tensor::seeded(DType::Float32, vec![65_536], 1).unwrap();
    write_npy(fs::File::create(scratch.path().join("x.npy")).unwrap(), &x).unwrap();
    let arguments = ["run", "g.onnx", "--backend", "cpu", "--input", "x=x.npy", "--save", "out"];
    let mut limited = std::process::Command::new("sh");
    limited.current_dir(scratch.path()).env("WATUS_CACHE_DIR", scratch.path().join("cache"));
    // Far less than the 256 KiB of the output, whatever the shell's blocks are.
    limited.args(["-c", "ulimit -f 16; exec \"$0\" \"$@\""]).arg(watus(scratch.path()).get_program()).args(arguments);
    let (code, stdout, stderr) = output(&mut limited);
    assert_eq!((code, stderr.contains("cannot write out/y.npy")), (1, true), "{stdout}{stderr}");
    assert_eq!(leftovers(scratch.path()), Vec::<String>::new());
    assert!(!scratch.path().join("out/y.npy").exists());
}

#[test]
fn ctrl_c_ends_a_build_cleanly() {
    if !tensorrt_or_skip("ctrl_c_ends_a_build_cleanly") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let model = support::yolov8n::yolov8n(&scratch.path().join("m.onnx"), 640, 3).unwrap();
    onnx_recipe(scratch.path(), "m", &model);
    let mut child = watus(scratch.path()).args(["build", "m.yaml"]).stderr(Stdio::piped()).spawn().unwrap();
    // Wait for the build itself.
    use std::io::{BufRead, BufReader, Read};
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("building") {
        line.clear();
        assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "ended before building");
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let status = child.wait().unwrap();
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert_eq!(status.code(), Some(130), "{rest}");
    assert!(rest.contains("cancelled"), "{rest}");
    assert_eq!(leftovers(scratch.path()), Vec::<String>::new());
    assert!(!scratch.path().join("engines/m").exists());
}

#[test]
fn a_build_killed_for_memory_says_so_and_what_to_do() {
    if !tensorrt_or_skip("a_build_killed_for_memory_says_so_and_what_to_do") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let model = support::yolov8n::yolov8n(&scratch.path().join("m.onnx"), 640, 3).unwrap();
    onnx_recipe(scratch.path(), "m", &model);
    let child = watus(scratch.path()).args(["build", "m.yaml"]).stderr(Stdio::piped()).spawn().unwrap();
    // What the kernel does to a process that takes too much: SIGKILL, to the build alone.
    let builder = loop {
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let found = fs::read_to_string(children).unwrap();
        if let Some(pid) = found.split_whitespace().next() {
            break pid.parse().unwrap();
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    rustix::process::kill_process(rustix::process::Pid::from_raw(builder).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    let ended = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(5), "{stderr}");
    assert!(stderr.contains("most likely because memory ran out") && stderr.contains("workspace_mib"), "{stderr}");
    assert_eq!(leftovers(scratch.path()), Vec::<String>::new());
}
