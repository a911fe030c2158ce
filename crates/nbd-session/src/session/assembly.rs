//! Puts the pieces of a READ together.

use bytes::Bytes;
use nbd::Payload;

/// This many pieces are fine, ...
const FREE_PIECES: usize = 16;
/// ... and one more for each of these bytes; beyond that the pieces are copied together.
const BYTES_PER_PIECE: usize = 4096;
/// A piece that waits for others keeps its whole message in memory. Where it is less than this part of the message,
/// it is copied.
const PINNED: usize = 16;

/// The bytes of one READ, as far as they have arrived. Normally the pieces are kept as they came, without a copy.
#[derive(Debug)]
pub(super) struct Assembly {
    offset: u64,
    length: usize,
    pieces: Vec<(usize, Bytes)>,
    /// Pieces from here on came with the message that is being read.
    fresh: usize,
    /// All bytes, once there were too many pieces.
    flat: Option<Vec<u8>>,
}

impl Assembly {
    /// For a READ of `length` bytes at `offset`.
    pub(super) fn new(offset: u64, length: u32) -> Self {
        Self {
            offset,
            length: length as usize,
            pieces: Vec::new(),
            fresh: 0,
            flat: None,
        }
    }

    /// Adds bytes at `offset` of the image. The transmission has checked that they are asked for, and come once.
    pub(super) fn push(&mut self, offset: u64, data: Bytes) {
        let at = usize::try_from(offset.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        if let Some(flat) = &mut self.flat {
            return copy(flat, at, &data);
        }
        self.pieces.push((at, data));
        if self.pieces.len() > FREE_PIECES + self.length / BYTES_PER_PIECE {
            self.flatten();
        }
    }

    /// Adds `length` zeroes at `offset` of the image.
    pub(super) fn push_zeroes(&mut self, offset: u64, length: u32) {
        let mut offset = offset;
        for part in Payload::zeros(length as usize) {
            let next = offset + part.len() as u64;
            self.push(offset, part);
            offset = next;
        }
    }

    /// The message of `message` bytes has been read and the READ is not answered: lets go of the message where only
    /// little of it is needed.
    pub(super) fn settle(&mut self, message: usize) {
        for (_, piece) in &mut self.pieces[self.fresh..] {
            if piece.len() < message / PINNED {
                *piece = Bytes::copy_from_slice(piece);
            }
        }
        self.fresh = self.pieces.len();
    }

    /// The whole.
    pub(super) fn finish(mut self) -> Payload {
        if let Some(flat) = self.flat {
            return Payload::from(Bytes::from(flat));
        }
        self.pieces.sort_by_key(|(at, _)| *at);
        self.pieces.into_iter().map(|(_, piece)| piece).collect()
    }

    fn flatten(&mut self) {
        let mut flat = vec![0; self.length];
        for (at, piece) in self.pieces.drain(..) {
            copy(&mut flat, at, &piece);
        }
        self.fresh = 0;
        self.flat = Some(flat);
    }
}

fn copy(flat: &mut [u8], at: usize, piece: &[u8]) {
    if let Some(place) = flat.get_mut(at..at.saturating_add(piece.len())) {
        place.copy_from_slice(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(range: std::ops::Range<usize>) -> Bytes {
        range.map(|at| u8::try_from(at % 251).unwrap()).collect()
    }

    #[test]
    fn pieces_are_not_copied() {
        let message = bytes(0..10_000);
        let mut assembly = Assembly::new(5, 10_000);
        assembly.push(5005, message.slice(5000..));
        assembly.push(5, message.slice(..5000));
        assembly.settle(10_000);
        let whole = assembly.finish();
        assert_eq!(whole.to_bytes(), message);
        assert_eq!(whole.parts()[0].as_ptr(), message.as_ptr());
    }

    #[test]
    fn holes_are_zeroes() {
        let mut assembly = Assembly::new(0, 200_000);
        assembly.push_zeroes(1, 199_999);
        assembly.push(0, bytes(7..8));
        let whole = assembly.finish().to_bytes();
        assert_eq!((whole.len(), whole[0]), (200_000, 7));
        assert!(whole[1..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn many_small_pieces_are_copied_together() {
        let mut assembly = Assembly::new(0, 10_000);
        for at in (0..10_000).rev() {
            assembly.push(at as u64, bytes(at..at + 1));
            assembly.settle(1);
        }
        assert!(assembly.pieces.is_empty());
        assert_eq!(assembly.finish().to_bytes(), bytes(0..10_000));
    }

    #[test]
    fn a_small_piece_does_not_keep_a_large_message() {
        let message = bytes(0..100_000);
        let mut assembly = Assembly::new(0, 1000);
        assembly.push(0, message.slice(99_500..));
        assembly.settle(message.len());
        drop(
            message
                .try_into_mut()
                .expect("nobody else holds the message"),
        );
    }
}
