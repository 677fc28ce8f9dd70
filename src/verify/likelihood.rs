//! Likelihoods of texts under a model, and divergences between models.

use crate::executor::{Executor, Rows};
use crate::generation::log_sum_exp;

/// KL(reference || engine) in nats, of the distributions that two rows of logits define.
pub(super) fn divergence(reference: &[f32], engine: &[f32]) -> f64 {
    let (p_total, q_total) = (log_sum_exp(reference), log_sum_exp(engine));
    let terms = reference.iter().zip(engine).map(|(p, q)| {
        let (p, q) = (f64::from(*p) - p_total, f64::from(*q) - q_total);
        p.exp() * (p - q)
    });
    terms.sum::<f64>()
}

/// Mean negative log-likelihood of all tokens but the first, in nats per token.
pub(super) fn read(executor: &mut dyn Executor, tokens: &[u32]) -> anyhow::Result<f64> {
    executor.release(0);
    let logits = executor.prefill(0, 0, tokens, Rows::All)?;
    loss(&logits, tokens, executor.vocab_size())
}

/// Mean negative log-likelihood of all tokens but the first, given the logits `[tokens, vocabulary]`, in nats per
/// token.
pub(super) fn loss(logits: &[f32], tokens: &[u32], width: usize) -> anyhow::Result<f64> {
    anyhow::ensure!(tokens.len() > 1, "the perplexity text has no tokens");
    let likelihood = |row: &[f32], token: u32| f64::from(row[token as usize]) - log_sum_exp(row);
    let sum: f64 = logits.chunks_exact(width).zip(&tokens[1..]).map(|(row, token)| likelihood(row, *token)).sum();
    Ok(-sum / (tokens.len() - 1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_that_of_the_definition() {
        // p = (0.5, 0.5), q = (0.8, 0.2): 0.5 ln(0.5/0.8) + 0.5 ln(0.5/0.2).
        let found = divergence(&[1.0, 1.0], &[0.8_f32.ln() + 3.0, 0.2_f32.ln() + 3.0]);
        assert!((found - 0.223_143_55).abs() < 1e-6, "{found}");
        assert!(divergence(&[1.0, 2.0], &[4.0, 5.0]).abs() < 1e-9);
        assert!(divergence(&[1.0, 2.0], &[f32::NAN, 5.0]).is_nan());
    }
}
