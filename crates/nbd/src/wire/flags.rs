//! The flag fields (proto.md, "Flag fields").

use bitflags::bitflags;

bitflags! {
    /// What the server offers in its greeting (proto.md, "Handshake flags").
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct HandshakeFlags: u16 {
        /// The server understands options other than `NBD_OPT_EXPORT_NAME` and answers them.
        const FIXED_NEWSTYLE = 1 << 0;
        /// The server can leave out the reserved zeroes after `NBD_OPT_EXPORT_NAME`.
        const NO_ZEROES = 1 << 1;
    }

    /// The client's answer to the greeting (proto.md, "Client flags").
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct ClientFlags: u32 {
        /// The client speaks fixed newstyle.
        const FIXED_NEWSTYLE = 1 << 0;
        /// The reserved zeroes after `NBD_OPT_EXPORT_NAME` are to be left out.
        const NO_ZEROES = 1 << 1;
    }

    /// What an export can do (proto.md, "Transmission flags").
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct TransmissionFlags: u16 {
        /// Always set.
        const HAS_FLAGS = 1 << 0;
        /// Writing commands fail with EPERM.
        const READ_ONLY = 1 << 1;
        /// FLUSH is understood.
        const SEND_FLUSH = 1 << 2;
        /// [`CommandFlags::FUA`] is understood.
        const SEND_FUA = 1 << 3;
        /// The medium rotates: near offsets are near in time.
        const ROTATIONAL = 1 << 4;
        /// TRIM is understood.
        const SEND_TRIM = 1 << 5;
        /// WRITE_ZEROES and [`CommandFlags::NO_HOLE`] are understood.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// [`CommandFlags::DF`] is understood.
        const SEND_DF = 1 << 7;
        /// Several connections see one another's writes after a FLUSH.
        const CAN_MULTI_CONN = 1 << 8;
        /// The experimental RESIZE extension.
        const SEND_RESIZE = 1 << 9;
        /// CACHE is understood.
        const SEND_CACHE = 1 << 10;
        /// [`CommandFlags::FAST_ZERO`] is understood.
        const SEND_FAST_ZERO = 1 << 11;
        /// The experimental extension of extended headers: BLOCK_STATUS may have a payload.
        const BLOCK_STATUS_PAYLOAD = 1 << 12;
    }

    /// How a command is to be done (proto.md, "Command flags").
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct CommandFlags: u16 {
        /// Force unit access: answer once the data is on stable storage.
        const FUA = 1 << 0;
        /// WRITE_ZEROES must not leave a hole.
        const NO_HOLE = 1 << 1;
        /// Don't fragment: READ is answered with at most one chunk of content.
        const DF = 1 << 2;
        /// BLOCK_STATUS is answered with one extent.
        const REQ_ONE = 1 << 3;
        /// WRITE_ZEROES fails with ENOTSUP where it is no faster than WRITE.
        const FAST_ZERO = 1 << 4;
    }

    /// Flags of a chunk of a structured reply (proto.md, "Structured reply flags").
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct ChunkFlags: u16 {
        /// The last chunk of this reply.
        const DONE = 1 << 0;
    }

    /// The status of an extent in `base:allocation` (proto.md, "`base:allocation` metadata
    /// context").
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct ExtentFlags: u32 {
        /// Nothing is allocated there.
        const HOLE = 1 << 0;
        /// It reads as zeroes.
        const ZERO = 1 << 1;
    }
}
