//! Which tickets were used, and by whom, until they expire: a log of records of one length.

use crate::mesh::state::{Secrecy, StateDir, StateError};
use crate::mesh::ticket::TicketId;
use crate::model::{NodeId, UnixTime};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};

const FILE: &str = "used-tickets";
/// Most used and unexpired tickets (guess: a fleet of a hundred thousand that joins in one day).
const TICKETS_MAX: usize = 131_072;
const CHECK_BYTES: usize = 8;
/// Ticket, node, expiry, check sum over them.
const RECORD_BYTES: usize = 16 + 32 + 8 + CHECK_BYTES;
/// A log that has not been written anew since the start may hold expired records beside the living.
const FILE_MAX_BYTES: u64 = (4 * TICKETS_MAX * RECORD_BYTES) as u64;
/// Records after which the log is written anew without the expired ones.
const LOG_MAX_RECORDS: usize = 2 * TICKETS_MAX;

/// What a claim found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Usage {
    /// The ticket was not used before; now it is.
    First,
    /// The same node used it before.
    Again,
    /// Another node used it.
    Other,
    /// Too many tickets are in use; this one was not written down.
    Full,
}

/// The table and its log.
pub(super) struct UsedTickets {
    state: StateDir,
    log: File,
    records: usize,
    table: HashMap<TicketId, (NodeId, UnixTime)>,
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
        let mut table = HashMap::new();
        let count = content.len().div_ceil(RECORD_BYTES);
        for (at, bytes) in content.chunks(RECORD_BYTES).enumerate() {
            match read_record(bytes) {
                Some((ticket, node, expires)) if expires > now => {
                    table.entry(ticket).or_insert((node, expires));
                }
                Some(_) => {}
                None if at + 1 == count => tracing::warn!(record = at, "an unfinished record was dropped"),
                None => return Err(state.damaged(FILE, format!("record {at} of {count} is damaged"))),
            }
        }
        let log = rewrite(&state, &table)?;
        Ok(Self { state, log, records: table.len(), table })
    }

    /// Claims a ticket for a node. When this returns [`Usage::First`], the claim is on disk.
    pub(super) fn claim(
        &mut self,
        ticket: TicketId,
        node: NodeId,
        expires: UnixTime,
        now: UnixTime,
    ) -> Result<Usage, StateError> {
        if let Some((user, _)) = self.table.get(&ticket) {
            return Ok(if *user == node { Usage::Again } else { Usage::Other });
        }
        if self.table.len() >= TICKETS_MAX || self.records >= LOG_MAX_RECORDS {
            self.table.retain(|_, (_, expires)| *expires > now);
            self.start_log_anew()?;
            if self.table.len() >= TICKETS_MAX {
                return Ok(Usage::Full);
            }
        }
        let append = |log: &mut File| -> io::Result<()> {
            log.write_all(&record(ticket, node, expires))?;
            log.sync_data()
        };
        if let Err(source) = append(&mut self.log) {
            // Half a record may stand there; the next must not follow it.
            self.start_log_anew()?;
            return Err(StateError::Io { path: self.state.file(FILE).display().to_string(), source });
        }
        self.records += 1;
        self.table.insert(ticket, (node, expires));
        Ok(Usage::First)
    }

    fn start_log_anew(&mut self) -> Result<(), StateError> {
        self.log = rewrite(&self.state, &self.table)?;
        self.records = self.table.len();
        Ok(())
    }
}

/// Writes the log anew and opens it for appending.
fn rewrite(state: &StateDir, table: &HashMap<TicketId, (NodeId, UnixTime)>) -> Result<File, StateError> {
    let content: Vec<u8> =
        table.iter().flat_map(|(ticket, (node, expires))| record(*ticket, *node, *expires)).collect();
    state.write(FILE, &content, Secrecy::Secret)?;
    let path = state.file(FILE);
    OpenOptions::new()
        .append(true)
        .open(&path)
        .map_err(|source| StateError::Io { path: path.display().to_string(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_000);
    const LATER: UnixTime = UnixTime(2_000);
    const ONE: NodeId = NodeId([1; 32]);
    const TWO: NodeId = NodeId([2; 32]);

    fn open(dir: &tempfile::TempDir, now: UnixTime) -> Result<UsedTickets, StateError> {
        UsedTickets::open(StateDir::open(dir.path()).unwrap(), now)
    }

    #[test]
    fn a_ticket_is_for_one_node_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let ticket = TicketId([7; 16]);
        let mut used = open(&dir, NOW).unwrap();
        assert_eq!(used.claim(ticket, ONE, LATER, NOW).unwrap(), Usage::First);
        assert_eq!(used.claim(ticket, TWO, LATER, NOW).unwrap(), Usage::Other);
        drop(used);
        let mut used = open(&dir, NOW).unwrap();
        assert_eq!(used.claim(ticket, TWO, LATER, NOW).unwrap(), Usage::Other);
        assert_eq!(used.claim(ticket, ONE, LATER, NOW).unwrap(), Usage::Again);
    }

    #[test]
    fn an_expired_ticket_is_forgotten_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        open(&dir, NOW).unwrap().claim(TicketId([7; 16]), ONE, LATER, NOW).unwrap();
        assert_eq!(open(&dir, LATER).unwrap().table.len(), 0);
        assert_eq!(std::fs::metadata(dir.path().join(FILE)).unwrap().len(), 0);
    }

    #[test]
    fn a_crash_in_the_middle_of_a_record_loses_only_that_one_and_damage_elsewhere_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut used = open(&dir, NOW).unwrap();
        used.claim(TicketId([1; 16]), ONE, LATER, NOW).unwrap();
        used.claim(TicketId([2; 16]), TWO, LATER, NOW).unwrap();
        drop(used);
        let path = dir.path().join(FILE);
        let content = std::fs::read(&path).unwrap();
        for cut in RECORD_BYTES + 1..2 * RECORD_BYTES {
            std::fs::write(&path, &content[..cut]).unwrap();
            let mut used = open(&dir, NOW).unwrap();
            assert_eq!(used.claim(TicketId([1; 16]), TWO, LATER, NOW).unwrap(), Usage::Other);
            assert_eq!(used.claim(TicketId([3; 16]), TWO, LATER, NOW).unwrap(), Usage::First);
            drop(used);
            assert_eq!(open(&dir, NOW).unwrap().table.len(), 2, "what follows an unfinished record is kept");
        }
        let mut damaged = content;
        damaged[20] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        assert!(matches!(open(&dir, NOW), Err(StateError::Damaged { .. })));
    }
}
