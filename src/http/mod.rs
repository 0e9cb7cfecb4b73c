//! The HTTP service: health, readiness, metrics, the API. One file a resource.
//!
//! ```text
//! listener (bounded) ─▶ guard (host, token, time, headers) ─▶ resource ─▶ snapshots, store
//! ```
//! # Invariants
//! - It reads snapshots and the store's rows; it never touches a worker's state.
//! - Away from loopback nothing but `/healthz` and `/readyz` answers without the token.
//! - Everything is bounded: connections, silence on one, a request's time, a body's size.
//!
//! `probe` is the other side: it asks a running service whether it lives.
//! TLS is left to a proxy in front: the token and the answers travel as they are.

mod answer;
mod guard;
mod health;
mod listener;
mod metrics;
mod probe;
mod subscriptions;
mod token;

use std::future::{Future, IntoFuture as _};
use std::net::SocketAddr;

use axum::extract::DefaultBodyLimit;
use axum::routing::get;
use axum::{Router, middleware};
use tokio::sync::watch;

use crate::config::Service;
use crate::error::{Diagnosis, Exit, Failure};
use crate::store::Store;
use crate::subscription::View;

pub use probe::probe;

use guard::Guard;
use listener::Bounded;

/// A request's body, bytes, at most.
const BODY_BYTES_MAX: usize = 64 << 10;

/// What requests are answered from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// What this process sees of its subscriptions.
    pub view: View,
    /// The target's record, once it could be opened.
    pub store: watch::Receiver<Option<Store>>,
}

/// The service, with its address bound and nothing served yet.
#[derive(Debug)]
pub struct Server {
    listener: Bounded,
    guard: Guard,
}

impl Server {
    /// Reads the token and takes the address.
    ///
    /// # Errors
    /// The configuration asks for what cannot be had ([`Exit::Usage`]): a token file that cannot be
    /// read or holds no token, an address that is in use or not this machine's.
    pub async fn bind(service: &Service) -> Result<Self, Failure> {
        let token = service.api_token_file.as_deref().map(token::read).transpose()?;
        let listener =
            Bounded::bind(service.listen).await.map_err(|error| bind_failed(service.listen, &error))?;
        Ok(Self { listener, guard: Guard::new(service.listen, token) })
    }

    /// The address that it has: another port than the configuration's where that says 0.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.address().ok()
    }

    /// Answers requests until `stop` is done, then finishes those under way.
    pub async fn serve(self, sources: Sources, stop: impl Future<Output = ()> + Send + 'static) {
        let app = router(sources, self.guard);
        // Its error type is that of a listener that gives up; ours tries again.
        let _ = axum::serve(self.listener, app).with_graceful_shutdown(stop).into_future().await;
    }
}

fn router(sources: Sources, guard: Guard) -> Router {
    // What an orchestrator asks for without a secret.
    let open = Router::new().route("/healthz", get(health::healthz)).route("/readyz", get(health::readyz));
    let guarded = Router::new()
        .route("/metrics", get(metrics::metrics))
        .route("/api/v1/subscriptions", get(subscriptions::list))
        .route("/api/v1/subscriptions/{name}", get(subscriptions::one))
        .route_layer(middleware::from_fn_with_state(guard.clone(), guard::require_token));
    open.merge(guarded)
        .fallback(answer::no_such_resource)
        .method_not_allowed_fallback(answer::no_such_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn(guard::limit_body))
        .layer(middleware::from_fn_with_state(guard.clone(), guard::require_host))
        .layer(middleware::from_fn(guard::limit_time))
        .layer(middleware::from_fn(guard::with_headers))
        .layer(axum::Extension(guard))
        .with_state(sources)
}

fn bind_failed(address: SocketAddr, error: &std::io::Error) -> Failure {
    let diagnosis = Diagnosis::new(format!("the HTTP service cannot listen on {address}"));
    let diagnosis = match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            diagnosis.detail("another process listens there, perhaps another pgsluice").hint(format!(
                "stop it (\"ss -ltnp 'sport = :{}'\" names it), or set service.listen to another port",
                address.port()
            ))
        }
        std::io::ErrorKind::PermissionDenied => diagnosis
            .detail(error.to_string())
            .hint("set service.listen to a port from 1024 on, which needs no privilege"),
        _ => diagnosis
            .detail(error.to_string())
            .hint("set service.listen to an address of this machine, such as 127.0.0.1:9650"),
    };
    Failure::new(Exit::Usage, diagnosis)
}
