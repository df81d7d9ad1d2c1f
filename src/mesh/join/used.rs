//! Which tickets were used, and by whom, until they expire and for some time after it: a log of records of one length.
//!
//! A record that could not be written whole must not be followed by another: the log is then closed and written
//! anew before the next claim, however often that fails.

use crate::mesh::mesh_trust::REVOCATION_SPAN;
use crate::mesh::state::{Secrecy, StateDir, StateError};
use crate::mesh::ticket::TicketId;
use crate::model::{NodeId, UnixTime};
use std::collections::{BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::time::Duration;

const FILE: &str = "used-tickets";
/// Most uses of unexpired tickets (guess: a fleet of a hundred thousand that joins in one day).
const USES_MAX: usize = 131_072;
const CHECK_BYTES: usize = 8;
/// Ticket, node, expiry, check sum over them.
const RECORD_BYTES: usize = 16 + 32 + 8 + CHECK_BYTES;
/// A log that has not been written anew since the start may hold expired records beside the living.
const FILE_MAX_BYTES: u64 = (4 * USES_MAX * RECORD_BYTES) as u64;
/// Records after which the log is written anew without the expired ones.
const LOG_MAX_RECORDS: usize = 2 * USES_MAX;

/// How long a use is remembered after its ticket expired, unless the room is needed: a clock that is far ahead at one
/// start must not make tickets good again that have not expired by the right one (as long as revocations are kept).
const REMEMBERED: Duration = REVOCATION_SPAN;

/// What a claim found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Usage {
    /// The node did not use it before; now it does.
    First,
    /// The same node used it before.
    Again,
    /// Other nodes have used it as often as it may be.
    Spent,
    /// Too many tickets are in use; this use was not written down.
    Full,
}

/// A ticket that was used.
struct Used {
    expires: UnixTime,
    nodes: BTreeSet<NodeId>,
}

/// The table and its log.
pub(super) struct UsedTickets {
    state: StateDir,
    /// `None` after a write that failed: what stands in the file is not known then.
    log: Option<File>,
    records: usize,
    uses: usize,
    table: HashMap<TicketId, Used>,
}

fn record(ticket: TicketId, node: NodeId, expires: UnixTime) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    bytes[..16].copy_from_slice(&ticket.0);
    bytes[16..48].copy_from_slice(&node.0);
    bytes[48..56].copy_from_slice(&expires.0.to_be_bytes());
    let check = blake3::hash(&bytes[..56]);
    bytes[56..].copy_from_slice(&check.as_bytes()[..CHECK_BYTES]);
    bytes
}

fn read_record(bytes: &[u8]) -> Option<(TicketId, NodeId, UnixTime)> {
    let (ticket, rest) = bytes.split_first_chunk()?;
    let (node, rest) = rest.split_first_chunk()?;
    let (expires, _) = rest.split_first_chunk()?;
    let (ticket, node) = (TicketId(*ticket), NodeId(*node));
    let expires = UnixTime(u64::from_be_bytes(*expires));
    (record(ticket, node, expires) == bytes).then_some((ticket, node, expires))
}

impl UsedTickets {
    /// Reads the log. A last record that a crash cut short was never answered for, so it is dropped;
    /// damage elsewhere is an error, for a forgotten record would let a ticket be used twice.
    pub(super) fn open(state: StateDir, now: UnixTime) -> Result<Self, StateError> {
        let content = state.read(FILE, FILE_MAX_BYTES)?.unwrap_or_default();
        let mut opened = Self { state, log: None, records: 0, uses: 0, table: HashMap::new() };
        let (count, mut is_clean) = (content.len().div_ceil(RECORD_BYTES), true);
        for (at, bytes) in content.chunks(RECORD_BYTES).enumerate() {
            match read_record(bytes) {
                Some((ticket, node, expires)) if expires.after(REMEMBERED) > now => {
                    opened.note(ticket, node, expires);
                }
                Some(_) => is_clean = false,
                None if at + 1 == count => {
                    tracing::warn!(record = at, "an unfinished record was dropped");
                    is_clean = false;
                }
                None => {
                    return Err(opened.state.damaged(FILE, format!("record {at} of {count} is damaged")));
                }
            }
        }
        // Only where there is something to drop: the disk may be full. Then it is written before the next claim.
        let ready = if is_clean { opened.go_on_with_log(count) } else { opened.start_log_anew() };
        if let Err(error) = ready {
            tracing::warn!(%error, "nobody can join until the used tickets can be written down");
        }
        Ok(opened)
    }

    /// Opens the log for appending to its `records`, if there are any.
    fn go_on_with_log(&mut self, records: usize) -> Result<(), StateError> {
        if records > 0 {
            self.log = Some(self.open_log()?);
            self.records = records;
        }
        Ok(())
    }

