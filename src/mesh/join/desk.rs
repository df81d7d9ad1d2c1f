//! The desk of an authority, where joiners are certified, members renewed that nobody else lets in, and those that were
//! revoked are told so.
//!
//! The authority writes down that a ticket was used, and by whom, before it hands out the certificate:
//! after a crash in between the same node may ask again, another may not.

use super::used::{Usage, UsedTickets};
use crate::mesh::endpoint::{Admitted, CloseCode, JoinConnection};
use crate::mesh::office::Office;
use crate::mesh::ports::News;
use crate::mesh::state::{StateDir, StateError};
use crate::mesh::ticket::{TicketId, TicketProof};
use crate::mesh::transfer::{FrameReader, StreamError, write_message};
use crate::mesh::wire::{JoinReply, JoinRequest, MEMBERS_PER_FRAME, MemberRecord, Message};
use crate::model::{CellLabel, NodeId, UnixTime};
use crate::seldom::Seldom;
use futures::future::BoxFuture;
use quinn::SendStream;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};

/// Time that a joiner's connection may take at the desk (guess).
const DESK_LIMIT: Duration = Duration::from_secs(10);
/// Time for its question alone, which follows the handshake at once (guess: several round trips, so that who says nothing
/// is soon out of the way of those who wait).
const QUESTION_LIMIT: Duration = Duration::from_secs(3);
/// Nodes at the desk at a time, whether they have asked yet or still read the answer (guess: a few racks that start at
/// once; each costs a connection). No node is there twice.
const PRESENT_MAX: usize = 256;
/// Of them with one and the same ticket: whoever has one that is spent can show it under any number of names.
const WITH_ONE_TICKET_MAX: usize = PRESENT_MAX / 4;
/// Of them with tickets that have expired, which are only told so: those lie about in scripts and logs.
const WITH_EXPIRED_MAX: usize = 8;
/// Nodes that are decided on at a time, which waits for nobody but this machine. Each costs one flush of the disk.
const DECIDING_MAX: usize = 16;

/// Pause between two warnings of joiners that were turned away.
const WARN_EVERY: Duration = Duration::from_secs(5);

/// Whom to tell a joiner of that will be in a cell: members of that cell and seeds first.
pub type Introductions = Box<dyn Fn(CellLabel) -> BoxFuture<'static, Vec<MemberRecord>> + Send + Sync>;

/// Where an authority lets joiners in.
pub struct JoinDesk {
    office: Arc<Office>,
    used: Mutex<UsedTickets>,
    introductions: Introductions,
    refusals: Seldom,
    present: Mutex<Crowd>,
    deciding: Semaphore,
}

/// What a node at the desk shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shows {
    Membership,
    Ticket(TicketId),
    ExpiredTicket,
}

/// Who is at the desk.
#[derive(Debug, Default)]
struct Crowd(BTreeMap<NodeId, Shows>);

impl Crowd {
    fn enter(&mut self, node: NodeId, shows: Shows) -> Result<(), &'static str> {
        let alike = self.0.values().filter(|shown| **shown == shows).count();
        let alike_max = match shows {
            Shows::Membership => PRESENT_MAX,
            Shows::Ticket(_) => WITH_ONE_TICKET_MAX,
            Shows::ExpiredTicket => WITH_EXPIRED_MAX,
        };
        if self.0.contains_key(&node) {
            return Err("it is at the desk already");
        }
        if alike >= alike_max {
            return Err("too many are at the desk with that ticket, or with expired ones");
        }
        if self.0.len() >= PRESENT_MAX {
            return Err("too many are at the desk");
        }
        self.0.insert(node, shows);
        Ok(())
    }
}

/// A node that is at the desk.
struct Present(Arc<JoinDesk>, NodeId);

impl Drop for Present {
    fn drop(&mut self) {
        self.0.present.lock().unwrap_or_else(PoisonError::into_inner).0.remove(&self.1);
    }
}

impl std::fmt::Debug for JoinDesk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinDesk").field("office", &self.office).finish_non_exhaustive()
    }
}

