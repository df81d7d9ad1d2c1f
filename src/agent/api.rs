//! The control API's documents, shared by server and client.
//!
//! HTTP/1.1 with JSON bodies under `/v1`. Fields may be added within version 1; what a client does
//! not know it ignores. A refusal carries a [`Refusal`] and a status of 400 or more.

pub mod cache;
mod mounts;
pub mod trace;

use crate::mesh::{NEWEST_KEY_REMEDY, Role};
use crate::model::{CellLabel, Class, ContentId, NodeId, RepositoryName, Revision, UnixTime};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

pub use mounts::{Choice, FillStatus, MountOptions, MountRequest, MountStatus, Mounts, UnmountRequest};

/// The version that stands in every path and in [`Status::api`].
pub const VERSION: u32 = 1;
/// Most bytes of a request's body: a signed root or a mount request with long paths.
pub const BODY_MAX_BYTES: usize = 128 << 10;
/// Most bytes of an answer that a client accepts: the peers of a full cell, generously.
pub const ANSWER_MAX_BYTES: usize = 16 << 20;

/// `GET /v1/status`: what the agent is doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of this interface.
    pub api: u32,
    /// Version of the program.
    pub version: String,
    /// Process id of the agent.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Where it keeps its state.
    pub state_dir: PathBuf,
    /// Its place in a mesh; `None` when it stands alone.
    pub mesh: Option<MeshStatus>,
    /// The chunk cache.
    pub cache: CacheStatus,
    /// Plain bytes of distinct chunks and catalogs by where they were first obtained.
    pub obtained: Obtained,
    /// Repositories that it knows.
    pub repositories: Vec<RepositoryStatus>,
    /// What it has mounted.
    pub mounts: Vec<MountStatus>,
    /// What is wrong beside that, as sentences for a person.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<String>,
}

impl Status {
    /// Why the agent is not fit for work, if it is not: what its health is judged by.
    pub fn unfit(&self) -> Option<String> {
        let ended = self.mesh.as_ref().and_then(|mesh| mesh.ended.as_ref());
        let ended = ended.map(|reason| format!("this agent is no member of its mesh any more: {reason}"));
        let key = self.mesh.as_ref().and_then(|mesh| mesh.key_problem.as_ref());
        let key = key.map(|problem| {
            format!("this authority does not hold the mesh's newest key: {problem} ({NEWEST_KEY_REMEDY})")
        });
        let mount = |mount: &MountStatus| {
            let problem = mount.problem.as_ref()?;
            let directory = mount.directory.display().to_string();
            // Most name it themselves.
            Some(if problem.starts_with(&directory) {
                problem.clone()
            } else {
                format!("{directory}: {problem}")
            })
        };
        ended
            .or(key)
            .or_else(|| self.mounts.iter().find_map(mount))
            .or_else(|| self.troubles.first().cloned())
    }
}

/// A member's place in its mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshStatus {
    /// The mesh.
    pub mesh: String,
    /// This node.
    pub node: NodeId,
    /// Its cell.
    pub cell: CellLabel,
    /// Whether it certifies new members.
    pub authority: bool,
    /// The address that others are told.
    pub address: SocketAddr,
    /// When its membership ends.
    pub expires: UnixTime,
    /// Members that it knows to be alive, itself included.
    pub members_up: usize,
    /// Whether it takes part in the DHT.
    pub dht: bool,
    /// Why its membership does not count any more, when it does not: it expired or was revoked. Then it knows nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// Why it is no full authority although its certificate says that it is one: it does not hold the mesh's newest key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_problem: Option<String>,
}

/// The chunk cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStatus {
    /// Bytes that it uses.
    pub used_bytes: u64,
    /// Bytes that it may use.
    pub quota_bytes: u64,
    /// Chunks in it.
    pub chunks: u64,
}

/// Plain bytes of distinct chunks and catalogs since the agent started, by where they were first obtained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Obtained {
    /// They were in the cache when the agent started.
    pub cache_bytes: u64,
    /// A neighbour sent them.
    pub peers_bytes: u64,
    /// They came from a stratum.
    pub strata_bytes: u64,
}

/// A repository that the agent knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryStatus {
    /// Its name.
    pub repository: RepositoryName,
    /// Fingerprint of its root keys.
    pub fingerprint: String,
    /// Its strata.
    pub strata: Vec<String>,
    /// Whether the mesh's authority vouches for it; otherwise it was added on this machine only.
    pub spread: bool,
    /// Newest revision that is known and verified.
    pub revision: Option<Revision>,
    /// When that revision's root expires.
    pub expires: Option<UnixTime>,
}

/// `GET /v1/repositories`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repositories {
    /// All that are known, by name.
    pub repositories: Vec<RepositoryStatus>,
}

/// `POST /v1/repositories`: makes a repository known. On an authority the card spreads to all members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddRepository {
    /// Its name.
    pub repository: RepositoryName,
    /// Fingerprint of its root keys, as `starling publish` prints it.
    pub fingerprint: String,
    /// URLs of its strata, nearest first.
    pub strata: Vec<String>,
}

