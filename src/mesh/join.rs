//! Joining a mesh: the joiner's side, and the desk of an authority that certifies joiners.
//!
//! The joiner makes its own key, dials the authorities that its ticket names, and shows a proof of the
//! ticket in its TLS certificate. The authority writes down that the ticket was used, and by whom,
//! before it hands out the certificate: after a crash in between the same node may ask again, another
//! may not.

mod used;

use super::endpoint::{Alpn, CloseCode, JoinConnection, agreed, judge};
use super::identity::{
    Identity, IdentityError, MEMBERSHIP_LIFETIME, node_key, refuse_member, store_membership,
};
use super::membership::{AuthorityKey, Membership, MembershipCert, MembershipError, MeshKeys, Role, Scope};
use super::socket;
use super::state::{Secrecy, StateDir, StateError};
use super::ticket::{Ticket, TicketError, TicketId};
use super::tls::{self, Credential, Rules, TlsError, Verified, Wanted};
use super::transfer::{FrameReader, StreamError, verified, write_all, write_message};
use super::wire::{BODY_MAX_BYTES, HEADER_BYTES, Header, MEMBERS_PER_FRAME, VERSION};
use super::wire::{JoinReply, JoinRequest, MemberRecord, Message};
use crate::model::{CellLabel, NodeId, UnixTime};
use crate::seldom::Seldom;
use bytes::Bytes;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use used::{Usage, UsedTickets};

/// Time for one address of a ticket: dial, handshake, question and answer (guess).
const ATTEMPT_LIMIT: Duration = Duration::from_secs(5);
/// Time that a joiner's connection may take at the desk (guess).
const DESK_LIMIT: Duration = Duration::from_secs(10);
/// Joiners that are served at a time. Each costs one flush of the disk.
const AT_THE_DESK: usize = 16;
const BOOTSTRAP_FILE: &str = "bootstrap";

/// Members and where they are reached.
pub type Members = Vec<(MembershipCert, Vec<SocketAddr>)>;

/// Why joining failed.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The ticket, as seen here.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// The machine is a member already, or its state directory is damaged.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No UDP socket could be had.
    #[error("cannot open a UDP socket: {0}")]
    Socket(std::io::Error),
    /// Nobody whom the ticket names let this machine in.
    #[error("no authority of the ticket could be reached: {}", .tried.join("; "))]
    Unreachable {
        /// What became of each address.
        tried: Vec<String>,
    },
    /// Another machine has used the ticket.
    #[error("ticket {ticket} was used by another machine: ask for a new one (`starling mesh invite`)")]
    Used {
        /// The ticket.
        ticket: TicketId,
    },
    /// The authority cannot certify now.
    #[error("the authority cannot let this machine in: {0}")]
    Unable(String),
    /// The authority's answer is not what it should be.
    #[error("the authority answered with a certificate that does not count: {0}")]
    Certificate(MembershipError),
    /// The authority certified something else than was asked.
    #[error("the authority certified {found}, asked was {asked}")]
    OtherThanAsked {
        /// Node and cell in the certificate.
        found: String,
        /// This node and the cell asked for.
        asked: String,
    },
    /// Only an authority has a desk.
    #[error("{0} holds no authority's key, so it cannot certify others")]
    NotAnAuthority(NodeId),
}

/// What joining brought.
#[derive(Debug)]
pub struct Joined {
    /// This node's membership, stored.
    pub membership: MembershipCert,
    /// Members to begin with, stored; see [`bootstrap`].
    pub members: Members,
}

