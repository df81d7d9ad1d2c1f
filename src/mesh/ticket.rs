//! Tickets: what an operator hands to a machine so that it may join.
//!
//! A ticket is one line of text. It names the authority, where it can be reached, until when the
//! ticket counts, and a secret. The secret is derived from a key of the authority, the ticket's
//! number and its expiry, so the authority keeps no table of the tickets that it issued, and nobody
//! can prolong one. The joiner never shows the secret: it shows a MAC of its own key
//! ([`TicketProof`]), so a proof is of no use to anybody else.

use super::membership::{AuthorityKey, MembershipError, MeshId, MeshKeys};
use crate::model::{NodeId, UnixTime};
use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// Most authorities that a ticket names.
pub const TICKET_MAX_CONTACTS: usize = 4;
/// Most addresses of one node in a ticket or a list of members.
pub const CONTACT_MAX_ADDRESSES: usize = 8;
const PREFIX: &str = "starling-ticket-";
/// Most characters of a ticket: four authorities with eight addresses each need less.
const TEXT_MAX_CHARS: usize = 2_048;
const VERSION: u8 = 1;
/// Bytes of the check sum that finds copying errors.
const CHECK_BYTES: usize = 4;
const CHECK_CONTEXT: &str = "starling 2026-11 check sum of a ticket";
const PROOF_DOMAIN: &[u8] = b"starling ticket proof 1\0";

/// A node and where it can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// The node.
    pub node: NodeId,
    /// Its addresses, best first, at most [`CONTACT_MAX_ADDRESSES`].
    pub addresses: Vec<SocketAddr>,
}

/// The number of a ticket.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TicketId(pub [u8; 16]);

impl fmt::Display for TicketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for TicketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TicketId({self})")
    }
}

/// Why a text is not a ticket that can be used, or cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Not a ticket, or altered in copying.
    #[error("`{shown}` is not a ticket: {detail}")]
    Malformed {
        /// The beginning of the text (never the secret part).
        shown: String,
        /// What is wrong.
        detail: String,
    },
    /// Too old.
    #[error("the ticket expired at {at}: ask for a new one (`starling mesh invite`)")]
    Expired {
        /// When.
        at: UnixTime,
    },
    /// For another mesh than the one at hand.
    #[error("the ticket is for mesh {found}, not for {expected}")]
    WrongMesh {
        /// The ticket's mesh.
        found: MeshId,
        /// The mesh at hand.
        expected: MeshId,
    },
    /// A ticket must name somebody.
    #[error(
        "{contacts} authorities with {addresses} addresses: a ticket names 1 to {TICKET_MAX_CONTACTS}, each with 1 to {CONTACT_MAX_ADDRESSES} addresses"
    )]
    Contacts {
        /// Authorities named.
        contacts: usize,
        /// Addresses of the first one that is out of bounds.
        addresses: usize,
    },
}

/// What an operator hands to a machine so that it may join. Worth a membership: handle it as a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket {
    authority: AuthorityKey,
    id: TicketId,
    expires: UnixTime,
    secret: [u8; 32],
    contacts: Vec<Contact>,
}

#[derive(Serialize, Deserialize)]
struct Body {
    authority: [u8; 32],
    id: TicketId,
    expires: UnixTime,
    secret: [u8; 32],
    contacts: Vec<Contact>,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("mesh", &self.mesh())
            .field("id", &self.id)
            .field("expires", &self.expires)
            .field("contacts", &self.contacts)
            .finish_non_exhaustive()
    }
}

fn secret(keys: &MeshKeys, id: TicketId, expires: UnixTime) -> [u8; 32] {
    let mut message = [0; 24];
    message[..16].copy_from_slice(&id.0);
    message[16..].copy_from_slice(&expires.0.to_be_bytes());
    *blake3::keyed_hash(&keys.ticket_key(), &message).as_bytes()
}

fn proof_mac(secret: &[u8; 32], node: &NodeId) -> blake3::Hash {
    blake3::keyed_hash(secret, &[PROOF_DOMAIN, &node.0].concat())
}

fn check_contacts(contacts: &[Contact]) -> Result<(), TicketError> {
    let bad = contacts.iter().find(|c| !(1..=CONTACT_MAX_ADDRESSES).contains(&c.addresses.len()));
    if bad.is_some() || !(1..=TICKET_MAX_CONTACTS).contains(&contacts.len()) {
        let addresses = bad.map_or(0, |contact| contact.addresses.len());
        return Err(TicketError::Contacts { contacts: contacts.len(), addresses });
    }
    Ok(())
}

impl Ticket {
    /// A new ticket of the authority `keys`, which joiners find at `contacts`, good until `expires`.
    ///
    /// # Errors
    /// [`TicketError::Contacts`] when it names nobody, or too many.
    pub fn issue(keys: &MeshKeys, contacts: Vec<Contact>, expires: UnixTime) -> Result<Self, TicketError> {
        check_contacts(&contacts)?;
        let id = TicketId(crate::ambient::secret());
        Ok(Self { authority: keys.public(), id, expires, secret: secret(keys, id, expires), contacts })
    }

