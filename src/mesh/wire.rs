//! Messages of the data plane and of joining, as bytes. Pure: no I/O, no clock.
//!
//! A stream begins with one version byte, sent by who opens it; frames follow in both directions. A
//! frame is a type byte, the length of its body (four bytes, little-endian) and the body (postcard). An
//! unknown type is skipped, and what follows a body that is known is ignored, so that a newer peer may say more; an
//! unknown version is refused. Every length is checked before memory is taken for it. `docs/mesh-protocol.md` holds
//! the table.

mod possession;

pub use possession::{POSSESSION_MAX_SLICES, SliceHeld};

use super::ticket::{CONTACT_MAX_ADDRESSES, TicketId};
use crate::mesh::{MEMBERSHIP_MAX_BYTES, News};
use crate::model::{Algorithm, CellLabel, ChunkRef, Class, NodeId, RepositoryName, UnixTime, limits};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// The newest version of frames and messages that this program speaks. A stream opens with the version that its
/// connection agreed on.
pub const VERSION: u8 = 2;
/// The oldest version that it still speaks: nodes of neighbouring versions work together.
pub const VERSION_OLDEST: u8 = 1;
/// Bytes before a frame's body.
pub const HEADER_BYTES: usize = 5;
/// Most bytes of a frame's body: a full list of members is the largest.
pub const BODY_MAX_BYTES: usize = 128 << 10;
/// Most chunks of one request.
pub const REQUEST_MAX_CHUNKS: usize = 256;
/// Most holders named in one answer.
pub const HOLDERS_MAX: usize = 8;
/// Most members in one frame; a longer list takes several.
pub const MEMBERS_PER_FRAME: usize = 64;
/// Most documents that a new member is told (guess: repositories of a mesh, root and card each).
pub const NEWS_MAX_DOCUMENTS: usize = 2_048;
/// Largest end of a frame in its segment. Segments are about 8 MiB, or one catalog and its neighbours.
const SEGMENT_MAX_END: u64 = 4 << 30;

/// Why bytes are not a message. Nothing that is refused here was acted on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A version that this program does not speak.
    #[error("protocol version {found}; this program speaks versions {VERSION_OLDEST} to {VERSION}")]
    Version {
        /// The version that was read.
        found: u8,
    },
    /// A frame beyond its bound.
    #[error("a frame of type {kind} with {len} bytes, at most {max} are allowed")]
    TooLong {
        /// The frame's type.
        kind: u8,
        /// The length that it states.
        len: u64,
        /// The bound.
        max: usize,
    },
    /// Not what the type promises.
    #[error("a frame of type {kind} is malformed: {detail}")]
    Malformed {
        /// The frame's type.
        kind: u8,
        /// What is wrong.
        detail: String,
    },
    /// Well-formed, but out of bounds.
    #[error("{what} is {found}, and {allowed} is allowed")]
    Bounds {
        /// What is out of bounds.
        what: &'static str,
        /// The offending value.
        found: String,
        /// The bound.
        allowed: String,
    },
}

#[expect(clippy::needless_pass_by_value, reason = "numbers and texts that are made on the spot")]
fn bounds(what: &'static str, found: impl ToString, allowed: impl ToString) -> WireError {
    WireError::Bounds { what, found: found.to_string(), allowed: allowed.to_string() }
}

/// A wish for chunks of one repository. Replies come per chunk, in any order, named by its index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The repository, by which the asker's right is judged.
    pub repository: RepositoryName,
    /// How urgent.
    pub class: Class,
    /// 1 to [`REQUEST_MAX_CHUNKS`] chunks, with all that a home without the catalog needs to fetch them.
    pub chunks: Vec<ChunkRef>,
}

impl Request {
    /// Whether counts, lengths and places are possible at all.
    ///
    /// # Errors
    /// [`WireError::Bounds`] shows the value that is not.
    pub fn check(&self) -> Result<(), WireError> {
        if !(1..=REQUEST_MAX_CHUNKS).contains(&self.chunks.len()) {
            return Err(bounds(
                "chunks in a request",
                self.chunks.len(),
                format!("1 to {REQUEST_MAX_CHUNKS}"),
            ));
        }
        self.chunks.iter().try_for_each(check_chunk)
    }
}

