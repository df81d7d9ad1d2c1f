//! Which figures are shown as metrics, and in whose books they stand.

use super::api::{MountStatus, Peers};
use super::metrics::{Family, encode};
use super::node::{Membership, Node};
use crate::ambient;
use crate::cache::{ByOrigin, CacheStatistics};
use crate::mesh::proto::Counts;
use crate::mesh::{MeshCounts, Passed};
use std::sync::atomic::{AtomicU64, Ordering};

/// All metrics in Prometheus' text format.
pub(super) fn text(node: &Node, peers: &Peers) -> String {
    let mut families = vec![
        Family::gauge("uptime", "Time since the agent started.")
            .seconds()
            .is((ambient::now() - node.started).as_secs()),
        members(node, peers),
        mounts(&node.mounts.list()),
        Family::counter("read_errors", "Reads that failed because no source delivered in time.")
            .is(node.reads.failed()),
    ];
    families.extend(cache(&node.cache.statistics()));
    families.extend(mesh(&node.mesh.counts()));
    families.extend([offences(node), door(node)]);
    families.extend(limits(&node.mesh.passed()));
    families.extend(node.membership.as_ref().map(membership).unwrap_or_default());
    families.extend(directory(node));
    encode(families)
}

fn members(node: &Node, peers: &Peers) -> Family {
    let up = peers.peers.iter().filter(|peer| peer.up).count() as u64;
    let own = u64::from(node.membership.is_some());
    Family::gauge("members", "Members of the mesh as this node sees them, itself included.")
        .with("state", "up", up + own)
        .with("state", "down", peers.peers.len() as u64 - up)
}

/// What ends, and who ended it.
fn membership(membership: &Membership) -> Vec<Family> {
    let trust = membership.identity.trust();
    let left = trust.end_of(&membership.identity.membership()).0.saturating_sub(ambient::unix_now().0);
    let mut families = vec![
        Family::gauge("certificate_left", "Time until this node's certificate ends; 0 once it has lapsed.")
            .seconds()
            .is(left),
        Family::gauge("revoked", "Nodes whose revocation is listed.")
            .is(trust.revocations().entries().count() as u64),
        Family::gauge("authority_key", "Number of the authority's newest key that this node knows.")
            .is(trust.charter().number() as u64),
    ];
    if let Some(office) = &membership.office {
        let counts = office.counts();
        families.push(
            Family::counter("certifications", "What this node decided as an authority.")
                .with("kind", "joined", counts.joined)
                .with("kind", "refused", counts.refused)
                .with("kind", "renewed", counts.renewed)
                .with("kind", "denied", counts.denied),
        );
    }
    families
}

fn mounts(mounts: &[MountStatus]) -> Family {
    let count = |which: fn(&MountStatus) -> bool| mounts.iter().filter(|mount| which(mount)).count() as u64;
    Family::gauge("mounts", "Mounts of this agent; those whose root has expired read on.")
        .with("state", "active", count(|m| m.problem.is_none() && !m.expired))
        .with("state", "expired", count(|m| m.problem.is_none() && m.expired))
        .with("state", "failed", count(|m| m.problem.is_some()))
}

/// One figure for each origin.
fn by_origin<T>(family: Family, figures: &ByOrigin<T>, figure: fn(&T) -> u64) -> Family {
    family
        .with("source", "cache", figure(&figures.cache))
        .with("source", "peers", figure(&figures.peers))
        .with("source", "strata", figure(&figures.strata))
}

