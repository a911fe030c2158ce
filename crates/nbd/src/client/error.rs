//! What can go wrong on the client's side.

use crate::export::InvalidBlockSizes;
use crate::rules::BrokenRule;
use crate::text::InvalidString;
use crate::wire::{ChunkType, CommandType, OptionCode, OptionReplyCode};

/// Why there is no transmission with this server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// We were told to ask for an export whose name the protocol cannot carry.
    #[error("the name of the wanted export is {0}")]
    ExportName(InvalidString),
    /// The first eight bytes are not those of an NBD server.
    #[error("this is not an NBD server: it began with {0:#018x} instead of NBDMAGIC")]
    NotNbd(u64),
    /// The server has no options at all (proto.md, "Oldstyle negotiation").
    #[error("the server only knows the oldstyle handshake, which ended with nbd 3.10: update it")]
    Oldstyle,
    /// Neither oldstyle nor newstyle.
    #[error("the server's second magic number is {0:#018x} instead of IHAVEOPT")]
    UnknownStyle(u64),
    /// The server does not serve what was asked for (NBD_REP_ERR_UNKNOWN to NBD_OPT_GO).
    #[error(
        "the server has no {} that we could use{}",
        wanted(export),
        said(message)
    )]
    UnknownExport {
        /// The export's name; empty for the default export.
        export: String,
        /// What the server had to say, fit for a terminal; may be empty.
        message: String,
    },
    /// The server said no, and there is no way round.
    #[error("the server refused {option} with {reply}{}", said(message))]
    Refused {
        /// What was asked for.
        option: OptionCode,
        /// The error.
        reply: OptionReplyCode,
        /// What the server had to say, fit for a terminal; may be empty.
        message: String,
    },
    /// A reply does not begin as one.
    #[error("a reply to an option begins with {0:#018x}, which is not its magic number")]
    ReplyMagic(u64),
    /// A reply to something that was not asked.
    #[error("the server answered {answered} when it was asked {asked}")]
    OtherOption {
        /// What is outstanding.
        asked: OptionCode,
        /// What the server answered.
        answered: OptionCode,
    },
    /// A reply that is none to this option.
    #[error("{reply} is no reply to {option}")]
    UnexpectedReply {
        /// What was asked for.
        option: OptionCode,
        /// What came.
        reply: OptionReplyCode,
    },
    /// A reply with a length that its contents contradict.
    #[error("{reply} to {option} cannot be {length} bytes long")]
    ReplyLength {
        /// What was asked for.
        option: OptionCode,
        /// What came.
        reply: OptionReplyCode,
        /// In bytes.
        length: u32,
    },
    /// Replies without an end.
    #[error("more than {limit} replies to {option}")]
    TooManyReplies {
        /// What was asked for.
        option: OptionCode,
        /// How many are taken.
        limit: u32,
    },
    /// The export's name, its description or a metadata context is not a string.
    #[error("the server sent {0}")]
    InvalidString(#[from] InvalidString),
    /// `NBD_REP_ACK` without the information that must come before it.
    #[error("the server began transmission without NBD_INFO_EXPORT")]
    MissingExportInfo,
    /// Transmission flags without `NBD_FLAG_HAS_FLAGS`.
    #[error("the transmission flags {0:#06x} lack NBD_FLAG_HAS_FLAGS")]
    MissingHasFlags(u16),
    /// An export that no offset could reach the end of.
    #[error("an export of {0} bytes, where 2^63 - 1 is the limit")]
    ExportTooLarge(u64),
    /// Block sizes that contradict one another.
    #[error(transparent)]
    BlockSizes(#[from] InvalidBlockSizes),
}

fn wanted(export: &str) -> String {
    if export.is_empty() {
        "default export (one with an empty name)".into()
    } else {
        format!("export named {export:?}")
    }
}

/// The server's own words as the end of a sentence.
fn said(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}

/// Why a request cannot be sent; the connection goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// After [`Transmission::disconnect`](super::Transmission::disconnect).
    #[error("the session was ended with NBD_CMD_DISC")]
    Disconnected,
    /// The cookie belongs to a request that is not answered yet.
    #[error("the cookie {0:#x} is in use")]
    CookieInUse(u64),
    /// The server would have to refuse it.
    #[error(transparent)]
    BrokenRule(#[from] BrokenRule),
}

/// How the server broke the protocol; the connection cannot be used any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransmissionError {
    /// Neither a simple reply nor a chunk.
    #[error("a reply begins with {0:#010x}, which is no magic number of a reply")]
    Magic(u32),
    /// A reply to a request that is not outstanding.
    #[error("a reply to cookie {0:#x}, which is not outstanding")]
    UnknownCookie(u64),
    /// A structured reply that was not negotiated.
    #[error("a structured reply, which was not negotiated")]
    NotNegotiated,
    /// A simple reply where only a structured one will do.
    #[error("a simple reply to {0}, which needs a structured one")]
    SimpleReply(CommandType),
    /// A chunk that does not answer this command.
    #[error("{chunk} in reply to {command}")]
    UnexpectedChunk {
        /// What was asked.
        command: CommandType,
        /// What came.
        chunk: ChunkType,
    },
    /// A chunk with a length that its contents contradict.
    #[error("{chunk} cannot be {length} bytes long")]
    ChunkLength {
        /// Its type.
        chunk: ChunkType,
        /// In bytes.
        length: u32,
    },
    /// `NBD_REPLY_TYPE_NONE` that does not end the reply.
    #[error("NBD_REPLY_TYPE_NONE without NBD_REPLY_FLAG_DONE")]
    NoneNotDone,
    /// A range outside of what was asked.
    #[error("{chunk} of {length} bytes at {offset} is outside of the request")]
    OutOfRange {
        /// Its type.
        chunk: ChunkType,
        /// In bytes.
        offset: u64,
        /// In bytes.
        length: u32,
    },
    /// Bytes that came before.
    #[error("{length} bytes at {offset} overlap with earlier ones of the same reply")]
    Overlap {
        /// In bytes.
        offset: u64,
        /// In bytes.
        length: u32,
    },
    /// More pieces than are kept track of.
    #[error("the reply to a read has more than {limit} gaps")]
    TooManyGaps {
        /// How many are taken.
        limit: usize,
    },
    /// A second content chunk although `NBD_CMD_FLAG_DF` was set.
    #[error("a fragmented reply to a read with NBD_CMD_FLAG_DF")]
    Fragmented,
    /// Success without all the data.
    #[error("a read ended {missing} bytes short")]
    MissingData {
        /// In bytes.
        missing: u32,
    },
    /// Success of BLOCK_STATUS without any status.
    #[error("NBD_CMD_BLOCK_STATUS ended without a status")]
    MissingStatus,
    /// A second status for the same metadata context.
    #[error("a second status for one metadata context")]
    RepeatedStatus,
    /// A metadata context that was not negotiated.
    #[error("a status for metadata context {0}, which was not negotiated")]
    UnknownContext(u32),
    /// A hole or an extent without a length.
    #[error("a hole or an extent of length 0")]
    EmptyExtent,
    /// Extents that go on after the end of the request, or several or long ones despite
    /// `NBD_CMD_FLAG_REQ_ONE`.
    #[error("extents that go beyond what was asked")]
    ExcessExtents,
    /// An error chunk that says "no error".
    #[error("an error chunk with error 0")]
    ZeroError,
    /// Error chunks without an end.
    #[error("more than {limit} error chunks in one reply")]
    TooManyErrors {
        /// How many are taken.
        limit: u32,
    },
}
