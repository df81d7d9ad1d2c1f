//! What foca needs to be told: a member's name in the protocol, its encoding, and randomness.

use crate::model::{Generator, NodeId, Rng as _};
use bytes::{Buf, BufMut};
use foca::{Header, Identity, Member};
use rand_core::{Infallible, TryRng};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// A member as foca names it: a node, where it is reached, and which of its lives this is.
///
/// foca never takes a member back that was declared down under the same name. A higher `renewal`
/// makes a new name: it is this node's clock at its start, and grows by one with each rejoin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seat {
    pub(super) node: NodeId,
    pub(super) addr: SocketAddr,
    pub(super) renewal: u64,
}

impl Identity for Seat {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        Some(Self { renewal: self.renewal.checked_add(1)?, ..*self })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.renewal > adversary.renewal
    }
}

/// Most bytes of an encoded header or member: two seats at 32 + 20 + 10 bytes, a third in the message.
const ENCODED_MAX_BYTES: usize = 256;

/// postcard, which writes a seat with an IPv4 address in about 50 bytes.
pub(super) struct Codec;

impl Codec {
    fn put(value: &impl Serialize, mut to: impl BufMut) -> Result<(), postcard::Error> {
        let mut bytes = [0; ENCODED_MAX_BYTES];
        let written = postcard::to_slice(value, &mut bytes)?;
        if to.remaining_mut() < written.len() {
            return Err(postcard::Error::SerializeBufferFull);
        }
        to.put_slice(written);
        Ok(())
    }

    fn take<T: for<'de> Deserialize<'de>>(mut from: impl Buf) -> Result<T, postcard::Error> {
        // foca hands over contiguous slices (documented at `foca::Codec`).
        let before = from.chunk().len();
        let (value, rest) = postcard::take_from_bytes(from.chunk())?;
        let used = before - rest.len();
        from.advance(used);
        Ok(value)
    }
}

impl foca::Codec<Seat> for Codec {
    type Error = postcard::Error;

    fn encode_header(&mut self, header: &Header<Seat>, buf: impl BufMut) -> Result<(), postcard::Error> {
        Self::put(header, buf)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Seat>, postcard::Error> {
        Self::take(buf)
    }

    fn encode_member(&mut self, member: &Member<Seat>, buf: impl BufMut) -> Result<(), postcard::Error> {
        Self::put(member, buf)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<Member<Seat>, postcard::Error> {
        Self::take(buf)
    }
}

/// The project's generator, as foca's random-number traits want it.
pub(super) struct Dice(pub(super) Generator);

impl TryRng for Dice {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::try_from(self.0.next_u64() >> 32).unwrap_or(u32::MAX))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.0.next_u64())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for piece in bytes.chunks_mut(8) {
            let random = self.0.next_u64().to_le_bytes();
            piece.copy_from_slice(&random[..piece.len()]);
        }
        Ok(())
    }
}
