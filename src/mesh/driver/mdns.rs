//! Members on the local network, found by multicast DNS (RFC 6762) and service discovery (RFC 6763).
//!
//! A node that sees nobody asks who offers [`SERVICE`]; the others answer with the port of their mesh, the beginning of
//! the mesh's id and their address. Anybody on the network can answer, and can listen: an answer is only an address to
//! dial, and what is found there must show a certificate of this mesh. Over IPv4, on the network of the node's own address.

use super::super::authority::MeshId;
use crate::ambient;
use crate::model::{NodeId, Time};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;
use tokio::net::UdpSocket;

/// The service that members offer.
const SERVICE: &str = "_starling._udp.local";
const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 251), 5353);
/// How long answers to a question are awaited.
const ANSWERS: Duration = Duration::from_secs(1);
/// Least pause between two answers (RFC 6762, section 6).
const ANSWER_LEAST: Duration = Duration::from_secs(1);
/// Seconds that an answer counts (RFC 6762, section 10).
const TTL_S: u32 = 120;
/// Largest message (RFC 6762, section 17), and most records of one that are looked at.
const MESSAGE_MAX: usize = 9_000;
const RECORDS_MAX: usize = 128;
/// Longest name (RFC 1035), and most pointers in one.
const NAME_MAX: usize = 255;
const POINTERS_MAX: usize = 16;
/// Most members that one question finds.
const MEMBERS_MAX: usize = 64;

const A: u16 = 1;
const PTR: u16 = 12;
const TXT: u16 = 16;
const SRV: u16 = 33;
const IN: u16 = 1;
/// Says in an answer's class that no older one counts.
const FLUSH: u16 = 0x8000;
const RESPONSE: u16 = 0x8400;

/// This node on its local network.
pub(super) struct Lan {
    socket: UdpSocket,
    /// What others must say to be of the same mesh.
    mesh: String,
    /// This node's name in the service.
    instance: String,
    own: SocketAddrV4,
    answered: Option<Time>,
}

impl Lan {
    /// Joins the group on the network of `own`, the address where others reach this node.
    ///
    /// # Errors
    /// When `own` is not of IPv4, or the system refuses the socket.
    pub(super) fn open(mesh: &MeshId, node: NodeId, own: SocketAddr) -> io::Result<Self> {
        let SocketAddr::V4(own) = own else {
            return Err(io::Error::other(format!("{own} is not an IPv4 address")));
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
        // Others on this machine listen on the same port.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        sockopt::set_socket_reuseport(&socket, true)?;
        rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, GROUP.port()))?;
        sockopt::set_ip_multicast_if(&socket, own.ip())?;
        let socket = UdpSocket::from_std(socket.into())?;
        socket.join_multicast_v4(*GROUP.ip(), *own.ip())?;
        let mesh: String = mesh.to_string().chars().take(16).collect();
        Ok(Self { socket, mesh, instance: node.short(), own, answered: None })
    }

    /// Asks, and collects where members of this mesh say they are.
    pub(super) async fn ask(&mut self) -> BTreeSet<SocketAddr> {
        let mut found = BTreeSet::new();
        if let Err(error) = self.socket.send_to(&question(), GROUP).await {
            tracing::debug!(%error, "asking the local network");
            return found;
        }
        let collect = async {
            while found.len() < MEMBERS_MAX {
                let Some(heard) = self.hear().await else { continue };
                found.extend(heard.into_iter().filter(|addr| *addr != SocketAddr::V4(self.own)));
            }
        };
        let _ = tokio::time::timeout(ANSWERS, collect).await;
        found
    }

    /// Answers the questions of others, for as long as it is run.
    pub(super) async fn listen(&mut self) {
        loop {
            let _ = self.hear().await;
        }
    }

    /// Takes one message: answers a question, or returns what an answer says. Safe to cancel.
    async fn hear(&mut self) -> Option<Vec<SocketAddr>> {
        let mut buffer = vec![0; MESSAGE_MAX];
        let (len, from) = match self.socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "listening to the local network");
                // Whatever ails the socket must not make this loop spin.
                tokio::time::sleep(ANSWERS).await;
                return None;
            }
        };
        match Message::parse(&buffer[..len])? {
            Message::Question => {
                let now = ambient::now();
                if self.answered.is_none_or(|last| now.since(last) >= ANSWER_LEAST) {
                    self.answered = Some(now);
                    let answer = answer(&self.instance, &self.mesh, self.own);
                    if let Err(error) = self.socket.send_to(&answer, GROUP).await {
                        tracing::debug!(%error, "answering the local network");
                    }
                }
                None
            }
            Message::Answer(offers) => {
                Some(offers.into_iter().filter_map(|offer| offer.address(&self.mesh, from.ip())).collect())
            }
        }
    }
}

