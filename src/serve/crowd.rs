//! Limits connections in all and per address, and keeps room for health checks.
//!
//! A connection without a running request is expendable: if there are too many, the one that has been idle longest is
//! closed, of the address that has most. An incomplete head is no request yet.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::Response;
use tokio::sync::Notify;

/// Most connections, if the process may open that many files.
const MOST: usize = 1024;
/// Connections beyond the limit that may only ask for the server's health.
const SPARE: usize = 16;
/// Files reserved for everything else: libraries, weights, the journal.
const FILES: usize = 48;

/// The connections that exist.
pub(super) struct Crowd {
    most: usize,
    inner: Mutex<CrowdState>,
}

#[derive(Default)]
struct CrowdState {
    count: u64,
    seated: HashMap<u64, Seat>,
    spare: HashMap<u64, Seat>,
}

struct Seat {
    peer: IpAddr,
    activity: Arc<Activity>,
}

/// Activity of a connection.
pub(super) struct Activity {
    /// Number of requests running on it.
    running: AtomicUsize,
    last: Mutex<Instant>,
    close: Notify,
}

/// An admitted connection; dropping it frees its place.
pub(super) struct Guest {
    crowd: Arc<Crowd>,
    number: u64,
    pub(super) activity: Arc<Activity>,
    /// Whether it may only ask for the server's health.
    pub(super) spare: bool,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut inner = self.crowd.inner();
        let seats = if self.spare { &mut inner.spare } else { &mut inner.seated };
        seats.remove(&self.number);
    }
}

impl Activity {
    fn new() -> Self {
        Self { running: AtomicUsize::new(0), last: Mutex::new(Instant::now()), close: Notify::new() }
    }

    /// Waits until the connection must be closed to make room.
    pub(super) async fn closed(&self) {
        self.close.notified().await;
    }

    fn last(&self) -> MutexGuard<'_, Instant> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a request as running on a connection until it is dropped.
pub(super) struct Running(Arc<Activity>);

impl Running {
    pub(super) fn begin(activity: &Arc<Activity>) -> Self {
        activity.running.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(activity))
    }

