//! Requests on their way: why they were asked, what they cost, what comes of them.

use std::ops::Range;

use bytes::Bytes;
use nbd::{Command, Extent, Failure, Reply};

use super::assembly::Assembly;
use super::pace::Departure;
use super::replay::Watermark;
use super::requests::SMALL_READ;
use super::seen::Block;

/// What a small reply takes besides its header, in bytes: the most that is expected for a BLOCK_STATUS.
const EXTENTS: u64 = 4096;
/// A simple reply's header, in bytes.
const SIMPLE_HEADER: u64 = 16;
/// The headers of a structured reply to a READ in one chunk, in bytes: of the chunk, and the data's offset.
const CHUNK_HEADERS: u64 = 20 + 8;
/// A request's header, in bytes.
const REQUEST_HEADER: u64 = 28;
/// Headers of a request and of its reply never take more than this, in bytes.
pub(super) const HEADROOM: u64 = REQUEST_HEADER + CHUNK_HEADERS;

/// Why something was asked.
#[derive(Debug)]
pub(super) enum Job {
    /// To see whether the image is the session's.
    Compare(Block),
    /// To do an answered write again: its number in the log.
    Replay(u64),
    /// To see the first or last block of the image, for later links.
    Edge(Range<u64>),
    /// To make room in the log.
    Flush(Moment),
    /// The device asked: the request's number.
    Request(u64, Moment),
    /// Given up: the answer means nothing any more.
    Abandoned,
}

/// What had been written when a request was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// How many writing commands were sent, if all of them were answered.
    pub(super) settled: Option<u64>,
    /// Which writing commands were answered.
    pub(super) answered: Watermark,
}

/// One request on its way.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) job: Job,
    pub(super) cost: u64,
    /// How much of that has come.
    pub(super) arrived: u64,
    pub(super) departure: Departure,
    /// Its bytes are passed on as they come.
    pub(super) is_streamed: bool,
    pub(super) assembly: Option<Assembly>,
    pub(super) extents: Option<Vec<Extent>>,
}

/// What has come of a flight.
#[derive(Debug)]
pub(super) enum Arrival {
    /// Bytes of the request with this number, which is streamed: offset and data.
    Data(u64, u64, Bytes),
    /// All of it.
    Landed(Landing),
}

/// A flight has landed.
#[derive(Debug)]
pub(super) struct Landing {
    pub(super) job: Job,
    pub(super) result: Result<Reply, Failure>,
}

/// Whether something of this cost needs an allowance: more than a small read.
pub(super) fn is_long(cost: u64) -> bool {
    cost > SMALL_READ + HEADROOM
}

/// What asking `command` puts on its way, in both directions, in bytes; `structured` says how it is answered.
pub(super) fn cost(command: &Command, structured: bool) -> u64 {
    let header = if structured {
        CHUNK_HEADERS
    } else {
        SIMPLE_HEADER
    };
    match command {
        Command::Read { length, .. } => header + u64::from(*length),
        Command::Write { data, .. } => header + REQUEST_HEADER + data.len() as u64,
        Command::BlockStatus { .. } => header + EXTENTS,
        _ => header,
    }
}
