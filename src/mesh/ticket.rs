//! Tickets: what an operator hands to a machine so that it may join.
//!
//! A ticket is one line of text. It names the mesh, the authority that issued it and where that is reached,
//! its terms (until when, for how many machines, with which role and scope, in which cell), and a secret. The
//! secret is derived from a key of that authority's node, the ticket's number and its terms, so the authority
//! keeps no table of the tickets that it issued, nobody can alter one, and no other authority accepts it: who
//! counts the uses is the one who knows them. The joiner never shows the secret: it shows a MAC of its own key
//! ([`TicketProof`]), so a proof is of no use to anybody else.

use super::authority::MeshId;
use super::membership::{MembershipError, Role, Scope};
use crate::model::{CellLabel, NodeId, UnixTime};
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
/// Most machines that one ticket lets in (guess: a large rack row's worth, a few times over).
pub const TICKET_MAX_USES: u32 = 10_000;
/// Most bytes of a ticket's terms: what fits a membership certificate fits here.
const TERMS_MAX_BYTES: usize = 800;
/// Most characters of a ticket: the longest terms and four nodes with eight addresses each need less.
const TEXT_MAX_CHARS: usize = 4_096;
const VERSION: u8 = 2;
/// Bytes of the check sum that finds copying errors.
const CHECK_BYTES: usize = 4;
const CHECK_CONTEXT: &str = "starling 2026-11 check sum of a ticket";
const PROOF_DOMAIN: &[u8] = b"starling ticket proof 2\0";

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
    /// Terms that no authority would keep.
    #[error("a ticket for {uses} machines: 1 to {TICKET_MAX_USES} are possible")]
    Uses {
        /// The number asked for.
        uses: u32,
    },
    /// Terms that are too long.
    #[error("the terms of the ticket take {len} bytes, at most {TERMS_MAX_BYTES} are possible")]
    Terms {
        /// Their length.
        len: usize,
    },
    /// Role or scope.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The ticket is for another cell than the one asked for.
    #[error("the ticket is for the cell {ticket}, not for {asked}")]
    Cell {
        /// The ticket's.
        ticket: CellLabel,
        /// What was asked for.
        asked: CellLabel,
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

/// What a ticket grants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// When it was issued, which tells it from one that was issued before a revocation.
    pub issued: UnixTime,
    /// The first second at which it no longer counts.
    pub expires: UnixTime,
    /// How many machines it lets in, at most [`TICKET_MAX_USES`].
    pub uses: u32,
    /// What they may do.
    pub role: Role,
    /// What they may read.
    pub scope: Scope,
    /// Where they are; `None`: they say so themselves.
    pub cell: Option<CellLabel>,
}

impl Terms {
    fn bytes(&self) -> Result<Vec<u8>, TicketError> {
        if !(1..=TICKET_MAX_USES).contains(&self.uses) {
            return Err(TicketError::Uses { uses: self.uses });
        }
        self.scope.check()?;
        let bytes = postcard::to_allocvec(self)
            .map_err(|error| MembershipError::Malformed { detail: error.to_string() })?;
        if bytes.len() > TERMS_MAX_BYTES {
            return Err(TicketError::Terms { len: bytes.len() });
        }
        Ok(bytes)
    }

    /// The cell of a joiner that asks for `asked`, or says nothing.
    ///
    /// # Errors
    /// [`TicketError::Cell`] when the ticket is for another.
    pub fn cell_for(&self, asked: Option<CellLabel>) -> Result<CellLabel, TicketError> {
        match (&self.cell, asked) {
            (Some(ticket), Some(asked)) if *ticket != asked => {
                Err(TicketError::Cell { ticket: ticket.clone(), asked })
            }
            (Some(ticket), _) => Ok(ticket.clone()),
            (None, asked) => Ok(asked.unwrap_or_default()),
        }
    }
}

/// The key of one authority's tickets.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct TicketKey(pub(super) [u8; 32]);

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKey")
    }
}

/// What an operator hands to a machine so that it may join. Worth a membership: handle it as a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket {
    mesh: MeshId,
    id: TicketId,
    terms: Terms,
    secret: [u8; 32],
    contacts: Vec<Contact>,
}

#[derive(Serialize, Deserialize)]
struct Body {
    mesh: MeshId,
    id: TicketId,
    terms: Terms,
    secret: [u8; 32],
    contacts: Vec<Contact>,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("mesh", &self.mesh)
            .field("id", &self.id)
            .field("terms", &self.terms)
            .field("contacts", &self.contacts)
            .finish_non_exhaustive()
    }
}

