//! Measures the quality loss of a quantised model: compares its distributions with those of the float checkpoint it was
//! made from, both on the CPU in float32, over a text of everyday English.

use super::likelihood::{divergence, loss};
use crate::executor::{Executor, Rows};
use crate::manifest::Quality;
use crate::text::Text;

/// The text; each paragraph is a sequence of its own.
const TEXT: [&str; 3] = [
    super::llm::TEXT,
    "Water boils at a lower temperature in the mountains, because the pressure of the air decreases with height. At sea \
     level it boils at one hundred degrees Celsius; on the summit of Mount Everest, at about seventy. This is why cooking \
     takes longer there, although the water bubbles just as it does at home.",
    "To make a simple bread, mix five hundred grams of flour with ten grams of salt and a little yeast, add warm water and \
     knead the dough until it is smooth. Let it rest under a towel for two hours. Then shape it, put it into a hot oven and \
     bake it for forty minutes, until the crust is brown and sounds hollow when you knock on it.",
];

/// Compares `quantised` with `reference`, both without cached tokens. The limits in the result are not set.
pub fn quality(
    text: &Text,
    reference: &mut dyn Executor,
    quantised: &mut dyn Executor,
    longest: usize,
) -> anyhow::Result<Quality> {
    let width = reference.vocab_size();
    let mut found = Quality::default();
    let (mut kl, mut losses) = (0.0, [0.0; 2]);
    for paragraph in TEXT {
        let mut tokens = text.encode_text(paragraph)?;
        tokens.truncate(longest);
        let scored = tokens.len().saturating_sub(1);
        reference.release(0);
        let wanted = reference.prefill(0, 0, &tokens, Rows::All)?;
        quantised.release(0);
        let have = quantised.prefill(0, 0, &tokens, Rows::All)?;
        let rows = wanted.chunks_exact(width).zip(have.chunks_exact(width));
        kl += rows.map(|(wanted, have)| divergence(wanted, have)).sum::<f64>() / tokens.len() as f64 * scored as f64;
        for (sum, logits) in losses.iter_mut().zip([&wanted, &have]) {
            *sum += loss(logits, &tokens, width)? * scored as f64;
        }
        found.tokens += scored;
    }
    let mean = |sum: f64| sum / found.tokens.max(1) as f64;
    found.divergence = mean(kl);
    (found.reference_perplexity, found.perplexity) = (mean(losses[0]).exp(), mean(losses[1]).exp());
    Ok(found)
}
