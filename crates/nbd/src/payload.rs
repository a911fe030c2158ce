//! Bytes on their way between a peer and whoever stores them.

use bytes::{Bytes, BytesMut};
use smallvec::{SmallVec, smallvec};

/// Parts shorter than this are copied, and joined with small neighbours.
const SMALL: usize = 512;
/// All zero payloads are slices of this.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// A chain of reference-counted slices: the data of a READ or WRITE.
///
/// Slices are not copied, except those below 512 bytes, so that a peer who sends single bytes
/// cannot make us keep an allocation, or the large message it came in, for each.
#[derive(Debug, Clone, Default)]
pub struct Payload {
    /// Mostly one.
    parts: SmallVec<[Bytes; 1]>,
    len: usize,
}

impl Payload {
    /// An empty payload.
    pub fn new() -> Self {
        Self::default()
    }

    /// `len` zero bytes; all parts share one static block.
    pub fn zeros(len: usize) -> Self {
        let block = Bytes::from_static(&ZEROES);
        let mut parts = smallvec![block.clone(); len / block.len()];
        if !len.is_multiple_of(block.len()) {
            parts.push(block.slice(..len % block.len()));
        }
        Self { parts, len }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends `part`.
    pub fn push(&mut self, part: Bytes) {
        self.len += part.len();
        let joined = self
            .parts
            .last_mut()
            .is_some_and(|last| join_small(last, &part));
        if joined || part.is_empty() {
            return;
        }
        self.parts.push(if part.len() < SMALL {
            own(&part).freeze()
        } else {
            part
        });
    }

    /// Appends the parts of `other`.
    pub fn append(&mut self, other: Payload) {
        for part in other.parts {
            self.push(part);
        }
    }

    /// The parts in order; none is empty.
    pub fn parts(&self) -> &[Bytes] {
        &self.parts
    }

    /// The bytes of `range`, sharing memory as [`Self::push`] does.
    ///
    /// # Panics
    /// When `range` reaches beyond the end, as for slices.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{range:?} of a payload of {} bytes",
            self.len
        );
        let mut slice = Self::new();
        let mut at = 0;
        for part in &self.parts {
            let start = range.start.clamp(at, at + part.len()) - at;
            let end = range.end.clamp(at, at + part.len()) - at;
            slice.push(part.slice(start..end));
            at += part.len();
        }
        slice
    }

    /// All bytes in one piece: shared where there is one part, copied where there are several.
    pub fn to_bytes(&self) -> Bytes {
        match self.parts.as_slice() {
            [only] => only.clone(),
            parts => parts.concat().into(),
        }
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        let mut payload = Self::new();
        payload.push(bytes);
        payload
    }
}

impl FromIterator<Bytes> for Payload {
    fn from_iter<I: IntoIterator<Item = Bytes>>(parts: I) -> Self {
        let mut payload = Self::new();
        for part in parts {
            payload.push(part);
        }
        payload
    }
}

impl IntoIterator for Payload {
    type Item = Bytes;
    type IntoIter = smallvec::IntoIter<[Bytes; 1]>;

    /// The parts in order.
    fn into_iter(self) -> Self::IntoIter {
        self.parts.into_iter()
    }
}

/// Payloads are equal when their bytes are, however they are split.
impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.parts.iter().flatten().eq(other.parts.iter().flatten())
    }
}

impl Eq for Payload {}

/// Copies `part` to the end of `last` where both are small, and says whether it did.
pub(crate) fn join_small(last: &mut Bytes, part: &Bytes) -> bool {
    if last.len() >= SMALL || part.len() >= SMALL {
        return false;
    }
    let mut joined = std::mem::take(last)
        .try_into_mut()
        .unwrap_or_else(|shared| own(&shared));
    joined.extend_from_slice(part);
    *last = joined.freeze();
    true
}

/// A copy of a small part, with room for the next.
fn own(part: &Bytes) -> BytesMut {
    let mut copy = BytesMut::with_capacity(2 * SMALL);
    copy.extend_from_slice(part);
    copy
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zeroes_share_one_block() {
        let payload = Payload::zeros(3 * ZEROES.len() + 5);
        assert_eq!(payload.len(), 3 * ZEROES.len() + 5);
        assert!(
            payload
                .parts()
                .iter()
                .all(|part| part.as_ptr() == ZEROES.as_ptr())
        );
        assert_eq!(payload.parts().len(), 4);
        assert!(Payload::zeros(0).is_empty());
    }

    #[test]
    fn single_bytes_are_gathered_and_let_go_of_the_message_they_came_in() {
        let message = Bytes::from(vec![7; 1 << 20]);
        let mut payload = Payload::new();
        for at in 0..10_000 {
            payload.push(message.slice(at..=at));
        }
        assert!(message.is_unique());
        assert_eq!(
            (payload.len(), payload.to_bytes()),
            (10_000, message.slice(..10_000))
        );
        assert!(payload.parts().len() <= 10_000 / SMALL + 1);
    }

    #[test]
    #[should_panic(expected = "of a payload of 5 bytes")]
    fn a_slice_beyond_the_end_panics() {
        let _ = Payload::zeros(5).slice(3..6);
    }

    proptest! {
        #[test]
        fn a_payload_is_its_bytes_however_it_was_put_together(
            lengths in prop::collection::vec(0usize..2000, 0..8),
            cut in any::<(prop::sample::Index, prop::sample::Index)>(),
        ) {
            let total = lengths.iter().sum::<usize>();
            let bytes: Bytes = (0..total).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let mut rest = bytes.clone();
            let payload: Payload = lengths.iter().map(|&length| rest.split_to(length)).collect();
            prop_assert_eq!(&payload, &Payload::from(bytes.clone()));
            prop_assert!(payload.parts().iter().all(|part| !part.is_empty()));

            let (a, b) = (cut.0.index(total + 1), cut.1.index(total + 1));
            let (start, end) = (a.min(b), a.max(b));
            prop_assert_eq!(payload.slice(start..end).to_bytes(), bytes.slice(start..end));
            let mut joined = payload.slice(0..start);
            joined.append(payload.slice(start..total));
            prop_assert_eq!(joined, payload);
        }
    }
}