    /// The mesh into which it lets.
    pub fn mesh(&self) -> MeshId {
        self.authority.mesh()
    }

    /// Its authority's key.
    pub fn authority(&self) -> &AuthorityKey {
        &self.authority
    }

    /// Its number.
    pub fn id(&self) -> TicketId {
        self.id
    }

    /// The first second at which it no longer counts.
    pub fn expires(&self) -> UnixTime {
        self.expires
    }

    /// The authorities to ask, best first.
    pub fn contacts(&self) -> &[Contact] {
        &self.contacts
    }

    /// Whether it still counts at `now`.
    ///
    /// # Errors
    /// [`TicketError::Expired`].
    pub fn check_time(&self, now: UnixTime) -> Result<(), TicketError> {
        if now >= self.expires { Err(TicketError::Expired { at: self.expires }) } else { Ok(()) }
    }

    /// What the joiner `node` shows of it.
    pub(super) fn prove(&self, node: &NodeId) -> TicketProof {
        TicketProof { id: self.id, expires: self.expires, mac: *proof_mac(&self.secret, node).as_bytes() }
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = Body {
            authority: self.authority.to_bytes(),
            id: self.id,
            expires: self.expires,
            secret: self.secret,
            contacts: self.contacts.clone(),
        };
        let mut bytes = vec![VERSION];
        bytes.extend(postcard::to_allocvec(&body).map_err(|_| fmt::Error)?);
        let check = check_sum(&bytes);
        bytes.extend(check);
        write!(f, "{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_lowercase())
    }
}

fn check_sum(bytes: &[u8]) -> [u8; CHECK_BYTES] {
    let hash = blake3::derive_key(CHECK_CONTEXT, bytes);
    [hash[0], hash[1], hash[2], hash[3]]
}

impl FromStr for Ticket {
    type Err = TicketError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let malformed = |detail: &str| TicketError::Malformed {
            shown: text.chars().take(PREFIX.len() + 8).collect(),
            detail: detail.to_owned(),
        };
        if text.len() > TEXT_MAX_CHARS {
            return Err(malformed(&format!("{} characters, at most {TEXT_MAX_CHARS}", text.len())));
        }
        let letters = text.strip_prefix(PREFIX).ok_or_else(|| malformed("it begins otherwise"))?;
        let bytes = BASE32_NOPAD
            .decode(letters.to_ascii_uppercase().as_bytes())
            .map_err(|error| malformed(&format!("not base 32 ({error})")))?;
        let (signed, check) = bytes
            .len()
            .checked_sub(CHECK_BYTES)
            .and_then(|at| bytes.split_at_checked(at))
            .ok_or_else(|| malformed("too short"))?;
        if check_sum(signed) != check {
            return Err(malformed("a character is missing or altered"));
        }
        let (version, body) = signed.split_first().ok_or_else(|| malformed("too short"))?;
        if *version != VERSION {
            return Err(malformed(&format!("version {version}; this program knows version {VERSION}")));
        }
        // What follows is for newer programs.
        let (body, _newer) =
            postcard::take_from_bytes::<Body>(body).map_err(|error| malformed(&error.to_string()))?;
        check_contacts(&body.contacts)?;
        let authority = AuthorityKey::from_bytes(&body.authority)
            .map_err(|error: MembershipError| malformed(&error.to_string()))?;
        let Body { id, expires, secret, contacts, .. } = body;
        Ok(Self { authority, id, expires, secret, contacts })
    }
}

/// What a joiner's TLS certificate carries instead of a membership: that it knows a ticket's secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TicketProof {
    /// The ticket.
    pub id: TicketId,
    /// The ticket's expiry. The MAC counts for no other.
    pub expires: UnixTime,
    mac: [u8; 32],
}

impl TicketProof {
    /// Bytes of a proof.
    pub(super) const BYTES: usize = 1 + 16 + 8 + 32;

