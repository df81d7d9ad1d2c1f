//! Keeping this node's certificate renewed, without a restart and without an interruption.
//!
//! From about half of the certificate's life on, authorities are asked in turn: those that the node knows as a
//! member, over the member plane; then, by name, those that its ticket or an earlier renewal named, who also answer
//! when the membership has lapsed or this node has missed a rotation of the authority's key, where they were and at
//! the addresses of `bootstrap`; then those that the DHT names. The renewed certificate is stored, shown in every handshake and datagram from then on, and told to
//! the peers of live connections.

use super::dht::{Dht, DhtKey};
use super::driver::resolve;
use super::endpoint::Endpoint;
use super::identity::{Identity, IdentityError};
use super::join::{ask_to_renew, bootstrap, store_bootstrap};
use super::membership::{MembershipCert, MembershipError, Role};
use super::office::Office;
use super::ticket::Contact;
use super::transfer::{self, Renewal};
use super::wire::{MEMBERS_PER_FRAME, RenewReply};
use crate::ambient;
use crate::model::{Generator, NodeId, Rng as _, UnixTime};
use crate::seldom::Seldom;
use futures::future::BoxFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// When a renewal is due, in percent of the certificate's life, and the random part: half a fleet that joined
/// together shall not come together (guess).
const DUE_PERCENT: u64 = 50;
const DUE_SPREAD_PERCENT: u64 = 8;
/// Of what remains of an old key's certificate, the part within which a certificate of the new key is fetched.
const ROTATED_SHARE: u64 = 4;
/// The part that is let pass before: by then everybody has heard of the new key, and nobody refuses who shows it.
const ROTATED_PAUSE_SHARE: u64 = 8;
/// Pauses after a failure: the first, and the longest (guess: an authority is back within minutes, or somebody
/// is called).
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LATER: Duration = Duration::from_secs(600);
/// Longest sleep: so that a clock that was set, or a machine that was suspended, is noticed, and that a node is alone.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long a node may be alone, or refused, before it asks an authority whether it missed something, and how often.
const ALONE: Duration = Duration::from_secs(10);
const ALONE_PAUSE: Duration = Duration::from_secs(120);
/// Pause between two warnings that the certificate was not renewed.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// Authorities asked in one attempt, on each of the ways.
const ASKED_MAX: usize = 4;
/// Addresses of names at which each of them is asked beside its own (guess: those that do not answer cost 5 s each).
const NAMED_MAX: usize = 16;
/// Peers that are shown the renewed certificate at once.
const SHOWN_AT_ONCE: usize = 32;

/// What the driver knows that matters here.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// Members with the role of an authority, those that are up first.
    pub(super) authorities: Vec<(NodeId, SocketAddr)>,
    /// Peers that are up, as this node believes.
    pub(super) up: usize,
    /// Whether the member that was asked last for its documents refused this node as none of its mesh, or several in a row
    /// gave none.
    pub(super) refused: bool,
}

/// What a renewal needs of its node.
pub(super) struct Renewing {
    pub(super) endpoint: Endpoint,
    /// Where this node is an authority itself.
    pub(super) office: Option<Arc<Office>>,
    pub(super) dht: Option<Dht>,
    /// `HOST:PORT` each, where an authority may be that is not where it was.
    pub(super) names: Vec<String>,
    /// Asks the driver.
    pub(super) view: Box<dyn Fn() -> BoxFuture<'static, View> + Send + Sync>,
}

/// Why a certificate was not renewed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(
        "this node's membership was revoked at {at}: it needs a new ticket (`starling join TICKET --force`)"
    )]
    Revoked { at: UnixTime },
    #[error(
        "the membership lapsed at {lapsed}, and is renewed for {grace_s} s only: join again with a new ticket"
    )]
    TooLate { lapsed: UnixTime, grace_s: u64 },
    #[error("no authority renewed the certificate: {0}")]
    Nobody(String),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the renewed certificate does not count: {0}")]
    Certificate(#[from] MembershipError),
    #[error("the task was lost")]
    Lost,
}

/// Renews until it is stopped.
pub(super) async fn keep(renewing: Renewing, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = Keeper::new(renewing).run() => {}
    }
}

struct Keeper {
    renewing: Renewing,
    generator: Generator,
    /// When to try next, and for which certificate and charter that was decided.
    due: UnixTime,
    decided_for: (Option<MembershipCert>, usize),
    pause: Duration,
    alone_since: Option<crate::model::Time>,
    warned: Seldom,
}

impl Keeper {
    fn new(renewing: Renewing) -> Self {
        Self {
            renewing,
            generator: ambient::generator(),
            due: UnixTime(0),
            decided_for: (None, 0),
            pause: RETRY_FIRST,
            alone_since: Some(ambient::now()),
            warned: Seldom::new(WARN_EVERY),
        }
    }

    fn identity(&self) -> Arc<Identity> {
        self.renewing.endpoint.identity().clone()
    }

