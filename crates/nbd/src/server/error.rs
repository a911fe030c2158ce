//! How a client can break the protocol.

use crate::text::InvalidString;

/// Why the session ended while haggling; the connection is to be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Client flags that nobody offered (proto.md, "Client flags": the connection must be dropped).
    #[error("the client set flags that were not offered: {0:#010x}")]
    ClientFlags(u32),
    /// An option does not begin as one.
    #[error("an option begins with {0:#018x} instead of IHAVEOPT")]
    OptionMagic(u64),
    /// `NBD_OPT_EXPORT_NAME`, which has no error reply, with a name that cannot be one.
    #[error("the client asked for an export by {0}")]
    ExportName(#[from] InvalidString),
    /// `NBD_OPT_EXPORT_NAME`, which has no error reply, with a name that nothing has.
    #[error("the client asked for the export {0:?}, which does not exist")]
    UnknownExport(String),
    /// TLS is required, and the client does without where there is no error reply: it lacks fixed newstyle, or sent
    /// `NBD_OPT_EXPORT_NAME`.
    #[error("the client asked for an export without TLS, which is required")]
    TlsRequired,
    /// Bytes came right after `NBD_OPT_STARTTLS`, before TLS could have begun. Somebody between the client and us may
    /// have put them there, to be taken for the client's.
    #[error("something was sent in the clear after NBD_OPT_STARTTLS")]
    PlaintextAfterStartTls,
    /// More options than [`HandshakeLimits::options`](super::HandshakeLimits::options).
    #[error("the client sent more than {0} options without choosing an export")]
    TooManyOptions(u32),
    /// More bytes than [`HandshakeLimits::total`](super::HandshakeLimits::total).
    #[error("the client sent more than {0} bytes without choosing an export")]
    TooManyBytes(u64),
}

/// How the client broke the protocol; the connection is to be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransmissionError {
    /// A request does not begin as one.
    #[error("a request begins with {0:#010x}, which is not its magic number")]
    Magic(u32),
    /// A WRITE so long that it is not even skipped.
    #[error("a write of {length} bytes, where {limit} is the limit")]
    PayloadTooLong {
        /// In bytes.
        length: u32,
        /// In bytes.
        limit: u32,
    },
}
