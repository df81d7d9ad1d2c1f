//! The endpoint's settings, and QUIC's that follow from them.

use super::EndpointError;
use crate::mesh::throttle::RateLimits;
use crate::mesh::transfer::SEND_WINDOW_BYTES;
use crate::mesh::wire::{VERSION, VERSION_OLDEST};
use quinn::{MtuDiscoveryConfig, TransportConfig, VarInt};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Settings of the endpoint.
#[derive(Clone, Debug)]
pub struct EndpointConfig {
    /// Address and port; `[::]:PORT` takes both families.
    pub listen: SocketAddr,
    /// Largest UDP payload that path discovery may try, in bytes: 1 452 passes an Ethernet of 1 500 with
    /// IPv6; at most 6 550 where jumbo frames are on (ten segments must fit 64 KiB: measured).
    pub mtu: u16,
    /// Whether the kernel cuts large sends into packets. Without it a gigabyte costs four times as much
    /// (measured); some network drivers get it wrong.
    pub segmentation_offload: bool,
    /// A connection without any packet for so long is closed (guess: longer than any reply may take).
    pub idle: Duration,
    /// Time that a handshake may take, dialling or dialled (guess).
    pub handshake: Duration,
    /// Most connections, of all protocols and both directions (guess: a full cell on both planes).
    pub max_connections: usize,
    /// Most connections that are kept for asking others (guess).
    pub pool: usize,
    /// What is sent and taken of chunks at most.
    pub limits: RateLimits,
    /// Versions of the protocol for chunks that are spoken.
    pub versions: &'static [u8],
}

impl EndpointConfig {
    /// Largest [`EndpointConfig::mtu`] that works (measured: beyond, packets vanish).
    pub const MTU_MAX: u16 = 6_550;
    /// Smallest UDP payload that QUIC allows (RFC 9000, section 14).
    pub const MTU_MIN: u16 = 1_200;

    /// The defaults on `listen`.
    pub const fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            mtu: ETHERNET_PAYLOAD,
            segmentation_offload: true,
            idle: Duration::from_secs(30),
            handshake: Duration::from_secs(5),
            max_connections: 4_096,
            pool: 512,
            limits: RateLimits { upload_bytes_per_s: 0, download_bytes_per_s: 0, background_percent: 20 },
            versions: &[VERSION, VERSION_OLDEST],
        }
    }

    /// Checks what cannot be right, and makes QUIC's settings where this node dials and where it is dialled.
    pub(super) fn transports(&self) -> Result<(Arc<TransportConfig>, Arc<TransportConfig>), EndpointError> {
        if !(Self::MTU_MIN..=Self::MTU_MAX).contains(&self.mtu) {
            return Err(EndpointError::Mtu { mtu: self.mtu });
        }
        Ok((self.transport(DIALLED)?, self.transport(ACCEPTED)?))
    }

    /// The largest UDP payload that an interface of this machine carries through which others may reach `listen`, within
    /// what works. It is only where the search for a path's own ends (RFC 8899), so that a larger one does no harm;
    /// 1 452 where the system does not say.
    pub fn mtu_of_interfaces(listen: IpAddr) -> u16 {
        let folder = Path::new("/sys/class/net");
        let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        payload(names.filter_map(|path| interface(&path)), listen.is_loopback())
    }

    fn transport(&self, windows: Windows) -> Result<Arc<TransportConfig>, EndpointError> {
        let idle = self.idle.try_into().map_err(|_| EndpointError::Idle { idle: self.idle })?;
        let mut mtu = MtuDiscoveryConfig::default();
        mtu.upper_bound(self.mtu);
        let mut transport = TransportConfig::default();
        // Congestion control stays at quinn's default, cubic: BBR was worse (measured).
        transport
            .max_idle_timeout(Some(idle))
            // No keep-alives: an idle connection shall end, and libp2p's ping keeps its own alive.
            .keep_alive_interval(None)
            .max_concurrent_bidi_streams(STREAMS_PER_CONNECTION.into())
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .stream_receive_window(VarInt::from_u32(windows.stream_bytes))
            .receive_window(VarInt::from_u32(windows.connection_bytes))
            // Whoever uploads chunks narrows it to what the path takes (`transfer/outflow.rs`).
            .send_window(SEND_WINDOW_BYTES)
            .datagram_receive_buffer_size(None)
            .mtu_discovery_config(Some(mtu))
            .enable_segmentation_offload(self.segmentation_offload);
        Ok(Arc::new(transport))
    }
}