/// Makes this machine a member of the ticket's mesh, in cell `cell`. Key, membership and first contacts
/// are stored in `state_dir`. Ends within `ATTEMPT_LIMIT` an address. `force` replaces a membership
/// that is there; the key stays.
///
/// # Errors
/// [`JoinError`]. Nothing was changed then, but that the node may have its key now.
pub async fn join(
    ticket: &Ticket,
    cell: CellLabel,
    state_dir: &Path,
    force: bool,
) -> Result<Joined, JoinError> {
    if !force {
        refuse_member(state_dir)?;
    }
    ticket.check_time(crate::ambient::unix_now())?;
    let key = node_key(state_dir)?;
    let certified = tls::make_certificate(&key, &Credential::Joiner(ticket.prove(&key.node())))?;
    let rules = Rules { authority: *ticket.authority(), mesh_keys: None };
    let endpoint = client_endpoint()?;
    let mut tried = Vec::new();
    for (node, address) in
        ticket.contacts().iter().flat_map(|contact| contact.addresses.iter().map(|a| (contact.node, *a)))
    {
        let wanted = Wanted { node: Some(node), certifying: true };
        let tls = tls::client_config(&certified, rules.clone(), wanted, &[Alpn::Join.name().as_bytes()])?;
        let attempt = ask_authority(&endpoint, tls, address, &rules, &cell);
        match tokio::time::timeout(ATTEMPT_LIMIT, attempt).await {
            Ok(Ok((reply, authority))) => {
                endpoint.close(CloseCode::Done.into(), CloseCode::Done.reason());
                return settle(ticket, &cell, state_dir, key.node(), reply, authority);
            }
            Ok(Err(detail)) => tried.push(format!("{address}: {detail}")),
            Err(_) => tried.push(format!("{address}: no answer within {ATTEMPT_LIMIT:?}")),
        }
    }
    Err(JoinError::Unreachable { tried })
}

/// An endpoint that only dials, over both families where the machine has both.
fn client_endpoint() -> Result<quinn::Endpoint, JoinError> {
    let both = socket::open(SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), 0));
    let socket = both
        .or_else(|_| socket::open(SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), 0)))
        .map_err(JoinError::Socket)?;
    let mut config = quinn::EndpointConfig::default();
    config.grease_quic_bit(false);
    quinn::Endpoint::new(config, None, socket, Arc::new(quinn::TokioRuntime)).map_err(JoinError::Socket)
}

/// Asks one authority; returns its answer and its own record.
async fn ask_authority(
    endpoint: &quinn::Endpoint,
    tls: quinn::crypto::rustls::QuicClientConfig,
    address: SocketAddr,
    rules: &Rules,
    cell: &CellLabel,
) -> Result<(JoinReply, MemberRecord), String> {
    let client = quinn::ClientConfig::new(Arc::new(tls));
    let connection = endpoint
        .connect_with(client, address, tls::SERVER_NAME)
        .map_err(|error| error.to_string())?
        .await
        .map_err(|error| error.to_string())?;
    if agreed(&connection) != Some(Alpn::Join) {
        return Err(format!("it did not agree on {}", Alpn::Join));
    }
    let Verified::Member(authority) = judge(&connection, rules)? else {
        return Err("it is no member".into());
    };
    let shown = |error: StreamError| format!("{error:?}");
    let (mut send, recv) = connection.open_bi().await.map_err(|error| error.to_string())?;
    write_all(&mut send, Bytes::from_static(&[VERSION]), ATTEMPT_LIMIT).await.map_err(shown)?;
    let request = Message::JoinRequest(JoinRequest { cell: cell.clone() });
    write_message(&mut send, &request, ATTEMPT_LIMIT).await.map_err(shown)?;
    match FrameReader::new(recv, ATTEMPT_LIMIT).message().await.map_err(shown)? {
        Some(Message::JoinReply(reply)) => {
            let record = MemberRecord { certificate: authority.bytes().to_vec(), addresses: vec![address] };
            Ok((reply, record))
        }
        other => Err(format!("it answered {other:?}")),
    }
}

