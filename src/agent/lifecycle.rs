//! From start to stop: what is opened in which order, and how it is left.
//!
//! The order is from the bottom up: state folder, keeper of the mounts, socket, registry, cache, strata, mesh, mounts, and at
//! last the answers of the control API. Stopping goes the other way round. Each step of it has a
//! bound, and what must be durable is so at any time: stopping is courtesy, not duty.

use super::api::{MountRequest, Peers};
use super::automount::{Automount, AutomountConfig, AutomountOptions};
use super::cached;
use super::company::{self, Company};
use super::contacts::Contacts;
use super::error::AgentError;
use super::holdings::Holdings;
use super::interfaces::{LOOK_EVERY, Places};
use super::memory;
use super::mounter::{KernelMounter, ReadBook};
use super::mounts::{MountTable, TEND_EVERY};
use super::node::{Membership, Node};
use super::offer::Offers;
use super::pins::Pins;
use super::server::{Control as _, ControlSocket, control_router, open_router};
use super::state::StateFolder;
use super::trees::Trees;
use crate::ambient;
use crate::cache::{CacheConfig, DiskCache};
use crate::config::{Mtu, Settings, Verify};
use crate::fetch::{FetchSettings, Fetcher, LocalNode, StrataOptions};
use crate::mesh::{
    Contact, Endpoint, EndpointConfig, Identity, IdentityError, Incoming, JoinConnection, JoinDesk, Local,
    Mesh, MeshStart, Network, Office, OfficeConfig, RateLimits, Tamper, Tuning, bootstrap, proto,
};
use crate::model::NodeId;
use crate::store::ChunkStore as _;
use crate::trust::Repositories;
use crate::upstream::{HttpClient, HttpOptions};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

/// How long readiness waits for the mounts of the last run: those that take longer come later.
const RESTORE_PATIENCE: Duration = Duration::from_secs(5);
/// How long those who are inside of mounts of the agent before wait at most for this one's start (guess): to read the headers of 20 GiB
/// of small chunks may take a slow disk half of it.
const START_MAX: Duration = Duration::from_secs(3_600);
/// Looks at the mounts that may be under way, each with mounts that take long (guess).
const ROUNDS_MAX: usize = 64;
/// Time for answers under way when the agent stops.
const ANSWERS_PATIENCE: Duration = Duration::from_secs(1);

/// Time that the cache gets to be flushed, however late it is: it is asked last.
const FLUSH_AT_LEAST: Duration = Duration::from_secs(1);

/// What an agent is started with.
pub struct Options {
    /// All settings.
    pub settings: Settings,
    /// What is to be mounted, whatever was mounted before.
    pub mounts: Vec<MountRequest>,
    /// How repositories are mounted in the folder of all.
    pub automount_options: AutomountOptions,
    /// Where to record everything that reaches the core.
    pub record_inputs: Option<PathBuf>,
    /// The core's constants.
    pub core: proto::Settings,
    /// Tampers with what peers ask; `None` in every honest agent.
    pub tamper: Option<Tamper>,
}

/// Runs an agent until `stop` is ready, and stops it in order.
///
/// # Errors
/// [`AgentError`] when it cannot start. Once it has started, trouble is logged and lived with.
pub async fn run(options: Options, stop: impl Future<Output = ()>) -> Result<(), AgentError> {
    let agent = Agent::start(options).await?;
    tracing::info!(socket = %agent.node.settings.socket.display(), "ready");
    stop.await;
    tracing::info!("stopping");
    agent.stop().await;
    Ok(())
}

struct Agent {
    node: Arc<Node>,
    /// Ends tending and serving.
    ending: CancellationToken,
    automount: Option<Arc<Automount>>,
    servers: Vec<JoinHandle<()>>,
    tending: JoinHandle<()>,
    joins: Option<JoinHandle<()>>,
    /// Held to the last.
    _state: StateFolder,
}

