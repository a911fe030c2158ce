//! What goes into a session and what comes out of it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use nbd::wire::Errno;
use nbd::{Export, Payload, Reply};

use crate::reason::EndReason;

/// How a session behaves.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// The configuration's name, for the `state` message.
    pub configuration: String,
    /// The export that is asked for; the empty name is the default export.
    pub export: String,
    /// How long a request, a handshake or the comparison of the image may take on a live link. A request's time counts
    /// from the last byte that came of it or of anything that was sent before it: until then it may simply not have
    /// been its turn on a slow line.
    pub timeout: Duration,
    /// How long the session waits for a new link. Zero: a lost link ends it.
    pub hold: Duration,
    /// The first link is the only one that can be, as on standard input: nothing is read to compare later ones with.
    pub one_link: bool,
    /// The longest READ or WRITE that is sent, in bytes.
    pub max_request: u32,
    /// How much may be on its way at once, in bytes: replies with their headers, and data that is written. Less on a
    /// link that was seen to carry less.
    pub max_in_flight: u64,
    /// How much may be written before a FLUSH is sent, in bytes, since all of it is kept to be replayed. At least two
    /// requests are kept in any case.
    pub replay_limit: u64,
    /// How often a `v=1` link carries a `beat`.
    pub beat: Duration,
    /// How long a `v=1` link may carry nothing from the peer.
    pub silence: Duration,
    /// Any random number: the key of the hashes of seen blocks, and the choice among them.
    pub seed: u64,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            configuration: "0".into(),
            export: String::new(),
            timeout: Duration::from_secs(30),
            hold: Duration::from_secs(300),
            one_link: false,
            max_request: 128 << 10,
            max_in_flight: 384 << 10,
            replay_limit: 16 << 20,
            beat: Duration::from_secs(5),
            silence: Duration::from_secs(15),
            seed: 0,
        }
    }
}

/// A request, as its submitter calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A link's generation: newer links have greater ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub(super) u64);

/// What a link carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// NBD bytes and nothing else.
    Plain,
    /// NBD bytes, and the text messages of [`control`](crate::control).
    V1,
}

/// How a link was closed from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closing {
    /// In order: end of file, or the close codes 1000 and 1005. Ends the session.
    Clean,
    /// In any other way, with what happened. The session is held.
    Lost(String),
}

/// What the session wants done, in this order.
#[derive(Debug)]
pub enum Output {
    /// Send NBD bytes.
    Send {
        /// On which link.
        link: LinkId,
        /// The bytes.
        data: Bytes,
    },
    /// Send a text message.
    SendText {
        /// On which link.
        link: LinkId,
        /// The message, JSON.
        text: String,
    },
    /// Send what was to be sent, then close. The session has forgotten this link.
    Close {
        /// Which link.
        link: LinkId,
        /// A code of RFC 6455 or of [`close`](crate::close).
        code: u16,
        /// For people.
        reason: String,
    },
    /// Bytes of a READ that was submitted to be streamed, ahead of its answer, which has them as well: only those that
    /// no error can take back, so there may be gaps before them. After a loss they may come again from the beginning.
    /// Never from a [`Volume`](crate::Volume).
    Arrived {
        /// Which request.
        request: RequestId,
        /// Where they are in the image, in bytes.
        offset: u64,
        /// At least one byte.
        data: Bytes,
    },
    /// A request is answered.
    Complete {
        /// Which request.
        request: RequestId,
        /// Its answer; [`Reply::Data`] has exactly the bytes that were asked for.
        result: Result<Reply, Errno>,
    },
    /// Something is to be done with the store of a kept copy. Answered by
    /// [`Volume::handle_stored`](crate::Volume::handle_stored).
    Store {
        /// Which task; each has another number.
        task: StoreId,
        /// What is to be done, after all that was to be done before.
        action: StoreAction,
    },
    /// Something happened that concerns the device.
    Event(SessionEvent),
}

/// A task of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(pub(crate) u64);

/// What a store is to do. Offsets are those of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreAction {
    /// Store these bytes; the answer's payload is empty.
    Write {
        /// In bytes.
        offset: u64,
        /// At most 32 MiB.
        data: Payload,
    },
    /// Give these bytes, which were stored before.
    Read {
        /// In bytes.
        offset: u64,
        /// In bytes, at most 32 MiB.
        length: u32,
    },
    /// See to it that nothing that was stored can fail to reach its place any more; the answer's payload is empty.
    Sync,
}

/// What the device's owner must know.
#[derive(Debug, Clone, PartialEq)]
pub enum SessionEvent {
    /// The first handshake is done: the image can be attached.
    Ready(Export),
    /// The link was lost: requests wait.
    Held {
        /// When the session ends unless a new link serves the same image.
        until: Instant,
        /// What happened to the link.
        reason: String,
    },
    /// A new link serves the same image: waiting requests go on.
    Resumed {
        /// Which link.
        link: LinkId,
    },
    /// A challenger has shown that it serves the same image, and serves the session from now on.
    TakenOver {
        /// Which link.
        link: LinkId,
    },
    /// There is no link, and none is needed: the kept copy is whole.
    Alone {
        /// What happened to the link.
        reason: String,
    },
    /// The kept copy is whole and verified: from now on no link is needed.
    Whole,
    /// The copy is given up, and its store is not needed any more: the image is streamed. With the reason.
    KeepLost(String),
    /// The session is to end: run the stop hook, detach, then call `end`. Requests are served while the link lives.
    Ending(EndReason),
    /// The session has ended and every request is answered. Nothing but [`Output::Complete`] follows.
    Ended(EndReason),
}
