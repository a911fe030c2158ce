//! The code numbers (proto.md, "Option types", "Option reply types", "Request types", "Structured
//! reply types", "Error values").

use std::fmt;

/// Defines an open code: a number with known values that show the name of proto.md.
macro_rules! open_code {
    (
        $(#[$meta:meta])*
        $code:ident($number:ty), $prefix:literal {
            $($(#[$value_meta:meta])* $name:ident = $value:expr;)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $code(pub $number);

        impl $code {
            $($(#[$value_meta])* pub const $name: Self = Self($value);)*
        }

        impl fmt::Display for $code {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {
                    $(Self::$name => f.write_str(concat!($prefix, stringify!($name))),)*
                    Self(number) => write!(f, concat!($prefix, "{:#x}"), number),
                }
            }
        }
    };
}

open_code! {
    /// What a client asks for while haggling (proto.md, "Option types").
    OptionCode(u32), "NBD_OPT_" {
        /// Begin transmission with the named export; has no error reply.
        EXPORT_NAME = 1;
        /// End the session.
        ABORT = 2;
        /// List the exports.
        LIST = 3;
        /// Withdrawn.
        PEEK_EXPORT = 4;
        /// Go on under TLS.
        STARTTLS = 5;
        /// Describe an export.
        INFO = 6;
        /// Describe an export, and begin transmission.
        GO = 7;
        /// Use structured replies.
        STRUCTURED_REPLY = 8;
        /// List metadata contexts.
        LIST_META_CONTEXT = 9;
        /// Select metadata contexts.
        SET_META_CONTEXT = 10;
        /// Use extended headers.
        EXTENDED_HEADERS = 11;
    }
}

open_code! {
    /// What a server answers to an option (proto.md, "Option reply types").
    OptionReplyCode(u32), "NBD_REP_" {
        /// Accepted; the last reply to the option.
        ACK = 1;
        /// One export of the list.
        SERVER = 2;
        /// One item of information about an export.
        INFO = 3;
        /// One metadata context.
        META_CONTEXT = 4;
        /// The option is unknown.
        ERR_UNSUP = (1 << 31) + 1;
        /// The option is forbidden here.
        ERR_POLICY = (1 << 31) + 2;
        /// The option is malformed or comes at the wrong time.
        ERR_INVALID = (1 << 31) + 3;
        /// The option does not work on the server's platform.
        ERR_PLATFORM = (1 << 31) + 4;
        /// TLS is required first.
        ERR_TLS_REQD = (1 << 31) + 5;
        /// There is no such export.
        ERR_UNKNOWN = (1 << 31) + 6;
        /// The server is shutting down.
        ERR_SHUTDOWN = (1 << 31) + 7;
        /// The client must ask for the block sizes first.
        ERR_BLOCK_SIZE_REQD = (1 << 31) + 8;
        /// The request or its reply is too large.
        ERR_TOO_BIG = (1 << 31) + 9;
        /// Extended headers are required first.
        ERR_EXT_HEADER_REQD = (1 << 31) + 10;
    }
}

impl OptionReplyCode {
    /// Whether this ends the option with an error: bit 31 is set.
    pub fn is_error(self) -> bool {
        self.0 & (1 << 31) != 0
    }
}

open_code! {
    /// A kind of information about an export (proto.md, `NBD_REP_INFO`).
    InfoType(u16), "NBD_INFO_" {
        /// Size and transmission flags.
        EXPORT = 0;
        /// The canonical name.
        NAME = 1;
        /// A description for people.
        DESCRIPTION = 2;
        /// Minimum and preferred block size, and maximum payload.
        BLOCK_SIZE = 3;
    }
}

open_code! {
    /// A command of the transmission phase (proto.md, "Request types").
    CommandType(u16), "NBD_CMD_" {
        /// Read a range.
        READ = 0;
        /// Write a range.
        WRITE = 1;
        /// End the session; has no reply.
        DISC = 2;
        /// Bring what was written to stable storage.
        FLUSH = 3;
        /// The range is no longer needed.
        TRIM = 4;
        /// The range will be needed soon.
        CACHE = 5;
        /// Fill a range with zeroes.
        WRITE_ZEROES = 6;
        /// Describe the extents of a range.
        BLOCK_STATUS = 7;
        /// The experimental RESIZE extension.
        RESIZE = 8;
    }
}

open_code! {
    /// The kind of a chunk of a structured reply (proto.md, "Structured reply types").
    ChunkType(u16), "NBD_REPLY_TYPE_" {
        /// No payload; ends a reply.
        NONE = 0;
        /// Bytes of the export.
        OFFSET_DATA = 1;
        /// A range that reads as zeroes.
        OFFSET_HOLE = 2;
        /// The extents of one metadata context.
        BLOCK_STATUS = 5;
        /// The same with extended headers.
        BLOCK_STATUS_EXT = 6;
        /// The request failed.
        ERROR = (1 << 15) + 1;
        /// The request failed at an offset.
        ERROR_OFFSET = (1 << 15) + 2;
    }
}

impl ChunkType {
    /// Whether this is an error chunk, known or not: bit 15 is set.
    pub fn is_error(self) -> bool {
        self.0 & (1 << 15) != 0
    }
}

/// Why a request failed (proto.md, "Error values").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Errno {
    /// Operation not permitted.
    EPERM = 1,
    /// Input/output error.
    EIO = 5,
    /// Cannot allocate memory.
    ENOMEM = 12,
    /// Invalid argument.
    EINVAL = 22,
    /// No space left on device.
    ENOSPC = 28,
    /// Value too large.
    EOVERFLOW = 75,
    /// Operation not supported.
    ENOTSUP = 95,
    /// The server is being shut down.
    ESHUTDOWN = 108,
}

impl Errno {
    /// The number on the wire, never 0.
    pub fn to_wire(self) -> u32 {
        self as u32
    }

    /// The error of a nonzero number; what proto.md does not define counts as EINVAL, as it asks.
    pub fn from_wire(number: u32) -> Self {
        match number {
            1 => Self::EPERM,
            5 => Self::EIO,
            12 => Self::ENOMEM,
            28 => Self::ENOSPC,
            75 => Self::EOVERFLOW,
            95 => Self::ENOTSUP,
            108 => Self::ESHUTDOWN,
            _ => Self::EINVAL,
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EPERM => "operation not permitted",
            Self::EIO => "input/output error",
            Self::ENOMEM => "out of memory",
            Self::EINVAL => "invalid argument",
            Self::ENOSPC => "no space left on device",
            Self::EOVERFLOW => "value too large",
            Self::ENOTSUP => "operation not supported",
            Self::ESHUTDOWN => "the server is shutting down",
        })
    }
}
