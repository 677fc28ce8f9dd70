//! Cuts prompts into passes with the least total time.
//!
//! A pass reads every weight, whether it has one token or a hundred, so its time is not proportional to tokens: the
//! time of each size is known, and a pass may be padded. A prompt of n tokens thus never takes longer than one of n +
//! 1, since the passes of the longer one suffice for the shorter. Of passes behind each other in one call, a part of
//! the time may be paid once: weights that are unpacked for the first are there for the others.

/// A size of passes, and its time.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Size {
    /// Most tokens of a pass.
    pub(crate) tokens: usize,
    /// (cache size in positions, time), ascending; the time in seconds or any unit that all sizes share.
    pub(crate) seconds: Vec<(usize, f64)>,
    /// The part of the time that is saved right behind another such pass; 0 for passes that have nothing in common,
    /// behind which nothing is saved either.
    pub(crate) shared: f64,
}

impl Size {
    /// Time of a pass with a cache of `room` positions, on the line through the first and the last measurement.
    fn cost(&self, room: usize, is_behind: bool) -> f64 {
        let (Some((near, least)), Some((far, most))) = (self.seconds.first(), self.seconds.last()) else {
            return f64::INFINITY;
        };
        // A larger cache is no cheaper, whatever was measured.
        let slope = if near == far { 0.0 } else { ((most - least) / (*far as f64 - *near as f64)).max(0.0) };
        let saved = if is_behind { self.shared.min(*least) } else { 0.0 };
        least - saved + slope * (room.max(*near) - near) as f64
    }
}

/// The available sizes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sizes(Vec<Size>);

/// Multiple of the largest pass up to which all ways of cutting are compared; longer prompts begin with the size that
/// is cheapest per token.
const LARGEST: usize = 4;

/// The best way to read the last tokens of a prompt: its time, and the size it begins with.
#[derive(Debug, Clone, Copy)]
struct Way {
    seconds: f64,
    size: usize,
}

impl Sizes {
    pub(crate) fn new(mut sizes: Vec<Size>) -> Self {
        // Of equals the largest is taken: it leaves less.
        sizes.sort_by_key(|size| std::cmp::Reverse(size.tokens));
        Self(sizes)
    }

    /// The sizes of the passes for `remaining` tokens of a prompt, of which `done` are in the cache. `room` is the cache
    /// size for a number of positions.
    pub(crate) fn cut(&self, done: usize, remaining: usize, room: impl Fn(usize) -> usize) -> Vec<usize> {
        self.ways(done, remaining, room).into_iter().map(|way| way.size).collect()
    }

    /// The size of the next pass.
    pub(crate) fn next(&self, done: usize, remaining: usize, room: impl Fn(usize) -> usize) -> usize {
        self.cut(done, remaining, room).first().copied().unwrap_or(1)
    }

    /// Time of the passes.
    pub(crate) fn time(&self, done: usize, remaining: usize, room: impl Fn(usize) -> usize) -> f64 {
        self.ways(done, remaining, room).into_iter().map(|way| way.seconds).sum()
    }

    /// The passes, each with its own time.
    fn ways(&self, done: usize, remaining: usize, room: impl Fn(usize) -> usize) -> Vec<Way> {
        let largest = self.0.first().map_or(1, |size| size.tokens.max(1));
        let (mut ways, mut at, mut is_behind) = (Vec::new(), 0, false);
        while remaining - at > LARGEST * largest {
            let room = room(done + at);
            let by_token = |size: &&Size| size.cost(room, is_behind) / size.tokens as f64;
            let cheapest = self.0.iter().min_by(|a, b| by_token(a).total_cmp(&by_token(b)));
            let Some(size) = cheapest else { break };
            ways.push(Way { seconds: size.cost(room, is_behind), size: size.tokens });
            (at, is_behind) = (at + size.tokens, size.shared > 0.0);
        }
        let best = self.best(done + at, remaining - at, &room);
        while at < remaining {
            let Way { size: tokens, .. } = best[remaining - at][usize::from(is_behind)];
            let size = self.0.iter().find(|size| size.tokens == tokens);
            let seconds = size.map_or(f64::INFINITY, |size| size.cost(room(done + at), is_behind));
            ways.push(Way { seconds, size: tokens });
            (at, is_behind) = (at + tokens, size.is_some_and(|size| size.shared > 0.0));
        }
        ways
    }

