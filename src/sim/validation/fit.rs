//! Finds the values of a few parameters with which a cost is least: the simplex method of Nelder and Mead ("A simplex method for
//! function minimization", 1965), within bounds and on a scale of powers.
//!
//! It needs no derivatives, which a simulation has not, draws nothing, and follows valleys in which one parameter makes up for another,
//! where a search along one parameter after the other stands still. It is begun twice: the second time where the first ended.

/// Part of its range by which a parameter differs between the first corners.
const EDGE: f64 = 0.2;
/// When all corners are as near to each other, in parts of the ranges, it ends.
const NEAR: f64 = 0.01;

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
        ((self.first / self.least).ln() / (self.most / self.least).ln()).clamp(0.0, 1.0)
    }
}

/// A corner: its cost, and for each parameter a part of its range.
type Corner = (f64, Vec<f64>);

/// The best values found, and their cost, after asking for the cost at most `asks_max` times.
pub(super) fn fit(knobs: &[Knob], asks_max: usize, mut cost: impl FnMut(&[f64]) -> f64) -> (Vec<f64>, f64) {
    let values =
        |parts: &[f64]| knobs.iter().zip(parts).map(|(knob, part)| knob.value(*part)).collect::<Vec<_>>();
    let mut asks = 0;
    let mut ask = |parts: Vec<f64>| -> Option<Corner> {
        asks += 1;
        (asks <= asks_max).then(|| (cost(&values(&parts)), parts))
    };
    let first: Vec<f64> = knobs.iter().map(|knob| knob.part()).collect();
    let Some(mut best) = ask(first.clone()) else {
        return (values(&first), f64::INFINITY);
    };
    for _ in 0..2 {
        best = simplex(best, &mut ask);
    }
    (values(&best.1), best.0)
}

/// From one corner; ends as soon as nothing is answered any more.
fn simplex(first: Corner, ask: &mut impl FnMut(Vec<f64>) -> Option<Corner>) -> Corner {
    let mut corners = vec![first.clone()];
    for place in 0..first.1.len() {
        let mut parts = first.1.clone();
        parts[place] += if parts[place] < 0.5 { EDGE } else { -EDGE };
        match ask(parts) {
            Some(corner) => corners.push(corner),
            None => break,
        }
    }
    while corners.len() > first.1.len() {
        corners.sort_by(|a, b| a.0.total_cmp(&b.0));
        if is_small(&corners) || step(&mut corners, ask).is_none() {
            break;
        }
    }
    corners.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or(first)
}

fn is_small(corners: &[Corner]) -> bool {
    let (_, best) = &corners[0];
    let far = |(_, parts): &Corner| parts.iter().zip(best).any(|(part, best)| (part - best).abs() > NEAR);
    !corners.iter().any(far)
}

/// Replaces the worst of the sorted corners, or draws all nearer to the best. `None`: nothing was answered.
fn step(corners: &mut [Corner], ask: &mut impl FnMut(Vec<f64>) -> Option<Corner>) -> Option<()> {
    let last = corners.len() - 1;
    let count = last as f64;
    let worst = corners[last].clone();
    let middle: Vec<f64> = (0..worst.1.len())
        .map(|place| corners[..last].iter().map(|(_, parts)| parts[place]).sum::<f64>() / count)
        .collect();
    // So many times as far beyond the middle as the worst lies before it; what leaves the range stays at its end.
    let beyond = |times: f64| -> Vec<f64> {
        let of = |(middle, worst): (&f64, &f64)| (middle + times * (middle - worst)).clamp(0.0, 1.0);
        middle.iter().zip(&worst.1).map(of).collect()
    };
    let reflected = ask(beyond(1.0))?;
    if reflected.0 < corners[0].0 {
        let expanded = ask(beyond(2.0))?;
        corners[last] = if expanded.0 < reflected.0 { expanded } else { reflected };
        return Some(());
    }
    if reflected.0 < corners[last - 1].0 {
        corners[last] = reflected;
        return Some(());
    }
    let contracted = ask(beyond(if reflected.0 < worst.0 { 0.5 } else { -0.5 }))?;
    if contracted.0 < reflected.0.min(worst.0) {
        corners[last] = contracted;
        return Some(());
    }
    let best = corners[0].1.clone();
    for corner in &mut corners[1..] {
        let parts = corner.1.iter().zip(&best).map(|(part, best)| f64::midpoint(*part, *best)).collect();
        *corner = ask(parts)?;
    }
    Some(())
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
        let (found, least) = fit(&KNOBS, 300, cost);
        assert!(least < 0.3, "{found:?} {least}");
        for (found, hidden) in found.iter().zip(hidden) {
            assert!((found / hidden - 1.0).abs() < 0.15, "{found} for {hidden}");
        }
    }

    #[test]
    fn it_stays_within_bounds_and_asks_no_more_often_than_allowed() {
        for asks_max in [0, 1, 3, 40, 200] {
            let mut asked = 0;
            let (found, least) = fit(&KNOBS, asks_max, |values| {
                asked += 1;
                for (value, knob) in values.iter().zip(&KNOBS) {
                    assert!((knob.least * 0.999..=knob.most * 1.001).contains(value), "{value}");
                }
                -values[0].ln() - values[2].ln()
            });
            assert!(asked <= asks_max, "{asked} of {asks_max}");
            assert!(least <= -(1_000.0_f64.ln()) || asks_max == 0, "{found:?}");
            if asks_max == 200 {
                assert!(
                    (found[0] / 10_000.0 - 1.0).abs() < 0.1 && (found[2] / 100.0 - 1.0).abs() < 0.1,
                    "{found:?}"
                );
            }
        }
    }
}
