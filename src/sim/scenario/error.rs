//! What is wrong with a scenario, and where in its text: shown with the line, as a compiler does.

use std::fmt;
use std::ops::Range;

/// Most characters of a line that are shown.
const SHOWN_MAX: usize = 100;
/// Characters before the wrong part that are shown of a longer line.
const SHOWN_BEFORE: usize = 40;

/// Why a file is not a scenario that can be run, and where it says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScenarioError {
    /// What is wrong.
    pub problem: Problem,
    /// Where, if the text has a place for it.
    pub place: Option<Box<Excerpt>>,
}

/// What is wrong with a scenario.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The text is not TOML.
    #[error("{0}")]
    Syntax(String),
    /// A key that nothing is known by.
    #[error("unknown key `{key}`{}", meant(.instead.as_deref()))]
    Unknown {
        /// The key, with its table.
        key: String,
        /// The known one that is most like it.
        instead: Option<String>,
    },
    /// A key that every scenario has.
    #[error("`{key}` is missing: {meaning}")]
    Missing {
        /// The key, with its table.
        key: String,
        /// What it would say.
        meaning: String,
    },
    /// A value makes no sense.
    #[error("{key} = {found}: must be {must}")]
    Value {
        /// The key, with its table.
        key: String,
        /// The offending value.
        found: String,
        /// What it must be.
        must: String,
    },
}

fn meant(instead: Option<&str>) -> String {
    instead.map(|instead| format!("; did you mean `{instead}`?")).unwrap_or_default()
}

impl ScenarioError {
    /// What TOML's own reader found wrong in `text`.
    pub fn from_toml(error: &toml::de::Error, text: &str) -> Self {
        let what = error.message().lines().collect::<Vec<_>>().join(", ");
        let place = error.span().map(|span| Box::new(Excerpt::of(text, span)));
        Self { problem: Problem::Syntax(what), place }
    }

    /// The same, at this place of the text unless it has one.
    #[must_use]
    pub(super) fn at(mut self, text: &str, span: Option<Range<usize>>) -> Self {
        if self.place.is_none() {
            self.place = span.map(|span| Box::new(Excerpt::of(text, span)));
        }
        self
    }

    /// The number of the line, from 1.
    pub fn line(&self) -> Option<usize> {
        self.place.as_ref().map(|place| place.line)
    }
}

impl From<Problem> for ScenarioError {
    fn from(problem: Problem) -> Self {
        Self { problem, place: None }
    }
}

impl fmt::Display for ScenarioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            None => self.problem.fmt(f),
            Some(place) => {
                write!(f, "line {}, column {}: {}\n{place}", place.line, place.column, self.problem)
            }
        }
    }
}

impl std::error::Error for ScenarioError {}

/// Refuses a value unless it is fine.
///
/// # Errors
/// [`Problem::Value`], without its place: who has the text adds that.
pub fn check(
    is_fine: bool,
    key: &str,
    found: impl fmt::Display,
    must: impl Into<String>,
) -> Result<(), ScenarioError> {
    if is_fine {
        return Ok(());
    }
    Err(Problem::Value { key: key.to_owned(), found: found.to_string(), must: must.into() }.into())
}

/// The line of a text in which something stands, with the something marked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// The number of the line, from 1.
    pub line: usize,
    /// The number of its first marked character, from 1.
    pub column: usize,
    shown: String,
    /// Characters of `shown` before the marked ones, and the marked ones.
    before: usize,
    marked: usize,
}

impl Excerpt {
    /// Of the line in which `span` begins. It may lie outside of the text, or cut a character.
    pub fn of(text: &str, span: Range<usize>) -> Self {
        let whole = |mut at: usize| {
            at = at.min(text.len());
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let (start, end) = (whole(span.start), whole(span.end));
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
        let before = text[line_start..start].chars().count();
        let marked = text[start..end.clamp(start, line_end)].chars().count().max(1);
        // A long line is shown around the place only, and nothing of it speaks to the terminal.
        let skipped = if before + marked <= SHOWN_MAX { 0 } else { before.saturating_sub(SHOWN_BEFORE) };
        let clean = |c: char| if c.is_control() { ' ' } else { c };
        let shown: String =
            text[line_start..line_end].chars().skip(skipped).take(SHOWN_MAX).map(clean).collect();
        let before_shown = before - skipped;
        Self {
            line: text[..start].matches('\n').count() + 1,
            column: before + 1,
            shown: shown.trim_end().to_owned(),
            before: before_shown,
            marked: marked.min(SHOWN_MAX.saturating_sub(before_shown).max(1)),
        }
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        writeln!(f, "{margin} |")?;
        writeln!(f, "{number} | {}", self.shown)?;
        write!(f, "{margin} | {}{}", " ".repeat(self.before), "^".repeat(self.marked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wrong_part_of_a_line_is_marked() {
        let text = "one = 1\nzwölf = 13 # no\n";
        let place = Excerpt::of(text, 17..19);
        assert_eq!((place.line, place.column), (2, 9));
        assert_eq!(place.to_string(), "  |\n2 | zwölf = 13 # no\n  |         ^^");
    }

    #[test]
    fn a_long_line_is_cut_and_control_characters_are_not_shown() {
        let text = format!("{}\u{1b}[31m = 5", "x".repeat(5_000));
        let shown = Excerpt::of(&text, 4_990..5_000).to_string();
        assert!(shown.lines().all(|line| line.chars().count() <= SHOWN_MAX + 4), "{shown}");
        assert!(!shown.contains('\u{1b}') && shown.contains("[31m = 5"), "{shown}");
    }

    #[test]
    fn no_place_is_out_of_bounds() {
        for text in ["", "\n", "ä", "a = 1\r\nb"] {
            for start in 0..8 {
                for end in 0..8 {
                    let place = Excerpt::of(text, start..end);
                    assert!(place.line >= 1 && place.column >= 1 && place.to_string().contains('^'));
                }
            }
        }
    }
}