fn cache(cache: &CacheStatistics) -> Vec<Family> {
    vec![
        by_origin(
            Family::counter(
                "obtained",
                "Plain bytes of distinct chunks and catalogs, by where each was first obtained.",
            )
            .bytes(),
            &cache.obtained,
            |count| count.bytes,
        ),
        by_origin(
            Family::counter(
                "obtained_chunks",
                "Distinct chunks and catalogs, by where each was first obtained.",
            ),
            &cache.obtained,
            |count| count.chunks,
        ),
        by_origin(
            Family::counter(
                "cache_delivered",
                "Plain bytes delivered from the cache, by where the chunk had come from.",
            )
            .bytes(),
            &cache.hits,
            |count| count.bytes,
        ),
        Family::counter("cache_misses", "Reads of chunks that the cache did not hold.").is(cache.misses),
        Family::gauge("cache", "Bytes that the cache uses on disk.").bytes().is(cache.bytes),
        Family::gauge("cache_quota", "Bytes that the cache may use on disk.").bytes().is(cache.quota_bytes),
        Family::gauge("cache_chunks", "Chunks in the cache.").is(cache.entries),
        Family::counter("cache_evicted_chunks", "Chunks that left the cache to make room.").is(cache.evicted),
        Family::counter("cache_damaged_chunks", "Chunks that were dropped because their bytes were wrong.")
            .is(cache.damaged),
        Family::gauge("cache_bodies", "Large files whose chunks lie in a file of their own in the cache.")
            .with("state", "complete", cache.bodies_complete)
            .with("state", "partial", cache.bodies.saturating_sub(cache.bodies_complete)),
        Family::counter("cache_scrubbed", "Plain bytes that the slow check of the cache has hashed.")
            .bytes()
            .is(cache.scrubbed.bytes),
        Family::counter("cache_scrub_rounds", "Times that the slow check went through all of the cache.")
            .is(cache.scrub_rounds),
        Family::gauge("cache_paused", "1 while nothing is stored because the disk is full or failing.")
            .is(u64::from(cache.writing_paused)),
    ]
}

/// Every figure of the mesh's own counters.
fn mesh(counts: &MeshCounts) -> Vec<Family> {
    let mut families = traffic(counts);
    families.extend(decisions(&counts.core));
    families
}

/// What went to peers and strata, and what came.
fn traffic(counts: &MeshCounts) -> Vec<Family> {
    vec![
        Family::counter("asks", "Chunks asked of peers, and chunks that peers asked for.")
            .with("direction", "sent", counts.asks_sent)
            .with("direction", "received", counts.asks_received),
        Family::counter("answers", "Answers to peers by kind.")
            .with("kind", "data", counts.answers_data)
            .with("kind", "wait", counts.answers_wait)
            .with("kind", "busy", counts.answers_busy)
            .with("kind", "missing", counts.answers_missing),
        Family::counter("uploaded", "Bytes of chunks sent to peers.").bytes().is(counts.bytes_up),
        Family::counter("downloaded", "Bytes of chunks taken from peers.").bytes().is(counts.bytes_down),
        Family::counter("upstream_chunks", "Chunks taken from strata under this node's lease.")
            .is(counts.upstream_fetches),
        Family::counter("upstream", "Bytes of chunks taken from strata under this node's lease.")
            .bytes()
            .is(counts.upstream_bytes),
        Family::counter("wrong_bytes", "Chunks that peers sent with wrong bytes.").is(counts.wrong_bytes),
        Family::counter("bans", "Peers that were turned away for a while because of what they did.")
            .is(counts.bans),
        Family::counter("told", "Answers without data that peers gave, and silence.")
            .with("kind", "busy", counts.told_busy)
            .with("kind", "missing", counts.told_missing)
            .with("kind", "stall", counts.stalls),
        Family::counter("overload", "Requests of peers turned away because too much was under way.")
            .is(counts.overload),
        Family::counter("news", "Signed documents by what became of them.")
            .with("fate", "fresh", counts.news_fresh)
            .with("fate", "sent", counts.news_sent)
            .with("fate", "dropped", counts.news_dropped)
            .with("fate", "repeated", counts.news_repeated)
            .with("fate", "invalid", counts.news_invalid),
        Family::counter(
            "cell_changes",
            "Times that this node's cell was halved, or joined with another half.",
        )
        .with("kind", "halved", counts.cells_halved)
        .with("kind", "joined", counts.cells_joined),
    ]
}