/// `GET /v1/peers`: the other members that this node knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peers {
    /// This node, when it is a member.
    pub node: Option<NodeId>,
    /// Why its membership does not count any more, when it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// The others, by cell and name.
    pub peers: Vec<PeerStatus>,
}

/// Another member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Who.
    pub node: NodeId,
    /// Its cell; `None` until its certificate was seen.
    pub cell: Option<CellLabel>,
    /// Where it listens.
    pub address: SocketAddr,
    /// Whether it is believed to be alive.
    pub up: bool,
    /// Whether its membership was revoked.
    #[serde(default)]
    pub revoked: bool,
    /// Round-trip time in microseconds: of an open connection, else of the last one, if there was any.
    pub rtt_us: Option<u64>,
    /// Bytes of chunks sent to it.
    pub sent_bytes: u64,
    /// Bytes of chunks taken from it.
    pub received_bytes: u64,
    /// Its part, from 0 to 1, of all bytes of chunks that this node sent to members since it started.
    #[serde(default)]
    pub sent_share: f64,
    /// Its part, from 0 to 1, of all bytes of chunks that this node took from members since it started.
    #[serde(default)]
    pub received_share: f64,
}

/// `POST /v1/why`: where the chunks of a file came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhyRequest {
    /// The repository.
    pub repository: RepositoryName,
    /// A regular file of its newest revision, from the root of the tree.
    pub path: String,
}

/// Answer to `POST /v1/why`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// The repository.
    pub repository: RepositoryName,
    /// The revision that was looked at.
    pub revision: Revision,
    /// The file.
    pub path: String,
    /// Its plain bytes.
    pub bytes: u64,
    /// Its chunks, of which the first are told.
    pub chunks_total: usize,
    /// Its chunks, in the order of the file.
    pub chunks: Vec<WhyChunk>,
}

/// One chunk of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyChunk {
    /// Its name.
    pub chunk: ContentId,
    /// Its plain bytes.
    pub bytes: u32,
    /// If it is in the cache: `cache` (it was there when the agent started), `peers` or `strata`.
    pub cached_from: Option<String>,
    /// How it came here, if that was lately.
    pub story: Option<WhyStory>,
}

/// How a chunk came to this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyStory {
    /// When it was first wanted, in milliseconds before now.
    pub began_ms_ago: u64,
    /// For whom on this node; `None`: for a neighbour only.
    pub class: Option<Class>,
    /// From its beginning to the last step.
    pub took_us: u64,
    /// Steps that are left out before the last.
    pub omitted: u32,
    /// What happened, in order.
    pub steps: Vec<WhyStep>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyStep {
    /// Since the story began.
    pub after_us: u64,
    /// What happened, in words.
    pub what: String,
    /// The node that it concerns.
    pub node: Option<NodeId>,
}

/// Answer to `POST /v1/announce`, whose body is a signed root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    /// The repository that the root belongs to.
    pub repository: RepositoryName,
    /// The revision that the root names.
    pub revision: Revision,
    /// Whether it was news here. Known roots are accepted and not handed on again.
    pub fresh: bool,
}

/// `POST /v1/invite`: only on an authority.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InviteRequest {
    /// Seconds until the ticket expires.
    pub expires_s: u64,
    /// Addresses for the ticket. Empty: those at which this agent can be reached.
    pub addresses: Vec<SocketAddr>,
    /// How many machines it lets in; one by default.
    #[serde(default)]
    pub uses: Option<u32>,
    /// What they may do; an ordinary member by default.
    #[serde(default)]
    pub role: Option<Role>,
    /// What they may read; everything when it is empty.
    #[serde(default)]
    pub repositories: Vec<RepositoryName>,
    /// Where they are; by default they say so themselves.
    #[serde(default)]
    pub cell: Option<CellLabel>,
}

/// Answer to `POST /v1/invite`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// The ticket, for `starling join`.
    pub ticket: String,
    /// When it expires.
    pub expires: UnixTime,
    /// The addresses in it.
    pub addresses: Vec<SocketAddr>,
    /// How many machines it lets in.
    pub uses: u32,
    /// What they may do.
    pub role: Role,
    /// What they may read; `None`: everything.
    pub repositories: Option<Vec<RepositoryName>>,
    /// Where they are; `None`: they say so themselves.
    pub cell: Option<CellLabel>,
}

/// `GET /v1/members`: the members whose certificates this node has seen, and who was revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// All, this node included, by cell and name.
    pub members: Vec<MemberInfo>,
    /// Revocations that still matter.
    pub revoked: Vec<Revoked>,
}

/// A member, by its newest certificate that is known here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Who.
    pub node: NodeId,
    /// Its cell.
    pub cell: CellLabel,
    /// What it may do.
    pub role: Role,
    /// What it may read; `None`: everything.
    pub repositories: Option<Vec<RepositoryName>>,
    /// When its certificate was issued.
    pub issued: UnixTime,
    /// When its certificate expires.
    pub expires: UnixTime,
    /// Whether it is believed to be alive.
    pub up: bool,
    /// Whether the membership was revoked.
    #[serde(default)]
    pub revoked: bool,
    /// Where it is reached.
    pub address: SocketAddr,
    /// Open connections of this node with it, of all kinds.
    #[serde(default)]
    pub connections: usize,
    /// Whether it is this node.
    pub this: bool,
}

