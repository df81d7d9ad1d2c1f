//! What the control API can ask about the mesh's members, and of its authority.

use super::api::{
    AuthorityStatus, DroppedKey, Invitation, InviteRequest, MemberInfo, Members, OfficeCounts, Refusal,
    RefusalKind, RevokeRequest, Revoked, RotateRequest, Rotated,
};
use super::node::{Membership, Node};
use crate::ambient;
use crate::config::leads_somewhere;
use crate::mesh::{
    AuthorityKey, CERTIFICATE_LIFE_MAX, CERTIFICATE_LIFE_MIN, COUNTING_MAX, CharterError, DROP_NOTICE,
    IdentityError, MemberStatus, MeshTrust, NEWEST_KEY_REMEDY, News, NewsVerdict, Office, Overlap,
    RevocationError, Role, Scope, Terms, TrustChangeError,
};
use crate::model::{NodeId, UnixTime};
use crate::trust::{RepositoryCard, SignedCard};
use std::sync::Arc;
use std::time::Duration;

/// Longest validity of a ticket, in seconds: 30 days. Who holds it may join until then.
const TICKET_MAX_S: u64 = CERTIFICATE_LIFE_MAX.as_secs();
/// Shortest overlap of two authority keys, in seconds: the members fetch new certificates within three eighths of it. Those
/// that cannot are renewed late.
const OVERLAP_MIN_S: u64 = CERTIFICATE_LIFE_MIN.as_secs();
/// Longest overlap of two authority keys, in seconds: twice the longest life of a certificate.
const OVERLAP_MAX_S: u64 = 2 * CERTIFICATE_LIFE_MAX.as_secs();

impl Node {
    fn member(&self) -> Result<&Membership, Refusal> {
        self.membership.as_ref().ok_or_else(|| match self.waits_for_restart() {
            Some(trouble) => Refusal::new(RefusalKind::NotAllowed, trouble),
            None => Refusal::new(RefusalKind::NotAllowed, "this node is not a member of a mesh")
                .hint("`starling mesh init` makes a mesh, `starling join` enters one"),
        })
    }

    fn office(&self) -> Result<(&Membership, &Arc<Office>), Refusal> {
        let membership = self.member()?;
        let office = membership.office.as_ref().ok_or_else(|| {
            Refusal::new(RefusalKind::NotAllowed, "this node is not an authority of the mesh")
                .hint("ask on one: `starling mesh authority` names those that this node knows")
        })?;
        Ok((membership, office))
    }

    pub(super) async fn member_list(&self) -> Result<Members, Refusal> {
        let membership = self.member()?;
        let trust = membership.identity.trust();
        let own = MemberStatus {
            membership: membership.identity.membership(),
            address: membership.address(),
            up: true,
            connections: 0,
        };
        let others = self.mesh.members().await;
        let mut members: Vec<MemberInfo> = others.iter().map(|member| info(member, trust)).collect();
        members.push(MemberInfo { this: true, ..info(&own, trust) });
        members.sort_by(|a, b| (&a.cell, a.node).cmp(&(&b.cell, b.node)));
        let list = trust.revocations();
        let revoked = list
            .entries()
            .map(|entry| Revoked {
                node: entry.node,
                at: entry.at,
                until: entry.until,
                reason: entry.reason.clone(),
                number: list.number(),
                authority: false,
            })
            .collect();
        Ok(Members { members, revoked })
    }

    pub(super) async fn authority_status(&self) -> Result<AuthorityStatus, Refusal> {
        let membership = self.member()?;
        let trust = membership.identity.trust();
        let (charter, list) = (trust.charter(), trust.revocations());
        let now = ambient::unix_now();
        let authorities = self.member_list().await?.members.into_iter();
        Ok(AuthorityStatus {
            mesh: trust.mesh().to_string(),
            key_number: charter.number(),
            key: data_encoding::HEXLOWER.encode(&charter.newest().to_bytes()),
            old_keys_until: charter.overlap_until().filter(|until| *until > now),
            key_problem: membership.identity.key_problem(now),
            revocations: list.number(),
            revoked: list.entries().filter(|entry| entry.until > now).count(),
            authorities: authorities.filter(|member| member.role == Role::Authority).collect(),
            certificate_life_s: membership.office.as_ref().map(|office| office.config().life.as_secs()),
            renewal_grace_s: membership.office.as_ref().map(|office| office.config().grace.as_secs()),
            counts: membership.office.as_ref().map(|office| {
                let counts = office.counts();
                OfficeCounts {
                    joined: counts.joined,
                    refused: counts.refused,
                    renewed: counts.renewed,
                    denied: counts.denied,
                }
            }),
        })
    }