/// Checks the answer and stores what it brought, the membership last.
fn settle(
    ticket: &Ticket,
    cell: &CellLabel,
    state_dir: &Path,
    node: NodeId,
    reply: JoinReply,
    authority: MemberRecord,
) -> Result<Joined, JoinError> {
    let (certificate, members) = match reply {
        JoinReply::Granted { certificate, members } => (certificate, members),
        JoinReply::Expired { at } => return Err(TicketError::Expired { at }.into()),
        JoinReply::Used { ticket } => return Err(JoinError::Used { ticket }),
        JoinReply::Unable { detail } => return Err(JoinError::Unable(detail)),
    };
    let now = crate::ambient::unix_now();
    let membership =
        MembershipCert::verify(&certificate, ticket.authority(), now).map_err(JoinError::Certificate)?;
    if membership.node != node || membership.cell != *cell {
        return Err(JoinError::OtherThanAsked {
            found: format!("{} in {}", membership.node, membership.cell),
            asked: format!("{node} in {cell}"),
        });
    }
    // The authority answered at that address: it comes first, whatever else it says of itself.
    let others: Vec<_> = members.into_iter().filter(|m| m.certificate != authority.certificate).collect();
    let mut records = vec![authority];
    records.extend(others);
    records.truncate(MEMBERS_PER_FRAME);
    store_bootstrap(state_dir, &records)?;
    store_membership(state_dir, &membership, ticket.authority())?;
    Ok(Joined { membership, members: verified(records, ticket.authority(), now).collect() })
}

/// Stores members to begin with at the next start. Of `members` the first 64 are kept.
///
/// # Errors
/// [`StateError`].
pub fn store_bootstrap(state_dir: &Path, members: &[MemberRecord]) -> Result<(), StateError> {
    let state = StateDir::open(state_dir)?;
    let kept = members[..members.len().min(MEMBERS_PER_FRAME)].to_vec();
    let frame = Message::MemberList(kept).to_frame().map_err(|error| state.damaged(BOOTSTRAP_FILE, error))?;
    state.write(BOOTSTRAP_FILE, &frame, Secrecy::Public)
}

/// The stored members to begin with whose certificates still count; none when nothing is stored.
///
/// # Errors
/// [`StateError`]; a damaged file is named.
pub fn bootstrap(state_dir: &Path, authority: &AuthorityKey) -> Result<Members, StateError> {
    let state = StateDir::open(state_dir)?;
    let Some(frame) = state.read(BOOTSTRAP_FILE, (HEADER_BYTES + BODY_MAX_BYTES) as u64)? else {
        return Ok(Vec::new());
    };
    let damaged = |detail: &dyn std::fmt::Display| state.damaged(BOOTSTRAP_FILE, detail);
    let (header, body) =
        frame.split_first_chunk::<HEADER_BYTES>().ok_or_else(|| damaged(&"it has no header"))?;
    let header = Header::read(*header).map_err(|error| damaged(&error))?;
    if header.len != body.len() {
        return Err(damaged(&format!("{} bytes instead of {}", body.len(), header.len)));
    }
    match Message::from_body(header.kind, body).map_err(|error| damaged(&error))? {
        Some(Message::MemberList(records)) => {
            Ok(verified(records, authority, crate::ambient::unix_now()).collect())
        }
        _ => Err(damaged(&"it holds no list of members")),
    }
}

/// Warns of a joiner that was turned away, but not of each of a flood.
fn complain(warn: impl FnOnce(u64)) {
    static TURNED_AWAY: Seldom = Seldom::new(Duration::from_secs(5));
    if let Some(held_back) = TURNED_AWAY.pass() {
        warn(held_back);
    }
}

/// Where an authority lets joiners in.
pub struct JoinDesk {
    keys: Arc<MeshKeys>,
    used: std::sync::Mutex<UsedTickets>,
}

