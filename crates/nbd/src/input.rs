//! What has arrived and was not yet understood.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::payload::join_small;

/// A queue of received pieces that is read by length, whatever the borders of the pieces.
#[derive(Debug, Default)]
pub(crate) struct Input {
    pieces: VecDeque<Bytes>,
    len: usize,
}

impl Input {
    /// Appends a received piece.
    pub(crate) fn push(&mut self, piece: Bytes) {
        self.len += piece.len();
        let joined = self
            .pieces
            .back_mut()
            .is_some_and(|last| join_small(last, &piece));
        if !joined && !piece.is_empty() {
            self.pieces.push_back(piece);
        }
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The next `N` bytes, left where they are; none before all of them have arrived.
    pub(crate) fn peek<const N: usize>(&self) -> Option<[u8; N]> {
        if self.len < N {
            return None;
        }
        let mut header = [0; N];
        let mut filled = 0;
        for piece in &self.pieces {
            let count = piece.len().min(N - filled);
            header[filled..filled + count].copy_from_slice(&piece[..count]);
            filled += count;
            if filled == N {
                break;
            }
        }
        Some(header)
    }

    /// Takes the next `N` bytes, once all of them have arrived.
    pub(crate) fn take_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let header = self.peek()?;
        self.skip(N);
        Some(header)
    }

    /// Takes the next `len` bytes in one piece, once all of them have arrived; copied only where
    /// they are split.
    pub(crate) fn take(&mut self, len: usize) -> Option<Bytes> {
        if self.len < len {
            return None;
        }
        let first = self.take_some(len);
        if first.len() == len {
            return Some(first);
        }
        let mut whole = BytesMut::with_capacity(len);
        whole.extend_from_slice(&first);
        while whole.len() < len {
            whole.extend_from_slice(&self.take_some(len - whole.len()));
        }
        Some(whole.freeze())
    }

    /// Takes what there is in one piece, at most `limit` bytes; empty only if `limit` is 0 or
    /// nothing waits.
    pub(crate) fn take_some(&mut self, limit: usize) -> Bytes {
        let Some(front) = self.pieces.front_mut() else {
            return Bytes::new();
        };
        let taken = front.split_to(front.len().min(limit));
        if front.is_empty() {
            self.pieces.pop_front();
        }
        self.len -= taken.len();
        taken
    }

    /// Drops at most `limit` bytes and says how many.
    pub(crate) fn skip(&mut self, limit: usize) -> usize {
        let mut skipped = 0;
        while skipped < limit && self.len > 0 {
            skipped += self.take_some(limit - skipped).len();
        }
        skipped
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn large_pieces_are_taken_without_a_copy() {
        let piece = Bytes::from(vec![7; 4096]);
        let mut input = Input::default();
        input.push(piece.clone());
        assert_eq!(input.take_array(), Some([7; 16]));
        assert_eq!(input.take(1000).unwrap().as_ptr(), piece[16..].as_ptr());
        assert_eq!(input.take_some(usize::MAX).as_ptr(), piece[1016..].as_ptr());
        assert_eq!(input.len(), 0);
    }

    #[test]
    fn nothing_is_allocated_for_what_has_not_arrived() {
        let mut input = Input::default();
        input.push(Bytes::from_static(b"abc"));
        assert_eq!(input.take(usize::MAX), None);
        assert_eq!(input.peek::<4>(), None);
        assert_eq!(input.skip(usize::MAX), 3);
    }

    proptest! {
        #[test]
        fn a_stream_is_read_the_same_however_it_arrives(
            lengths in prop::collection::vec(0usize..1500, 0..8),
            reads in prop::collection::vec(1usize..3000, 1..8),
        ) {
            let total = lengths.iter().sum::<usize>();
            let stream: Bytes = (0..total).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let mut input = Input::default();
            let mut rest = stream.clone();
            for length in lengths {
                input.push(rest.split_to(length));
            }
            let mut rest = stream;
            for read in reads {
                prop_assert_eq!(input.peek::<1>().map(|[byte]| byte), rest.first().copied());
                let expected = (read <= rest.len()).then(|| rest.split_to(read));
                prop_assert_eq!(input.take(read), expected);
                prop_assert_eq!(input.len(), rest.len());
            }
        }
    }
}