impl Agent {
    async fn start(options: Options) -> Result<Self, AgentError> {
        let Options { settings, mounts: declared, automount_options, record_inputs, core, tamper } = options;
        memory::keep_small();
        let started = ambient::now();
        let state = StateFolder::open(&settings.state_dir)?;
        // Before all that may take long, as the cache does: the keeper ends no mount while an agent is there.
        let holdings = holdings(&settings);
        let socket = ControlSocket::open(&settings.socket)?;
        let open_listener = open_http(&settings).await?;
        let registry = Arc::new(Repositories::open(&state.repositories())?);
        let cache = Arc::new(DiskCache::open(&settings.cache_dir(), cache_config(&settings))?);
        let http = HttpClient::new(HttpOptions { proxy: settings.proxy.clone(), ..HttpOptions::default() })
            .map_err(|e| AgentError::Strata(e.to_string()))?;
        let (identity, no_membership) = identity(&settings)?;
        let trust = identity.as_ref().map(|identity| identity.trust().clone());
        let local = Arc::new(LocalNode::new(
            cache.clone(),
            cache.clone(),
            registry.clone(),
            trust,
            http.clone(),
            StrataOptions::default(),
        ));

        let contacts = Contacts::open(state.contacts());
        let network =
            identity.map(|identity| join_network(&settings, identity, &contacts, tamper)).transpose()?;
        let (network, joins, membership) = match network {
            Some((network, joins, membership)) => (Some(network), Some(joins), Some(membership)),
            None => (None, None, None),
        };
        let record = record_inputs.map(|path| recording(&path)).transpose()?;
        let mesh = Mesh::start(MeshStart {
            local: local.clone() as Arc<dyn Local>,
            network,
            settings: proto::Settings {
                origin_bytes_per_s: settings.origin_budget_bytes_per_s.0,
                origin_burst_bytes: settings.origin_burst_bytes.0,
                min_copies: settings.min_copies,
                ..core
            },
            record,
        })
        .map_err(AgentError::Mesh)?;
        let office = membership.as_ref().and_then(|membership| membership.office.clone());
        let (joins, no_desk) = open_desk(office, joins, &settings, &mesh);
        let removed = Arc::downgrade(&mesh);
        cache.on_removal(Box::new(move |id| {
            if let Some(mesh) = removed.upgrade() {
                mesh.removed(id);
            }
        }));

        let deadlines = FetchSettings { read_deadline: settings.read_deadline(), ..FetchSettings::default() };
        let fetcher = Fetcher::new(cache.clone(), mesh.clone(), deadlines);
        let reads = Arc::new(ReadBook::default());
        let mounter = KernelMounter {
            local,
            fetcher,
            cache: cache.clone(),
            offers: Offers::new(mesh.clone(), cache.clone()),
            book: reads.clone(),
            trees: Trees::default(),
            identity: membership.as_ref().map(|membership| membership.identity.clone()),
            holdings: holdings.clone(),
            replay_bytes: settings.replay_bytes.0,
            verify_always: settings.verify == Verify::Always,
            quick_wake: settings.quick_wake,
        };
        let mounts = MountTable::open(Box::new(mounter), registry.clone(), state.mounts())
            .map_err(|source| AgentError::State { path: state.mounts(), source })?;
        mounts.declare(declared).map_err(|source| AgentError::State { path: state.mounts(), source })?;
        let mounts = Arc::new(mounts);
        let ending = CancellationToken::new();
        let (automount, no_automount) = automount(&settings, automount_options, &registry, &mounts, &ending);
        let pins = Arc::new(Pins::new(cache.clone(), mounts.clone()));
        let node = Arc::new(Node {
            company: Company::new(started, ambient::generator()),
            no_desk,
            no_automount,
            no_membership,
            started,
            settings,
            membership,
            registry,
            cache,
            http,
            mesh,
            mounts,
            holdings: holdings.clone(),
            pins,
            wake: Arc::new(Notify::new()),
            reads,
        });
        restore(&node, holdings.as_deref()).await;
        let before = known_before(&node, &contacts);
        let tending = tokio::spawn(tend(node.clone(), holdings, contacts, ending.clone()));
        tokio::spawn(keep_company(node.clone(), before, ending.clone()));
        tokio::spawn(look_at_interfaces(node.clone(), ending.clone()));
        look_after_the_cache(&node, &ending);
        let servers = serve(&node, socket, open_listener, &ending);
        Ok(Self { node, ending, automount, servers, tending, joins, _state: state })
    }

