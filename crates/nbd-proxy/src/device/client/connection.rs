//! A client in transmission: its requests on their way to the volume, its replies on their way back.

use std::{collections::HashMap, io, time::Duration};

use bytes::BytesMut;
use nbd::{
    Command, Failure, Reply,
    server::{Incoming, ReplyTo, Transmission},
    wire::CommandFlags,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadHalf},
    sync::mpsc,
    time::{Interval, MissedTickBehavior, interval},
};

use super::{ClientEnd, ClientError, READ_ROOM, output::Output};
use crate::device::{
    Completion, DeviceRequest, ReplySlot,
    budget::{Inlet, Share},
};

/// How many requests of one client are carried out at once.
const MAX_REQUESTS: usize = 64;
/// Bytes of requests and replies held for one client above which no more are taken from it. One request may exceed
/// it: the longest is [`MAX_PAYLOAD`].
const MAX_BYTES: usize = 16 << 20;
/// A request takes this much memory at least, in bytes.
const LEAST_COST: usize = 4096;
/// Bytes of replies beyond its share, such as refusals, above which no more requests are taken from a client.
const UNSHARED: usize = 256 << 10;
/// How often it is looked how much a client has read and sent.
pub(super) const LOOK: Duration = Duration::from_secs(10);
/// Who reads and sends fewer bytes in that time, and keeps others waiting, is dropped.
const LEAST_PROGRESS: usize = 1 << 20;
/// Serves a client in transmission until it leaves.
pub(crate) async fn serve_transmission<S>(
    stream: S,
    transmission: Transmission,
    inlet: Inlet,
) -> Result<ClientEnd, ClientError>
where
    S: AsyncRead + AsyncWrite,
{
    let (reader, writer) = tokio::io::split(stream);
    let (completed, completions) = mpsc::unbounded_channel();
    let connection = Connection {
        reader,
        input: BytesMut::new(),
        transmission,
        share: inlet.share(),
        requests: inlet.requests,
        completed,
        completions,
        waiting: HashMap::new(),
        waiting_bytes: 0,
        held_back: None,
        announced: 0,
        next_tag: 0,
        output: Output::new(writer),
        leaving: false,
        moved: 0,
        behind: false,
    };
    connection.run().await
}

/// A request as the client sent it.
struct Request {
    reply_to: ReplyTo,
    flags: CommandFlags,
    command: Command,
}

impl Request {
    /// What it takes of memory, in bytes.
    fn cost(&self) -> usize {
        let data = match &self.command {
            Command::Read { length, .. } => usize::try_from(*length).unwrap_or(usize::MAX),
            Command::Write { data, .. } => data.len(),
            _ => 0,
        };
        data.max(LEAST_COST)
    }
}

/// A request that is being carried out.
struct Waiting {
    reply_to: ReplyTo,
    bytes: usize,
}

struct Connection<S> {
    reader: ReadHalf<S>,
    input: BytesMut,
    transmission: Transmission,
    requests: mpsc::Sender<DeviceRequest>,
    completed: mpsc::UnboundedSender<Completion>,
    completions: mpsc::UnboundedReceiver<Completion>,
    waiting: HashMap<u64, Waiting>,
    waiting_bytes: usize,
    share: Share,
    /// The next request, which waits for its share.
    held_back: Option<Request>,
    /// Bytes of a WRITE whose data is on its way, for which there is a share.
    announced: usize,
    next_tag: u64,
    output: Output<S>,
    /// `NBD_CMD_DISC` has come: what is outstanding is answered, nothing more is taken.
    leaving: bool,
    /// Bytes read and written since the last look at how fast the client is.
    moved: usize,
    /// It had something to read or to send all the time since then.
    behind: bool,
}

enum Step {
    Input(usize),
    Completions,
    Sent(usize),
    Granted,
    Look,
}

