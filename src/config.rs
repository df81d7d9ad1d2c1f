//! Every setting of the agent, its unit, its default and the reason for the default.
//!
//! Settings come from three places, each stronger than the one before: the defaults below, a TOML
//! file of flat keys, one of which is a table, and environment variables `STARLING_` + the key in capitals. The names of the
//! keys are the names of [`Settings`]' fields; `docs/operations.md` lists them for operators.

mod check;
mod values;

use check::{CELL_MAX, SOCKET_PATH_MAX_BYTES};
pub use values::{ByteSize, LogFormat, Mtu, ParseSizeError, Verify};
use values::{by_name, list};

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What environment variables that are settings begin with.
pub const ENVIRONMENT_PREFIX: &str = "STARLING_";
/// The file that is read when it exists and no other was named.
pub const DEFAULT_FILE: &str = "/etc/starling/agent.toml";
/// Where the agent answers unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/starling/agent.sock";
/// Where the agent keeps its state unless told otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/starling";
/// The folder of all repositories, where one is wanted and not named.
pub const DEFAULT_AUTOMOUNT: &str = "/starling";
/// In `automount_options`: all repositories that are not named.
pub const EVERY_OTHER: &str = "*";
/// The UDP port of the mesh: not registered for anything widespread, and easy to type (a guess).
pub const DEFAULT_PORT: u16 = 7400;

