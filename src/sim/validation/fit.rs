//! Finds the values of a few parameters with which a cost is least: coordinate descent within bounds, on a scale of powers.
//!
//! One parameter after the other is made larger or smaller by a step, and keeps the value with which the cost is less. When a whole
//! round finds nothing better, the step is halved. It needs no derivatives, which a simulation has not, and draws nothing.

/// Part of its range by which a parameter is changed at first.
const FIRST_STEP: f64 = 0.25;
/// Below this part it ends.
const LAST_STEP: f64 = 0.02;

/// A parameter: between which values it lies, and where it begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Knob {
    pub(super) least: f64,
    pub(super) most: f64,
    pub(super) first: f64,
}

impl Knob {
    fn value(self, part: f64) -> f64 {
        self.least * (self.most / self.least).powf(part)
    }

    fn part(self) -> f64 {
        (self.first / self.least).ln() / (self.most / self.least).ln()
    }
}

/// The best values found, and their cost, after asking for the cost at most `asks_max` times.
pub(super) fn descend(
    knobs: &[Knob],
    asks_max: usize,
    mut cost: impl FnMut(&[f64]) -> f64,
) -> (Vec<f64>, f64) {
    let values =
        |parts: &[f64]| knobs.iter().zip(parts).map(|(knob, part)| knob.value(*part)).collect::<Vec<_>>();
    let mut parts: Vec<f64> = knobs.iter().map(|knob| knob.part().clamp(0.0, 1.0)).collect();
    let mut least = cost(&values(&parts));
    let (mut asks, mut step) = (1, FIRST_STEP);
    while step >= LAST_STEP {
        let before = least;
        for knob in 0..knobs.len() {
            for way in [step, -step] {
                let old = parts[knob];
                let new = (old + way).clamp(0.0, 1.0);
                if new == old || asks >= asks_max {
                    continue;
                }
                asks += 1;
                parts[knob] = new;
                let found = cost(&values(&parts));
                if found < least {
                    least = found;
                    break;
                }
                parts[knob] = old;
            }
        }
        if asks >= asks_max {
            break;
        }
        if least >= before {
            step /= 2.0;
        }
    }
    (values(&parts), least)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOBS: [Knob; 3] = [
        Knob { least: 10.0, most: 10_000.0, first: 1_000.0 },
        Knob { least: 1.0, most: 500.0, first: 20.0 },
        Knob { least: 1.0, most: 100.0, first: 1.0 },
    ];

    #[test]
    fn it_finds_what_was_hidden() {
        let hidden = [300.0, 70.0, 8.0];
        // What one parameter does the others partly undo, as delays of messages and of first bytes do.
        let cost = |values: &[f64]| {
            let off: Vec<f64> =
                values.iter().zip(hidden).map(|(value, hidden)| (value / hidden).ln()).collect();
            off.iter().map(|off| off.abs()).sum::<f64>() + (off[0] + off[1] + off[2]).abs()
        };
        let (found, least) = descend(&KNOBS, 500, cost);
        assert!(least < 0.3, "{found:?} {least}");
        for (found, hidden) in found.iter().zip(hidden) {
            assert!((found / hidden - 1.0).abs() < 0.15, "{found} for {hidden}");
        }
    }

    #[test]
    fn it_stays_within_bounds_and_asks_no_more_often_than_allowed() {
        let mut asked = 0;
        let (found, _) = descend(&KNOBS, 40, |values| {
            asked += 1;
            for (value, knob) in values.iter().zip(&KNOBS) {
                assert!((knob.least * 0.999..=knob.most * 1.001).contains(value), "{value}");
            }
            -values[0] - values[2]
        });
        assert!(asked <= 40, "{asked}");
        assert!((found[0] - 10_000.0).abs() < 1e-6 && (found[2] - 100.0).abs() < 1e-6, "{found:?}");
    }
}
