//! Looks at a machine and says what it can do, what is wrong, and the command that mends it.
//!
//! Everything is read from files, so a mounted image or a fixture is examined like the machine itself
//! (`--root DIR`); only on the live machine are libraries opened and the GPU asked.

mod hardware;
mod judge;
mod platform;
mod root;
mod software;
mod traps;
mod verdict;

use serde::Serialize;

pub use platform::Platform;
pub use root::{Package, Root};
pub use verdict::Verdict;

use crate::memory::Memory;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Level {
    Ok,
    Warn,
    Fail,
}

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable short name, e.g. "power-mode".
    pub id: &'static str,
    /// How bad.
    pub level: Level,
    /// What was seen.
    pub seen: String,
    /// Commands or one sentence that mend it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mend: Vec<String>,
}

impl Finding {
    fn ok(id: &'static str, seen: impl Into<String>) -> Self {
        Self { id, level: Level::Ok, seen: seen.into(), mend: Vec::new() }
    }

    fn warn(id: &'static str, seen: impl Into<String>, mend: &[&str]) -> Self {
        Self { level: Level::Warn, ..Self::fail(id, seen, mend) }
    }

    fn fail(id: &'static str, seen: impl Into<String>, mend: &[&str]) -> Self {
        let mend = mend.iter().map(|line| (*line).to_owned()).collect();
        Self { id, level: Level::Fail, seen: seen.into(), mend }
    }
}

/// What `doctor` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What kind of machine this is.
    pub platform: Platform,
    /// Everything looked at, in order.
    pub findings: Vec<Finding>,
    /// What the machine is good for.
    pub verdicts: Vec<Verdict>,
}

impl Report {
    /// The worst finding.
    pub fn level(&self) -> Level {
        self.findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }
}

/// What the checks share.
pub(crate) struct Examination<'a> {
    root: &'a Root,
    platform: Platform,
    packages: std::collections::BTreeMap<String, Package>,
    memory: Option<Memory>,
}

/// Examines a machine.
pub fn examine(root: &Root) -> Report {
    let packages = root.packages();
    let meminfo = root.read("/proc/meminfo").unwrap_or_default();
    let memory = Memory::parse(&meminfo, &root.read("/proc/swaps").unwrap_or_default());
    let examination = Examination { root, platform: Platform::of(root, &packages), packages, memory };
    let mut findings = platform::check(&examination);
    let software = software::check(&examination);
    let gpu = hardware::gpu(&examination);
    findings.extend(software.findings.iter().cloned());
    findings.push(judge::check(&examination));
    findings.extend(gpu.findings.iter().cloned());
    findings.extend(hardware::memory(&examination));
    findings.extend(hardware::disk(&examination));
    findings.extend(hardware::power(&examination));
    findings.extend(traps::check(&examination));
    let verdicts = verdict::of(&examination, &software, &gpu);
    Report { platform: examination.platform, findings, verdicts }
}

/// The Jetson Linux release of this machine, e.g. "36.4.4"; `None` elsewhere.
pub fn l4t_release() -> Option<String> {
    platform::l4t(&Root::live(), &std::collections::BTreeMap::new())
}

/// What keeps this machine from its full speed, for benchmark reports.
pub fn performance_notes() -> Vec<String> {
    let root = Root::live();
    if l4t_release().is_none() {
        return Vec::new();
    }
    let packages = root.packages();
    let platform = Platform::of(&root, &packages);
    let findings = hardware::power(&Examination { root: &root, platform, packages, memory: None });
    findings.into_iter().filter(|finding| finding.level > Level::Ok).map(|finding| finding.seen).collect()
}
