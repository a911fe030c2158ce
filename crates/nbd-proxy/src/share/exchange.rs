//! The NBD server at one link: requests in, answers out.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use nbd::{
    Command, Failure, Reply,
    server::{Handshake, HandshakeEvent, HandshakeLimits, Incoming, ReplyTo, Transmission},
};
use nbd_session::{
    DevicePhase, SMALL_READ,
    control::{PageMessage, ServerMessage},
};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_websockets::Message;

use super::{
    connection::Connection,
    image::{Image, PIECE},
    progress::Progress,
};
use crate::{
    link::websocket::{End, Step},
    polling::Polling,
    signals::Signals,
};

/// How many reads run at once.
const READERS: usize = 8;
/// How many bytes of the image we hold at once, unless one request alone is longer.
const BUDGET: u64 = 64 << 20;
/// With so many bytes to be sent no more are read from memory: what is sent soon after it was read is still in the
/// processor's cache, and its memory soon free for what is read next.
const ENOUGH: usize = PIECE;
/// The same while reads wait for a disk, which is to go on while others are sent.
const AHEAD: usize = 1 << 20;
/// How many requests may wait.
const WAITING: usize = 4096;
/// How long a server may be silent: it sends a beat every 5 s.
const SILENCE: Duration = Duration::from_secs(15);
/// How long the server has to end the session once we said goodbye; it still reads while its stop hook runs.
const GOODBYE: Duration = Duration::from_secs(5);
/// How often we look at the clock.
pub(super) const TICK: Duration = Duration::from_millis(250);
/// Close codes after which there is no coming back: closed in order, a malformed address, an image that can't be
/// attached, and refusals (docs/protocol.md, "Close codes").
const FINAL: [u16; 10] = [1000, 1005, 1008, 4400, 4401, 4404, 4409, 4410, 4412, 4500];
/// The close code for whom the server doesn't know.
const NOT_ALLOWED: u16 = 4401;

/// How a link ended.
pub(super) enum Ending {
    /// For good.
    Finished(Finished),
    /// The server doesn't know us, or knows us no more.
    NotAllowed(Finished),
    /// The session may go on.
    Lost(Loss),
}

/// What is known of a session whose link was lost.
pub(super) struct Loss {
    /// What happened, for people.
    pub(super) cause: String,
    /// How long the server holds the session; zero where it never said so.
    pub(super) hold: Duration,
    /// Whether this link ever served the session.
    pub(super) served: bool,
}

/// How sharing ended.
pub(super) struct Finished {
    /// As it should.
    pub(super) in_order: bool,
    /// For people.
    pub(super) sentence: String,
}

impl Finished {
    /// As it should not.
    pub(super) fn failed(sentence: String) -> Self {
        Self {
            in_order: false,
            sentence,
        }
    }
}

enum Stage {
    Handshake(Handshake),
    Transmission(Transmission),
}

/// A request that was carried out.
struct Answer {
    reply_to: ReplyTo,
    result: Result<Reply, Failure>,
    length: u64,
}

/// What may happen next.
enum Event {
    Step(Step),
    Answer(Answer),
    Signal,
    Tick,
}

/// Why we close the link.
enum Farewell {
    /// The server broke this rule.
    Violation(String),
    /// We were told to stop.
    Goodbye,
    /// The server is silent.
    Silence,
}

impl Farewell {
    fn violation(rule: impl std::fmt::Display) -> Self {
        Self::Violation(rule.to_string())
    }
}

/// One link, while it lives.
pub(super) struct Exchange<'a> {
    socket: Connection,
    image: Arc<Image>,
    progress: &'a mut Progress,
    stage: Stage,
    waiting: VecDeque<(ReplyTo, Command)>,
    running: JoinSet<Answer>,
    reading: u64,
    /// Whether the last request was for no more than `SMALL_READ`.
    is_short: bool,
    complaint: String,
    heard: Instant,
    /// Set once we said goodbye, or were told so.
    leave_at: Option<Instant>,
    /// What the server said of how long it holds the session.
    hold: Duration,
    /// Whether the server took this link as the session's.
    served: bool,
    /// What the server said at the end.
    ended: Option<(String, String)>,
}

