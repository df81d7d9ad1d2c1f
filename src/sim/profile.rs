//! What a published repository looks like to a fleet: where its chunks lie and how long they are.
//!
//! `starling content-profile` takes a [`ContentProfile`] out of a repository, a scenario names its file in place of slices of one
//! length. The file is JSON, of a stated version, and comes from outside: [`ContentProfile::from_text`] checks all of it.

use crate::model::limits;
use serde::{Deserialize, Serialize};
use std::num::NonZeroU32;

/// Longest text of a profile, in bytes: some 40 for each of the most chunks.
pub const PROFILE_MAX_BYTES: u64 = 12 << 20;
/// Most chunks of a profile (guess: sixteen times what a node wants at once).
pub const PROFILE_CHUNKS_MAX: u32 = 1 << 18;
/// The version of the format that is written, and the only one that is read.
const VERSION: u32 = 1;
/// Longest stored chunk, taken together or not, in bytes.
const CHUNK_MAX_BYTES: u64 = 1 << 30;
/// A segment ends before this byte (guess: it has some 8 MiB; one large chunk may lie in it).
const SEGMENT_MAX_BYTES: u64 = 1 << 40;
/// Longest name in a profile, in bytes.
const NAME_MAX_BYTES: usize = 255;

/// Why a profile is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// It is no JSON, or has other fields.
    #[error("not a content profile: {0}")]
    Syntax(String),
    /// A later format.
    #[error("content profile of version {found}; this program reads version {VERSION}")]
    Version {
        /// What it states.
        found: u32,
    },
    /// It says something that cannot be.
    #[error("{field}: {detail}")]
    Value {
        /// Which part.
        field: &'static str,
        /// What is wrong with it.
        detail: String,
    },
}

fn wrong(field: &'static str, detail: impl Into<String>) -> ProfileError {
    ProfileError::Value { field, detail: detail.into() }
}

/// What the content is, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileSubject {
    /// The repository.
    pub repository: String,
    /// The revision.
    pub revision: u64,
    /// The revision whose chunks are there already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// The trace that says in which order the chunks are read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// Names of files that have some of these chunks.
    pub files: u64,
    /// Different chunks in the repository; several may be one here.
    pub distinct_chunks: u64,
    /// Their plain bytes.
    pub plain_bytes: u64,
}

/// A chunk as it lies in a repository, or several that lie near each other taken as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProfiledChunk {
    /// Number of its segment.
    pub segment: u32,
    /// Where it begins there, in bytes.
    pub offset: u64,
    /// Its stored bytes: what a transfer costs.
    pub stored_len: u32,
}

impl ProfiledChunk {
    /// The slice of its segment in which it begins, as [`crate::model::Place::slice`] has it.
    fn slice(&self) -> (u32, u64) {
        (self.segment, self.offset / limits::SLICE_BYTES)
    }
}

/// The content of a revision, or what it has beyond another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentProfile {
    subject: ProfileSubject,
    /// In the order in which they are stored.
    chunks: Vec<ProfiledChunk>,
    /// Numbers of all chunks as they are read, if that is another order.
    order: Option<Vec<u32>>,
    stored_bytes: u64,
    slices: u32,
}

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// The version of the format.
    content_profile: u32,
    subject: ProfileSubject,
    chunks: u32,
    stored_bytes: u64,
    /// By segment, runs of chunks that lie one behind the other: where the first begins, and the length of each.
    segments: Vec<Vec<Vec<u64>>>,
    /// Runs of chunk numbers: the first, and how many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    order: Option<Vec<(u32, u32)>>,
}

/// As much of the file as every version has.
#[derive(Deserialize)]
struct Head {
    content_profile: u32,
}

fn syntax(error: &serde_json::Error) -> ProfileError {
    // What it quotes of the text must not speak to a terminal.
    let text = error.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    ProfileError::Syntax(text)
}