/// All settings of one agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Folder for keys, cards, roots, the list of mounts and (unless `cache_dir` says otherwise) the
    /// cache. One agent at a time. Default `/var/lib/starling`: where packages keep state.
    pub state_dir: PathBuf,
    /// Unix socket of the control API, mode 0600. Default `/run/starling/agent.sock`: `/run` is
    /// emptied at boot, as sockets should be.
    pub socket: PathBuf,
    /// UDP address and port of the mesh, for both planes. Default `0.0.0.0:7400`: all interfaces.
    pub listen: SocketAddr,
    /// Address and port that other members are told to reach this node at, when it is not the one it
    /// listens on (address translation). Default: the listening address; when that is all addresses, the one of
    /// the interface that has the default route, and up to 7 of the others.
    pub advertise: Option<SocketAddr>,
    /// Further addresses at which other members can reach this node, best first, up to 7: an address translator's, the
    /// other family (then `listen` must be `[::]:PORT`). They are dialled where the first does not answer, and come before
    /// those that the node finds itself. Default: none.
    #[serde(deserialize_with = "list")]
    pub advertise_more: Vec<SocketAddr>,
    /// TCP address for `/metrics`, `/healthz` and `POST /v1/announce`. Nothing else is served there,
    /// because it asks for no permission. Default: off.
    pub http_listen: Option<SocketAddr>,
    /// URL of a forward proxy for all strata, such as a site's Squid. Default: none, and the
    /// environment is not asked: `http_proxy` is most often meant for the way out of the site.
    pub proxy: Option<String>,
    /// Folder of the chunk cache. Default: `cache` in `state_dir`.
    pub cache_dir: Option<PathBuf>,
    /// Most bytes that the cache may use. Default 20 GiB: a few large software releases (a guess).
    pub cache_quota_bytes: ByteSize,
    /// Bytes that the cache leaves free on its disk whatever its quota. Default 1 GiB: room for logs
    /// and for whoever shares the disk (a guess).
    pub cache_free_floor_bytes: ByteSize,
    /// Bytes a second that the agent reads of its cache to find damage before a reader does; 0: never. Default 4 MiB: a
    /// full cache is gone through in an hour and a half, which no disk notices (a guess).
    pub cache_scrub_bytes_per_s: ByteSize,
    /// Plain bytes that the replay of one trace may fetch ahead of readers; never more than a quarter of the cache's quota. 0: traces
    /// are not replayed. Default 256 MiB: what a large program reads when it starts (a guess).
    pub replay_bytes: ByteSize,
    /// When bytes of the cache are checked against their names: `once` after each start, and by the scrub; or `always`,
    /// before each delivery. Default `once`: `always` costs the kernel's own reading of large files, and a hash of the whole
    /// chunk for each read. What the kernel keeps in memory was checked when it got there.
    pub verify: Verify,
    /// Bytes a second that this node takes from strata for itself and its neighbours; what exceeds it is delayed, reads
    /// last, and never refused. Default 0, no budget: the mesh takes one copy a region anyway, and only
    /// the operator knows what his strata bear.
    pub origin_budget_bytes_per_s: ByteSize,
    /// Bytes that may be taken from strata at once after a pause, when there is a budget. Default 64 MiB: eight
    /// segments (a guess).
    pub origin_burst_bytes: ByteSize,
    /// Homes of a slice in this cell that keep a copy of what one of them got from strata or other cells, 1 to 3. Default
    /// 1: each further one costs the cell a copy of everything it reads, which is the operator's to decide. Alike on all
    /// members of a cell.
    pub min_copies: u8,
    /// Most members of a cell, 8 to 2 000: when more share a label the cell halves, and halves join again when few are left.
    /// Default 2 000, all that a member can know well (measured in simulated membership). Alike on all members of a cell.
    pub cell_max_members: u16,
    /// Largest UDP payload that is tried on a path: `"auto"`, or bytes. Default `auto`: what the largest interface
    /// carries, at most 6 550; each path is searched for what it carries itself. Jumbo frames halve the CPU a byte
    /// (measured); more than 6 550 does not work, because ten segments must fit into 64 KiB.
    pub mtu_bytes: Mtu,
    /// Whether the kernel cuts large sends into packets and hands packets over together (GSO and GRO). Default `true`:
    /// without it a gigabyte costs four times as much CPU (measured). Some network drivers get it wrong.
    pub segmentation_offload: bool,
    /// Bytes of chunks a second that this node sends to its neighbours, of all classes. Default 0: no limit; else at least
    /// 1 MiB, below which neighbours would take it for one that stalls.
    pub upload_limit_bytes_per_s: ByteSize,
    /// Bytes of chunks a second that it takes from them; as above. (From strata: `origin_budget_bytes_per_s`.)
    pub download_limit_bytes_per_s: ByteSize,
    /// Per cent of either limit that background fills have while reads or prefetches wait for it, 1 to 100. Default 20
    /// (a guess). While none waits, they have all of it.
    pub background_percent: u8,
    /// A read fails after this time if no source delivered. Default 60 000: longer than every
    /// fail-over between sources takes, shorter than users wait for a hung disk (a guess).
    pub read_deadline_ms: u64,
    /// Most time that the agent takes to unmount, leave and flush when told to stop. Default 8 000:
    /// below the ten seconds that container engines grant before they kill.
    pub stop_deadline_ms: u64,
    /// How long mounts are kept without an agent, so that one that is restarted, upgraded or killed finds them as they were,
    /// and whoever reads meanwhile waits. Default 300: time for an upgrade. 0: an agent that is stopped unmounts
    /// everything, as does one that is the first process of a container in any case, since nothing outlives it there.
    pub keep_mounts_s: u64,
    /// Folder in which all repositories that are known are mounted as soon as somebody enters them, such as `/starling`. It is
    /// made if it is not there. Needs the kernel's automounter and the right to mount. Default: none.
    pub automount_dir: Option<PathBuf>,
    /// How long such a mount must have been unused (nobody has a file of it open or works in it) before it is unmounted. Default
    /// 600: a batch of jobs comes back sooner (a guess). 0: never.
    pub automount_idle_s: u64,
    /// How repositories are mounted there: options as in fstab, by repository, and under `*` those of all that are not named.
    /// Default: none, the newest revision as it was published, without set-id bits.
    #[serde(deserialize_with = "by_name")]
    pub automount_options: BTreeMap<String, String>,
    /// Threads on which the agent's tasks run, beside those that wait for disks and for FUSE. Default 0: as many as the
    /// machine has processors; at most 512. Fewer where the agent shall not spread over a machine that has other work.
    pub worker_threads: u16,
    /// Whether idle processors are kept from sleeping while programs ask a mount for one thing after the other, and for a few
    /// milliseconds after. Default `true`: it makes a request up to four times as fast on virtual machines, and takes the power of
    /// busy processors for as long. Needs root.
    pub quick_wake: bool,
    /// Which log lines are written, in the syntax of `tracing`'s `EnvFilter`. Default `info`, with the
    /// libraries below at `warn`.
    pub log_filter: String,
    /// How log lines look: `human` or `json`. Default `human`.
    pub log_format: LogFormat,
    /// Whether the node takes part in the DHT, through which cells find each other. Default `true`;
    /// a mesh of a single cell can do without.
    pub dht: bool,
    /// Where to look for members when none of those answers that are known: `HOST:PORT` each, up to 16. Host names are
    /// looked up anew each time, and all their addresses are tried. Default: none; the ticket and the members
    /// known before a restart are enough as long as some of them live.
    #[serde(deserialize_with = "list")]
    pub bootstrap: Vec<String>,
    /// Whether to look for members on the local network by multicast DNS when nobody else answers, and to answer those
    /// who look. Default `false`: in data centres multicast is filtered most often, and it tells everybody on the
    /// network that this node is there.
    pub mdns: bool,
    /// On an authority: life of the certificates that it issues. Default 86 400, a day: a node that is off for a
    /// night renews in time, and one that was lost is out in a day even if nobody revokes it (a guess).
    pub certificate_life_s: u64,
    /// On an authority: how long after it lapsed a certificate is still renewed. Default 604 800, a week: a fleet
    /// that was switched off comes back without new tickets (a guess).
    pub renewal_grace_s: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            state_dir: DEFAULT_STATE_DIR.into(),
            socket: DEFAULT_SOCKET.into(),
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), DEFAULT_PORT),
            advertise: None,
            advertise_more: Vec::new(),
            http_listen: None,
            proxy: None,
            cache_dir: None,
            cache_quota_bytes: ByteSize(20 << 30),
            cache_free_floor_bytes: ByteSize(1 << 30),
            cache_scrub_bytes_per_s: ByteSize(4 << 20),
            replay_bytes: ByteSize(256 << 20),
            verify: Verify::Once,
            origin_budget_bytes_per_s: ByteSize(0),
            origin_burst_bytes: ByteSize(64 << 20),
            min_copies: 1,
            cell_max_members: CELL_MAX,
            mtu_bytes: Mtu::Auto,
            segmentation_offload: true,
            upload_limit_bytes_per_s: ByteSize(0),
            download_limit_bytes_per_s: ByteSize(0),
            background_percent: 20,
            read_deadline_ms: 60_000,
            stop_deadline_ms: 8_000,
            keep_mounts_s: 300,
            automount_dir: None,
            automount_idle_s: 600,
            automount_options: BTreeMap::new(),
            worker_threads: 0,
            quick_wake: true,
            log_filter: "info,libp2p=warn,quinn=warn,foca=warn".into(),
            log_format: LogFormat::Human,
            dht: true,
            bootstrap: Vec::new(),
            mdns: false,
            certificate_life_s: 86_400,
            renewal_grace_s: 7 * 86_400,
        }
    }
}

