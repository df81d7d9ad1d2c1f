//! Joining a mesh: the joiner's side; and a member's way to an authority when nobody else believes it any more.
//!
//! The joiner makes its own key, dials the authority that its ticket names, and shows a proof of the
//! ticket in its TLS certificate. It knows that authority by its node's name and no other way, so that a
//! ticket outlives a rotation of the authority's key; what it is told of the mesh (the charter) must begin with
//! the key that the mesh is named by. A member whose certificate has lapsed, or who missed a rotation, comes the
//! same way and shows its membership ([`ask_to_renew`]).

mod desk;
mod used;

pub use desk::{Introductions, JoinDesk};

use super::authority::MeshId;
use super::charter::{Charter, CharterError};
use super::endpoint::{Alpn, CloseCode, agreed, judge};
use super::identity::{
    Identity, IdentityError, NodeKey, node_key, refuse_member, store_authority_key, store_membership,
};
use super::membership::{MembershipCert, MembershipError, Role};
use super::mesh_trust::{MeshTrust, TrustChangeError};
use super::ports::News;
use super::socket;
use super::state::{Secrecy, StateDir, StateError};
use super::ticket::{CONTACT_MAX_ADDRESSES, Contact, Ticket, TicketError, TicketId};
use super::tls::{self, Credential, Rules, TlsError, Verified};
use super::transfer::{
    FrameReader, Renewal, StreamError, lapsed_or_not, take_rest, write_all, write_message,
};
use super::wire::{BODY_MAX_BYTES, HEADER_BYTES, Header, MEMBERS_PER_FRAME, VERSION};
use super::wire::{JoinReply, JoinRequest, MemberRecord, Message};
use crate::model::{CellLabel, NodeId, UnixTime, mix};
use bytes::Bytes;
use futures::stream::{FuturesUnordered, Stream, StreamExt as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Time for one address of a ticket: dial, handshake, question and answer (guess).
const ATTEMPT_LIMIT: Duration = Duration::from_secs(5);
/// How much later the next address of an authority is dialled (RFC 8305, section 5).
const DIAL_APART: Duration = Duration::from_millis(250);
/// How long a joiner comes again that is told that too many are at the desk: hundreds of machines may start at once with one
/// ticket, of which the desk serves dozens a second (guess).
const CROWD_PATIENCE: Duration = Duration::from_secs(60);
/// Longest pause before it comes again.
const CROWD_PAUSE: Duration = Duration::from_secs(2);
/// Time for telling the authority that the answer was read: QUIC takes three time-outs of the path for it (guess: enough for
/// a path of 200 ms).
const GOODBYE: Duration = Duration::from_secs(1);
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
    /// The membership that is to be replaced says where this machine is, and cannot be read.
    #[error("where this machine is cannot be read from the membership that it has: {0}")]
    CellUnknown(IdentityError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No UDP socket could be had.
    #[error("cannot open a UDP socket: {0}")]
    Socket(std::io::Error),
    /// The state directory, or what the authority says of the mesh.
    #[error(transparent)]
    Trust(#[from] TrustChangeError),
    /// What the authority says of the mesh cannot be followed.
    #[error("the authority showed a charter that cannot be followed: {0}")]
    Charter(#[from] CharterError),
    /// Nobody whom the ticket names let this machine in.
    #[error("no authority could be reached: {}", .tried.join("; "))]
    Unreachable {
        /// What became of each address.
        tried: Vec<String>,
    },
    /// As many machines as it is for have used the ticket.
    #[error("ticket {ticket} was used by other machines: ask for a new one (`starling mesh invite`)")]
    Used {
        /// The ticket.
        ticket: TicketId,
    },
    /// The ticket is from before a revocation.
    #[error(
        "the ticket counts no longer since a revocation at {at}: ask for a new one (`starling mesh invite`)"
    )]
    Revoked {
        /// When that was.
        at: UnixTime,
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
}

/// What joining brought.
#[derive(Debug)]
pub struct Joined {
    /// This node's membership, stored.
    pub membership: MembershipCert,
    /// Members to begin with, stored; see [`bootstrap`].
    pub members: Members,
}

/// Makes this machine a member of the ticket's mesh, in `cell` (or the ticket's, or that of the membership that it
/// has, or the default). Key, membership and first contacts are stored in `state_dir`, where no agent may run if
/// there is a membership. Ends within `ATTEMPT_LIMIT` an address, and a minute more while an authority says that too many come at once. `force` replaces a membership that is there; the
/// key stays.
///
/// # Errors
/// [`JoinError`]. The membership was not changed then.
pub async fn join(
    ticket: &Ticket,
    cell: Option<CellLabel>,
    state_dir: &Path,
    force: bool,
) -> Result<Joined, JoinError> {
    if !force {
        refuse_member(state_dir)?;
    }
    ticket.check_time(crate::ambient::unix_now())?;
    let told = cell.is_some() || ticket.terms().cell.is_some();
    let cell = ticket.terms().cell_for(if told { cell } else { present_cell(state_dir)? })?;
    let key = node_key(state_dir)?;
    let request = Message::JoinRequest(JoinRequest { cell: cell.clone() });
    let credential = Credential::Joiner(ticket.prove(&key.node()));
    let answer = approach(&key, &credential, ticket.contacts(), request, CROWD_PATIENCE).await?;
    settle(ticket.mesh(), &cell, state_dir, key.node(), answer)
}

/// Where this machine is, if it has a membership: that does not change with a new one.
fn present_cell(state_dir: &Path) -> Result<Option<CellLabel>, JoinError> {
    match Identity::load(state_dir) {
        Ok(present) => Ok(Some(present.membership().cell.clone())),
        Err(IdentityError::NotAMember { .. }) => Ok(None),
        Err(error) => Err(JoinError::CellUnknown(error)),
    }
}

/// Asks authorities, by name, to renew a membership that others may not accept any more, or whose holder may not
/// accept theirs. Nothing is changed here; see [`super::renewal`].
///
/// # Errors
/// [`JoinError::Unreachable`] says what became of each address.
pub(super) async fn ask_to_renew(identity: &Identity, contacts: &[Contact]) -> Result<Renewal, JoinError> {
    let credential = Credential::Member(identity.membership());
    // An agent asks again by itself.
    let answer = approach(identity.key(), &credential, contacts, Message::Renew, Duration::ZERO).await?;
    match answer.first {
        Message::Renewed(reply) => Ok(Renewal {
            reply,
            documents: answer.documents,
            members: answer.members,
            from: answer.authority,
        }),
        other => Err(JoinError::Unable(format!("it answered {other:?}"))),
    }
}

/// What an authority said, unverified but for the authority's name.
struct Answer {
    first: Message,
    documents: Vec<News>,
    members: Vec<MemberRecord>,
    authority: MemberRecord,
}

/// Why an authority gave no answer.
struct Declined {
    detail: String,
    /// Too many are at its desk.
    is_busy: bool,
}

/// Asks the nodes of `contacts` in turn, each at all its addresses; the first that answers counts. While one of them is only busy, all are asked again
/// for as long as `patience`.
async fn approach(
    key: &NodeKey,
    credential: &Credential,
    contacts: &[Contact],
    request: Message,
    patience: Duration,
) -> Result<Answer, JoinError> {
    if contacts.is_empty() {
        return Err(JoinError::Unreachable { tried: vec!["none is known".into()] });
    }
    let certified = tls::make_certificate(key, credential)?;
    let endpoint = client_endpoint()?;
    let until = crate::ambient::now() + patience;
    for round in 0_u64.. {
        let (mut tried, mut is_busy) = (Vec::new(), false);
        for contact in contacts {
            let mut dials = dial(&endpoint, &certified, contact)?;
            while let Some((address, connected)) = dials.next().await {
                let answered = match connected {
                    Ok(connection) => ask_authority(&connection, contact, address, &request).await,
                    Err(detail) => Err(Declined { detail, is_busy: false }),
                };
                match answered {
                    Ok(answer) => {
                        drop(dials);
                        endpoint.close(CloseCode::Done.into(), CloseCode::Done.reason());
                        // A program that ended now would say nothing, and its node would have its place at the desk for seconds more.
                        let _ = tokio::time::timeout(GOODBYE, endpoint.wait_idle()).await;
                        return Ok(answer);
                    }
                    Err(declined) => {
                        is_busy |= declined.is_busy;
                        tried.push(format!("{address}: {}", declined.detail));
                    }
                }
            }
        }
        if !is_busy || crate::ambient::now() >= until {
            return Err(JoinError::Unreachable { tried });
        }
        // Machines that start together come again at different times: what they differ in is their key.
        let part = mix(key.node().key() ^ mix(round)) % 1_000 + 1;
        tokio::time::sleep(CROWD_PAUSE.mul_f64(part as f64 / 1_000.0)).await;
    }
    unreachable!("the rounds end with the patience")
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

/// Dials all addresses of an authority, one a little after the other: a machine may have several of which only some lead here.
/// Who answers first is asked first; the others are only dialled.
fn dial<'a>(
    endpoint: &'a quinn::Endpoint,
    certified: &Arc<rustls::sign::CertifiedKey>,
    contact: &'a Contact,
) -> Result<impl Stream<Item = (SocketAddr, Result<quinn::Connection, String>)> + Unpin + 'a, JoinError> {
    let dials = FuturesUnordered::new();
    for (number, address) in (0_u32..).zip(&contact.addresses) {
        let tls =
            tls::client_config(certified, Rules::ByName, contact.node, &[Alpn::Join.name().as_bytes()])?;
        let client = quinn::ClientConfig::new(Arc::new(tls));
        dials.push(Box::pin(async move {
            tokio::time::sleep(DIAL_APART * number).await;
            let connected = async {
                let connecting = endpoint.connect_with(client, *address, tls::SERVER_NAME);
                connecting.map_err(|error| error.to_string())?.await.map_err(|error| error.to_string())
            };
            let connected = tokio::time::timeout(ATTEMPT_LIMIT, connected).await;
            (*address, connected.unwrap_or_else(|_| Err(format!("no answer within {ATTEMPT_LIMIT:?}"))))
        }));
    }
    Ok(dials)
}

/// Asks the authority at the other end, which answered at `address`.
async fn ask_authority(
    connection: &quinn::Connection,
    contact: &Contact,
    address: SocketAddr,
    request: &Message,
) -> Result<Answer, Declined> {
    let conversed = tokio::time::timeout(ATTEMPT_LIMIT, converse(connection, request)).await;
    let conversed = conversed.unwrap_or_else(|_| Err(format!("no answer within {ATTEMPT_LIMIT:?}")));
    let answered = conversed.map(|(first, documents, members, certificate)| {
        // The address that was seen to lead there comes first; then what it says of itself, and what the ticket does: this
        // machine's agent may listen elsewhere than this program, and have another way.
        let granted = match &first {
            Message::JoinReply(JoinReply::Granted { members, .. }) => &members[..],
            _ => &[],
        };
        let own = granted.iter().chain(&members).filter(|member| member.certificate == certificate);
        let own = own.flat_map(|member| &member.addresses);
        let mut addresses = vec![address];
        for other in own.chain(&contact.addresses) {
            if !addresses.contains(other) && addresses.len() < CONTACT_MAX_ADDRESSES {
                addresses.push(*other);
            }
        }
        let authority = MemberRecord { certificate, addresses };
        Answer { first, documents, members, authority }
    });
    answered.map_err(|detail| {
        let busy = |close: &quinn::ApplicationClose| close.error_code == CloseCode::Busy.into();
        let closed = connection.close_reason();
        let is_busy =
            matches!(&closed, Some(quinn::ConnectionError::ApplicationClosed(close)) if busy(close));
        Declined { detail, is_busy }
    })
}

/// What an authority says: its first message, documents, members, and its certificate.
type Said = (Message, Vec<News>, Vec<MemberRecord>, Vec<u8>);

async fn converse(connection: &quinn::Connection, request: &Message) -> Result<Said, String> {
    if agreed(connection) != Some(Alpn::Join) {
        return Err(format!("it did not agree on {}", Alpn::Join));
    }
    let Verified::Named(_, certificate) = judge(connection, &Rules::ByName)? else {
        return Err("it shows no membership".into());
    };
    let shown = |error: StreamError| format!("{error:?}");
    let (mut send, recv) = connection.open_bi().await.map_err(|error| error.to_string())?;
    write_all(&mut send, Bytes::from_static(&[VERSION]), ATTEMPT_LIMIT).await.map_err(shown)?;
    write_message(&mut send, request, ATTEMPT_LIMIT).await.map_err(shown)?;
    let mut reader = FrameReader::new(recv, ATTEMPT_LIMIT);
    let first = reader.message().await.map_err(shown)?.ok_or("it said nothing")?;
    let (documents, members) = take_rest(&mut reader).await.map_err(shown)?;
    Ok((first, documents, members, certificate))
}

/// Checks the answer and stores what it brought, the membership last.
fn settle(
    mesh: MeshId,
    cell: &CellLabel,
    state_dir: &Path,
    node: NodeId,
    answer: Answer,
) -> Result<Joined, JoinError> {
    let (certificate, seed, members) = match answer.first {
        Message::JoinReply(JoinReply::Granted { certificate, seed, members }) => (certificate, seed, members),
        Message::JoinReply(JoinReply::Expired { at }) => return Err(TicketError::Expired { at }.into()),
        Message::JoinReply(JoinReply::Used { ticket }) => return Err(JoinError::Used { ticket }),
        Message::JoinReply(JoinReply::Revoked { at }) => return Err(JoinError::Revoked { at }),
        Message::JoinReply(JoinReply::Unable { detail }) => return Err(JoinError::Unable(detail)),
        other => return Err(JoinError::Unable(format!("it answered {other:?}"))),
    };
    let charter = answer.documents.iter().find_map(|document| match document {
        News::Charter(bytes) => Some(Charter::parse(bytes, mesh)),
        _ => None,
    });
    let charter = charter.ok_or_else(|| JoinError::Unable("it showed no charter".into()))??;
    let now = crate::ambient::unix_now();
    let trust = MeshTrust::in_memory(charter.clone());
    let told = answer.documents.into_iter().filter(|document| matches!(document, News::Revocations(_)));
    let told: Vec<News> = told.collect();
    for document in &told {
        trust.judge(document, None);
    }
    let membership = trust.verify(&certificate, now).map_err(JoinError::Certificate)?;
    if membership.node != node || membership.cell != *cell {
        return Err(JoinError::OtherThanAsked {
            found: format!("{} in {}", membership.node, membership.cell),
            asked: format!("{node} in {cell}"),
        });
    }
    let authority = answer.authority;
    let others: Vec<_> = members.into_iter().filter(|m| m.certificate != authority.certificate).collect();
    let mut records = vec![authority];
    records.extend(others);
    records.truncate(MEMBERS_PER_FRAME);
    let stored = MeshTrust::begin(state_dir, charter)?;
    for document in &told {
        stored.judge(document, None);
    }
    if let Some(seed) = seed.filter(|_| membership.role == Role::Authority) {
        store_authority_key(state_dir, &seed.0)?;
    }
    store_bootstrap(state_dir, &records)?;
    store_membership(state_dir, &membership)?;
    let members = lapsed_or_not(records, &trust).collect();
    Ok(Joined { membership, members })
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

/// The stored members to begin with, authorities first; none when nothing is stored. Their certificates are of this
/// mesh, but may have lapsed: they say whom to ask, and no more.
///
/// # Errors
/// [`StateError`]; a damaged file is named.
pub fn bootstrap(state_dir: &Path, trust: &MeshTrust) -> Result<Members, StateError> {
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
            let mut members: Members = lapsed_or_not(records, trust).collect();
            members.sort_by_key(|(member, _)| member.role != Role::Authority);
            Ok(members)
        }
        _ => Err(damaged(&"it holds no list of members")),
    }
}

#[cfg(test)]
mod tests;
