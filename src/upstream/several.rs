//! A decorator over several strata of one repository: nearest first, fail-over, rest for the failing.
//!
//! Who is nearest is found by a race: all strata that are not resting are asked for the root, a few
//! hundred bytes, and the first to answer wins. The winner stays in front until it fails or the race
//! is run again, where it gets a head start: of two that are about equal, one keeps the warm
//! connections and caches. The others follow in the order in which they were given.

use super::{Arrived, Upstream, UpstreamError};
use crate::ambient;
use crate::model::{ChunkRef, RepositoryName, Time};
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{FuturesUnordered, Stream, StreamExt as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long the result of a race holds (guess: routes change seldom).
const RACE_EVERY: Duration = Duration::from_secs(600);
/// Longest race: whoever has not answered by then is not near.
const RACE_MAX: Duration = Duration::from_secs(2);
/// What the last winner is ahead by (guess: below what a reader notices).
const HEAD_START: Duration = Duration::from_millis(10);
/// Rest after the first failure; it doubles with each further one in a row.
const REST_FIRST: Duration = Duration::from_secs(1);
/// Longest rest.
const REST_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, Default)]
struct Health {
    failures_in_a_row: u32,
    rests_until: Time,
}

#[derive(Debug, Default)]
struct State {
    health: Vec<Health>,
    winner: Option<usize>,
    race_again: Time,
}

/// Several strata that hold the same repositories.
///
/// A stratum that rests is still asked when all others failed: no read is refused for an earlier
/// failure. What one lacks or delivers wrong is asked of the next.
pub struct Several {
    strata: Vec<Box<dyn Upstream>>,
    state: Mutex<State>,
    /// One race at a time; whoever comes meanwhile waits for its result.
    racing: tokio::sync::Mutex<()>,
}

impl Several {
    /// Strata in the order of preference as long as nothing is measured.
    pub fn new(strata: Vec<Box<dyn Upstream>>) -> Self {
        let state = State { health: vec![Health::default(); strata.len()], ..State::default() };
        Self { strata, state: Mutex::new(state), racing: tokio::sync::Mutex::new(()) }
    }

    /// The root as each stratum has it, in the order of their answers: replicas may lag, and only
    /// the caller can judge a root.
    pub fn every_root<'a>(
        &'a self,
        repository: &'a RepositoryName,
    ) -> impl Stream<Item = Result<Bytes, UpstreamError>> + Send + 'a {
        self.strata.iter().map(|stratum| stratum.fetch_root(repository)).collect::<FuturesUnordered<_>>()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All strata in the order in which to ask them now.
    fn order(&self) -> Vec<usize> {
        let now = ambient::now();
        let state = self.state();
        let mut order: Vec<usize> = (0..self.strata.len()).collect();
        order.sort_by_key(|&i| {
            let rest = state.health[i].rests_until;
            (if rest > now { rest } else { Time::ZERO }, state.winner != Some(i), i)
        });
        order
    }

    fn succeeded(&self, stratum: usize) {
        let before = std::mem::take(&mut self.state().health[stratum]);
        if before.failures_in_a_row > 0 {
            tracing::info!(stratum, failures = before.failures_in_a_row, "a stratum delivers again");
        }
    }

    fn failed(&self, stratum: usize, error: &UpstreamError) {
        if !error.blames_the_stratum() {
            return;
        }
        let now = ambient::now();
        let mut state = self.state();
        let health = &mut state.health[stratum];
        if health.rests_until > now {
            // Many requests meet the same outage at once: that is one failure, and one line in the log.
            return;
        }
        let first = health.failures_in_a_row == 0;
        let rest = REST_FIRST.saturating_mul(1 << health.failures_in_a_row.min(16)).min(REST_MAX);
        health.failures_in_a_row = health.failures_in_a_row.saturating_add(1);
        health.rests_until = now + rest;
        if state.winner == Some(stratum) {
            state.winner = None;
            state.race_again = Time::ZERO;
        }
        drop(state);
        if first {
            tracing::warn!(stratum, %error, "a stratum failed and rests");
        } else {
            tracing::debug!(stratum, %error, rest_ms = rest.as_millis(), "a stratum still fails and rests");
        }
    }

    /// The strata that would race now, and the last winner. `None` when there is nothing to decide.
    fn racers(&self) -> Option<(Vec<usize>, Option<usize>)> {
        let now = ambient::now();
        let state = self.state();
        let awake: Vec<usize> =
            (0..self.strata.len()).filter(|&i| state.health[i].rests_until <= now).collect();
        (state.race_again <= now && awake.len() > 1).then_some((awake, state.winner))
    }

    /// Finds the nearest stratum when that is due.
    async fn race(&self, repository: &RepositoryName) {
        if self.racers().is_none() {
            return;
        }
        let _one = self.racing.lock().await;
        let Some((awake, last_winner)) = self.racers() else { return };
        let mut answers: FuturesUnordered<_> = awake
            .into_iter()
            .map(|i| async move {
                if last_winner.is_some_and(|winner| winner != i) {
                    tokio::time::sleep(HEAD_START).await;
                }
                (i, self.strata[i].fetch_root(repository).await)
            })
            .collect();
        let first = async {
            while let Some((i, answer)) = answers.next().await {
                match answer {
                    Ok(_) => return Some(i),
                    Err(error) => self.failed(i, &error),
                }
            }
            None
        };
        let winner = tokio::time::timeout(RACE_MAX, first).await.ok().flatten();
        let mut state = self.state();
        state.winner = winner;
        state.race_again = ambient::now() + RACE_EVERY;
    }
}