impl ContentProfile {
    /// A profile of chunks, in the order of their segments and of their places in these; `order` has the number of each once.
    ///
    /// # Errors
    /// [`ProfileError`] says what contradicts that, or is out of bounds.
    pub fn new(
        subject: ProfileSubject,
        chunks: Vec<ProfiledChunk>,
        order: Option<Vec<u32>>,
    ) -> Result<Self, ProfileError> {
        check_subject(&subject)?;
        if chunks.is_empty() || chunks.len() > PROFILE_CHUNKS_MAX as usize {
            return Err(wrong("chunks", format!("{}; 1 to {PROFILE_CHUNKS_MAX} are possible", chunks.len())));
        }
        if subject.distinct_chunks < chunks.len() as u64 {
            return Err(wrong("distinct_chunks", "less than there are chunks"));
        }
        check_chunks(&chunks)?;
        if let Some(order) = &order {
            check_order(order, chunks.len())?;
        }
        let slices = 1 + chunks.windows(2).filter(|pair| pair[0].slice() != pair[1].slice()).count();
        let stored_bytes = chunks.iter().map(|chunk| u64::from(chunk.stored_len)).sum();
        let slices = u32::try_from(slices).unwrap_or(u32::MAX);
        Ok(Self { subject, chunks, order, stored_bytes, slices })
    }

    /// Reads a profile.
    ///
    /// # Errors
    /// [`ProfileError`] says what is wrong.
    pub fn from_text(text: &str) -> Result<Self, ProfileError> {
        if text.len() as u64 > PROFILE_MAX_BYTES {
            return Err(ProfileError::Syntax(format!("it has more than {PROFILE_MAX_BYTES} bytes")));
        }
        let head: Head = serde_json::from_str(text).map_err(|error| syntax(&error))?;
        if head.content_profile != VERSION {
            return Err(ProfileError::Version { found: head.content_profile });
        }
        let file: File = serde_json::from_str(text).map_err(|error| syntax(&error))?;
        let chunks = laid(&file.segments)?;
        if chunks.len() != file.chunks as usize {
            return Err(wrong(
                "chunks",
                format!("{} are said to be there and {} are", file.chunks, chunks.len()),
            ));
        }
        let order = file.order.map(|runs| unrolled(&runs, chunks.len())).transpose()?;
        let profile = Self::new(file.subject, chunks, order)?;
        if profile.stored_bytes != file.stored_bytes {
            let (said, found) = (file.stored_bytes, profile.stored_bytes);
            return Err(wrong("stored_bytes", format!("{said}, and the chunks have {found}")));
        }
        Ok(profile)
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        let mut segments: Vec<Vec<Vec<u64>>> = Vec::new();
        let (mut segment, mut end) = (None, 0);
        for chunk in &self.chunks {
            if segment != Some(chunk.segment) {
                segment = Some(chunk.segment);
                segments.push(vec![vec![chunk.offset]]);
            } else if chunk.offset != end
                && let Some(runs) = segments.last_mut()
            {
                runs.push(vec![chunk.offset]);
            }
            if let Some(run) = segments.last_mut().and_then(|runs| runs.last_mut()) {
                run.push(chunk.stored_len.into());
            }
            end = chunk.offset + u64::from(chunk.stored_len);
        }
        let file = File {
            content_profile: VERSION,
            subject: self.subject.clone(),
            chunks: self.len(),
            stored_bytes: self.stored_bytes,
            segments,
            order: self.order.as_deref().map(rolled),
        };
        let mut text = serde_json::to_string(&file).unwrap_or_default();
        text.push('\n');
        text
    }