fn check_chunk(chunk: &ChunkRef) -> Result<(), WireError> {
    // Peers verify what they relay, so only chunks whose hash they can compute travel.
    for algorithm in [chunk.id.algorithm(), chunk.place.segment.algorithm()] {
        if algorithm != Algorithm::Blake3 {
            return Err(bounds("hash function", format!("{algorithm:?}"), "BLAKE3"));
        }
    }
    let plain_max = limits::PLAIN_MAX_BYTES;
    if !(1..=plain_max).contains(&chunk.plain_len) {
        return Err(bounds("plain length of a chunk", chunk.plain_len, format!("1 to {plain_max}")));
    }
    let stored_max = chunk.plain_len.saturating_add(limits::FRAME_OVERHEAD_BYTES);
    if !(1..=stored_max).contains(&chunk.place.stored_len) {
        return Err(bounds("stored length of a chunk", chunk.place.stored_len, format!("1 to {stored_max}")));
    }
    if chunk.place.ordinal >= limits::SEGMENT_MAX_FRAMES {
        return Err(bounds("ordinal of a frame", chunk.place.ordinal, limits::SEGMENT_MAX_FRAMES - 1));
    }
    match chunk.place.end() {
        Some(end) if end <= SEGMENT_MAX_END => Ok(()),
        _ => Err(bounds("offset of a frame", chunk.place.offset, SEGMENT_MAX_END)),
    }
}

/// A node that may hold a chunk, and where it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The node.
    pub node: NodeId,
    /// Its address.
    pub address: SocketAddr,
}

/// How a chunk's bytes are written on the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As they are. The only one so far; 1 is reserved for zstd.
    Plain,
}

/// Announces a chunk's bytes, which follow the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataHeader {
    /// Which chunk of the request.
    pub index: u16,
    /// How it is encoded: 0 plain.
    pub encoding: u8,
    /// Bytes that follow.
    pub len: u32,
}

impl DataHeader {
    /// The header of plain bytes.
    pub const fn plain(index: u16, len: u32) -> Self {
        Self { index, encoding: 0, len }
    }

    /// The encoding.
    ///
    /// # Errors
    /// [`WireError::Bounds`] for one that this program does not know.
    pub fn encoding(&self) -> Result<Encoding, WireError> {
        match self.encoding {
            0 => Ok(Encoding::Plain),
            other => Err(bounds("encoding of a chunk", other, 0)),
        }
    }
}

/// What a node says about a chunk instead of its data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Which chunk of the request.
    pub index: u16,
    /// Others who may hold it, at most [`HOLDERS_MAX`]; empty with `Wait`.
    pub holders: Vec<Holder>,
    /// Uploads running and queued at the speaker, saturating.
    pub load: u8,
}

/// What a node says of itself and others to nodes of other cells and to new members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// The member's certificate, as signed. Whoever reads it verifies it.
    pub certificate: Vec<u8>,
    /// Where it is reached, best first.
    pub addresses: Vec<SocketAddr>,
}

/// Why a request as a whole is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusedBecause {
    /// The asker's membership does not cover the repository.
    Scope,
    /// The request could not be read, or its version is not spoken here.
    NotUnderstood,
    /// The asker's membership has expired.
    Expired,
}

/// What a joiner asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Where the joiner says it is.
    pub cell: CellLabel,
}

/// What an authority answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinReply {
    /// Welcome.
    Granted {
        /// The joiner's certificate.
        certificate: Vec<u8>,
        /// The authority's key, for a joiner that is to be an authority.
        seed: Option<Secret>,
        /// Members to begin with, at most [`MEMBERS_PER_FRAME`].
        members: Vec<MemberRecord>,
    },
    /// The ticket is too old.
    Expired {
        /// When it expired.
        at: UnixTime,
    },
    /// As many nodes as the ticket is for have used it.
    Used {
        /// The ticket.
        ticket: TicketId,
    },
    /// The ticket is from before the revocation of this node, or of one that it let in.
    Revoked {
        /// When that was.
        at: UnixTime,
    },
    /// The authority cannot certify now.
    Unable {
        /// Why, for people.
        detail: String,
    },
}

