//! The bytes that each token stands for, which grammars match and log-probabilities report.

use std::collections::HashMap;

use serde_json::Value;
use tokenizers::Tokenizer;

/// First byte of a special token's bytes, which no text contains: a byte that UTF-8 does not use.
pub(crate) const SPECIAL: u8 = 0xff;

/// GPT-2's byte-level alphabet, in which every byte is a printable character: printable bytes represent themselves, the
/// others are numbered from 256 on (`bytes_to_unicode` in openai/gpt-2, encoder.py).
fn byte_alphabet() -> HashMap<char, u8> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let themselves = (0..=255).filter(printable).map(|byte| (char::from(byte), byte));
    let others = ('\u{100}'..).zip((0..=255).filter(|byte| !printable(byte)));
    themselves.chain(others).collect()
}

/// The byte of a SentencePiece token such as `<0x0A>`.
fn fallback_byte(piece: &str) -> Option<u8> {
    u8::from_str_radix(piece.strip_prefix("<0x")?.strip_suffix('>').filter(|hex| hex.len() == 2)?, 16).ok()
}

/// The bytes of every token, by number; special tokens begin with [`SPECIAL`], numbers without a token are empty.
pub(super) fn words(tokenizer: &Tokenizer) -> Vec<Vec<u8>> {
    let decoder = serde_json::to_string(&tokenizer.get_decoder()).unwrap_or_default();
    let decoder: Value = serde_json::from_str(&decoder).unwrap_or_default();
    let one = std::slice::from_ref(&decoder);
    let steps = decoder["decoders"].as_array().map_or(one, Vec::as_slice);
    let has = |kind: &str| steps.iter().any(|step| step["type"] == kind);
    let (byte_level, byte_fallback) = (has("ByteLevel"), has("ByteFallback"));
    let alphabet = byte_alphabet();
    let spell = |piece: &str| -> Vec<u8> {
        let bytes: Option<Vec<u8>> =
            byte_level.then(|| piece.chars().map(|c| alphabet.get(&c).copied()).collect()).flatten();
        bytes.unwrap_or_else(|| match fallback_byte(piece).filter(|_| byte_fallback) {
            Some(byte) => vec![byte],
            None => piece.replace('▁', " ").into_bytes(),
        })
    };
    let vocabulary = tokenizer.get_vocab(true);
    let size = vocabulary.values().max().map_or(0, |largest| *largest as usize + 1);
    let mut words = vec![Vec::new(); size];
    for (piece, token) in &vocabulary {
        words[*token as usize] = spell(piece);
    }
    for (token, added) in tokenizer.get_added_tokens_decoder() {
        if let Some(word) = words.get_mut(token as usize) {
            *word = added.content.clone().into_bytes();
            if added.special {
                word.insert(0, SPECIAL);
            }
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_bytes() {
        let alphabet = byte_alphabet();
        // "Ġ" is a space, "Ċ" a newline, "Ã©" are the two bytes of é.
        assert_eq!("ĠaĊÃ©".chars().map(|c| alphabet[&c]).collect::<Vec<u8>>(), " a\né".as_bytes());
        assert_eq!(alphabet.values().collect::<std::collections::BTreeSet<_>>().len(), 256);
        assert_eq!((fallback_byte("<0x0A>"), fallback_byte("<0x0>"), fallback_byte("x")), (Some(10), None, None));
    }
}