/// Why the settings are not usable.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file was named that cannot be read.
    #[error("{}: {source}", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}: {detail}", .file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Where and why.
        detail: String,
    },
    /// A key that means nothing, which is most often one that is misspelt.
    #[error("{}: `{key}` is not a setting (settings are: {known})", .file.display())]
    UnknownKey {
        /// The file.
        file: PathBuf,
        /// The offending key.
        key: String,
        /// All keys.
        known: String,
    },
    /// A value of the wrong type or form.
    #[error("{detail}")]
    Value {
        /// Key, value, and where it stands.
        detail: String,
    },
    /// A value that is of the right type, but out of bounds.
    #[error("`{key}` is {found}; it must be {allowed}")]
    OutOfBounds {
        /// The key.
        key: &'static str,
        /// The offending value.
        found: String,
        /// What would be allowed.
        allowed: &'static str,
    },
    /// A Unix socket for whose path the system has no room.
    #[error(
        "`{key}`: {} would be a Unix socket whose path has {} bytes; {} are the most",
        .socket.display(), .socket.as_os_str().len(), SOCKET_PATH_MAX_BYTES
    )]
    SocketPath {
        /// The key.
        key: &'static str,
        /// The socket that it asks for.
        socket: PathBuf,
        /// What to do.
        hint: &'static str,
    },
}

