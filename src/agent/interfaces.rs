//! Where this machine can be reached: the addresses of its interfaces.

use crate::mesh::CONTACT_MAX_ADDRESSES;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How often the interfaces are looked at (guess: a host that gets another address is away for a minute at most; a look
/// costs about as much as a small read).
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Where this machine is reached, which may change while the agent runs.
#[derive(Debug)]
pub(super) struct Places {
    bound: SocketAddr,
    told: Option<SocketAddr>,
    more: Vec<SocketAddr>,
    /// At least one, best first.
    found: Mutex<Vec<SocketAddr>>,
}

impl Places {
    /// See [`addresses`].
    pub(super) fn find(bound: SocketAddr, told: Option<SocketAddr>, more: Vec<SocketAddr>) -> Self {
        let found = Mutex::new(addresses(bound, told, &more));
        Self { bound, told, more, found }
    }

    /// All, best first.
    pub(super) fn all(&self) -> Vec<SocketAddr> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The best.
    pub(super) fn best(&self) -> SocketAddr {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)[0]
    }

    /// Looks again. `true`: something has changed.
    pub(super) fn look(&self) -> bool {
        let is_cut_off =
            self.told.is_none() && self.bound.ip().is_unspecified() && routed(self.bound).is_none();
        if is_cut_off && !leaves_machine(&interfaces(), self.bound.is_ipv6()) {
            return false;
        }
        self.take(addresses(self.bound, self.told, &self.more))
    }

    /// A machine that has no network for a while is where it was before.
    fn take(&self, now: Vec<SocketAddr>) -> bool {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = now.first().is_none_or(|best| best.ip().is_loopback() && !found[0].ip().is_loopback());
        if lost || now == *found {
            return false;
        }
        *found = now;
        true
    }
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    ip: IpAddr,
    /// Of a bridge inside this machine, such as containers have: every machine may have the same.
    bridge: bool,
}

/// Under which addresses others can reach a socket that listens on `bound`, best first, at most eight: that which is
/// `told`, or else the one of the interface with the default route; then `more`; then, if nothing is told and the
/// socket listens everywhere, those of the other interfaces.
fn addresses(bound: SocketAddr, told: Option<SocketAddr>, more: &[SocketAddr]) -> Vec<SocketAddr> {
    let first = told.unwrap_or_else(|| reachable(bound));
    let search = told.is_none() && bound.ip().is_unspecified() && !first.ip().is_loopback();
    let others = if search { usable(interfaces(), bound.is_ipv6()) } else { Vec::new() };
    let others = others.into_iter().map(|ip| SocketAddr::new(ip, bound.port()));
    let mut all = Vec::new();
    for address in std::iter::once(first).chain(more.iter().copied()).chain(others) {
        if !all.contains(&address) && all.len() < CONTACT_MAX_ADDRESSES {
            all.push(address);
        }
    }
    all
}

fn interfaces() -> Vec<Found> {
    match if_addrs::get_if_addrs() {
        Ok(found) => found
            .into_iter()
            .filter(if_addrs::Interface::is_oper_up)
            .map(|one| Found {
                ip: one.ip(),
                bridge: Path::new("/sys/class/net").join(&one.name).join("bridge").exists(),
            })
            .collect(),
        Err(error) => {
            tracing::warn!(%error, "the addresses of this machine's interfaces are not known");
            Vec::new()
        }
    }
}

/// Whether one of them is more than a bridge inside this machine, which stays when the network is gone.
fn leaves_machine(found: &[Found], v6: bool) -> bool {
    found.iter().any(|found| !found.bridge && (found.ip.is_ipv4() || v6) && scope(found.ip).is_some())
}

/// Those that a machine elsewhere may reach, in the order of how likely that is: of the world before those of a site,
/// bridges last. IPv6 only where the socket speaks it.
fn usable(found: Vec<Found>, v6: bool) -> Vec<IpAddr> {
    let mut ranked: Vec<(u8, IpAddr)> = found
        .into_iter()
        .filter(|found| found.ip.is_ipv4() || v6)
        .filter_map(|found| Some((scope(found.ip)? + if found.bridge { 2 } else { 0 }, found.ip)))
        .collect();
    // Stable: within a rank as the kernel names them.
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, ip)| ip).collect()
}

/// 0 for an address of the world, 1 for one of a site (RFC 1918, RFC 6598, RFC 4193), none for others.
fn scope(ip: IpAddr) -> Option<u8> {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            let none = ip.is_loopback()
                || ip.is_link_local()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_broadcast();
            (!none).then_some(u8::from(ip.is_private() || shared))
        }
        IpAddr::V6(ip) => {
            let none =
                ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified() || ip.is_multicast();
            (!none).then_some(u8::from(ip.is_unique_local()))
        }
    }
}

