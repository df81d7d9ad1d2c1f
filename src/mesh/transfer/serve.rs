//! The serving side: what peers ask is checked and passed to the driver, its answers are carried back.

use super::carry_back::{Done, Open, Out, Sending, Sent, carry_back};
use super::outflow::Outflow;
use super::{Body, FrameReader, NO_PROGRESS, StreamError, say};
use crate::mesh::conduct::{Offence, Use};
use crate::mesh::wire::{HOLDERS_MAX, MEMBERS_PER_FRAME, MemberRecord};
use crate::mesh::wire::{
    Holder, Message, NEWS_MAX_DOCUMENTS, RefusedBecause, RenewReply, Request, SliceHeld, Told, WireError,
};
use crate::mesh::{CloseCode, MemberConnection, MembershipCert, News, Scope};
use crate::model::{ChunkRef, Class, NodeId, RepositoryName, limits};
use bytes::Bytes;
use quinn::SendStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::JoinSet;

/// Pause before a peer that opens streams too fast is heard again: about as many as its pace allows meanwhile.
const STREAMS_PAUSE: Duration = Duration::from_millis(10);
/// Time that the driver may take to answer a small request (guess).
const DRIVER_LIMIT: Duration = Duration::from_secs(5);
/// How long the next withdrawal may be away: as long as the request lasts, which is bounded by the asker
/// and by the connection's own time-out.
const WITHDRAWALS: Duration = Duration::from_secs(3_600);

/// What a peer asks of this node.
#[derive(Debug)]
pub enum PeerRequest {
    /// A chunk, within the asker's rights.
    Ask(Ask),
    /// The asker no longer wants the chunk, or its connection broke. Not sent for an ask that was finally
    /// answered; one whose answer is on the way may be named all the same.
    Withdrawn {
        /// [`Ask::number`].
        number: u64,
    },
    /// A document. It is not verified yet.
    News {
        /// Who sent it.
        from: NodeId,
        /// The document.
        news: News,
    },
    /// A peer tells what it holds. It may lie.
    Possession {
        /// Who tells.
        from: NodeId,
        /// What.
        slices: Vec<SliceHeld>,
    },
    /// A peer wants the newest documents, at most [`NEWS_MAX_DOCUMENTS`].
    AllNews {
        /// Takes them.
        reply: oneshot::Sender<Vec<News>>,
    },
    /// A peer wants its certificate renewed: the decision, what this node believes of the mesh, and members that
    /// a member should know.
    Renew {
        /// What it showed.
        shown: MembershipCert,
        /// Takes the answer; dropped when this node is no authority.
        reply: oneshot::Sender<(RenewReply, Vec<News>, Vec<MemberRecord>)>,
    },
    /// A peer shows its own certificate, renewed. It is not verified yet.
    Shown {
        /// Who.
        from: NodeId,
        /// The certificate.
        certificate: Vec<u8>,
    },
    /// A peer wants to know how often the label of this node's cell was halved, and its members, at most
    /// [`CELL_MAX_MEMBERS`](limits::CELL_MAX_MEMBERS).
    Members {
        /// Takes them.
        reply: oneshot::Sender<(u8, Vec<MemberRecord>)>,
    },
}

/// A peer asks for a chunk.
#[derive(Debug)]
pub struct Ask {
    /// Unique in this process.
    pub number: u64,
    /// Who asks.
    pub peer: NodeId,
    /// Of which repository; the peer may read it.
    pub repository: RepositoryName,
    /// How urgently.
    pub class: Class,
    /// What. Its numbers are within bounds; that they are true only its hash will show.
    pub chunk: ChunkRef,
    /// Where the answer goes.
    pub reply: AskReply,
}

/// Takes the answer to an [`Ask`]: `wait` as often as need be, then one of the others. Dropped without, it ends the
/// ask and the asker turns elsewhere.
#[derive(Debug)]
pub struct AskReply {
    index: u16,
    out: mpsc::Sender<Out>,
    waited: bool,
    ended: bool,
    place: Option<OwnedSemaphorePermit>,
}

impl AskReply {
    fn send(&self, out: Out) {
        // The queue has room for all that its asks can say; when the stream is gone nobody listens.
        let _ = self.out.try_send(out);
    }

    fn told(&self, holders: Vec<Holder>, load: u8) -> Told {
        let mut holders = holders;
        holders.truncate(HOLDERS_MAX);
        Told { index: self.index, holders, load }
    }

