//! The envelope of a membership datagram: who says it, to whom, when, and the signature over all of that.
//!
//! | bytes | meaning |
//! | --- | --- |
//! | 1 | [`VERSION`]; below 0x40, so that it is never taken for a QUIC packet |
//! | 1 | flags: bit 0 a certificate follows, bit 1 "send me yours", bit 2 further addresses follow, bit 3 the part of a label follows, bit 4 "send me your further addresses"; bits 4 to 7 may be ignored, others not |
//! | 32 | the sender |
//! | 8 | counter: the sender's clock in seconds, shifted left by 20, plus a number; it only grows |
//! | 2 + n | with bit 0: the sender's membership certificate, at most [`MEMBERSHIP_MAX_BYTES`] |
//! | 1 + n | with bit 2: the sender's further addresses (postcard: a list of at most 7), only ever sent to who set bit 4 |
//! | 1 | with bit 3, for which the label was halved: bits 0 to 2 how often, bit 3 its cell has few members |
//! | rest | a packet of foca, or nothing (an introduction) |
//! | 64 | ed25519 signature over the receiver's name and all bytes before it |
//!
//! Numbers are big-endian. The receiver's name is signed but not sent: a datagram that is replayed to
//! another node does not verify there. A foreign mesh's datagrams fail at the certificate.

use super::super::membership::MEMBERSHIP_MAX_BYTES;
use super::super::proto::Told;
use super::super::socket::DATAGRAM_MAX_BYTES;
use super::super::ticket::CONTACT_MAX_ADDRESSES;
use crate::model::{NodeId, UnixTime};
use smallvec::SmallVec;
use std::net::SocketAddr;

/// First byte of every membership datagram of this protocol version.
pub(super) const VERSION: u8 = 0x01;
const HEAD_BYTES: usize = 1 + 1 + 32 + 8 + 1;
const SIGNATURE_BYTES: usize = 64;
/// Most bytes that foca may put into one datagram, when no certificate travels with it.
pub(super) const PACKET_MAX_BYTES: usize = DATAGRAM_MAX_BYTES - HEAD_BYTES - SIGNATURE_BYTES;
/// How far a sender's clock may differ from the receiver's, in seconds: a guess that any time service keeps.
pub(super) const CLOCK_SKEW_MAX_S: u64 = 300;
/// Datagrams that may overtake each other and still be accepted (the window of IPsec, RFC 4303, doubled).
const WINDOW: u64 = 128;
/// Bits of the counter below the seconds.
const COUNTER_SHIFT: u32 = 20;

const HAS_CERTIFICATE: u8 = 1;
const WANTS_CERTIFICATE: u8 = 2;
/// A program of before these addresses refuses a datagram with them as malformed. It never asks for them.
const HAS_ADDRESSES: u8 = 4;
const WANTS_ADDRESSES: u8 = 0x10;
/// A program of before halved cells refuses a datagram with this as malformed. It could not be in such a cell.
const HAS_PART: u8 = 8;
/// Flags that a newer program may set without changing the layout.
const MAY_BE_IGNORED: u8 = 0xf0;

/// Most addresses of a node beside the one of its seat.
pub(super) const FURTHER_MAX: usize = CONTACT_MAX_ADDRESSES - 1;
/// Most bytes of those: a count, and for each a family, 16 bytes and a port.
const FURTHER_MAX_BYTES: usize = 1 + FURTHER_MAX * 20;

/// Addresses of a node beside the one of its seat, best first.
pub(super) type Further = SmallVec<[SocketAddr; 2]>;

/// The bytes of an envelope's further addresses: none for none.
pub(super) fn further_bytes(addresses: &[SocketAddr]) -> Vec<u8> {
    let addresses: Further = addresses.iter().copied().filter(is_dialable).take(FURTHER_MAX).collect();
    let bytes = if addresses.is_empty() { None } else { postcard::to_stdvec(&addresses).ok() };
    bytes.filter(|bytes| bytes.len() <= FURTHER_MAX_BYTES).unwrap_or_default()
}

/// The addresses behind those bytes. `None` when they are malformed.
pub(super) fn further_of(bytes: &[u8]) -> Option<Further> {
    // Not at once as what it becomes, which would take memory for as many as the sender says.
    let addresses: Vec<SocketAddr> = postcard::from_bytes(bytes).ok()?;
    (addresses.len() <= FURTHER_MAX && addresses.iter().all(is_dialable)).then(|| addresses.into())
}

