//! Whether this node sees anybody else of its mesh, and what follows when it does not.
//!
//! Roots and certificates come through the mesh. A node that has lost sight of it goes on reading, and would show what it
//! knew on that day as if nothing were wrong. So it says that it is alone, in the log and to who asks for its health,
//! and asks the strata for newer roots itself, slowly. One that knows of nobody else, as the first node of a mesh or a
//! node outside of one, is alone by rights: it asks the strata, too, and is healthy.

use crate::model::{Generator, Rng as _, Time};
use crate::seldom::Seldom;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often it is looked whether somebody is seen.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long nobody must have been seen until that counts as trouble (guess: longer than it takes to restart a few members
/// or a switch, and than a node that starts first waits for the second).
const TROUBLE_AFTER: Duration = Duration::from_secs(60);
/// Pause between two warnings.
const WARN_EVERY: Duration = Duration::from_secs(300);
/// Until the strata are asked for the first time after a start that finds nobody, and its random part: members that are
/// where they were are found within a second or two, and a whole fleet may start at once (guess).
const FIRST_ASK: Duration = Duration::from_secs(10);
const FIRST_ASK_SPREAD_S: usize = 10;
/// Pause until they are asked, once nobody is seen any more, and between two times, and its random part: a root is one small
/// file, and a fleet of a thousand nodes that are all alone asks three times a second (guess).
const ASK_EVERY: Duration = Duration::from_secs(240);
const ASK_SPREAD_S: usize = 120;

#[derive(Debug)]
struct View {
    /// Since when nobody was seen.
    alone_since: Option<Time>,
    /// When the strata are asked next, if nobody is seen until then.
    ask_due: Time,
    /// When they are asked next for what members do not tell, whoever is seen.
    untold_due: Time,
    generator: Generator,
    trouble: Option<String>,
}

/// What this node has seen of others.
#[derive(Debug)]
pub(super) struct Company {
    view: Mutex<View>,
    warned: Seldom,
}

impl Company {
    /// Of a node that has just started.
    pub(super) fn new(now: Time, mut generator: Generator) -> Self {
        let spread = Duration::from_secs(generator.below(FIRST_ASK_SPREAD_S) as u64);
        let view = View {
            alone_since: Some(now),
            ask_due: now + FIRST_ASK + spread,
            untold_due: now + FIRST_ASK + spread,
            generator,
            trouble: None,
        };
        Self { view: Mutex::new(view), warned: Seldom::new(WARN_EVERY) }
    }

    /// `up` others are seen now, of `known` that are known, apart from this node. Whether to ask the strata for newer roots.
    pub(super) fn look(&self, up: usize, known: usize, now: Time) -> bool {
        let mut view = self.lock();
        if up > 0 {
            if view.trouble.take().is_some() {
                tracing::info!(up, "others of the mesh are seen again");
            }
            (view.alone_since, view.ask_due) = (None, view.next_ask(now));
            return false;
        }
        let since = *view.alone_since.get_or_insert(now);
        view.trouble = (known > 0 && now.since(since) >= TROUBLE_AFTER).then(|| {
            let known = if known == 1 { "1 member".to_owned() } else { format!("{known} members") };
            format!(
                "this node sees nobody of its mesh though it knew {known}: do they run, and is UDP open both ways? If all \
                 machines have new addresses, set `bootstrap` to names of some; who is gone for good: `starling mesh \
                 revoke NODE`"
            )
        });
        if let Some(trouble) = &view.trouble
            && let Some(held_back) = self.warned.pass()
        {
            let alone_s = now.since(since).as_secs();
            tracing::warn!(alone_s, held_back, "{trouble}");
        }
        let asks = view.ask_due <= now;
        if asks {
            view.ask_due = view.next_ask(now);
        }
        asks
    }

    /// Whether to ask the strata for newer roots of repositories of which members do not tell this node. As often as one that is
    /// alone asks for all.
    pub(super) fn asks_for_untold(&self, now: Time) -> bool {
        let mut view = self.lock();
        let asks = view.untold_due <= now;
        if asks {
            view.untold_due = view.next_ask(now);
        }
        asks
    }

    /// What is wrong, if anything is.
    pub(super) fn trouble(&self) -> Option<String> {
        self.lock().trouble.clone()
    }

    fn lock(&self) -> MutexGuard<'_, View> {
        // Each field is replaced as a whole.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl View {
    fn next_ask(&mut self, now: Time) -> Time {
        now + ASK_EVERY + Duration::from_secs(self.generator.below(ASK_SPREAD_S) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    /// When a node asks the strata that sees `up(second)` others.
    fn asks(company: &Company, seconds: std::ops::Range<u64>, up: impl Fn(u64) -> usize) -> Vec<u64> {
        seconds.filter(|second| company.look(up(*second), 3, at(*second))).collect()
    }

    #[test]
    fn who_has_neighbours_asks_no_stratum_and_who_is_alone_asks_slowly() {
        let company = Company::new(at(0), Generator::new(1));
        assert_eq!(asks(&company, 5..90_000, |_| 1), [0; 0]);
        let alone = asks(&company, 90_000..93_600, |_| 0);
        assert!((10..=15).contains(&alone.len()), "{alone:?}");
        assert!(alone[0] >= 90_000 + 239, "not at once: it may be seen again, {alone:?}");
        assert!(alone.windows(2).all(|pair| (240..=360).contains(&(pair[1] - pair[0]))), "{alone:?}");
    }

    #[test]
    fn what_members_do_not_tell_is_asked_for_slowly_whoever_is_seen() {
        let company = Company::new(at(0), Generator::new(2));
        let asked: Vec<u64> = (0..3_600)
            .filter(|second| {
                company.look(1, 3, at(*second));
                company.asks_for_untold(at(*second))
            })
            .collect();
        assert!((10..20).contains(&asked[0]) && (10..=16).contains(&asked.len()), "{asked:?}");
    }

    #[test]
    fn who_finds_nobody_at_its_start_asks_soon_and_not_together_with_the_others() {
        let first = |seed| asks(&Company::new(at(0), Generator::new(seed)), 0..60, |_| 0);
        let all: Vec<_> = (0..20).map(first).collect();
        assert!(all.iter().all(|asks| asks.len() == 1 && (10..20).contains(&asks[0])), "{all:?}");
        assert!(all.iter().any(|asks| *asks != all[0]), "{all:?}");
    }

    #[test]
    fn to_see_nobody_is_trouble_after_a_while_and_only_for_who_knows_somebody() {
        let company = Company::new(at(0), Generator::new(1));
        company.look(0, 3, at(59));
        assert_eq!(company.trouble(), None, "it has just started");
        company.look(0, 3, at(60));
        let trouble = company.trouble().unwrap();
        assert!(trouble.contains("knew 3 members") && trouble.contains("bootstrap"), "{trouble}");
        company.look(0, 0, at(62));
        assert_eq!(company.trouble(), None, "the others were revoked");
        company.look(0, 1, at(64));
        assert!(company.trouble().unwrap().contains("knew 1 member:"));
        company.look(1, 1, at(66));
        assert_eq!(company.trouble(), None);
        company.look(0, 1, at(70));
        company.look(0, 1, at(129));
        assert_eq!(company.trouble(), None);
        company.look(0, 1, at(130));
        assert!(company.trouble().is_some());
    }
}