/// What the core decided.
fn decisions(counts: &Counts) -> Vec<Family> {
    vec![
        Family::counter("homes_failed_over", "Homes asked because those ranked before them had failed.")
            .is(counts.homes_failed_over),
        Family::counter("peeks", "Asks of who may have what this node, a home that is new and empty, lacks.")
            .with("at", "cell", counts.peeks)
            .with("at", "elsewhere", counts.peeks_elsewhere),
        Family::counter("segment_lookups", "Look-ups of who announced a segment.").is(counts.lookups),
        Family::counter("leases", "Fetches from strata under this node's lease, by what became of them.")
            .with("outcome", "taken", counts.leases)
            .with("outcome", "lapsed", counts.leases_lapsed),
        Family::counter("doubts", "Times that a peer was passed over for a while: it delivered nothing.")
            .is(counts.doubts),
        Family::counter(
            "possession_barred",
            "Peers whose claims were ignored for a while: too many were false.",
        )
        .is(counts.possession_barred),
        Family::counter("hedges", "Asks of a second source beside a slow one, by what became of them.")
            .with("outcome", "made", counts.hedges)
            .with("outcome", "won", counts.hedges_won)
            .with("outcome", "held", counts.hedges_held),
        Family::counter("asides", "Wants that stood still for so long that others began in their place.")
            .is(counts.asides),
        Family::counter(
            "possession_messages",
            "What neighbours were told of what is held here, and what they told.",
        )
        .with("kind", "told", counts.possession_told)
        .with("kind", "heard", counts.possession_heard)
        .with("kind", "refused", counts.possession_refused),
        Family::counter("possession_false_claims", "Chunks that a peer claimed to hold and did not have.")
            .is(counts.possession_false),
        Family::counter(
            "copies",
            "Copies for the declared minimum: made here, and asks of others to make one.",
        )
        .with("kind", "made", counts.copies_made)
        .with("kind", "asked", counts.copies_asked),
        Family::counter("origin_delayed_chunks", "Fetches from strata that the origin budget held back.")
            .is(counts.origin_delays),
        Family::counter(
            "origin_spared_chunks",
            "Of those, chunks that a peer delivered before their turn came.",
        )
        .is(counts.origin_spared),
    ]
}

/// What passed between this node and others by class, and how long the node's own limits held it back.
fn limits([up, down]: &[[Passed; 3]; 2]) -> Vec<Family> {
    let by_class = |passed: &[Passed; 3], bytes: Family, wait: Family| {
        let classes = ["read", "prefetch", "fill"].into_iter().zip(passed);
        let (bytes, wait) =
            classes.fold((bytes.bytes(), wait.seconds()), |(bytes, wait), (class, passed)| {
                (bytes.with("class", class, passed.bytes), wait.with_time("class", class, passed.waited))
            });
        [bytes, wait]
    };
    let mut families = Vec::from(by_class(
        up,
        Family::counter("upload_class", "Bytes of chunks sent to peers by how urgent they are."),
        Family::counter("upload_wait", "Time for which uploads were held back by this node's own limit."),
    ));
    families.extend(by_class(
        down,
        Family::counter("download_class", "Bytes of chunks taken from peers by how urgent they are."),
        Family::counter("download_wait", "Time for which downloads were held back by this node's own limit."),
    ));
    families
}

fn offences(node: &Node) -> Family {
    let family = Family::counter("offences", "What peers did that they should not have done.");
    let offences = node.mesh.offences();
    offences.iter().fold(family, |family, (offence, count)| family.with("kind", offence.name(), *count))
}

