//! What the fuzz targets share.
//!
//! Every target takes a few bytes that choose the circumstances and how the stream is split, and
//! the stream itself. The stream is fed twice, whole and split, and must mean the same.

use bytes::Bytes;

/// `stream` in pieces of `length` bytes.
pub fn pieces(stream: &[u8], length: usize) -> impl Iterator<Item = Bytes> {
    stream.chunks(length.max(1)).map(Bytes::copy_from_slice)
}

/// The length of the pieces that a byte of the input asks for: short ones more often.
pub fn piece_length(choice: u8) -> usize {
    let choice = usize::from(choice);
    if choice < 64 {
        choice + 1
    } else {
        choice * choice
    }
}