    /// Answers first, then mounts, mesh and cache, so that nobody uses what is going.
    async fn stop(self) {
        let patience = self.node.settings.stop_deadline();
        let until = ambient::now() + patience;
        self.ending.cancel();
        self.tending.abort();
        for server in self.servers {
            let _ = tokio::time::timeout(ANSWERS_PATIENCE, server).await;
        }
        // Half for the mounts: the mesh still serves their last reads meanwhile.
        self.node.mounts.leave_all(patience / 2).await;
        // Where mounts are kept, the folder in which they are stays as well.
        if let Some(automount) = self.automount.filter(|_| self.node.settings.keep_mounts().is_none()) {
            automount.end();
        }
        if let Some(joins) = self.joins {
            joins.abort();
        }
        let left = until.since(ambient::now());
        if tokio::time::timeout(left, self.node.mesh.shutdown()).await.is_err() {
            tracing::warn!("the mesh was not left in order: there was no time");
        }
        let cache = self.node.cache.clone();
        let flush = tokio::task::spawn_blocking(move || cache.sync());
        match tokio::time::timeout(until.since(ambient::now()).max(FLUSH_AT_LEAST), flush).await {
            Ok(Ok(Ok(()))) => tracing::info!("stopped"),
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the cache could not be flushed"),
            Ok(Err(error)) => tracing::warn!(%error, "the cache was not flushed"),
            Err(_) => tracing::warn!("the cache was not flushed: the disk is too slow"),
        }
    }
}

/// Goes on with the mounts of the last run.
async fn restore(node: &Arc<Node>, holdings: Option<&Holdings>) {
    if let Some(holdings) = holdings {
        holdings.end_start();
    }
    node.mounts.let_go_others().await;
    let restoring = node.clone();
    let restored = tokio::spawn(async move { restoring.mounts.tend().await });
    if tokio::time::timeout(RESTORE_PATIENCE, restored).await.is_err() {
        tracing::warn!("some mounts of the last run are not there yet; they follow");
    }
}

/// The folder of all repositories, if one is wanted; or why there is none, which is no reason not to start.
fn automount(
    settings: &Settings,
    options: AutomountOptions,
    registry: &Arc<Repositories>,
    mounts: &Arc<MountTable>,
    ending: &CancellationToken,
) -> (Option<Arc<Automount>>, Option<String>) {
    let Some(folder) = &settings.automount_dir else { return (None, None) };
    let (registry, mounts) = (registry.clone(), mounts.clone());
    let config = AutomountConfig { folder: folder.clone(), idle: settings.automount_idle(), options };
    match Automount::begin(config, registry, mounts, ending.clone()) {
        Ok(automount) => (Some(automount), None),
        Err(error) => {
            let trouble = format!(
                "repositories are not mounted below {} when somebody enters them: {error}",
                folder.display()
            );
            tracing::error!("{trouble}");
            (None, Some(trouble))
        }
    }
}

/// Keeps what is pinned, and looks for damage.
fn look_after_the_cache(node: &Node, ending: &CancellationToken) {
    let (pins, until) = (node.pins.clone(), ending.clone());
    tokio::spawn(async move { pins.tend(until).await });
    let scrub_rate = node.settings.cache_scrub_bytes_per_s.0;
    tokio::spawn(cached::scrub(node.cache.clone(), scrub_rate, ending.clone()));
}

