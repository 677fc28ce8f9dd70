//! Connections: accepted, limited in number, time and size, and drained at the end.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;

use super::ServeError;

/// Connections at once.
const MOST: usize = 1024;
/// How long headers may take to arrive, and a client to take what is written.
const HEADERS: Duration = Duration::from_secs(15);
const WRITE: Duration = Duration::from_secs(60);
/// Bytes of headers (hyper's least is 8 KiB).
const HEADER_BYTES: usize = 32 << 10;

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Peer(pub(super) IpAddr);

pub(super) async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| {
        let hint = match source.kind() {
            std::io::ErrorKind::AddrInUse => "another server has this port; stop it, or choose another with --port",
            std::io::ErrorKind::PermissionDenied => "ports below 1024 are root's; choose another with --port",
            std::io::ErrorKind::AddrNotAvailable => "--host must be an address of this machine, 127.0.0.1 or 0.0.0.0",
            _ => "choose another address with --host and --port",
        };
        ServeError::Listen { address, source, hint }
    })
}

/// Serves until `over`, then lets answers end for as long as `drain`.
pub(super) async fn serve(listener: TcpListener, router: Router, over: impl Future<Output = ()>, drain: Duration) {
    let graceful = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(MOST));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(HEADER_BYTES);
    let mut over = pin!(over);
    loop {
        let permit = tokio::select! {
            permit = Arc::clone(&room).acquire_owned() => permit,
            () = &mut over => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut over => break,
        };
        let Ok((stream, peer)) = accepted else {
            // Out of files, most likely: others must end first.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        // Every token is sent as it comes.
        let _ = stream.set_nodelay(true);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(WRITE));
        let service = TowerToHyperService::new(router.clone().layer(Extension(Peer(peer.ip()))));
        let connection = builder.serve_connection(TokioIo::new(Box::pin(stream)), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // A client's broken connection is its own affair.
            let _ = connection.await;
            drop(permit);
        });
    }
    drop(listener);
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(drain) => {}
    }
}
