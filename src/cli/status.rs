//! `starling status`: show what the agent is doing.

use super::CliError;
use super::ask::{AgentArgs, block_on, print_json, table};
use crate::agent::api::{Choice, FillStatus, MountStatus, Status};
use crate::config::ByteSize;
use crate::mesh::NEWEST_KEY_REMEDY;
use std::fmt::Write as _;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  starling status
  starling status --json | jq .obtained
  starling status --metrics | grep starling_obtained_bytes")]
pub(super) struct Args {
    #[command(flatten)]
    agent: AgentArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Print all metrics in Prometheus' text format instead.
    #[arg(long, conflicts_with = "json")]
    metrics: bool,
}

pub(super) fn run(args: Args) -> Result<(), CliError> {
    let client = args.agent.client();
    if args.metrics {
        print!("{}", block_on(async { Ok(client.metrics().await?) })?);
        return Ok(());
    }
    let status = block_on(async { Ok(client.status().await?) })?;
    if args.json {
        return print_json(&status);
    }
    print!("{}", human(&status));
    Ok(())
}

fn human(status: &Status) -> String {
    let mut text = String::new();
    let minutes = status.uptime_s / 60;
    let _ = writeln!(
        text,
        "agent       {} (process {}), up {} h {} min, state in {}",
        status.version,
        status.pid,
        minutes / 60,
        minutes % 60,
        status.state_dir.display()
    );
    let _ = match &status.mesh {
        Some(mesh) => writeln!(
            text,
            "mesh        {} in cell {}: node {}{} at {}, {} members up, DHT {}, membership until {}",
            mesh.mesh,
            mesh.cell,
            mesh.node.short(),
            if mesh.authority { " (authority)" } else { "" },
            mesh.address,
            mesh.members_up,
            if mesh.dht { "on" } else { "off" },
            mesh.expires
        )
        .and_then(|()| match &mesh.ended {
            Some(reason) => writeln!(text, "            NO MEMBER ANY MORE: {reason}"),
            None => Ok(()),
        })
        .and_then(|()| match &mesh.key_problem {
            Some(problem) => writeln!(text, "            NO FULL AUTHORITY: {problem}; {NEWEST_KEY_REMEDY}"),
            None => Ok(()),
        }),
        None => writeln!(
            text,
            "mesh        none: this agent stands alone (see `starling mesh` and `starling join`)"
        ),
    };
    for trouble in &status.troubles {
        let _ = writeln!(text, "TROUBLE     {trouble}");
    }
    let cache = &status.cache;
    let _ = writeln!(
        text,
        "cache       {} of {} in {} chunks",
        ByteSize(cache.used_bytes),
        ByteSize(cache.quota_bytes),
        cache.chunks
    );
    let obtained = &status.obtained;
    let _ = writeln!(
        text,
        "obtained    {} from the cache, {} from neighbours, {} from strata",
        ByteSize(obtained.cache_bytes),
        ByteSize(obtained.peers_bytes),
        ByteSize(obtained.strata_bytes)
    );
    if !status.repositories.is_empty() {
        text.push('\n');
        text.push_str(&super::repo::repositories_table(&status.repositories));
    }
    if !status.mounts.is_empty() {
        text.push('\n');
        text.push_str(&mounts_table(&status.mounts));
    }
    text
}

/// How far a fill is, behind the state of its mount.
fn fill_note(fill: &FillStatus) -> String {
    let (done, total) = (ByteSize(fill.done_bytes), ByteSize(fill.total_bytes));
    let problem = fill.problem.as_ref().map_or_else(String::new, |problem| format!(": {problem}"));
    match fill {
        FillStatus { complete: true, .. } => format!("; filled: {total}"),
        FillStatus { ended: true, .. } => format!("; not filled{problem}"),
        FillStatus { total_bytes: 0, .. } => format!("; the fill begins{problem}"),
        _ => format!("; fill at {done} of {total}{problem}"),
    }
}

/// What a mount shows, where it is not the newest, and why it is there, where nobody asked for it by name.
fn shown_note(mount: &MountStatus) -> String {
    let shows = match &mount.options.show {
        Choice::Newest => String::new(),
        choice => format!("; stays with {choice}"),
    };
    shows + if mount.automatic { "; until nobody uses it" } else { "" }
}

/// That it is mounted, and what it is tuned for.
fn mounted_as(mount: &MountStatus) -> String {
    mount.profile.map_or_else(|| "mounted".to_owned(), |profile| format!("mounted for {profile}"))
}

