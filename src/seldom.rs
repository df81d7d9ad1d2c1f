//! Warnings that others can provoke must not fill the log: of each kind one passes in a while, and tells how many were
//! held back before it.

use crate::ambient;
use crate::model::Time;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// One kind of warning.
#[derive(Debug)]
pub struct Seldom {
    pause: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next: Time,
    held_back: u64,
}

impl Seldom {
    /// A kind of warning of which at most one passes each `pause`.
    pub const fn new(pause: Duration) -> Self {
        Self { pause, state: Mutex::new(State { next: Time::ZERO, held_back: 0 }) }
    }

    /// Whether a warning may be written now, and how many were held back since the last.
    ///
    /// ```
    /// # use starling::seldom::Seldom;
    /// static REFUSED: Seldom = Seldom::new(std::time::Duration::from_secs(60));
    /// assert_eq!((REFUSED.pass(), REFUSED.pass()), (Some(0), None));
    /// ```
    pub fn pass(&self) -> Option<u64> {
        let now = ambient::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now < state.next {
            state.held_back += 1;
            return None;
        }
        state.next = now + self.pause;
        Some(std::mem::take(&mut state.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_warning_passes_in_a_while_and_tells_of_the_others() {
        let _seeded = ambient::seeded::enter(1);
        let seldom = Seldom::new(Duration::from_secs(10));
        let passed: Vec<_> = (0..100).filter_map(|_| seldom.pass()).collect();
        assert_eq!(passed, [0]);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!((seldom.pass(), seldom.pass()), (Some(99), None));
    }
}
