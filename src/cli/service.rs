//! `service`: the server as a systemd unit.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::{Exit, print, serve};
use crate::artifact::write_file;

/// Run the server from boot, as a systemd service
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Write the unit, enable and start it
    Install(Box<Install>),
    /// Stop the service and remove its unit
    Uninstall,
    /// Say whether it runs
    Status,
}

#[derive(Debug, clap::Args)]
struct Install {
    /// Who runs it [default: whoever called sudo]
    #[arg(long)]
    user: Option<String>,
    /// Show the unit, change nothing
    #[arg(long)]
    print: bool,
    #[command(flatten)]
    serve: serve::Args,
}

const UNIT: &str = "watus-build.service";

fn unit_path() -> PathBuf {
    Path::new("/etc/systemd/system").join(UNIT)
}

pub(super) fn execute(args: Args) -> anyhow::Result<Exit> {
    match args.action {
        Action::Install(install) => {
            let unit = unit(&install)?;
            if install.print {
                print(unit.trim_end())?;
                return Ok(Exit::Success);
            }
            needs_root("install")?;
            write_file(&unit_path(), unit.as_bytes())
                .with_context(|| format!("cannot write {}", unit_path().display()))?;
            systemctl(&["daemon-reload"])?;
            systemctl(&["enable", "--now", UNIT])?;
            print(format!(
                "{UNIT} runs, and will after every boot. `journalctl -u {UNIT} -f` shows its log, `curl \
                 http://localhost:{}/health/ready` whether the model is loaded.",
                install.serve.port
            ))?;
            Ok(Exit::Success)
        }
        Action::Uninstall => {
            if !unit_path().exists() {
                print(format!("{UNIT} is not installed"))?;
                return Ok(Exit::Success);
            }
            needs_root("uninstall")?;
            systemctl(&["disable", "--now", UNIT])?;
            std::fs::remove_file(unit_path()).with_context(|| format!("cannot remove {}", unit_path().display()))?;
            systemctl(&["daemon-reload"])?;
            print(format!("{UNIT} is stopped and removed; engines and keys are where they were"))?;
            Ok(Exit::Success)
        }
        Action::Status => {
            if !unit_path().exists() {
                print(format!("{UNIT} is not installed\n  hint: sudo watus-build service install ENGINE"))?;
                return Ok(Exit::Failure);
            }
            let status = Command::new("systemctl").args(["status", "--no-pager", "--lines", "10", UNIT]).status();
            Ok(if status.context("cannot run systemctl")?.success() { Exit::Success } else { Exit::Failure })
        }
    }
}

fn needs_root(action: &str) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("this changes {}, which is root's\n  hint: sudo watus-build service {action} …", unit_path().display());
    }
    Ok(())
}

fn systemctl(arguments: &[&str]) -> anyhow::Result<()> {
    let run = Command::new("systemctl").args(arguments).status();
    let status = run.context("cannot run systemctl\n  hint: this machine does not seem to use systemd")?;
    if !status.success() {
        bail!("`systemctl {}` failed\n  hint: `journalctl -u {UNIT} -n 30` says why", arguments.join(" "));
    }
    Ok(())
}

/// The unit: only what the server needs, and the GPU.
fn unit(install: &Install) -> anyhow::Result<String> {
    let args = &install.serve;
    let (manifest, _) = serve::language_model(&args.engine)?;
    let absolute = |path: &Path| path.canonicalize().with_context(|| format!("cannot find {}", path.display()));
    let user = install.user.clone().or_else(|| std::env::var("SUDO_USER").ok()).or_else(|| std::env::var("USER").ok());
    let user = user.unwrap_or_else(|| "root".to_owned());
    let mut words = vec![
        absolute(&std::env::current_exe().context("cannot find this program")?)?.display().to_string(),
        "serve".to_owned(),
        absolute(&args.engine)?.display().to_string(),
        format!("--host={}", args.host),
        format!("--port={}", args.port),
        format!("--queue={}", args.queue),
        format!("--timeout={}", args.timeout),
        format!("--drain={}", args.drain),
    ];
    words.extend(args.names.iter().map(|name| format!("--name={name}")));
    if let Some(path) = &args.api_key_file {
        words.push(format!("--api-key-file={}", absolute(path)?.display()));
    }
    words.extend(args.cors_origin.iter().map(|origin| format!("--cors-origin={origin}")));
    words.extend(args.log_prompts.then(|| "--log-prompts".to_owned()));
    if let Some(backend) = clap::ValueEnum::to_possible_value(&args.backend) {
        words.push(format!("--backend={}", backend.get_name()));
    }
    let command = words.iter().map(|word| quote(word)).collect::<Result<Vec<_>, _>>()?.join(" ");
    // A Jetson's GPU is for these groups.
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let has = |name: &&str| groups.lines().any(|line| line.split(':').next() == Some(name));
    let groups = ["video", "render"].into_iter().filter(has).collect::<Vec<_>>().join(" ");
    let library = std::env::var("WATUS_TENSORRT_LIB").ok().filter(|value| !value.is_empty());
    let library = library.map(|path| quote(&format!("WATUS_TENSORRT_LIB={path}"))).transpose()?;
    let library = library.map(|setting| format!("Environment={setting}\n")).unwrap_or_default();
    // Longer than answers get to end, or systemd would cut them off.
    let stop = args.drain + 15;
    Ok(format!(
        "# Written by `watus-build service install`.
[Unit]
Description=watus-build: {name}, for OpenAI's clients
After=network.target
# For ever, not five times: a robot has nobody to start it by hand.
StartLimitIntervalSec=0

[Service]
Type=notify
User={user}
SupplementaryGroups={groups}
ExecStart={command}
{library}Environment=CUDA_CACHE_PATH=/var/cache/watus-build
CacheDirectory=watus-build
Restart=on-failure
RestartSec=5
# Wrong arguments and damaged engines do not mend themselves.
RestartPreventExitStatus=2 6
# Weights are read from disk first.
TimeoutStartSec=15min
TimeoutStopSec={stop}
WatchdogSec=120
# When memory runs out, this program goes first and comes back; the robot's others stay.
OOMScoreAdjust=500
# The GPU is a device: PrivateDevices and MemoryDenyWriteExecute must stay off.
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
UMask=0077

[Install]
WantedBy=multi-user.target
",
        name = manifest.name.replace(['%', '\n'], ""),
    ))
}

/// A word of a unit file (systemd.syntax(7)): quoted, with specifiers and variables taken literally.
fn quote(word: &str) -> anyhow::Result<String> {
    if word.chars().any(char::is_control) {
        bail!("{word:?} holds a control character, which a unit file cannot");
    }
    let escaped = word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    let plain = |c: char| c.is_ascii_alphanumeric() || "/-_.=:,@+".contains(c);
    Ok(if word.chars().all(plain) { word.to_owned() } else { format!("\"{escaped}\"") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_unit_are_quoted() {
        assert_eq!(quote("--port=8080").unwrap(), "--port=8080");
        assert_eq!(quote("/my engines/100%").unwrap(), "\"/my engines/100%%\"");
        assert_eq!(quote("a\"$b\\").unwrap(), "\"a\\\"$$b\\\\\"");
        assert!(quote("a\nExecStart=evil").is_err());
    }
}
