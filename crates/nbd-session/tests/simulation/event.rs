//! What happens in a schedule.

use bytes::Bytes;
use nbd::Payload;
use nbd_session::{Closing, StoreId};

use crate::page::Offer;

/// What happens at a moment.
pub(crate) enum Event {
    /// Bytes arrive at the page's end of a connection.
    ToPage { connection: usize, data: Bytes },
    /// Something arrives at the session's end.
    ToSession { connection: usize, message: Message },
    /// The page carries out a request.
    Execute { connection: usize, request: u64 },
    /// The page answers a request that was carried out.
    Reply { connection: usize, request: u64 },
    /// The page learns that its connection is gone.
    PageHears { connection: usize },
    /// The page connects, unless it is connected anyway.
    Connect { offer: Offer, anyway: bool },
    /// The peer answers a ping.
    Pong { connection: usize },
    /// The store of the kept copy has done a task.
    Stored {
        /// For which process.
        incarnation: u64,
        task: StoreId,
        result: Result<Payload, String>,
    },
    /// The machine asks for something.
    Ask,
    /// Something goes wrong.
    Trouble,
    /// The program ends the session.
    End,
}

/// What arrives at the session's end of a connection.
pub(crate) enum Message {
    Data(Bytes),
    Text(String),
    Closed(Closing),
}