fn put_name(message: &mut Vec<u8>, name: &str) {
    for label in name.split('.') {
        // Labels of ours are short words.
        message.push(u8::try_from(label.len()).unwrap_or(0));
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
}

fn header(flags: u16, questions: u16, answers: u16) -> Vec<u8> {
    [0, flags, questions, answers, 0, 0].iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn question() -> Vec<u8> {
    let mut message = header(0, 1, 0);
    put_name(&mut message, SERVICE);
    message.extend([PTR, IN].iter().flat_map(|word| word.to_be_bytes()));
    message
}

fn answer(instance: &str, mesh: &str, own: SocketAddrV4) -> Vec<u8> {
    let (name, host) = (format!("{instance}.{SERVICE}"), format!("starling-{instance}.local"));
    let mut message = header(RESPONSE, 0, 4);
    let mut record = |name: &str, kind: u16, class: u16, data: &[u8]| {
        put_name(&mut message, name);
        message.extend([kind, class].iter().flat_map(|word| word.to_be_bytes()));
        message.extend(TTL_S.to_be_bytes());
        message.extend(u16::try_from(data.len()).unwrap_or(0).to_be_bytes());
        message.extend_from_slice(data);
    };
    let mut target = Vec::new();
    put_name(&mut target, &name);
    record(SERVICE, PTR, IN, &target);
    let mut service: Vec<u8> = [0, 0, own.port()].iter().flat_map(|word| word.to_be_bytes()).collect();
    put_name(&mut service, &host);
    record(&name, SRV, IN | FLUSH, &service);
    let text = format!("mesh={mesh}");
    let text: Vec<u8> = std::iter::once(u8::try_from(text.len()).unwrap_or(0)).chain(text.bytes()).collect();
    record(&name, TXT, IN | FLUSH, &text);
    record(&host, A, IN | FLUSH, &own.ip().octets());
    message
}

/// What a member says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Offer {
    mesh: String,
    port: u16,
    ip: Option<Ipv4Addr>,
}

impl Offer {
    /// Where it is, if it is of this mesh: at the address that it names, or else whence its answer came.
    fn address(self, mesh: &str, from: IpAddr) -> Option<SocketAddr> {
        let ip = self.ip.map_or(from, IpAddr::V4);
        (self.mesh == mesh && self.port != 0).then(|| SocketAddr::new(ip, self.port))
    }
}

/// A message, as far as it concerns us.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Message {
    /// Somebody looks for the service.
    Question,
    /// These offer it.
    Answer(Vec<Offer>),
}

impl Message {
    /// Reads a message. `None`: malformed, or about something else.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader { bytes, at: 2 };
        let (flags, questions) = (reader.word()?, reader.word()?);
        let records = [reader.word()?, reader.word()?, reader.word()?];
        let mut asked = false;
        for _ in 0..usize::from(questions).min(RECORDS_MAX) {
            let name = reader.name()?;
            let kind = reader.word()?;
            reader.word()?;
            asked |= name == SERVICE && kind == PTR;
        }
        if flags & 0x8000 == 0 {
            return asked.then_some(Self::Question);
        }
        let count: usize = records.iter().map(|count| usize::from(*count)).sum();
        let (mut offers, mut targets) = (BTreeMap::<String, Offer>::new(), BTreeMap::<String, String>::new());
        let mut addresses = BTreeMap::new();
        for _ in 0..count.min(RECORDS_MAX) {
            let name = reader.name()?;
            let (kind, _class, _ttl) = (reader.word()?, reader.word()?, (reader.word()?, reader.word()?));
            let end = usize::from(reader.word()?) + reader.at;
            if end > bytes.len() {
                return None;
            }
            let is_ours = name.strip_suffix(SERVICE).is_some_and(|rest| rest.ends_with('.'));
            match kind {
                SRV if is_ours => {
                    let _priority_and_weight = [reader.word()?, reader.word()?];
                    offers.entry(name.clone()).or_default().port = reader.word()?;
                    targets.insert(name, reader.name()?);
                }
                TXT if is_ours => {
                    offers.entry(name).or_default().mesh =
                        mesh_in(&bytes[reader.at..end]).unwrap_or_default();
                }
                A => {
                    let octets: Option<[u8; 4]> = bytes.get(reader.at..end)?.try_into().ok();
                    addresses.insert(name, octets.map(Ipv4Addr::from));
                }
                _ => {}
            }
            reader.at = end;
        }
        for (name, offer) in &mut offers {
            offer.ip = targets.get(name).and_then(|target| addresses.get(target).copied().flatten());
        }
        (!offers.is_empty()).then(|| Self::Answer(offers.into_values().collect()))
    }
}