    async fn run(mut self) {
        let mut changes = self.identity().trust().changes();
        let mut renewals = self.identity().renewals();
        loop {
            self.decide();
            let now = ambient::unix_now();
            if now >= self.due {
                self.attempt(now).await;
            } else {
                self.look_whether_alone().await;
            }
            let wait = Duration::from_secs(self.due.0.saturating_sub(ambient::unix_now().0));
            tokio::select! {
                () = tokio::time::sleep(wait.clamp(Duration::from_millis(200), LOOK_EVERY)) => {}
                changed = changes.changed() => if changed.is_err() { return },
                // Also after a rotation on this very node, which renews its certificate itself.
                Ok(()) = renewals.changed() => show_all(&self.renewing.endpoint).await,
            }
        }
    }

    /// When the certificate is due: once for each certificate and each key of the authority.
    fn decide(&mut self) {
        let identity = self.identity();
        let (own, charter) = (identity.membership(), identity.trust().charter());
        // By the whole certificate: two may have been issued within one second.
        let decided_for = (Some(own.clone()), charter.number());
        if self.decided_for == decided_for {
            return;
        }
        self.decided_for = decided_for;
        self.pause = RETRY_FIRST;
        let (now, end) = (ambient::unix_now(), identity.trust().end_of(&own));
        self.due = if own.signer() == charter.newest() {
            let life = end.0.saturating_sub(own.issued.0);
            let percent = DUE_PERCENT + self.below(DUE_SPREAD_PERCENT);
            UnixTime(own.issued.0.saturating_add(life.saturating_mul(percent) / 100))
        } else {
            let left = end.0.saturating_sub(now.0);
            UnixTime(now.0.saturating_add(left / ROTATED_PAUSE_SHARE + self.below(left / ROTATED_SHARE)))
        };
        tracing::debug!(due = %self.due, expires = %end, "the next renewal of this node's certificate");
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.generator.below(usize::try_from(bound).unwrap_or(usize::MAX)) as u64
    }

    async fn attempt(&mut self, now: UnixTime) {
        match self.renew(now).await {
            Ok(()) => {
                let identity = self.identity();
                tracing::info!(expires = %identity.membership().expires, "the certificate was renewed");
            }
            Err(error) => {
                let end = self.identity().trust().end_of(&self.identity().membership());
                if let Some(held_back) = self.warned.pass() {
                    if now >= end {
                        tracing::error!(%error, lapsed = %end, held_back, "this node's membership has lapsed");
                    } else {
                        tracing::warn!(%error, expires = %end, held_back, "the certificate was not renewed yet");
                    }
                }
                // Never longer than a tenth of what is left, so that many attempts fit in.
                let left = Duration::from_secs(end.0.saturating_sub(now.0) / 10).max(RETRY_FIRST);
                let hopeless = matches!(error, Failure::Revoked { .. } | Failure::TooLate { .. });
                let longest = if hopeless || now >= end { RETRY_LATER } else { RETRY_LATER.min(left) };
                self.pause = if hopeless { RETRY_LATER } else { (self.pause * 2).min(longest) };
                let jitter = self.below(self.pause.as_secs() / 2 + 1);
                self.due = ambient::unix_now().after(self.pause / 2 + Duration::from_secs(jitter));
            }
        }
    }

    async fn renew(&mut self, now: UnixTime) -> Result<(), Failure> {
        let identity = self.identity();
        if let Some(office) = self.renewing.office.clone() {
            let newest = identity.trust().charter().newest();
            if identity.mesh_keys().is_some_and(|keys| keys.public() == newest) {
                let work = tokio::task::spawn_blocking(move || office.renew_own(now));
                return Ok(work.await.map_err(|_| Failure::Lost)??);
            }
        }
        let mut tried = Vec::new();
        let view = (self.renewing.view)().await;
        let lapsed = identity.trust().check(&identity.membership(), now).is_err();
        let own = identity.node();
        let mut known: Vec<_> = view.authorities.into_iter().filter(|(node, _)| *node != own).collect();
        if known.len() > 1 {
            // Those that are up come first; of them all the load is spread.
            let first = usize::try_from(self.below(known.len() as u64)).unwrap_or(0);
            known.rotate_left(first);
        }
        known.truncate(ASKED_MAX);
        if !lapsed && let Some(done) = self.ask_members(&known, &mut tried).await {
            return done;
        }
        match ask_to_renew(&identity, &self.by_name(&known).await).await {
            Ok(renewal) => return apply(identity, renewal).await,
            Err(error) => tried.push(error.to_string()),
        }
        if let Some(dht) = self.renewing.dht.clone().filter(|_| !lapsed) {
            let found = dht.find(DhtKey::authorities(&identity.trust().mesh())).await;
            let found: Vec<_> = found.into_iter().filter(|(node, _)| *node != own).take(ASKED_MAX).collect();
            if let Some(done) = self.ask_members(&found, &mut tried).await {
                return done;
            }
        }
        Err(Failure::Nobody(tried.join("; ")))
    }