/// `POST /v1/revoke`: ends a membership. Only on an authority. Answered with a [`Revoked`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeRequest {
    /// Whose.
    pub node: NodeId,
    /// Why, for people; all members can read it.
    #[serde(default)]
    pub reason: String,
}

/// A revocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// Whose membership ended.
    pub node: NodeId,
    /// When.
    pub at: UnixTime,
    /// Until when it is listed.
    pub until: UnixTime,
    /// Why.
    pub reason: String,
    /// Number of the list that holds it.
    pub number: u64,
    /// Whether the node was an authority: then it knows the key, which must be rotated.
    #[serde(default)]
    pub authority: bool,
}

/// `POST /v1/rotate`: gives the authority a new key. Only on an authority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotateRequest {
    /// Seconds for which the old key counts beside the new one; twice the life of a certificate by default.
    #[serde(default)]
    pub overlap_s: Option<u64>,
    /// Where as many keys count as may: whether the oldest retires within six minutes. Otherwise the rotation is refused then.
    #[serde(default)]
    pub drop_oldest: bool,
}

/// Answer to `POST /v1/rotate`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotated {
    /// Number of the new key; the mesh's first is 1.
    pub key_number: usize,
    /// The new public key, in hexadecimal digits.
    pub key: String,
    /// Until when the old one counts.
    pub old_keys_until: UnixTime,
    /// Repository cards that were signed anew.
    pub cards: usize,
    /// The key that is retired within a minute, if too many would have counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<DroppedKey>,
}

/// A key that is retired before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedKey {
    /// Its number.
    pub key_number: usize,
    /// When it retires.
    pub at: UnixTime,
    /// Members that the authority knows whose certificate it signed: nobody speaks to those of them who have no new one by
    /// then, until they are renewed late.
    pub members: usize,
}

/// `GET /v1/authority`: the mesh's authority as this node sees it, and its own office if it is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityStatus {
    /// The mesh.
    pub mesh: String,
    /// Number of the newest key; the mesh's first is 1.
    pub key_number: usize,
    /// The newest public key, in hexadecimal digits.
    pub key: String,
    /// Until when older keys count beside it, during a rotation.
    pub old_keys_until: Option<UnixTime>,
    /// Why this node is no full authority although its certificate says that it is one: it does not hold the newest key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_problem: Option<String>,
    /// Number of the newest list of revocations; 0 when nobody was ever revoked.
    pub revocations: u64,
    /// Nodes that are revoked now.
    pub revoked: usize,
    /// Authorities that this node knows.
    pub authorities: Vec<MemberInfo>,
    /// Life of the certificates that this node issues, in seconds; `None`: it is no authority.
    pub certificate_life_s: Option<u64>,
    /// How long after it lapsed this node still renews a certificate, in seconds; `None`: it is no authority.
    pub renewal_grace_s: Option<u64>,
    /// What this node did as an authority.
    pub counts: Option<OfficeCounts>,
}

/// What an authority did since its agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfficeCounts {
    /// Joiners certified.
    pub joined: u64,
    /// Joiners refused.
    pub refused: u64,
    /// Certificates renewed.
    pub renewed: u64,
    /// Renewals denied.
    pub denied: u64,
}

/// Why a request was refused, in kinds that a program can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// The request makes no sense, here or anywhere.
    Invalid,
    /// What it names does not exist here.
    NotFound,
    /// It contradicts what there is, such as a mount point that is taken.
    Conflict,
    /// This node may not do it, such as inviting without being an authority.
    NotAllowed,
    /// A signed document is forged, malformed, expired or older than what is known.
    Untrusted,
    /// Something outside did not answer, such as a stratum.
    Unavailable,
    /// The agent failed.
    Internal,
    /// A kind that this version does not know.
    #[serde(other)]
    Unknown,
}

/// The body of every answer with a status of 400 or more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Which kind.
    pub kind: RefusalKind,
    /// What went wrong.
    pub message: String,
    /// What can be done about it.
    pub hint: Option<String>,
}

impl Refusal {
    /// A refusal without a hint.
    pub fn new(kind: RefusalKind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string(), hint: None }
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_understands_a_newer_agent() {
        let text = r#"{"kind":"too_windy","message":"no","hint":null,"more":1}"#;
        let refusal: Refusal = serde_json::from_str(text).unwrap();
        assert_eq!((refusal.kind, refusal.message.as_str()), (RefusalKind::Unknown, "no"));
    }

    #[test]
    fn a_misspelt_request_is_refused() {
        let text = r#"{"repository":"a.b","directory":"/x","drectory":"/y"}"#;
        assert!(serde_json::from_str::<MountRequest>(text).unwrap_err().to_string().contains("drectory"));
    }
}