    fn note(&mut self, ticket: TicketId, node: NodeId, expires: UnixTime) {
        let used = self.table.entry(ticket).or_insert_with(|| Used { expires, nodes: BTreeSet::new() });
        self.uses += usize::from(used.nodes.insert(node));
    }

    /// The nodes that have used a ticket.
    pub(super) fn users(&self, ticket: &TicketId) -> impl Iterator<Item = &NodeId> {
        self.table.get(ticket).into_iter().flat_map(|used| &used.nodes)
    }

    /// Claims one of `uses` of a ticket for a node. When this returns [`Usage::First`], the claim is on disk.
    pub(super) fn claim(
        &mut self,
        ticket: TicketId,
        node: NodeId,
        uses: u32,
        expires: UnixTime,
        now: UnixTime,
    ) -> Result<Usage, StateError> {
        if let Some(used) = self.table.get(&ticket) {
            if used.nodes.contains(&node) {
                return Ok(Usage::Again);
            }
            if used.nodes.len() >= uses as usize {
                return Ok(Usage::Spent);
            }
        }
        if self.uses >= USES_MAX || self.records >= LOG_MAX_RECORDS {
            self.table.retain(|_, used| used.expires > now);
            self.uses = self.table.values().map(|used| used.nodes.len()).sum();
            self.start_log_anew()?;
            if self.uses >= USES_MAX {
                return Ok(Usage::Full);
            }
        }
        if self.log.is_none() {
            self.start_log_anew()?;
        }
        // Taken out: only after a whole write is it put back.
        let Some(mut log) = self.log.take() else { return Ok(Usage::Full) };
        log.write_all(&record(ticket, node, expires))
            .and_then(|()| log.sync_data())
            .map_err(|source| StateError::Io { path: self.state.file(FILE).display().to_string(), source })?;
        self.log = Some(log);
        self.records += 1;
        self.note(ticket, node, expires);
        Ok(Usage::First)
    }

    /// Writes the log anew and opens it for appending.
    fn start_log_anew(&mut self) -> Result<(), StateError> {
        self.log = None;
        let mut content = Vec::with_capacity(self.uses * RECORD_BYTES);
        for (ticket, used) in &self.table {
            used.nodes.iter().for_each(|node| content.extend(record(*ticket, *node, used.expires)));
        }
        self.state.write(FILE, &content, Secrecy::Secret)?;
        self.log = Some(self.open_log()?);
        self.records = self.uses;
        Ok(())
    }

    fn open_log(&self) -> Result<File, StateError> {
        let path = self.state.file(FILE);
        let log = OpenOptions::new().append(true).open(&path);
        log.map_err(|source| StateError::Io { path: path.display().to_string(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_000);
    const LATER: UnixTime = UnixTime(2_000);
    const ONE: NodeId = NodeId([1; 32]);
    const TWO: NodeId = NodeId([2; 32]);

    /// A claim of a one-time ticket.
    fn claim(used: &mut UsedTickets, ticket: u8, node: NodeId) -> Result<Usage, StateError> {
        used.claim(TicketId([ticket; 16]), node, 1, LATER, NOW)
    }

    fn open(dir: &tempfile::TempDir, now: UnixTime) -> Result<UsedTickets, StateError> {
        UsedTickets::open(StateDir::open(dir.path()).unwrap(), now)
    }

    #[test]
    fn a_ticket_is_for_one_node_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut used = open(&dir, NOW).unwrap();
        assert_eq!(claim(&mut used, 7, ONE).unwrap(), Usage::First);
        assert_eq!(claim(&mut used, 7, TWO).unwrap(), Usage::Spent);
        drop(used);
        let mut used = open(&dir, NOW).unwrap();
        assert_eq!(claim(&mut used, 7, TWO).unwrap(), Usage::Spent);
        assert_eq!(claim(&mut used, 7, ONE).unwrap(), Usage::Again);
    }

    #[test]
    fn a_start_with_a_clock_that_is_ahead_makes_no_ticket_good_again() {
        let dir = tempfile::tempdir().unwrap();
        claim(&mut open(&dir, NOW).unwrap(), 7, ONE).unwrap();
        drop(open(&dir, LATER.after(Duration::from_secs(3 * 86_400))).unwrap());
        assert_eq!(claim(&mut open(&dir, NOW).unwrap(), 7, TWO).unwrap(), Usage::Spent);
    }

    #[test]
    fn a_ticket_that_expired_long_ago_is_forgotten_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        claim(&mut open(&dir, NOW).unwrap(), 7, ONE).unwrap();
        assert_eq!(open(&dir, LATER.after(REMEMBERED)).unwrap().table.len(), 0);
        assert_eq!(std::fs::metadata(dir.path().join(FILE)).unwrap().len(), 0);
    }

    #[test]
    fn a_crash_in_the_middle_of_a_record_loses_only_that_one_and_damage_elsewhere_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut used = open(&dir, NOW).unwrap();
        claim(&mut used, 1, ONE).unwrap();
        claim(&mut used, 2, TWO).unwrap();
        drop(used);
        let path = dir.path().join(FILE);
        let content = std::fs::read(&path).unwrap();
        for cut in RECORD_BYTES + 1..2 * RECORD_BYTES {
            std::fs::write(&path, &content[..cut]).unwrap();
            let mut used = open(&dir, NOW).unwrap();
            assert_eq!(claim(&mut used, 1, TWO).unwrap(), Usage::Spent);
            assert_eq!(claim(&mut used, 3, TWO).unwrap(), Usage::First);
            drop(used);
            assert_eq!(open(&dir, NOW).unwrap().table.len(), 2, "what follows an unfinished record is kept");
        }
        let mut damaged = content;
        damaged[20] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        assert!(matches!(open(&dir, NOW), Err(StateError::Damaged { .. })));
    }