fn secret(key: &TicketKey, id: TicketId, terms: &[u8]) -> [u8; 32] {
    *blake3::keyed_hash(&key.0, &[&id.0, terms].concat()).as_bytes()
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
    /// A new ticket of the authority with the key `key`, which joiners find at `contacts`.
    ///
    /// # Errors
    /// [`TicketError::Contacts`] when it names nobody, or too many; [`TicketError::Uses`],
    /// [`TicketError::Terms`] or [`TicketError::Membership`] when the terms are out of bounds.
    pub(super) fn issue(
        key: &TicketKey,
        mesh: MeshId,
        contacts: Vec<Contact>,
        terms: Terms,
    ) -> Result<Self, TicketError> {
        check_contacts(&contacts)?;
        let id = TicketId(crate::ambient::secret());
        let secret = secret(key, id, &terms.bytes()?);
        Ok(Self { mesh, id, terms, secret, contacts })
    }

    /// The mesh that it leads to.
    pub fn mesh(&self) -> MeshId {
        self.mesh
    }

    /// Its number.
    pub fn id(&self) -> TicketId {
        self.id
    }

    /// What it grants.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The authority that issued it: the node, and where to ask it, best first.
    pub fn contacts(&self) -> &[Contact] {
        &self.contacts
    }

    /// Whether it still counts at `now`.
    ///
    /// # Errors
    /// [`TicketError::Expired`].
    pub fn check_time(&self, now: UnixTime) -> Result<(), TicketError> {
        if now >= self.terms.expires { Err(TicketError::Expired { at: self.terms.expires }) } else { Ok(()) }
    }

    /// What the joiner `node` shows of it.
    pub(super) fn prove(&self, node: &NodeId) -> TicketProof {
        let mac = *proof_mac(&self.secret, node).as_bytes();
        TicketProof { id: self.id, terms: self.terms.clone(), mac }
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = Body {
            mesh: self.mesh,
            id: self.id,
            terms: self.terms.clone(),
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
        body.terms.bytes()?;
        let Body { mesh, id, terms, secret, contacts } = body;
        Ok(Self { mesh, id, terms, secret, contacts })
    }
}

/// What a joiner's TLS certificate carries instead of a membership: that it knows a ticket's secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketProof {
    /// The ticket.
    pub id: TicketId,
    /// What the ticket grants. The MAC counts for no other terms.
    pub terms: Terms,
    mac: [u8; 32],
}