fn door(node: &Node) -> Family {
    let counts = node.mesh.door_counts();
    Family::counter("connections_in", "Attempts of others to connect, by what became of them.")
        .with("fate", "let_in", counts.let_in)
        .with("fate", "retried", counts.retried)
        .with("fate", "refused", counts.refused)
        .with("fate", "failed", counts.failed)
        .with("fate", "no_common_version", counts.no_common_version)
        .with("fate", "turned_away", counts.turned_away)
}

fn directory(node: &Node) -> Vec<Family> {
    let mut families = Vec::new();
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    if let Some(swim) = node.mesh.swim_counters() {
        families.push(
            Family::counter("membership_datagrams", "Datagrams of the membership protocol.")
                .with("fate", "sent", read(&swim.sent))
                .with("fate", "received", read(&swim.received))
                .with("fate", "dropped", read(&swim.dropped))
                .with("fate", "paced", read(&swim.paced))
                .with("fate", "other_cell", read(&swim.other_cells)),
        );
        families.push(
            Family::counter("membership_claims", "What members said of others that was not simply believed.")
                .with("fate", "doubted", read(&swim.deaths_doubted))
                .with("fate", "ignored", read(&swim.accusations_ignored))
                .with("fate", "survived", read(&swim.own_deaths_survived))
                .with("fate", "unknown", read(&swim.claims_unknown)),
        );
    }
    // Shown as zero without a DHT, so that a look-up of the metric never fails.
    let dht = node.mesh.dht_counters();
    let figure = |pick: fn(&crate::mesh::DhtCounters) -> &AtomicU64| dht.map_or(0, |dht| read(pick(dht)));
    families.extend([
        Family::counter("dht_lookups", "Look-ups in the DHT.").is(figure(|dht| &dht.lookups)),
        Family::counter("dht_announcements", "Announcements that reached at least one node of the DHT.")
            .is(figure(|dht| &dht.announcements)),
        Family::counter("dht_found", "Providers that look-ups found.").is(figure(|dht| &dht.found)),
        Family::counter("dht_refused", "Look-ups and announcements refused because too many were under way.")
            .is(figure(|dht| &dht.refused)),
        Family::gauge("dht_records", "Records of the DHT that this node holds.")
            .is(figure(|dht| &dht.records)),
        Family::gauge("dht_keys", "Keys that this node announces now and again.").is(figure(|dht| &dht.keys)),
        Family::counter("dht_requests", "Requests of others in the DHT that were answered.")
            .is(figure(|dht| &dht.requests)),
        Family::counter("dht_delayed", "Messages in the DHT that waited: their sender had used its rate up.")
            .is(figure(|dht| &dht.delayed)),
        Family::counter(
            "dht_records_refused",
            "Announcements of others that were dropped: too many, or malformed.",
        )
        .is(figure(|dht| &dht.records_refused)),
        Family::counter("dht_floods", "Members that were banned because they went on flooding the DHT.")
            .is(figure(|dht| &dht.floods)),
        Family::gauge("dht_nodes", "Nodes in the DHT's routing table.").is(figure(|dht| &dht.peers)),
    ]);
    families
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Puts another number into each figure, and returns how many there are.
    fn number_all(value: &mut Value, next: &mut u64) {
        match value {
            Value::Object(fields) => fields.values_mut().for_each(|field| number_all(field, next)),
            figure => {
                *next += 1;
                *figure = Value::from(*next);
            }
        }
    }

    #[test]
    fn every_figure_that_the_mesh_counts_is_shown_once() {
        const FIRST: u64 = 7_000_000;
        let mut counts = serde_json::to_value(MeshCounts::default()).unwrap();
        let mut last = FIRST;
        number_all(&mut counts, &mut last);
        assert!(last > FIRST + 30, "the counters were not found: {counts}");
        let text = encode(mesh(&serde_json::from_value(counts.clone()).unwrap()));
        for number in FIRST + 1..=last {
            let shown = text.lines().filter(|line| line.ends_with(&format!(" {number}"))).count();
            assert_eq!(shown, 1, "figure {number} of {counts} in\n{text}");
        }
    }
}
