//! A scenario's text as a tree of which each part knows its place, so that whatever is wrong can be shown in its line.

use super::error::{Problem, ScenarioError};
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

/// A key with its place.
pub(super) type Name<'a> = Spanned<Cow<'a, str>>;
/// A value with its place.
pub(super) type Value<'a> = Spanned<DeValue<'a>>;

/// A parsed text, and the text.
#[derive(Clone, Debug)]
pub(super) struct Document<'a> {
    text: &'a str,
    root: DeTable<'a>,
    span: Range<usize>,
}

impl<'a> Document<'a> {
    /// Parses a text.
    pub(super) fn parse(text: &'a str) -> Result<Self, ScenarioError> {
        let root = DeTable::parse(text).map_err(|error| ScenarioError::from_toml(&error, text))?;
        let span = root.span();
        Ok(Self { text, root: root.into_inner(), span })
    }

    /// A tree without anything in it, whose parts will have their places in this text.
    pub(super) fn empty(text: &'a str) -> Self {
        Self { text, root: DeTable::new(), span: 0..0 }
    }

    pub(super) fn into_root(self) -> DeTable<'a> {
        self.root
    }

    pub(super) fn text(&self) -> &'a str {
        self.text
    }

    pub(super) fn root(&self) -> &DeTable<'a> {
        &self.root
    }

    /// Takes a key of the root out.
    pub(super) fn take(&mut self, key: &str) -> Option<Value<'a>> {
        self.root.remove(key)
    }

    /// The value of a key with dots. `name[2]` is the third of a list, and `name[0]` of what is none the whole.
    pub(super) fn get(&self, path: &str) -> Option<&Value<'a>> {
        let mut names = path.split('.').map(indexed);
        let (name, index) = names.next()?;
        let first = at(self.root.get(name)?, index)?;
        names.try_fold(first, |value, (name, index)| at(value.get_ref().get(name)?, index))
    }

    /// Where a key with dots stands; if it does not, the table where it would.
    pub(super) fn span_of(&self, path: &str) -> Option<Range<usize>> {
        let mut path = path;
        loop {
            if let Some(value) = self.get(path) {
                return Some(value.span());
            }
            path = path.rsplit_once('.')?.0;
        }
    }

    /// The same with `over` laid over it: tables are merged, other values replaced, and empty tables change nothing.
    pub(super) fn under(&self, over: &DeTable<'a>) -> Self {
        let mut document = self.clone();
        lay(&mut document.root, over);
        document
    }

    /// The value that the text says.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, ScenarioError> {
        T::deserialize(Deserializer::from(Spanned::new(self.span.clone(), self.root.clone())))
            .map_err(|error| ScenarioError::from_toml(&error, self.text))
    }

    /// An error about a value, with what stands there.
    pub(super) fn wrong(&self, key: &str, value: &Value<'_>, must: impl Into<String>) -> ScenarioError {
        let problem = Problem::Value { key: key.to_owned(), found: self.shown(value), must: must.into() };
        ScenarioError::from(problem).at(self.text, Some(value.span()))
    }

    /// An error about a value of several keys, with the place of the one that it names.
    pub(super) fn place(&self, mut error: ScenarioError) -> ScenarioError {
        let span = match &mut error.problem {
            Problem::Value { key, .. } => {
                let span = self.span_of(key);
                // The line says which of a list it is.
                let names: Vec<&str> = key.split('.').map(|name| indexed(name).0).collect();
                *key = names.join(".");
                span
            }
            _ => None,
        };
        error.at(self.text, span)
    }

    /// A value as it stands in the text, if it is short.
    fn shown(&self, value: &Value<'_>) -> String {
        const SHOWN_MAX: usize = 40;
        match value.get_ref() {
            DeValue::Table(_) => "a table".to_owned(),
            DeValue::Array(_) => "a list".to_owned(),
            _ => {
                let text = self.text.get(value.span()).unwrap_or_default();
                let clean = |c: char| if c.is_control() { ' ' } else { c };
                let mut shown: String = text.chars().take(SHOWN_MAX).map(clean).collect();
                if shown.len() < text.len() {
                    shown.push('…');
                }
                shown
            }
        }
    }
}

/// A name and the number behind it, if there is one.
fn indexed(name: &str) -> (&str, Option<usize>) {
    let parts = name.strip_suffix(']').and_then(|name| name.rsplit_once('['));
    match parts.and_then(|(name, number)| Some((name, number.parse().ok()?))) {
        Some((name, number)) => (name, Some(number)),
        None => (name, None),
    }
}

/// The value itself, or the one of this number in it.
fn at<'d, 'a>(value: &'d Value<'a>, index: Option<usize>) -> Option<&'d Value<'a>> {
    match (value.get_ref(), index) {
        (DeValue::Array(list), Some(index)) => list.get(index),
        _ => Some(value),
    }
}

impl ScenarioError {
    /// The same with the place of the value that it names, in the text that it comes from.
    #[must_use]
    pub fn within(self, text: &str) -> Self {
        match Document::parse(text) {
            Ok(document) => document.place(self),
            Err(_) => self,
        }
    }
}

fn lay<'a>(base: &mut DeTable<'a>, over: &DeTable<'a>) {
    for (name, value) in over {
        match (value.get_ref(), base.get_mut(&**name.get_ref()).map(Spanned::get_mut)) {
            (DeValue::Table(over), Some(DeValue::Table(base))) => lay(base, over),
            (DeValue::Table(over), None) => {
                // An empty table changes nothing, so it does not bring the table either.
                let mut table = DeTable::new();
                lay(&mut table, over);
                if !table.is_empty() {
                    base.insert(name.clone(), Spanned::new(value.span(), DeValue::Table(table)));
                }
            }
            _ => {
                base.insert(name.clone(), value.clone());
            }
        }
    }
}

/// A table in which only one key stands, however deep.
pub(super) fn nested<'a>(path: &[Name<'a>], value: Value<'a>) -> DeTable<'a> {
    let mut table = DeTable::new();
    if let Some((first, rest)) = path.split_first() {
        let inner = match rest {
            [] => value,
            _ => Spanned::new(value.span(), DeValue::Table(nested(rest, value))),
        };
        table.insert(first.clone(), inner);
    }
    table
}

/// A value for JSON. TOML's `nan` and infinities are `null` there.
pub(super) fn json(value: &DeValue<'_>) -> serde_json::Value {
    match value {
        DeValue::String(text) => (**text).into(),
        DeValue::Integer(whole) => match i64::from_str_radix(whole.as_str(), whole.radix()) {
            Ok(number) => number.into(),
            Err(_) => u64::from_str_radix(whole.as_str(), whole.radix()).ok().into(),
        },
        DeValue::Float(number) => number.as_str().parse::<f64>().ok().into(),
        DeValue::Boolean(truth) => (*truth).into(),
        DeValue::Datetime(moment) => moment.to_string().into(),
        DeValue::Array(list) => list.iter().map(|value| json(value.get_ref())).collect(),
        DeValue::Table(table) => {
            let entries =
                table.iter().map(|(name, value)| (name.get_ref().to_string(), json(value.get_ref())));
            serde_json::Value::Object(entries.collect())
        }
    }
}
