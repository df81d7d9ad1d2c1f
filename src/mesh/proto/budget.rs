//! The origin budget: how many bytes this node may take from the strata, whoever they are for.

use crate::model::Time;
use std::time::Duration;

/// A token bucket, kept as the moment at which it is full again (the generic cell rate algorithm of ITU-T I.371):
/// within any span of time no more passes than the burst and what flows in meanwhile. What is larger than the
/// bucket passes when the bucket is full, and is paid for afterwards: the budget delays and never refuses.
#[derive(Clone, Debug, Default)]
pub(super) struct Budget {
    full_at: Time,
}

impl Budget {
    /// Nothing was taken yet.
    pub(super) const FULL: Self = Self { full_at: Time::ZERO };

    /// Takes `bytes` out, or says when they can be taken. With a rate of 0 there is no budget.
    pub(super) fn take(
        &mut self,
        now: Time,
        bytes: u32,
        bytes_per_s: u64,
        burst_bytes: u64,
    ) -> Result<(), Time> {
        if bytes_per_s == 0 {
            return Ok(());
        }
        // Rounded up for what is taken and down for what there is.
        let nanos = |bytes: u64, up: u128| {
            let rate = u128::from(bytes_per_s);
            let nanos = (u128::from(bytes) * 1_000_000_000 + up * (rate - 1)) / rate;
            Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
        };
        let bytes = u64::from(bytes);
        let spare = nanos(burst_bytes.saturating_sub(bytes), 0);
        let ready = Time::ZERO + self.full_at.since(Time::ZERO + spare);
        if ready > now {
            return Err(ready);
        }
        self.full_at = self.full_at.max(now) + nanos(bytes, 1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Generator, Rng};

    #[test]
    fn no_span_of_time_sees_more_than_the_burst_and_what_flows_in() {
        let (rate, burst) = (10_000_u64, 50_000_u64);
        for seed in 0..50 {
            let (mut rng, mut budget, mut now) = (Generator::new(seed), Budget::default(), Time::ZERO);
            let mut taken: Vec<(Time, u64)> = Vec::new();
            for _ in 0..400 {
                let bytes = 1 + rng.below(20_000) as u64;
                match budget.take(now, u32::try_from(bytes).unwrap(), rate, burst) {
                    Ok(()) => taken.push((now, bytes)),
                    Err(ready) => {
                        assert!(ready > now, "a delay ends later");
                        now = ready;
                        assert_eq!(budget.take(now, u32::try_from(bytes).unwrap(), rate, burst), Ok(()));
                        taken.push((now, bytes));
                    }
                }
                now = now + Duration::from_millis(rng.below(1_500) as u64);
            }
            for first in 0..taken.len() {
                let mut sum = 0;
                for (at, bytes) in &taken[first..] {
                    sum += bytes;
                    let flowed = (*at - taken[first].0).as_nanos() * u128::from(rate) / 1_000_000_000;
                    assert!(u128::from(sum) <= u128::from(burst) + flowed + 1, "{sum} bytes, seed {seed}");
                }
            }
        }
    }

    #[test]
    fn what_is_larger_than_the_bucket_is_delayed_and_not_refused() {
        let mut budget = Budget::default();
        let second = |n: u64| Time::from_nanos(n * 1_000_000_000);
        assert_eq!(budget.take(second(0), 1_000, 100, 50), Ok(()));
        assert_eq!(budget.take(second(1), 1_000, 100, 50), Err(second(10)), "once it is paid for");
        assert_eq!(budget.take(second(10), 1_000, 100, 50), Ok(()));
        assert_eq!(budget.take(second(10), u32::MAX, 0, 0), Ok(()), "a rate of 0 is no budget");
    }
}
