//! Writes and parses the text of a systemd unit: the server of one engine, `watus-build@NAME.service`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::Install;
use crate::confined;
use crate::diagnostic::Diagnostic;

/// First line of every unit of ours, by which they are told from others.
pub(super) const HEADER: &str = "# Written by `watus-build service install`";
/// Prefix of the unit's name.
pub(super) const PREFIX: &str = "watus-build@";
/// Name of the only unit that versions before one-unit-per-engine installed.
pub(super) const SINGLE: &str = "watus-build.service";

/// The constant part of the `[Service]` section.
const CONFINEMENT: &str = "# When memory runs out, this program goes first and comes back; the robot's others stay.
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
";

/// The unit's name for an engine. Characters that unit names cannot hold are escaped as by systemd-escape(1), except
/// dashes, which they can hold.
pub(super) fn name(engine: &str) -> anyhow::Result<String> {
    let mut unit = PREFIX.to_owned();
    for (index, byte) in engine.bytes().enumerate() {
        let plain = byte.is_ascii_alphanumeric() || b":_-".contains(&byte) || (byte == b'.' && index > 0);
        match plain {
            true => unit.push(char::from(byte)),
            false => unit.push_str(&format!("\\x{byte:02x}")),
        }
    }
    unit.push_str(".service");
    // UNIT_NAME_MAX of systemd, with its final zero.
    if engine.is_empty() || unit.len() > 255 {
        bail!(
            Diagnostic::new(format!("`{engine}` cannot be the name of a service"))
                .with_help("give the recipe a short name and build again")
        );
    }
    Ok(unit)
}

/// The text of the unit for the engine called `engine`.
pub(super) fn text(install: &Install, engine: &str) -> anyhow::Result<String> {
    // Longer than answers get to end, or systemd would cut them off.
    let stop = install.serve.drain + 15;
    // A Jetson's GPU is for these groups.
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let has = |name: &&str| groups.lines().any(|line| line.split(':').next() == Some(name));
    let groups = ["video", "render"].into_iter().filter(has).collect::<Vec<_>>().join(" ");
    let rebuilding = if install.serve.rebuild { rebuilding(install)? } else { String::new() };
    // A build failed that would fail again.
    let prevented = if install.serve.rebuild { "2 3 5 6 7 9" } else { "2 3 6 7 9" };
    let start = if install.serve.rebuild { "3h" } else { "15min" };
    Ok(format!(
        "{HEADER}: {unit}
[Unit]
Description=watus-build: {description}, for OpenAI's clients
# The power mode sets how many cores and what clocks there are.
After=network.target nvpmodel.service
# An hour of tries, not five: a robot has nobody to start it by hand, and a driver or a port may come late. What has not
# come by then does not come by trying, and the log should still say what it was.
StartLimitIntervalSec=1h
StartLimitBurst=60

[Service]
Type=notify
User={user}
SupplementaryGroups={groups}
ExecStart={command}
{library}{rebuilding}{state}# Compiled kernels and remembered hashes; homes are read only below.
Environment=WATUS_CACHE_DIR=/var/cache/watus-build
Environment=CUDA_CACHE_PATH=/var/cache/watus-build
CacheDirectory=watus-build
Restart=on-failure
RestartSec=5
# Wrong arguments and recipes, damaged and foreign engines (after an upgrade of JetPack) and missing kernels do not mend
# themselves. A GPU (8) may come late.
RestartPreventExitStatus={prevented}
# Weights are read from disk first; with --rebuild, engines may be built and verified before that.
TimeoutStartSec={start}
TimeoutStopSec={stop}
WatchdogSec=120
{CONFINEMENT}",
        unit = name(engine)?,
        description = engine.replace(['%', '\n', '\\'], ""),
        user = user(install)?,
        command = command(install)?,
        library = setting("WATUS_TENSORRT_LIB")?,
        state = state(install)?.map(|place| place.settings).unwrap_or_default(),
    ))
}

/// The line that passes on a path which this process has in its environment; empty if it has none.
fn setting(name: &str) -> anyhow::Result<String> {
    let Some(path) = std::env::var_os(name).filter(|value| !value.is_empty()) else { return Ok(String::new()) };
    let setting = quote(&format!("{name}={}", text_of(Path::new(&path))?))?;
    Ok(format!("Environment={setting}\n"))
}

