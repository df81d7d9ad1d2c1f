//! Small requests: handing on a document, asking for all of them, asking for the members of a cell, for a renewed
//! certificate, and showing one.

use super::StreamError;
use super::{FrameReader, NO_PROGRESS, TransferError, say, write_all};
use crate::mesh::wire::{
    MEMBERS_PER_FRAME, MemberRecord, Message, NEWS_MAX_DOCUMENTS, RenewReply, SliceHeld,
};
use crate::mesh::{MemberConnection, MembershipCert, MeshTrust, News};
use crate::model::{UnixTime, limits};
use bytes::Bytes;
use std::net::SocketAddr;
use std::time::Duration;

/// Time for a list of all documents, during which no other peer is asked for one (guess: two thousand cards and roots
/// of a kilobyte each come in it at a megabit a second; of more, what came in time counts).
const LIST_LIMIT: Duration = Duration::from_secs(15);
/// Time for a list of members, during which no other cell is asked (guess: the largest has 700 KB).
const MEMBERS_LIMIT: Duration = Duration::from_secs(15);
/// Time for an exchange whose answer is short, whatever a peer says before it: others wait for its place.
const ANSWER_LIMIT: Duration = NO_PROGRESS;
/// Most bytes of all documents together (guess: two thousand roots of 32 KiB).
const NEWS_MAX_BYTES: usize = 64 << 20;

async fn open(connection: &MemberConnection, message: &Message) -> Result<FrameReader, TransferError> {
    let (mut send, recv) = tokio::time::timeout(NO_PROGRESS, connection.quinn().open_bi())
        .await
        .map_err(|_| TransferError::NoProgress(NO_PROGRESS))?
        .map_err(|error| TransferError::Connection(error.to_string()))?;
    let version = Bytes::copy_from_slice(&[connection.version()]);
    connection.precedence().first(write_all(&mut send, version, NO_PROGRESS)).await?;
    say(connection, &mut send, message).await?;
    // Dropping `send` ends this side of the stream.
    Ok(FrameReader::new(recv, NO_PROGRESS).holding(connection.begin_use()))
}

fn unexpected(message: &Message) -> TransferError {
    match message {
        Message::Refused(because) => TransferError::Refused(*because),
        other => TransferError::Protocol(format!("unexpected in a reply: {other:?}")),
    }
}

/// Runs an exchange within `limit`, and notes what the peer did that it should not have done.
async fn judged<T>(
    connection: &MemberConnection,
    limit: Duration,
    exchange: impl Future<Output = Result<T, TransferError>>,
) -> Result<T, TransferError> {
    let result = tokio::time::timeout(limit, exchange).await.unwrap_or(Err(TransferError::NoProgress(limit)));
    if let Some(offence) = result.as_ref().err().and_then(TransferError::offence) {
        connection.report(offence);
    }
    result
}

/// Says something that is answered by `acknowledgement` alone.
async fn acknowledged(
    connection: &MemberConnection,
    message: &Message,
    acknowledgement: &Message,
) -> Result<(), TransferError> {
    let exchange = async {
        match open(connection, message).await?.message().await? {
            Some(answer) if answer == *acknowledgement => Ok(()),
            Some(other) => Err(unexpected(&other)),
            None => Err(TransferError::NotAnswered),
        }
    };
    judged(connection, ANSWER_LIMIT, exchange).await
}

/// Hands a document to a peer. `Ok` says that it came in, not that it was believed.
///
/// # Errors
/// [`TransferError`]; a peer with too much to do ends the stream.
pub async fn push_news(connection: &MemberConnection, news: News) -> Result<(), TransferError> {
    acknowledged(connection, &Message::News(news), &Message::NewsAck).await
}

/// Tells a peer what this node holds. `Ok` says that it came in.
///
/// # Errors
/// [`TransferError`]; a peer with too much to do ends the stream, an older one does not understand.
pub async fn tell_possession(
    connection: &MemberConnection,
    slices: Vec<SliceHeld>,
) -> Result<(), TransferError> {
    acknowledged(connection, &Message::Possession(slices), &Message::PossessionAck).await
}

/// Asks a peer for the newest documents that it knows. They come into `news`, not verified; after an error it holds those that
/// came before.
///
/// # Errors
/// [`TransferError`]; too many of them are a violation of the protocol.
pub async fn all_news(connection: &MemberConnection, news: &mut Vec<News>) -> Result<(), TransferError> {
    judged(connection, LIST_LIMIT, read_news(connection, news)).await
}

async fn read_news(connection: &MemberConnection, news: &mut Vec<News>) -> Result<(), TransferError> {
    let mut reader = open(connection, &Message::AllNews).await?;
    let mut bytes = 0;
    while let Some(message) = reader.message().await? {
        let Message::News(document) = message else { return Err(unexpected(&message)) };
        bytes += document.document().len();
        if news.len() >= NEWS_MAX_DOCUMENTS || bytes > NEWS_MAX_BYTES {
            return Err(TransferError::Protocol(format!("{} documents of {bytes} bytes", news.len() + 1)));
        }
        news.push(document);
    }
    Ok(())
}