    pub(super) fn make_ticket(&self, request: InviteRequest) -> Result<Invitation, Refusal> {
        let (membership, office) = self.office()?;
        let invalid = |message: &dyn std::fmt::Display| Refusal::new(RefusalKind::Invalid, message);
        if !(1..=TICKET_MAX_S).contains(&request.expires_s) {
            let message =
                format!("a ticket counts for 1 to {TICKET_MAX_S} seconds, not {}", request.expires_s);
            return Err(invalid(&message));
        }
        let role = request.role.unwrap_or(Role::Member);
        if role == Role::Authority && !request.repositories.is_empty() {
            return Err(invalid(&"an authority may read everything: it can grant itself any scope")
                .hint("leave --repo away, or invite a member"));
        }
        let problem = membership.identity.key_problem(ambient::unix_now());
        if let Some(problem) = problem.filter(|_| role == Role::Authority) {
            let message = format!("this node cannot make another an authority: {problem}");
            return Err(Refusal::new(RefusalKind::Conflict, message).hint(NEWEST_KEY_REMEDY));
        }
        if let Some(bad) = request.addresses.iter().find(|address| !leads_somewhere(address)) {
            return Err(invalid(&format!("a ticket with the address {bad} leads nowhere"))
                .hint("give an address and a port of this node that joiners can reach"));
        }
        let addresses =
            if request.addresses.is_empty() { membership.places.all() } else { request.addresses };
        let now = ambient::unix_now();
        let expires = now.after(Duration::from_secs(request.expires_s));
        let terms = Terms {
            issued: now,
            expires,
            uses: request.uses.unwrap_or(1),
            role,
            scope: Scope::of_names(request.repositories).map_err(|error| invalid(&error))?,
            cell: request.cell,
        };
        let ticket = office.issue(addresses.clone(), terms).map_err(|error| invalid(&error))?;
        let terms = ticket.terms();
        Ok(Invitation {
            ticket: ticket.to_string(),
            expires,
            addresses,
            uses: terms.uses,
            role: terms.role,
            repositories: terms.scope.names().map(<[_]>::to_vec),
            cell: terms.cell.clone(),
        })
    }

    pub(super) async fn revoke_member(&self, request: RevokeRequest) -> Result<Revoked, Refusal> {
        let (membership, office) = self.office()?;
        if request.node == membership.identity.node() {
            return Err(Refusal::new(RefusalKind::Invalid, "an authority cannot revoke itself")
                .hint("revoke it on another authority, and rotate the key there: it knows it"));
        }
        let authority = self.is_authority(&request.node).await;
        let (office, node) = (office.clone(), request.node);
        // It waits for the disk.
        let work = move || office.revoke(node, request.reason, ambient::unix_now());
        let list = tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| lost(&error))?
            .map_err(|error| refused(&error, membership.identity.trust()))?;
        self.mesh.spread(News::Revocations(list.bytes().to_vec())).await;
        let entry = list.entries().find(|entry| entry.node == node);
        let entry = entry.ok_or_else(|| Refusal::new(RefusalKind::Internal, "the list lacks the node"))?;
        let (at, until, reason) = (entry.at, entry.until, entry.reason.clone());
        Ok(Revoked { node, at, until, reason, number: list.number(), authority })
    }

    async fn is_authority(&self, node: &NodeId) -> bool {
        let members = self.mesh.members().await;
        members.iter().any(|m| m.membership.node == *node && m.membership.role == Role::Authority)
    }

    pub(super) async fn rotate_key(&self, request: RotateRequest) -> Result<Rotated, Refusal> {
        let (membership, office) = self.office()?;
        let trust = membership.identity.trust();
        let overlap_s = request.overlap_s.unwrap_or(2 * office.config().life.as_secs());
        if !(OVERLAP_MIN_S..=OVERLAP_MAX_S).contains(&overlap_s) {
            let message =
                format!("an overlap of {overlap_s} s: from {OVERLAP_MIN_S} to {OVERLAP_MAX_S} s is possible");
            return Err(Refusal::new(RefusalKind::Invalid, message));
        }
        let now = ambient::unix_now();
        let dropped = trust.charter().next_dropped(now).filter(|_| request.drop_oldest);
        let overlap = Overlap { span: Duration::from_secs(overlap_s), drop_oldest: request.drop_oldest };
        let working = office.clone();
        let work = move || working.rotate(overlap, now);
        let rotated = tokio::task::spawn_blocking(work).await.map_err(|error| lost(&error))?;
        let charter = rotated.map_err(|error| refused(&error, trust))?;
        // The charter first: by it the others are judged. It is out whatever becomes of the rest.
        self.mesh.spread(News::Charter(charter.bytes().to_vec())).await;
        let working = office.clone();
        let work = move || (working.complete_rotation(now), working.settle_key());
        let (listed, settled) = tokio::task::spawn_blocking(work).await.map_err(|error| lost(&error))?;
        let cards = self.sign_cards_anew().await;
        let dropped = match dropped {
            Some(key) => Some(self.dropped(key, charter.number_of(&key), now.after(DROP_NOTICE)).await),
            None => None,
        };
        if let Some(list) = listed.map_err(|error| half_rotated(&error))? {
            self.mesh.spread(News::Revocations(list.bytes().to_vec())).await;
        }
        settled.map_err(|error| half_rotated(&error))?;
        Ok(Rotated {
            key_number: charter.number(),
            key: data_encoding::HEXLOWER.encode(&charter.newest().to_bytes()),
            old_keys_until: charter.overlap_until().unwrap_or_default(),
            cards,
            dropped,
        })
    }

    /// A key that retires soon, and whom that concerns.
    async fn dropped(&self, key: AuthorityKey, key_number: usize, at: UnixTime) -> DroppedKey {
        let members = self.mesh.members().await;
        DroppedKey {
            key_number,
            at,
            members: members.iter().filter(|m| m.membership.signer() == key).count(),
        }
    }

    /// Signs the cards that the authority vouches for with the newest key, so that they outlive the old one.
    async fn sign_cards_anew(&self) -> usize {
        let Ok((membership, _)) = self.office() else { return 0 };
        let Some(keys) = membership.identity.mesh_keys() else { return 0 };
        let mut signed = 0;
        for bytes in self.registry.signed_cards() {
            let Ok(card) = SignedCard::read_stored(&bytes) else { continue };
            let issued = ambient::unix_now().max(UnixTime(card.issued.0.saturating_add(1)));
            match keys.sign_card(&RepositoryCard { issued, ..card }) {
                Ok(anew) => {
                    let verdict = self.mesh.announce_local(News::Card(anew)).await;
                    signed += usize::from(verdict == NewsVerdict::Fresh);
                }
                Err(error) => tracing::error!(%error, "a card could not be signed anew"),
            }
        }
        signed
    }
}