/// An authority's secret key on its way to another authority, over a connection that is encrypted and whose
/// ends have proved their names. Never shown in a log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub [u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// What an authority answers to a member that wants its certificate renewed. The documents of trust and
/// members follow in frames of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenewReply {
    /// Here it is.
    Granted {
        /// The renewed certificate.
        certificate: Vec<u8>,
        /// The authority's newest key, for another authority.
        seed: Option<Secret>,
    },
    /// The membership was taken back.
    Revoked {
        /// When.
        at: UnixTime,
    },
    /// The membership lapsed too long ago: only a new ticket helps.
    TooLate {
        /// When it lapsed.
        lapsed: UnixTime,
        /// How long afterwards it can be renewed, in seconds.
        grace_s: u64,
    },
    /// The authority cannot, or it is too soon.
    Unable {
        /// Why, for people.
        detail: String,
    },
}

/// Every message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A wish for chunks.
    Request(Request),
    /// The asker no longer wants the chunk with this index.
    Withdraw(u16),
    /// A document for the peer; it answers [`Message::NewsAck`].
    News(News),
    /// A wish for every newest document; answered by [`Message::News`] frames until the stream ends.
    AllNews,
    /// A wish for a renewed certificate, answered by [`Message::Renewed`], documents and members.
    Renew,
    /// The speaker's own certificate, renewed while the connection stands; answered by [`Message::NewsAck`].
    Certificate(Vec<u8>),
    /// A wish for the members of the peer's cell; answered by [`Message::MemberList`] frames until the stream ends.
    Members,
    /// What the speaker holds, 1 to [`POSSESSION_MAX_SLICES`] slices; answered by [`Message::PossessionAck`].
    Possession(Vec<SliceHeld>),
    /// A chunk's bytes follow.
    Data(DataHeader),
    /// The chunk is under way: data follows later.
    Wait(Told),
    /// No upload slot is free.
    Busy(Told),
    /// Not here, and will not come.
    Missing(Told),
    /// The document came in (not: was adopted).
    NewsAck,
    /// What the peer holds came in (not: is believed).
    PossessionAck,
    /// Members, at most [`MEMBERS_PER_FRAME`].
    MemberList(Vec<MemberRecord>),
    /// How often the label of the speaker's cell was halved for it; before its members, when it was.
    CellPart(u8),
    /// The request as a whole is not served.
    Refused(RefusedBecause),
    /// The answer to a wish for renewal.
    Renewed(RenewReply),
    /// A joiner's wish.
    JoinRequest(JoinRequest),
    /// The answer to it.
    JoinReply(JoinReply),
}

/// Kinds of documents in a frame of type [`NEWS`], numbered from 0.
const NEWS_KINDS: u8 = 2;

const REQUEST: u8 = 1;
const WITHDRAW: u8 = 2;
const NEWS: u8 = 3;
const ALL_NEWS: u8 = 4;
const MEMBERS: u8 = 5;
const RENEW: u8 = 6;
const TRUST: u8 = 7;
const POSSESSION: u8 = 8;
const DATA: u8 = 16;
const WAIT: u8 = 17;
const BUSY: u8 = 18;
const MISSING: u8 = 19;
const NEWS_ACK: u8 = 20;
const MEMBER_LIST: u8 = 21;
const REFUSED: u8 = 22;
const RENEWED: u8 = 23;
const CELL_PART: u8 = 24;
const POSSESSION_ACK: u8 = 25;
const JOIN_REQUEST: u8 = 32;
const JOIN_REPLY: u8 = 33;

/// Kinds of documents in a frame of type [`TRUST`]. One that is not known is skipped, as an unknown type is.
const TRUST_CHARTER: u8 = 0;
const TRUST_REVOCATIONS: u8 = 1;
const TRUST_CERTIFICATE: u8 = 2;

