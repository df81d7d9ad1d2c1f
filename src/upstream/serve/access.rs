//! The access log: one line a request, in a form that people and tests read.
//!
//! ```text
//! 2026-05-01T12:00:00Z 127.0.0.1:50412 GET /sw.example.org/objects/ab/… 4096-8191 206 4096 0.412
//! ```
//!
//! The fields are the time (UTC), the client, method, path, the bytes of the item that were sent
//! (first and last; `-` when it was not a part), status, bytes of body handed to the connection, and
//! milliseconds from the request's header to the last of them. A line is written, in one piece,
//! before the last bytes of its body leave: whoever has seen the end of an answer finds its line.

use crate::ambient;
use crate::model::Time;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

/// Most characters of a path that are logged. What the layout names is shorter.
const PATH_MAX_CHARS: usize = 256;

/// Where the access log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard output.
    Stdout,
    /// A file, which is appended to.
    File(PathBuf),
}

impl FromStr for LogTarget {
    type Err = std::convert::Infallible;
    /// `-` is standard output.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "-" { Self::Stdout } else { Self::File(text.into()) })
    }
}

impl fmt::Display for LogTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("-"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// One request, as the access log tells it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AccessLine {
    /// When it came, such as `2026-05-01T12:00:00Z`.
    pub time: String,
    /// Who asked.
    pub remote: SocketAddr,
    /// How.
    pub method: String,
    /// For what: the path without a query, at most 256 characters of it.
    pub path: String,
    /// First and last byte of the part that was sent; `None` when it was not a part.
    pub range: Option<(u64, u64)>,
    /// The answer.
    pub status: u16,
    /// Bytes of body handed to the connection.
    pub body_bytes: u64,
    /// Milliseconds from the request's header to the last of them.
    pub duration_ms: f64,
}

/// Why a text is not a line of an access log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not a line of an access log")]
pub struct ParseAccessError {
    /// The offending text.
    pub found: String,
}

impl fmt::Display for AccessLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {} ", self.time, self.remote, self.method, self.path)?;
        match self.range {
            Some((first, last)) => write!(f, "{first}-{last}")?,
            None => f.write_str("-")?,
        }
        write!(f, " {} {} {:.3}", self.status, self.body_bytes, self.duration_ms)
    }
}

impl FromStr for AccessLine {
    type Err = ParseAccessError;
    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let mut fields = line.split(' ');
            let mut next = || fields.next();
            let parsed = Self {
                time: next()?.to_owned(),
                remote: next()?.parse().ok()?,
                method: next()?.to_owned(),
                path: next()?.to_owned(),
                range: match next()? {
                    "-" => None,
                    part => {
                        let (first, last) = part.split_once('-')?;
                        Some((first.parse().ok()?, last.parse().ok()?))
                    }
                },
                status: next()?.parse().ok()?,
                body_bytes: next()?.parse().ok()?,
                duration_ms: next()?.parse().ok()?,
            };
            next().is_none().then_some(parsed)
        };
        parse().ok_or_else(|| ParseAccessError { found: line.chars().take(1024).collect() })
    }
}

/// An open access log.
#[derive(Debug)]
pub(super) struct AccessLog {
    /// `None`: standard output.
    file: Option<Mutex<File>>,
    json: bool,
}

impl AccessLog {
    pub(super) fn open(target: &LogTarget, json: bool) -> io::Result<Self> {
        let file = match target {
            LogTarget::Stdout => None,
            LogTarget::File(path) => {
                Some(Mutex::new(OpenOptions::new().append(true).create(true).open(path)?))
            }
        };
        Ok(Self { file, json })
    }

    /// Writes a line with one call, so that neither a kill nor another writer cuts it.
    fn write(&self, line: &AccessLine) {
        let text = if self.json { serde_json::to_string(line).unwrap_or_default() } else { line.to_string() };
        let text = format!("{text}\n");
        let written = match &self.file {
            Some(file) => file.lock().unwrap_or_else(PoisonError::into_inner).write_all(text.as_bytes()),
            None => {
                let mut out = io::stdout().lock();
                out.write_all(text.as_bytes()).and_then(|()| out.flush())
            }
        };
        if let Err(error) = written {
            tracing::warn!(%error, "the access log cannot be written");
        }
    }
}

/// A request under way. Its line is written when it is [ended](Entry::end), or when it is dropped
/// because the client went away.
#[derive(Debug)]
pub(super) struct Entry {
    log: Option<Arc<AccessLog>>,
    began: Time,
    line: AccessLine,
}

impl Entry {
    pub(super) fn begin(log: Option<Arc<AccessLog>>, remote: SocketAddr, method: &str, path: &str) -> Self {
        let line = AccessLine {
            time: log.as_ref().map_or_else(String::new, |_| ambient::unix_now().to_string()),
            remote,
            method: method.to_owned(),
            path: path.chars().take(PATH_MAX_CHARS).collect(),
            range: None,
            status: 0,
            body_bytes: 0,
            duration_ms: 0.0,
        };
        Self { log, began: ambient::now(), line }
    }

    /// What is about to be sent.
    pub(super) fn answered(&mut self, status: u16, range: Option<(u64, u64)>) {
        self.line.status = status;
        self.line.range = range;
    }

    /// Bytes of body are handed to the connection.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.line.body_bytes += bytes as u64;
    }

    /// Writes the line.
    pub(super) fn end(&mut self) {
        if let Some(log) = self.log.take() {
            self.line.duration_ms = ambient::now().since(self.began).as_secs_f64() * 1e3;
            log.write(&self.line);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::UnixTime;

    fn line(range: Option<(u64, u64)>) -> AccessLine {
        AccessLine {
            time: UnixTime(1_767_225_599).to_string(),
            remote: "[::1]:4711".parse().unwrap(),
            method: "GET".into(),
            path: "/sw.example.org/root".into(),
            range,
            status: 206,
            body_bytes: 4096,
            duration_ms: 0.412,
        }
    }

    #[test]
    fn a_line_is_read_back_as_it_was_written() {
        for line in [line(None), line(Some((4096, 8191)))] {
            assert_eq!(line.to_string().parse::<AccessLine>().unwrap(), line);
        }
        assert_eq!(
            line(Some((0, 4095))).to_string(),
            "2025-12-31T23:59:59Z [::1]:4711 GET /sw.example.org/root 0-4095 206 4096 0.412"
        );
    }

    #[test]
    fn anything_else_is_refused() {
        let good = line(None).to_string();
        for bad in [
            String::new(),
            good[1..].replace("[::1]", "::1"),
            format!("{good} more"),
            good[..good.len() - 6].into(),
        ] {
            assert!(bad.parse::<AccessLine>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_request_is_logged_once_even_when_the_client_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let log = Arc::new(AccessLog::open(&LogTarget::File(path.clone()), true).unwrap());
        let remote = "127.0.0.1:1".parse().unwrap();
        let mut ended = Entry::begin(Some(log.clone()), remote, "GET", "/a/root");
        ended.answered(200, None);
        ended.sent(3);
        ended.end();
        drop(ended);
        let mut dropped = Entry::begin(Some(log), remote, "GET", &"x".repeat(1000));
        dropped.answered(206, Some((0, 99)));
        drop(dropped);
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<AccessLine> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0].status, lines[0].body_bytes), (200, 3));
        assert_eq!((lines[1].body_bytes, lines[1].path.len()), (0, PATH_MAX_CHARS));
    }
}
