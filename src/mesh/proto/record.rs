//! Recording of a core's events and outputs, and their replay.
//!
//! A recording is text, one JSON object a line: first a header with the format, its version and the [`Start`], then
//! for each event its time, itself and the outputs it caused. This file makes and reads lines; who runs a core writes
//! them wherever it likes.

use super::{Core, Event, NumberTooLarge, Outbox, Output, Start};
use crate::model::Time;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, Read};

/// What a recording calls itself.
const FORMAT: &str = "starling-core-recording";
/// Version of the format. It rises whenever a line's meaning changes.
const VERSION: u32 = 1;
/// Longest line, in bytes: an event with thousands of outputs is well below.
pub const LINE_MAX_BYTES: u64 = 16 << 20;
/// Shown bytes of a line that differs.
const SHOWN_BYTES: usize = 400;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    version: u32,
    start: Start,
}

#[derive(Serialize)]
struct WrittenLine<'a> {
    now: Time,
    event: &'a Event,
    outputs: &'a [Output],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadLine {
    now: Time,
    event: Event,
    outputs: Vec<Output>,
}

/// The first line of a recording, with its line end.
pub fn header_line(start: &Start) -> String {
    line(&Header { format: FORMAT.to_owned(), version: VERSION, start: start.clone() })
}

/// The line of one event, with its line end. `outputs` are those that the event caused, all of them.
pub fn event_line(now: Time, event: &Event, outputs: &[Output]) -> String {
    line(&WrittenLine { now, event, outputs })
}

fn line(value: &impl Serialize) -> String {
    // No map with foreign keys and no failing serialiser is in it, so that JSON cannot fail.
    let mut text = serde_json::to_string(value).unwrap_or_default();
    text.push('\n');
    text
}

/// Why a recording cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The file cannot be read.
    #[error("cannot read the recording: {0}")]
    Read(#[from] std::io::Error),
    /// There is nothing in it.
    #[error("the recording is empty")]
    Empty,
    /// It is something else.
    #[error("line 1 is no header of a recording ({0}): made by `starling agent --record-inputs`?")]
    Foreign(String),
    /// It was made by another version.
    #[error("the recording has version {found}; this program replays version {VERSION}")]
    Version {
        /// Its version.
        found: u32,
    },
    /// It ends within a line: whoever wrote it was cut off.
    #[error("line {line} is not ended: the recording is truncated")]
    Truncated {
        /// The line's number, from 1.
        line: u64,
    },
    /// A line is too long to be one.
    #[error("line {line} is longer than {LINE_MAX_BYTES} bytes")]
    TooLong {
        /// The line's number, from 1.
        line: u64,
    },
    /// A line is not an event.
    #[error("line {line} is not a recorded event: {what}")]
    Malformed {
        /// The line's number, from 1.
        line: u64,
        /// What is wrong.
        what: String,
    },
    /// An event names a number that the settings do not allow.
    #[error("line {line}: {what}")]
    Number {
        /// The line's number, from 1.
        line: u64,
        /// Which.
        what: NumberTooLarge,
    },
}

/// The first line where the outputs differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Its number, from 1.
    pub line: u64,
    /// The outputs as recorded, shortened.
    pub recorded: String,
    /// The outputs now, shortened.
    pub replayed: String,
}

/// What a replay showed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Replay {
    /// Events that were replayed.
    pub events: u64,
    /// Events by kind.
    pub inputs: BTreeMap<String, u64>,
    /// Outputs by kind; answers by what they say.
    pub outputs: BTreeMap<String, u64>,
    /// The first difference. The replay ends there.
    pub difference: Option<Difference>,
}

impl Replay {
    /// Whether all outputs were the same to the byte.
    pub fn is_identical(&self) -> bool {
        self.difference.is_none()
    }