    /// Keeps the request counted until the response's body has been sent.
    pub(super) fn until_the_end(self, response: Response<Body>) -> Response<Body> {
        response.map(|body| Body::new(Held { body, _running: self }))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.last() = Instant::now();
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Held {
    body: Body,
    _running: Running,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

impl Crowd {
    /// Sets the limit by the number of files that this process may open.
    pub(super) fn new() -> Arc<Self> {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let open = std::fs::read_dir("/proc/self/fd").map_or(FILES, Iterator::count);
        let free = limit.saturating_sub(open);
        let most = free.saturating_sub(FILES + SPARE).max(free / 4).clamp(4, MOST);
        Arc::new(Self { most, inner: Mutex::default() })
    }

    fn inner(&self) -> MutexGuard<'_, CrowdState> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a connection from `peer`; `None` if it must be closed at once.
    pub(super) fn enter(self: &Arc<Self>, peer: IpAddr) -> Option<Guest> {
        let mut inner = self.inner();
        let own = inner.seated.values().filter(|seat| seat.peer == peer).count();
        let full = inner.seated.len() >= self.most;
        // One address leaves others a quarter.
        let crowded = own >= self.most - self.most / 4;
        let seated = match (full, crowded) {
            (false, false) => true,
            (_, true) => inner.make_room(Some(peer)),
            (true, false) => inner.make_room(None),
        };
        // Who asks after the server's health does so at once: whoever came earlier and has not yet, makes room.
        if !seated
            && inner.spare.len() >= SPARE
            && !dismiss_idlest(&mut inner.spare, |seat| Some(*seat.activity.last()))
        {
            return None;
        }
        inner.count += 1;
        let (number, activity) = (inner.count, Arc::new(Activity::new()));
        let seats = if seated { &mut inner.seated } else { &mut inner.spare };
        seats.insert(number, Seat { peer, activity: Arc::clone(&activity) });
        Some(Guest { crowd: Arc::clone(self), number, activity, spare: !seated })
    }

    /// Closes an idle connection because the process has no file left for a new one.
    pub(super) fn make_room(&self) {
        self.inner().make_room(None);
    }
}

impl CrowdState {
    /// Closes the connection of `peer`, or of the address that has most, that has been idle longest; false if all are
    /// busy.
    fn make_room(&mut self, peer: Option<IpAddr>) -> bool {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        self.seated.values().for_each(|seat| *counts.entry(seat.peer).or_default() += 1);
        dismiss_idlest(&mut self.seated, |seat| {
            let his = peer.is_none_or(|peer| seat.peer == peer);
            his.then(|| (std::cmp::Reverse(counts.get(&seat.peer).copied()), *seat.activity.last()))
        })
    }
}

/// Closes the lowest-ranked of the idle connections for which `rank` is some; false if there is none.
fn dismiss_idlest<R: Ord>(seats: &mut HashMap<u64, Seat>, rank: impl Fn(&Seat) -> Option<R>) -> bool {
    let idle = seats.iter().filter(|(_, seat)| seat.activity.running.load(Ordering::Relaxed) == 0);
    let ranked = idle.filter_map(|(number, seat)| Some((rank(seat)?, *number)));
    let Some((_, number)) = ranked.min() else { return false };
    if let Some(seat) = seats.remove(&number) {
        seat.activity.close.notify_one();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crowd(most: usize) -> Arc<Crowd> {
        Arc::new(Crowd { most, inner: Mutex::default() })
    }

    #[test]
    fn silent_connections_of_whoever_has_most_make_room() {
        let crowd = crowd(8);
        let (flood, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let many: Vec<Guest> = (0..20).filter_map(|_| crowd.enter(flood)).collect();
        assert!(many.iter().all(|guest| !guest.spare));
        assert_eq!(crowd.inner().seated.len(), 6, "an address leaves others a quarter");
        let innocent: Vec<Guest> = (0..2).filter_map(|_| crowd.enter(other)).collect();
        let third = crowd.enter(other).unwrap();
        let of = |peer| crowd.inner().seated.values().filter(|seat| seat.peer == peer).count();
        assert_eq!((of(flood), of(other)), (5, 3), "the flood makes room");
        assert!(crowd.inner().seated.contains_key(&innocent[0].number) && !third.spare);
        drop((many, innocent, third));
        assert!(crowd.inner().seated.is_empty());
    }

    #[test]
    fn busy_connections_stay_and_health_has_spare_ones() {
        let crowd = crowd(4);
        let addresses: Vec<IpAddr> = (0..4).map(|last| IpAddr::from([10, 0, 0, last])).collect();
        let guests: Vec<Guest> = addresses.iter().map(|peer| crowd.enter(*peer).unwrap()).collect();
        let running: Vec<Running> = guests.iter().map(|guest| Running::begin(&guest.activity)).collect();
        let spare: Vec<Guest> = (0..SPARE).map(|_| crowd.enter(addresses[0]).unwrap()).collect();
        assert!(spare.iter().all(|guest| guest.spare));
        // Who says nothing on a spare connection makes room for the next; who is being answered does not.
        assert!(crowd.enter(addresses[0]).is_some_and(|guest| guest.spare));
        assert!(!crowd.inner().spare.contains_key(&spare[0].number));
        let asking: Vec<Running> = spare.iter().map(|guest| Running::begin(&guest.activity)).collect();
        let last = crowd.enter(addresses[0]).unwrap();
        let _asking_too = Running::begin(&last.activity);
        assert!(crowd.enter(addresses[0]).is_none());
        drop((spare, asking, last));
        drop(running);
        assert!(!crowd.enter(addresses[1]).unwrap().spare, "who has answered is idle");
    }
}
