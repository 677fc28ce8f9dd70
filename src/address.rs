//! Web addresses: hides their secrets for display, and percent-encodes text for them.

/// An address for messages and manifests: without user name, password and query, which may contain a signature.
pub fn shown(address: &str) -> String {
    let (scheme, rest) = match address.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), address),
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, after) = rest.split_at(end);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let path = after.split(['?', '#']).next().unwrap_or_default();
    let query = if after.contains('?') { "?…" } else { "" };
    format!("{scheme}{host}{path}{query}")
}

/// Percent-encodes one segment of a path, slashes included (`refs/pr/1` is `refs%2Fpr%2F1`).
pub fn segment(text: &str) -> String {
    encode(text, |byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
}

/// Percent-encodes a path, but not its slashes.
pub fn path(text: &str) -> String {
    encode(text, |byte| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte))
}

/// Percent-encodes what an address that a user typed must not contain bare (spaces, non-ASCII letters), and keeps what
/// is already encoded. The fragment is removed, since it is not sent.
pub fn typed(address: &str) -> String {
    let address = address.trim().split('#').next().unwrap_or_default();
    encode(address, |byte| byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte))
}

fn encode(text: &str, plain: impl Fn(u8) -> bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if plain(byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let cases = [
            ("https://host/a/b.onnx", "https://host/a/b.onnx"),
            ("https://user:pass@host:8443/a", "https://host:8443/a"),
            ("https://us@er:p@host/a@b", "https://host/a@b"),
            ("https://token@host", "https://host"),
            ("https://host/a?X-Amz-Signature=00ff#part", "https://host/a?…"),
            ("https://user:pass@host?key=1", "https://host?…"),
            ("ftp://user:pass@host/a#part", "ftp://host/a"),
            ("user:pass@host/a", "host/a"),
            ("", ""),
        ];
        for (address, expected) in cases {
            assert_eq!(shown(address), expected, "{address}");
        }
    }

    #[test]
    fn text_becomes_part_of_an_address() {
        let cases = [
            ("main", "main", "main"),
            ("refs/pr/1", "refs%2Fpr%2F1", "refs/pr/1"),
            ("a?b#c", "a%3Fb%23c", "a%3Fb%23c"),
            ("100% ü", "100%25%20%C3%BC", "100%25%20%C3%BC"),
        ];
        for (text, as_segment, as_path) in cases {
            assert_eq!((segment(text).as_str(), path(text).as_str()), (as_segment, as_path), "{text}");
        }
        let cases = [
            ("https://host/a b.onnx", "https://host/a%20b.onnx"),
            ("https://host/a%20b.onnx?x=1&y=[2]", "https://host/a%20b.onnx?x=1&y=[2]"),
            (" https://host/ü.onnx#part\n", "https://host/%C3%BC.onnx"),
        ];
        for (address, expected) in cases {
            assert_eq!(typed(address), expected, "{address}");
        }
    }
}