    /// It is under way, or queued: data follows. May be said again and again: it tells the asker that somebody
    /// still works on it, without which it turns elsewhere after two seconds.
    pub fn wait(&mut self, load: u8) {
        // A third of the queue is for repetitions; the rest is kept for first and final answers.
        let first = !std::mem::replace(&mut self.waited, true);
        if first || 3 * self.out.capacity() > 2 * self.out.max_capacity() {
            self.send(Out::Say(Message::Wait(self.told(Vec::new(), load))));
        }
    }

    /// No upload slot is free; of `holders` the first [`HOLDERS_MAX`] are named.
    pub fn busy(mut self, holders: Vec<Holder>, load: u8) {
        self.ended = true;
        self.send(Out::Say(Message::Busy(self.told(holders, load))));
    }

    /// It is not here and will not come; of `holders` the first [`HOLDERS_MAX`] are named.
    pub fn missing(mut self, holders: Vec<Holder>, load: u8) {
        self.ended = true;
        self.send(Out::Say(Message::Missing(self.told(holders, load))));
    }

    /// Sends the plain, verified bytes. `true` once the peer has acknowledged all of them but the little that is in
    /// flight; `false` when the asker withdrew, takes nothing for too long, or is gone.
    pub async fn data(self, bytes: Bytes) -> bool {
        let (done, handed) = oneshot::channel();
        let done = Done::new(move |sent| {
            let _ = done.send(sent == Sent::Whole);
        });
        self.send_body(Body::Here(bytes), done);
        handed.await.unwrap_or(false)
    }

    /// Sends a chunk, from memory or read from the store as it leaves; when the store turns out not to have it, the
    /// asker is told that it is missing.
    pub(in crate::mesh) fn send_body(mut self, body: Body, done: Done) {
        self.ended = true;
        let (out, _place) = (self.out.clone(), self.place.take());
        self.send(Out::Data(Box::new(Sending { index: self.index, body, done, out, _place })));
    }
}

impl Drop for AskReply {
    fn drop(&mut self) {
        if !self.ended {
            self.send(Out::Nothing(self.index));
        }
    }
}

/// Serves one connection until it ends: what the peer asks goes to `requests`. When that queue is full,
/// asks are answered busy at once. Dropping the future ends all of it.
pub async fn serve(connection: MemberConnection, requests: mpsc::Sender<PeerRequest>) {
    let outflow = Arc::new(Outflow::new(connection.clone()));
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = streams.join_next(), if !streams.is_empty() => {}
            accepted = connection.quinn().accept_bi() => {
                let Ok((send, recv)) = accepted else { break };
                while !connection.allows(Use::Stream, 1) {
                    tokio::time::sleep(STREAMS_PAUSE).await;
                }
                let stream = Stream {
                    connection: connection.clone(),
                    requests: requests.clone(),
                    outflow: outflow.clone(),
                    send,
                };
                // The number of streams is bounded by the endpoint's transport settings.
                streams.spawn(stream.serve(FrameReader::new(recv, NO_PROGRESS)));
            }
        }
    }
    while streams.join_next().await.is_some() {}
}

struct Stream {
    connection: MemberConnection,
    requests: mpsc::Sender<PeerRequest>,
    outflow: Arc<Outflow>,
    send: SendStream,
}