/// How often the label of a peer's cell was halved for it, and the members that it named.
pub(in crate::mesh) type CellMembers = (u8, Vec<(MembershipCert, Vec<SocketAddr>)>);

/// Asks a peer for the members of its cell. Only those whose certificate counts at `now` are returned.
///
/// # Errors
/// [`TransferError`]; too many of them are a violation of the protocol.
pub async fn members(
    connection: &MemberConnection,
    trust: &MeshTrust,
    now: UnixTime,
) -> Result<CellMembers, TransferError> {
    judged(connection, MEMBERS_LIMIT, read_members(connection, trust, now)).await
}

async fn read_members(
    connection: &MemberConnection,
    trust: &MeshTrust,
    now: UnixTime,
) -> Result<CellMembers, TransferError> {
    let mut reader = open(connection, &Message::Members).await?;
    let (mut members, mut count, mut bits) = (Vec::new(), 0, 0);
    while let Some(message) = reader.message().await? {
        let list = match message {
            Message::MemberList(list) => list,
            Message::CellPart(told) if count == 0 => {
                bits = told;
                continue;
            }
            other => return Err(unexpected(&other)),
        };
        count += list.len();
        if count > limits::CELL_MAX_MEMBERS {
            return Err(TransferError::Protocol(format!("{count} members in a cell")));
        }
        let right = lapsed_or_not(list, trust);
        members.extend(right.filter(|(certificate, _)| trust.check(certificate, now).is_ok()));
    }
    Ok((bits, members))
}

/// What an authority answered to a wish for renewal, unverified.
#[derive(Debug)]
pub(in crate::mesh) struct Renewal {
    /// Its decision.
    pub(in crate::mesh) reply: RenewReply,
    /// What it believes of the mesh.
    pub(in crate::mesh) documents: Vec<News>,
    /// Members that it named.
    pub(in crate::mesh) members: Vec<MemberRecord>,
    /// The authority itself.
    pub(in crate::mesh) from: MemberRecord,
}

/// Asks an authority to renew this node's certificate.
///
/// # Errors
/// [`TransferError`]; a member that is no authority refuses.
pub(in crate::mesh) async fn renew(connection: &MemberConnection) -> Result<Renewal, TransferError> {
    judged(connection, ANSWER_LIMIT, read_renewal(connection)).await
}

async fn read_renewal(connection: &MemberConnection) -> Result<Renewal, TransferError> {
    let mut reader = open(connection, &Message::Renew).await?;
    match reader.message().await? {
        Some(Message::Renewed(reply)) => {
            let (documents, members) = take_rest(&mut reader).await?;
            let certificate = connection.membership().bytes().to_vec();
            let from = MemberRecord { certificate, addresses: vec![connection.address()] };
            Ok(Renewal { reply, documents, members, from })
        }
        Some(other) => Err(unexpected(&other)),
        None => Err(TransferError::NotAnswered),
    }
}

/// Documents of trust and members that follow an authority's answer, until the stream ends.
pub(in crate::mesh) async fn take_rest(
    reader: &mut FrameReader,
) -> Result<(Vec<News>, Vec<MemberRecord>), StreamError> {
    let (mut documents, mut members) = (Vec::new(), Vec::new());
    while let Some(message) = reader.message().await? {
        match message {
            Message::News(news @ (News::Charter(_) | News::Revocations(_))) if documents.len() < 4 => {
                documents.push(news);
            }
            Message::MemberList(list) if members.len() < MEMBERS_PER_FRAME => members.extend(list),
            _ => break,
        }
    }
    Ok((documents, members))
}

/// Shows a peer this node's certificate, renewed while the connection stands.
///
/// # Errors
/// [`TransferError`]; an older peer ends the stream without an answer.
pub(in crate::mesh) async fn show(
    connection: &MemberConnection,
    certificate: Vec<u8>,
) -> Result<(), TransferError> {
    acknowledged(connection, &Message::Certificate(certificate), &Message::NewsAck).await
}

/// The records whose certificate is of this mesh and not revoked, though it may have lapsed.
pub(in crate::mesh) fn lapsed_or_not(
    records: Vec<MemberRecord>,
    trust: &MeshTrust,
) -> impl Iterator<Item = (MembershipCert, Vec<SocketAddr>)> {
    records.into_iter().filter_map(move |record| match trust.verify_lapsed(&record.certificate) {
        Ok(certificate) => Some((certificate, record.addresses)),
        Err(error) => {
            tracing::debug!(%error, "a member's record was dropped");
            None
        }
    })
}