    /// The same with at most `most` chunks: of each slice, as many that lie behind each other are taken as one as it needs.
    ///
    /// # Errors
    /// [`ProfileError`] when there are more slices than that.
    pub fn together(self, most: NonZeroU32) -> Result<Self, ProfileError> {
        let most = most.get();
        if self.len() <= most {
            return Ok(self);
        }
        if self.slices > most {
            let detail =
                format!("{} slices of 1 MiB cannot be {most} chunks, for no chunk lies in two", self.slices);
            return Err(wrong("chunks", detail));
        }
        let (mut least, mut enough) = (1_u32, self.len());
        while least < enough {
            let middle = least + (enough - least) / 2;
            if groups(&self.chunks, middle).last().is_some_and(|last| *last < most) {
                enough = middle;
            } else {
                least = middle + 1;
            }
        }
        let group_of = groups(&self.chunks, least);
        let mut chunks: Vec<ProfiledChunk> = Vec::new();
        for (chunk, group) in self.chunks.iter().zip(&group_of) {
            match chunks.get_mut(*group as usize) {
                // Few slices of hostile lengths could add up to more.
                Some(first) => first.stored_len = first.stored_len.saturating_add(chunk.stored_len),
                None => chunks.push(*chunk),
            }
        }
        let order = self.order.map(|order| {
            let mut met = vec![false; chunks.len()];
            let groups = order.into_iter().map(|chunk| group_of[chunk as usize]);
            groups.filter(|group| !std::mem::replace(&mut met[*group as usize], true)).collect()
        });
        Self::new(self.subject, chunks, order)
    }

    /// What the content is.
    pub fn subject(&self) -> &ProfileSubject {
        &self.subject
    }

    /// All chunks, in the order in which they are stored.
    pub fn chunks(&self) -> &[ProfiledChunk] {
        &self.chunks
    }

    /// Numbers of all chunks as they are read, if that is another order.
    pub fn order(&self) -> Option<&[u32]> {
        self.order.as_deref()
    }

    /// Number of chunks; never 0.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> u32 {
        u32::try_from(self.chunks.len()).unwrap_or(u32::MAX)
    }

    /// Number of slices in which they begin.
    pub fn slices(&self) -> u32 {
        self.slices
    }

    /// Number of segments.
    pub fn segments(&self) -> u32 {
        self.chunks.last().map_or(0, |last| last.segment + 1)
    }

    /// All stored bytes.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// Mean stored length of a chunk, at least 1.
    pub fn mean_len(&self) -> u32 {
        u32::try_from(self.stored_bytes / u64::from(self.len())).unwrap_or(u32::MAX).max(1)
    }

    /// By chunk, the number of its slice, counted through all segments; and by slice, its segment.
    pub(super) fn slice_numbers(&self) -> (Vec<u32>, Vec<u32>) {
        let (mut of_chunks, mut segments) = (Vec::with_capacity(self.chunks.len()), Vec::new());
        let mut last = None;
        for chunk in &self.chunks {
            if last != Some(chunk.slice()) {
                last = Some(chunk.slice());
                segments.push(chunk.segment);
            }
            of_chunks.push(u32::try_from(segments.len() - 1).unwrap_or(u32::MAX));
        }
        (of_chunks, segments)
    }
}

