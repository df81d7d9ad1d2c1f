//! Members to ask after a restart: those that were alive when it was last looked.
//!
//! Only a hint: whoever is asked must show its certificate. A file that is damaged is therefore no
//! reason not to start.

use super::api::PeerStatus;
use crate::mesh::Contact;
use crate::model::{CellLabel, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Most members that are remembered: enough that some of them live on (a guess).
const CONTACTS_MAX: usize = 64;
/// Largest such file, in bytes.
const FILE_MAX_BYTES: u64 = 64 << 10;

/// The file and what stands in it.
#[derive(Debug)]
pub(super) struct Contacts {
    file: PathBuf,
    known: Vec<Contact>,
}

impl Contacts {
    /// Reads the file, if there is one.
    pub(super) fn open(file: PathBuf) -> Self {
        let known = read(&file).unwrap_or_else(|error| {
            tracing::warn!(file = %file.display(), %error, "the members known before the restart are forgotten");
            Vec::new()
        });
        Self { file, known }
    }

    /// Members of the last run.
    pub(super) fn known(&self) -> &[Contact] {
        &self.known
    }

    /// Forgets those who are no members any more.
    pub(super) fn forget(&mut self, gone: &BTreeSet<NodeId>) {
        let left: Vec<_> =
            self.known.iter().filter(|contact| !gone.contains(&contact.node)).cloned().collect();
        if left.len() < self.known.len() {
            self.replace(left);
        }
    }

    /// Remembers who is alive now. Nobody alive is no news: then the earlier ones stay.
    pub(super) fn remember(&mut self, peers: &[PeerStatus]) {
        let mut alive: Vec<_> = spread(peers)
            .into_iter()
            .map(|peer| Contact { node: peer.node, addresses: vec![peer.address] })
            .collect();
        alive.sort_by_key(|contact| contact.node);
        if alive.is_empty() || alive == self.known {
            return;
        }
        self.replace(alive);
    }

    fn replace(&mut self, known: Vec<Contact>) {
        match write(&self.file, &known) {
            Ok(()) => self.known = known,
            Err(error) => tracing::debug!(file = %self.file.display(), %error, "contacts not written"),
        }
    }
}

/// Some of those that are alive: the cells in turn, so that however large one is, the others are found again as well.
fn spread(peers: &[PeerStatus]) -> Vec<&PeerStatus> {
    let mut cells: BTreeMap<Option<&CellLabel>, Vec<&PeerStatus>> = BTreeMap::new();
    for peer in peers.iter().filter(|peer| peer.up) {
        cells.entry(peer.cell.as_ref()).or_default().push(peer);
    }
    let largest = cells.values().map(Vec::len).max().unwrap_or(0);
    let in_turn = (0..largest).flat_map(|turn| cells.values().filter_map(move |cell| cell.get(turn)));
    in_turn.copied().take(CONTACTS_MAX).collect()
}

fn read(file: &Path) -> io::Result<Vec<Contact>> {
    let found = match fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?.len(),
    };
    if found > FILE_MAX_BYTES {
        return Err(io::Error::other(format!("{found} bytes, at most {FILE_MAX_BYTES} belong there")));
    }
    let mut contacts: Vec<Contact> = serde_json::from_slice(&fs::read(file)?)?;
    contacts.truncate(CONTACTS_MAX);
    Ok(contacts)
}

/// Replaced whole. Not synced: what is lost in a power cut is found again.
fn write(file: &Path, contacts: &[Contact]) -> io::Result<()> {
    let beside = file.with_extension("new");
    fs::File::create(&beside)?.write_all(&serde_json::to_vec(contacts)?)?;
    fs::rename(beside, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u8, up: bool) -> PeerStatus {
        PeerStatus {
            node: NodeId([number; 32]),
            cell: None,
            address: "127.0.0.1:7400".parse().unwrap(),
            up,
            revoked: false,
            rtt_us: None,
            sent_bytes: 0,
            received_bytes: 0,
            sent_share: 0.0,
            received_share: 0.0,
        }
    }

    #[test]
    fn the_living_are_remembered_and_kept_when_nobody_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("contacts.json");
        let mut contacts = Contacts::open(file.clone());
        assert!(contacts.known().is_empty());
        contacts.remember(&[peer(2, true), peer(1, true), peer(3, false)]);
        contacts.remember(&[peer(1, false)]);
        let nodes =
            || -> Vec<_> { Contacts::open(file.clone()).known().iter().map(|c| c.node.0[0]).collect() };
        assert_eq!(nodes(), [1, 2]);
        contacts.forget(&[NodeId([2; 32]), NodeId([3; 32])].into());
        assert_eq!(nodes(), [1], "who was revoked is no member to be missed");
    }

    #[test]
    fn a_large_cell_does_not_push_the_others_out() {
        let mut peers: Vec<_> = (0..200).map(|number| peer(number, true)).collect();
        for peer in &mut peers[100..103] {
            peer.cell = Some("eu/a/r1".parse().unwrap());
        }
        let kept = spread(&peers);
        assert_eq!(kept.len(), CONTACTS_MAX);
        assert_eq!(kept.iter().filter(|peer| peer.cell.is_some()).count(), 3);
    }

    #[test]
    fn a_damaged_file_costs_the_memory_and_not_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("contacts.json");
        for content in [b"{".to_vec(), vec![b' '; 70_000]] {
            fs::write(&file, content).unwrap();
            assert!(Contacts::open(file.clone()).known().is_empty());
        }
    }
}
