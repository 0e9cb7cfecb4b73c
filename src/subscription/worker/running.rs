//! A future that goes on while something else is waited for, and keeps its output until that is asked for.

use std::pin::Pin;

/// A future, or its output.
pub(super) enum Running<'a, T> {
    Going(Pin<Box<dyn Future<Output = T> + Send + 'a>>),
    Ended(T),
    Taken,
}

impl<'a, T> Running<'a, T> {
    pub(super) fn new(future: impl Future<Output = T> + Send + 'a) -> Self {
        Self::Going(Box::pin(future))
    }

    /// Waits for the output and takes it. Nothing is lost if this is given up. Once the output has been taken, it
    /// waits for ever.
    pub(super) async fn end(&mut self) -> T {
        self.advance().await;
        match std::mem::replace(self, Self::Taken) {
            Self::Ended(output) => output,
            Self::Going(_) | Self::Taken => std::future::pending().await,
        }
    }

    /// Waits for `other`, while this goes on.
    pub(super) async fn beside<U>(&mut self, other: impl Future<Output = U>) -> U {
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