impl<'a> Exchange<'a> {
    pub(super) fn new(socket: Connection, image: Arc<Image>, progress: &'a mut Progress) -> Self {
        let handshake = Handshake::new(vec![image.export()], HandshakeLimits::default());
        Self {
            socket,
            image,
            progress,
            stage: Stage::Handshake(handshake),
            waiting: VecDeque::new(),
            running: JoinSet::new(),
            reading: 0,
            is_short: false,
            complaint: String::new(),
            heard: Instant::now(),
            leave_at: None,
            hold: Duration::ZERO,
            served: false,
            ended: None,
        }
    }

    /// Serves until the link ends.
    pub(super) async fn run(mut self, signals: &mut Signals) -> Ending {
        self.say(&PageMessage::Image(self.image.info().clone()));
        match self.serve(signals).await {
            Ok(end) => self.ending(end),
            Err(Farewell::Violation(rule)) => {
                let sentence = format!("the server broke a rule: {rule}");
                self.socket.close(1002, &sentence).await;
                Ending::Finished(Finished::failed(sentence))
            }
            Err(Farewell::Goodbye) => {
                let sentence = "stopped".to_owned();
                self.socket.close(1000, &sentence).await;
                Ending::Finished(Finished {
                    in_order: true,
                    sentence,
                })
            }
            Err(Farewell::Silence) => {
                let seconds = SILENCE.as_secs();
                let ending = self.lost(&format!("the server said nothing for {seconds} s"));
                // Whether that is ever heard is nothing to wait for.
                tokio::spawn(self.socket.close(4408, "the server is silent"));
                ending
            }
        }
    }

    fn lost(&self, cause: &str) -> Ending {
        Ending::Lost(Loss {
            cause: format!("the link is lost: {cause}"),
            hold: self.hold,
            served: self.served,
        })
    }