    /// The proof as bytes: version, number, expiry (big-endian), MAC.
    pub(super) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [VERSION; Self::BYTES];
        bytes[1..17].copy_from_slice(&self.id.0);
        bytes[17..25].copy_from_slice(&self.expires.0.to_be_bytes());
        bytes[25..].copy_from_slice(&self.mac);
        bytes
    }

    /// Reads a proof; `None` when it is of another version or length.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first()?;
        let (id, rest) = rest.split_first_chunk()?;
        let (expires, mac) = rest.split_first_chunk()?;
        let mac = mac.try_into().ok()?;
        (*version == VERSION).then_some(Self {
            id: TicketId(*id),
            expires: UnixTime(u64::from_be_bytes(*expires)),
            mac,
        })
    }

    /// Whether `node` knows the secret of a ticket of the authority `keys`. Says nothing of its expiry.
    pub(super) fn is_right(&self, keys: &MeshKeys, node: &NodeId) -> bool {
        // The comparison of two BLAKE3 hashes takes the same time wherever they differ.
        proof_mac(&secret(keys, self.id, self.expires), node) == blake3::Hash::from_bytes(self.mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn contacts() -> Vec<Contact> {
        vec![Contact {
            node: NodeId([3; 32]),
            addresses: vec!["10.0.0.1:4100".parse().unwrap(), "[2001:db8::1]:4100".parse().unwrap()],
        }]
    }

    fn ticket(keys: &MeshKeys) -> Ticket {
        Ticket::issue(keys, contacts(), UnixTime(2_000_000_000)).unwrap()
    }

    #[test]
    fn a_ticket_survives_copying_as_one_line_in_any_case_and_with_spaces_around() {
        let ticket = ticket(&MeshKeys::generate());
        let text = ticket.to_string();
        assert!(text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'), "{text}");
        assert_eq!(text.parse::<Ticket>().unwrap(), ticket);
        assert_eq!(format!(" {text}\n").parse::<Ticket>().unwrap(), ticket);
        let upper = format!("{PREFIX}{}", text[PREFIX.len()..].to_uppercase());
        assert_eq!(upper.parse::<Ticket>().unwrap(), ticket);
    }

    #[test]
    fn a_ticket_holds_no_private_key() {
        let keys = MeshKeys::generate();
        let text = ticket(&keys).to_string();
        let bytes = BASE32_NOPAD.decode(text[PREFIX.len()..].to_uppercase().as_bytes()).unwrap();
        let holds =
            |secret: &[u8]| bytes.windows(8).any(|window| secret.windows(8).any(|part| part == window));
        assert!(holds(&keys.public().to_bytes()), "the search would find a key that is there");
        assert!(!holds(keys.seed()));
        assert!(!holds(&keys.ticket_key()));
    }

    #[test]
    fn expiry_is_said_with_its_time() {
        let ticket = ticket(&MeshKeys::generate());
        assert_eq!(ticket.check_time(UnixTime(1_999_999_999)), Ok(()));
        let error = ticket.check_time(UnixTime(2_000_000_000)).unwrap_err();
        assert!(error.to_string().contains("2033-05-18T03:33:20Z"), "{error}");
    }

    #[test]
    fn a_proof_counts_for_one_node_one_expiry_and_one_authority() {
        let (keys, foreign) = (MeshKeys::generate(), MeshKeys::generate());
        let (node, other) = (NodeId([1; 32]), NodeId([2; 32]));
        let proof = ticket(&keys).prove(&node);
        assert_eq!(TicketProof::from_bytes(&proof.to_bytes()), Some(proof));
        assert!(proof.is_right(&keys, &node));
        assert!(!proof.is_right(&keys, &other));
        assert!(!proof.is_right(&foreign, &node));
        assert!(!TicketProof { expires: UnixTime(3_000_000_000), ..proof }.is_right(&keys, &node));
        assert!(!TicketProof { id: TicketId([0; 16]), ..proof }.is_right(&keys, &node));
    }

    #[test]
    fn a_ticket_names_somebody_and_not_too_many() {
        let keys = MeshKeys::generate();
        let issue = |contacts| Ticket::issue(&keys, contacts, UnixTime(1)).is_ok();
        let with = |count: usize, addresses: usize| -> Vec<Contact> {
            let addresses = vec!["10.0.0.1:1".parse().unwrap(); addresses];
            vec![Contact { node: NodeId([0; 32]), addresses }; count]
        };
        assert!(issue(with(TICKET_MAX_CONTACTS, CONTACT_MAX_ADDRESSES)));
        for (count, addresses) in
            [(0, 0), (1, 0), (TICKET_MAX_CONTACTS + 1, 1), (1, CONTACT_MAX_ADDRESSES + 1)]
        {
            assert!(!issue(with(count, addresses)), "{count} {addresses}");
        }
        let largest =
            Ticket::issue(&keys, with(TICKET_MAX_CONTACTS, CONTACT_MAX_ADDRESSES), UnixTime(1)).unwrap();
        assert!(
            largest.to_string().parse::<Ticket>().is_ok(),
            "the longest ticket is not too long to be read"
        );
    }

    proptest! {
        #[test]
        fn an_altered_ticket_is_refused(at in 0usize..300, letter in "[a-z2-7]") {
            let text = ticket(&MeshKeys::from_seed(&[1; 32])).to_string();
            let at = PREFIX.len() + at % (text.len() - PREFIX.len());
            let altered = format!("{}{letter}{}", &text[..at], &text[at + 1..]);
            prop_assume!(altered != text);
            prop_assert!(altered.parse::<Ticket>().is_err());
        }

        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,200}", letters in "[A-Z2-7]{0,300}") {
            prop_assert!(text.parse::<Ticket>().is_err());
            let text = format!("{PREFIX}{letters}");
            prop_assert!(text.parse::<Ticket>().is_err());
        }

        #[test]
        fn a_body_of_arbitrary_bytes_with_a_right_check_sum_never_panics(
            body in proptest::collection::vec(any::<u8>(), 0..300)
        ) {
            let mut bytes = [&[VERSION][..], &body].concat();
            let check = check_sum(&bytes);
            bytes.extend(check);
            let text = format!("{PREFIX}{}", BASE32_NOPAD.encode(&bytes));
            let _ = text.parse::<Ticket>();
        }
    }
}