impl std::fmt::Debug for JoinDesk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinDesk").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl JoinDesk {
    /// Opens the desk of an authority, with the used tickets that `state_dir` remembers.
    ///
    /// # Errors
    /// [`JoinError::NotAnAuthority`], or the state directory is damaged.
    pub fn open(identity: &Identity, state_dir: &Path) -> Result<Arc<Self>, JoinError> {
        let keys = identity.mesh_keys().ok_or_else(|| JoinError::NotAnAuthority(identity.node()))?.clone();
        let used = UsedTickets::open(StateDir::open(state_dir)?, crate::ambient::unix_now())?;
        Ok(Arc::new(Self { keys, used: std::sync::Mutex::new(used) }))
    }

    /// Serves joiners until the endpoint closes. `members` says whom to tell a joiner of, the first 64 of
    /// them; called once a joiner.
    pub async fn run(
        self: Arc<Self>,
        mut joins: mpsc::Receiver<JoinConnection>,
        members: impl Fn() -> Vec<MemberRecord> + Send,
    ) {
        let places = Arc::new(Semaphore::new(AT_THE_DESK));
        while let Some(join) = joins.recv().await {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let (desk, members) = (self.clone(), members());
            tokio::spawn(async move {
                let _place = place;
                let (node, connection) = (join.node, join.quinn.clone());
                match tokio::time::timeout(DESK_LIMIT, desk.serve(join, members)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => complain(|held_back| {
                        tracing::warn!(%node, ?error, held_back, "a joiner was not served");
                    }),
                    Err(_) => complain(|held_back| {
                        tracing::warn!(%node, limit = ?DESK_LIMIT, held_back, "a joiner took too long");
                    }),
                }
                connection.close(CloseCode::Done.into(), CloseCode::Done.reason());
            });
        }
    }

    async fn serve(
        self: Arc<Self>,
        join: JoinConnection,
        members: Vec<MemberRecord>,
    ) -> Result<(), StreamError> {
        let (mut send, recv) =
            join.quinn.accept_bi().await.map_err(|error| StreamError::Connection(error.to_string()))?;
        let mut reader = FrameReader::new(recv, DESK_LIMIT);
        reader.version().await?;
        let Some(Message::JoinRequest(request)) = reader.message().await? else {
            join.quinn.close(CloseCode::Protocol.into(), CloseCode::Protocol.reason());
            return Ok(());
        };
        let (node, ticket) = (join.node, join.proof.id);
        // The table of used tickets is flushed to disk: not on a thread that serves others.
        let decided = tokio::task::spawn_blocking(move || self.decide(&join, request, members));
        let reply = decided.await.map_err(|error| StreamError::Connection(error.to_string()))?;
        match &reply {
            JoinReply::Granted { .. } => tracing::info!(%node, %ticket, "a node joined"),
            refused => complain(|held_back| {
                tracing::warn!(%node, %ticket, ?refused, held_back, "a joiner was refused");
            }),
        }
        write_message(&mut send, &Message::JoinReply(reply), DESK_LIMIT).await?;
        let _ = send.finish();
        // The joiner closes when it has read the answer; then nothing is lost by closing here.
        let _ = send.stopped().await;
        Ok(())
    }

    fn decide(&self, join: &JoinConnection, request: JoinRequest, members: Vec<MemberRecord>) -> JoinReply {
        let now = crate::ambient::unix_now();
        if now >= join.proof.expires {
            return JoinReply::Expired { at: join.proof.expires };
        }
        let mut used = self.used.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match used.claim(join.proof.id, join.node, join.proof.expires, now) {
            Ok(Usage::First | Usage::Again) => {}
            Ok(Usage::Other) => return JoinReply::Used { ticket: join.proof.id },
            Ok(Usage::Full) => {
                return JoinReply::Unable { detail: "too many tickets are in use at once".into() };
            }
            Err(error) => {
                tracing::error!(%error, "used tickets cannot be written down");
                return JoinReply::Unable { detail: "it cannot write down that the ticket was used".into() };
            }
        }
        drop(used);
        let mut members = members;
        members.truncate(MEMBERS_PER_FRAME);
        match self.certify(join.node, request.cell, now) {
            Ok(certificate) => JoinReply::Granted { certificate: certificate.bytes().to_vec(), members },
            Err(error) => JoinReply::Unable { detail: error.to_string() },
        }
    }

    fn certify(
        &self,
        node: NodeId,
        cell: CellLabel,
        now: UnixTime,
    ) -> Result<MembershipCert, MembershipError> {
        self.keys.certify(Membership {
            mesh: self.keys.public().mesh(),
            node,
            cell,
            role: Role::Member,
            scope: Scope::All,
            issued: now,
            expires: now.after(MEMBERSHIP_LIFETIME),
        })
    }
}

#[cfg(test)]
mod tests;
