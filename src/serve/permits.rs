//! A fair semaphore: the next permit goes to the waiting client that holds fewest, and among equals to the first.
//!
//! A client is identified by two numbers: its source (address and key), and the user that it claims to act for. That
//! claim separates it only from others of its own source.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// A number of permits and those who wait for them.
#[derive(Debug, Clone)]
pub(super) struct Permits(Arc<Mutex<PermitState>>);

#[derive(Debug)]
struct PermitState {
    free: usize,
    /// Permits held, by source, and by source and user; clients without permits have no entry.
    held: HashMap<(u64, Option<u64>), usize>,
    waiting: Vec<([u64; 2], oneshot::Sender<Permit>)>,
}

/// A permit, which is released when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    permits: Permits,
    who: [u64; 2],
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut inner = self.permits.inner();
        inner.free += 1;
        for who in keys(self.who) {
            if let Some(held) = inner.held.get_mut(&who) {
                *held -= 1;
                if *held == 0 {
                    inner.held.remove(&who);
                }
            }
        }
        drop(inner);
        self.permits.grant();
    }
}

fn keys([source, client]: [u64; 2]) -> [(u64, Option<u64>); 2] {
    [(source, None), (source, Some(client))]
}

impl Permits {
    pub(super) fn new(count: usize) -> Self {
        Self(Arc::new(Mutex::new(PermitState { free: count, held: HashMap::new(), waiting: Vec::new() })))
    }

    fn inner(&self) -> MutexGuard<'_, PermitState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a permit; `None` if there will be no more.
    pub(super) async fn acquire(&self, who: [u64; 2]) -> Option<Permit> {
        let (sender, receiver) = oneshot::channel();
        self.inner().waiting.push((who, sender));
        self.grant();
        receiver.await.ok()
    }

    fn grant(&self) {
        loop {
            let mut inner = self.inner();
            inner.waiting.retain(|(_, sender)| !sender.is_closed());
            let held = |who: [u64; 2]| keys(who).map(|key| inner.held.get(&key).copied().unwrap_or(0));
            // The first of equals came first.
            let next = inner.waiting.iter().enumerate().min_by_key(|(_, (who, _))| held(*who));
            let Some(at) = next.map(|(at, _)| at).filter(|_| inner.free > 0) else { return };
            let (who, sender) = inner.waiting.remove(at);
            inner.free -= 1;
            for key in keys(who) {
                *inner.held.entry(key).or_default() += 1;
            }
            drop(inner);
            // Whoever has gone meanwhile gives it back, by dropping it.
            drop(sender.send(Permit { permits: self.clone(), who }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::unbounded_channel;

    #[tokio::test]
    async fn whoever_holds_fewest_is_next() {
        let permits = Permits::new(2);
        let held = [permits.acquire([7, 0]).await.unwrap(), permits.acquire([7, 0]).await.unwrap()];
        let (sender, mut granted) = unbounded_channel();
        let mut waiting = Vec::new();
        for (number, client) in [(0, 7), (1, 7), (2, 8), (3, 9), (4, 8)] {
            let (permits, sender) = (permits.clone(), sender.clone());
            waiting.push(tokio::spawn(async move { sender.send((number, permits.acquire([client, number]).await)) }));
            tokio::task::yield_now().await;
        }
        // One goes away before its turn.
        waiting.remove(3).abort();
        tokio::task::yield_now().await;
        let mut order = Vec::new();
        drop(held);
        while order.len() < 4 {
            let (number, permit) = granted.recv().await.unwrap();
            order.push(number);
            drop(permit);
        }
        order.sort_unstable();
        assert_eq!(order, [0, 1, 2, 4]);
        let inner = permits.inner();
        assert!(inner.free == 2 && inner.held.is_empty() && inner.waiting.is_empty(), "{inner:?}");
    }

    #[tokio::test]
    async fn a_flood_does_not_keep_others_out() {
        let permits = Permits::new(2);
        let [first, _second] = [permits.acquire([7, 0]).await.unwrap(), permits.acquire([7, 0]).await.unwrap()];
        let (sender, mut granted) = unbounded_channel();
        // A flood may say that it is many.
        for (number, client) in [(1, 7), (2, 7), (3, 7), (4, 7), (5, 8)] {
            let (permits, sender) = (permits.clone(), sender.clone());
            tokio::spawn(async move { sender.send((client, permits.acquire([client, number]).await)) });
        }
        tokio::task::yield_now().await;
        drop(first);
        assert_eq!(granted.recv().await.unwrap().0, 8);
    }
}