fn check_subject(subject: &ProfileSubject) -> Result<(), ProfileError> {
    for (field, name) in [("repository", Some(&subject.repository)), ("trace", subject.trace.as_ref())] {
        let is_name = |name: &String| {
            (1..=NAME_MAX_BYTES).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if name.is_some_and(|name| !is_name(name)) {
            return Err(wrong(
                field,
                format!("not 1 to {NAME_MAX_BYTES} printable characters without spaces"),
            ));
        }
    }
    Ok(())
}

fn check_chunks(chunks: &[ProfiledChunk]) -> Result<(), ProfileError> {
    let mut end = 0;
    for (number, chunk) in chunks.iter().enumerate() {
        let before = number.checked_sub(1).map(|before| chunks[before]);
        let follows = match before {
            None => chunk.segment == 0,
            Some(before) if before.segment == chunk.segment => chunk.offset >= end,
            Some(before) => before.segment.checked_add(1) == Some(chunk.segment),
        };
        if !follows {
            let ProfiledChunk { segment, offset, .. } = chunk;
            return Err(wrong(
                "segments",
                format!(
                    "chunk {number} at {offset} of segment {segment} does not lie behind the one before it"
                ),
            ));
        }
        if !(1..=CHUNK_MAX_BYTES).contains(&u64::from(chunk.stored_len)) {
            return Err(wrong("segments", format!("chunk {number} has {} bytes", chunk.stored_len)));
        }
        end = chunk.offset.saturating_add(chunk.stored_len.into());
        if end > SEGMENT_MAX_BYTES {
            return Err(wrong("segments", format!("chunk {number} ends at {end}")));
        }
    }
    Ok(())
}

fn check_order(order: &[u32], chunks: usize) -> Result<(), ProfileError> {
    let mut met = vec![false; chunks];
    for chunk in order {
        match met.get_mut(*chunk as usize) {
            None => return Err(wrong("order", format!("there is no chunk {chunk}"))),
            Some(true) => return Err(wrong("order", format!("chunk {chunk} twice"))),
            Some(met) => *met = true,
        }
    }
    match met.iter().position(|met| !met) {
        None => Ok(()),
        Some(missing) => Err(wrong("order", format!("chunk {missing} is missing"))),
    }
}

/// The chunks of a file's segments.
fn laid(segments: &[Vec<Vec<u64>>]) -> Result<Vec<ProfiledChunk>, ProfileError> {
    let mut chunks = Vec::new();
    for (segment, runs) in segments.iter().enumerate() {
        let refuse = |detail: &str| Err(wrong("segments", format!("segment {segment}: {detail}")));
        let number = u32::try_from(segment).unwrap_or(u32::MAX);
        for run in runs {
            let Some((first, lens)) = run.split_first().filter(|(_, lens)| !lens.is_empty()) else {
                return refuse("a run has a place and at least one length");
            };
            let mut offset = *first;
            for len in lens {
                if chunks.len() == PROFILE_CHUNKS_MAX as usize {
                    return refuse(&format!("more than {PROFILE_CHUNKS_MAX} chunks"));
                }
                let Some(stored_len) = u32::try_from(*len).ok() else {
                    return refuse(&format!("a chunk of {len} bytes"));
                };
                chunks.push(ProfiledChunk { segment: number, offset, stored_len });
                offset = offset.saturating_add(*len);
            }
        }
        if runs.is_empty() {
            return refuse("it has no chunks");
        }
    }
    Ok(chunks)
}

fn unrolled(runs: &[(u32, u32)], chunks: usize) -> Result<Vec<u32>, ProfileError> {
    let mut order = Vec::new();
    for (first, count) in runs {
        if *count == 0 || *count as usize > chunks - order.len() {
            return Err(wrong("order", format!("{count} chunks from {first}, of {chunks}")));
        }
        order.extend((0..*count).map(|step| first.saturating_add(step)));
    }
    Ok(order)
}

fn rolled(order: &[u32]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for chunk in order {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == *chunk => *count += 1,
            _ => runs.push((*chunk, 1)),
        }
    }
    runs
}

/// By chunk, the number of its group, when up to `most` of a slice that lie behind each other are one.
fn groups(chunks: &[ProfiledChunk], most: u32) -> Vec<u32> {
    let (mut group, mut count) = (0_u32, 0_u32);
    let mut last: Option<&ProfiledChunk> = None;
    let group_of = |chunk| {
        let goes_on = last.is_none_or(|last: &ProfiledChunk| last.slice() == ProfiledChunk::slice(chunk));
        if !goes_on || count == most {
            (group, count) = (group + 1, 0);
        }
        (last, count) = (Some(chunk), count + 1);
        group
    };
    chunks.iter().map(group_of).collect()
}

#[cfg(test)]
#[path = "profile_tests.rs"]
mod tests;