impl SettingsError {
    /// What the user can do about it, where the message does not say so.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::SocketPath { hint, .. } => Some(*hint),
            _ => None,
        }
    }
}

impl Settings {
    /// Reads settings: the defaults, then `file` (which must exist), then those of `environment`
    /// that are named `STARLING_` and a key in capitals. Other variables are none of ours.
    ///
    /// # Errors
    /// [`SettingsError`], with the file and the key.
    pub fn load(file: Option<&Path>, environment: &HashMap<String, String>) -> Result<Self, SettingsError> {
        let known = keys();
        let mut builder = config::Config::builder();
        if let Some(path) = file {
            let table = read_file(path)?;
            if let Some(key) = table.keys().find(|key| !known.contains(*key)) {
                return Err(SettingsError::UnknownKey {
                    file: path.to_owned(),
                    key: key.clone(),
                    known: known.into_iter().collect::<Vec<_>>().join(", "),
                });
            }
            builder = builder.add_source(
                config::File::from_str(&table.to_string(), config::FileFormat::Toml).required(true),
            );
        }
        let ours: HashMap<String, String> = environment
            .iter()
            .filter(|(name, _)| {
                name.strip_prefix(ENVIRONMENT_PREFIX)
                    .is_some_and(|key| known.contains(&key.to_ascii_lowercase()))
            })
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        builder = builder.add_source(
            config::Environment::with_prefix(ENVIRONMENT_PREFIX.trim_end_matches('_'))
                .prefix_separator("_")
                .ignore_empty(true)
                .source(Some(ours)),
        );
        let place = file.map_or_else(|| "the environment".to_owned(), |f| f.display().to_string());
        let settings: Self = builder
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(|error| SettingsError::Value { detail: format!("{error} (from {place})") })?;
        settings.check()?;
        Ok(settings)
    }

    /// Where the keeper of the mounts listens.
    pub fn keeper_socket(&self) -> PathBuf {
        self.state_dir.join("keeper.sock")
    }

    /// Folder of the chunk cache.
    pub fn cache_dir(&self) -> PathBuf {
        self.cache_dir.clone().unwrap_or_else(|| self.state_dir.join("cache"))
    }

    /// `read_deadline_ms` as a span.
    pub fn read_deadline(&self) -> Duration {
        Duration::from_millis(self.read_deadline_ms)
    }

    /// How long mounts are kept without an agent; `None` when they end with it.
    pub fn keep_mounts(&self) -> Option<Duration> {
        let kept = self.keep_mounts_s > 0 && std::process::id() != 1;
        kept.then(|| Duration::from_secs(self.keep_mounts_s))
    }

    /// After which time of idleness a mount that was made because somebody looked is unmounted; `None`: never.
    pub fn automount_idle(&self) -> Option<Duration> {
        (self.automount_idle_s > 0).then(|| Duration::from_secs(self.automount_idle_s))
    }