fn mounts_table(mounts: &[MountStatus]) -> String {
    let rows: Vec<_> = mounts
        .iter()
        .map(|mount| {
            let state = match (&mount.problem, mount.expired) {
                (Some(problem), _) => format!("not mounted: {problem}"),
                (None, true) => format!("{}; its root has expired, no newer one is known", mounted_as(mount)),
                (None, false) => mounted_as(mount),
            };
            let lacks: String = mount.lacks.iter().map(|what| format!("; it lacks {what}")).collect();
            let note = mount.note.as_ref().map_or_else(String::new, |note| format!("; {note}"));
            let state = state
                + &shown_note(mount)
                + &lacks
                + &note
                + &mount.fill.as_ref().map_or_else(String::new, fill_note);
            let revision = mount.revision.map_or_else(|| "-".to_owned(), |r| r.to_string());
            let name = format!("{}{}", mount.repository, mount.options.path);
            [mount.directory.display().to_string(), name, revision, state]
        })
        .collect();
    table(["MOUNT", "REPOSITORY", "REVISION", "STATE"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::api::{CacheStatus, MeshStatus, Obtained};
    use crate::model::{NodeId, Revision, UnixTime};

    fn status() -> Status {
        Status {
            api: 1,
            version: "0.1.0".into(),
            pid: 42,
            uptime_s: 3_720,
            state_dir: "/s".into(),
            mesh: None,
            cache: CacheStatus { used_bytes: 1 << 20, quota_bytes: 1 << 30, chunks: 3 },
            obtained: Obtained { cache_bytes: 0, peers_bytes: 512, strata_bytes: 1024 },
            repositories: Vec::new(),
            mounts: Vec::new(),
            troubles: vec!["it sees nobody".into()],
        }
    }

    #[test]
    fn an_agent_that_stands_alone_says_so() {
        let text = human(&status());
        assert!(text.contains("stands alone") && text.contains("up 1 h 2 min"), "{text}");
        assert!(text.contains("TROUBLE     it sees nobody\n"), "{text}");
        assert!(text.contains("512 B from neighbours, 1 KiB from strata"), "{text}");
    }

    #[test]
    fn a_member_shows_its_mesh_and_a_failed_mount_its_reason() {
        let mut status = status();
        status.mesh = Some(MeshStatus {
            mesh: "m1".into(),
            node: NodeId([0xab; 32]),
            cell: Default::default(),
            authority: true,
            address: "127.0.0.1:7400".parse().unwrap(),
            expires: UnixTime(0),
            members_up: 3,
            dht: true,
            ended: Some("it was revoked".into()),
            key_problem: Some("it holds key 1".into()),
        });
        status.mounts.push(MountStatus {
            repository: "a.b".parse().unwrap(),
            directory: "/mnt".into(),
            revision: Some(Revision(4)),
            root: None,
            options: Default::default(),
            automatic: false,
            expired: false,
            problem: Some("the directory is gone".into()),
            profile: None,
            lacks: Vec::new(),
            note: None,
            fill: None,
        });
        let text = human(&status);
        assert!(text.contains("(authority)") && text.contains("3 members up"), "{text}");
        assert!(text.contains("not mounted: the directory is gone"), "{text}");
        assert!(
            text.contains("NO FULL AUTHORITY: it holds key 1") && text.contains("--role authority"),
            "{text}"
        );
    }

    #[test]
    fn a_mount_tells_what_it_is_tuned_for_and_what_it_lacks() {
        let mount = MountStatus {
            repository: "a.b".parse().unwrap(),
            directory: "/mnt".into(),
            revision: Some(Revision(4)),
            root: None,
            options: Default::default(),
            automatic: false,
            expired: false,
            problem: None,
            profile: Some(crate::fs::Profile::LargeFiles),
            lacks: vec!["passthrough: it needs Linux 6.9".into(), "luck".into()],
            note: None,
            fill: None,
        };
        let text = mounts_table(std::slice::from_ref(&mount));
        let says = "mounted for large-files; it lacks passthrough: it needs Linux 6.9; it lacks luck";
        assert!(text.contains(says), "{text}");
        let json = serde_json::to_value(&mount).unwrap();
        assert_eq!((&json["profile"], &json["lacks"][1]), (&"large-files".into(), &"luck".into()));
    }

    #[test]
    fn a_fill_tells_how_far_it_is_and_what_holds_it_up() {
        let fill = FillStatus {
            done_bytes: 1 << 20,
            total_bytes: 4 << 20,
            complete: false,
            ended: false,
            problem: None,
        };
        assert_eq!(fill_note(&fill), "; fill at 1 MiB of 4 MiB");
        let stuck = FillStatus { problem: Some("no source".into()), ..fill.clone() };
        assert_eq!(fill_note(&stuck), "; fill at 1 MiB of 4 MiB: no source");
        let ended = FillStatus { ended: true, problem: Some("too large".into()), ..fill.clone() };
        assert_eq!(fill_note(&ended), "; not filled: too large");
        assert_eq!(fill_note(&FillStatus { total_bytes: 0, ..fill.clone() }), "; the fill begins");
        assert_eq!(fill_note(&FillStatus { complete: true, ..fill }), "; filled: 4 MiB");
    }
}
