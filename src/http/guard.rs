//! Authenticates requests, limits their duration, and sets the headers of every answer.
//!
//! - On loopback the `Host` header must name loopback. Otherwise a web page whose name resolves to
//!   127.0.0.1 (DNS rebinding) could read answers in the operator's browser.
//! - On other addresses, and wherever a token is configured, requests carry it: `Authorization: Bearer
//!   …`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{StatusCode, uri::Authority};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::BODY_BYTES_MAX;
use super::answer::Refusal;
use super::token::Token;
use crate::error::Diagnosis;

/// Time within which a request is answered or refused.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Headers of every answer: it is not cached, keeps its content type, and is not embedded in other
/// pages.
const HEADERS: [(HeaderName, HeaderValue); 6] = [
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        ),
    ),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];

/// Which hosts a request may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hosts {
    Loopback,
    /// The service cannot know all of its names, and the token protects it.
    Any,
}

/// The rules of one service.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    hosts: Hosts,
    token: Option<Token>,
}

impl Guard {
    pub(super) fn new(listen: SocketAddr, token: Option<Token>) -> Self {
        let hosts = if listen.ip().to_canonical().is_loopback() { Hosts::Loopback } else { Hosts::Any };
        Self { hosts, token }
    }

    /// Whether the request may see everything, because it has the token or none is needed.
    pub(super) fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else { return true };
        let presented = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let bearer = presented.and_then(|value| value.split_once(' '));
        bearer.is_some_and(|(scheme, value)| scheme.eq_ignore_ascii_case("bearer") && token.is(value.trim()))
    }

    fn knows_host(&self, headers: &HeaderMap) -> bool {
        match self.hosts {
            Hosts::Any => true,
            Hosts::Loopback => {
                let mut named = headers.get_all(header::HOST).iter();
                let only = named.next().filter(|_| named.next().is_none());
                only.and_then(|host| host.to_str().ok()).is_some_and(is_loopback)
            }
        }
    }
}

/// Whether a `Host` header names loopback, by address or as `localhost` (RFC 6761). The port is
/// ignored, since it may have been forwarded.
fn is_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    if host.contains('@') {
        return false;
    }
    let name = authority.host();
    if name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    address.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

pub(super) async fn require_token(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    if guard.admits(request.headers()) {
        return next.run(request).await;
    }
    let diagnosis = Diagnosis::new("this resource needs the API's token")
        .hint("send the header \"Authorization: Bearer TOKEN\" with the content of service.api_token_file");
    let challenge = [(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"pgsluice\""))];
    (challenge, Refusal::new(StatusCode::UNAUTHORIZED, diagnosis)).into_response()
}

pub(super) async fn require_host(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    if guard.knows_host(request.headers()) {
        return next.run(request).await;
    }
    let diagnosis = Diagnosis::new("the request names a host that is not this service")
        .detail("on loopback the Host header must be localhost, 127.0.0.1 or [::1]")
        .hint("to reach it under another name, listen on that address with service.api_token_file set");
    Refusal::new(StatusCode::MISDIRECTED_REQUEST, diagnosis).into_response()
}

/// Refuses a body whose announced length is too large. For a body without a length, axum's own limit
/// applies where it is read.
pub(super) async fn limit_body(request: Request, next: Next) -> Response {
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if length.is_some_and(|length| length.parse().is_ok_and(|bytes: u64| bytes > BODY_BYTES_MAX as u64)) {
        let diagnosis = Diagnosis::new(format!("the request's body has more than {BODY_BYTES_MAX} bytes"));
        return Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, diagnosis).into_response();
    }
    next.run(request).await
}

pub(super) async fn limit_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let diagnosis = Diagnosis::new("the answer has taken too long")
                .detail(format!("it is given up after {} s", REQUEST_TIMEOUT.as_secs()))
                .hint("the target may be slow; ask again");
            Refusal::new(StatusCode::GATEWAY_TIMEOUT, diagnosis).into_response()
        }
    }
}

pub(super) async fn with_headers(request: Request, next: Next) -> Response<Body> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, value);
    }
    tracing::trace!(%method, path, status = response.status().as_u16(), "request answered");
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_loopback() {
        for host in ["localhost", "LOCALHOST:9650", "127.0.0.1", "127.0.0.1:80", "127.1.2.3:1", "[::1]:9650"]
        {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:9650",
            "evil@localhost",
            "192.168.0.1:9650",
            "0.0.0.0",
            "::1",
            "[::1",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn a_host_is_named_once() {
        let guard = Guard::new("127.0.0.1:1".parse().unwrap(), None);
        let mut headers = HeaderMap::new();
        assert!(!guard.knows_host(&headers));
        headers.append(header::HOST, HeaderValue::from_static("localhost"));
        assert!(guard.knows_host(&headers));
        headers.append(header::HOST, HeaderValue::from_static("localhost"));
        assert!(!guard.knows_host(&headers));
    }
}
