//! Medians, intervals, and the table.

use crate::rows::{Row, Unit};
use serde_json::{Value, json};

/// The median of some figures, and an interval for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Summary {
    /// The interval holds the median with at least 95 % by order statistics: it reaches from the `r`-th smallest to the
    /// `r`-th largest figure, with the largest `r` for which a fair coin shows less than `r` heads in as many throws with at most
    /// 2.5 %. Fewer than six figures have no such `r`, and their whole range stands here (five: 94 %).
    ///
    /// # Panics
    /// Without figures.
    pub(crate) fn of(figures: &[f64]) -> Self {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let count = sorted.len();
        let (mut rank, mut below) = (0, 0.0);
        let mut chance = 0.5_f64.powi(i32::try_from(count).expect("few figures"));
        while rank < count / 2 {
            below += chance;
            if below > 0.025 {
                break;
            }
            chance *= (count - rank) as f64 / (rank + 1) as f64;
            rank += 1;
        }
        let outer = rank.saturating_sub(1);
        let median = f64::midpoint(sorted[(count - 1) / 2], sorted[count / 2]);
        Self { median, low: sorted[outer], high: sorted[count - 1 - outer] }
    }

    fn json(self) -> Value {
        json!({ "median": self.median, "low": self.low, "high": self.high })
    }
}

/// A row in one column.
pub(crate) struct Cell {
    pub(crate) column: String,
    /// Time over native time, pair by pair; or seconds, where there is nothing to compare with.
    pub(crate) figure: Summary,
    /// Seconds of each run.
    pub(crate) ours_s: Vec<f64>,
    /// MB from peers and from strata of the last run, where the cache was empty.
    pub(crate) obtained: Option<(f64, f64)>,
}

/// What came of a row.
pub(crate) struct Outcome {
    pub(crate) row: &'static Row,
    pub(crate) pairs: usize,
    /// Seconds of each native run, where there is one.
    pub(crate) native_s: Vec<f64>,
    pub(crate) cells: Vec<Cell>,
}

impl Outcome {
    /// Whether no column passes its limit.
    pub(crate) fn holds(&self) -> bool {
        self.cells.iter().all(|cell| self.verdict(cell) != Some(false))
    }

    /// Whether the limit holds, where there is one.
    fn verdict(&self, cell: &Cell) -> Option<bool> {
        Some(cell.figure.median <= self.row.limit(&cell.column)?)
    }

    /// Its lines of the table, one a column.
    pub(crate) fn lines(&self) -> String {
        let mut lines = String::new();
        for cell in &self.cells {
            let Summary { median, low, high } = cell.figure;
            let digits = if self.row.unit == Unit::Seconds { 3 } else { 2 };
            let native = if self.native_s.is_empty() {
                "-".to_owned()
            } else {
                format!("{:.4}", Summary::of(&self.native_s).median)
            };
            let ours = Summary::of(&cell.ours_s).median;
            let limit =
                self.row.limit(&cell.column).map_or_else(|| "-".to_owned(), |limit| limit.to_string());
            let verdict = match self.verdict(cell) {
                Some(true) => "holds",
                Some(false) => "MISSES",
                None => "",
            };
            let figure =
                format!("{median:.digits$}{} [{low:.digits$}-{high:.digits$}]", self.row.unit.sign());
            lines.push_str(&format!(
                "{:<46} {:<12} {figure:>24} {native:>9} {ours:>9.4} {:>5} {:>9} {limit:>6} {verdict}\n",
                self.row.title, cell.column, self.pairs, self.row.cernvm
            ));
            if let Some((peers, strata)) = cell.obtained {
                lines.push_str(&format!(
                    "{:<46} {peers:.1} MB from the peer, {strata:.1} MB from the stratum\n",
                    ""
                ));
            }
        }
        lines
    }

    pub(crate) fn json(&self) -> Value {
        let cells: Vec<Value> = self
            .cells
            .iter()
            .map(|cell| {
                json!({
                    "profile": cell.column,
                    "figure": cell.figure.json(),
                    "ours_s": cell.ours_s,
                    "limit": self.row.limit(&cell.column),
                    "holds": self.verdict(cell),
                    "obtained_mb": cell.obtained.map(|(peers, strata)| json!({ "peers": peers, "strata": strata })),
                })
            })
            .collect();
        json!({
            "row": self.row.key,
            "title": self.row.title,
            "unit": self.row.unit.name(),
            "cernvm_fs": self.row.cernvm,
            "pairs": self.pairs,
            "native_s": self.native_s,
            "profiles": cells,
        })
    }
}

/// The line above all others.
pub(crate) fn head() -> String {
    format!(
        "{:<46} {:<12} {:>24} {:>9} {:>9} {:>5} {:>9} {:>6}",
        "workload", "profile", "x native [95 %]", "native s", "ours s", "pairs", "CernVM-FS", "limit"
    )
}