/// A frame's type and length, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The type, known or not.
    pub kind: u8,
    /// Bytes of the body, at most [`BODY_MAX_BYTES`].
    pub len: usize,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// [`WireError::TooLong`] when the body is longer than any may be.
    pub fn read(bytes: [u8; HEADER_BYTES]) -> Result<Self, WireError> {
        let [kind, len @ ..] = bytes;
        let len = u64::from(u32::from_le_bytes(len));
        match usize::try_from(len) {
            Ok(fits) if fits <= BODY_MAX_BYTES => Ok(Self { kind, len: fits }),
            _ => Err(WireError::TooLong { kind, len, max: BODY_MAX_BYTES }),
        }
    }
}

fn encode<T: Serialize>(kind: u8, body: &T) -> Result<Vec<u8>, WireError> {
    let malformed = |error: postcard::Error| WireError::Malformed { kind, detail: error.to_string() };
    let mut frame = postcard::to_extend(body, vec![0; HEADER_BYTES]).map_err(malformed)?;
    let len = frame.len() - HEADER_BYTES;
    match u32::try_from(len) {
        Ok(short) if len <= BODY_MAX_BYTES => {
            frame[0] = kind;
            frame[1..HEADER_BYTES].copy_from_slice(&short.to_le_bytes());
            Ok(frame)
        }
        _ => Err(WireError::TooLong { kind, len: len as u64, max: BODY_MAX_BYTES }),
    }
}

fn decode<T: DeserializeOwned>(kind: u8, body: &[u8]) -> Result<T, WireError> {
    let malformed = |detail: String| WireError::Malformed { kind, detail };
    // postcard takes memory for a list as its elements are read, and the body is bounded already.
    // What follows was said by a newer version to those who know it.
    postcard::take_from_bytes(body).map(|(value, _)| value).map_err(|error| malformed(error.to_string()))
}

impl Message {
    /// The frame of this message.
    ///
    /// # Errors
    /// [`WireError`] when the message is out of its bounds: nobody would read it.
    pub fn to_frame(&self) -> Result<Vec<u8>, WireError> {
        self.check()?;
        match self {
            Self::Request(body) => encode(REQUEST, body),
            Self::Withdraw(index) => encode(WITHDRAW, index),
            Self::News(News::Charter(document)) => encode(TRUST, &(TRUST_CHARTER, document)),
            Self::News(News::Revocations(document)) => encode(TRUST, &(TRUST_REVOCATIONS, document)),
            Self::Certificate(document) => encode(TRUST, &(TRUST_CERTIFICATE, document)),
            Self::News(body) => encode(NEWS, body),
            Self::AllNews => encode(ALL_NEWS, &()),
            Self::Members => encode(MEMBERS, &()),
            Self::Renew => encode(RENEW, &()),
            Self::Possession(body) => encode(POSSESSION, body),
            Self::PossessionAck => encode(POSSESSION_ACK, &()),
            Self::Data(body) => encode(DATA, body),
            Self::Wait(body) => encode(WAIT, body),
            Self::Busy(body) => encode(BUSY, body),
            Self::Missing(body) => encode(MISSING, body),
            Self::NewsAck => encode(NEWS_ACK, &()),
            Self::MemberList(body) => encode(MEMBER_LIST, body),
            Self::CellPart(bits) => encode(CELL_PART, bits),
            Self::Refused(body) => encode(REFUSED, body),
            Self::Renewed(body) => encode(RENEWED, body),
            Self::JoinRequest(body) => encode(JOIN_REQUEST, body),
            Self::JoinReply(body) => encode(JOIN_REPLY, body),
        }
    }

