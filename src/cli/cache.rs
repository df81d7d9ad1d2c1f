//! `starling cache`: look after the agent's cache.

use super::CliError;
use super::ask::{AgentArgs, block_on, print_json, table};
use super::why::Target;
use crate::agent::api::RefusalKind;
use crate::agent::api::cache::{CacheReport, CacheUnit, PinRequest, PinStatus, Verified, VerifyRequest};
use crate::agent::{Client, ClientError};
use crate::config::ByteSize;
use serde::Serialize;
use std::fmt::Write as _;

/// Which agent, and how to print.
#[derive(Debug, clap::Args)]
pub(super) struct Common {
    #[command(flatten)]
    agent: AgentArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Sub-commands.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Show what the cache holds, what it has done, and what is pinned.
    #[command(after_help = "Examples:
  starling cache status
  starling cache status --json | jq '.pins[] | select(.complete | not)'")]
    Status(Common),
    /// List the files of the cache: those that leave first at the top, those that stay at the end.
    #[command(after_help = "Examples:
  starling cache list
  starling cache list --json | jq '[.units[] | select(.kind == \"body\") | .bytes] | add'

A pack holds chunks as they came, a body the chunks of one large file as they lie in it. UNUSED is the time since its
last use; `-`: none since the agent started. STAYS is why a file does not leave when room is needed: it is `pinned`, `in use`
(somebody has the file open), or `being written` (new chunks go there; `clean` removes it all the same).")]
    List(Common),
    /// Hash everything in the cache. What is damaged is dropped, and fetched again when it is read.
    #[command(after_help = "Examples:
  starling cache verify
  starling cache verify --json | jq .damaged_chunks

The exit code is 0 when everything was right and 1 when something was damaged. On a terminal a bar shows how far it is. Who
interrupts it ends it; of several at once the agent serves one after the other, a second at a time. It does the same slowly by
itself (`cache_scrub_bytes_per_s`).")]
    Verify(Common),
    /// Remove everything that is neither pinned nor in use.
    #[command(after_help = "Examples:
  starling cache clean

Readers do not notice: what they want is fetched again.")]
    Clean(Common),
    /// Keep a file, or a directory with all below it, in the cache.
    #[command(after_help = "Examples:
  starling cache pin sw.example.org:/usr/lib/python3
  starling cache pin sw.example.org:/            # all of it

What is not there is fetched in the background, behind what readers want; `starling cache status` shows how far it is.
The pin outlives restarts and follows the newest revision. At most 80 % of the cache's quota can be pinned, in 256 pins of
1048576 chunks each (64 GiB or so of ordinary files) and in 4096 bodies together, the files of the cache that hold them: what
fits by its bytes takes no more, however many files it is.")]
    Pin {
        /// The file or directory, REPO:PATH.
        what: Target,
        #[command(flatten)]
        common: Common,
    },
    /// End a pin. What was pinned stays until room is needed.
    #[command(after_help = "Examples:
  starling cache unpin sw.example.org:/usr/lib/python3")]
    Unpin {
        /// The file or directory, REPO:PATH, as it was pinned.
        what: Target,
        #[command(flatten)]
        common: Common,
    },
}

pub(super) fn run(command: Command) -> Result<(), CliError> {
    match command {
        Command::Status(common) => {
            let report = ask(&common, async |client| client.cache().await)?;
            show(&common, &report, human)
        }
        Command::List(common) => {
            // Of a large cache the list is long.
            let units = ask(&common, async |client| client.clone().patient().cache_units().await)?;
            show(&common, &units, |units| unit_table(&units.units))
        }
        Command::Verify(common) => verify(&common),
        Command::Clean(common) => {
            let cleaned = ask(&common, async |client| client.cache_clean().await)?;
            show(&common, &cleaned, |cleaned| {
                let (freed, kept) = (ByteSize(cleaned.freed_bytes), ByteSize(cleaned.kept_bytes));
                format!("{freed} freed; {kept} are pinned or in use\n")
            })
        }
        Command::Pin { what, common } => {
            let request = PinRequest { repository: what.repository, path: what.path };
            let pinned = ask(&common, async |client| client.pin(&request).await)?;
            show(&common, &pinned, |pin| format!("pinned {}\n", pin_line(pin)))
        }
        Command::Unpin { what, common } => {
            let request = PinRequest { repository: what.repository, path: what.path };
            let pin = ask(&common, async |client| client.unpin(&request).await)?;
            show(&common, &pin, |pin| format!("{} is not pinned any more\n", pin_name(pin)))
        }
    }
}