impl JoinDesk {
    /// Opens the desk of an authority, with the used tickets that `state_dir` remembers.
    ///
    /// # Errors
    /// The state directory is damaged.
    pub fn open(
        office: Arc<Office>,
        state_dir: &Path,
        introductions: Introductions,
    ) -> Result<Arc<Self>, StateError> {
        let used = UsedTickets::open(StateDir::open(state_dir)?, crate::ambient::unix_now())?;
        Ok(Arc::new(Self {
            office,
            used: Mutex::new(used),
            introductions,
            refusals: Seldom::new(WARN_EVERY),
            present: Mutex::default(),
            deciding: Semaphore::new(DECIDING_MAX),
        }))
    }

    /// Serves joiners until the endpoint closes.
    pub async fn run(self: Arc<Self>, mut joins: mpsc::Receiver<JoinConnection>) {
        while let Some(join) = joins.recv().await {
            let shows = match &join.admitted {
                Admitted::Member(_) => Shows::Membership,
                Admitted::Ticket(proof) if has_expired(proof) => Shows::ExpiredTicket,
                Admitted::Ticket(proof) => Shows::Ticket(proof.id),
            };
            let entered = self.present.lock().unwrap_or_else(PoisonError::into_inner).enter(join.node, shows);
            if let Err(why) = entered {
                self.warn(join.node, why);
                join.quinn.close(CloseCode::Busy.into(), CloseCode::Busy.reason());
                continue;
            }
            let present = Present(self.clone(), join.node);
            let desk = self.clone();
            tokio::spawn(async move {
                let _present = present;
                let (node, connection) = (join.node, join.quinn.clone());
                match tokio::time::timeout(DESK_LIMIT, desk.serve(join)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => desk.warn(node, &format!("it was not served: {error:?}")),
                    Err(_) => desk.warn(node, &format!("it took longer than {DESK_LIMIT:?}")),
                }
                connection.close(CloseCode::Done.into(), CloseCode::Done.reason());
            });
        }
    }

    /// Joiners are strangers, or lapsed: what they can cause is written once a minute.
    fn warn(&self, node: NodeId, why: &str) {
        if let Some(held_back) = self.refusals.pass() {
            tracing::warn!(%node, why, held_back, "a joiner was refused");
        }
    }

    async fn serve(self: &Arc<Self>, join: JoinConnection) -> Result<(), StreamError> {
        let JoinConnection { node, admitted, quinn } = join;
        let question = async {
            let (send, recv) =
                quinn.accept_bi().await.map_err(|error| StreamError::Connection(error.to_string()))?;
            let mut reader = FrameReader::new(recv, QUESTION_LIMIT);
            reader.version().await?;
            Ok::<_, StreamError>((send, reader.message().await?))
        };
        let asked = tokio::time::timeout(QUESTION_LIMIT, question).await;
        let (mut send, question) = asked.map_err(|_| StreamError::NoProgress(QUESTION_LIMIT))??;
        // It has asked, so that nobody waits here for a node that says nothing.
        let place = self.deciding.acquire().await;
        let reply = match (admitted, question) {
            (Admitted::Ticket(proof), Some(Message::JoinRequest(request))) => {
                self.admit(node, proof, request).await?
            }
            (Admitted::Member(shown), Some(Message::Renew)) => {
                Message::Renewed(self.office.renew(&shown, crate::ambient::unix_now()))
            }
            _ => {
                quinn.close(CloseCode::Protocol.into(), CloseCode::Protocol.reason());
                return Ok(());
            }
        };
        drop(place);
        let refused = !matches!(&reply, Message::JoinReply(JoinReply::Granted { .. }) | Message::Renewed(_));
        if refused {
            self.office.counters.refused.fetch_add(1, Ordering::Relaxed);
            self.warn(node, &format!("{reply:?}"));
        }
        write_message(&mut send, &reply, DESK_LIMIT).await?;
        if !refused {
            self.tell(&mut send).await?;
        }
        let _ = send.finish();
        // The joiner closes when it has read the answer; then nothing is lost by closing here.
        let _ = send.stopped().await;
        Ok(())
    }

    /// The charter, always: a joiner cannot judge its own certificate without it. And who was revoked.
    async fn tell(&self, send: &mut SendStream) -> Result<(), StreamError> {
        let trust = self.office.identity().trust();
        let mut documents = vec![News::Charter(trust.charter().bytes().to_vec())];
        let rest = trust.documents().into_iter();
        documents.extend(rest.filter(|document| !matches!(document, News::Charter(_))));
        for document in documents {
            write_message(send, &Message::News(document), DESK_LIMIT).await?;
        }
        Ok(())
    }