/// The keeper of this agent's mounts, if they are to be kept. What it holds does not wait for ever for the end of the start, which hangs
/// where a disk does.
fn holdings(settings: &Settings) -> Option<Arc<Holdings>> {
    let patience = settings.keep_mounts()?;
    let holdings = Arc::new(Holdings::open(&settings.keeper_socket(), patience));
    let starting = Arc::downgrade(&holdings);
    tokio::spawn(async move {
        tokio::time::sleep(START_MAX).await;
        let Some(holdings) = starting.upgrade().filter(|holdings| holdings.is_starting()) else { return };
        tracing::error!(
            "the start takes longer than {} s: who is inside of the last run's mounts waits no longer, and gets errors; \
             does a disk hang?",
            START_MAX.as_secs()
        );
        let _ = tokio::task::spawn_blocking(move || holdings.end_leftovers()).await;
    });
    Some(holdings)
}

fn cache_config(settings: &Settings) -> CacheConfig {
    CacheConfig {
        quota_bytes: settings.cache_quota_bytes.0,
        free_floor_bytes: settings.cache_free_floor_bytes.0,
        minimum_bytes: CacheConfig::default().minimum_bytes.min(settings.cache_quota_bytes.0),
        verify_always: settings.verify == Verify::Always,
    }
}

/// The membership, if there is one. A node whose membership has lapsed starts all the same: nobody serves it until
/// an authority has renewed it, and its mounts and its strata are there meanwhile.
///
/// One whose membership cannot be verified stands alone; the second value says why.
fn identity(settings: &Settings) -> Result<(Option<Arc<Identity>>, Option<String>), AgentError> {
    match Identity::load(&settings.state_dir) {
        Ok(identity) => Ok((Some(Arc::new(identity)), None)),
        Err(IdentityError::NotAMember { .. }) => {
            tracing::info!("this node is not a member of a mesh and stands alone");
            Ok((None, None))
        }
        Err(error @ IdentityError::Membership(_)) => {
            let file = settings.state_dir.join("membership");
            let trouble = format!(
                "this node stands alone until it joins again, for its membership ({}) does not count: {error}",
                file.display()
            );
            tracing::error!("{trouble}");
            Ok((None, Some(trouble)))
        }
        Err(error) => Err(error.into()),
    }
}

fn office_config(settings: &Settings) -> OfficeConfig {
    OfficeConfig {
        life: Duration::from_secs(settings.certificate_life_s),
        grace: Duration::from_secs(settings.renewal_grace_s),
    }
}

fn endpoint_config(settings: &Settings) -> EndpointConfig {
    let mtu = match settings.mtu_bytes {
        Mtu::Auto => EndpointConfig::mtu_of_interfaces(settings.listen.ip()),
        Mtu::Bytes(bytes) => bytes,
    };
    EndpointConfig {
        mtu,
        segmentation_offload: settings.segmentation_offload,
        limits: RateLimits {
            upload_bytes_per_s: settings.upload_limit_bytes_per_s.0,
            download_bytes_per_s: settings.download_limit_bytes_per_s.0,
            background_percent: settings.background_percent,
        },
        ..EndpointConfig::new(settings.listen)
    }
}

/// The joiners that an authority serves once the mesh is there.
type Joins = mpsc::Receiver<JoinConnection>;