    async fn serve(&mut self, signals: &mut Signals) -> Result<End, Farewell> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.advance()?;
        let mut polling = Polling::new();
        loop {
            self.start_waiting();
            // What was long is in a row, and a disk takes as long as it takes.
            let urgent = self.is_short && self.running.is_empty();
            let event = polling.wait(urgent, async {
                tokio::select! {
                    step = self.socket.step() => Event::Step(step),
                    Some(Ok(answer)) = self.running.join_next() => Event::Answer(answer),
                    _ = signals.next() => Event::Signal,
                    _ = ticks.tick() => Event::Tick,
                }
            });
            match event.await {
                Event::Step(Step::Sent) => {}
                Event::Step(Step::Received(message)) => self.receive(message)?,
                Event::Step(Step::Closed(end)) => return Ok(end),
                Event::Answer(answer) => self.answer(answer),
                Event::Signal => self.say_goodbye()?,
                Event::Tick => self.look_at_the_clock()?,
            }
        }
    }

    fn say(&mut self, message: &PageMessage) {
        self.socket.push(Message::text(message.encode()));
    }

    /// The first time a signal comes, the server is asked to end the session; the second time we just go.
    fn say_goodbye(&mut self) -> Result<(), Farewell> {
        if self.leave_at.is_some() {
            return Err(Farewell::Goodbye);
        }
        self.say(&PageMessage::Bye);
        self.leave_at = Some(Instant::now() + GOODBYE);
        Ok(())
    }

    fn look_at_the_clock(&mut self) -> Result<(), Farewell> {
        self.progress.tick();
        if self.leave_at.is_some_and(|time| Instant::now() >= time) {
            return Err(Farewell::Goodbye);
        }
        if self.heard.elapsed() >= SILENCE {
            return Err(Farewell::Silence);
        }
        Ok(())
    }

    fn receive(&mut self, message: Message) -> Result<(), Farewell> {
        self.heard = Instant::now();
        if let Some(text) = message.as_text() {
            match ServerMessage::parse(text).map_err(Farewell::violation)? {
                ServerMessage::State(state) => {
                    self.hold = Duration::from_secs(state.hold);
                    self.served |= state.phase != DevicePhase::Held;
                    self.progress.set_device(&state);
                }
                ServerMessage::End { reason, message } => self.ended = Some((reason, message)),
                ServerMessage::Beat | ServerMessage::Pong | ServerMessage::Unknown => {}
            }
        } else if message.is_binary() {
            let data: Bytes = message.into_payload().into();
            match &mut self.stage {
                Stage::Handshake(handshake) => {
                    handshake.handle_input(data).map_err(Farewell::violation)?;
                }
                Stage::Transmission(transmission) => transmission.handle_input(data),
            }
            self.advance()?;
        }
        Ok(())
    }

    /// Goes as far as the input allows.
    fn advance(&mut self) -> Result<(), Farewell> {
        if let Stage::Handshake(handshake) = &mut self.stage {
            while let Some(output) = handshake.poll_output() {
                self.socket.push_data(output);
            }
            match handshake.poll_event() {
                None => return Ok(()),
                // TLS is never begun where it was not offered.
                Some(HandshakeEvent::Aborted | HandshakeEvent::StartTls(_)) => {
                    self.leave_at = Some(Instant::now() + GOODBYE);
                    return Ok(());
                }
                Some(HandshakeEvent::Transmission { transmission, .. }) => {
                    self.stage = Stage::Transmission(transmission);
                }
            }
        }
        self.take_requests()
    }

    fn take_requests(&mut self) -> Result<(), Farewell> {
        let Stage::Transmission(transmission) = &mut self.stage else {
            return Ok(());
        };
        while let Some(incoming) = transmission.poll_request().map_err(Farewell::violation)? {
            match incoming {
                Incoming::Request {
                    reply_to, command, ..
                } => self.waiting.push_back((reply_to, command)),
                Incoming::Refused { reply_to, failure } => {
                    reply(transmission, &mut self.socket, reply_to, Err(failure));
                }
                Incoming::Disconnect => self.leave_at = Some(Instant::now() + GOODBYE),
            }
        }
        match self.waiting.len() {
            0..=WAITING => Ok(()),
            more => Err(Farewell::violation(format!("{more} requests at once"))),
        }
    }

    /// Begins what was asked for as far as there is room.
    fn start_waiting(&mut self) {
        while self.running.len() < READERS
            && self.socket.queued() < self.enough()
            && let Some((_, command)) = self.waiting.front()
        {
            let length = if matches!(command, Command::Read { .. }) {
                command.length()
            } else {
                0
            };
            let held = self.reading + self.socket.queued() as u64;
            if held > 0 && held + length > BUDGET {
                return;
            }
            let Some((reply_to, command)) = self.waiting.pop_front() else {
                return;
            };
            self.reading += length;
            self.is_short = length <= SMALL_READ;
            if let Some(reply) = self.image.answer_now(&command) {
                let result = Ok(reply);
                self.answer(Answer {
                    reply_to,
                    result,
                    length,
                });
                continue;
            }
            let image = Arc::clone(&self.image);
            self.running.spawn_blocking(move || Answer {
                reply_to,
                result: image.carry_out(&command),
                length,
            });
        }
    }

    /// How many bytes may wait to be sent when more are read.
    fn enough(&self) -> usize {
        if self.running.is_empty() {
            ENOUGH
        } else {
            AHEAD
        }
    }

    fn answer(
        &mut self,
        Answer {
            reply_to,
            result,
            length,
        }: Answer,
    ) {
        self.reading -= length;
        match &result {
            Ok(_) => self.progress.count(length),
            Err(failure) if failure.message != self.complaint => {
                self.progress.warn(&format!(
                    "{}; the machine gets an input/output error",
                    failure.message
                ));
                self.complaint.clone_from(&failure.message);
            }
            Err(_) => {}
        }
        if let Stage::Transmission(transmission) = &mut self.stage {
            reply(transmission, &mut self.socket, reply_to, result);
        }
    }

    fn ending(&self, end: End) -> Ending {
        let finished = |in_order, sentence| Ending::Finished(Finished { in_order, sentence });
        if let Some((reason, message)) = &self.ended {
            let in_order = matches!(
                reason.as_str(),
                "bye" | "closed" | "ejected" | "disconnected" | "shutdown"
            );
            return finished(in_order, message.clone());
        }
        let End { code, reason } = end;
        let sentence = match reason.is_empty() {
            true => format!("the server closed the link with code {code}"),
            false => reason,
        };
        if self.leave_at.is_some() || FINAL.contains(&code) {
            let in_order = self.leave_at.is_some() || matches!(code, 1000 | 1005 | 4412);
            return match code {
                NOT_ALLOWED if !in_order => Ending::NotAllowed(Finished { in_order, sentence }),
                _ => finished(in_order, sentence),
            };
        }
        self.lost(&sentence)
    }
}

fn reply(
    transmission: &mut Transmission,
    socket: &mut Connection,
    reply_to: ReplyTo,
    result: Result<Reply, Failure>,
) {
    let mut output = Vec::new();
    transmission.reply(reply_to, result, &mut output);
    output.into_iter().for_each(|part| socket.push_data(part));
}
