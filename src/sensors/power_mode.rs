//! nvpmodel's power mode, from its files: asking the program takes root on some releases.

use super::{ModeInUse, NamedMode};
use crate::system_root::Root;

/// Rank by name, since ids differ by board and are in no order: MAXN_SUPER is above MAXN, which is above what names its
/// watts, as "15W", "MODE_30W", "MODE_15W_6CORE".
fn rank(name: &str) -> u32 {
    let watts = name.split('W').next().map(|name| name.trim_start_matches(|c: char| !c.is_ascii_digit()));
    match name {
        "MAXN_SUPER" => u32::MAX,
        name if name.starts_with("MAXN") => u32::MAX - 1,
        _ => watts.and_then(|watts| watts.parse().ok()).unwrap_or(0),
    }
}

/// Parses the lines `< POWER_MODEL ID=2 NAME=MAXN_SUPER >` of nvpmodel.conf.
fn modes(text: &str) -> Vec<NamedMode> {
    let field = |line: &str, key: &str| {
        let value = line.split_whitespace().find_map(|word| word.strip_prefix(key))?;
        Some(value.trim_end_matches('>').to_owned())
    };
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#') && line.contains("POWER_MODEL"));
    lines
        .filter_map(|line| Some(NamedMode { id: field(line, "ID=")?.parse().ok()?, name: field(line, "NAME=")? }))
        .collect()
}

/// nvpmodel's power mode in use; `None` where there is no nvpmodel.
pub fn read(root: &Root) -> Option<ModeInUse> {
    // `pmode:0002`, on some releases followed by `fmode:quiet`.
    let status = root.read("/var/lib/nvpmodel/status")?;
    let id = status.split_whitespace().find_map(|word| word.strip_prefix("pmode:")?.parse::<u32>().ok())?;
    let modes = modes(&root.read("/etc/nvpmodel.conf").unwrap_or_default());
    let name = modes.iter().find(|mode| mode.id == id).map(|mode| mode.name.clone());
    // Nothing is known of one that has no name.
    let used = name.as_deref().map_or(u32::MAX, rank);
    let fastest = modes.into_iter().max_by_key(|mode| rank(&mode.name));
    Some(ModeInUse { id, name, faster: fastest.filter(|mode| rank(&mode.name) > used) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_no_modes() {
        let text = "# < POWER_MODEL ID=9 NAME=COMMENT >\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< POWER_MODEL ID=x NAME=ODD >\n";
        let named: Vec<_> = modes(text).into_iter().map(|mode| (mode.id, mode.name)).collect();
        assert_eq!(named, [(0, "15W".to_owned()), (2, "MAXN_SUPER".to_owned())]);
    }
}
