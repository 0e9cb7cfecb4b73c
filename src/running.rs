//! A future that goes on while something else is waited for, and keeps its output until that is asked for.
//!
//! What holds a resource must not stand still while somebody waits for that resource: a session of a pool, or a
//! connection whose next answers are read only after those of an earlier query have been taken.

use std::fmt;
use std::pin::Pin;

/// A future, its output, or nothing.
#[derive(Default)]
pub(crate) enum Running<'a, T> {
    Going(Pin<Box<dyn Future<Output = T> + Send + 'a>>),
    Ended(T),
    #[default]
    Nothing,
}

impl<'a, T> Running<'a, T> {
    pub(crate) fn new(future: impl Future<Output = T> + Send + 'a) -> Self {
        Self::Going(Box::pin(future))
    }

    pub(crate) const fn is_nothing(&self) -> bool {
        matches!(self, Self::Nothing)
    }

    /// Waits for the output and takes it. Nothing is lost if this is given up. If there is nothing, also because the
    /// output has been taken, it waits for ever.
    pub(crate) async fn end(&mut self) -> T {
        self.advance().await;
        match std::mem::replace(self, Self::Nothing) {
            Self::Ended(output) => output,
            Self::Going(_) | Self::Nothing => std::future::pending().await,
        }
    }

    /// Waits for `other`, while this goes on.
    pub(crate) async fn beside<U>(&mut self, other: impl Future<Output = U>) -> U {
        let mut other = std::pin::pin!(other);
        tokio::select! {
            biased;
            output = &mut other => return output,
            () = self.advance() => {}
        }
        other.await
    }

    /// Waits for the output and keeps it.
    async fn advance(&mut self) {
        if let Self::Going(future) = self {
            *self = Self::Ended(future.await);
        }
    }
}

impl<T> fmt::Debug for Running<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Going(_) => "Going",
            Self::Ended(_) => "Ended",
            Self::Nothing => "Nothing",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use tokio::sync::Semaphore;

    /// What is waited for may need what this holds.
    #[tokio::test]
    async fn it_goes_on_beside_what_waits_for_it() {
        let one = Semaphore::new(1);
        let mut running = Running::new(async {
            let held = one.acquire().await;
            tokio::task::yield_now().await;
            held.is_ok()
        });
        tokio::select! {
            biased;
            _ = running.end() => unreachable!("it has not ended yet"),
            () = std::future::ready(()) => {}
        }
        assert!(running.beside(async { one.acquire().await.is_ok() }).await);
        assert!(running.end().await);
    }

    #[tokio::test]
    async fn an_output_is_kept_and_taken_once() {
        let mut running = Running::new(std::future::ready(7));
        running.beside(tokio::task::yield_now()).await;
        assert_eq!(running.end().await, 7);
        tokio::select! {
            biased;
            again = running.end() => unreachable!("{again} was taken"),
            () = tokio::task::yield_now() => {}
        }
    }
}