fn ask<T>(
    common: &Common,
    question: impl AsyncFnOnce(&Client) -> Result<T, ClientError>,
) -> Result<T, CliError> {
    let client = common.agent.client();
    block_on(async { Ok(question(&client).await?) })
}

fn show<T: Serialize>(common: &Common, answer: &T, human: impl FnOnce(&T) -> String) -> Result<(), CliError> {
    if common.json {
        return print_json(answer);
    }
    print!("{}", human(answer));
    Ok(())
}

/// Plain bytes that are asked for at once (guess; the agent answers after a second at the latest).
const VERIFY_BYTES: u64 = 256 << 20;

/// Part after part of one unit after the other, so that no request takes long.
fn verify(common: &Common) -> Result<(), CliError> {
    let client = common.agent.client().patient();
    let style = "{bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {wide_msg}";
    let style = indicatif::ProgressStyle::with_template(style).map_err(CliError::failed)?;
    let bar = indicatif::ProgressBar::new(0).with_style(style);
    let total = block_on(async {
        let units = client.cache_units().await?.units;
        verify_all(&units, &bar, async |request| client.cache_verify(&request).await).await
    });
    bar.finish_and_clear();
    let total = total?;
    show(common, &total, |total| {
        format!("{} chunks, {} were hashed\n", total.chunks, ByteSize(total.bytes))
    })?;
    match total.damaged_chunks {
        0 => Ok(()),
        damaged => Err(CliError::failed(format!("{damaged} chunks were damaged; they were dropped"))
            .hint("they are fetched again when they are read; if it goes on, the disk is failing")),
    }
}

async fn verify_all(
    units: &[CacheUnit],
    bar: &indicatif::ProgressBar,
    mut ask: impl AsyncFnMut(VerifyRequest) -> Result<Verified, ClientError>,
) -> Result<Verified, CliError> {
    bar.set_length(units.iter().map(|unit| unit.bytes).sum());
    let mut total = Verified::default();
    let mut before = 0;
    for unit in units {
        let (mut from, mut here) = (0, 0_u64);
        loop {
            let request = VerifyRequest { unit: unit.name.clone(), from, most_bytes: VERIFY_BYTES };
            let part = match ask(request).await {
                Ok(part) => part,
                // It left meanwhile.
                Err(ClientError::Refused(refusal)) if refusal.kind == RefusalKind::NotFound => break,
                Err(error) => return Err(error.into()),
            };
            total.chunks += part.chunks;
            total.bytes += part.bytes;
            total.damaged_chunks += part.damaged_chunks;
            here += part.bytes;
            bar.set_position(before + here.min(unit.bytes));
            match part.next {
                None => break,
                Some(next) if next > from => from = next,
                Some(next) => {
                    let name = &unit.name;
                    return Err(CliError::failed(format!(
                        "the agent goes back from {from} to {next} in {name}"
                    )));
                }
            }
        }
        before += unit.bytes;
        bar.set_position(before);
    }
    Ok(total)
}

