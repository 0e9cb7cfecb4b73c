//! Requests that are sent at once and whose answers are awaited later.
//!
//! A driver's future hands its request to the connection when it is first polled, and answers come in the
//! order of sending. So each request is polled once, which fixes its place in that order, and its answer is
//! awaited later.

use std::future::Future;
use std::pin::Pin;

use futures_util::FutureExt as _;

/// A request that has been handed to the connection.
pub(crate) struct Dispatched<T>(State<T>);

enum State<T> {
    Waiting(Pin<Box<dyn Future<Output = T> + Send>>),
    /// The first poll returned the answer.
    Answered(T),
    Taken,
}

impl<T: Send + 'static> Dispatched<T> {
    /// Hands the request to the connection.
    pub(crate) fn new(request: impl Future<Output = T> + Send + 'static) -> Self {
        let mut request: Pin<Box<dyn Future<Output = T> + Send>> = Box::pin(request);
        Self(match (&mut request).now_or_never() {
            None => State::Waiting(request),
            Some(answer) => State::Answered(answer),
        })
    }

    /// Waits for the answer; for ever if it has been returned before. Cancel-safe.
    pub(crate) async fn answer(&mut self) -> T {
        if let State::Waiting(request) = &mut self.0 {
            let answer = request.await;
            self.0 = State::Taken;
            return answer;
        }
        match std::mem::replace(&mut self.0, State::Taken) {
            State::Answered(answer) => answer,
            State::Waiting(_) | State::Taken => std::future::pending().await,
        }
    }
}
