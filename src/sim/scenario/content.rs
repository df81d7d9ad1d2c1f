//! What all want, and where it comes from.

use super::document::Document;
use super::error::{Problem, ScenarioError, check};
use super::fleet::RATE;
use super::keys::{Key, Kind, Preset, Table, missing};
use crate::model::{Class, limits};
use crate::sim::profile::ContentProfile;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of a slice at most.
const SLICE_MAX: u64 = 1 << 29;
/// Longest path of a profile, in bytes (Linux's own bound).
const PATH_MAX: usize = 4_096;

/// The content: what a profile says, or slices of one length in chunks of one length.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// The file with its profile.
    pub profile: Option<String>,
    /// All bytes.
    #[serde(default)]
    pub bytes: u64,
    /// Bytes of a slice. The last one may be shorter.
    #[serde(default)]
    pub slice_bytes: u32,
    /// Bytes of a chunk, which moves as a whole and divides the slice; a slice is one chunk if it is not given.
    pub chunk_bytes: Option<u32>,
    /// How urgently all nodes want all of it, from when they begin; without it only what is read is wanted.
    pub class: Option<Class>,
    /// On each node somebody also reads the content in its order, with this many chunks of read-ahead.
    pub read_ahead_chunks: Option<u32>,
    /// How fast, if not at once.
    pub read_mbit_s: Option<f64>,
    /// Milliseconds from when a node begins until it knows what it wants: mounting, root and catalogs.
    #[serde(default)]
    pub prepare_ms: u64,
    /// Seconds after which the nodes give up, and the run ends.
    pub deadline_s: u32,
    /// What the profile says.
    #[serde(skip)]
    pub(super) profiled: Option<Arc<ContentProfile>>,
}

impl Content {
    /// What the profile says, if there is one.
    pub fn profiled(&self) -> Option<&ContentProfile> {
        self.profiled.as_deref()
    }

    /// Puts what the profile says in the place of what is not given beside it.
    pub(super) fn take(&mut self, profile: Arc<ContentProfile>) {
        self.bytes = profile.stored_bytes();
        self.slice_bytes = u32::try_from(limits::SLICE_BYTES).unwrap_or(u32::MAX);
        self.profiled = Some(profile);
    }
}

pub(super) const TABLE: Table = Table {
    name: "content",
    about: "what all nodes want: a profile of a repository, or slices of one length in chunks of one length",
    is_required: true,
    is_list: false,
    keys: &[
        Key {
            name: "profile",
            kind: Kind::Text(PATH_MAX),
            unit: "",
            preset: Preset::Nothing("`content.bytes` and `content.slice_bytes` say what the content is"),
            meaning: "a file that `starling content-profile` wrote: the chunks of a published repository, and the order in which they \
                      are read; its path begins at the folder of the scenario",
        },
        Key {
            name: "bytes",
            kind: Kind::Whole(1, i64::MAX as u64),
            unit: "bytes",
            preset: Preset::Nothing("`content.profile` says it"),
            meaning: "all of it",
        },
        Key {
            name: "slice_bytes",
            kind: Kind::Whole(1 << 10, SLICE_MAX),
            unit: "bytes",
            preset: Preset::Nothing("`content.profile` says it"),
            meaning: "a slice; the last one may be shorter",
        },
        Key {
            name: "chunk_bytes",
            kind: Kind::Whole(1 << 10, SLICE_MAX),
            unit: "bytes",
            preset: Preset::Nothing("a slice is one chunk, or `content.profile` says it"),
            meaning: "a chunk, which moves as a whole and divides the slice",
        },
        Key {
            name: "class",
            kind: Kind::Word(&["Read", "Prefetch", "Fill"]),
            unit: "",
            preset: Preset::Nothing(
                "only what somebody reads is wanted, and so much ahead of it as `content.read_ahead_chunks` says",
            ),
            meaning: "how urgently all nodes want all of it: a reader waits, will soon wait, or nobody does",
        },
        Key {
            name: "read_ahead_chunks",
            kind: Kind::Whole(0, u32::MAX as u64),
            unit: "chunks",
            preset: Preset::Nothing("nobody reads"),
            meaning: "on each node somebody also reads the content in its order, with so much read-ahead",
        },
        Key {
            name: "read_mbit_s",
            kind: RATE,
            unit: "Mbit/s",
            preset: Preset::Nothing("what is here is read at once"),
            meaning: "how fast somebody reads what is here, in stored bytes: he waits only when he has read what he had",
        },
        Key {
            name: "prepare_ms",
            kind: Kind::Whole(0, 60_000),
            unit: "ms",
            preset: Preset::Is("0"),
            meaning: "from when a node begins until it knows what it wants: mounting, root and catalogs",
        },
        Key {
            name: "deadline_s",
            kind: Kind::Whole(1, 86_400),
            unit: "s",
            preset: Preset::Required,
            meaning: "when all nodes give up and the run ends, from its beginning",
        },
    ],
};