    async fn admit(
        self: &Arc<Self>,
        node: NodeId,
        proof: TicketProof,
        request: JoinRequest,
    ) -> Result<Message, StreamError> {
        let mut members = (self.introductions)(request.cell.clone()).await;
        members.truncate(MEMBERS_PER_FRAME);
        let (desk, ticket) = (self.clone(), proof.id);
        // The table of used tickets is flushed to disk: not on a thread that serves others.
        let decided = tokio::task::spawn_blocking(move || desk.decide(node, &proof, request, members));
        let reply = decided.await.map_err(|error| StreamError::Connection(error.to_string()))?;
        if matches!(reply, JoinReply::Granted { .. }) {
            self.office.counters.joined.fetch_add(1, Ordering::Relaxed);
            tracing::info!(%node, %ticket, "a node joined");
        }
        Ok(Message::JoinReply(reply))
    }

    fn decide(
        &self,
        node: NodeId,
        proof: &TicketProof,
        request: JoinRequest,
        members: Vec<MemberRecord>,
    ) -> JoinReply {
        let (now, terms) = (crate::ambient::unix_now(), &proof.terms);
        if has_expired(proof) {
            return JoinReply::Expired { at: terms.expires };
        }
        let cell = match terms.cell_for(Some(request.cell)) {
            Ok(cell) => cell,
            Err(error) => return JoinReply::Unable { detail: error.to_string() },
        };
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = self.void_since(proof, node, &used) {
            return JoinReply::Revoked { at };
        }
        match used.claim(proof.id, node, terms.uses, terms.expires, now) {
            Ok(Usage::First | Usage::Again) => {}
            Ok(Usage::Spent) => return JoinReply::Used { ticket: proof.id },
            Ok(Usage::Full) => {
                return JoinReply::Unable { detail: "too many tickets are in use at once".into() };
            }
            Err(error) => {
                tracing::error!(%error, "used tickets cannot be written down");
                return JoinReply::Unable { detail: "it cannot write down that the ticket was used".into() };
            }
        }
        drop(used);
        match self.office.certify(node, cell, terms.role, terms.scope.clone(), now) {
            Ok(certificate) => JoinReply::Granted {
                certificate: certificate.bytes().to_vec(),
                seed: self.office.seed_for(terms.role),
                members,
            },
            Err(error) => JoinReply::Unable { detail: error.to_string() },
        }
    }

    /// Since when a ticket counts no longer for `node`: that node was revoked after the ticket was issued, or one
    /// that it let in was, whose holder could come back under another name.
    fn void_since(&self, proof: &TicketProof, node: NodeId, used: &UsedTickets) -> Option<UnixTime> {
        let trust = self.office.identity().trust();
        std::iter::once(&node)
            .chain(used.users(&proof.id))
            .filter_map(|user| trust.revocation_of(user))
            .map(|entry| entry.at)
            .find(|at| *at >= proof.terms.issued)
    }
}

fn has_expired(proof: &TicketProof) -> bool {
    crate::ambient::unix_now() >= proof.terms.expires
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_ticket_under_many_names_fills_the_desk() {
        let mut crowd = Crowd::default();
        let mut come = |from: usize, shows| {
            (from..from + 1_000).filter(|n| crowd.enter(NodeId::numbered(*n), shows).is_ok()).count()
        };
        assert_eq!(come(0, Shows::ExpiredTicket), WITH_EXPIRED_MAX);
        let spent = Shows::Ticket(TicketId([1; 16]));
        assert_eq!(come(1_000, spent), WITH_ONE_TICKET_MAX);
        let left = PRESENT_MAX - WITH_EXPIRED_MAX - WITH_ONE_TICKET_MAX;
        assert_eq!(come(2_000, Shows::Membership), left);
        assert!(
            crowd.enter(NodeId::numbered(9_000), Shows::Ticket(TicketId([2; 16]))).is_err(),
            "the desk is full"
        );
        crowd.0.remove(&NodeId::numbered(0));
        assert!(crowd.enter(NodeId::numbered(2_000), Shows::Membership).is_err(), "no node is there twice");
        assert!(crowd.enter(NodeId::numbered(9_000), Shows::Ticket(TicketId([2; 16]))).is_ok());
    }
}
