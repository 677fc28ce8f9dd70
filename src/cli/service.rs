//! `service`: installs servers as systemd units, one for each engine.

mod unit;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use super::{Exit, print, serve, upgrade};
use crate::artifact::write_file;
use crate::confined;
use crate::diagnostic::Diagnostic;

/// Run servers from boot as systemd services
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Install, enable and start watus-build@NAME.service, the unit of this engine
    Install(Box<Install>),
    /// Stop services and remove their units
    Uninstall {
        /// Engine name [default: all engines]
        name: Option<String>,
    },
    /// Print whether services run
    Status {
        /// Engine name [default: all engines]
        name: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
struct Install {
    /// User that the service runs as [default: the user who called sudo]
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Print the unit and change nothing
    #[arg(long)]
    print: bool,
    #[command(flatten)]
    serve: serve::Args,
}

/// Directory of the administrator's units.
const FOLDER: &str = "/etc/systemd/system";

pub(super) fn execute(args: Args) -> anyhow::Result<Exit> {
    let folder = Path::new(FOLDER);
    match args.action {
        Action::Install(args) => install(&args, folder),
        Action::Uninstall { name } => uninstall(name.as_deref(), folder),
        Action::Status { name } => status(name.as_deref(), folder),
    }
}

/// An installed unit that `install` wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Installed {
    unit: String,
    /// Engine directory and port; `None` if the unit cannot be parsed.
    serves: Option<(String, u16)>,
}

impl Installed {
    /// The unit's name for messages: "watus-build@x.service (/engines/x at port 8080)".
    fn description(&self) -> String {
        match &self.serves {
            Some((engine, port)) => format!("{} ({engine} at port {port})", self.unit),
            None => self.unit.clone(),
        }
    }
}

/// The installed units of ours, each with the engine directory that it serves.
pub(super) fn served() -> Vec<(String, String)> {
    let units = installed(Path::new(FOLDER)).into_iter();
    units.filter_map(|unit| Some((unit.unit, unit.serves?.0))).collect()
}

/// The installed units of ours in `folder`, sorted by name. Other programs' units are left out.
fn installed(folder: &Path) -> Vec<Installed> {
    let mut units = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let unit = entry.file_name().to_string_lossy().into_owned();
        if unit != unit::SINGLE && !(unit.starts_with(unit::PREFIX) && unit.ends_with(".service")) {
            continue;
        }
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        if text.starts_with(unit::HEADER) {
            units.push(Installed { unit, serves: unit::serves(&text) });
        }
    }
    units.sort_by(|a, b| a.unit.cmp(&b.unit));
    units
}

/// The units of ours that a new unit replaces. Another program's unit of that name, or a taken port, is an error.
fn replaced<'a>(there: &'a [Installed], folder: &Path, unit: &str, port: u16) -> anyhow::Result<Vec<&'a Installed>> {
    let (replaced, others): (Vec<&Installed>, Vec<&Installed>) =
        there.iter().partition(|old| old.unit == unit || old.unit == unit::SINGLE);
    // Port 0 is a free one.
    let same = |old: &&&Installed| port != 0 && old.serves.as_ref().is_some_and(|(_, taken)| *taken == port);
    if let Some(other) = others.iter().find(same) {
        bail!(
            Diagnostic::new(format!("{} has this port already", other.description()))
                .with_help("choose another with --port")
        );
    }
    let path = folder.join(unit);
    if path.symlink_metadata().is_ok() && !replaced.iter().any(|old| old.unit == unit) {
        bail!(
            Diagnostic::new(format!("{} is there, and watus-build did not write it", path.display()))
                .with_help("move it away")
        );
    }
    Ok(replaced)
}