impl<S: AsyncRead + AsyncWrite> Connection<S> {
    async fn run(mut self) -> Result<ClientEnd, ClientError> {
        let mut completions = Vec::new();
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if !self.take_requests().await? {
                return Ok(ClientEnd::Closed);
            }
            self.share
                .shrink_to(self.waiting_bytes + self.announced + self.output.bytes());
            self.behind &= self.owes();
            if self.leaving && self.waiting.is_empty() && self.output.is_empty() {
                return Ok(ClientEnd::Disconnect);
            }
            match self.step(&mut completions, &mut looks).await? {
                Step::Input(0) => return Ok(ClientEnd::Closed),
                Step::Input(count) => {
                    self.moved += count;
                    self.transmission.handle_input(self.input.split().freeze());
                }
                Step::Completions => completions
                    .drain(..)
                    .for_each(|completion| self.complete(completion)),
                Step::Sent(count) => self.moved += count,
                Step::Granted => {}
                Step::Look => self.look()?,
            }
        }
    }

    async fn step(
        &mut self,
        completions: &mut Vec<Completion>,
        looks: &mut Interval,
    ) -> io::Result<Step> {
        let taking = self.takes_requests();
        if taking && self.input.capacity() < READ_ROOM / 16 {
            self.input.reserve(READ_ROOM);
        }
        tokio::select! {
            count = self.reader.read_buf(&mut self.input), if taking => Ok(Step::Input(count?)),
            _ = self.completions.recv_many(completions, MAX_REQUESTS) => Ok(Step::Completions),
            count = self.output.send(), if !self.output.is_empty() => count.map(Step::Sent),
            () = self.share.granted(), if self.share.is_waiting() => Ok(Step::Granted),
            _ = looks.tick() => Ok(Step::Look),
        }
    }

    fn takes_requests(&self) -> bool {
        !self.leaving
            && !self.share.is_waiting()
            && self.waiting.len() < MAX_REQUESTS
            && self.waiting_bytes + self.output.bytes() < MAX_BYTES
            && self.waiting_bytes + self.output.bytes() < self.share.held() + UNSHARED
    }

    /// Whether the client has something to read, or to send.
    fn owes(&self) -> bool {
        !self.output.is_empty() || self.announced > 0
    }

    /// Who holds memory for which others wait, and moves next to nothing, is dropped.
    fn look(&mut self) -> Result<(), ClientError> {
        if self.behind && self.moved < LEAST_PROGRESS && self.share.others_wait() {
            return Err(ClientError::Stuck);
        }
        self.moved = 0;
        self.behind = self.owes();
        Ok(())
    }

    /// Hands on what has arrived, as far as the limits allow. False when there is no volume any more.
    async fn take_requests(&mut self) -> Result<bool, ClientError> {
        while self.takes_requests() {
            let Some(request) = self.next_request()? else {
                break;
            };
            let cost = request.cost();
            if self.announced > 0 {
                self.announced = 0;
            } else if !self.share.take(cost) {
                self.held_back = Some(request);
                break;
            }
            if !self.hand_on(request, cost).await {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// None: there is none yet.
    fn next_request(&mut self) -> Result<Option<Request>, ClientError> {
        if let Some(request) = self.held_back.take() {
            return Ok(Some(request));
        }
        while self.takes_requests() {
            match self.transmission.poll_request()? {
                None => {
                    self.announce();
                    return Ok(None);
                }
                Some(Incoming::Disconnect) => self.leaving = true,
                Some(Incoming::Refused { reply_to, failure }) => self.reply(reply_to, Err(failure)),
                Some(Incoming::Request {
                    reply_to,
                    flags,
                    command,
                }) => {
                    return Ok(Some(Request {
                        reply_to,
                        flags,
                        command,
                    }));
                }
            }
        }
        Ok(None)
    }

    /// The data of a WRITE is read when there is a share for all of it.
    fn announce(&mut self) {
        let awaited = self.transmission.awaited_payload();
        let cost = awaited.map_or(0, |length| (length as usize).max(LEAST_COST));
        if self.announced == 0 && cost > 0 && self.share.take(cost) {
            self.announced = cost;
        }
    }

    async fn hand_on(&mut self, request: Request, bytes: usize) -> bool {
        let Request {
            reply_to,
            flags,
            command,
        } = request;
        let tag = self.next_tag;
        self.next_tag += 1;
        self.waiting_bytes += bytes;
        self.waiting.insert(tag, Waiting { reply_to, bytes });
        let reply = ReplySlot::new(tag, self.completed.clone());
        let request = DeviceRequest {
            flags,
            command,
            reply,
        };
        self.requests.send(request).await.is_ok()
    }

    fn complete(&mut self, (tag, result): Completion) {
        if let Some(Waiting { reply_to, bytes }) = self.waiting.remove(&tag) {
            self.waiting_bytes -= bytes;
            self.reply(reply_to, result.map_err(Failure::from));
        }
    }

    fn reply(&mut self, reply_to: ReplyTo, result: Result<Reply, Failure>) {
        let mut pieces = Vec::new();
        self.transmission.reply(reply_to, result, &mut pieces);
        self.output.push(pieces);
    }
}