fn human(report: &CacheReport) -> String {
    let mut text = String::new();
    let (used, quota) = (ByteSize(report.used_bytes), ByteSize(report.quota_bytes));
    let _ = writeln!(text, "folder      {}", report.folder.display());
    let _ = writeln!(text, "used        {used} of {quota} in {} chunks", report.chunks);
    let _ = writeln!(
        text,
        "files       {} packs, {} bodies, of which {} are whole and verified",
        report.packs, report.bodies, report.bodies_complete
    );
    let delivered = &report.delivered;
    let _ = writeln!(
        text,
        "delivered   {} of what was here before, {} from neighbours, {} from strata; {} reads missed",
        ByteSize(delivered.cache_bytes),
        ByteSize(delivered.peers_bytes),
        ByteSize(delivered.strata_bytes),
        report.misses
    );
    let _ = writeln!(text, "evicted     {} chunks", report.evicted_chunks);
    let _ = writeln!(
        text,
        "damaged     {} chunks; {} were checked in the background, {} times everything",
        report.damaged_chunks,
        ByteSize(report.scrubbed_bytes),
        report.scrub_rounds
    );
    if report.writing_paused {
        text.push_str("paused      nothing is stored for a while: the disk is full or failing\n");
    }
    for pin in &report.pins {
        let _ = writeln!(text, "pinned      {}", pin_line(pin));
    }
    if let Some(problem) = &report.pins_problem {
        let _ = writeln!(text, "pinned      nothing, for the list of pins cannot be read: {problem}");
    }
    text
}

fn pin_name(pin: &PinStatus) -> String {
    match &pin.path {
        Some(path) => format!("{}:{path}", pin.repository),
        None => format!("{} (its catalogs)", pin.repository),
    }
}

fn pin_line(pin: &PinStatus) -> String {
    let (here, all) = (ByteSize(pin.here_bytes), ByteSize(pin.bytes));
    let how_far =
        if pin.complete { format!("{all}, all of it here") } else { format!("{here} of {all} here") };
    let problem = pin.problem.as_ref().map_or_else(String::new, |problem| format!("; {problem}"));
    format!("{} revision {}: {how_far}{problem}", pin_name(pin), pin.revision)
}

