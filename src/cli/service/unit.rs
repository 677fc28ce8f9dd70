//! The text of a systemd unit: what the server needs, and the GPU. A unit is one engine's, `watus-build@NAME.service`.

use std::path::Path;

use anyhow::{Context, bail};

use super::Install;

/// What units of ours begin with, so that nobody else's is touched.
pub(super) const HEADER: &str = "# Written by `watus-build service install`";
/// What units of ours are called.
pub(super) const PREFIX: &str = "watus-build@";
/// The one unit there was before each engine had its own.
pub(super) const SINGLE: &str = "watus-build.service";

/// The rest of `[Service]`, which depends on nothing.
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

/// The unit of an engine. What a unit's name cannot hold is escaped as systemd-escape(1) does; dashes, which it can hold,
/// are kept.
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
        bail!("`{engine}` cannot be the name of a service\n  hint: give the recipe a short name and build again");
    }
    Ok(unit)
}

/// The whole unit of the engine called `engine`.
pub(super) fn text(install: &Install, engine: &str) -> anyhow::Result<String> {
    // Longer than answers get to end, or systemd would cut them off.
    let stop = install.serve.drain + 15;
    // A Jetson's GPU is for these groups.
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let has = |name: &&str| groups.lines().any(|line| line.split(':').next() == Some(name));
    let groups = ["video", "render"].into_iter().filter(has).collect::<Vec<_>>().join(" ");
    let library = std::env::var("WATUS_TENSORRT_LIB").ok().filter(|value| !value.is_empty());
    let library = library.map(|path| quote(&format!("WATUS_TENSORRT_LIB={path}"))).transpose()?;
    let library = library.map(|setting| format!("Environment={setting}\n")).unwrap_or_default();
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
{library}# Compiled kernels and remembered hashes; homes are read only below.
Environment=WATUS_CACHE_DIR=/var/cache/watus-build
Environment=CUDA_CACHE_PATH=/var/cache/watus-build
CacheDirectory=watus-build
Restart=on-failure
RestartSec=5
# Wrong arguments and recipes, damaged and foreign engines (after an upgrade of JetPack) do not mend themselves.
RestartPreventExitStatus=2 3 6 7
# Weights are read from disk first.
TimeoutStartSec=15min
TimeoutStopSec={stop}
WatchdogSec=120
{CONFINEMENT}",
        unit = name(engine)?,
        description = engine.replace(['%', '\n', '\\'], ""),
        user = user(install)?,
        command = command(install)?,
    ))
}

fn user(install: &Install) -> anyhow::Result<String> {
    let user = install.user.clone().or_else(|| std::env::var("SUDO_USER").ok()).or_else(|| std::env::var("USER").ok());
    let user = user.unwrap_or_else(|| "root".to_owned());
    let plain = |c: char| c.is_alphanumeric() || "_-.".contains(c);
    if user.is_empty() || user.starts_with('-') || !user.chars().all(plain) {
        bail!("`{user}` is no user's name\n  hint: --user names who runs the service");
    }
    Ok(user)
}

/// What the unit starts. Paths are absolute, so none is taken for an option.
fn command(install: &Install) -> anyhow::Result<String> {
    let args = &install.serve;
    let absolute = |path: &Path| path.canonicalize().with_context(|| format!("cannot find {}", path.display()));
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
    words.extend(args.allowed_hosts.iter().map(|name| format!("--allowed-host={name}")));
    words.extend(args.trusted_proxies.iter().map(|address| format!("--trusted-proxy={address}")));
    if let Some(path) = &args.shared_system {
        words.push(format!("--shared-system={}", absolute(path)?.display()));
    }
    words.extend(args.allow_special_tokens.then(|| "--allow-special-tokens".to_owned()));
    words.extend(args.verify.then(|| "--verify".to_owned()));
    words.extend(args.log_prompts.then(|| "--log-prompts".to_owned()));
    if let Some(backend) = clap::ValueEnum::to_possible_value(&args.backend) {
        words.push(format!("--backend={}", backend.get_name()));
    }
    Ok(words.iter().map(|word| quote(word)).collect::<Result<Vec<_>, _>>()?.join(" "))
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

/// The words of a line that [`quote`] wrote.
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

/// The engine a unit of ours serves, and the port it does so at.
pub(super) fn serves(text: &str) -> Option<(String, u16)> {
    let words = words(text.lines().find_map(|line| line.strip_prefix("ExecStart="))?);
    let engine = words.iter().skip_while(|word| *word != "serve").nth(1)?.clone();
    let port = words.iter().find_map(|word| word.strip_prefix("--port="))?.parse().ok()?;
    Some((engine, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_unit_are_quoted_and_read_again() {
        assert_eq!(quote("--port=8080").unwrap(), "--port=8080");
        assert_eq!(quote("/my engines/100%").unwrap(), "\"/my engines/100%%\"");
        assert_eq!(quote("a\"$b\\").unwrap(), "\"a\\\"$$b\\\\\"");
        assert!(quote("a\nExecStart=evil").is_err());
        let all = ["/bin/x", "serve", "/my engines/100%", "a\"$b\\", "--port=8080"];
        let line: Vec<String> = all.iter().map(|word| quote(word).unwrap()).collect();
        assert_eq!(words(&line.join(" ")), all);
        let unit = format!("[Service]\nExecStart={}\nUser=x\n", line.join(" "));
        assert_eq!(serves(&unit), Some(("/my engines/100%".to_owned(), 8080)));
        assert_eq!(serves("[Service]\nExecStart=/bin/true\n"), None);
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
