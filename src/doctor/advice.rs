//! Says remedies so that they can be followed where they are read: a container neither changes its host nor keeps what is
//! installed in it.

use super::Platform;

/// How a container gets the GPU of a Jetson; `--gpus` alone mounts nothing of Jetson Linux (flashrt-project/FlashRT#8,
/// read 2026-11-27).
pub(super) const NVIDIA_RUNTIME: &str = "start the container with --runtime nvidia --gpus all";

/// A command that changes the machine itself.
pub(super) fn on_host(platform: &Platform, command: &str) -> String {
    match platform.container {
        true => format!("on the host: {command}"),
        false => command.to_owned(),
    }
}

/// A command for root that changes the file system, in a container that of its image.
pub(super) fn here(platform: &Platform, command: &str) -> String {
    match platform.container {
        true => format!("in its Dockerfile: RUN {command}"),
        false => format!("sudo {command}"),
    }
}

/// Installs packages.
pub(super) fn install(platform: &Platform, packages: &str) -> String {
    match platform.container {
        true => here(platform, &format!("apt-get update && apt-get install -y {packages}")),
        false => here(platform, &format!("apt install {packages}")),
    }
}

/// Installs packages again that have lost files.
pub(super) fn reinstall(platform: &Platform, packages: &str) -> String {
    install(platform, &format!("--reinstall {packages}"))
}

/// Brings all packages to the versions that belong together.
pub(super) fn upgrade(platform: &Platform) -> &'static str {
    match platform.container {
        true => "take an image that is made for this TensorRT, such as JetPack's own",
        false => "sudo apt update && sudo apt full-upgrade",
    }
}