    /// Replays a recording line by line and compares what is decided now with what was decided then.
    ///
    /// # Errors
    /// [`ReplayError`] when the recording cannot be read to its end. A difference is no error.
    pub fn run(mut recording: impl BufRead) -> Result<Self, ReplayError> {
        let mut number = 1;
        let first = read_line(&mut recording, number)?.ok_or(ReplayError::Empty)?;
        let mut core = Core::new(parse_header(&first)?);
        let (mut replay, mut out) = (Self::default(), Outbox::default());
        loop {
            number += 1;
            let Some(text) = read_line(&mut recording, number)? else { return Ok(replay) };
            let malformed =
                |what: serde_json::Error| ReplayError::Malformed { line: number, what: what.to_string() };
            let ReadLine { now, event, outputs } = serde_json::from_str(&text).map_err(malformed)?;
            let recorded = serde_json::to_string(&outputs).map_err(malformed)?;
            replay.events += 1;
            *replay.inputs.entry(kind(&event)).or_default() += 1;
            core.apply(now, event, &mut out).map_err(|what| ReplayError::Number { line: number, what })?;
            let replayed = serde_json::to_string(out.as_slice()).map_err(malformed)?;
            for output in out.drain() {
                *replay.outputs.entry(kind(&output)).or_default() += 1;
            }
            if recorded != replayed {
                let (recorded, replayed) = (shorten(&recorded), shorten(&replayed));
                replay.difference = Some(Difference { line: number, recorded, replayed });
                return Ok(replay);
            }
        }
    }
}

fn parse_header(text: &str) -> Result<Start, ReplayError> {
    // The version first: a header of another version may have other fields.
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|e| ReplayError::Foreign(e.to_string()))?;
    if value.get("format").and_then(serde_json::Value::as_str) != Some(FORMAT) {
        return Err(ReplayError::Foreign(format!("its `format` is not `{FORMAT}`")));
    }
    let version = value.get("version").and_then(serde_json::Value::as_u64).unwrap_or(0);
    if version != u64::from(VERSION) {
        return Err(ReplayError::Version { found: u32::try_from(version).unwrap_or(u32::MAX) });
    }
    let header: Header = serde_json::from_value(value).map_err(|e| ReplayError::Foreign(e.to_string()))?;
    Ok(header.start)
}

/// One line without its end, or `None` at the end of the recording.
fn read_line(recording: &mut impl BufRead, line: u64) -> Result<Option<String>, ReplayError> {
    let mut bytes = Vec::new();
    recording.by_ref().take(LINE_MAX_BYTES).read_until(b'\n', &mut bytes)?;
    match bytes.pop() {
        None => Ok(None),
        Some(b'\n') => {
            let malformed = |_| ReplayError::Malformed { line, what: "not UTF-8".to_owned() };
            String::from_utf8(bytes).map(Some).map_err(malformed)
        }
        Some(_) if bytes.len() as u64 + 1 >= LINE_MAX_BYTES => Err(ReplayError::TooLong { line }),
        Some(_) => Err(ReplayError::Truncated { line }),
    }
}

/// The path of variant names: `Input/Told/Wait`.
fn kind(value: &impl Serialize) -> String {
    let mut names = Vec::new();
    let mut at = serde_json::to_value(value).unwrap_or_default();
    loop {
        match at {
            serde_json::Value::String(name) => names.push(name),
            serde_json::Value::Object(mut fields) => {
                if let Some(answer) = fields.remove("answer") {
                    at = answer;
                    continue;
                }
                // A variant has one field with a name in capitals; the fields of a struct have small names.
                if let Some((name, inner)) = fields.into_iter().next()
                    && name.starts_with(char::is_uppercase)
                {
                    names.push(name);
                    at = inner;
                    continue;
                }
            }
            _ => {}
        }
        return names.join("/");
    }
}