    /// `stop_deadline_ms` as a span.
    pub fn stop_deadline(&self) -> Duration {
        Duration::from_millis(self.stop_deadline_ms)
    }
}

/// Whether others could reach a single machine at an address: it is neither "any" nor a group, and has a port.
pub fn leads_somewhere(address: &SocketAddr) -> bool {
    address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast()
}

/// All keys, from the type itself, so that none can be forgotten.
fn keys() -> BTreeSet<String> {
    match serde_json::to_value(Settings::default()) {
        Ok(serde_json::Value::Object(fields)) => fields.into_iter().map(|(key, _)| key).collect(),
        _ => BTreeSet::new(),
    }
}

/// Largest settings file, in bytes: far more than all keys with comments (a guess).
const FILE_MAX_BYTES: u64 = 1 << 20;

fn read_file(path: &Path) -> Result<toml::Table, SettingsError> {
    let unreadable = |source| SettingsError::Unreadable { file: path.to_owned(), source };
    let found = std::fs::metadata(path).map_err(unreadable)?.len();
    if found > FILE_MAX_BYTES {
        return Err(SettingsError::Syntax {
            file: path.to_owned(),
            detail: format!("{found} bytes; a settings file has at most {FILE_MAX_BYTES}"),
        });
    }
    std::fs::read_to_string(path).map_err(unreadable)?.parse().map_err(|error: toml::de::Error| {
        SettingsError::Syntax { file: path.to_owned(), detail: error.to_string() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, environment: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.toml");
        std::fs::write(&file, text).unwrap();
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Settings::load(Some(&file), &environment)
    }

    #[test]
    fn without_file_and_environment_the_defaults_hold() {
        assert_eq!(Settings::load(None, &HashMap::new()).unwrap(), Settings::default());
    }

    #[test]
    fn the_environment_is_stronger_than_the_file_and_the_file_than_the_defaults() {
        let settings = load(
            "listen = \"127.0.0.1:1\"\ncache_quota_bytes = \"10 GiB\"\ndht = false\n",
            &[
                ("STARLING_LISTEN", "127.0.0.1:2"),
                ("STARLING_READ_DEADLINE_MS", "5000"),
                ("STARLING_LOG_FORMAT", "json"),
                ("STARLING_HTTP_LISTEN", "[::1]:9"),
                ("STARLING_CACHE_FREE_FLOOR_BYTES", "2 GiB"),
                ("STARLING_BOOTSTRAP", "mesh.example.org:7400, [2001:db8::1]:7400"),
                ("STARLING_ADVERTISE_MORE", "10.1.0.1:7400,[2001:db8::2]:7400"),
                ("STARLING_REQUIRE_ALL", "1"),
            ],
        )
        .unwrap();
        assert_eq!(settings.listen, "127.0.0.1:2".parse().unwrap());
        assert_eq!(settings.cache_quota_bytes, ByteSize(10 << 30));
        assert_eq!(settings.cache_free_floor_bytes, ByteSize(2 << 30));
        assert!(!settings.dht && !settings.mdns);
        assert_eq!(settings.bootstrap, ["mesh.example.org:7400", "[2001:db8::1]:7400"]);
        assert_eq!((settings.read_deadline_ms, settings.log_format), (5_000, LogFormat::Json));
        assert_eq!(settings.http_listen, Some("[::1]:9".parse().unwrap()));
        assert_eq!(settings.socket, PathBuf::from(DEFAULT_SOCKET));
        let more: Vec<SocketAddr> =
            ["10.1.0.1:7400", "[2001:db8::2]:7400"].map(|a| a.parse().unwrap()).into();
        assert_eq!(settings.advertise_more, more);
    }

    #[test]
    fn the_mtu_is_a_number_or_found_out_and_limits_are_sizes() {
        let settings = load(
            "mtu_bytes = 6550\nsegmentation_offload = false\nupload_limit_bytes_per_s = \"20 MiB\"\n",
            &[("STARLING_DOWNLOAD_LIMIT_BYTES_PER_S", "5 MiB"), ("STARLING_BACKGROUND_PERCENT", "5")],
        )
        .unwrap();
        assert_eq!((settings.mtu_bytes, settings.segmentation_offload), (Mtu::Bytes(6_550), false));
        assert_eq!(settings.upload_limit_bytes_per_s, ByteSize(20 << 20));
        assert_eq!(settings.download_limit_bytes_per_s, ByteSize(5 << 20));
        assert_eq!(settings.background_percent, 5);
        let environment = |value| load("", &[("STARLING_MTU_BYTES", value)]).unwrap().mtu_bytes;
        assert_eq!((environment("auto"), environment("1452")), (Mtu::Auto, Mtu::Bytes(1_452)));
    }

    #[test]
    fn options_by_repository_are_a_table_or_a_text_with_semicolons() {
        let table = load(
            "[automount_options]\n\"*\" = \"noexec\"\n\"sw.example.org\" = \"tag=2.1,uid_map=1:2\"\n",
            &[],
        );
        let text = "*:noexec; sw.example.org:tag=2.1,uid_map=1:2;";
        let environment = load("", &[("STARLING_AUTOMOUNT_OPTIONS", text)]);
        let expected = [("*", "noexec"), ("sw.example.org", "tag=2.1,uid_map=1:2")]
            .map(|(name, list)| (name.to_owned(), list.to_owned()));
        for settings in [table.unwrap(), environment.unwrap()] {
            assert_eq!(settings.automount_options, expected.clone().into());
        }
    }

    #[test]
    fn an_unknown_key_is_named_together_with_its_file() {
        let error = load("lisen = \"127.0.0.1:1\"", &[]).unwrap_err().to_string();
        assert!(
            error.contains("agent.toml") && error.contains("`lisen`") && error.contains("listen"),
            "{error}"
        );
    }

    #[test]
    fn a_bad_value_is_shown_with_its_key() {
        for (text, key, value) in [
            ("listen = \"nonsense\"", "listen", ""),
            ("cache_quota_bytes = \"ten\"", "cache_quota_bytes", "ten"),
            ("cache_quota_bytes = -1", "cache_quota_bytes", "-1"),
            ("mtu_bytes = 9000", "mtu_bytes", "9000"),
            ("mtu_bytes = 70000", "mtu_bytes", "70000"),
            ("mtu_bytes = \"large\"", "mtu_bytes", "large"),
            ("upload_limit_bytes_per_s = \"100 KiB\"", "upload_limit_bytes_per_s", "100 KiB"),
            ("download_limit_bytes_per_s = 1", "download_limit_bytes_per_s", "1 B"),
            ("background_percent = 0", "background_percent", "0"),
            ("background_percent = 101", "background_percent", "101"),
            ("min_copies = 4", "min_copies", "4"),
            ("cell_max_members = 7", "cell_max_members", "7"),
            ("cell_max_members = 2001", "cell_max_members", "2001"),
            ("origin_budget_bytes_per_s = 1000", "origin_budget_bytes_per_s", "1000"),
            ("read_deadline_ms = 1", "read_deadline_ms", "1"),
            ("automount_options = { \"NO NAME\" = \"noexec\" }", "automount_options", "NO NAME"),
            ("automount_options = \"noexec\"", "automount_options", "noexec"),
            ("proxy = \"squid:3128\"", "proxy", "squid:3128"),
            ("advertise = \"0.0.0.0:7400\"", "advertise", "0.0.0.0:7400"),
            ("advertise = \"239.1.1.1:7400\"", "advertise", "239.1.1.1:7400"),
            ("advertise_more = [\"0.0.0.0:7400\"]", "advertise_more", "0.0.0.0:7400"),
            ("certificate_life_s = 5", "certificate_life_s", "5"),
            ("renewal_grace_s = 2592001", "renewal_grace_s", "2592001"),
            ("log_format = \"xml\"", "log_format", "xml"),
            ("dht = \"perhaps\"", "dht", "perhaps"),
            ("bootstrap = [\"a.example:7400\", \"b.example\"]", "bootstrap", "b.example"),
            ("bootstrap = [\"[::1:7400\"]", "bootstrap", "[::1:7400"),
            ("bootstrap = [\"a.example:0\"]", "bootstrap", "a.example:0"),
            ("log_filter = \"[[[\"", "log_filter", "[[["),
            ("log_filter = \"inof\"", "log_filter", "inof"),
            ("log_filter = \"info,libp2p=loud\"", "log_filter", "libp2p=loud"),
            ("log_filter = \"lib p2p=warn\"", "log_filter", "lib p2p=warn"),
            ("log_filter = \",\"", "log_filter", ","),
        ] {
            let error = load(text, &[]).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains(value), "{text}: {error}");
        }
    }

    #[test]
    fn a_word_that_is_none_of_the_two_is_refused_with_key_and_words() {
        for (key, words) in [("verify", ["once", "always"]), ("log_format", ["human", "json"])] {
            let variable = format!("STARLING_{}", key.to_uppercase());
            let refused =
                [load(&format!("{key} = \"maybe\""), &[]), load("", &[(variable.as_str(), "maybe")])];
            for error in refused.map(|refused| refused.unwrap_err().to_string()) {
                let all = [key, "maybe", words[0], words[1]];
                assert!(all.iter().all(|part| error.contains(part)), "{error}");
                assert!(!error.contains("enum"), "{error}");
            }
            for word in words {
                assert!(load(&format!("{key} = \"{word}\""), &[]).is_ok(), "{word}");
            }
        }
        assert_eq!(load("verify = \"always\"", &[]).unwrap().verify, Verify::Always);
    }

    #[test]
    fn a_socket_for_whose_path_there_is_no_room_is_refused_with_its_key() {
        let folder = |bytes: usize| PathBuf::from(format!("/{}", "x".repeat(bytes - 1)));
        let check = |settings: Settings| settings.check().map_err(|error| (error.to_string(), error.hint()));
        // With `/keeper.sock`, 107 and 108 bytes.
        let state = |bytes, keep_mounts_s| Settings {
            state_dir: folder(bytes),
            keep_mounts_s,
            ..Settings::default()
        };
        assert_eq!(check(state(95, 300)), Ok(()));
        let (said, hint) = check(state(96, 300)).unwrap_err();
        let parts = ["`state_dir`", "/keeper.sock", "108 bytes", "107 are the most"];
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
        assert!(hint.is_some_and(|hint| hint.contains("--state")), "{hint:?}");
        assert_eq!(check(state(96, 0)), Ok(()), "no keeper is wanted");
        let socket = |bytes| Settings { socket: folder(bytes), ..Settings::default() };
        assert_eq!(check(socket(107)), Ok(()));
        let (said, hint) = check(socket(108)).unwrap_err();
        assert!(said.contains("`socket`") && said.contains("108 bytes"), "{said}");
        assert!(hint.is_some_and(|hint| hint.contains("--socket")), "{hint:?}");
    }

    #[test]
    fn filters_of_the_log_are_what_tracing_takes() {
        for filter in ["off", "INFO", "debug,quinn=warn", "warn,[read{chunk}]=trace,starling[fetch]=debug,"] {
            assert_eq!(load(&format!("log_filter = \"{filter}\""), &[]).unwrap().log_filter, filter);
        }
    }

    #[test]
    fn a_file_that_is_missing_or_no_toml_is_named() {
        let missing = Settings::load(Some(Path::new("/nowhere/agent.toml")), &HashMap::new()).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/agent.toml"), "{missing}");
        let error = load("listen = = 1", &[]).unwrap_err().to_string();
        assert!(error.contains("agent.toml"), "{error}");
    }
}