    #[test]
    fn a_ticket_for_three_lets_three_nodes_in_each_as_often_as_it_asks() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..2 {
            let mut used = open(&dir, NOW).unwrap();
            for node in 1..=3 {
                let usage = used.claim(TicketId([7; 16]), NodeId([node; 32]), 3, LATER, NOW).unwrap();
                assert_eq!(usage, if round == 0 { Usage::First } else { Usage::Again });
            }
            let fourth = used.claim(TicketId([7; 16]), NodeId([4; 32]), 3, LATER, NOW).unwrap();
            assert_eq!(fourth, Usage::Spent);
            assert_eq!(used.users(&TicketId([7; 16])).count(), 3);
        }
    }

    #[test]
    fn a_start_writes_nothing_where_nothing_is_to_be_dropped_and_a_disk_that_is_full_keeps_nobody_from_starting()
     {
        let dir = tempfile::tempdir().unwrap();
        claim(&mut open(&dir, NOW).unwrap(), 1, ONE).unwrap();
        // No other file can be made in the log's place, as on a full disk.
        let in_the_way = dir.path().join(format!(".{FILE}.new"));
        std::fs::create_dir(&in_the_way).unwrap();
        let mut used = open(&dir, NOW).unwrap();
        assert_eq!(claim(&mut used, 1, TWO).unwrap(), Usage::Spent);
        assert_eq!(claim(&mut used, 2, TWO).unwrap(), Usage::First, "what is there is gone on with");
        drop(used);
        let mut used = open(&dir, LATER.after(REMEMBERED)).unwrap();
        let later = |used: &mut UsedTickets| {
            used.claim(TicketId([3; 16]), ONE, 1, UnixTime(u64::MAX / 2), LATER.after(REMEMBERED))
        };
        assert!(later(&mut used).is_err(), "there is something to drop, which cannot be written");
        std::fs::remove_dir(&in_the_way).unwrap();
        assert_eq!(later(&mut used).unwrap(), Usage::First);
        assert_eq!(std::fs::metadata(dir.path().join(FILE)).unwrap().len(), RECORD_BYTES as u64);
    }

    #[test]
    fn however_many_writes_fail_the_log_stays_readable_and_nothing_unwritten_is_granted() {
        let dir = tempfile::tempdir().unwrap();
        let mut used = open(&dir, NOW).unwrap();
        claim(&mut used, 1, ONE).unwrap();
        // The file that is open takes half a record and no more, and no other can be made in its place.
        std::fs::write(
            dir.path().join(FILE),
            [record(TicketId([1; 16]), ONE, LATER).as_slice(), &[9; 30]].concat(),
        )
        .unwrap();
        used.log = Some(File::open(dir.path().join(FILE)).unwrap());
        let in_the_way = dir.path().join(format!(".{FILE}.new"));
        std::fs::create_dir(&in_the_way).unwrap();
        for _ in 0..3 {
            assert!(claim(&mut used, 2, TWO).is_err());
            assert!(used.log.is_none());
        }
        std::fs::remove_dir(&in_the_way).unwrap();
        assert_eq!(claim(&mut used, 2, TWO).unwrap(), Usage::First, "the failed claims granted nothing");
        assert_eq!(claim(&mut used, 3, TWO).unwrap(), Usage::First);
        assert_eq!(open(&dir, NOW).unwrap().table.len(), 3);
    }
}
