//! What may not be evicted: pins, each a name and bodies of its own.
//!
//! Packs hold what came together, so a pack would be kept for one chunk in it. Instead the chunks of what is pinned are
//! gathered in bodies: those of its large files, and others in which its small files lie one after the other. Exactly
//! these stay. The list is one small file, `pins.json`, replaced as a whole; it survives kill -9 and power cuts. One that
//! is damaged is kept beside the next one, and one that the disk does not give is not replaced.

use super::body::{Body, List};
use super::inner::{Inner, lock};
use super::{DiskCache, PinError, PinInfo};
use crate::model::{ChunkRef, ContentId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most pins (guess: more are made by programs, which should pin a directory).
const MAX_PINS: usize = 256;
/// Most bodies of all pins: half of all that there may be.
const MAX_PINNED_BODIES: usize = 4096;
/// The part of the quota, in hundredths, that may be pinned or held by those who have files open: the rest is for what is
/// being read.
pub(super) const KEPT_PERCENT: u64 = 80;
/// The part, in hundredths, that is there for catalogs beside that (guess: they are a hundredth of most trees).
const CATALOGS_PERCENT: u64 = 10;
/// Most bytes of the list: names of 4 KiB and 65 digits a body, generously.
const FILE_MAX_BYTES: u64 = 8 << 20;
const FILE: &str = "pins.json";
/// Most damaged lists that are kept (guess: somebody should have looked by then).
const ASIDE_MAX: u32 = 99;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Pin {
    /// Of what its bodies were made.
    version: u64,
    /// Bytes on disk once all is there.
    bytes: u64,
    bodies: Vec<ContentId>,
    /// Whether it is of catalogs, which are counted apart.
    #[serde(default)]
    catalogs: bool,
    /// What it was made of before and what has been there of that, with bytes on disk: it stays until all of the new is there.
    #[serde(default)]
    before: Vec<(ContentId, u64)>,
}

/// All pins, by name.
#[derive(Debug, Default)]
pub(super) struct Pins {
    by_name: BTreeMap<String, Pin>,
    /// Why the list of the last run could not be read, so that none may be written in its place.
    unread: Option<String>,
}

impl Pins {
    /// Those of the last run. When their list cannot be read that is said, and nothing is pinned.
    pub(super) fn load(folder: &Path) -> Self {
        match Self::read(folder) {
            Ok(by_name) => Self { by_name, unread: None },
            Err(problem) => {
                tracing::error!(
                    "the list of pins cannot be read, so nothing is pinned, and none is written in its place \
                     until it can be: {problem}"
                );
                Self { by_name: BTreeMap::new(), unread: Some(problem) }
            }
        }
    }

    /// The list in `folder`. One that is damaged is set aside and counts as empty; an error means that nothing is known of it, or
    /// that it could not be set aside.
    fn read(folder: &Path) -> Result<BTreeMap<String, Pin>, String> {
        let path = folder.join(FILE);
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        let bytes = match fs::metadata(&path) {
            Ok(found) if found.is_file() && found.len() > FILE_MAX_BYTES => None,
            Ok(_) => Some(fs::read(&path).map_err(failed)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(failed(error)),
        };
        let parsed = bytes.map_or_else(
            || Err(format!("it is longer than {FILE_MAX_BYTES} bytes")),
            |bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
        );
        parsed.or_else(|damage| {
            let aside = Self::set_aside(folder).map_err(|error| {
                format!("{}: {damage}; and it cannot be renamed: {error}", path.display())
            })?;
            tracing::error!(
                file = %path.display(), aside = %aside.display(),
                "the list of pins is damaged and was renamed; nothing is pinned until it is pinned anew: {damage}"
            );
            Ok(BTreeMap::new())
        })
    }

    /// Renames the list, to a name that no other has.
    fn set_aside(folder: &Path) -> io::Result<PathBuf> {
        let mut names = (1..=ASIDE_MAX).map(|number| folder.join(format!("{FILE}.damaged.{number}")));
        let is_free = |name: &PathBuf| {
            fs::symlink_metadata(name).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        let too_many =
            || io::Error::other(format!("{ASIDE_MAX} damaged lists are there already: remove some"));
        let aside = names.find(is_free).ok_or_else(too_many)?;
        fs::rename(folder.join(FILE), &aside)?;
        File::open(folder)?.sync_all()?;
        Ok(aside)
    }

    fn save(folder: &Path, pins: &BTreeMap<String, Pin>) -> io::Result<()> {
        let (path, beside) = (folder.join(FILE), folder.join("pins.json.new"));
        let mut file = File::create(&beside)?;
        file.write_all(&serde_json::to_vec_pretty(pins).map_err(io::Error::other)?)?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        File::open(folder)?.sync_all()
    }

    /// The bodies of all pins.
    pub(super) fn bodies(&self) -> HashSet<ContentId> {
        let of = |pin: &Pin| {
            pin.bodies.iter().chain(pin.before.iter().map(|(body, _)| body)).copied().collect::<Vec<_>>()
        };
        self.by_name.values().flat_map(of).collect()
    }
}

impl Inner {
    /// Reads the list of the last run, if it could not be read before.
    fn read_late(&self, pins: &mut Pins) -> Result<(), PinError> {
        if pins.unread.is_none() {
            return Ok(());
        }
        match Pins::read(&self.folder) {
            Ok(by_name) => {
                tracing::info!("the list of pins can be read again");
                *pins = Pins { by_name, unread: None };
                lock(&self.noted).set_pinned(pins.bodies());
                Ok(())
            }
            Err(problem) => {
                pins.unread = Some(problem.clone());
                Err(PinError::Unread(problem))
            }
        }
    }

    /// Pins the files of these lists under a name, in place of what was pinned under it: that stays until the new is there, as
    /// far as it fits.
    pub(super) fn pin(
        &self,
        name: &str,
        version: u64,
        lists: &[Arc<[ChunkRef]>],
        catalogs: bool,
    ) -> Result<(), PinError> {
        let mut pins = lock(&self.pins);
        self.read_late(&mut pins)?;
        let mut changed = pins.by_name.clone();
        let old = changed.remove(name);
        let mut pin =
            Pin { version, bytes: 0, bodies: Vec::with_capacity(lists.len()), catalogs, before: Vec::new() };
        for chunks in lists {
            let list = List::of_any(chunks).ok_or(PinError::Unfit)?;
            pin.bytes += list.total() + list.list_bytes();
            pin.bodies.push(list.name);
        }
        let is_the_same =
            |old: &Pin| (old.version, old.catalogs) == (version, catalogs) && old.bodies == pin.bodies;
        if old.as_ref().is_some_and(is_the_same) {
            return Ok(());
        }
        let others: u64 = changed.values().filter(|pin| pin.catalogs == catalogs).map(|pin| pin.bytes).sum();
        let percent = if catalogs { CATALOGS_PERCENT } else { KEPT_PERCENT };
        let limit_bytes = self.config.quota_bytes / 100 * percent;
        if others.saturating_add(pin.bytes) > limit_bytes {
            return Err(PinError::TooLarge {
                wanted_bytes: pin.bytes,
                pinned_bytes: others,
                limit_bytes,
                percent,
            });
        }
        if changed.len() >= MAX_PINS {
            return Err(PinError::TooManyPins { limit: MAX_PINS });
        }
        let wanted = pin.bodies.len();
        let pinned: usize = changed.values().map(|pin| pin.bodies.len()).sum();
        if pinned + wanted > MAX_PINNED_BODIES {
            return Err(PinError::TooManyBodies { wanted, pinned, limit: MAX_PINNED_BODIES });
        }
        if let Some(old) = old {
            let noted = lock(&self.noted);
            let is_whole = |body: &ContentId| noted.find(body).is_some_and(|body| body.is_verified());
            // One set at most, or sets that never become whole would pile up: the last that was. Catalogs seldom are.
            let nothing_better = old.before.is_empty() && !catalogs;
            let kept = if nothing_better || old.bodies.iter().all(is_whole) {
                old.bodies
            } else {
                old.before.into_iter().map(|(body, _)| body).collect()
            };
            let new: HashSet<&ContentId> = pin.bodies.iter().collect();
            let here = kept.iter().filter(|body| !new.contains(body)).filter_map(|body| noted.find(body));
            let here = here.filter(|body| body.is_made());
            pin.before = here.map(|body| (body.list.name, body.bytes())).collect();
        }
        changed.insert(name.to_owned(), pin);
        self.drop_what_does_not_fit(&mut changed);
        self.set_pins(&mut pins, changed)
    }

    /// What pins were made of before stays beside what they are made of now only where there is room for it.
    fn drop_what_does_not_fit(&self, pins: &mut BTreeMap<String, Pin>) {
        let limit = self.config.quota_bytes / 100 * KEPT_PERCENT;
        let mut bytes: u64 = pins.values().map(|pin| pin.bytes).sum();
        let mut bodies: usize = pins.values().map(|pin| pin.bodies.len()).sum();
        for pin in pins.values_mut() {
            pin.before.retain(|(_, old)| {
                let fits = bytes.saturating_add(*old) <= limit && bodies < MAX_PINNED_BODIES;
                if fits {
                    bytes += old;
                    bodies += 1;
                }
                fits
            });
        }
    }

    /// Lets go of what pins were made of before, where all of the new is there.
    pub(super) fn end_replaced(&self) -> Result<(), PinError> {
        let mut pins = lock(&self.pins);
        self.read_late(&mut pins)?;
        let mut changed = pins.by_name.clone();
        let mut is_changed = false;
        for pin in changed.values_mut().filter(|pin| !pin.before.is_empty()) {
            let noted = lock(&self.noted);
            let is_whole = |body: &ContentId| noted.find(body).is_some_and(|body| body.is_verified());
            if pin.bodies.iter().all(is_whole) {
                pin.before.clear();
                is_changed = true;
            }
        }
        if is_changed { self.set_pins(&mut pins, changed) } else { Ok(()) }
    }

    /// Ends a pin. False when there is none of that name.
    pub(super) fn unpin(&self, name: &str) -> Result<bool, PinError> {
        let mut pins = lock(&self.pins);
        self.read_late(&mut pins)?;
        let mut changed = pins.by_name.clone();
        let was = changed.remove(name).is_some();
        if was {
            self.set_pins(&mut pins, changed)?;
        }
        Ok(was)
    }

    fn set_pins(&self, pins: &mut Pins, changed: BTreeMap<String, Pin>) -> Result<(), PinError> {
        Pins::save(&self.folder, &changed).map_err(|error| PinError::Disk(error.to_string()))?;
        pins.by_name = changed;
        lock(&self.noted).set_pinned(pins.bodies());
        Ok(())
    }

    /// Notes one of the lists of a pin, so that what is fetched of it goes into its body, and has what is here brought
    /// into it at once. True when all of it is there.
    pub(super) fn gather(&self, chunks: &[ChunkRef]) -> bool {
        let Some(body) = List::of_any(chunks).and_then(|list| self.note(list)) else { return false };
        if !body.is_verified() {
            lock(&self.noted).enqueue(&body);
            self.wake.notify_one();
        }
        body.is_verified()
    }

    /// All pins, and how much of each is there.
    pub(super) fn pins(&self) -> Vec<PinInfo> {
        let pins = lock(&self.pins);
        let noted = lock(&self.noted);
        let info = |(name, pin): (&String, &Pin)| {
            let found: Vec<Arc<Body>> = pin.bodies.iter().filter_map(|body| noted.find(body)).collect();
            PinInfo {
                name: name.clone(),
                version: pin.version,
                bytes: pin.bytes,
                here_bytes: found.iter().filter(|body| body.is_made()).map(|body| body.bytes()).sum(),
                complete: found.len() == pin.bodies.len() && found.iter().all(|body| body.is_verified()),
            }
        };
        pins.by_name.iter().map(info).collect()
    }
}

impl DiskCache {
    /// Most pins that there may be.
    pub const MAX_PINS: usize = MAX_PINS;
    /// Most lists of all pins together, each of which becomes a body.
    pub const MAX_PINNED_BODIES: usize = MAX_PINNED_BODIES;

    /// Most bytes on disk of all pins, those of catalogs apart.
    pub fn pinned_max_bytes(&self) -> u64 {
        self.inner.config.quota_bytes / 100 * KEPT_PERCENT
    }

    /// Why the list of pins could not be read, so that nothing is pinned and nothing can be. It is tried again.
    pub fn pins_problem(&self) -> Option<String> {
        lock(&self.inner.pins).unread.clone()
    }
}