fn unit_table(units: &[CacheUnit]) -> String {
    let rows: Vec<_> = units
        .iter()
        .map(|unit| {
            let what = match (unit.file_bytes, unit.complete) {
                (None, _) => "chunks".to_owned(),
                (Some(bytes), true) => format!("a file of {}", ByteSize(bytes)),
                (Some(bytes), false) => format!("a file of {}, not whole or not verified", ByteSize(bytes)),
            };
            let stays = match unit {
                CacheUnit { pinned: true, .. } => "pinned",
                CacheUnit { in_use: true, .. } => "in use",
                CacheUnit { being_written: true, .. } => "being written",
                _ => "-",
            };
            [
                unit.name.clone(),
                ByteSize(unit.bytes).to_string(),
                unit.chunks.to_string(),
                unit.idle_s.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds} s")),
                stays.to_owned(),
                what,
            ]
        })
        .collect();
    table(["NAME", "SIZE", "CHUNKS", "UNUSED", "STAYS", "WHAT"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::api::Refusal;
    use crate::cache::DiskCache;
    use crate::model::{Revision, UnixTime};

    fn pin() -> PinStatus {
        PinStatus {
            repository: "sw.example.org".parse().unwrap(),
            path: Some("/usr".into()),
            revision: Revision(3),
            bytes: 4 << 20,
            here_bytes: 1 << 20,
            complete: false,
            problem: Some("nobody has it".into()),
        }
    }

    #[test]
    fn the_report_tells_what_is_there_and_what_stays() {
        let report = CacheReport {
            folder: "/cache".into(),
            used_bytes: 1 << 20,
            quota_bytes: 1 << 30,
            free_floor_bytes: 0,
            chunks: 7,
            packs: 2,
            bodies: 3,
            bodies_complete: 1,
            delivered: Default::default(),
            misses: 5,
            evicted_chunks: 0,
            damaged_chunks: 1,
            scrubbed_bytes: 0,
            scrub_rounds: 0,
            writing_paused: true,
            pins: vec![pin(), PinStatus { path: None, complete: true, problem: None, ..pin() }],
            pins_problem: Some("/cache/pins.json: no".into()),
        };
        let text = human(&report);
        for part in [
            "used        1 MiB of 1 GiB in 7 chunks",
            "2 packs, 3 bodies, of which 1",
            "nothing is stored",
            "pinned      sw.example.org:/usr revision 3: 1 MiB of 4 MiB here; nobody has it",
            "pinned      sw.example.org (its catalogs) revision 3: 4 MiB, all of it here",
            "cannot be read: /cache/pins.json: no",
        ] {
            assert!(text.contains(part), "no `{part}` in\n{text}");
        }
    }

    fn pack() -> CacheUnit {
        CacheUnit {
            name: "00000001.pack".into(),
            kind: "pack".into(),
            bytes: 1 << 20,
            chunks: 3,
            unverified_chunks: 0,
            file_bytes: None,
            complete: false,
            written: UnixTime(1),
            idle_s: Some(9),
            being_written: true,
            in_use: false,
            pinned: false,
        }
    }

    #[test]
    fn a_unit_is_verified_in_as_many_parts_as_it_takes_and_the_bar_moves_with_each() {
        let units =
            ["large", "gone", "small"].map(|name| CacheUnit { name: name.into(), bytes: 100, ..pack() });
        let bar = indicatif::ProgressBar::hidden();
        let mut asked = Vec::new();
        let total = block_on(verify_all(&units, &bar, async |request| {
            asked.push((request.unit.clone(), request.from, bar.position()));
            let part = |next| Ok(Verified { chunks: 2, bytes: 40, damaged_chunks: 1, next });
            match (request.unit.as_str(), request.from) {
                ("large", 0) => part(Some(7)),
                ("large", 7) => part(Some(9)),
                ("gone", _) => Err(ClientError::Refused(Refusal::new(RefusalKind::NotFound, "it left"))),
                _ => part(None),
            }
        }));
        assert_eq!(total.unwrap(), Verified { chunks: 8, bytes: 160, damaged_chunks: 4, next: None });
        let asked: Vec<_> = asked.iter().map(|(unit, from, bar)| (unit.as_str(), *from, *bar)).collect();
        let parts =
            [("large", 0, 0), ("large", 7, 40), ("large", 9, 80), ("gone", 0, 100), ("small", 0, 200)];
        assert_eq!(asked, parts);
        assert_eq!((bar.position(), bar.length()), (300, Some(300)));
        let endless =
            verify_all(&units, &bar, async |_| Ok(Verified { next: Some(0), ..Verified::default() }));
        assert!(block_on(endless).unwrap_err().to_string().contains("goes back"));
    }

    #[test]
    fn the_help_tells_how_much_can_be_pinned() {
        let commands = <Command as clap::Subcommand>::augment_subcommands(clap::Command::new("cache"));
        let help = commands.find_subcommand("pin").and_then(|pin| pin.get_after_help()).unwrap().to_string();
        for bound in
            [format!("{} pins", DiskCache::MAX_PINS), format!("{} bodies", DiskCache::MAX_PINNED_BODIES)]
        {
            assert!(
                help.contains(&bound),
                "no `{bound}` in
{help}"
            );
        }
    }

    #[test]
    fn the_list_tells_what_each_file_is() {
        let pack = pack();
        let body = CacheUnit {
            file_bytes: Some(2 << 20),
            complete: true,
            idle_s: None,
            being_written: false,
            pinned: true,
            ..CacheUnit { name: "ab".into(), ..pack.clone() }
        };
        let open = CacheUnit { in_use: true, pinned: false, ..body.clone() };
        let text = unit_table(&[pack, body, open]);
        assert!(text.contains("00000001.pack  1 MiB  3       9 s     being written  chunks\n"), "{text}");
        assert!(text.contains("-       pinned         a file of 2 MiB\n"), "{text}");
        assert!(text.contains("-       in use         a file of 2 MiB\n"), "{text}");
    }
}
