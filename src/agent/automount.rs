//! All repositories under one folder: each is mounted when somebody enters it, and unmounted when nobody uses it.
//!
//! The kernel's automounter asks (`fs/autofs.rs`), the table of mounts does it. Known repositories are shown as folders before they are mounted, so that they
//! can be listed.

use super::api::{MountOptions, MountRequest, RefusalKind};
use super::mounts::MountTable;
use crate::fs::{Autofs, AutofsRequest, AutofsRequests};
use crate::model::RepositoryName;
use crate::trust::Repositories;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// Requests that are worked on at once, and as many that wait (guess); more wait in the kernel.
const AT_ONCE: usize = 64;
/// How often new repositories are shown.
const SHOW_EVERY: Duration = Duration::from_secs(5);
/// How often idle ones are looked for, at most; and never less often than four times in the span after which they are idle.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// How a repository is mounted when somebody enters it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AutomountHow {
    /// As one that is mounted by name.
    pub options: MountOptions,
    /// Whether to bring each revision that is shown into the cache as a whole.
    pub fill: bool,
}

/// How repositories are mounted in the folder of all. What is mounted already stays as it is until it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AutomountOptions {
    /// Those that are named.
    pub named: BTreeMap<RepositoryName, AutomountHow>,
    /// All others.
    pub others: AutomountHow,
}

impl AutomountOptions {
    /// How this one is mounted.
    pub fn of(&self, repository: &RepositoryName) -> &AutomountHow {
        self.named.get(repository).unwrap_or(&self.others)
    }
}

/// What is wanted of the folder of all repositories.
pub(super) struct AutomountConfig {
    /// Where it is.
    pub(super) folder: PathBuf,
    /// After how long what nobody uses is unmounted; `None`: never.
    pub(super) idle: Option<Duration>,
    /// How they are mounted.
    pub(super) options: AutomountOptions,
}

/// The folder of all repositories.
pub(super) struct Automount {
    autofs: Arc<Autofs>,
    options: AutomountOptions,
    registry: Arc<Repositories>,
    mounts: Arc<MountTable>,
    shown: Mutex<BTreeSet<RepositoryName>>,
}

impl Automount {
    /// Makes the folder of all repositories. To be called before the table of mounts does anything: a predecessor
    /// may have left mounts below the folder. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// When the kernel cannot, or refuses.
    pub(super) fn begin(
        config: AutomountConfig,
        registry: Arc<Repositories>,
        mounts: Arc<MountTable>,
        ending: CancellationToken,
    ) -> io::Result<Arc<Self>> {
        let AutomountConfig { folder, idle, options } = config;
        let (autofs, requests) = tokio::task::block_in_place(|| Autofs::begin(&folder))?;
        let autofs = Arc::new(autofs);
        let shown = Mutex::default();
        let automount = Arc::new(Self { autofs: autofs.clone(), options, registry, mounts, shown });
        automount.show_all();
        let incoming = receive(requests)?;
        tokio::spawn(ending.clone().run_until_cancelled_owned(automount.clone().serve(incoming)));
        let showing = automount.clone();
        tokio::spawn(ending.clone().run_until_cancelled_owned(async move {
            loop {
                tokio::time::sleep(SHOW_EVERY).await;
                showing.show_all();
            }
        }));
        if let Some(idle) = idle {
            autofs.set_idle(idle)?;
            tokio::spawn(ending.run_until_cancelled_owned(expire(autofs, idle)));
        }
        Ok(automount)
    }

    /// Takes the folder away. Nothing may be mounted below it any more.
    pub(super) fn end(&self) {
        if let Err(error) = tokio::task::block_in_place(|| self.autofs.end()) {
            tracing::warn!(folder = %self.autofs.path().display(), "could not be unmounted: {error}");
        }
    }

    fn show_all(&self) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        for card in self.registry.cards() {
            if shown.contains(&card.name) {
                continue;
            }
            match self.autofs.show(card.name.as_str()) {
                Ok(()) => {
                    shown.insert(card.name);
                }
                Err(error) => tracing::debug!(repository = %card.name, "is not shown: {error}"),
            }
        }
    }

    async fn serve(self: Arc<Self>, mut incoming: mpsc::Receiver<AutofsRequest>) {
        let room = Arc::new(Semaphore::new(AT_ONCE));
        while let Some(request) = incoming.recv().await {
            let Some(repository) = self.known(&request.name) else {
                self.answer(&request, Err(true));
                continue;
            };
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            let here = self.clone();
            // It is not cut off when the agent stops: half a mount would be left.
            tokio::spawn(async move {
                let outcome = here.carry_out(&request, repository).await;
                here.answer(&request, outcome);
                drop(permit);
            });
        }
    }

    fn known(&self, name: &[u8]) -> Option<RepositoryName> {
        let name: RepositoryName = std::str::from_utf8(name).ok()?.parse().ok()?;
        self.registry.card(&name).map(|card| card.name)
    }

    /// An error says whether there is no such repository.
    async fn carry_out(&self, request: &AutofsRequest, repository: RepositoryName) -> Result<(), bool> {
        let directory = self.autofs.path().join(repository.as_str());
        if request.is_expiry {
            return if self.mounts.unmount_idle(&directory).await { Ok(()) } else { Err(false) };
        }
        if let Err(error) = self.autofs.show(repository.as_str()) {
            tracing::warn!(%repository, "cannot be mounted in the folder of all: {error}");
            return Err(false);
        }
        let AutomountHow { options, fill } = self.options.of(&repository).clone();
        let request = MountRequest { repository: repository.clone(), directory, fill, options };
        match self.mounts.mount_automatically(request).await {
            Ok(()) => Ok(()),
            // It is mounted, but the one who asks does not see it: he lives in another mount namespace.
            Err(refusal) if refusal.kind == RefusalKind::Conflict => {
                tracing::debug!(%repository, %refusal, "not mounted again");
                Err(false)
            }
            Err(refusal) => {
                tracing::warn!(%repository, "somebody looks for it, and it could not be mounted: {refusal}");
                Err(false)
            }
        }
    }

    fn answer(&self, request: &AutofsRequest, outcome: Result<(), bool>) {
        let answered = match outcome {
            Ok(()) => self.autofs.ready(request.token),
            Err(is_unknown) => self.autofs.fail(request.token, is_unknown),
        };
        if let Err(error) = answered {
            tracing::debug!("who looked has gone: {error}");
        }
    }
}

/// Reads requests on a thread of their own, which ends with the process.
fn receive(mut requests: AutofsRequests) -> io::Result<mpsc::Receiver<AutofsRequest>> {
    let (outgoing, incoming) = mpsc::channel(AT_ONCE);
    std::thread::Builder::new().name("starling-autofs".to_owned()).spawn(move || {
        while let Some(request) = requests.receive() {
            if outgoing.blocking_send(request).is_err() {
                return;
            }
        }
    })?;
    Ok(incoming)
}

/// Has what is idle unmounted, again and again.
async fn expire(autofs: Arc<Autofs>, idle: Duration) {
    let pause = (idle / 4).clamp(Duration::from_millis(500), LOOK_EVERY);
    loop {
        tokio::time::sleep(pause).await;
        let autofs = autofs.clone();
        let looked = tokio::task::spawn_blocking(move || {
            // Each call ends one; one that could not be unmounted is proposed again the next time.
            while autofs.expire()? {}
            io::Result::Ok(())
        });
        if let Ok(Err(error)) = looked.await {
            tracing::debug!("an idle mount stays: {error}");
        }
    }
}
