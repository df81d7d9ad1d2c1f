//! What becomes of the mounts when the agent ends: they are left to a successor, or unmounted, and the list stays as it is.

use super::{Entry, MountTable};
use crate::ambient;
use futures::future::join_all;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl MountTable {
    /// Leaves all mounts to a successor where one can take them over, unmounts the others, all at once, and remembers them for
    /// the next start.
    pub(in crate::agent) async fn leave_all(&self, patience: Duration) {
        self.stopping.store(true, Ordering::SeqCst);
        let until = ambient::now() + patience;
        let all: Vec<_> = self.lock().keys().cloned().collect();
        for directory in all {
            // Who changes it is not waited for beyond that.
            let left = until.since(ambient::now());
            let _changing = tokio::time::timeout(left, self.change(&directory)).await;
            let mounted = self.lock().get(&directory).and_then(Entry::mounted);
            if mounted.is_some_and(|mounted| mounted.leave()) {
                self.lock().remove(&directory);
            }
        }
        self.unmount_all(until.since(ambient::now())).await;
    }

    /// Unmounts everything, all at once, and remembers it for the next start.
    pub(in crate::agent) async fn unmount_all(&self, patience: Duration) {
        self.stopping.store(true, Ordering::SeqCst);
        let active: Vec<_> = self
            .lock()
            .iter()
            .filter_map(|(directory, entry)| Some((directory.clone(), entry.mounted()?)))
            .collect();
        join_all(active.iter().map(|(directory, mounted)| async move {
            match mounted.unmount(patience).await {
                Ok(()) => tracing::info!(directory = %directory.display(), "unmounted"),
                Err(error) => {
                    tracing::error!(directory = %directory.display(), %error, "could not be unmounted");
                }
            }
        }))
        .await;
        *self.unwritten.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.lock().clear();
    }
}
