//! Where an authority keeps the mesh's key: in `authority.key`, and during a rotation the next one in `authority.key.next`.
//!
//! A rotation writes the next key before the charter names it, and puts it in the place of the other one afterwards. So at
//! any point a crash leaves the newest key in one of the two files, and the next start, or what writes a next key
//! again, first puts it where it belongs. No key that the charter names is ever written over by one that it does not.

use super::authority::MeshKeys;
use super::charter::{CHARTER_MAX_BYTES, Charter};
use super::mesh_trust::CHARTER_FILE;
use super::state::{Secrecy, StateDir, StateError};
use crate::model::UnixTime;

pub(super) const KEY_FILE: &str = "authority.key";
/// The key that a rotation is about to appoint.
pub(super) const NEXT_FILE: &str = "authority.key.next";

/// How an authority that does not hold the newest key is given it.
pub const NEWEST_KEY_REMEDY: &str = "on the authority that rotated, run `starling mesh invite --role authority`; then stop the agent \
     here, run `starling join TICKET --force`, and start it again";

/// The newest stored key that `charter` names.
///
/// # Errors
/// [`StateError`] names the file that cannot be read.
pub(super) fn find(state: &StateDir, charter: &Charter) -> Result<Option<MeshKeys>, StateError> {
    let mut newest: Option<(usize, MeshKeys)> = None;
    for file in [KEY_FILE, NEXT_FILE] {
        let Some(seed) = read(state, file)? else { continue };
        let keys = MeshKeys::of_mesh(&seed, charter.mesh());
        let number = charter.number_of(&keys.public());
        if number > newest.as_ref().map_or(0, |(number, _)| *number) {
            newest = Some((number, keys));
        }
    }
    Ok(newest.map(|(_, keys)| keys))
}

/// The key to act with: the newest stored one that `charter` names, if it counts at `now`. It lies in `authority.key` when
/// this returns, unless the disk fails, which is logged.
///
/// # Errors
/// [`StateError`] names the file that cannot be read.
pub(super) fn load(
    state: &StateDir,
    charter: &Charter,
    now: UnixTime,
) -> Result<Option<MeshKeys>, StateError> {
    let Some(keys) = find(state, charter)? else { return Ok(None) };
    if read(state, KEY_FILE)?.as_ref() != Some(keys.seed()) {
        match put(state, &keys) {
            Ok(()) => tracing::info!("a rotation was cut short; {KEY_FILE} holds its key now"),
            Err(error) => tracing::error!(%error, "the newest key lies in {NEXT_FILE} only: keep that file"),
        }
    }
    Ok(Some(keys).filter(|keys| charter.counting(now).any(|key| key == keys.public())))
}

/// Puts the key into `authority.key`, and removes the next one, which is the same or older.
pub(super) fn put(state: &StateDir, keys: &MeshKeys) -> Result<(), StateError> {
    if read(state, KEY_FILE)?.as_ref() != Some(keys.seed()) {
        store(state, keys.seed())?;
    }
    state.remove(NEXT_FILE)
}

/// Stores the key that a rotation is about to appoint. The one that it follows is stored for good before.
pub(super) fn prepare(
    state: &StateDir,
    charter: &Charter,
    held: &MeshKeys,
    next: &MeshKeys,
) -> Result<(), StateError> {
    // A charter may be stored although storing it failed (the folder was not synced). The key that it names lies where the
    // next one is about to be written, and nowhere else.
    if state.read(CHARTER_FILE, CHARTER_MAX_BYTES as u64)?.as_deref() != Some(charter.bytes()) {
        let detail = "it is not the one that counts here, for a rotation failed half way: restart the agent";
        return Err(state.damaged(CHARTER_FILE, detail));
    }
    if read(state, KEY_FILE)?.as_ref() != Some(held.seed()) {
        store(state, held.seed())?;
    }
    state.write(NEXT_FILE, next.seed(), Secrecy::Secret)
}

/// Stores a key in `authority.key`.
pub(super) fn store(state: &StateDir, seed: &[u8; 32]) -> Result<(), StateError> {
    state.write(KEY_FILE, seed, Secrecy::Secret)
}

/// The seed in a file of the state directory.
pub(super) fn read(state: &StateDir, name: &str) -> Result<Option<[u8; 32]>, StateError> {
    let Some(content) = state.read(name, 32)? else { return Ok(None) };
    let len = content.len();
    let seed = content.try_into().map_err(|_| state.damaged(name, format!("{len} bytes, a key has 32")))?;
    Ok(Some(seed))
}

/// What is wrong with the key of a node with the role of an authority; `None` when it holds the newest.
pub(super) fn problem(held: Option<&MeshKeys>, charter: &Charter, now: UnixTime) -> Option<String> {
    let newest = charter.number();
    let Some(held) = held else {
        return Some(format!(
            "it has the role of an authority and holds no key of the mesh that counts (the newest is number {newest}): it certifies nobody"
        ));
    };
    if held.public() == charter.newest() {
        return None;
    }
    let number = charter.number_of(&held.public());
    let retires = charter.keys().find(|(key, _)| *key == held.public()).map(|(_, retires)| retires);
    Some(match retires.filter(|retires| now < *retires) {
        Some(retires) => format!(
            "it holds key {number} of the mesh, and key {newest} is the newest: it lets joiners in until {retires}, and neither renews, revokes nor rotates"
        ),
        None => format!("it holds key {number} of the mesh, which counts no longer: it certifies nobody"),
    })
}