/// The payload of an Ethernet of 1 500, less IPv6's header and UDP's.
const ETHERNET_PAYLOAD: u16 = 1_452;
const HEADERS: u32 = 48;

/// An interface that is in use: its MTU, and whether it only leads to this machine.
fn interface(path: &Path) -> Option<(u32, bool)> {
    let read = |file: &str| std::fs::read_to_string(path.join(file)).ok();
    let flags = u32::from_str_radix(read("flags")?.trim().trim_start_matches("0x"), 16).ok()?;
    let is_up = flags & libc::IFF_UP.unsigned_abs() != 0;
    let mtu = read("mtu")?.trim().parse().ok()?;
    is_up.then_some((mtu, flags & libc::IFF_LOOPBACK.unsigned_abs() != 0))
}

/// The largest payload of those of the right kind.
fn payload(interfaces: impl Iterator<Item = (u32, bool)>, loopback: bool) -> u16 {
    let fits = interfaces.filter(|(_, is_loopback)| *is_loopback == loopback).map(|(mtu, _)| mtu);
    let (least, most) = (u32::from(EndpointConfig::MTU_MIN), u32::from(EndpointConfig::MTU_MAX));
    let largest = fits.max().map(|mtu| mtu.saturating_sub(HEADERS).clamp(least, most));
    largest.and_then(|bytes| u16::try_from(bytes).ok()).unwrap_or(ETHERNET_PAYLOAD)
}

/// Streams that a peer may have open on one connection. More wait at the peer.
const STREAMS_PER_CONNECTION: u32 = 256;

/// Bytes that a peer may send ahead of the reader, which is also what it can make this node hold.
#[derive(Clone, Copy)]
struct Windows {
    /// On one stream.
    stream_bytes: u32,
    /// On all streams of a connection.
    connection_bytes: u32,
}

/// Where this node dialled, chunks come: 10 Gbit/s at 6 ms on one stream.
const DIALLED: Windows = Windows { stream_bytes: 8 << 20, connection_bytes: 16 << 20 };
/// Where others dialled, requests and documents come, of which the largest has 128 KiB.
const ACCEPTED: Windows = Windows { stream_bytes: 256 << 10, connection_bytes: 512 << 10 };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_for_a_paths_mtu_ends_at_the_interfaces_and_at_what_works() {
        let of = |interfaces: &[(u32, bool)], loopback| payload(interfaces.iter().copied(), loopback);
        assert_eq!(of(&[(1_500, false), (65_536, true)], false), 1_452);
        assert_eq!(of(&[(1_500, false), (9_000, false), (65_536, true)], false), EndpointConfig::MTU_MAX);
        assert_eq!(of(&[(4_000, false), (1_500, false)], false), 3_952);
        assert_eq!(of(&[(1_500, false), (65_536, true)], true), EndpointConfig::MTU_MAX);
        assert_eq!(of(&[(576, false)], false), EndpointConfig::MTU_MIN, "QUIC does not work below");
        assert_eq!(of(&[], false), ETHERNET_PAYLOAD);
        let here = EndpointConfig::mtu_of_interfaces([127, 0, 0, 1].into());
        assert_eq!(here, EndpointConfig::MTU_MAX, "the loopback interface carries 64 KiB");
    }
}