/// The address of the interface with the default route.
fn routed(bound: SocketAddr) -> Option<IpAddr> {
    // Connecting a UDP socket sends nothing: the kernel only picks the interface of the route. The
    // addresses belong to nobody (RFC 5737, RFC 3849), so the default route is the one that is taken.
    let asked: [(IpAddr, SocketAddr); 2] = [
        (Ipv4Addr::UNSPECIFIED.into(), SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 9))),
        (Ipv6Addr::UNSPECIFIED.into(), SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9))),
    ];
    let of_route = |(own, to): &(IpAddr, SocketAddr)| {
        let socket = UdpSocket::bind((*own, 0)).ok()?;
        socket.connect(to).ok()?;
        socket.local_addr().ok().map(|address| address.ip())
    };
    asked.iter().filter(|(own, _)| own.is_ipv4() || bound.is_ipv6()).find_map(of_route)
}

/// The address under which others can best reach a socket that listens on `bound`.
fn reachable(bound: SocketAddr) -> SocketAddr {
    if !bound.ip().is_unspecified() {
        return bound;
    }
    // A network without a way out of it has no default route.
    let found = routed(bound)
        .filter(|ip| scope(*ip).is_some())
        .or_else(|| usable(interfaces(), bound.is_ipv6()).first().copied());
    SocketAddr::new(found.unwrap_or(Ipv4Addr::LOCALHOST.into()), bound.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_socket_on_one_address_is_reached_there_and_what_is_told_is_all() {
        let bound = "127.0.0.1:7400".parse().unwrap();
        assert_eq!(addresses(bound, None, &[]), [bound]);
        let (everywhere, told) = ("0.0.0.0:7400".parse().unwrap(), "198.51.100.1:1".parse().unwrap());
        let more = ["198.51.100.2:2".parse().unwrap(), told];
        assert_eq!(addresses(everywhere, Some(told), &more), [told, more[0]]);
    }

    #[test]
    fn a_bridge_inside_the_machine_does_not_lead_out_of_it() {
        let found = |ip: &str, bridge| Found { ip: ip.parse().unwrap(), bridge };
        let inside = [found("172.17.0.1", true), found("127.0.0.1", false), found("fe80::1", false)];
        assert!(!leaves_machine(&inside, true));
        assert!(leaves_machine(&[inside[0], found("10.0.0.7", false)], true));
        assert!(leaves_machine(&[found("2001:db8::7", false)], true));
        assert!(!leaves_machine(&[found("2001:db8::7", false)], false), "the socket does not speak it");
    }

    #[test]
    fn a_change_is_taken_over_and_a_network_that_is_gone_for_a_while_is_none() {
        let all =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let places = Places::find("127.0.0.1:7".parse().unwrap(), None, Vec::new());
        assert!(!places.look(), "nothing changed");
        assert!(
            places.take(all(&["10.0.0.1:7", "10.0.1.1:7"]))
                && !places.take(all(&["10.0.0.1:7", "10.0.1.1:7"]))
        );
        assert!(!places.take(all(&["127.0.0.1:7"])) && !places.take(Vec::new()));
        assert_eq!(places.best(), "10.0.0.1:7".parse().unwrap());
        assert!(places.take(all(&["10.0.0.1:7"])) && places.take(all(&["10.0.2.1:7"])));
        assert_eq!(places.all(), all(&["10.0.2.1:7"]));
    }

    #[test]
    fn a_socket_on_all_addresses_is_reached_at_real_ones_with_what_is_told_among_the_first() {
        let more: Vec<SocketAddr> = (1..=9).map(|n| SocketAddr::from(([198, 51, 100, n], 7))).collect();
        let found = addresses("0.0.0.0:7400".parse().unwrap(), None, &more[..1]);
        assert!(!found[0].ip().is_unspecified() && found[0].port() == 7400, "{found:?}");
        assert_eq!(found[1], more[0]);
        assert!(found.iter().all(SocketAddr::is_ipv4), "the socket speaks IPv4 only: {found:?}");
        assert!(found.len() == 2 || found.iter().all(|address| !address.ip().is_loopback()), "{found:?}");
        assert_eq!(addresses("[::]:7400".parse().unwrap(), None, &more).len(), CONTACT_MAX_ADDRESSES);
    }

    #[test]
    fn addresses_that_lead_nowhere_are_left_out_and_those_of_the_world_come_first() {
        let plain = |text: &str| Found { ip: text.parse().unwrap(), bridge: false };
        let found = vec![
            plain("127.0.0.1"),
            Found { bridge: true, ..plain("172.17.0.1") },
            plain("169.254.3.4"),
            plain("10.0.0.1"),
            plain("100.64.0.1"),
            plain("fe80::1"),
            plain("fd00::1"),
            plain("::1"),
            plain("2001:db8::1"),
            plain("198.51.100.1"),
        ];
        let all = ["2001:db8::1", "198.51.100.1", "10.0.0.1", "100.64.0.1", "fd00::1", "172.17.0.1"];
        assert_eq!(usable(found.clone(), true), ips(&all));
        assert_eq!(usable(found, false), ips(&["198.51.100.1", "10.0.0.1", "100.64.0.1", "172.17.0.1"]));
    }
}