/// Whether an address is one of a single host, with a port.
pub(super) fn is_dialable(address: &SocketAddr) -> bool {
    address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast()
}

/// What a sender puts into an envelope.
pub(super) struct Letter<'a> {
    pub(super) sender: NodeId,
    pub(super) receiver: NodeId,
    pub(super) counter: u64,
    pub(super) certificate: Option<&'a [u8]>,
    pub(super) wants_certificate: bool,
    /// Of the sender's cell; whether it has few members counts once it was halved.
    pub(super) told: Told,
    /// Its further addresses, as [`further_bytes`] has them.
    pub(super) addresses: Option<&'a [u8]>,
    pub(super) wants_addresses: bool,
    pub(super) packet: &'a [u8],
}

/// An envelope that came in; nothing in it is verified.
#[derive(Debug)]
pub(super) struct Datagram<'a> {
    pub(super) sender: NodeId,
    pub(super) counter: u64,
    pub(super) certificate: Option<&'a [u8]>,
    pub(super) wants_certificate: bool,
    /// Of the sender's cell; whether it has few members counts once it was halved.
    pub(super) told: Told,
    /// Its further addresses, as [`further_bytes`] has them.
    pub(super) addresses: Option<&'a [u8]>,
    pub(super) wants_addresses: bool,
    pub(super) packet: &'a [u8],
    pub(super) signature: [u8; SIGNATURE_BYTES],
    signed: &'a [u8],
}

/// Whether a certificate or none, addresses or none, and a packet fit one datagram.
pub(super) fn fit_together(certificate: Option<&[u8]>, addresses: Option<&[u8]>, packet: &[u8]) -> bool {
    let certificate = certificate.map_or(0, |bytes| 2 + bytes.len());
    let addresses = addresses.map_or(0, |bytes| 1 + bytes.len());
    certificate + addresses + packet.len() <= PACKET_MAX_BYTES
}

impl Letter<'_> {
    /// The datagram, signed with `sign`.
    ///
    /// # Panics
    /// When the parts are longer than a datagram: the callers bound them.
    pub(super) fn seal(&self, sign: impl Fn(&[u8]) -> [u8; SIGNATURE_BYTES]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(DATAGRAM_MAX_BYTES);
        bytes.push(VERSION);
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        bytes.push(
            flag(self.certificate.is_some(), HAS_CERTIFICATE)
                | flag(self.wants_certificate, WANTS_CERTIFICATE)
                | flag(self.addresses.is_some(), HAS_ADDRESSES)
                | flag(self.wants_addresses, WANTS_ADDRESSES)
                | flag(self.told.bits > 0, HAS_PART),
        );
        bytes.extend_from_slice(&self.sender.0);
        bytes.extend_from_slice(&self.counter.to_be_bytes());
        if let Some(certificate) = self.certificate {
            let len = u16::try_from(certificate.len()).expect("a certificate fits a datagram");
            bytes.extend_from_slice(&len.to_be_bytes());
            bytes.extend_from_slice(certificate);
        }
        if let Some(addresses) = self.addresses {
            bytes.push(u8::try_from(addresses.len()).expect("addresses fit a datagram"));
            bytes.extend_from_slice(addresses);
        }
        if self.told.bits > 0 {
            bytes.push(self.told.to_byte());
        }
        bytes.extend_from_slice(self.packet);
        let signature = sign(&message(self.receiver, &bytes));
        bytes.extend_from_slice(&signature);
        assert!(bytes.len() <= DATAGRAM_MAX_BYTES, "a datagram of {} bytes", bytes.len());
        bytes
    }
}