fn shorten(text: &str) -> String {
    let mut end = SHOWN_BYTES.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    if end < text.len() { format!("{}…", &text[..end]) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::proto::{
        Answer, Ask, Chunk, ContentUpdate, Input, Peer, PeerUpdate, Segment, Settings, Slice,
    };
    use crate::mesh::proto::{Holders, Repository, Source};
    use crate::model::{Class, Generator};

    fn start() -> Start {
        Start { me: Peer(0), settings: Settings::default(), generator: Generator::new(5) }
    }

    /// A node among four that wants, asks, is told, serves and takes a lease.
    fn events() -> Vec<(Time, Event)> {
        let mut events = Vec::new();
        for peer in 0..4 {
            let key = crate::model::mix(u64::from(peer));
            let met = PeerUpdate::Met { peer: Peer(peer), key, cell: 0, cell_key: 1, region: 0, weight: 100 };
            events.push(Event::Peers(met));
            events.push(Event::Peers(PeerUpdate::Up { peer: Peer(peer) }));
        }
        for repositories in [Some(vec![Repository(0), Repository(3)]), None] {
            events.push(Event::Peers(PeerUpdate::Scoped { peer: Peer(2), repositories }));
        }
        for chunk in 0..40 {
            let slice_key = crate::model::mix(1_000 + u64::from(chunk));
            let (slice, segment) = (Slice(chunk), Segment(chunk / 8));
            let chunk = Chunk(chunk);
            let part = 0;
            events.push(Event::Content(ContentUpdate::Learned {
                chunk,
                slice,
                segment,
                slice_key,
                part,
                len_bytes: 9,
            }));
            events.push(Event::Content(ContentUpdate::Belongs { slice, repository: Repository(3) }));
        }
        for chunk in (0..40).map(Chunk) {
            let deadline = Time::from_nanos(1 << 40);
            events.push(Event::Input(Input::Wanted { chunk, class: Class::Fill, deadline }));
            let ask = Ask(chunk.0);
            events.push(Event::Input(Input::Asked { peer: Peer(1), ask, chunk, class: Class::Read }));
        }
        for chunk in (0..40).map(Chunk) {
            for peer in [1, 2, 3, 1, 2].map(Peer) {
                let answer = if chunk.0 % 2 == 0 {
                    Answer::Busy { holders: Holders::from_slice(&[Peer(1), Peer(2), Peer(3)]) }
                } else {
                    Answer::Missing { holders: Holders::new() }
                };
                events.push(Event::Input(Input::Told { peer, chunk, answer, load: 3 }));
            }
            events.push(Event::Input(Input::Arrived { chunk, from: Source::Strata }));
        }
        (0_u64..).map(|step| Time::from_nanos(step * 1_000_000)).zip(events).collect()
    }

    fn recording() -> String {
        let (mut core, mut out) = (Core::new(start()), Outbox::default());
        let mut text = header_line(&start());
        for (now, event) in events() {
            core.apply(now, event.clone(), &mut out).unwrap();
            text += &event_line(now, &event, out.as_slice());
            out.drain();
        }
        text
    }

    #[test]
    fn a_recording_replays_to_the_byte() {
        let replay = Replay::run(recording().as_bytes()).unwrap();
        assert_eq!(replay.difference, None);
        assert_eq!(replay.events, events().len() as u64);
        for kind in [
            "Input/Wanted",
            "Input/Told/Busy",
            "Peers/Met",
            "Peers/Scoped",
            "Content/Learned",
            "Content/Belongs",
        ] {
            assert!(replay.inputs.contains_key(kind), "{kind} in {:?}", replay.inputs);
        }
        for kind in ["Ask", "Serve", "Answer/Wait", "Deliver", "FetchUpstream"] {
            assert!(replay.outputs.contains_key(kind), "{kind} in {:?}", replay.outputs);
        }
    }

    #[test]
    fn the_first_difference_is_shown() {
        let text = recording();
        let ask = text.find("\"Ask\":{\"peer\":").unwrap() + "\"Ask\":{\"peer\":".len();
        let line = text[..ask].matches('\n').count() as u64 + 1;
        let changed = format!("{}9{}", &text[..ask], &text[ask + 1..]);
        let difference = Replay::run(changed.as_bytes()).unwrap().difference.unwrap();
        assert_eq!(difference.line, line);
        assert_ne!(difference.recorded, difference.replayed);
        let other_seed = text.replacen("\"generator\":{\"state\":5}", "\"generator\":{\"state\":6}", 1);
        assert!(
            !Replay::run(other_seed.as_bytes()).unwrap().is_identical(),
            "randomness is part of the start"
        );
    }

    #[test]
    fn what_is_no_recording_is_refused() {
        let text = recording();
        let run = |text: &str| Replay::run(text.as_bytes()).unwrap_err().to_string();
        assert!(run("").contains("empty"));
        assert!(run("{\"hello\":1}\n").contains("no header"));
        assert!(run("garbage\n").contains("no header"));
        assert!(run(&text[..text.len() - 1]).contains("truncated"));
        assert!(run(&text[..text.len() / 2]).contains("truncated"));
        assert!(run(&text.replacen("\"version\":1", "\"version\":9", 1)).contains("version 9"));
        assert!(run(&text.replacen("{\"now\"", "{\"then\"", 1)).contains("line 2"));
        let number = text.replacen("\"Met\":{\"peer\":0", "\"Met\":{\"peer\":4000000000", 1);
        assert!(run(&number).contains("4000000000"));
        let endless =
            format!("{}{}", header_line(&start()), "x".repeat(usize::try_from(LINE_MAX_BYTES).unwrap()));
        assert!(run(&endless).contains("longer than"));
    }
}