/// What building needs that serving does not: the caches with the model's sources, and a place to write.
fn rebuilding(install: &Install) -> anyhow::Result<String> {
    let engine = &install.serve.engine;
    let engine = engine.canonicalize().with_context(|| format!("cannot find {}", engine.display()))?;
    let folder = quote(&text_of(engine.parent().unwrap_or(Path::new("/")))?)?;
    let sources = ["HF_HOME", "HF_HUB_CACHE", "OLLAMA_MODELS"].map(setting);
    let sources = sources.into_iter().collect::<anyhow::Result<String>>()?;
    Ok(format!("{sources}# --rebuild publishes the new engine here, in one step.\nReadWritePaths={folder}\n"))
}

/// Folder of systemd for what services keep.
const STATE: &str = "/var/lib/";

/// Where the service keeps its state.
struct StatePlace {
    /// The folder.
    path: String,
    /// The lines by which the service may write there.
    settings: String,
}

/// The place of `--state`. Below /var/lib systemd makes the folder and gives it to the service's user; elsewhere it must be
/// there.
fn state(install: &Install) -> anyhow::Result<Option<StatePlace>> {
    let Some(folder) = &install.serve.state else { return Ok(None) };
    let below = folder.to_str().and_then(|folder| folder.strip_prefix(STATE)).map(|below| below.trim_end_matches('/'));
    let plain = |name: &str| {
        let mut bytes = name.bytes();
        !name.is_empty()
            && name != "."
            && name != ".."
            && bytes.all(|b| b.is_ascii_alphanumeric() || b"_-.@+".contains(&b))
    };
    if let Some(below) = below.filter(|below| below.split('/').all(plain)) {
        let settings =
            format!("# Prompts' beginnings, over restarts.\nStateDirectory={below}\nStateDirectoryMode=0700\n");
        return Ok(Some(StatePlace { path: format!("{STATE}{below}"), settings }));
    }
    let found = folder.canonicalize().map_err(|error| {
        let what = Diagnostic::new(format!("cannot find {}: {error}", folder.display()));
        what.with_help(format!("make it for the service's user, or name a folder below {STATE}, which systemd makes"))
    })?;
    let path = text_of(&found)?;
    let settings = format!("# Prompts' beginnings, over restarts.\nReadWritePaths={}\n", quote(&path)?);
    Ok(Some(StatePlace { path, settings }))
}

fn user(install: &Install) -> anyhow::Result<String> {
    let user = install.user.clone().or_else(|| std::env::var("SUDO_USER").ok()).or_else(|| std::env::var("USER").ok());
    let user = user.unwrap_or_else(|| "root".to_owned());
    let plain = |c: char| c.is_alphanumeric() || "_-.".contains(c);
    if user.is_empty() || user.starts_with('-') || !user.chars().all(plain) {
        bail!(Diagnostic::new(format!("`{user}` is no user's name")).with_help("--user names who runs the service"));
    }
    Ok(user)
}

/// The value of `ExecStart=`. Paths are made absolute, so that none is taken for an option.
fn command(install: &Install) -> anyhow::Result<String> {
    let args = &install.serve;
    let absolute = |path: &Path| path.canonicalize().with_context(|| format!("cannot find {}", path.display()));
    let absolute = |path: &Path| text_of(&absolute(path)?);
    let program = executable(&text_of(&program(confined::file())?)?)?;
    let mut words = vec![
        "serve".to_owned(),
        absolute(&args.engine)?,
        format!("--host={}", args.host),
        format!("--port={}", args.port),
        format!("--queue={}", args.queue),
        format!("--timeout={}", args.timeout),
        format!("--drain={}", args.drain),
    ];
    words.extend(args.names.iter().map(|name| format!("--name={name}")));
    if let Some(path) = &args.api_key_file {
        words.push(format!("--api-key-file={}", absolute(path)?));
    }
    words.extend(args.cors_origin.iter().map(|origin| format!("--cors-origin={origin}")));
    words.extend(args.allowed_hosts.iter().map(|name| format!("--allowed-host={name}")));
    words.extend(args.trusted_proxies.iter().map(|address| format!("--trusted-proxy={address}")));
    if let Some(path) = &args.shared_system {
        words.push(format!("--shared-system={}", absolute(path)?));
    }
    if let Some(place) = state(install)? {
        words.extend([format!("--state={}", place.path), format!("--state-size={}", args.state_size)]);
    }
    words.extend(args.allow_special_tokens.then(|| "--allow-special-tokens".to_owned()));
    words.extend(args.no_speculation.then(|| "--no-speculation".to_owned()));
    words.extend(args.rebuild.then(|| "--rebuild".to_owned()));
    if let Some(path) = &args.recipe {
        words.push(format!("--recipe={}", absolute(path)?));
    }
    words.extend(args.verify.then(|| "--verify".to_owned()));
    words.extend(args.log_prompts.then(|| "--log-prompts".to_owned()));
    if let Some(backend) = clap::ValueEnum::to_possible_value(&args.backend) {
        words.push(format!("--backend={}", backend.get_name()));
    }
    let words = words.iter().map(|word| argument(word)).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(format!("{program} {}", words.join(" ")))
}