    /// Asks authorities over the member plane; `None` when none of them answered.
    async fn ask_members(
        &self,
        authorities: &[(NodeId, SocketAddr)],
        tried: &mut Vec<String>,
    ) -> Option<Result<(), Failure>> {
        for (node, address) in authorities {
            let answer = match self.renewing.endpoint.connection(*node, *address).await {
                Ok(connection) => transfer::renew(&connection).await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match answer {
                Ok(renewal) => match apply(self.identity(), renewal).await {
                    Err(Failure::Nobody(detail)) => tried.push(detail),
                    done => return Some(done),
                },
                Err(detail) => tried.push(detail),
            }
        }
        None
    }

    /// Authorities to ask by name: those of the driver, and those that are stored; each where it was last, and then at the
    /// addresses from the settings, for all machines may have got others.
    async fn by_name(&self, known: &[(NodeId, SocketAddr)]) -> Vec<Contact> {
        let identity = self.identity();
        let mut contacts: Vec<Contact> =
            known.iter().map(|(node, address)| Contact { node: *node, addresses: vec![*address] }).collect();
        let stored = identity.state_dir().and_then(|dir| bootstrap(dir, identity.trust()).ok());
        for (member, addresses) in stored.unwrap_or_default() {
            let new = !contacts.iter().any(|contact| contact.node == member.node);
            if member.role == Role::Authority && new && member.node != identity.node() {
                contacts.push(Contact { node: member.node, addresses });
            }
        }
        contacts.truncate(2 * ASKED_MAX);
        let named = resolve(&self.renewing.names).await;
        for contact in &mut contacts {
            let new = named.iter().filter(|address| !contact.addresses.contains(address)).take(NAMED_MAX);
            let new: Vec<_> = new.copied().collect();
            contact.addresses.extend(new);
        }
        contacts
    }

    /// A node that nobody speaks to may have missed a rotation, and then cannot tell its mesh's members from strangers;
    /// or it was revoked. Members of other cells are held for up until they fail, so what they say counts, too.
    async fn look_whether_alone(&mut self) {
        let view = (self.renewing.view)().await;
        if self.renewing.office.is_some() || (view.up > 0 && !view.refused) {
            self.alone_since = None;
            return;
        }
        let now = ambient::now();
        let since = *self.alone_since.get_or_insert(now);
        if now.since(since) < ALONE {
            return;
        }
        self.alone_since = Some(now + ALONE_PAUSE);
        let identity = self.identity();
        match ask_to_renew(&identity, &self.by_name(&view.authorities).await).await {
            Ok(renewal) => {
                let done = apply(identity, renewal).await;
                tracing::debug!(?done, "asked an authority what was missed");
            }
            Err(error) => tracing::debug!(%error, "asking an authority what was missed"),
        }
    }
}

/// Believes what an authority told, as far as it is signed, and takes the renewed certificate.
async fn apply(identity: Arc<Identity>, renewal: Renewal) -> Result<(), Failure> {
    tokio::task::spawn_blocking(move || apply_now(&identity, renewal)).await.map_err(|_| Failure::Lost)?
}

fn apply_now(identity: &Identity, renewal: Renewal) -> Result<(), Failure> {
    let trust = identity.trust();
    for document in &renewal.documents {
        trust.judge(document, None);
    }
    let now = ambient::unix_now();
    match renewal.reply {
        RenewReply::Granted { certificate, seed } => {
            let renewed = trust.verify(&certificate, now)?;
            identity.renew(renewed, seed.map(|seed| seed.0), now)?;
        }
        RenewReply::Revoked { at } => return Err(Failure::Revoked { at }),
        RenewReply::TooLate { lapsed, grace_s } => return Err(Failure::TooLate { lapsed, grace_s }),
        RenewReply::Unable { detail } => return Err(Failure::Nobody(detail)),
    }
    if let Some(state_dir) = identity.state_dir() {
        let mut members = vec![renewal.from];
        let own = identity.membership();
        members.extend(renewal.members.into_iter().filter(|member| member.certificate != own.bytes()[..]));
        members.truncate(MEMBERS_PER_FRAME);
        if let Err(error) = store_bootstrap(state_dir, &members) {
            tracing::warn!(%error, "the members to begin with were not stored");
        }
    }
    Ok(())
}

/// Shows the peers of live connections the renewed certificate, so that the connections outlive the old one. A peer
/// that is not reached closes its connection when the old one ends, and is dialled again.
async fn show_all(endpoint: &Endpoint) {
    let certificate = endpoint.identity().membership().bytes().to_vec();
    let mut showing = JoinSet::new();
    for connection in endpoint.one_of_each() {
        if showing.len() >= SHOWN_AT_ONCE {
            showing.join_next().await;
        }
        let certificate = certificate.clone();
        showing.spawn(async move {
            if let Err(error) = transfer::show(&connection, certificate).await {
                tracing::debug!(peer = ?connection, %error, "showing the renewed certificate");
            }
        });
    }
    while showing.join_next().await.is_some() {}
}
