//! The page: what it serves, and how it carries out requests.

use bytes::Bytes;
use nbd::wire::{CommandFlags, Errno, ExtentFlags, TransmissionFlags};
use nbd::{BlockSizes, Command, Export, Extent, Failure, Payload, Reply};

use crate::random::Random;
use crate::store::{FOREIGN, ORIGINAL, SECTOR, Store, ZEROES, stamp_of};

/// What a connection offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    Right,
    OtherSize,
    OtherName,
    Modified,
    OtherContent,
    OtherAbilities,
    /// The size in the `image` message is not the export's.
    Inconsistent,
}

/// The page, and its image.
pub(crate) struct Page {
    pub(crate) export: Export,
    pub(crate) store: Store,
    pub(crate) foreign: Store,
    /// In percent: requests that are never answered.
    pub(crate) hang: u64,
    /// In percent: requests that are answered with an error.
    pub(crate) errors: u64,
    /// Bytes of answered writes that no flush has covered.
    pub(crate) unflushed: u64,
}

impl Page {
    pub(crate) fn new(random: &mut Random, writable: bool) -> Self {
        let size = match random.below(4) {
            0 if !writable => random.between(1, 600),
            1 => random.between(1, 128) * SECTOR as u64,
            _ => random.between(0, 127) * SECTOR as u64 + random.between(8, 511),
        };
        let mut flags = TransmissionFlags::HAS_FLAGS;
        let optional = [
            TransmissionFlags::SEND_FUA,
            TransmissionFlags::SEND_TRIM,
            TransmissionFlags::SEND_WRITE_ZEROES,
            TransmissionFlags::SEND_CACHE,
        ];
        flags.extend(optional.into_iter().filter(|_| random.percent(70)));
        flags.set(TransmissionFlags::READ_ONLY, !writable);
        flags.set(TransmissionFlags::SEND_FUA, writable);
        flags.set(TransmissionFlags::SEND_FLUSH, random.percent(85));
        let minimum = if writable || random.percent(70) {
            1
        } else {
            512
        };
        let sizes = BlockSizes {
            minimum,
            preferred: 4096,
            maximum: random.pick(&[4096, 8192, 1 << 25]),
        };
        let export = Export {
            name: "image".into(),
            description: None,
            size: if minimum > 1 {
                size.next_multiple_of(u64::from(minimum))
            } else {
                size
            },
            flags,
            block_sizes: random
                .percent(70)
                .then_some(sizes)
                .or((minimum > 1).then_some(sizes)),
        };
        Self {
            store: Store::new(export.size, ORIGINAL),
            foreign: Store::new(export.size, FOREIGN),
            export,
            hang: 0,
            errors: 0,
            unflushed: 0,
        }
    }

    /// Whether writes may be lost by a crash in spite of having been answered.
    pub(crate) fn has_flush(&self) -> bool {
        self.export.flags.contains(TransmissionFlags::SEND_FLUSH)
    }

    /// Carries out a request. A write that fails may have been carried out nevertheless.
    pub(crate) fn execute(
        &mut self,
        random: &mut Random,
        offer: Offer,
        flags: CommandFlags,
        command: &Command,
    ) -> Result<Reply, Failure> {
        if !random.percent(self.errors) {
            return Ok(self.perform(random, offer, flags, command));
        }
        if command.is_write() && random.percent(50) {
            self.perform(random, offer, flags, command);
        }
        Err(Failure::new(
            random.pick(&[Errno::EIO, Errno::ESHUTDOWN]),
            "no luck",
        ))
    }

    fn perform(
        &mut self,
        random: &mut Random,
        offer: Offer,
        flags: CommandFlags,
        command: &Command,
    ) -> Reply {
        let store = if offer == Offer::OtherContent {
            &mut self.foreign
        } else {
            &mut self.store
        };
        let stable = flags.contains(CommandFlags::FUA)
            || !self.export.flags.contains(TransmissionFlags::SEND_FLUSH);
        let start = usize::try_from(command.offset()).unwrap() / SECTOR;
        let length = usize::try_from(command.length()).unwrap();
        match command {
            Command::Read { offset, .. } => {
                return Reply::Data(Payload::from(Bytes::from(store.read(*offset, length))));
            }
            Command::Write { data, .. } => {
                for (sector, bytes) in (start..).zip(data.to_bytes().chunks(SECTOR)) {
                    store.write(sector, stamp_of(bytes, sector), stable);
                }
                self.unflushed += length as u64;
            }
            Command::WriteZeroes { .. } | Command::Trim { .. } => {
                for sector in start..start + length.div_ceil(SECTOR) {
                    store.write(sector, ZEROES, stable);
                }
            }
            Command::Flush => {
                store.flush();
                self.unflushed = 0;
            }
            Command::Cache { .. } => {}
            Command::BlockStatus { length, .. } => {
                return Reply::BlockStatus(extents(
                    random,
                    *length,
                    flags.contains(CommandFlags::REQ_ONE),
                ));
            }
        }
        Reply::Done
    }
}

/// One or two extents: a client has to be content with any.
fn extents(random: &mut Random, length: u32, one: bool) -> Vec<Extent> {
    let first = u32::try_from(random.between(1, length.into())).unwrap();
    let mut extents = vec![Extent {
        length: first,
        flags: ExtentFlags::empty(),
    }];
    if first < length && !one {
        extents.push(Extent {
            length: length - first,
            flags: ExtentFlags::ZERO,
        });
    }
    extents
}
