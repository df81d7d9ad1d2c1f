//! The office of an authority: it certifies, renews, revokes, rotates and issues tickets.
//!
//! A role of an agent, not a process of its own: the authority is a member like others, reached over the
//! same port, found by its certificate. There may be several, and each acts alone: all hold the same key, a
//! certificate says all that is needed to renew it, and a ticket is for the authority that issued it.

use super::authority::MeshKeys;
use super::charter::{Charter, Overlap};
use super::identity::{Identity, IdentityError};
use super::membership::{
    CERTIFICATE_LIFE, CERTIFICATE_LIFE_MAX, CERTIFICATE_LIFE_MIN, Membership, MembershipCert,
    MembershipError, Role, Scope,
};
use super::mesh_trust::{MeshTrust, REVOCATION_SPAN};
use super::revocation::{Revocation, Revocations};
use super::ticket::{Contact, Terms, Ticket, TicketError, TicketKey};
use super::wire::{RenewReply, Secret};
use crate::model::{CellLabel, NodeId, UnixTime};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A certificate younger than this share of its life is not renewed: a member in a loop costs nothing.
const YOUNG_SHARE: u32 = 10;

/// How an authority certifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfficeConfig {
    /// Life of a certificate, from [`CERTIFICATE_LIFE_MIN`] to [`CERTIFICATE_LIFE_MAX`].
    pub life: Duration,
    /// How long after it lapsed a certificate can still be renewed, at most [`CERTIFICATE_LIFE_MAX`]: what a fleet
    /// needs that was switched off.
    pub grace: Duration,
}

impl Default for OfficeConfig {
    fn default() -> Self {
        Self { life: CERTIFICATE_LIFE, grace: Duration::from_secs(7 * 86_400) }
    }
}

impl OfficeConfig {
    /// For how long after its issue a certificate may be renewed: life and grace, and not less than the longest ticket counts.
    /// (The last is for certificates of an earlier, longer life.)
    fn renewable(&self) -> Duration {
        self.life.saturating_add(self.grace).max(CERTIFICATE_LIFE_MAX)
    }
}

/// What an office did, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

#[derive(Debug, Default)]
pub(super) struct OfficeCounters {
    pub(super) joined: AtomicU64,
    pub(super) refused: AtomicU64,
    renewed: AtomicU64,
    denied: AtomicU64,
}

/// The office of this node.
#[derive(Debug)]
pub struct Office {
    identity: Arc<Identity>,
    config: OfficeConfig,
    pub(super) counters: OfficeCounters,
}

impl Office {
    /// Opens the office of an authority. Its own certificate is renewed at once if it has to be.
    ///
    /// # Errors
    /// [`IdentityError::NotAnAuthority`]; when the own certificate cannot be renewed: it was revoked, or the state
    /// directory fails.
    pub fn open(identity: Arc<Identity>, config: OfficeConfig) -> Result<Arc<Self>, IdentityError> {
        let config = OfficeConfig {
            life: config.life.clamp(CERTIFICATE_LIFE_MIN, CERTIFICATE_LIFE_MAX),
            grace: config.grace.min(CERTIFICATE_LIFE_MAX),
        };
        let office = Self { identity, config, counters: OfficeCounters::default() };
        let now = crate::ambient::unix_now();
        // Whatever ended a rotation half way, its list is signed now. Without it this authority works as well.
        if let Err(error) = office.trust().complete_rotation(&*office.keys()?, now) {
            tracing::error!(%error, "the revocations could not be signed with the newest key");
        }
        let own = office.identity.membership();
        let stale = office.trust().check(&own, now).is_err()
            || own.expires.0.saturating_sub(now.0) > config.life.as_secs();
        if stale {
            office.renew_own(now)?;
        }
        Ok(Arc::new(office))
    }

    fn keys(&self) -> Result<Arc<MeshKeys>, IdentityError> {
        self.identity.mesh_keys().ok_or_else(|| IdentityError::NotAnAuthority(self.identity.node()))
    }

    fn trust(&self) -> &MeshTrust {
        self.identity.trust()
    }

    /// How it certifies.
    pub fn config(&self) -> OfficeConfig {
        self.config
    }