fn install(args: &Install, folder: &Path) -> anyhow::Result<Exit> {
    let (engine, _) = serve::language_model(&args.serve.engine)?;
    let name = &engine.manifest.name;
    let unit = unit::name(name)?;
    if args.serve.rebuild && args.serve.recipe.is_none() && engine.recipe().is_none() {
        return Err(upgrade::no_recipe(&engine, "is to be built again at need").into());
    }
    let text = unit::text(args, name)?;
    if args.print {
        print(text.trim_end())?;
        return Ok(Exit::Success);
    }
    needs_root("install …")?;
    // Before anything is written.
    if !has_systemd() {
        bail!(
            Diagnostic::new("there is no systemctl: this machine does not use systemd")
                .with_help("`--print` shows the unit")
        )
    }
    let there = installed(folder);
    let replaced = replaced(&there, folder, &unit, args.serve.port)?;
    let path = folder.join(&unit);
    write_file(&path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    for old in replaced {
        if old.unit == unit {
            print(format!("replaces {}", old.description()))?;
        } else {
            remove(folder, old)?;
            print(format!("{} is stopped and removed: each engine has a unit of its own now", old.description()))?;
        }
    }
    systemctl(&["daemon-reload"], &unit)?;
    systemctl(&["enable", &unit], &unit)?;
    // Not `enable --now`: one that runs has the old engine.
    systemctl(&["restart", &unit], &unit)?;
    print(format!(
        "{unit} runs, and will after every boot. `journalctl -u '{unit}' -f` shows its log, `curl \
         http://localhost:{}/health/ready` whether the model is loaded.",
        args.serve.port
    ))?;
    if text.contains("\nUser=root\n") {
        print("It runs as root: `--user NAME` lets a user run it who may less.")?;
    }
    Ok(Exit::Success)
}

/// The installed units to act on: the one of the engine `name`, or all.
fn chosen<'a>(there: &'a [Installed], name: Option<&str>) -> anyhow::Result<Vec<&'a Installed>> {
    let Some(name) = name else { return Ok(there.iter().collect()) };
    let unit = unit::name(name)?;
    let found: Vec<&Installed> = there.iter().filter(|old| old.unit == unit || old.unit == name).collect();
    if found.is_empty() {
        let others: Vec<String> = there.iter().map(Installed::description).collect();
        let others = if others.is_empty() { "nothing".to_owned() } else { others.join(", ") };
        bail!(Diagnostic::new(format!("{unit} is not installed")).with_help(format!("installed is {others}")));
    }
    Ok(found)
}

fn uninstall(name: Option<&str>, folder: &Path) -> anyhow::Result<Exit> {
    let there = installed(folder);
    let chosen = chosen(&there, name)?;
    if chosen.is_empty() {
        print("no engine is installed as a service")?;
        return Ok(Exit::Success);
    }
    needs_root("uninstall")?;
    for old in chosen {
        remove(folder, old)?;
        print(format!("{} is stopped and removed; engine and keys are where they were", old.description()))?;
    }
    if has_systemd() {
        systemctl(&["daemon-reload"], "systemd")?;
    }
    Ok(Exit::Success)
}

fn has_systemd() -> bool {
    which::which("systemctl").is_ok()
}

/// Stops a unit of ours and removes its file.
fn remove(folder: &Path, old: &Installed) -> anyhow::Result<()> {
    if has_systemd() {
        systemctl(&["disable", "--now", &old.unit], &old.unit)?;
    }
    let path = folder.join(&old.unit);
    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
}

fn status(name: Option<&str>, folder: &Path) -> anyhow::Result<Exit> {
    let there = installed(folder);
    let chosen = chosen(&there, name)?;
    if chosen.is_empty() {
        let none = Diagnostic::new("no engine is installed as a service");
        print(none.with_help(format!("sudo {} service install ENGINE", program())))?;
        return Ok(Exit::Failure);
    }
    let mut command = Command::new("systemctl");
    command.args(["status", "--no-pager", "--lines", "10", "--"]).args(chosen.iter().map(|old| &old.unit));
    let status = command.status().context("cannot run systemctl")?;
    Ok(if status.success() { Exit::Success } else { Exit::Failure })
}