fn info(member: &MemberStatus, trust: &MeshTrust) -> MemberInfo {
    let MemberStatus { membership, address, up, connections } = member;
    MemberInfo {
        node: membership.node,
        cell: membership.cell.clone(),
        role: membership.role,
        repositories: membership.scope.names().map(<[_]>::to_vec),
        issued: membership.issued,
        expires: membership.expires,
        up: *up,
        revoked: trust.revoked(&membership.node, membership.issued).is_some(),
        address: *address,
        connections: *connections,
        this: false,
    }
}

fn lost(error: &tokio::task::JoinError) -> Refusal {
    Refusal::new(RefusalKind::Internal, format!("the agent failed at it: {error}"))
}

fn half_rotated(error: &IdentityError) -> Refusal {
    let message = format!(
        "the key was rotated and the new one counts, but not all that follows could be stored: {error}"
    );
    Refusal::new(RefusalKind::Internal, message).hint(
        "do not rotate again: make room on the disk and restart the agent, which does the rest when it starts; until then \
         keep `authority.key.next` of its state folder, which holds the new key",
    )
}

fn refused(error: &IdentityError, trust: &MeshTrust) -> Refusal {
    let kind = match error {
        IdentityError::Trust(TrustChangeError::Charter(_) | TrustChangeError::Revocation(_)) => {
            RefusalKind::Conflict
        }
        IdentityError::NotAnAuthority(_) => RefusalKind::NotAllowed,
        _ => RefusalKind::Internal,
    };
    let refusal = Refusal::new(kind, error);
    let IdentityError::Trust(error) = error else { return refusal };
    match error {
        TrustChangeError::Charter(CharterError::NotNewest { .. })
        | TrustChangeError::Revocation(RevocationError::OlderKey) => refusal.hint(format!(
            "do it on the authority that rotated; this one never gets the newest key by itself: {NEWEST_KEY_REMEDY}"
        )),
        // While one is on notice already, there is nothing to do but to wait.
        TrustChangeError::Charter(CharterError::Overlapping { counting: COUNTING_MAX, .. }) => refusal.hint(
            "if a key was stolen, do not wait: `starling mesh rotate --drop-oldest` retires the oldest of them within six minutes",
        ),
        TrustChangeError::Revocation(RevocationError::TooMany { .. }) => {
            let first = trust.revocations().entries().map(|entry| entry.until).min().unwrap_or_default();
            refusal.hint(format!(
                "`starling mesh members --revoked` lists them; the first leaves the list at {first}. Nodes that are only \
                 retired need no revocation: stopped, they are out when their certificates end"
            ))
        }
        _ => refusal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::{Charter, MeshKeys, REVOKED_MAX};

    #[test]
    fn what_is_refused_says_what_to_do_instead() {
        let trust = MeshTrust::in_memory(Charter::founded_by(MeshKeys::generate().public()));
        let hint = |error: TrustChangeError| refused(&IdentityError::Trust(error), &trust).hint.unwrap();
        for outrun in [
            TrustChangeError::Charter(CharterError::NotNewest { number: 2 }),
            TrustChangeError::Revocation(RevocationError::OlderKey),
        ] {
            let said = hint(outrun);
            assert!(said.contains("--role authority") && said.contains("--force"), "{said}");
        }
        let crowded = CharterError::Overlapping { counting: 3, until: UnixTime(1) };
        assert!(hint(TrustChangeError::Charter(crowded)).contains("--drop-oldest"));
        let full = RevocationError::TooMany { count: REVOKED_MAX + 1 };
        assert!(hint(TrustChangeError::Revocation(full)).contains("--revoked"));
    }
}
