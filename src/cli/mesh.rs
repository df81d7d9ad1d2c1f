//! `starling mesh`: make a mesh, invite machines into it, see its members, and end memberships.

use super::CliError;
use super::ask::{AgentArgs, StateArgs, after_membership, block_on, print_json, table};
use crate::agent::Client;
use crate::agent::api::{AuthorityStatus, InviteRequest, MemberInfo, Members, RevokeRequest, RotateRequest};
use crate::ambient;
use crate::mesh::{
    Identity, IdentityError, NEWEST_KEY_REMEDY, REASON_MAX_BYTES, Role, TICKET_MAX_USES, TrustChangeError,
};
use crate::model::{CellLabel, NodeId, RepositoryName};
use std::fs;
use std::io::{self, Write as _};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest validity of a ticket: 30 days. Who holds it may join until then, so short is better.
const EXPIRES_MAX: Duration = Duration::from_secs(30 * 86_400);

/// Sub-commands.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make a mesh, with this machine as its authority and first member.
    #[command(after_help = "Examples:
  starling mesh init
  starling mesh init --cell eu-west/a/rack12

Then run `starling agent` here, or restart the one that runs, and `starling mesh invite` for each further machine.

Where the state folder holds `charter` and `authority.key` of a backup (and `revocations`, if there are any), this
machine becomes an authority of that mesh instead, which keeps its name and its members. It is a new node: give its
agent an address of a member (the setting `bootstrap`), and print new tickets.")]
    Init {
        #[command(flatten)]
        state: StateArgs,
        /// Where this machine is: REGION/ZONE/RACK. Nodes with the same label know each other well.
        #[arg(long, value_name = "R/Z/R", default_value_t)]
        cell: CellLabel,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Print a ticket with which machines may join. Asks the agent of an authority.
    #[command(after_help = "Examples:
  starling mesh invite
  starling mesh invite --expires 10m --address node-1.example.org:7400
  starling mesh invite --uses 40 --expires 24h --cell eu-west/a/rack12 --repo sw.example.org
  starling mesh invite --role authority

A ticket is worth a membership until it expires: hand it over as you would a password. One with the role
`authority` is worth the whole mesh. Only the authority that printed a ticket accepts it.")]
    Invite(Invite),
    /// Show the members that this node knows: who, where, what they may do and read, until when.
    #[command(after_help = "Examples:
  starling mesh members
  starling mesh members --json | jq '.members[] | select(.up | not)'

A node knows the members of its own cell, those of its region's other cells, and whoever it has met elsewhere.
Certificates are renewed by the agents from half of their life on; one that is close to its end belongs to a
node that is off or cut off.")]
    Members {
        #[command(flatten)]
        agent: AgentArgs,
        /// Also show who was revoked.
        #[arg(long)]
        revoked: bool,
        /// Print one JSON object, revocations included.
        #[arg(long)]
        json: bool,
    },
    /// End a node's membership at once, everywhere. Asks the agent of an authority.
    #[command(after_help = "Examples:
  starling mesh revoke 3f9a04c1d2 --reason 'disk sold'

All members close their connections with the node within seconds and accept none. Its certificate is not renewed,
and tickets from before the revocation that it used, or that it could use, are void. To take the node in again,
print a new ticket, stop the node's agent, run `starling join TICKET --force` there, and start it again.")]
    Revoke {
        #[command(flatten)]
        agent: AgentArgs,
        /// The node: its name, or the first 8 or more digits of it.
        node: String,
        /// Why; at most 64 bytes, which all members can read.
        #[arg(long, default_value = "", value_parser = parse_reason)]
        reason: String,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Give the mesh's authority a new key. Asks the agent of an authority.
    #[command(after_help = "Examples:
  starling mesh rotate
  starling mesh rotate --overlap 7d
  starling mesh rotate --overlap 10m --drop-oldest     # the key was stolen

The mesh keeps its name. The new key is signed by the old one and spreads to all members, which have their
certificates renewed under it; the old key counts beside it until the overlap has passed. Tickets stay good.
Other authorities are not given the new key, for the old one may be stolen: each needs a ticket of this one
(`starling mesh invite --role authority`); stop its agent, run `starling join TICKET --force`, and start it again.
Nodes that are off for longer than the overlap come back if the authority still renews their certificates
(`renewal_grace_s`), else with a new ticket; so a short overlap is possible, which a stolen key calls for.

At most three keys count at a time. One more is refused until the oldest has retired, or with --drop-oldest retires
that within six minutes: nobody speaks to members that have not fetched a new certificate by then (they are off, or cut
off), until an authority has renewed theirs late.

Back up `authority.key`, `charter` and `revocations` of the state folder after each rotation.")]
    Rotate {
        #[command(flatten)]
        agent: AgentArgs,
        /// How long the old key counts: a number with s, m, h or d [default: twice the life of a certificate].
        #[arg(long, value_name = "SPAN", value_parser = parse_span)]
        overlap: Option<Duration>,
        /// Where three keys count already, retire the oldest within six minutes instead of refusing.
        #[arg(long)]
        drop_oldest: bool,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Show the mesh's authority as this node sees it: keys, revocations, who certifies, and what this node did.
    #[command(after_help = "Examples:
  starling mesh authority
  starling mesh authority --json | jq .certificate_life_s

An authority is a member like others whose agent also certifies joiners and renews certificates. The first node of
a mesh is one; `starling mesh invite --role authority` makes further ones, each of which can do all of it. Set
`certificate_life_s` and `renewal_grace_s` alike on all of them.")]
    Authority {
        #[command(flatten)]
        agent: AgentArgs,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
}

/// Arguments of `mesh invite`.
#[derive(Debug, clap::Args)]
pub(super) struct Invite {
    #[command(flatten)]
    agent: AgentArgs,
    /// How long the ticket counts: a number with s, m, h or d; at most 30d.
    #[arg(long, value_name = "SPAN", default_value = "1h", value_parser = parse_span)]
    expires: Duration,
    /// How many machines it lets in.
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "one_time",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(TICKET_MAX_USES)))]
    uses: u32,
    /// For one machine only, which is the default.
    #[arg(long)]
    one_time: bool,
    /// What they may do: member, seed (home of more, named to joiners first) or authority (certifies others).
    #[arg(long, value_name = "ROLE", default_value = "member")]
    role: Role,
    /// A repository that they may read; may be repeated [default: all].
    #[arg(long = "repo", value_name = "NAME")]
    repositories: Vec<RepositoryName>,
    /// Where they are: REGION/ZONE/RACK [default: they say so themselves].
    #[arg(long, value_name = "R/Z/R")]
    cell: Option<CellLabel>,
    /// Address of this node in the ticket, HOST:PORT; may be repeated [default: where the agent can be reached].
    #[arg(long = "address", value_name = "ADDR")]
    addresses: Vec<String>,
    /// Write the ticket into FILE (mode 0600) instead of printing it. FILE is replaced as a whole; for `starling join --ticket-file`.
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    out: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: Command) -> Result<(), CliError> {
    match command {
        Command::Init { state, cell, json } => init(&state, cell, json),
        Command::Invite(args) => invite(args),
        Command::Members { agent, revoked, json } => members(&agent.client(), revoked, json),
        Command::Revoke { agent, node, reason, json } => revoke(&agent.client(), &node, reason, json),
        Command::Rotate { agent, overlap, drop_oldest, json } => {
            rotate(&agent.client(), overlap, drop_oldest, json)
        }
        Command::Authority { agent, json } => authority(&agent.client(), json),
    }
}