/// Refuses content that is said twice, or not at all, and readers who read nothing.
pub(super) fn check_choice(document: &Document<'_>) -> Result<(), ScenarioError> {
    let has = |name: &str| document.get(&format!("content.{name}")).is_some();
    let has_profile = has("profile");
    for name in ["bytes", "slice_bytes", "chunk_bytes"] {
        let path = format!("content.{name}");
        match document.get(&path) {
            Some(value) if has_profile => {
                return Err(document.wrong(&path, value, "left out beside content.profile, which says it"));
            }
            None if !has_profile && name != "chunk_bytes" => return Err(missing(document, &path)),
            _ => {}
        }
    }
    if !has("read_ahead_chunks") {
        if !has("class") {
            return Err(missing(document, "content.class"));
        }
        if let Some(value) = document.get("content.read_mbit_s") {
            let must = "left out unless content.read_ahead_chunks is given: nobody reads";
            return Err(document.wrong("content.read_mbit_s", value, must));
        }
    }
    Ok(())
}

/// Reads the file that a scenario names, whose path begins at the scenario's folder: the caller's part, for nothing here does I/O.
pub type Files<'f> = dyn Fn(&str) -> Result<String, String> + 'f;

/// The profiles that scenarios of one file name, each read once.
pub(super) struct Profiles<'f> {
    files: &'f Files<'f>,
    known: BTreeMap<String, Arc<ContentProfile>>,
}

impl<'f> Profiles<'f> {
    pub(super) fn new(files: &'f Files<'f>) -> Self {
        Self { files, known: BTreeMap::new() }
    }

    /// What all that were read so far say, with their names.
    pub(super) fn known(&self) -> impl Iterator<Item = (&str, &ContentProfile)> {
        self.known.iter().map(|(name, profile)| (name.as_str(), &**profile))
    }

    /// The profile in a file.
    pub(super) fn get(&mut self, name: &str) -> Result<Arc<ContentProfile>, ScenarioError> {
        if let Some(known) = self.known.get(name) {
            return Ok(Arc::clone(known));
        }
        let text = (self.files)(name);
        let profile =
            text.and_then(|text| ContentProfile::from_text(&text).map_err(|error| error.to_string()));
        let refuse = |error: String| Problem::Value {
            key: "content.profile".to_owned(),
            found: format!("{name:?}"),
            must: format!("a file that `starling content-profile` wrote: {error}"),
        };
        let profile = Arc::new(profile.map_err(refuse)?);
        self.known.insert(name.to_owned(), Arc::clone(&profile));
        Ok(profile)
    }
}

/// Refuses more chunks than a node may want, at the key that says how many there are.
pub(super) fn check_count(content: &Content, chunks: u64, most: u64) -> Result<(), ScenarioError> {
    let (key, found, advice) = match &content.profile {
        Some(name) => {
            let advice =
                "`starling content-profile --chunks-max N` takes chunks that lie beside each other as one";
            ("content.profile", format!("{name:?}"), advice)
        }
        None => ("content.bytes", content.bytes.to_string(), "larger chunks are fewer"),
    };
    let must = format!("at most {most} chunks (settings.wants_max), not {chunks}; {advice}");
    check(chunks <= most, key, found, must)
}

/// The stratum: one, with a bounded number of transfers at once; more requests wait in their order.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stratum {
    /// Its uplink, in Mbit/s.
    pub up_mbit_s: f64,
    /// Transfers at once.
    pub connections: u32,
}

pub(super) const STRATUM: Table = Table {
    name: "stratum",
    about: "where the content comes from",
    is_required: true,
    is_list: false,
    keys: &[
        Key {
            name: "up_mbit_s",
            kind: RATE,
            unit: "Mbit/s",
            preset: Preset::Required,
            meaning: "the stratum's uplink",
        },
        Key {
            name: "connections",
            kind: Kind::Whole(1, 65_536),
            unit: "",
            preset: Preset::Required,
            meaning: "transfers that the stratum makes at once; more requests wait in their order",
        },
    ],
};
