//! Arguments of the form `NAME=VALUE` where NAME is a model's input, which may itself contain `=`.

use anyhow::bail;

use crate::diagnostic::Diagnostic;

/// Splits an argument at the `=` after the longest known name that it starts with.
pub(super) fn split<'t>(option: &str, text: &'t str, known: &[&str]) -> anyhow::Result<(&'t str, &'t str)> {
    let mut parts = text.match_indices('=').map(|(at, sign)| (&text[..at], &text[at + sign.len()..]));
    if let Some(found) = parts.rfind(|(name, _)| known.contains(name)) {
        return Ok(found);
    }
    match text.split_once('=') {
        Some((name, _)) => bail!("{option} {text}: the model has no input `{name}`; it has {}", known.join(", ")),
        None => bail!(
            Diagnostic::new(format!("{option} {text}: it names no input"))
                .with_help(format!("write {option} NAME=…, where NAME is {}", known.join(" or ")))
        ),
    }
}

/// Splits all arguments with [`split`] and refuses an input that is named twice.
pub(super) fn split_all<'t>(
    option: &str,
    texts: &'t [String],
    known: &[&str],
) -> anyhow::Result<Vec<(&'t str, &'t str)>> {
    let mut all: Vec<(&str, &str)> = Vec::new();
    for text in texts {
        let (name, value) = split(option, text, known)?;
        if let Some((_, first)) = all.iter().find(|(other, _)| *other == name) {
            bail!(
                Diagnostic::new(format!("{option} gives `{name}` twice: {first} and {value}"))
                    .with_help("each input takes one")
            );
        }
        all.push((name, value));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_signs() {
        let known = ["x", "a", "a=b", "żółw=1", "="];
        for (text, name, value) in [
            ("x=f.npy", "x", "f.npy"),
            ("x=f=g.npy", "x", "f=g.npy"),
            ("a=b=f.npy", "a=b", "f.npy"),
            ("a=./b=f.npy", "a", "./b=f.npy"),
            ("żółw=1=ó.npy", "żółw=1", "ó.npy"),
            ("==f.npy", "=", "f.npy"),
            ("x=", "x", ""),
        ] {
            assert_eq!(split("--input", text, &known).unwrap(), (name, value));
        }
        for (text, said) in [
            ("y=f.npy", "--input y=f.npy: the model has no input `y`; it has x, a, a=b, żółw=1, ="),
            ("f.npy", "it names no input\n  hint: write --input NAME=…, where NAME is x or a or a=b"),
            ("=f.npy", "no input ``"),
        ] {
            let error = split("--input", text, &known).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn an_input_is_given_once() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let twice = texts(&["x=1.npy", "y=2.npy", "x=3.npy"]);
        let error = split_all("--input", &twice, &["x", "y"]).unwrap_err().to_string();
        assert!(error.contains("--input gives `x` twice: 1.npy and 3.npy"), "{error}");
        assert_eq!(split_all("--input", &twice[..2], &["x", "y"]).unwrap(), [("x", "1.npy"), ("y", "2.npy")]);
    }
}