impl Stream {
    async fn serve(mut self, mut reader: FrameReader) {
        let _in_use = self.connection.begin_use();
        let first = match reader.version().await {
            Ok(()) => reader.message().await,
            Err(error) => Err(error),
        };
        let result = match first {
            Ok(Some(message)) => self.answer(message, reader).await,
            Ok(None) => Ok(()),
            Err(StreamError::Wire(error)) => {
                // A newer peer is no offender.
                if !matches!(error, WireError::Version { .. }) {
                    self.connection.report(Offence::Protocol);
                }
                tracing::debug!(peer = ?self.connection, %error, "a request was not understood");
                self.refuse(RefusedBecause::NotUnderstood).await
            }
            Err(error @ StreamError::NoProgress(_)) => {
                self.connection.report(Offence::RequestFlood);
                Err(error)
            }
            Err(error @ StreamError::Noise(_)) => {
                self.connection.report(Offence::Protocol);
                Err(error)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::debug!(peer = ?self.connection, ?error, "a request ended early");
        }
    }

    async fn refuse(&mut self, because: RefusedBecause) -> Result<(), StreamError> {
        say(&self.connection, &mut self.send, &Message::Refused(because)).await
    }

    async fn answer(&mut self, message: Message, reader: FrameReader) -> Result<(), StreamError> {
        if self.connection.membership().check_time(crate::ambient::unix_now()).is_err() {
            return self.refuse(RefusedBecause::Expired).await;
        }
        match message {
            Message::Request(request) if !self.connection.membership().scope.covers(&request.repository) => {
                tracing::debug!(peer = ?self.connection, repository = %request.repository, "not in its scope");
                self.refuse(RefusedBecause::Scope).await
            }
            Message::Request(request) => self.answer_chunks(request, reader).await,
            Message::News(news) => {
                let from = self.connection.node();
                if !self.connection.allows(Use::Document, 1) {
                    self.connection.report(Offence::NewsFlood);
                    return self.give_up();
                }
                match self.requests.try_send(PeerRequest::News { from, news }) {
                    Ok(()) => say(&self.connection, &mut self.send, &Message::NewsAck).await,
                    Err(_) => self.give_up(),
                }
            }
            Message::Possession(slices) => {
                let from = self.connection.node();
                if !self.connection.allows(Use::Document, 1) {
                    self.connection.report(Offence::NewsFlood);
                    return self.give_up();
                }
                match self.requests.try_send(PeerRequest::Possession { from, slices }) {
                    Ok(()) => say(&self.connection, &mut self.send, &Message::PossessionAck).await,
                    Err(_) => self.give_up(),
                }
            }
            Message::AllNews | Message::Members | Message::Renew if !self.connection.allows(Use::List, 1) => {
                self.connection.report(Offence::RequestFlood);
                self.give_up()
            }
            Message::AllNews => {
                let mut news = self.ask_driver(|reply| PeerRequest::AllNews { reply }).await;
                let scope = self.connection.membership().scope.clone();
                news.retain(|document| may_hear(&scope, document));
                news.truncate(NEWS_MAX_DOCUMENTS);
                for document in news {
                    say(&self.connection, &mut self.send, &Message::News(document)).await?;
                }
                Ok(())
            }
            Message::Members => {
                let (bits, mut members) = self.ask_driver(|reply| PeerRequest::Members { reply }).await;
                if bits > 0 {
                    say(&self.connection, &mut self.send, &Message::CellPart(bits)).await?;
                }
                members.truncate(limits::CELL_MAX_MEMBERS);
                for part in members.chunks(MEMBERS_PER_FRAME) {
                    say(&self.connection, &mut self.send, &Message::MemberList(part.to_vec())).await?;
                }
                Ok(())
            }
            Message::Renew => self.answer_renewal().await,
            Message::Certificate(certificate) => {
                let from = self.connection.node();
                if !self.connection.allows(Use::Document, 1) {
                    self.connection.report(Offence::NewsFlood);
                    return self.give_up();
                }
                match self.requests.try_send(PeerRequest::Shown { from, certificate }) {
                    Ok(()) => say(&self.connection, &mut self.send, &Message::NewsAck).await,
                    Err(_) => self.give_up(),
                }
            }
            other => {
                self.connection.report(Offence::Protocol);
                tracing::debug!(peer = ?self.connection, message = ?other, "not a request");
                self.refuse(RefusedBecause::NotUnderstood).await
            }
        }
    }

    async fn answer_renewal(&mut self) -> Result<(), StreamError> {
        let (reply, answer) = oneshot::channel();
        let shown = self.connection.membership();
        if self.requests.try_send(PeerRequest::Renew { shown, reply }).is_err() {
            return self.give_up();
        }
        let Ok(Ok((reply, documents, mut members))) = tokio::time::timeout(DRIVER_LIMIT, answer).await else {
            return self.refuse(RefusedBecause::NotUnderstood).await;
        };
        say(&self.connection, &mut self.send, &Message::Renewed(reply)).await?;
        for document in documents {
            say(&self.connection, &mut self.send, &Message::News(document)).await?;
        }
        members.truncate(MEMBERS_PER_FRAME);
        say(&self.connection, &mut self.send, &Message::MemberList(members)).await
    }

    /// Ends the stream without an answer, so that the peer knows that it got none.
    fn give_up(&mut self) -> Result<(), StreamError> {
        let _ = self.send.reset(CloseCode::Busy.into());
        Ok(())
    }

    /// What the driver says; nothing when it is overloaded or takes too long.
    async fn ask_driver<T: Default>(&self, request: impl FnOnce(oneshot::Sender<T>) -> PeerRequest) -> T {
        let (reply, answer) = oneshot::channel();
        if self.requests.try_send(request(reply)).is_err() {
            return T::default();
        }
        match tokio::time::timeout(DRIVER_LIMIT, answer).await {
            Ok(Ok(answer)) => answer,
            _ => T::default(),
        }
    }

    async fn answer_chunks(&mut self, request: Request, reader: FrameReader) -> Result<(), StreamError> {
        let (open, class) = (Open::new(request.chunks.len()), request.class);
        // Each ask says at most: wait, a final answer, and that it was dropped.
        let (out, said) = mpsc::channel(3 * request.chunks.len());
        self.pass_on(request, &open, &out);
        drop(out);
        let stopped = self.send.stopped();
        let stopped = async {
            // That all was acknowledged is no stop.
            if let Ok(None) = stopped.await {
                std::future::pending::<()>().await;
            }
        };
        // In this order, so that nothing is sent that is not wanted any more.
        let result = tokio::select! {
            biased;
            () = stopped => Ok(()),
            error = take_withdrawals(reader, &open, &self.requests) => Err(error),
            result = carry_back(&mut self.send, &self.outflow, class, said, &open) => result,
        };
        for number in open.take_all() {
            let _ = self.requests.send(PeerRequest::Withdrawn { number }).await;
        }
        match &result {
            Err(StreamError::NoProgress(_)) => self.connection.report(Offence::SlowReader),
            Err(StreamError::Noise(_) | StreamError::Wire(_)) => self.connection.report(Offence::Protocol),
            _ => {}
        }
        match &result {
            Ok(()) => {}
            // The asker sees an end without an answer, and turns elsewhere.
            Err(StreamError::Lost) => drop(self.send.finish()),
            Err(_) => drop(self.send.reset(CloseCode::Protocol.into())),
        }
        result
    }

    /// Passes every chunk to the driver, as far as there is room.
    fn pass_on(&self, request: Request, open: &Open, out: &mpsc::Sender<Out>) {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let Request { repository, class, chunks } = request;
        let allowed = self.connection.allows(Use::Chunk, u32::try_from(chunks.len()).unwrap_or(u32::MAX));
        let mut beyond = 0;
        for (index, chunk) in (0u16..).zip(chunks) {
            let place = self.connection.asks().clone().try_acquire_owned();
            let Some(place) = place.ok().filter(|_| allowed) else {
                beyond += 1;
                let busy = Message::Busy(Told { index, holders: Vec::new(), load: u8::MAX });
                let _ = out.try_send(Out::Say(busy));
                continue;
            };
            let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
            let reply = AskReply { index, out: out.clone(), waited: false, ended: false, place: Some(place) };
            let ask = Ask {
                number,
                peer: self.connection.node(),
                repository: repository.clone(),
                class,
                chunk,
                reply,
            };
            open.set(index, number);
            if let Err(refused) = self.requests.try_send(PeerRequest::Ask(ask)) {
                open.take(index);
                if let PeerRequest::Ask(ask) = refused.into_inner() {
                    ask.reply.busy(Vec::new(), u8::MAX);
                }
            }
        }
        if beyond > 0 {
            tracing::debug!(peer = ?self.connection, beyond, "asks for more than its share");
            self.connection.report(Offence::AskFlood);
        }
    }
}

/// Whether a member with this scope is told of a document. One that does not say what it is about is for those
/// who may read everything.
pub(in crate::mesh) fn may_hear(scope: &Scope, news: &News) -> bool {
    match (scope, news) {
        (Scope::All, _) | (_, News::Charter(_) | News::Revocations(_)) => true,
        (Scope::Only(_), News::Root(_) | News::Card(_)) => {
            news.repository().is_some_and(|repository| scope.covers(&repository))
        }
    }
}

/// Frames that an asker may send behind its request, for each chunk of it: one withdrawal, and what a newer version
/// may say.
const FRAMES_PER_CHUNK: usize = 4;

/// Reads withdrawals until the stream breaks. That the asker will withdraw nothing more is no end.
async fn take_withdrawals(
    mut reader: FrameReader,
    open: &Open,
    requests: &mpsc::Sender<PeerRequest>,
) -> StreamError {
    reader.set_limit(WITHDRAWALS);
    let frames = FRAMES_PER_CHUNK * open.lock().len();
    for _ in 0..frames {
        match reader.message().await {
            Ok(Some(Message::Withdraw(index))) => {
                if let Some(number) = open.take(index) {
                    let _ = requests.send(PeerRequest::Withdrawn { number }).await;
                }
            }
            Ok(Some(_)) => {}
            Ok(None) => std::future::pending().await,
            Err(error) => return error,
        }
    }
    StreamError::Noise(u32::try_from(frames).unwrap_or(u32::MAX))
}