impl<'a> Datagram<'a> {
    /// Takes an envelope apart. `None` when it is malformed.
    pub(super) fn open(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() > DATAGRAM_MAX_BYTES {
            return None;
        }
        let (signed, signature) = bytes.split_last_chunk::<SIGNATURE_BYTES>()?;
        let ([version, flags], rest) = signed.split_first_chunk::<2>()?;
        let (sender, rest) = rest.split_first_chunk::<32>()?;
        let (counter, mut rest) = rest.split_first_chunk::<8>()?;
        let known = HAS_CERTIFICATE | WANTS_CERTIFICATE | HAS_ADDRESSES | HAS_PART | MAY_BE_IGNORED;
        if *version != VERSION || *flags & !known != 0 {
            return None;
        }
        let mut certificate = None;
        if flags & HAS_CERTIFICATE != 0 {
            let (len, after) = rest.split_first_chunk::<2>()?;
            let len = usize::from(u16::from_be_bytes(*len));
            if len > MEMBERSHIP_MAX_BYTES {
                return None;
            }
            let (body, after) = after.split_at_checked(len)?;
            certificate = Some(body);
            rest = after;
        }
        let mut addresses = None;
        if flags & HAS_ADDRESSES != 0 {
            let (len, after) = rest.split_first()?;
            let (body, after) = after.split_at_checked(usize::from(*len))?;
            addresses = Some(body);
            rest = after;
        }
        let mut told = Told::default();
        if flags & HAS_PART != 0 {
            let (byte, after) = rest.split_first()?;
            told = Told::of_byte(*byte);
            rest = after;
        }
        Some(Self {
            sender: NodeId(*sender),
            counter: u64::from_be_bytes(*counter),
            certificate,
            wants_certificate: flags & WANTS_CERTIFICATE != 0,
            told,
            addresses,
            wants_addresses: flags & WANTS_ADDRESSES != 0,
            packet: rest,
            signature: *signature,
            signed,
        })
    }

    /// The bytes that the signature covers, when this node `me` is the receiver.
    pub(super) fn message(&self, me: NodeId) -> Vec<u8> {
        message(me, self.signed)
    }

    /// Whether the counter lies within the allowed skew of this node's clock.
    pub(super) fn is_recent(&self, now: UnixTime) -> bool {
        (self.counter >> COUNTER_SHIFT).abs_diff(now.0) <= CLOCK_SKEW_MAX_S
    }
}

fn message(receiver: NodeId, signed: &[u8]) -> Vec<u8> {
    [&receiver.0, signed].concat()
}

/// The sender's side of replay protection: a number that grows across restarts, too.
#[derive(Debug, Default)]
pub(super) struct Counter(u64);

impl Counter {
    /// The next counter, from this node's clock.
    pub(super) fn next(&mut self, now: UnixTime) -> u64 {
        self.0 = (self.0 + 1).max(now.0 << COUNTER_SHIFT);
        self.0
    }
}

/// The receiver's side: which of the latest counters of one sender were seen.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Window {
    top: u64,
    seen: u128,
}

impl Window {
    /// Whether `counter` was not seen and is not too old to tell.
    pub(super) const fn accepts(&self, counter: u64) -> bool {
        if counter > self.top {
            return true;
        }
        let back = self.top - counter;
        back < WINDOW && self.seen & (1 << back) == 0
    }