fn invite(args: Invite) -> Result<(), CliError> {
    let request = InviteRequest {
        expires_s: args.expires.as_secs(),
        addresses: resolve(&args.addresses)?,
        uses: Some(args.uses),
        role: Some(args.role),
        repositories: args.repositories,
        cell: args.cell,
    };
    let client = args.agent.client();
    let invitation = block_on(async { Ok(client.invite(&request).await?) })?;
    if args.json {
        return print_json(&invitation);
    }
    match &args.out {
        Some(file) => write_ticket(file, &invitation.ticket)
            .map_err(|error| CliError::failed(format!("{}: {error}", file.display())))?,
        // Alone on standard output, so that a script can pass it on.
        None => println!("{}", invitation.ticket),
    }
    let addresses: Vec<_> = invitation.addresses.iter().map(ToString::to_string).collect();
    let machines =
        if invitation.uses == 1 { "one machine".into() } else { format!("{} machines", invitation.uses) };
    eprintln!(
        "good until {}, for {machines} with the role {} that may read {} and reach {}",
        invitation.expires,
        invitation.role,
        readable(invitation.repositories.as_deref()),
        addresses.join(" or ")
    );
    Ok(())
}

/// Writes beside and renames, so that who waits for the file never sees a part of it. The file beside is a new one, and
/// what is renamed over is an old ticket file at most: neither a device nor what a symbolic link leads to.
fn write_ticket(file: &Path, ticket: &str) -> io::Result<()> {
    match fs::symlink_metadata(file) {
        Ok(found) if !found.is_file() => {
            return Err(io::Error::other("is there already and is no plain file"));
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let random = data_encoding::HEXLOWER.encode(&ambient::secret::<8>());
    let beside = directory.join(format!(".starling-ticket-{random}"));
    let mut new = fs::File::options().write(true).create_new(true).mode(0o600).open(&beside)?;
    let written = writeln!(new, "{ticket}")
        .and_then(|()| new.sync_all())
        .and_then(|()| fs::rename(&beside, file))
        .and_then(|()| fs::File::open(directory)?.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

/// What a member may read, for people.
fn readable(repositories: Option<&[RepositoryName]>) -> String {
    let names =
        |names: &[RepositoryName]| names.iter().map(RepositoryName::as_str).collect::<Vec<_>>().join(",");
    repositories.map_or_else(|| "everything".to_owned(), names)
}

fn members(client: &Client, revoked: bool, json: bool) -> Result<(), CliError> {
    let list = block_on(async { Ok(client.members().await?) })?;
    if json {
        return print_json(&list);
    }
    print!("{}", member_table(&list.members));
    if revoked {
        let rows: Vec<_> = list
            .revoked
            .iter()
            .map(|entry| {
                [entry.node.to_string(), entry.at.to_string(), entry.until.to_string(), entry.reason.clone()]
            })
            .collect();
        println!("\n{}", table(["REVOKED", "AT", "LISTED UNTIL", "REASON"], &rows).trim_end());
    }
    Ok(())
}

fn member_table(members: &[MemberInfo]) -> String {
    let rows: Vec<_> = members
        .iter()
        .map(|member| {
            let state = match (member.this, member.revoked, member.up) {
                (true, true, _) => "this, revoked",
                (true, false, _) => "this",
                (false, true, _) => "revoked",
                (false, false, true) => "up",
                (false, false, false) => "down",
            };
            [
                member.node.short(),
                member.cell.to_string(),
                member.role.to_string(),
                readable(member.repositories.as_deref()),
                member.expires.to_string(),
                state.to_owned(),
                member.address.to_string(),
            ]
        })
        .collect();
    table(["NODE", "CELL", "ROLE", "MAY READ", "CERTIFIED UNTIL", "STATE", "ADDRESS"], &rows)
}

fn revoke(client: &Client, node: &str, reason: String, json: bool) -> Result<(), CliError> {
    let revoked = block_on(async {
        let node = match node.parse::<NodeId>() {
            Ok(node) => node,
            Err(_) => find(node, &client.members().await?)?,
        };
        Ok(client.revoke(&RevokeRequest { node, reason }).await?)
    })?;
    if json {
        return print_json(&revoked);
    }
    println!("{} is revoked (list {}, {})", revoked.node, revoked.number, revoked.at);
    if revoked.authority {
        eprintln!("it was an authority and knows the mesh's key: run `starling mesh rotate` now");
    }
    Ok(())
}

/// Fewest digits that name a node: nobody is thrown out by a slip of the finger.
const DIGITS_MIN: usize = 8;

/// The one member whose name begins with `text`.
fn find(text: &str, list: &Members) -> Result<NodeId, CliError> {
    let wanted = text.to_ascii_lowercase();
    if wanted.len() < DIGITS_MIN {
        let problem = format!("`{text}` is too short to name a node: {DIGITS_MIN} digits are the least");
        return Err(CliError::usage(problem).hint("`starling mesh members` shows ten of each"));
    }
    let mut fits =
        list.members.iter().map(|member| member.node).filter(|node| node.to_string().starts_with(&wanted));
    match (fits.next(), fits.next()) {
        (Some(node), None) => Ok(node),
        (Some(_), Some(_)) => Err(CliError::usage(format!("several members' names begin with `{text}`"))
            .hint("give more digits: `starling mesh members --json` shows all 64")),
        (None, _) => Err(CliError::usage(format!("no member that this node knows is named `{text}`")).hint(
            "`starling mesh members` lists them; a node that is not listed is revoked by its whole name, which \
             `starling mesh members --json` shows in its own cell, and `starling status` on the node itself",
        )),
    }
}

fn rotate(client: &Client, overlap: Option<Duration>, drop_oldest: bool, json: bool) -> Result<(), CliError> {
    let request = RotateRequest { overlap_s: overlap.map(|overlap| overlap.as_secs()), drop_oldest };
    let rotated = block_on(async { Ok(client.rotate(&request).await?) })?;
    if json {
        return print_json(&rotated);
    }
    println!("the authority has key {}, {}", rotated.key_number, rotated.key);
    eprintln!(
        "the old key counts until {}; {} repository cards were signed anew",
        rotated.old_keys_until, rotated.cards
    );
    if let Some(dropped) = rotated.dropped {
        eprintln!(
            "key {} retires at {}: members with its certificates ({} that this node knows) fetch new ones until then; those \
             that are off or cut off are spoken to again when they are renewed late",
            dropped.key_number, dropped.at, dropped.members
        );
    }
    eprintln!("back up `authority.key`, `charter` and `revocations` of the agent's state folder now");
    Ok(())
}

fn authority(client: &Client, json: bool) -> Result<(), CliError> {
    let status = block_on(async { Ok(client.authority().await?) })?;
    if json {
        return print_json(&status);
    }
    print!("{}", authority_text(&status));
    Ok(())
}

fn authority_text(status: &AuthorityStatus) -> String {
    let mut lines = vec![
        format!("mesh         {}", status.mesh),
        format!("key          {} (number {})", status.key, status.key_number),
    ];
    if let Some(until) = status.old_keys_until {
        lines.push(format!("older keys   count until {until}"));
    }
    lines.push(format!("revoked      {} nodes (list {})", status.revoked, status.revocations));
    if let Some(problem) = &status.key_problem {
        lines.push(format!("this node    IS NO FULL AUTHORITY: {problem}"));
        lines.push(format!("             {NEWEST_KEY_REMEDY}"));
    }
    match (status.certificate_life_s, status.renewal_grace_s, &status.counts) {
        (Some(life), Some(grace), Some(counts)) => {
            if status.key_problem.is_none() {
                lines.push(format!("this node    certifies for {life} s, renews up to {grace} s late"));
            }
            lines.push(format!(
                "so far       {} joined, {} refused, {} renewed, {} denied",
                counts.joined, counts.refused, counts.renewed, counts.denied
            ));
        }
        _ if status.key_problem.is_some() => {}
        _ => lines.push("this node    is no authority".to_owned()),
    }
    lines.join("\n") + "\n\n" + &member_table(&status.authorities)
}

/// A reason that fits a revocation.
fn parse_reason(text: &str) -> Result<String, String> {
    if text.len() > REASON_MAX_BYTES {
        return Err(format!("{} bytes; a reason has at most {REASON_MAX_BYTES}", text.len()));
    }
    Ok(text.to_owned())
}

fn init(state: &StateArgs, cell: CellLabel, json: bool) -> Result<(), CliError> {
    let dir = state.dir();
    let restored = Identity::is_restorable(&dir);
    let identity = Identity::found_mesh(&dir, cell).map_err(|error| match &error {
        IdentityError::AlreadyAMember { .. } => {
            CliError::failed(&error).hint(
                "one state folder belongs to one mesh; choose another with --state. An agent that has run since before this \
                 machine became a member must be restarted",
            )
        }
        IdentityError::State(state) | IdentityError::Trust(TrustChangeError::State(state)) => {
            let failed = CliError::failed(&error);
            match state.hint() {
                Some(hint) => failed.hint(hint),
                None => failed,
            }
        }
        _ => CliError::failed(&error),
    })?;
    let membership = identity.membership();
    if json {
        return print_json(&serde_json::json!({
            "mesh": membership.mesh.to_string(),
            "node": membership.node,
            "cell": membership.cell,
            "expires": membership.expires,
            "restored": restored,
        }));
    }
    println!(
        "mesh {} is {}; this node is {} in cell {}",
        membership.mesh,
        if restored { "restored with the key and the charter that were here" } else { "made" },
        membership.node.short(),
        membership.cell
    );
    let shown = dir.display();
    eprintln!(
        "back up `authority.key` and `charter` of {shown}, and after each revocation or rotation `revocations`, too: \
         `starling mesh init` restores the mesh from them. Keep the key secret"
    );
    eprintln!("{}", after_membership(&dir));
    Ok(())
}

/// Looks host names up once, here: a ticket holds addresses.
fn resolve(texts: &[String]) -> Result<Vec<SocketAddr>, CliError> {
    let mut found = Vec::new();
    for text in texts {
        let addresses = text
            .to_socket_addrs()
            .map_err(|error| CliError::usage(format!("--address {text}: {error}")).hint("write HOST:PORT"))?;
        for address in addresses {
            if !found.contains(&address) {
                found.push(address);
            }
        }
    }
    Ok(found)
}

/// A span such as `90s`, `10m`, `1h` or `2d`, from a second to [`EXPIRES_MAX`].
pub(super) fn parse_span(text: &str) -> Result<Duration, String> {
    let refuse = || format!("`{text}` is not a span: write a number with s, m, h or d, from 1s to 30d");
    let unit = text.chars().next_back().ok_or_else(refuse)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(refuse()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| refuse())?;
    number
        .checked_mul(factor)
        .map(Duration::from_secs)
        .filter(|span| (Duration::from_secs(1)..=EXPIRES_MAX).contains(span))
        .ok_or_else(refuse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::api::OfficeCounts;

    #[test]
    fn spans_are_written_with_their_unit() {
        for (text, seconds) in [("1s", 1), ("10m", 600), ("1h", 3_600), ("30d", 2_592_000)] {
            assert_eq!(parse_span(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "0s", "31d", "h", "1", "1.5h", "-1h", "1ä", "99999999999999999999d"] {
            assert!(parse_span(bad).unwrap_err().contains("30d"), "{bad}");
        }
    }

    #[test]
    fn addresses_are_resolved_once_each() {
        let found = resolve(&["127.0.0.1:7400".into(), "127.0.0.1:7400".into()]).unwrap();
        assert_eq!(found, ["127.0.0.1:7400".parse().unwrap()]);
        let error = resolve(&["no port".into()]).unwrap_err();
        assert!(error.to_string().contains("no port") && error.code() == 2, "{error}");
    }

    #[test]
    fn a_ticket_is_written_for_its_owner_only_and_no_other_file_is_touched() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let text = |name: &str| fs::read_to_string(at(name)).unwrap();
        for neighbour in ["my.new", "my.txt.new", "target"] {
            fs::write(at(neighbour), "precious").unwrap();
        }
        fs::write(at("my.txt"), "old").unwrap();
        fs::set_permissions(at("my.txt"), fs::Permissions::from_mode(0o644)).unwrap();
        write_ticket(&at("my.txt"), "ticket").unwrap();
        assert_eq!(text("my.txt"), "ticket\n");
        assert_eq!(fs::metadata(at("my.txt")).unwrap().permissions().mode() & 0o7777, 0o600);

        symlink(at("target"), at("link")).unwrap();
        symlink(at("nowhere"), at("dangling")).unwrap();
        fs::create_dir(at("folder")).unwrap();
        for bad in ["link", "dangling", "folder"] {
            assert!(
                write_ticket(&at(bad), "ticket").unwrap_err().to_string().contains("no plain file"),
                "{bad}"
            );
        }
        for neighbour in ["my.new", "my.txt.new", "target"] {
            assert_eq!(text(neighbour), "precious", "{neighbour}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 7, "nothing is left beside");
    }

    #[test]
    fn a_second_mesh_in_the_same_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateArgs::at(dir.path());
        init(&state, CellLabel::default(), true).unwrap();
        let error = init(&state, CellLabel::default(), true).unwrap_err().to_string();
        assert!(error.contains("--state"), "{error}");
    }

    fn member(node: u8) -> MemberInfo {
        MemberInfo {
            node: NodeId([node; 32]),
            cell: "eu/a/r1".parse().unwrap(),
            role: Role::Seed,
            repositories: Some(vec!["sw.example.org".parse().unwrap()]),
            issued: crate::model::UnixTime(0),
            expires: crate::model::UnixTime(951_782_400),
            up: true,
            revoked: false,
            address: "10.0.0.1:7400".parse().unwrap(),
            connections: 2,
            this: false,
        }
    }

    #[test]
    fn a_member_is_found_by_eight_digits_of_its_name_if_it_is_the_only_one() {
        let mut like = member(0x12);
        like.node.0[31] = 0;
        let list = Members { members: vec![member(0x12), member(0x13), like], revoked: vec![] };
        assert_eq!(find("13131313", &list).unwrap(), NodeId([0x13; 32]));
        for (bad, says) in [
            ("12121212", "several"),
            ("22222222", "no member"),
            ("1313131", "8 digits"),
            ("1", "8 digits"),
            ("", "8 digits"),
        ] {
            let error = find(bad, &list).unwrap_err();
            assert!(error.to_string().contains(says) && error.code() == 2, "{error}");
        }
        assert!(member(1).node.short().len() >= DIGITS_MIN, "what the table shows is enough");
    }

    #[test]
    fn an_authority_that_lacks_the_newest_key_does_not_say_that_it_certifies() {
        let counts = OfficeCounts { joined: 0, refused: 0, renewed: 0, denied: 0 };
        let mut status = AuthorityStatus {
            mesh: "m".into(),
            key_number: 2,
            key: "ff".into(),
            old_keys_until: None,
            key_problem: None,
            revocations: 0,
            revoked: 0,
            authorities: Vec::new(),
            certificate_life_s: Some(60),
            renewal_grace_s: Some(60),
            counts: Some(counts),
        };
        assert!(authority_text(&status).contains("certifies for 60 s"));
        status.key_problem = Some("it holds key 1".into());
        let text = authority_text(&status);
        assert!(
            text.contains("NO FULL AUTHORITY: it holds key 1") && text.contains("--role authority"),
            "{text}"
        );
        assert!(!text.contains("certifies for"), "{text}");
        let without = AuthorityStatus { certificate_life_s: None, counts: None, ..status };
        assert!(!authority_text(&without).contains("is no authority"), "its certificate says that it is");
    }

    #[test]
    fn a_revoked_member_is_marked() {
        let mut revoked = member(0x12);
        (revoked.revoked, revoked.up) = (true, false);
        assert!(member_table(&[revoked.clone()]).contains("revoked"));
        revoked.this = true;
        assert!(member_table(&[revoked]).contains("this, revoked"));
    }

    #[test]
    fn a_backup_is_restored_and_one_that_does_not_fit_is_refused() {
        let (dir, backup) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        init(&StateArgs::at(dir.path()), CellLabel::default(), true).unwrap();
        for file in ["authority.key", "charter"] {
            std::fs::copy(dir.path().join(file), backup.path().join(file)).unwrap();
        }
        init(&StateArgs::at(backup.path()), CellLabel::default(), true).unwrap();
        let mesh = |path: &Path| Identity::load(path).unwrap().membership().mesh;
        assert_eq!(mesh(dir.path()), mesh(backup.path()));
        std::fs::remove_file(backup.path().join("membership")).unwrap();
        std::fs::write(backup.path().join("authority.key"), [7; 32]).unwrap();
        let error = init(&StateArgs::at(backup.path()), CellLabel::default(), true).unwrap_err().to_string();
        assert!(error.contains("none of its keys") && error.contains("put the key back"), "{error}");
    }

    #[test]
    fn members_are_shown_with_role_scope_and_the_end_of_their_certificate() {
        let text = member_table(&[member(0x12)]);
        for part in ["1212121212", "eu/a/r1", "seed", "sw.example.org", "2000-02-29T00:00:00Z", "up"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(readable(None), "everything");
    }
}
