//! Cuts prompts into passes with the least total time.
//!
//! A pass reads every weight, whether it has one token or a hundred, so its time is not proportional to tokens: the
//! time of each size is known, and a pass may be padded. A prompt of n tokens thus never takes longer than one of n +
//! 1, since the passes of the longer one suffice for the shorter.

/// A size of passes, and its time.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Size {
    /// Most tokens of a pass.
    pub(crate) tokens: usize,
    /// (cache size in positions, time), ascending; the time in seconds or any unit that all sizes share.
    pub(crate) seconds: Vec<(usize, f64)>,
}

impl Size {
    /// Time of a pass with a cache of `room` positions, on the line through the first and the last measurement.
    fn cost(&self, room: usize) -> f64 {
        let (Some((near, least)), Some((far, most))) = (self.seconds.first(), self.seconds.last()) else {
            return f64::INFINITY;
        };
        if near == far {
            return *least;
        }
        // A larger cache is no cheaper, whatever was measured.
        let slope = ((most - least) / (*far as f64 - *near as f64)).max(0.0);
        least + slope * (room.max(*near) - near) as f64
    }
}

/// The available sizes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sizes(Vec<Size>);

/// Multiple of the largest pass up to which all ways of cutting are compared; longer prompts begin with the size that
/// is cheapest per token.
const LARGEST: usize = 4;

impl Sizes {
    pub(crate) fn new(mut sizes: Vec<Size>) -> Self {
        // Of equals the largest is taken: it leaves less.
        sizes.sort_by_key(|size| std::cmp::Reverse(size.tokens));
        Self(sizes)
    }

    /// The size of the next pass for `remaining` tokens of a prompt, of which `done` are in the cache. `room` is the
    /// cache size for a number of positions.
    pub(crate) fn next(&self, done: usize, remaining: usize, room: impl Fn(usize) -> usize) -> usize {
        let largest = self.0.first().map_or(1, |size| size.tokens);
        if remaining > LARGEST * largest {
            let room = room(done);
            let by_token = |size: &&Size| size.cost(room) / size.tokens as f64;
            let cheapest = self.0.iter().min_by(|a, b| by_token(a).total_cmp(&by_token(b)));
            return cheapest.map_or(largest, |size| size.tokens);
        }
        // The least for the last n tokens, and the size of the pass they begin with.
        let mut best = vec![(0.0, 1)];
        for rest in 1..=remaining {
            let room = room(done + remaining - rest);
            let ways =
                self.0.iter().map(|size| (size.cost(room) + best[rest.saturating_sub(size.tokens)].0, size.tokens));
            best.push(ways.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, 1)));
        }
        best[remaining].1
    }

    /// Time of the passes that [`Sizes::next`] cuts `remaining` tokens into.
    pub(crate) fn time(&self, done: usize, remaining: usize, room: impl Fn(usize) -> usize) -> f64 {
        let (mut at, mut total) = (0, 0.0);
        while at < remaining {
            let tokens = self.next(done + at, remaining - at, &room);
            let size = self.0.iter().find(|size| size.tokens == tokens);
            total += size.map_or(f64::INFINITY, |size| size.cost(room(done + at)));
            at += tokens;
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(costs: &[(usize, f64)]) -> Sizes {
        Sizes::new(costs.iter().map(|(tokens, cost)| Size { tokens: *tokens, seconds: vec![(512, *cost)] }).collect())
    }

    /// The passes of a prompt, and their total time.
    fn cut(sizes: &Sizes, tokens: usize) -> (Vec<usize>, f64) {
        let (mut passes, mut done, mut cost) = (Vec::new(), 0, 0.0);
        while done < tokens {
            let next = sizes.next(done, tokens - done, |_| 512);
            cost += sizes.0.iter().find(|size| size.tokens == next).unwrap().cost(512);
            passes.push(next);
            done += next;
        }
        (passes, cost)
    }

    /// The least total time, by trying all ways.
    fn least(costs: &[(usize, f64)], tokens: usize) -> f64 {
        if tokens == 0 {
            return 0.0;
        }
        let ways = costs.iter().map(|(size, cost)| cost + least(costs, tokens.saturating_sub(*size)));
        ways.fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn what_a_robot_says_is_one_padded_pass() {
        // Measured: milliseconds of Mistral-7B's shape on one H100, decode step first.
        let four_bits = sizes(&[(1, 2.2), (16, 13.7), (128, 13.8), (512, 21.1)]);
        assert_eq!(cut(&four_bits, 6).0, [1; 6], "decode steps are cheaper than unpacking everything");
        assert_eq!(cut(&four_bits, 7).0, [16]);
        assert_eq!([17, 61, 65, 128].map(|tokens| cut(&four_bits, tokens).0), [[128]; 4].map(|one| one.to_vec()));
        assert_eq!([129, 256, 512].map(|tokens| cut(&four_bits, tokens).0.len()), [2, 1, 1]);
        let half = sizes(&[(1, 5.3), (16, 7.1), (128, 7.9), (512, 15.1)]);
        assert_eq!((cut(&half, 1).0, cut(&half, 16).0, cut(&half, 17).0), (vec![1], vec![16], vec![128]));
        assert_eq!((cut(&half, 129).0, cut(&half, 640).0), (vec![128, 1], vec![512, 128]));
    }

    #[test]
    fn the_sum_is_the_least_and_no_length_takes_longer_than_a_longer_one() {
        let odd: [&[(usize, f64)]; 6] = [
            &[(16, 3.0), (4, 5.0), (8, 1.0)],
            // Larger is cheaper.
            &[(1, 9.0), (2, 8.0), (16, 2.0)],
            &[(3, 1.0), (5, 1.6), (7, 2.0)],
            &[(1, 1.0)],
            &[(5, 4.0)],
            &[(1, 1.0), (4, 1.0), (16, 1.0)],
        ];
        for costs in odd {
            let sizes = sizes(costs);
            let mut before = 0.0;
            for tokens in 1..=20 {
                let (passes, cost) = cut(&sizes, tokens);
                assert!((sizes.time(0, tokens, |_| 512) - cost).abs() < 1e-9, "{costs:?}, {tokens} tokens");
                assert!(
                    (cost - least(costs, tokens)).abs() < 1e-9,
                    "{costs:?}, {tokens} tokens: {passes:?} take {cost}"
                );
                assert!(cost >= before - 1e-9, "{costs:?}, {tokens} tokens take {cost}, one less {before}");
                before = cost;
            }
        }
    }

    #[test]
    fn long_prompts_begin_with_what_is_cheapest_by_the_token() {
        let sizes = sizes(&[(16, 7.0), (128, 8.0), (512, 40.0)]);
        assert_eq!(cut(&sizes, 100_000).0[0], 128);
        assert_eq!(sizes.next(0, 100_000, |_| 512), 128);
        assert_eq!(sizes.next(0, 2048, |_| 512), 128);
    }

    #[test]
    fn a_larger_cache_costs_what_was_measured_of_it() {
        let padded = Size { tokens: 512, seconds: vec![(512, 15.0), (2048, 30.0)] };
        let small = Size { tokens: 64, seconds: vec![(512, 8.0), (2048, 8.5)] };
        let sizes = Sizes::new(vec![padded.clone(), small]);
        assert_eq!(sizes.next(0, 128, |_| 512), 512);
        assert_eq!(sizes.next(4000, 128, |_| 8192), 64);
        assert_eq!(padded.cost(1280), 22.5);
        // Noise.
        let cheaper = Size { tokens: 1, seconds: vec![(512, 2.0), (2048, 1.9)] };
        assert_eq!(cheaper.cost(100_000), 2.0);
    }
}