/// The program that the service starts: what lies now where the running one was started from.
fn program(file: Option<PathBuf>) -> Result<PathBuf, Diagnostic> {
    file.ok_or_else(|| {
        let gone = "the file of this program is gone: it was removed since the program was started";
        Diagnostic::new(gone).with_help("install watus-build again, and call the installed program")
    })
}

/// The text of a path in a unit file. A path that is not UTF-8 is an error.
fn text_of(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| {
        let what = Diagnostic::new(format!("{} is not UTF-8, which a unit file must be", path.display()));
        what.with_help("rename it").into()
    })
}

/// Quotes the program of `ExecStart=`. systemd reads it like any word, but then refuses quotes and backslashes in it,
/// and expands no variables: a doubled `$` stays double (`config_parse_exec` in systemd's src/core/load-fragment.c).
fn executable(path: &str) -> anyhow::Result<String> {
    if let Some(odd) = path.chars().find(|character| "\"'\\$".contains(*character)) {
        bail!(
            Diagnostic::new(format!("systemd starts no program whose path holds {odd:?}: {path:?}"))
                .with_help("install watus-build elsewhere, e.g. in /usr/local/bin")
        );
    }
    quote(path)
}

/// Quotes an argument of `ExecStart=`, where a variable begins with `$` and `$$` is a literal `$` (systemd.service(5),
/// "Command lines").
fn argument(word: &str) -> anyhow::Result<String> {
    Ok(quote(word)?.replace('$', "$$"))
}

/// Quotes a word of a unit file (systemd.syntax(7)), with specifiers escaped. In `Environment=` a `$` is literal.
fn quote(word: &str) -> anyhow::Result<String> {
    if word.chars().any(char::is_control) {
        bail!(
            Diagnostic::new(format!("{word:?} holds a control character, which a unit file cannot"))
                .with_help("rename it")
        );
    }
    let escaped = word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
    let plain = |c: char| c.is_ascii_alphanumeric() || "/-_.=:,@+".contains(c);
    Ok(if word.chars().all(plain) { word.to_owned() } else { format!("\"{escaped}\"") })
}

/// Splits a line that [`executable`] and [`argument`] wrote into its words.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            // What follows is meant as it is: an escaped character, or the second of a doubled one.
            '\\' | '%' | '$' => word.extend(chars.next()),
            c => word.push(c),
        }
    }
    words.push(word);
    words
}

