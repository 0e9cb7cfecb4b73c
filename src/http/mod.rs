//! The HTTP service: health, readiness, metrics and the API. Each resource has a file.
//!
//! ```text
//! listener (bounded) ─▶ guard (host, token, time, headers) ─▶ resource ─▶ snapshots, store
//! ```
//! # Invariants
//! - The service reads snapshots and the store's rows; it never touches a worker's state.
//! - On addresses other than loopback only `/healthz` and `/readyz` answer without the token.
//! - The number of connections, the silence on one, a request's time and a body's size are bounded.
//! - A new connection always gets a place, so `/healthz` answers whatever other clients do.
//!
//! `probe` is a client: it asks a running service whether it answers. There is no TLS here; where it is
//! needed, a proxy in front provides it.

mod answer;
mod guard;
mod health;
mod listener;
mod metrics;
mod places;
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

/// Largest size of a request's body, bytes.
const BODY_BYTES_MAX: usize = 64 << 10;

/// The data that requests are answered from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// State of this process's subscriptions.
    pub view: View,
    /// The store, once it could be opened.
    pub store: watch::Receiver<Option<Store>>,
}

/// The service with its address bound, not serving yet.
#[derive(Debug)]
pub struct Server {
    listener: Bounded,
    guard: Guard,
}

impl Server {
    /// Reads the token and binds the address.
    ///
    /// # Errors
    ///
    /// The configuration cannot be satisfied ([`Exit::Usage`]): the token file cannot be read or holds
    /// no token, or the address is in use or not an address of this machine.
    pub async fn bind(service: &Service) -> Result<Self, Failure> {
        let token = service.api_token_file.as_deref().map(token::read).transpose()?;
        let listener =
            Bounded::bind(service.listen).await.map_err(|error| bind_failed(service.listen, &error))?;
        Ok(Self { listener, guard: Guard::new(service.listen, token) })
    }

    /// Returns the bound address; its port differs from the configuration's if that is 0.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.address().ok()
    }

    /// Answers requests until `stop` completes, then finishes those in progress.
    pub async fn serve(self, sources: Sources, stop: impl Future<Output = ()> + Send + 'static) {
        let app = router(sources, self.guard);
        // The result is always `Ok`, because this listener retries a failed accept.
        let _ = axum::serve(self.listener, app).with_graceful_shutdown(stop).into_future().await;
    }
}

fn router(sources: Sources, guard: Guard) -> Router {
    // Routes that an orchestrator may ask for without a token.
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
