//! The queue of requests that wait for a slot, fair between clients: next is the client with the fewest running
//! requests, among equals the one served longest ago, and its oldest request.

use std::collections::{HashMap, VecDeque};

use super::request::Request;

/// Waiting requests.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<(u64, Request)>,
    /// When each client was last served, as the number of requests served before.
    served: HashMap<u64, u64>,
    count: u64,
}

/// Most clients that are remembered while others wait; above that all are forgotten.
const REMEMBERED: usize = 1024;

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn push(&mut self, number: u64, request: Request) {
        self.waiting.push_back((number, request));
    }

    pub(super) fn remove(&mut self, number: u64) {
        self.waiting.retain(|(have, _)| *have != number);
    }

    /// Removes the next request; `running` are the clients of the requests in slots.
    pub(super) fn pop(&mut self, running: &[u64]) -> Option<(u64, Request)> {
        let rank = |client: u64| {
            let now = running.iter().filter(|other| **other == client).count();
            (now, self.served.get(&client).copied().unwrap_or(0))
        };
        // The first of equals is the oldest.
        let (at, _) = self.waiting.iter().enumerate().min_by_key(|(_, (_, request))| rank(request.client))?;
        let next = self.waiting.remove(at)?;
        self.count += 1;
        if self.waiting.is_empty() || self.served.len() >= REMEMBERED {
            self.served.clear();
        }
        self.served.insert(next.1.client, self.count);
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_keeps_others_waiting() {
        let mut queue = Queue::default();
        for (number, client) in [(1, 7), (2, 7), (3, 7), (4, 8), (5, 9), (6, 8)] {
            queue.push(number, Request { client, ..Request::default() });
        }
        queue.remove(2);
        let mut order = Vec::new();
        let mut running = Vec::new();
        while let Some((number, request)) = queue.pop(&running) {
            order.push(number);
            // Client 9's answer is a long one.
            running = if request.client == 9 { vec![9] } else { running };
        }
        assert_eq!(order, [1, 4, 5, 3, 6]);
    }
}