    /// What it did.
    pub fn counts(&self) -> OfficeCounts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        OfficeCounts {
            joined: get(&counters.joined),
            refused: get(&counters.refused),
            renewed: get(&counters.renewed),
            denied: get(&counters.denied),
        }
    }

    pub(super) fn ticket_key(&self) -> TicketKey {
        self.identity.key().ticket_key()
    }

    pub(super) fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Certifies a member. Whether it may be one, the caller has decided.
    pub(super) fn certify(
        &self,
        node: NodeId,
        cell: CellLabel,
        role: Role,
        scope: Scope,
        now: UnixTime,
    ) -> Result<MembershipCert, IdentityError> {
        let keys = self.keys()?;
        // A node that is certified after its revocation gets a certificate that the revocation does not cover.
        let issued = self.trust().revocation_of(&node).map_or(now, |entry| entry.earliest_after(now));
        let expires = issued.after(self.config.life);
        Ok(keys.certify(Membership { mesh: keys.mesh(), node, cell, role, scope, issued, expires })?)
    }

    /// The secret key, for another authority.
    pub(super) fn seed_for(&self, role: Role) -> Option<Secret> {
        let keys = (role == Role::Authority).then(|| self.identity.mesh_keys()).flatten()?;
        Some(Secret(*keys.seed()))
    }

    /// Renews a certificate whose signature is right and whose node has proved its name.
    pub(super) fn renew(&self, shown: &MembershipCert, now: UnixTime) -> RenewReply {
        let reply = self.decide(shown, now);
        let counter = match &reply {
            RenewReply::Granted { .. } => &self.counters.renewed,
            _ => &self.counters.denied,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(node = %shown.node, ?reply, "a renewal");
        reply
    }

    fn decide(&self, shown: &MembershipCert, now: UnixTime) -> RenewReply {
        let unable = |detail: String| RenewReply::Unable { detail };
        if let Some(entry) = self.trust().revoked(&shown.node, shown.issued) {
            return RenewReply::Revoked { at: entry.at };
        }
        let newest = self.trust().charter().newest();
        match self.identity.mesh_keys() {
            Some(keys) if keys.public() == newest => {}
            _ => return unable("this authority does not hold the newest key".into()),
        }
        // With the key that retires anybody who stole it certifies himself as an authority: the new key must not follow.
        if shown.role == Role::Authority && shown.signer() != newest {
            return unable(
                "signed by a key that was rotated away: this authority needs a new ticket (`starling mesh invite \
                 --role authority`)"
                    .into(),
            );
        }
        let lapsed = self.trust().end_of(shown);
        let grace_s = self.config.grace.as_secs();
        // Not later than a revocation is listed that would have ended it.
        let last = shown.issued.after(self.config.renewable());
        if now.0 >= lapsed.0.saturating_add(grace_s) || now >= last {
            return RenewReply::TooLate { lapsed, grace_s };
        }
        let young =
            UnixTime(shown.issued.0.saturating_add(self.config.life.as_secs() / u64::from(YOUNG_SHARE)));
        let ahead = shown.issued > now;
        if shown.signer() == newest && now < young && !ahead {
            return unable(format!("the certificate is new: ask again after {young}"));
        }
        let (cell, scope) = (shown.cell.clone(), shown.scope.clone());
        match self.certify(shown.node, cell, shown.role, scope, now) {
            Ok(renewed) => RenewReply::Granted {
                certificate: renewed.bytes().to_vec(),
                seed: self.seed_for(renewed.role),
            },
            Err(error) => unable(error.to_string()),
        }
    }

    /// Renews this authority's own certificate. Waits for the disk.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub(super) fn renew_own(&self, now: UnixTime) -> Result<(), IdentityError> {
        let own = self.identity.membership();
        // It could certify itself anew with the key that it holds; an honest one heeds the others' decision.
        if let Some(entry) = self.trust().revoked(&own.node, own.issued) {
            return Err(MembershipError::Revoked { node: own.node, at: entry.at }.into());
        }
        let renewed = self.certify(own.node, own.cell.clone(), own.role, own.scope.clone(), now)?;
        self.identity.renew(renewed, None, now)
    }

    /// Issues a ticket that counts from `now` for `span`; see [`Terms`].
    ///
    /// # Errors
    /// [`TicketError`] names what is out of bounds.
    pub fn issue(&self, addresses: Vec<std::net::SocketAddr>, terms: Terms) -> Result<Ticket, TicketError> {
        let now = terms.issued;
        // Later than every revocation: what tells it from a ticket that a revocation made void.
        let newest = self.trust().revocations().entries().map(|entry| entry.at).max();
        let issued = newest.map_or(now, |at| now.max(UnixTime(at.0.saturating_add(1))));
        // What cannot be certified is found out now, and not by the joiner.
        let cell = terms.cell.clone().unwrap_or_else(|| self.identity.membership().cell.clone());
        self.certify(self.identity.node(), cell, terms.role, terms.scope.clone(), now).map_err(|error| {
            match error {
                IdentityError::Membership(error) => TicketError::Membership(error),
                other => TicketError::Membership(MembershipError::Malformed { detail: other.to_string() }),
            }
        })?;
        let contact = Contact { node: self.identity.node(), addresses };
        Ticket::issue(&self.ticket_key(), self.trust().mesh(), vec![contact], Terms { issued, ..terms })
    }

    /// Revokes a node: believed and durable here when this returns; then to be spread as news.
    ///
    /// # Errors
    /// [`IdentityError::Trust`] when the list is full or the disk fails.
    pub fn revoke(&self, node: NodeId, reason: String, now: UnixTime) -> Result<Revocations, IdentityError> {
        // As long as any authority may renew a certificate from before, however it is set, and whatever it will be set to.
        let until = now.after(REVOCATION_SPAN);
        let entry = Revocation { node, at: now, until, reason };
        let list = self.trust().sign_revocations(&*self.keys()?, [entry], now)?;
        tracing::info!(%node, number = list.number(), "a node was revoked");
        Ok(list)
    }

    /// Rotates the authority's key: durable here when this returns. `overlap` is how long the old key counts.
    /// [`Office::complete_rotation`] and [`Office::settle_key`] are to follow.
    ///
    /// # Errors
    /// [`IdentityError::Trust`] when this authority does not hold the newest key, or a rotation is under way; the state
    /// directory. Nothing has changed then.
    pub fn rotate(&self, overlap: impl Into<Overlap>, now: UnixTime) -> Result<Charter, IdentityError> {
        // This node goes on showing its certificate of the old key for a while, as all others do: who has not heard
        // of the new key yet must be able to hear of it from here.
        let charter = self.identity.rotate(overlap, now)?;
        tracing::info!(key = charter.number(), "the authority's key was rotated");
        Ok(charter)
    }

    /// Signs the revocations with the newest key (also where there are none: from then on no list of the old key counts), unless
    /// that was done. The next start does it, if this one cannot.
    ///
    /// # Errors
    /// [`IdentityError::Trust`] when the disk fails.
    pub fn complete_rotation(&self, now: UnixTime) -> Result<Option<Revocations>, IdentityError> {
        Ok(self.trust().complete_rotation(&*self.keys()?, now)?)
    }

    /// Puts the newest key where the next start looks for it first. The next start does it, if this one cannot.
    ///
    /// # Errors
    /// [`IdentityError::State`].
    pub fn settle_key(&self) -> Result<(), IdentityError> {
        Ok(self.identity.settle_key()?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::identity::tests::TestMesh;
    use super::*;
    use crate::ambient::unix_now;

    fn office(mesh: &TestMesh) -> Arc<Office> {
        let config = OfficeConfig { life: Duration::from_secs(100), grace: Duration::from_secs(50) };
        Office::open(mesh.authority(), config).unwrap()
    }

    fn certificate(office: &Office, age_s: u64) -> MembershipCert {
        let issued = UnixTime(unix_now().0 - age_s);
        let scope = Scope::Only(vec!["sw.example.org".parse().unwrap()]);
        office.certify(NodeId([4; 32]), "eu/a/r1".parse().unwrap(), Role::Seed, scope, issued).unwrap()
    }

    #[test]
    fn a_renewed_certificate_says_the_same_for_another_life() {
        let mesh = TestMesh::new();
        let office = office(&mesh);
        let (shown, now) = (certificate(&office, 50), unix_now());
        let RenewReply::Granted { certificate, seed } = office.renew(&shown, now) else { panic!() };
        let renewed = mesh.trust().verify(&certificate, now).unwrap();
        let said = |m: &Membership| (m.node, m.cell.clone(), m.role, m.scope.clone());
        assert_eq!(said(&renewed), said(&shown));
        assert_eq!((renewed.expires, seed), (now.after(Duration::from_secs(100)), None));
    }

    #[test]
    fn a_lapsed_certificate_is_renewed_within_the_grace_and_not_after_it() {
        let mesh = TestMesh::new();
        let office = office(&mesh);
        let now = unix_now();
        assert!(matches!(office.renew(&certificate(&office, 149), now), RenewReply::Granted { .. }));
        let late = office.renew(&certificate(&office, 151), now);
        assert!(matches!(late, RenewReply::TooLate { grace_s: 50, .. }), "{late:?}");
    }

    #[test]
    fn a_new_certificate_is_not_renewed_but_one_of_the_old_key_is() {
        let mesh = TestMesh::new();
        let office = office(&mesh);
        let (shown, now) = (certificate(&office, 1), unix_now());
        assert!(matches!(office.renew(&shown, now), RenewReply::Unable { .. }));
        let charter = office.rotate(Duration::from_secs(200), now).unwrap();
        let list = office.complete_rotation(now).unwrap().unwrap();
        assert_eq!((list.number(), list.entries().count()), (1, 0));
        assert!(office.complete_rotation(now).unwrap().is_none(), "once");
        let RenewReply::Granted { certificate, .. } = office.renew(&shown, now) else { panic!() };
        let renewed = office.trust().verify(&certificate, now).unwrap();
        assert_eq!(renewed.signer(), charter.newest());
        assert_ne!(office.identity.membership().signer(), charter.newest(), "others must hear of it first");
        assert_eq!(office.counts(), OfficeCounts { renewed: 1, denied: 1, ..Default::default() });
    }

    #[test]
    fn a_rotation_that_ended_half_way_is_completed_at_the_next_start() {
        let mesh = TestMesh::new();
        let office = office(&mesh);
        let reopen = || Office::open(office.identity.clone(), office.config).unwrap();
        assert_eq!(reopen().trust().revocations().number(), 0, "there was no rotation");
        office.rotate(Duration::from_secs(200), unix_now()).unwrap();
        assert_eq!(office.trust().revocations().number(), 0);
        let again = reopen();
        assert_eq!(again.trust().revocations().number(), 1);
        assert!(!again.trust().revocations().lacks_newest_key(&again.trust().charter()));
    }

    #[test]
    fn the_new_key_is_not_given_to_an_authority_that_the_old_one_certified() {
        let mesh = TestMesh::new();
        let (office, now) = (office(&mesh), unix_now());
        let authority = |signed: &Office| {
            let (cell, issued) = ("eu/a/r1".parse().unwrap(), UnixTime(now.0 - 50));
            signed.certify(NodeId([5; 32]), cell, Role::Authority, Scope::All, issued).unwrap()
        };
        let forged = authority(&office);
        office.rotate(Duration::from_secs(200), now).unwrap();
        assert_eq!(office.trust().check(&forged, now), Ok(()), "the old key still counts");
        let RenewReply::Unable { detail } = office.renew(&forged, now) else { panic!("it got the key") };
        assert!(detail.contains("rotated away") && detail.contains("--role authority"), "{detail}");
        let newest = *office.keys().unwrap().seed();
        let RenewReply::Granted { seed, .. } = office.renew(&authority(&office), now) else { panic!() };
        assert_eq!(seed, Some(Secret(newest)), "one that the new key certified is given it");
        office.renew_own(now).unwrap();
        assert_eq!(office.identity.membership().signer(), office.trust().charter().newest());
    }

    #[test]
    fn a_revoked_member_is_not_renewed_and_after_a_new_invitation_it_is() {
        let mesh = TestMesh::new();
        let office = office(&mesh);
        let (shown, now) = (certificate(&office, 50), unix_now());
        office.revoke(shown.node, "stolen".into(), now).unwrap();
        assert_eq!(office.renew(&shown, now), RenewReply::Revoked { at: now });
        let again = certificate(&office, 0);
        assert_eq!(office.trust().check(&again, now), Ok(()));
        assert!(matches!(office.renew(&again, now), RenewReply::Granted { .. }));
    }

    #[test]
    fn a_revocation_is_listed_as_long_as_anything_from_before_it_can_count_at_any_authority() {
        let day = |days: u64| Duration::from_secs(days * 86_400);
        let mesh = TestMesh::new();
        let office = office(&mesh);
        let now = unix_now();
        let list = office.revoke(NodeId([4; 32]), String::new(), now).unwrap();
        assert_eq!(list.of(&NodeId([4; 32])).unwrap().until, now.after(day(60)));
        // Another authority, or this one with other settings, renews longest what was issued a moment before.
        let longest = OfficeConfig { life: day(30), grace: day(30) };
        assert!(longest.renewable() <= day(60));
        // From a time with a longer life: expired yesterday, and too old for what a list still says.
        let statement = Membership {
            issued: UnixTime(now.0 - day(30).as_secs()),
            expires: now,
            ..mesh.statement(NodeId([6; 32]))
        };
        let old = mesh.keys().certify(statement).unwrap();
        assert!(matches!(office.renew(&old, now), RenewReply::TooLate { .. }));
    }

    #[test]
    fn a_revoked_authority_keeps_its_office_closed() {
        let (mesh, config) = (TestMesh::new(), OfficeConfig::default());
        let (own, now) = (mesh.authority(), unix_now());
        own.trust().revoke(&mesh.keys(), own.node(), String::new(), now).unwrap();
        let error = Office::open(own, config).unwrap_err();
        assert!(matches!(error, IdentityError::Membership(MembershipError::Revoked { .. })), "{error}");
    }

    #[test]
    fn another_authority_is_given_the_key_and_a_member_is_not() {
        let mesh = TestMesh::new();
        let office = office(&mesh);
        assert_eq!(office.seed_for(Role::Authority), Some(Secret(mesh.seed)));
        assert_eq!((office.seed_for(Role::Member), office.seed_for(Role::Seed)), (None, None));
        assert_eq!(format!("{:?}", Secret(mesh.seed)), "Secret");
        assert!(Office::open(mesh.member(), OfficeConfig::default()).is_err());
    }
}
