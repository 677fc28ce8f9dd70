//! Accepts connections, limits their number, time and header size, and drains them at the end.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_io_timeout::TimeoutStream;

use super::ServeError;
use super::crowd::{Activity, Crowd, Guest};
use super::head::Strict;

/// Longest time for headers to arrive.
const HEADERS: Duration = Duration::from_secs(15);
/// Longest time for a client to accept written bytes.
const WRITE: Duration = Duration::from_secs(60);
/// Longest time for the headers of a spare connection, which may only ask for the server's health.
const SPARE_HEADERS: Duration = Duration::from_secs(2);
/// Most bytes of headers (hyper's minimum is 8 KiB).
const HEADER_BYTES: usize = 32 << 10;
/// Time to send final errors after answers are cut off.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// IP address of a connection's other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct PeerAddress(pub(super) IpAddr);

/// The connection that a request arrived on.
#[derive(Clone)]
pub(super) struct ConnectionInfo {
    pub(super) activity: Arc<Activity>,
    /// Whether it may only ask for the server's health.
    pub(super) spare: bool,
}

/// How serving ends.
pub(super) struct Shutdown<C> {
    /// Time for running answers to finish.
    pub(super) drain: Duration,
    /// Called after `drain` to cut off the answers that still run.
    pub(super) cut: C,
}

pub(super) async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| {
        let help = match source.kind() {
            std::io::ErrorKind::AddrInUse => "another server has this port; stop it, or choose another with --port",
            std::io::ErrorKind::PermissionDenied => "ports below 1024 are root's; choose another with --port",
            std::io::ErrorKind::AddrNotAvailable => "--host must be an address of this machine, 127.0.0.1 or 0.0.0.0",
            _ => "choose another address with --host and --port",
        };
        ServeError::Listen { address, source, help }
    })
}

/// Serves until `over` completes, then lets running answers finish as `end` says. New requests are meanwhile told that
/// the server is shutting down.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    over: impl Future<Output = ()>,
    end: Shutdown<impl FnOnce()>,
) {
    let graceful = GracefulShutdown::new();
    let crowd = Crowd::new();
    let mut over = pin!(over);
    loop {
        tokio::select! {
            accepted = accept(&listener, &crowd) => {
                if let Some((stream, guest, peer)) = accepted {
                    attend(stream, (guest, peer), &router, graceful.watcher());
                }
            }
            () = &mut over => break,
        }
    }
    let mut done = pin!(graceful.shutdown());
    let mut late = pin!(tokio::time::sleep(end.drain));
    // Connections that come now are not waited for.
    let unwatched = GracefulShutdown::new();
    loop {
        tokio::select! {
            () = &mut done => return,
            () = &mut late => break,
            accepted = accept(&listener, &crowd) => {
                if let Some((stream, guest, peer)) = accepted {
                    attend(stream, (guest, peer), &router, unwatched.watcher());
                }
            }
        }
    }
    (end.cut)();
    let _ = tokio::time::timeout(LAST_WORDS, done).await;
}

/// Waits for the next connection that [`Crowd`] admits.
async fn accept(listener: &TcpListener, crowd: &Arc<Crowd>) -> Option<(TcpStream, Guest, PeerAddress)> {
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, crowd.enter(peer.ip())?, PeerAddress(peer.ip()))),
        Err(_) => {
            // Out of files, most likely.
            crowd.make_room();
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

/// Serves a connection until it ends or must make room for another.
fn attend(stream: TcpStream, (guest, peer): (Guest, PeerAddress), router: &Router, watcher: Watcher) {
    // Every token is sent as it comes.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE));
    let line = ConnectionInfo { activity: Arc::clone(&guest.activity), spare: guest.spare };
    let service = router.clone().layer(Extension(peer)).layer(Extension(line));
    let mut builder = http1::Builder::new();
    let headers = if guest.spare { SPARE_HEADERS } else { HEADERS };
    builder.timer(TokioTimer::new()).header_read_timeout(headers).max_buf_size(HEADER_BYTES);
    let connection = builder.serve_connection(TokioIo::new(Strict::new(stream)), TowerToHyperService::new(service));
    let connection = watcher.watch(connection);
    tokio::spawn(async move {
        let activity = Arc::clone(&guest.activity);
        tokio::select! {
            // A client's broken connection is its own affair.
            _ = connection => {}
            () = activity.closed() => {}
        }
        drop(guest);
    });
}