/// Opens the endpoint, and where this node is an authority its office.
fn join_network(
    settings: &Settings,
    identity: Arc<Identity>,
    contacts: &Contacts,
    tamper: Option<Tamper>,
) -> Result<(Network, Joins, Membership), AgentError> {
    let office = match identity.mesh_keys() {
        Some(_) => match Office::open(identity.clone(), office_config(settings)) {
            Ok(office) => Some(office),
            Err(error) => {
                tracing::error!(%error, "this authority certifies nobody");
                None
            }
        },
        None => None,
    };
    let (endpoint, incoming) = Endpoint::bind(endpoint_config(settings), identity.clone())?;
    let bound = endpoint.local_addr()?;
    let places = Places::find(bound, settings.advertise, settings.advertise_more.clone());
    let (address, addresses) = (places.best(), places.all());
    if address.ip().is_loopback() && !settings.listen.ip().is_loopback() {
        tracing::warn!(%address, "no address of this machine was found that others could reach; see `advertise`");
    }
    let Incoming { libp2p, chunks, joins, datagrams } = incoming;
    let mut known = contacts.known().to_vec();
    match bootstrap(&settings.state_dir, identity.trust()) {
        Ok(members) => known
            .extend(members.into_iter().map(|(member, addresses)| Contact { node: member.node, addresses })),
        Err(error) => tracing::warn!(%error, "the members named at the join are not known any more"),
    }
    let network = Network {
        endpoint,
        libp2p,
        chunks,
        datagrams,
        addr: address,
        more: addresses[1..].to_vec(),
        contacts: known,
        bootstrap: settings.bootstrap.clone(),
        mdns: settings.mdns,
        dht: settings.dht,
        tuning: Tuning { cell_max: usize::from(settings.cell_max_members), ..Tuning::default() },
        tamper,
        office: office.clone(),
    };
    Ok((network, joins, Membership { identity, places: Arc::new(places), office }))
}

/// Opens the desk of an authority. A desk that cannot be opened lets nobody in; why, is returned. The rest of the agent
/// does not need it.
fn open_desk(
    office: Option<Arc<Office>>,
    joins: Option<Joins>,
    settings: &Settings,
    mesh: &Mesh,
) -> (Option<JoinHandle<()>>, Option<String>) {
    let (Some(office), Some(joins)) = (office, joins) else { return (None, None) };
    match JoinDesk::open(office, &settings.state_dir, mesh.introductions()) {
        Ok(desk) => (Some(tokio::spawn(desk.run(joins))), None),
        Err(error) => {
            let trouble =
                format!("nobody can join here until this is mended and the agent restarted: {error}");
            tracing::error!("{trouble}");
            (None, Some(trouble))
        }
    }
}

async fn open_http(settings: &Settings) -> Result<Option<TcpListener>, AgentError> {
    let Some(address) = settings.http_listen else { return Ok(None) };
    let listener = TcpListener::bind(address).await.map_err(|source| AgentError::Http { address, source })?;
    tracing::info!(address = %listener.local_addr()?, "metrics, health and announcements over HTTP");
    Ok(Some(listener))
}

fn recording(path: &std::path::Path) -> Result<Box<dyn Write + Send>, AgentError> {
    let file = File::create(path).map_err(|source| AgentError::State { path: path.to_owned(), source })?;
    Ok(Box::new(BufWriter::new(file)))
}

fn serve(
    node: &Arc<Node>,
    socket: ControlSocket,
    open_listener: Option<TcpListener>,
    ending: &CancellationToken,
) -> Vec<JoinHandle<()>> {
    let stop = ending.clone();
    let control = control_router(node.clone());
    let mut servers = vec![tokio::spawn(async move {
        if let Err(error) = socket.serve(control, stop.cancelled_owned()).await {
            tracing::error!(%error, "the control socket failed");
        }
    })];
    if let Some(listener) = open_listener {
        let (stop, open) = (ending.clone(), open_router(node.clone()));
        servers.push(tokio::spawn(async move {
            if let Err(error) =
                axum::serve(listener, open).with_graceful_shutdown(stop.cancelled_owned()).await
            {
                tracing::error!(%error, "the open HTTP address failed");
            }
        }));
    }
    servers
}

