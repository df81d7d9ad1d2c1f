//! A decorator that repeats what may succeed the second time.

use super::{Arrived, Upstream, UpstreamError};
use crate::ambient;
use crate::model::{ChunkRef, Generator, RepositoryName, Rng as _};
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How often and how soon.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// Attempts in all. Default 3.
    pub attempts: u32,
    /// Pause before the second attempt; it doubles from there. Default 200 ms.
    pub first_pause: Duration,
    /// Longest pause. Default 2 s.
    pub max_pause: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts: 3, first_pause: Duration::from_millis(200), max_pause: Duration::from_secs(2) }
    }
}

/// Repeats failed fetches that are not permanent, after a pause that grows and is drawn at random
/// from its upper half, so that a fleet does not return in step.
#[derive(Debug)]
pub struct Retrying<U> {
    inner: U,
    policy: RetryPolicy,
    generator: Mutex<Generator>,
}

impl<U: Upstream> Retrying<U> {
    /// Decorates `inner`.
    pub fn new(inner: U, policy: RetryPolicy) -> Self {
        Self { inner, policy, generator: Mutex::new(ambient::generator()) }
    }

    async fn pause(&self, attempt: u32) {
        let longest = self.policy.first_pause.saturating_mul(1 << attempt.min(16)).min(self.policy.max_pause);
        let half = longest / 2;
        let spread = usize::try_from(half.as_micros()).unwrap_or(usize::MAX);
        let jitter = self.generator.lock().unwrap_or_else(PoisonError::into_inner).below(spread);
        tokio::time::sleep(half + Duration::from_micros(jitter as u64)).await;
    }
}

impl<U: Upstream> Upstream for Retrying<U> {
    fn fetch_root<'a>(
        &'a self,
        repository: &'a RepositoryName,
    ) -> BoxFuture<'a, Result<Bytes, UpstreamError>> {
        async move {
            let mut result = self.inner.fetch_root(repository).await;
            for attempt in 1..self.policy.attempts {
                if result.as_ref().err().is_none_or(UpstreamError::is_permanent) {
                    break;
                }
                self.pause(attempt - 1).await;
                result = self.inner.fetch_root(repository).await;
            }
            result
        }
        .boxed()
    }

    fn fetch_each<'a>(
        &'a self,
        repository: &'a RepositoryName,
        chunks: &'a [ChunkRef],
        arrived: &'a Arrived<'a>,
    ) -> BoxFuture<'a, Vec<Result<Bytes, UpstreamError>>> {
        async move {
            let mut results = self.inner.fetch_each(repository, chunks, arrived).await;
            for attempt in 1..self.policy.attempts {
                let again: Vec<usize> = (0..results.len())
                    .filter(|&i| results[i].as_ref().err().is_some_and(|error| !error.is_permanent()))
                    .collect();
                if again.is_empty() {
                    break;
                }
                self.pause(attempt - 1).await;
                let wanted: Vec<ChunkRef> = again.iter().map(|&i| chunks[i]).collect();
                let told = |position: usize, bytes: &Bytes| arrived(again[position], bytes);
                let answers = self.inner.fetch_each(repository, &wanted, &told).await;
                for (i, answer) in again.into_iter().zip(answers) {
                    results[i] = answer;
                }
            }
            results
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::conformance::{Fixture, Flaky, repository};

    fn quick() -> RetryPolicy {
        RetryPolicy { first_pause: Duration::from_millis(1), ..RetryPolicy::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_pass_is_repeated_and_only_the_failed_chunks_travel_again() {
        let fixture = Fixture::new();
        let flaky = Flaky::new(fixture.memory());
        flaky.fail_next_chunks(2, 503);
        let retrying = Retrying::new(flaky, quick());
        let results = retrying.fetch_chunks(&repository(), &fixture.chunks).await;
        fixture.assert_all(&results);
        let asked: Vec<usize> = retrying.inner.asked();
        assert_eq!(asked, [fixture.chunks.len(), 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_permanent_is_not_repeated() {
        let fixture = Fixture::new();
        let flaky = Flaky::new(fixture.memory());
        flaky.fail_next_chunks(1, 404);
        let retrying = Retrying::new(flaky, quick());
        let results = retrying.fetch_chunks(&repository(), &fixture.chunks).await;
        assert!(matches!(results[0], Err(UpstreamError::Status { status: 404, .. })));
        assert_eq!(retrying.inner.asked().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_are_bounded() {
        let fixture = Fixture::new();
        let flaky = Flaky::new(fixture.memory());
        flaky.fail_next_chunks(1000, 503);
        flaky.fail_next_roots(1000, 503);
        let retrying = Retrying::new(flaky, quick());
        let results = retrying.fetch_chunks(&repository(), &fixture.chunks[..1]).await;
        assert!(results[0].is_err() && retrying.fetch_root(&repository()).await.is_err());
        assert_eq!((retrying.inner.asked().len(), retrying.inner.roots_asked()), (3, 3));
    }
}