    /// For each number of last tokens up to `remaining` the best way to read them: from scratch, and behind a pass that
    /// saves a part of the next one.
    fn best(&self, done: usize, remaining: usize, room: impl Fn(usize) -> usize) -> Vec<[Way; 2]> {
        let mut best = vec![[Way { seconds: 0.0, size: 1 }; 2]];
        for rest in 1..=remaining {
            let room = room(done + remaining - rest);
            let way = |is_behind: bool| {
                let ways = self.0.iter().map(|size| {
                    let then = best[rest.saturating_sub(size.tokens)][usize::from(size.shared > 0.0)];
                    Way { seconds: size.cost(room, is_behind) + then.seconds, size: size.tokens }
                });
                ways.min_by(|a, b| a.seconds.total_cmp(&b.seconds)).unwrap_or(Way { seconds: 0.0, size: 1 })
            };
            let both = [way(false), way(true)];
            best.push(both);
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(costs: &[(usize, f64)]) -> Sizes {
        let size = |(tokens, cost): &(usize, f64)| Size { tokens: *tokens, seconds: vec![(512, *cost)], shared: 0.0 };
        Sizes::new(costs.iter().map(size).collect())
    }

    /// The passes of a prompt, and their total time.
    fn cut(sizes: &Sizes, tokens: usize) -> (Vec<usize>, f64) {
        (sizes.cut(0, tokens, |_| 512), sizes.time(0, tokens, |_| 512))
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
                let of_size = |size: &usize| costs.iter().find(|(tokens, _)| tokens == size).unwrap().1;
                assert!((passes.iter().map(of_size).sum::<f64>() - cost).abs() < 1e-9, "{costs:?}, {tokens} tokens");
                assert_eq!(passes.first(), Some(&sizes.next(0, tokens, |_| 512)));
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
        assert_eq!(cut(&sizes, 100_000).0, vec![128; 782]);
        assert_eq!(sizes.next(0, 100_000, |_| 512), 128);
        assert_eq!(sizes.next(0, 2048, |_| 512), 128);
    }

    #[test]
    fn a_larger_cache_costs_what_was_measured_of_it() {
        let padded = Size { tokens: 512, seconds: vec![(512, 15.0), (2048, 30.0)], shared: 0.0 };
        let small = Size { tokens: 64, seconds: vec![(512, 8.0), (2048, 8.5)], shared: 0.0 };
        let sizes = Sizes::new(vec![padded.clone(), small]);
        assert_eq!(sizes.next(0, 128, |_| 512), 512);
        assert_eq!(sizes.next(4000, 128, |_| 8192), 64);
        assert_eq!(padded.cost(1280, false), 22.5);
        // Noise.
        let cheaper = Size { tokens: 1, seconds: vec![(512, 2.0), (2048, 1.9)], shared: 0.0 };
        assert_eq!(cheaper.cost(100_000, false), 2.0);
        assert_eq!(Size { shared: 9.0, ..cheaper }.cost(512, true), 0.0, "never less than nothing");
    }

    /// As in four bits: passes of engines unpack all weights, launches of the decode kernel none.
    fn packed() -> Vec<Size> {
        let size =
            |(tokens, seconds, shared): (usize, f64, f64)| Size { tokens, seconds: vec![(512, seconds)], shared };
        [(1, 2.2, 0.0), (64, 3.0, 0.0), (128, 11.0, 4.0), (512, 17.0, 2.0), (1024, 31.0, 1.0)].map(size).into()
    }

    #[test]
    fn what_passes_share_is_paid_once() {
        let sizes = Sizes::new(packed());
        assert_eq!(cut(&sizes, 256), (vec![64; 4], 12.0));
        assert_eq!(cut(&sizes, 512), (vec![512], 17.0));
        assert_eq!(cut(&sizes, 1536), (vec![1024, 512], 46.0), "31 + 15");
        // Behind a large pass one of 128 costs 7 of its 11, more than two launches.
        assert_eq!(cut(&sizes, 640), (vec![512, 64, 64], 23.0));
        assert_eq!(cut(&sizes, 10_000).0.len(), 10);
        let alone = Sizes::new(packed().into_iter().map(|size| Size { shared: 0.0, ..size }).collect());
        assert_eq!(cut(&alone, 1536), (vec![1024, 512], 48.0));
        let one = |shared| Sizes::new(vec![Size { tokens: 4, seconds: vec![(512, 5.0)], shared }]);
        assert_eq!((cut(&one(3.0), 12).1, cut(&one(0.0), 12).1), (9.0, 15.0));
    }

    #[test]
    fn with_a_share_too_the_sum_is_the_least() {
        /// The least by trying all ways.
        fn least(sizes: &[Size], tokens: usize, is_behind: bool) -> f64 {
            let rest = |size: &Size| least(sizes, tokens.saturating_sub(size.tokens), size.shared > 0.0);
            let ways = sizes.iter().map(|size| size.cost(512, is_behind) + rest(size));
            if tokens == 0 { 0.0 } else { ways.fold(f64::INFINITY, f64::min) }
        }
        let size =
            |(tokens, seconds, shared): (usize, f64, f64)| Size { tokens, seconds: vec![(512, seconds)], shared };
        for costs in [
            [(1, 1.0, 0.0), (4, 3.0, 2.5), (6, 5.0, 1.0)],
            [(2, 1.0, 0.0), (3, 9.0, 8.5), (7, 4.0, 0.0)],
            [(1, 2.0, 1.9), (5, 4.0, 0.0), (8, 7.0, 6.0)],
        ] {
            let (all, mut before) = (costs.map(size), 0.0);
            let sizes = Sizes::new(all.to_vec());
            for tokens in 1..=16 {
                let cost = sizes.time(0, tokens, |_| 512);
                assert!((cost - least(&all, tokens, false)).abs() < 1e-9, "{costs:?}, {tokens} tokens take {cost}");
                assert!(cost >= before - 1e-9, "{costs:?}: {tokens} tokens take {cost}, one less {before}");
                before = cost;
            }
        }
    }
}