impl Upstream for Several {
    fn fetch_root<'a>(
        &'a self,
        repository: &'a RepositoryName,
    ) -> BoxFuture<'a, Result<Bytes, UpstreamError>> {
        async move {
            let mut worst = UpstreamError::NoStratum;
            for stratum in self.order() {
                match self.strata[stratum].fetch_root(repository).await {
                    Ok(root) => {
                        self.succeeded(stratum);
                        return Ok(root);
                    }
                    Err(error) => {
                        self.failed(stratum, &error);
                        worst = more_hopeful(worst, error);
                    }
                }
            }
            Err(worst)
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
            self.race(repository).await;
            let mut results: Vec<Result<Bytes, UpstreamError>> =
                vec![Err(UpstreamError::NoStratum); chunks.len()];
            for stratum in self.order() {
                let missing: Vec<usize> = (0..chunks.len()).filter(|&i| results[i].is_err()).collect();
                if missing.is_empty() {
                    break;
                }
                let wanted: Vec<ChunkRef> = missing.iter().map(|&i| chunks[i]).collect();
                let told = |position: usize, bytes: &Bytes| arrived(missing[position], bytes);
                let answers = self.strata[stratum].fetch_each(repository, &wanted, &told).await;
                match answers
                    .iter()
                    .filter_map(|answer| answer.as_ref().err())
                    .find(|e| e.blames_the_stratum())
                {
                    Some(error) => self.failed(stratum, error),
                    None if answers.iter().any(Result::is_ok) => self.succeeded(stratum),
                    None => {}
                }
                for (i, answer) in missing.into_iter().zip(answers) {
                    results[i] =
                        match (std::mem::replace(&mut results[i], Err(UpstreamError::NoStratum)), answer) {
                            (Err(before), Err(now)) => Err(more_hopeful(before, now)),
                            (_, answer) => answer,
                        };
                }
            }
            results
        }
        .boxed()
    }
}