    /// Marks `counter`, which was accepted and verified.
    pub(super) fn mark(&mut self, counter: u64) {
        if counter > self.top {
            let shift = counter - self.top;
            self.seen = if shift < WINDOW { self.seen << shift } else { 0 };
            self.top = counter;
        }
        let back = self.top - counter;
        if back < WINDOW {
            self.seen |= 1 << back;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn letter<'a>(certificate: Option<&'a [u8]>, packet: &'a [u8]) -> Letter<'a> {
        Letter {
            sender: NodeId([7; 32]),
            receiver: NodeId([9; 32]),
            counter: 5 << COUNTER_SHIFT,
            certificate,
            wants_certificate: true,
            told: Told::default(),
            addresses: None,
            wants_addresses: false,
            packet,
        }
    }

    #[test]
    fn an_envelope_survives_and_the_receiver_is_part_of_what_is_signed() {
        let certificate = vec![3; MEMBERSHIP_MAX_BYTES];
        let packet = vec![4; PACKET_MAX_BYTES - 2 - MEMBERSHIP_MAX_BYTES];
        assert!(fit_together(Some(&certificate), None, &packet));
        assert!(!fit_together(Some(&certificate), Some(&[]), &packet));
        let mut signed = Vec::new();
        let told = Told { bits: 5, few: true };
        let bytes = Letter { told, ..letter(Some(&certificate), &packet) }.seal(|message| {
            let hash = blake3::hash(message);
            [*hash.as_bytes(), *hash.as_bytes()].concat().try_into().unwrap()
        });
        assert_eq!(bytes.len(), DATAGRAM_MAX_BYTES);
        let open = Datagram::open(&bytes).unwrap();
        assert_eq!((open.sender, open.counter), (NodeId([7; 32]), 5 << COUNTER_SHIFT));
        assert_eq!((open.certificate, open.packet), (Some(&certificate[..]), &packet[..]));
        assert!(open.wants_certificate);
        signed.extend_from_slice(blake3::hash(&open.message(NodeId([9; 32]))).as_bytes());
        assert_eq!(&open.signature[..32], &signed[..]);
        let elsewhere = blake3::hash(&open.message(NodeId([8; 32])));
        assert_ne!(&open.signature[..32], elsewhere.as_bytes());
    }

    #[test]
    fn flags_that_a_newer_program_sets_are_ignored_where_that_is_allowed() {
        let mut bytes = letter(None, &[1, 2, 3]).seal(|_| [5; 64]);
        bytes[1] |= 0xf0;
        assert_eq!(Datagram::open(&bytes).unwrap().packet, [1, 2, 3]);
    }

    #[test]
    fn the_part_of_a_label_is_told_only_where_it_was_halved() {
        let told = Told { bits: 5, few: true };
        let whole = letter(None, &[1, 2, 3]).seal(|_| [5; 64]);
        let halved = Letter { told, ..letter(None, &[1, 2, 3]) }.seal(|_| [5; 64]);
        assert_eq!((whole[1] & HAS_PART, halved.len()), (0, whole.len() + 1));
        let open = Datagram::open(&halved).unwrap();
        assert_eq!((open.told, open.packet), (told, &[1, 2, 3][..]));
        assert_eq!(Datagram::open(&whole).unwrap().told, Told::default());
    }

    #[test]
    fn further_addresses_stand_before_the_packet_and_are_bounded() {
        let at = |port| SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], port));
        let many: Vec<SocketAddr> = (65_000..65_020).chain([0]).map(at).collect();
        let further = further_bytes(&many);
        assert_eq!(further.len(), FURTHER_MAX_BYTES);
        assert_eq!(further_of(&further).unwrap()[..], many[..FURTHER_MAX]);
        let whole =
            Letter { addresses: Some(&further), wants_addresses: true, ..letter(Some(&[1; 50]), &[1, 2]) };
        let bytes = whole.seal(|_| [5; 64]);
        let open = Datagram::open(&bytes).unwrap();
        assert_eq!(
            (open.addresses, open.wants_addresses, open.packet),
            (Some(&further[..]), true, &[1, 2][..])
        );
        // As an older program sees what is asked of it: nothing.
        let asking = Letter { wants_addresses: true, ..letter(None, &[1, 2]) }.seal(|_| [5; 64]);
        assert_eq!(asking[1] & !(HAS_CERTIFICATE | WANTS_CERTIFICATE | MAY_BE_IGNORED), 0);
        assert_eq!(further_bytes(&[]), [0; 0]);
        for bad in [at(0), "0.0.0.0:1".parse().unwrap(), "224.0.0.1:1".parse().unwrap()] {
            assert_eq!(further_of(&postcard::to_stdvec(&[bad][..]).unwrap()), None);
        }
        assert_eq!(further_of(&postcard::to_stdvec(&many[..FURTHER_MAX + 1]).unwrap()), None);
        assert_eq!(further_of(&[0xff, 0xff, 0xff, 1]), None);
    }

    #[test]
    fn a_counter_is_accepted_once_and_late_ones_only_inside_the_window() {
        let mut window = Window::default();
        for counter in [1_000, 998, 1_001, 1_001 - 127] {
            assert!(window.accepts(counter), "{counter}");
            window.mark(counter);
            assert!(!window.accepts(counter), "{counter}");
        }
        assert!(!window.accepts(1_001 - 128), "too old to tell");
        window.mark(u64::MAX);
        assert!(!window.accepts(1_002));
    }

    #[test]
    fn counters_grow_within_a_second_and_across_restarts() {
        let (mut before, mut after) = (Counter::default(), Counter::default());
        let first = before.next(UnixTime(100));
        assert!(before.next(UnixTime(100)) > first);
        assert!(before.next(UnixTime(90)) > first, "a clock that was set back does not matter");
        assert!(after.next(UnixTime(101)) > before.next(UnixTime(100)));
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1_300)) {
            let _ = Datagram::open(&bytes);
        }

        #[test]
        fn a_cut_envelope_is_refused_or_differs(cut in 0usize..200) {
            let whole = letter(Some(&[1; 50]), &[2; 60]).seal(|_| [5; 64]);
            let cut = cut.min(whole.len() - 1);
            if let Some(open) = Datagram::open(&whole[..cut]) {
                prop_assert_ne!(open.signed, &whole[..whole.len() - 64]);
            }
        }
    }
}