/// The command to call this program by in hints: its name if sudo finds it in its few folders, else its path
/// (`~/.cargo/bin` is not among them).
fn program() -> String {
    let path = confined::file().map_or_else(|| "watus-build".to_owned(), |path| path.display().to_string());
    let plain = |c: char| c.is_alphanumeric() || "/-_.+@".contains(c);
    if path.chars().all(plain) { path } else { format!("'{}'", path.replace('\'', "'\\''")) }
}

fn needs_root(action: &str) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            Diagnostic::new(format!("this changes {FOLDER}, which is root's"))
                .with_help(format!("sudo {} service {action}", program()))
        );
    }
    Ok(())
}

fn systemctl(arguments: &[&str], unit: &str) -> anyhow::Result<()> {
    let run = Command::new("systemctl").args(arguments).status();
    let status = run.map_err(|error| {
        Diagnostic::new(format!("cannot run systemctl: {error}")).with_help("this machine does not seem to use systemd")
    })?;
    if !status.success() {
        bail!(
            Diagnostic::new(format!("`systemctl {}` failed", arguments.join(" ")))
                .with_help(format!("`journalctl -u '{unit}' -n 30` says why"))
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_install_knows_the_first() {
        let scratch = tempfile::tempdir().unwrap();
        let write = |unit: &str, header: &str, engine: &str, port: u16| {
            let text = format!("{header}.\n[Service]\nExecStart=/x/watus-build serve {engine} --port={port}\n");
            fs::write(scratch.path().join(unit), text).unwrap();
        };
        write("watus-build.service", unit::HEADER, "/engines/old", 8080);
        write("watus-build@a.service", unit::HEADER, "/engines/a", 8081);
        write("watus-build@b.service", unit::HEADER, "/engines/b", 8082);
        write("watus-build@mine.service", "# mine", "/engines/mine", 8083);
        write("nginx.service", unit::HEADER, "/engines/x", 8084);
        let there = installed(scratch.path());
        let names: Vec<&str> = there.iter().map(|old| old.unit.as_str()).collect();
        assert_eq!(names, ["watus-build.service", "watus-build@a.service", "watus-build@b.service"]);

        type Case<'a> = (&'a str, u16, Result<&'a [&'a str], &'a str>);
        let cases: [Case<'_>; 6] = [
            ("watus-build@c.service", 8080, Ok(&["watus-build.service (/engines/old at port 8080)"])),
            (
                "watus-build@a.service",
                8081,
                Ok(&[
                    "watus-build.service (/engines/old at port 8080)",
                    "watus-build@a.service (/engines/a at port 8081)",
                ]),
            ),
            ("watus-build@c.service", 8081, Err("watus-build@a.service (/engines/a at port 8081) has this port")),
            ("watus-build@a.service", 8082, Err("watus-build@b.service")),
            ("watus-build@mine.service", 9000, Err("did not write it")),
            ("watus-build@c.service", 0, Ok(&["watus-build.service (/engines/old at port 8080)"])),
        ];
        for (unit, port, expected) in cases {
            let found = replaced(&there, scratch.path(), unit, port);
            match (found, expected) {
                (Ok(found), Ok(told)) => {
                    assert_eq!(found.iter().map(|old| old.description()).collect::<Vec<_>>(), told, "{unit} {port}");
                }
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (found, _) => panic!("{unit} at {port}: {found:?}"),
            }
        }
    }

    #[test]
    fn units_are_chosen_by_the_engines_name() {
        let unit = |unit: &str| Installed { unit: unit.to_owned(), serves: None };
        let there = [unit("watus-build.service"), unit("watus-build@a.service")];
        let count = |name| chosen(&there, name).map(|units| units.len()).ok();
        assert_eq!([count(None), count(Some("a")), count(Some("watus-build.service"))], [Some(2), Some(1), Some(1)]);
        assert_eq!([count(Some("b")), count(Some("--all")), count(Some(""))], [None; 3]);
        assert_eq!(chosen(&[], None).unwrap().len(), 0);
    }
}