impl TicketProof {
    /// The proof as bytes: version, number, MAC, terms (postcard).
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let terms = self.terms.bytes().unwrap_or_default();
        [&[VERSION][..], &self.id.0, &self.mac, &terms].concat()
    }

    /// Reads a proof; `None` when it is of another version or malformed.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first()?;
        let (id, rest) = rest.split_first_chunk()?;
        let (mac, rest) = rest.split_first_chunk()?;
        if *version != VERSION || rest.len() > TERMS_MAX_BYTES {
            return None;
        }
        let (terms, []) = postcard::take_from_bytes::<Terms>(rest).ok()? else { return None };
        terms.bytes().ok()?;
        Some(Self { id: TicketId(*id), terms, mac: *mac })
    }

    /// Whether `node` knows the secret of a ticket with the key `key`. Says nothing of its expiry.
    pub(super) fn is_right(&self, key: &TicketKey, node: &NodeId) -> bool {
        let Ok(terms) = self.terms.bytes() else { return false };
        // The comparison of two BLAKE3 hashes takes the same time wherever they differ.
        proof_mac(&secret(key, self.id, &terms), node) == blake3::Hash::from_bytes(self.mac)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: TicketKey = TicketKey([1; 32]);
    const MESH: MeshId = MeshId([2; 32]);

    fn contacts() -> Vec<Contact> {
        vec![Contact {
            node: NodeId([3; 32]),
            addresses: vec!["10.0.0.1:4100".parse().unwrap(), "[2001:db8::1]:4100".parse().unwrap()],
        }]
    }

    fn terms() -> Terms {
        Terms {
            issued: UnixTime(1_900_000_000),
            expires: UnixTime(2_000_000_000),
            uses: 1,
            role: Role::Member,
            scope: Scope::All,
            cell: None,
        }
    }

    /// A ticket with terms altered by `change`.
    pub(in crate::mesh) fn ticket(key: &TicketKey, mesh: MeshId, change: impl FnOnce(&mut Terms)) -> Ticket {
        let mut terms = terms();
        change(&mut terms);
        Ticket::issue(key, mesh, contacts(), terms).unwrap()
    }

    fn plain() -> Ticket {
        ticket(&KEY, MESH, |_| ())
    }

    #[test]
    fn a_ticket_survives_copying_as_one_line_in_any_case_and_with_spaces_around() {
        let ticket = plain();
        let text = ticket.to_string();
        assert!(text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'), "{text}");
        assert_eq!(text.parse::<Ticket>().unwrap(), ticket);
        assert_eq!(format!(" {text}\n").parse::<Ticket>().unwrap(), ticket);
        let upper = format!("{PREFIX}{}", text[PREFIX.len()..].to_uppercase());
        assert_eq!(upper.parse::<Ticket>().unwrap(), ticket);
    }

    #[test]
    fn a_ticket_holds_no_key() {
        let text = plain().to_string();
        let bytes = BASE32_NOPAD.decode(text[PREFIX.len()..].to_uppercase().as_bytes()).unwrap();
        let holds =
            |secret: &[u8]| bytes.windows(8).any(|window| secret.windows(8).any(|part| part == window));
        assert!(holds(&MESH.0), "the search would find a key that is there");
        assert!(!holds(&KEY.0));
    }

    #[test]
    fn expiry_is_said_with_its_time() {
        let ticket = plain();
        assert_eq!(ticket.check_time(UnixTime(1_999_999_999)), Ok(()));
        let error = ticket.check_time(UnixTime(2_000_000_000)).unwrap_err();
        assert!(error.to_string().contains("2033-05-18T03:33:20Z"), "{error}");
    }

    #[test]
    fn a_proof_counts_for_one_node_the_terms_as_issued_and_one_authority() {
        let (node, other) = (NodeId([1; 32]), NodeId([2; 32]));
        let scope = Scope::Only(vec!["sw.example.org".parse().unwrap()]);
        let proof = ticket(&KEY, MESH, |terms| terms.scope = scope).prove(&node);
        assert_eq!(TicketProof::from_bytes(&proof.to_bytes()), Some(proof.clone()));
        assert!(proof.is_right(&KEY, &node));
        assert!(!proof.is_right(&KEY, &other));
        assert!(!proof.is_right(&TicketKey([9; 32]), &node));
        assert!(!TicketProof { id: TicketId([0; 16]), ..proof.clone() }.is_right(&KEY, &node));
        let changes: [fn(&mut Terms); 5] = [
            |terms| terms.expires.0 += 1,
            |terms| terms.issued.0 += 1,
            |terms| terms.uses += 1,
            |terms| terms.role = Role::Authority,
            |terms| terms.scope = Scope::All,
        ];
        for change in changes {
            let mut altered = proof.clone();
            change(&mut altered.terms);
            assert!(!altered.is_right(&KEY, &node), "{altered:?}");
        }
    }

    #[test]
    fn a_ticket_names_somebody_and_not_too_many() {
        let issue = |contacts| Ticket::issue(&KEY, MESH, contacts, terms()).is_ok();
        let with = |count: usize, addresses: usize| -> Vec<Contact> {
            let addresses = vec!["[2001:db8::1]:40000".parse().unwrap(); addresses];
            vec![Contact { node: NodeId([0; 32]), addresses }; count]
        };
        assert!(issue(with(TICKET_MAX_CONTACTS, CONTACT_MAX_ADDRESSES)));
        for (count, addresses) in
            [(0, 0), (1, 0), (TICKET_MAX_CONTACTS + 1, 1), (1, CONTACT_MAX_ADDRESSES + 1)]
        {
            assert!(!issue(with(count, addresses)), "{count} {addresses}");
        }
        let names = (0..24).map(|n| format!("{n:0>28}").parse().unwrap()).collect();
        let terms = Terms { scope: Scope::Only(names), ..terms() };
        let contacts = with(TICKET_MAX_CONTACTS, CONTACT_MAX_ADDRESSES);
        let largest = Ticket::issue(&KEY, MESH, contacts, terms).unwrap();
        assert!(
            largest.to_string().parse::<Ticket>().is_ok(),
            "the longest ticket is not too long to be read"
        );
    }

    #[test]
    fn terms_out_of_bounds_are_refused_with_their_value() {
        let issue = |terms| Ticket::issue(&KEY, MESH, contacts(), terms).unwrap_err();
        for uses in [0, TICKET_MAX_USES + 1] {
            assert_eq!(issue(Terms { uses, ..terms() }), TicketError::Uses { uses });
        }
        let names = (0..32).map(|n| format!("{n:0>100}").parse().unwrap()).collect();
        let error = issue(Terms { scope: Scope::Only(names), ..terms() });
        assert!(matches!(error, TicketError::Terms { len } if len > 3_000), "{error}");
    }

    #[test]
    fn a_ticket_for_a_cell_is_for_no_other() {
        let cell = |text: &str| text.parse::<CellLabel>().unwrap();
        let bound = Terms { cell: Some(cell("eu/a/r1")), ..terms() };
        assert_eq!(bound.cell_for(None), Ok(cell("eu/a/r1")));
        assert_eq!(bound.cell_for(Some(cell("eu/a/r1"))), Ok(cell("eu/a/r1")));
        assert!(matches!(bound.cell_for(Some(cell("eu/a/r2"))), Err(TicketError::Cell { .. })));
        assert_eq!(terms().cell_for(Some(cell("eu/a/r2"))), Ok(cell("eu/a/r2")));
        assert_eq!(terms().cell_for(None), Ok(CellLabel::default()));
    }

    proptest! {
        #[test]
        fn an_altered_ticket_is_refused(at in 0usize..300, letter in "[a-z2-7]") {
            let text = plain().to_string();
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
            let _ = TicketProof::from_bytes(&bytes);
            let check = check_sum(&bytes);
            bytes.extend(check);
            let text = format!("{PREFIX}{}", BASE32_NOPAD.encode(&bytes));
            let _ = text.parse::<Ticket>();
        }
    }
}
