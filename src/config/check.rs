//! What no agent can work with, whatever its kind allows.

use super::{ByteSize, EVERY_OTHER, Mtu, Settings, SettingsError, leads_somewhere};
use crate::model::RepositoryName;
use std::fmt;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Least limit of what is sent to neighbours or taken from them (`mesh/throttle.rs` says why).
const LIMIT_MIN_BYTES_PER_S: u64 = 1 << 20;
/// Most members of a cell.
pub(super) const CELL_MAX: u16 = 2_000;
const _: () = assert!(CELL_MAX as usize == crate::model::limits::CELL_MAX_MEMBERS);
/// Longest path of a Unix socket: the kernel has room for 108 bytes, and one of them ends it (unix(7)).
pub(super) const SOCKET_PATH_MAX_BYTES: usize = 107;
/// Most entries of `advertise_more`: with the first, as many as a ticket has room for.
const ADVERTISE_MORE_MAX: usize = 7;
/// Most entries of `automount_options`: far more than somebody writes (a guess).
const AUTOMOUNT_OPTIONS_MAX: usize = 1_024;
/// Most entries of `bootstrap`: a few names of several addresses each (a guess).
const BOOTSTRAP_MAX: usize = 16;

impl Settings {
    /// Refuses values that no agent can work with.
    ///
    /// # Errors
    /// [`SettingsError::OutOfBounds`], [`SettingsError::SocketPath`].
    pub fn check(&self) -> Result<(), SettingsError> {
        let refuse = |key, found: &dyn fmt::Display, allowed| {
            Err(SettingsError::OutOfBounds { key, found: found.to_string(), allowed })
        };
        if let Mtu::Bytes(bytes) = self.mtu_bytes
            && !(1_200..=6_550).contains(&bytes)
        {
            // Below 1 200 bytes QUIC does not work (RFC 9000, 14).
            return refuse("mtu_bytes", &bytes, "\"auto\", or 1200 to 6550");
        }
        let limits = [
            ("upload_limit_bytes_per_s", self.upload_limit_bytes_per_s),
            ("download_limit_bytes_per_s", self.download_limit_bytes_per_s),
        ];
        for (key, limit) in limits {
            if (1..LIMIT_MIN_BYTES_PER_S).contains(&limit.0) {
                return refuse(key, &limit, "0 (no limit) or at least 1 MiB");
            }
        }
        if !(1..=100).contains(&self.background_percent) {
            return refuse("background_percent", &self.background_percent, "1 to 100");
        }
        if !(1_000..=3_600_000).contains(&self.read_deadline_ms) {
            return refuse(
                "read_deadline_ms",
                &self.read_deadline_ms,
                "1000 (a second) to 3600000 (an hour)",
            );
        }
        if self.worker_threads > 512 {
            return refuse("worker_threads", &self.worker_threads, "0 (as many as processors) to 512");
        }
        if !(1_000..=600_000).contains(&self.stop_deadline_ms) {
            return refuse("stop_deadline_ms", &self.stop_deadline_ms, "1000 to 600000 (ten minutes)");
        }
        if self.keep_mounts_s > 86_400 {
            return refuse("keep_mounts_s", &self.keep_mounts_s, "0 to 86400 (a day)");
        }
        self.check_automount()?;
        self.check_sockets()?;
        if self.cache_quota_bytes < ByteSize(64 << 20) {
            return refuse("cache_quota_bytes", &self.cache_quota_bytes, "at least 64 MiB");
        }
        if !(8..=CELL_MAX).contains(&self.cell_max_members) {
            return refuse("cell_max_members", &self.cell_max_members, "8 to 2000");
        }
        if !(1..=3).contains(&self.min_copies) {
            return refuse("min_copies", &self.min_copies, "1 to 3");
        }
        if (1..64 << 10).contains(&self.origin_budget_bytes_per_s.0) {
            // Below, a chunk of 4 MiB takes longer than any reader waits.
            return refuse(
                "origin_budget_bytes_per_s",
                &self.origin_budget_bytes_per_s,
                "0 (no budget) or at least 64 KiB",
            );
        }
        if !(6..=30 * 86_400).contains(&self.certificate_life_s) {
            let allowed = "6 (for tests) to 2592000 (30 days)";
            return refuse("certificate_life_s", &self.certificate_life_s, allowed);
        }
        if self.renewal_grace_s > 30 * 86_400 {
            return refuse("renewal_grace_s", &self.renewal_grace_s, "at most 2592000 (30 days)");
        }
        if let Some(url) = &self.proxy
            && !url.starts_with("http://")
            && !url.starts_with("https://")
        {
            return refuse("proxy", url, "http://HOST:PORT or https://HOST:PORT");
        }
        if self.bootstrap.len() > BOOTSTRAP_MAX {
            return refuse("bootstrap", &self.bootstrap.len(), "a list of at most 16 times HOST:PORT");
        }
        if let Some(bad) = self.bootstrap.iter().find(|name| !is_host_and_port(name)) {
            return refuse("bootstrap", bad, "HOST:PORT, such as mesh.example.org:7400");
        }
        if self.advertise_more.len() > ADVERTISE_MORE_MAX {
            return refuse(
                "advertise_more",
                &self.advertise_more.len(),
                "a list of at most 7 times ADDRESS:PORT",
            );
        }
        if let Some(bad) = self.advertise_more.iter().find(|address| !leads_somewhere(address)) {
            return refuse("advertise_more", bad, "addresses and ports that others can reach");
        }
        if self.advertise.is_some_and(|address| !leads_somewhere(&address)) {
            let found = self.advertise.map_or_else(String::new, |a| a.to_string());
            return refuse("advertise", &found, "an address and a port that others can reach");
        }
        if !is_log_filter(&self.log_filter) {
            let allowed = "levels (off, error, warn, info, debug, trace) and TARGET=LEVEL, with commas and no blanks between them";
            return refuse("log_filter", &self.log_filter, allowed);
        }
        Ok(())
    }