/// Tells the mesh where this node is reached when its interfaces have other addresses than before.
async fn look_at_interfaces(node: Arc<Node>, ending: CancellationToken) {
    let Some(places) = node.membership.as_ref().map(|membership| membership.places.clone()) else { return };
    while ending.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
        let looking = places.clone();
        // It asks the kernel, and reads files of it.
        let looked = tokio::task::spawn_blocking(move || looking.look()).await;
        if looked.is_ok_and(|changed| changed) {
            tracing::info!(addresses = ?places.all(), "this machine is reached elsewhere now");
        }
        // In any case, should it not have come in before.
        node.mesh.reached_at(places.all()).await;
    }
}

/// The members of the last run, and those that were named at the join or the last renewal.
fn known_before(node: &Node, contacts: &Contacts) -> BTreeSet<NodeId> {
    let mut known: BTreeSet<_> = contacts.known().iter().map(|contact| contact.node).collect();
    if let Some(membership) = &node.membership {
        let named = bootstrap(&node.settings.state_dir, membership.identity.trust());
        known.extend(named.unwrap_or_default().iter().map(|(member, _)| member.node));
    }
    known
}

/// Looks whether others of the mesh are seen, and asks the strata for newer roots when nobody is. `before`: the members of
/// the last run.
async fn keep_company(node: Arc<Node>, before: BTreeSet<NodeId>, ending: CancellationToken) {
    let asking = Arc::new(Semaphore::new(1));
    while ending.run_until_cancelled(tokio::time::sleep(company::LOOK_EVERY)).await.is_some() {
        let peers = node.mesh.peers().await;
        let up = peers.iter().filter(|peer| peer.up).count();
        let mut known = BTreeSet::new();
        if let Some(membership) = node.membership.as_ref().filter(|_| up == 0) {
            known.extend(&before);
            known.extend(peers.iter().filter(|peer| peer.cell.is_some()).map(|peer| peer.node));
            known.remove(&membership.identity.node());
            node.gone_for_good().await.iter().for_each(|revoked| {
                known.remove(revoked);
            });
        }
        let now = ambient::now();
        let alone = node.company.look(up, known.len(), now);
        let untold = node.company.asks_for_untold(now);
        // Beside the looking, for strata may be silent for long. One at a time: who is late is asked again soon enough.
        if let (true, Ok(turn)) = (alone || untold, asking.clone().try_acquire_owned()) {
            let (node, ending) = (node.clone(), ending.clone());
            tokio::spawn(async move {
                if ending.run_until_cancelled(node.mounts.ask_strata(alone)).await == Some(true) {
                    node.wake.notify_one();
                }
                drop(turn);
            });
        }
    }
}

/// Looks after the mounts whenever there is news, and every [`TEND_EVERY`] in any case; then also
/// remembers who is alive.
async fn tend(
    node: Arc<Node>,
    holdings: Option<Arc<Holdings>>,
    mut contacts: Contacts,
    ending: CancellationToken,
) {
    let mut news = node.mesh.news_changed();
    let mut ticks = tokio::time::interval(TEND_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut has_news = true;
    // They end with this one.
    let mut rounds = JoinSet::new();
    loop {
        while rounds.try_join_next().is_some() {}
        tokio::select! {
            () = ending.cancelled() => return,
            changed = news.changed(), if has_news => has_news = changed.is_ok(),
            () = node.wake.notified() => {}
            _ = ticks.tick() => {
                let Peers { peers, .. } = node.peers().await;
                contacts.remember(&peers);
                contacts.forget(&node.revoked_members().await);
            }
        }
        // Not waited for: a mount that takes long must not keep the others from their news. It is not touched twice at a time.
        if rounds.len() < ROUNDS_MAX {
            let (node, holdings, ending) = (node.clone(), holdings.clone(), ending.clone());
            rounds.spawn(async move {
                if let Some(holdings) = holdings {
                    let _ = tokio::task::spawn_blocking(move || holdings.look_again()).await;
                    // What is left at the end is the successor's.
                    if !ending.is_cancelled() {
                        node.mounts.let_go_others().await;
                    }
                }
                node.mounts.tend().await;
            });
        }
    }
}