/// The value of `mesh` among the strings of a TXT record.
fn mesh_in(mut text: &[u8]) -> Option<String> {
    while let [len, rest @ ..] = text {
        let (string, after) = rest.split_at_checked(usize::from(*len))?;
        if let Some(mesh) = string.strip_prefix(b"mesh=") {
            return String::from_utf8(mesh.to_vec()).ok();
        }
        text = after;
    }
    None
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn word(&mut self) -> Option<u16> {
        let word = self.bytes.get(self.at..self.at + 2)?;
        self.at += 2;
        Some(u16::from_be_bytes(word.try_into().ok()?))
    }

    /// A name in lower case, its labels joined by dots; what is no ASCII in it is not ours and may look as it likes.
    fn name(&mut self) -> Option<String> {
        let (mut name, mut at, mut pointers) = (String::new(), self.at, 0);
        loop {
            let len = usize::from(*self.bytes.get(at)?);
            at += 1;
            if len & 0xc0 == 0xc0 {
                let target = (len & 0x3f) << 8 | usize::from(*self.bytes.get(at)?);
                if pointers == 0 {
                    self.at = at + 1;
                }
                pointers += 1;
                if pointers > POINTERS_MAX {
                    return None;
                }
                at = target;
                continue;
            }
            if len > 63 {
                return None;
            }
            if len == 0 {
                if pointers == 0 {
                    self.at = at;
                }
                return Some(name);
            }
            if !name.is_empty() {
                name.push('.');
            }
            let label = self.bytes.get(at..at + len)?;
            name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
            if name.len() > 2 * NAME_MAX {
                return None;
            }
            at += len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OWN: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 7), 7_400);

    fn from() -> IpAddr {
        "192.0.2.99".parse().unwrap()
    }

    #[test]
    fn a_question_and_an_answer_are_read_back() {
        assert_eq!(Message::parse(&question()), Some(Message::Question));
        let Some(Message::Answer(offers)) = Message::parse(&answer("ab12", "0123456789abcdef", OWN)) else {
            panic!("no answer");
        };
        assert_eq!(offers.len(), 1);
        let address = |mesh| offers[0].clone().address(mesh, from());
        assert_eq!(address("0123456789abcdef"), Some(SocketAddr::V4(OWN)));
        assert_eq!(address("another"), None, "of another mesh");
    }

    #[test]
    fn names_with_pointers_are_followed_and_loops_are_not() {
        // A question for the service whose last labels are a pointer to an earlier name.
        let mut message = header(0, 2, 0);
        put_name(&mut message, "local");
        message.extend([PTR, IN].iter().flat_map(|word| word.to_be_bytes()));
        message.extend(b"\x09_starling\x04_udp\xc0\x0c");
        message.extend([PTR, IN].iter().flat_map(|word| word.to_be_bytes()));
        assert_eq!(Message::parse(&message), Some(Message::Question));
        let mut endless = header(0, 1, 0);
        endless.extend(b"\xc0\x0c\0\x0c\0\x01");
        assert_eq!(Message::parse(&endless), None);
    }

    #[test]
    fn what_others_ask_and_answer_is_not_for_us() {
        let mut printer = header(0, 1, 0);
        put_name(&mut printer, "_ipp._tcp.local");
        printer.extend([PTR, IN].iter().flat_map(|word| word.to_be_bytes()));
        assert_eq!(Message::parse(&printer), None);
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Message::parse(&bytes);
        }

        #[test]
        fn a_damaged_answer_never_panics(at in 0usize..200, value: u8) {
            let mut message = answer("ab12", "0123456789abcdef", OWN);
            let at = at % message.len();
            message[at] = value;
            let _ = Message::parse(&message);
        }
    }
}
