//! The other cells of the region: which there are, and who is in them.
//!
//! The first members of each cell by rank announce the region's key in the DHT. Whoever is found is
//! dialled by name; its certificate tells its cell, and one of each cell tells the cell's members, whose
//! certificates are checked. The loop gets the result as a [`CellView`].

use super::super::dht::{Dht, DhtKey};
use super::super::endpoint::Endpoint;
use super::super::membership::MembershipCert;
use super::super::transfer;
use super::task::Message;
use crate::ambient;
use crate::model::{CellLabel, NodeId, Time, limits};
use futures::StreamExt;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

/// Cells of the region that are kept track of.
const CELLS_MAX: usize = 256;
/// Contacts of one look-up that are dialled, and how many at once.
const CONTACTS_MAX: usize = 64;
const DIALS_AT_ONCE: usize = 8;
/// Known members of a cell that are asked again.
const CONTACTS_OF_CELL: usize = 3;
/// How often the region is looked up and each cell asked for its members,
const REFRESH_EVERY: Duration = Duration::from_secs(30);
/// at first, while no other cell was found,
const SEARCH_FIRST: Duration = Duration::from_secs(1);
/// and at least between two rounds, when a member of another cell failed.
const REFRESH_PAUSE: Duration = Duration::from_secs(2);

/// The members of another cell of the region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CellView {
    pub(super) cell: CellLabel,
    pub(super) members: BTreeMap<NodeId, (SocketAddr, MembershipCert)>,
}

/// Whom to ask about a cell, and how it went.
struct Known {
    view: CellView,
    asked: Time,
}

/// Looks until it is stopped.
pub(super) async fn watch(
    endpoint: Endpoint,
    dht: Dht,
    inbox: mpsc::Sender<Message>,
    refresh: Arc<Notify>,
    stop: CancellationToken,
) {
    let mut cells: BTreeMap<CellLabel, Known> = BTreeMap::new();
    let mut pause = SEARCH_FIRST;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = round(&endpoint, &dht, &inbox, &mut cells) => {}
        }
        if !cells.is_empty() {
            pause = REFRESH_EVERY;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            () = refresh.notified() => tokio::time::sleep(REFRESH_PAUSE).await,
        }
        // Alone in the region is the rule in a small mesh: look ever more rarely.
        pause = (pause * 2).min(REFRESH_EVERY);
    }
}

/// One look at the region: new contacts, then the cells whose view is old.
async fn round(
    endpoint: &Endpoint,
    dht: &Dht,
    inbox: &mpsc::Sender<Message>,
    cells: &mut BTreeMap<CellLabel, Known>,
) {
    let began = ambient::now();
    let own = endpoint.identity().membership().cell.clone();
    let mut contacts: Vec<(NodeId, SocketAddr)> = dht.find(DhtKey::region(own.region())).await;
    // Those who answered before know their cells better than the DHT does.
    for known in cells.values() {
        contacts
            .extend(known.view.members.iter().take(CONTACTS_OF_CELL).map(|(node, (addr, _))| (*node, *addr)));
    }
    contacts.retain(|(node, _)| *node != endpoint.node());
    contacts.sort_unstable();
    contacts.dedup_by_key(|(node, _)| *node);
    contacts.truncate(CONTACTS_MAX + CONTACTS_OF_CELL * cells.len());
    let mut asked = futures::stream::iter(contacts)
        .map(|(node, addr)| ask(endpoint, &own, node, addr))
        .buffer_unordered(DIALS_AT_ONCE);
    while let Some(found) = asked.next().await {
        match found {
            Some(Found::Own { node, addr }) => {
                let _ = inbox.send(Message::SwimContact { node, addr }).await;
            }
            Some(Found::Other(view)) => {
                let full = cells.len() >= CELLS_MAX && !cells.contains_key(&view.cell);
                // Of two answers about one cell in a round, the first counts.
                let again = cells.get(&view.cell).is_some_and(|known| known.asked >= began);
                if !full && !again {
                    cells.insert(view.cell.clone(), Known { view: view.clone(), asked: ambient::now() });
                    let _ = inbox.send(Message::Cell(view)).await;
                }
            }
            None => {}
        }
    }
    // A cell of which nobody answers: nobody there can be a home.
    let silent: Vec<CellLabel> =
        cells.iter().filter(|(_, known)| known.asked < began).map(|(cell, _)| cell.clone()).collect();
    for cell in silent {
        cells.remove(&cell);
        let _ = inbox.send(Message::Cell(CellView { cell, members: BTreeMap::new() })).await;
    }
}

enum Found {
    /// A member of this node's own cell.
    Own { node: NodeId, addr: SocketAddr },
    /// Another cell of the region.
    Other(CellView),
}

/// Asks one node for the members of its cell, unless it is of this cell or another region.
async fn ask(endpoint: &Endpoint, own: &CellLabel, node: NodeId, addr: SocketAddr) -> Option<Found> {
    let connection = match endpoint.connection(node, addr).await {
        Ok(connection) => connection,
        Err(error) => {
            tracing::debug!(%error, "asking another cell");
            return None;
        }
    };
    let cell = connection.membership().cell.clone();
    if cell == *own {
        return Some(Found::Own { node, addr });
    }
    if cell.region() != own.region() {
        return None;
    }
    let trust = endpoint.identity().trust();
    match transfer::members(&connection, trust, ambient::unix_now()).await {
        Ok(list) => {
            let members = list
                .into_iter()
                .filter(|(certificate, _)| certificate.cell == cell)
                .filter_map(|(member, addresses)| Some((member.node, (*addresses.first()?, member))))
                .take(limits::CELL_MAX_MEMBERS)
                .collect();
            Some(Found::Other(CellView { cell, members }))
        }
        Err(error) => {
            tracing::debug!(%node, %error, "asking for the members of another cell");
            None
        }
    }
}
