//! The store of a kept copy: it may fail.

use std::collections::BTreeMap;

use bytes::Bytes;
use nbd::Payload;
use nbd_session::StoreAction;

use crate::random::Random;

pub(crate) struct Keeper {
    bytes: BTreeMap<u64, u8>,
    /// In percent: tasks that fail.
    failing: u64,
    /// Whether anything has gone wrong.
    pub(crate) failed: bool,
    /// When it will have done all that it was told.
    pub(crate) done_at: u64,
}

impl Keeper {
    pub(crate) fn new(random: &mut Random) -> Self {
        Self {
            bytes: BTreeMap::new(),
            failing: random.pick(&[0, 0, 1, 5]),
            failed: false,
            done_at: 0,
        }
    }

    /// A new store: the old one went with its process.
    pub(crate) fn begin_anew(&mut self) {
        self.bytes.clear();
    }

    pub(crate) fn carry_out(
        &mut self,
        random: &mut Random,
        action: StoreAction,
    ) -> Result<Payload, String> {
        if random.percent(self.failing) {
            self.failed = true;
            return Err("no space left on device".into());
        }
        match action {
            StoreAction::Write { offset, data } => {
                self.bytes.extend((offset..).zip(data.to_bytes()));
                Ok(Payload::new())
            }
            StoreAction::Read { offset, length } => {
                let end = offset + u64::from(length);
                let bytes: Bytes = self
                    .bytes
                    .range(offset..end)
                    .map(|(_, byte)| *byte)
                    .collect();
                assert_eq!(bytes.len(), length as usize, "reads what was never stored");
                Ok(Payload::from(bytes))
            }
            StoreAction::Sync => Ok(Payload::new()),
        }
    }
}
