//! What the bytes on the wire mean: magic numbers, codes, flags, headers and limits (proto.md,
//! "Values").
//!
//! Codes are open: a number nobody has defined is kept as it is and shown as a number.

mod codes;
mod flags;
mod header;

pub use codes::{ChunkType, CommandType, Errno, InfoType, OptionCode, OptionReplyCode};
pub use flags::{
    ChunkFlags, ClientFlags, CommandFlags, ExtentFlags, HandshakeFlags, TransmissionFlags,
};
pub use header::{ChunkHeader, OptionHeader, OptionReplyHeader, RequestHeader, SimpleReplyHeader};
pub(crate) use header::{u16_at, u32_at, u64_at, wire_length};

/// `NBDMAGIC`, the first eight bytes of every server (proto.md, "Newstyle negotiation").
pub const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, the second magic number of a newstyle server, and the first of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// The second magic number of an oldstyle server (proto.md, "Oldstyle negotiation").
pub const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// Begins every reply to an option (proto.md, "Fixed newstyle negotiation").
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Begins every request (proto.md, "Request message").
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Begins a simple reply (proto.md, "Simple reply message").
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Begins a chunk of a structured reply (proto.md, "Structured reply chunk message").
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// The longest string on the wire, in bytes (proto.md, "Conventions").
pub const MAX_STRING_LENGTH: usize = 4096;
/// The longest payload of a READ or WRITE where the server announced no maximum, in bytes: 32 MiB
/// (proto.md, "Size constraints").
pub const DEFAULT_MAXIMUM_PAYLOAD: u32 = 1 << 25;
/// The most extents in one chunk of block status (proto.md, `NBD_REPLY_TYPE_BLOCK_STATUS`).
pub const MAX_EXTENTS: usize = 1 << 20;
/// The largest export, in bytes: offsets beyond it do not fit into the signed 64 bits of most
/// systems.
pub const MAX_EXPORT_SIZE: u64 = i64::MAX as u64;
/// Reserved zeroes at the end of the reply to `NBD_OPT_EXPORT_NAME`, in bytes, unless both sides
/// agreed on `NO_ZEROES`.
pub const RESERVED_ZEROES: usize = 124;
/// The one metadata context of this implementation (proto.md, "The `base:` metadata namespace").
pub const BASE_ALLOCATION: &str = "base:allocation";