/// Of two failures the one that speaks for another attempt, else the later.
fn more_hopeful(before: UpstreamError, now: UpstreamError) -> UpstreamError {
    if now.is_permanent() && !before.is_permanent() { before } else { now }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::conformance::{Fixture, Flaky, repository};
    use std::sync::Arc;

    fn two(fixture: &Fixture) -> (Several, Arc<Flaky>, Arc<Flaky>) {
        let (a, b) = (Arc::new(Flaky::new(fixture.memory())), Arc::new(Flaky::new(fixture.memory())));
        (Several::new(vec![Box::new(a.clone()), Box::new(b.clone())]), a, b)
    }

    #[tokio::test]
    async fn what_one_fails_to_deliver_the_next_delivers() {
        let fixture = Fixture::new();
        let (several, a, b) = two(&fixture);
        a.fail_next_chunks(2, 404);
        b.delay_roots(Duration::from_millis(300));
        fixture.assert_all(&several.fetch_chunks(&repository(), &fixture.chunks).await);
        assert_eq!((a.asked(), b.asked()), (vec![fixture.chunks.len()], vec![2]));
        // A missing object is no reason to rest: the next call begins with the nearest again.
        fixture.assert_all(&several.fetch_chunks(&repository(), &fixture.chunks).await);
        assert_eq!(a.asked().len(), 2);
    }

    #[tokio::test]
    async fn wrong_bytes_are_had_from_the_next_and_their_sender_rests() {
        let fixture = Fixture::new();
        let (tampered, good) =
            (Arc::new(Flaky::new(fixture.tampered())), Arc::new(Flaky::new(fixture.memory())));
        good.delay_roots(Duration::from_millis(300));
        let several = Several::new(vec![Box::new(tampered.clone()), Box::new(good.clone())]);
        fixture.assert_all(&several.fetch_chunks(&repository(), &fixture.chunks).await);
        fixture.assert_all(&several.fetch_chunks(&repository(), &fixture.chunks).await);
        assert_eq!((tampered.asked().len(), good.asked().len()), (1, 2));
    }

    #[tokio::test]
    async fn the_fastest_goes_first_and_stays_there() {
        let fixture = Fixture::new();
        let (several, a, b) = two(&fixture);
        a.delay_roots(Duration::from_millis(300));
        for _ in 0..3 {
            fixture.assert_all(&several.fetch_chunks(&repository(), &fixture.chunks).await);
        }
        assert_eq!((a.asked().len(), b.asked().len(), b.roots_asked()), (0, 3, 1));
    }

    #[tokio::test]
    async fn one_that_rests_is_asked_when_nobody_else_delivers() {
        let fixture = Fixture::new();
        let (several, a, b) = two(&fixture);
        a.fail_next_roots(1, 503);
        b.fail_next_roots(1, 503);
        fixture.assert_all(&several.fetch_chunks(&repository(), &fixture.chunks).await);
        assert_eq!(a.asked().len() + b.asked().len(), 1);
    }

    #[test]
    fn requests_that_meet_one_outage_together_count_as_one_failure() {
        let (several, _a, _b) = two(&Fixture::new());
        let error = UpstreamError::Status { status: 503, url: "http://h/root".to_owned() };
        for _ in 0..16 {
            several.failed(0, &error);
        }
        let health = several.state().health[0];
        assert_eq!(health.failures_in_a_row, 1, "sixteen in flight are no reason to rest for a minute");
        assert!(health.rests_until > ambient::now());
        several.succeeded(0);
        assert_eq!(several.state().health[0].failures_in_a_row, 0);
    }

    #[tokio::test]
    async fn with_all_failing_the_error_says_whether_to_try_again() {
        let fixture = Fixture::new();
        let (several, a, b) = two(&fixture);
        a.fail_next_chunks(1, 503);
        b.fail_next_chunks(1, 404);
        let results = several.fetch_chunks(&repository(), &fixture.chunks[..1]).await;
        assert!(matches!(results[0], Err(UpstreamError::Status { status: 503, .. })), "{results:?}");
        let none = Several::new(Vec::new());
        assert_eq!(none.fetch_root(&repository()).await, Err(UpstreamError::NoStratum));
    }
}