    fn check_automount(&self) -> Result<(), SettingsError> {
        let refuse = |key, found: &dyn fmt::Display, allowed| {
            Err(SettingsError::OutOfBounds { key, found: found.to_string(), allowed })
        };
        if let Some(dir) =
            self.automount_dir.as_ref().filter(|dir| !dir.is_absolute() || dir.parent().is_none())
        {
            return refuse("automount_dir", &dir.display(), "an absolute path, such as /starling");
        }
        if self.automount_idle_s > 30 * 86_400 {
            return refuse("automount_idle_s", &self.automount_idle_s, "0 (never) to 2592000 (30 days)");
        }
        if self.automount_options.len() > AUTOMOUNT_OPTIONS_MAX {
            let found = self.automount_options.len();
            return refuse("automount_options", &found, "options of at most 1024 repositories");
        }
        let is_no_name =
            |name: &&String| name.as_str() != EVERY_OTHER && name.parse::<RepositoryName>().is_err();
        if let Some(bad) = self.automount_options.keys().find(is_no_name) {
            return refuse("automount_options", bad, "options by the name of a repository, or by *");
        }
        Ok(())
    }

    /// Without the keeper's socket, mounts would end with the agent although they are to be kept.
    fn check_sockets(&self) -> Result<(), SettingsError> {
        let control = (
            "socket",
            self.socket.clone(),
            "choose a shorter path with --socket (or `socket` in the settings), such as /run/starling/agent.sock",
        );
        let keeper = (
            "state_dir",
            self.keeper_socket(),
            "choose a shorter folder with --state (or `state_dir` in the settings): the socket of the mounts' keeper lies in it",
        );
        for (key, socket, hint) in [Some(control), self.keep_mounts().map(|_| keeper)].into_iter().flatten() {
            if socket.as_os_str().len() > SOCKET_PATH_MAX_BYTES {
                return Err(SettingsError::SocketPath { key, socket, hint });
            }
        }
        Ok(())
    }
}

fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    // What a resolver takes; a colon belongs to an address in brackets.
    let host_ok = if let Some(inner) = host.strip_prefix('[') {
        inner.strip_suffix(']').is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok())
    } else {
        (1..=253).contains(&host.len())
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    host_ok && port.parse::<u16>().is_ok_and(|port| port != 0)
}

/// Whether a text is a filter, and one that was meant: to `tracing`, a level that is misspelt is a target of which
/// everything is logged, and of all others nothing.
fn is_log_filter(text: &str) -> bool {
    let mut parts = text.split(',').filter(|part| !part.is_empty()).peekable();
    parts.peek().is_some()
        && parts.all(|part| part.contains(['=', '[']) || part.parse::<LevelFilter>().is_ok())
        && !text.contains(char::is_whitespace)
        && EnvFilter::try_new(text).is_ok()
}