    /// Reads the body of a frame; `None` for a type, or a kind of document, that this program does not know.
    ///
    /// # Errors
    /// [`WireError`] when the body is malformed or out of bounds.
    pub fn from_body(kind: u8, body: &[u8]) -> Result<Option<Self>, WireError> {
        let message = match kind {
            REQUEST => Self::Request(decode(kind, body)?),
            WITHDRAW => Self::Withdraw(decode(kind, body)?),
            // A document of a kind that only newer versions know.
            NEWS if body.first().is_some_and(|kind| *kind >= NEWS_KINDS) => return Ok(None),
            NEWS => Self::News(decode(kind, body)?),
            TRUST => match decode::<(u8, Vec<u8>)>(kind, body)? {
                (TRUST_CHARTER, document) => Self::News(News::Charter(document)),
                (TRUST_REVOCATIONS, document) => Self::News(News::Revocations(document)),
                (TRUST_CERTIFICATE, document) => Self::Certificate(document),
                _ => return Ok(None),
            },
            ALL_NEWS => decode(kind, body).map(|()| Self::AllNews)?,
            MEMBERS => decode(kind, body).map(|()| Self::Members)?,
            RENEW => decode(kind, body).map(|()| Self::Renew)?,
            RENEWED => Self::Renewed(decode(kind, body)?),
            POSSESSION => Self::Possession(decode(kind, body)?),
            POSSESSION_ACK => decode(kind, body).map(|()| Self::PossessionAck)?,
            DATA => Self::Data(decode(kind, body)?),
            WAIT => Self::Wait(decode(kind, body)?),
            BUSY => Self::Busy(decode(kind, body)?),
            MISSING => Self::Missing(decode(kind, body)?),
            NEWS_ACK => decode(kind, body).map(|()| Self::NewsAck)?,
            MEMBER_LIST => Self::MemberList(decode(kind, body)?),
            CELL_PART => Self::CellPart(decode(kind, body)?),
            REFUSED => Self::Refused(decode(kind, body)?),
            JOIN_REQUEST => Self::JoinRequest(decode(kind, body)?),
            JOIN_REPLY => Self::JoinReply(decode(kind, body)?),
            _ => return Ok(None),
        };
        message.check()?;
        Ok(Some(message))
    }

    fn check(&self) -> Result<(), WireError> {
        match self {
            Self::Request(request) => request.check(),
            Self::Wait(told) | Self::Busy(told) | Self::Missing(told) => {
                check_index(told.index)?;
                let found = told.holders.len();
                if found > HOLDERS_MAX { Err(bounds("holders named", found, HOLDERS_MAX)) } else { Ok(()) }
            }
            Self::Withdraw(index) => check_index(*index),
            Self::Possession(slices) => possession::check(slices),
            Self::Data(header) => {
                check_index(header.index)?;
                if header.len > limits::PLAIN_MAX_BYTES {
                    return Err(bounds("length of a chunk", header.len, limits::PLAIN_MAX_BYTES));
                }
                Ok(())
            }
            Self::News(news) => {
                let found = news.document().len();
                if found > limits::ROOT_MAX_BYTES {
                    return Err(bounds("bytes of a document", found, limits::ROOT_MAX_BYTES));
                }
                Ok(())
            }
            Self::MemberList(members) | Self::JoinReply(JoinReply::Granted { members, .. }) => {
                if members.len() > MEMBERS_PER_FRAME {
                    return Err(bounds("members in a frame", members.len(), MEMBERS_PER_FRAME));
                }
                members.iter().try_for_each(check_member)
            }
            Self::Certificate(certificate) | Self::Renewed(RenewReply::Granted { certificate, .. }) => {
                check_certificate(certificate)
            }
            Self::AllNews
            | Self::Members
            | Self::Renew
            | Self::Renewed(_)
            | Self::NewsAck
            | Self::PossessionAck
            | Self::CellPart(_)
            | Self::Refused(_)
            | Self::JoinRequest(_)
            | Self::JoinReply(_) => Ok(()),
        }
    }
}

fn check_index(index: u16) -> Result<(), WireError> {
    if usize::from(index) >= REQUEST_MAX_CHUNKS {
        return Err(bounds("index of a chunk", index, REQUEST_MAX_CHUNKS - 1));
    }
    Ok(())
}

fn check_certificate(certificate: &[u8]) -> Result<(), WireError> {
    if certificate.len() > MEMBERSHIP_MAX_BYTES {
        return Err(bounds("bytes of a membership", certificate.len(), MEMBERSHIP_MAX_BYTES));
    }
    Ok(())
}

fn check_member(member: &MemberRecord) -> Result<(), WireError> {
    check_certificate(&member.certificate)?;
    if member.addresses.len() > CONTACT_MAX_ADDRESSES {
        return Err(bounds("addresses of a member", member.addresses.len(), CONTACT_MAX_ADDRESSES));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