/// Parses the engine directory and the port out of a unit of ours.
pub(super) fn serves(text: &str) -> Option<(String, u16)> {
    let words = words(text.lines().find_map(|line| line.strip_prefix("ExecStart="))?);
    let engine = words.iter().skip_while(|word| *word != "serve").nth(1)?.clone();
    let port = words.iter().find_map(|word| word.strip_prefix("--port="))?.parse().ok()?;
    Some((engine, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The packaged example unit has the same confinement as the unit that `install` writes, but is not recognised as
    /// an installed one.
    #[test]
    fn the_example_is_confined_likewise() {
        let example = include_str!("../../../examples/systemd/watus-build@.service");
        assert!(example.ends_with(CONFINEMENT), "{example}");
        assert!(!example.contains(HEADER));
        assert_eq!(serves(example), Some(("/srv/engines/i".to_owned(), 8080)));
    }

    #[test]
    fn words_of_a_unit_are_quoted_and_read_again() {
        let cases = [
            ("--port=8080", "--port=8080", "--port=8080"),
            ("/my engines/100%", "\"/my engines/100%%\"", "\"/my engines/100%%\""),
            ("a\"$b\\", "\"a\\\"$$b\\\\\"", "\"a\\\"$b\\\\\""),
            ("${HOME} %h", "\"$${HOME} %%h\"", "\"${HOME} %%h\""),
            (";", "\";\"", "\";\""),
            ("żółw's", "\"żółw's\"", "\"żółw's\""),
        ];
        for (word, as_argument, as_setting) in cases {
            assert_eq!((argument(word).unwrap().as_str(), quote(word).unwrap().as_str()), (as_argument, as_setting));
        }
        for odd in ["a\nExecStart=evil", "a\tb", "a\r", "a\u{7f}"] {
            assert!(quote(odd).is_err() && argument(odd).is_err() && executable(odd).is_err(), "{odd:?}");
        }
        let all = ["/bin/x", "serve", "/my engines/100%", "a\"$b\\", "--port=8080"];
        let line: Vec<String> = all.iter().map(|word| argument(word).unwrap()).collect();
        assert_eq!(words(&line.join(" ")), all);
        let unit = format!("[Service]\nExecStart={}\nUser=x\n", line.join(" "));
        assert_eq!(serves(&unit), Some(("/my engines/100%".to_owned(), 8080)));
        assert_eq!(serves("[Service]\nExecStart=/bin/true\n"), None);
    }

    #[test]
    fn a_service_may_write_to_its_state() {
        #[derive(clap::Parser)]
        struct InstallLine {
            #[command(flatten)]
            install: Install,
        }
        let place = |words: &[&str]| {
            let all = [&["install", "engines/tiny"][..], words].concat();
            let parsed = <InstallLine as clap::Parser>::try_parse_from(all).unwrap();
            state(&parsed.install).map(|place| place.map(|place| (place.path, place.settings)))
        };
        assert_eq!(place(&[]).unwrap(), None);
        // systemd makes it.
        let (path, settings) = place(&["--state", "/var/lib/watus-build/tiny-1.5/"]).unwrap().unwrap();
        assert_eq!(path, "/var/lib/watus-build/tiny-1.5");
        assert!(settings.ends_with("\nStateDirectory=watus-build/tiny-1.5\nStateDirectoryMode=0700\n"), "{settings}");
        let scratch = tempfile::tempdir().unwrap();
        let there = scratch.path().canonicalize().unwrap().join("my state");
        std::fs::create_dir(&there).unwrap();
        let there = there.to_str().unwrap();
        let (path, settings) = place(&["--state", there]).unwrap().unwrap();
        assert_eq!(path, there);
        assert!(settings.ends_with(&format!("\nReadWritePaths=\"{there}\"\n")), "{settings}");
        for gone in ["/var/lib/../nowhere", "/var/lib/no such", "/var/lib//nowhere", "nowhere/at/all"] {
            let error = place(&["--state", gone]).unwrap_err().to_string();
            assert!(error.contains("a folder below /var/lib/"), "{error}");
        }
    }

    #[test]
    fn programs_that_systemd_refuses_are_refused_first() {
        for (path, written) in [
            ("/usr/local/bin/watus-build", "/usr/local/bin/watus-build"),
            ("/my tools/100%/watus-build", "\"/my tools/100%%/watus-build\""),
        ] {
            assert_eq!(executable(path).unwrap(), written);
        }
        for path in ["/a\"b/x", "/a'b/x", "/a\\b/x", "/a$b/x"] {
            let error = executable(path).unwrap_err().to_string();
            assert!(error.contains("hint: install watus-build elsewhere"), "{error}");
        }
        use std::os::unix::ffi::OsStrExt;
        assert!(text_of(Path::new(std::ffi::OsStr::from_bytes(b"/a\xff"))).is_err());
    }

    #[test]
    fn a_program_whose_file_is_gone_is_refused() {
        let there = PathBuf::from("/usr/bin/watus-build");
        assert_eq!(program(Some(there.clone())), Ok(there));
        let refused = program(None).unwrap_err();
        assert!(refused.message.contains("is gone") && refused.help.is_some(), "{refused}");
    }

    #[test]
    fn names_of_units_hold_only_what_they_can() {
        for (engine, unit) in [
            ("smollm2-135m", "watus-build@smollm2-135m.service"),
            ("a.b_c", "watus-build@a.b_c.service"),
            (".hidden", "watus-build@\\x2ehidden.service"),
            ("../../x", "watus-build@\\x2e.\\x2f..\\x2fx.service"),
            ("a b\n", "watus-build@a\\x20b\\x0a.service"),
            ("wąż", "watus-build@w\\xc4\\x85\\xc5\\xbc.service"),
        ] {
            assert_eq!(name(engine).unwrap(), unit);
        }
        assert!(name("").is_err() && name(&"x".repeat(250)).is_err());
    }
}
