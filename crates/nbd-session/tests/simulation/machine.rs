//! The machine that uses the disk: what it asks, and what it must get.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use bytes::Bytes;
use nbd::wire::{CommandFlags, Errno, ExtentFlags};
use nbd::{Command, Payload, Reply};
use nbd_session::{Geometry, RequestId};

use crate::random::Random;
use crate::store::{ORIGINAL, SECTOR, Stamp, ZEROES, content};

/// What the machine knows of each sector: the stamps that a read may show.
type Allowed = Vec<Vec<Stamp>>;

pub(crate) struct Machine {
    image_size: usize,
    sectors: usize,
    sector_aligned: bool,
    has_write_zeroes: bool,
    committed: Allowed,
    /// Writes that began or ended, and how many there were when one last did in each sector.
    changes: u64,
    changed: Vec<u64>,
    outstanding: HashMap<RequestId, Asked>,
    /// The same, as it was submitted.
    submitted: BTreeMap<RequestId, (CommandFlags, Command)>,
    next_id: u64,
    next_stamp: Stamp,
    /// It mostly reads on where it read last.
    in_a_row: bool,
    next_read: u64,
    /// How many reads were answered with bytes.
    pub(crate) read: u64,
}

/// A request without an answer.
enum Asked {
    /// Bytes, and what each sector may show: what it had, and whatever is written to it meanwhile.
    /// `asked` counts the changes before it.
    Read {
        range: Range<usize>,
        allowed: Allowed,
        asked: u64,
    },
    /// Sectors, and what they may have afterwards: the order of writes at the same time is open.
    Write {
        sectors: Range<usize>,
        stamp: Stamp,
        certain: bool,
        allowed: Allowed,
    },
    Status {
        length: u64,
        one: bool,
    },
    Nothing,
}

impl Machine {
    pub(crate) fn new(geometry: &Geometry, in_a_row: bool) -> Self {
        let size = usize::try_from(geometry.size).unwrap();
        assert_eq!(size % SECTOR, 0);
        Self {
            image_size: usize::try_from(geometry.image_size).unwrap(),
            sectors: size / SECTOR,
            sector_aligned: !geometry.read_only,
            has_write_zeroes: geometry.can_write_zeroes,
            committed: vec![vec![ORIGINAL]; size / SECTOR],
            changes: 0,
            changed: vec![0; size / SECTOR],
            outstanding: HashMap::new(),
            submitted: BTreeMap::new(),
            next_id: 0,
            next_stamp: 16,
            in_a_row,
            next_read: 0,
            read: 0,
        }
    }

    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// What has no answer yet, in order.
    pub(crate) fn unanswered(
        &self,
    ) -> impl Iterator<Item = (RequestId, CommandFlags, Command)> + use<'_> {
        self.submitted
            .iter()
            .map(|(id, (flags, command))| (*id, *flags, command.clone()))
    }

    /// Makes up a request.
    pub(crate) fn ask(
        &mut self,
        random: &mut Random,
        writable: bool,
    ) -> (RequestId, CommandFlags, Command) {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let (flags, command, asked) = match random.below(100) {
            0..15 if writable => self.write(random),
            15..20 if self.has_write_zeroes => self.write_zeroes(random),
            20..23 if writable => self.trim(random),
            23..30 => (CommandFlags::empty(), Command::Flush, Asked::Nothing),
            30..34 => self.block_status(random),
            34..36 => {
                let (offset, length) = self.range(random);
                (
                    CommandFlags::empty(),
                    Command::Cache { offset, length },
                    Asked::Nothing,
                )
            }
            _ => self.read(random),
        };
        self.outstanding.insert(id, asked);
        self.submitted.insert(id, (flags, command.clone()));
        (id, flags, command)
    }

    /// Checks an answer. `may_fail`: something justifies an error; `may_lose`: acknowledged writes may be gone.
    pub(crate) fn answer(
        &mut self,
        id: RequestId,
        result: Result<Reply, Errno>,
        may_fail: bool,
        may_lose: bool,
    ) {
        let asked = self
            .outstanding
            .remove(&id)
            .unwrap_or_else(|| panic!("{id:?} was answered twice"));
        self.submitted.remove(&id);
        match (asked, result) {
            (asked, Err(errno)) => {
                assert!(may_fail, "{id:?} failed without a cause: {errno}");
                assert_eq!(errno, Errno::EIO, "{id:?}");
                if let Asked::Write {
                    sectors, allowed, ..
                } = asked
                {
                    self.commit(&sectors, allowed, false);
                }
            }
            (
                Asked::Read {
                    range,
                    allowed,
                    asked,
                },
                Ok(Reply::Data(data)),
            ) => {
                assert_eq!(data.len(), range.len(), "{id:?}");
                self.read += u64::from(range.start < self.image_size);
                if !may_lose {
                    let shown = self.check_bytes(id, &range, &allowed, &data.to_bytes());
                    self.learn(&range, asked, &shown);
                }
            }
            (
                Asked::Write {
                    sectors,
                    certain,
                    allowed,
                    ..
                },
                Ok(Reply::Done),
            ) => {
                self.commit(&sectors, allowed, certain);
            }
            (Asked::Status { length, one }, Ok(Reply::BlockStatus(extents))) => {
                let described: u64 = extents.iter().map(|extent| u64::from(extent.length)).sum();
                assert!((1..=length).contains(&described), "{id:?}: {extents:?}");
                assert!(!one || extents.len() == 1);
                assert!(
                    extents
                        .iter()
                        .all(|extent| ExtentFlags::all().contains(extent.flags))
                );
            }
            (Asked::Nothing, Ok(Reply::Done)) => {}
            (_, Ok(reply)) => panic!("{id:?} was answered with {reply:?}"),
        }
    }

    /// A write has ended: its sectors have what is allowed now, or, unless that is certain, what they had.
    fn commit(&mut self, sectors: &Range<usize>, allowed: Allowed, certain: bool) {
        self.note_change(sectors);
        for (committed, allowed) in self.committed[sectors.clone()].iter_mut().zip(allowed) {
            if certain {
                committed.clear();
            }
            committed.extend(allowed);
        }
    }

    /// Checks that a read shows what it may; gives what that is, where it is certain.
    fn check_bytes(
        &self,
        id: RequestId,
        range: &Range<usize>,
        allowed: &Allowed,
        data: &[u8],
    ) -> Vec<Option<Stamp>> {
        let check_sector = |(sector, stamps): (usize, &Vec<Stamp>)| {
            let start = range.start.max(sector * SECTOR);
            let end = range.end.min((sector + 1) * SECTOR);
            let got = &data[start - range.start..end - range.start];
            let shows = |stamp: &Stamp| {
                let mut bytes = content(*stamp, sector);
                bytes[self.image_size.saturating_sub(sector * SECTOR).min(SECTOR)..].fill(0);
                got == &bytes[start - sector * SECTOR..end - sector * SECTOR]
            };
            let shown: Vec<_> = stamps.iter().copied().filter(shows).collect();
            let first = &got[..got.len().min(4)];
            assert!(
                !shown.is_empty(),
                "{id:?}: sector {sector} shows none of {stamps:?}: {first:?}"
            );
            if let [stamp] = shown[..] {
                Some(stamp)
            } else {
                None
            }
        };
        (range.start / SECTOR..)
            .zip(allowed)
            .map(check_sector)
            .collect()
    }

    /// What was seen of a sector that did not change meanwhile has to stay.
    fn learn(&mut self, range: &Range<usize>, asked: u64, shown: &[Option<Stamp>]) {
        for (sector, stamp) in sectors_of(range).zip(shown) {
            if let Some(stamp) = stamp
                && self.changed[sector] <= asked
                && !self.is_changing(sector)
            {
                self.committed[sector] = vec![*stamp];
            }
        }
    }

    fn note_change(&mut self, sectors: &Range<usize>) {
        self.changes += 1;
        self.changed[sectors.clone()].fill(self.changes);
    }

    fn is_changing(&self, sector: usize) -> bool {
        let changes = |asked: &Asked| matches!(asked, Asked::Write { sectors, .. } if sectors.contains(&sector));
        self.outstanding.values().any(changes)
    }

    fn read(&mut self, random: &mut Random) -> (CommandFlags, Command, Asked) {
        let (mut offset, mut length) = self.range(random);
        let left = (self.sectors * SECTOR) as u64 - self.next_read;
        if self.in_a_row && left > 0 && random.percent(80) {
            offset = self.next_read;
            length = length.min(u32::try_from(left).unwrap());
        }
        self.next_read = offset + u64::from(length);
        let start = usize::try_from(offset).unwrap();
        let range = start..start + length as usize;
        let sectors = sectors_of(&range);
        let mut allowed = self.committed[sectors.clone()].to_vec();
        self.allow_changes(&sectors, &mut allowed);
        (
            CommandFlags::empty(),
            Command::Read { offset, length },
            Asked::Read {
                range,
                allowed,
                asked: self.changes,
            },
        )
    }

    fn write(&mut self, random: &mut Random) -> (CommandFlags, Command, Asked) {
        self.next_stamp += 1;
        let stamp = self.next_stamp;
        let (sectors, asked) = self.change(random, stamp, true, 24);
        let mut bytes: Vec<u8> = sectors
            .clone()
            .flat_map(|sector| content(stamp, sector))
            .collect();
        let kept = self
            .image_size
            .saturating_sub(sectors.start * SECTOR)
            .min(bytes.len());
        bytes[kept..].fill(0);
        let flags = if random.percent(20) {
            CommandFlags::FUA
        } else {
            CommandFlags::empty()
        };
        let offset = (sectors.start * SECTOR) as u64;
        (
            flags,
            Command::Write {
                offset,
                data: Payload::from(Bytes::from(bytes)),
            },
            asked,
        )
    }

    fn write_zeroes(&mut self, random: &mut Random) -> (CommandFlags, Command, Asked) {
        let (sectors, asked) = self.change(random, ZEROES, true, 64);
        let (offset, length) = bytes_of(&sectors);
        let flags = random.pick(&[
            CommandFlags::empty(),
            CommandFlags::NO_HOLE,
            CommandFlags::FUA,
        ]);
        (flags, Command::WriteZeroes { offset, length }, asked)
    }

    /// A trimmed sector may keep its content.
    fn trim(&mut self, random: &mut Random) -> (CommandFlags, Command, Asked) {
        let (sectors, asked) = self.change(random, ZEROES, false, 64);
        let (offset, length) = bytes_of(&sectors);
        (
            CommandFlags::empty(),
            Command::Trim { offset, length },
            asked,
        )
    }

    fn block_status(&mut self, random: &mut Random) -> (CommandFlags, Command, Asked) {
        let (offset, length) = self.range(random);
        let one = random.percent(50);
        let flags = if one {
            CommandFlags::REQ_ONE
        } else {
            CommandFlags::empty()
        };
        (
            flags,
            Command::BlockStatus { offset, length },
            Asked::Status {
                length: length.into(),
                one,
            },
        )
    }

    /// Some sectors that get a new stamp: whatever is under way there may meet it.
    fn change(
        &mut self,
        random: &mut Random,
        stamp: Stamp,
        certain: bool,
        most: u64,
    ) -> (Range<usize>, Asked) {
        let start = usize::try_from(random.below(self.sectors as u64)).unwrap();
        let length = usize::try_from(random.between(1, most)).unwrap();
        let sectors = start..(start + length).min(self.sectors);
        self.note_change(&sectors);
        for asked in self.outstanding.values_mut() {
            match asked {
                Asked::Read { range, allowed, .. } => {
                    allow(&sectors_of(range), allowed, &sectors, stamp);
                }
                Asked::Write {
                    sectors: written,
                    allowed,
                    ..
                } => allow(written, allowed, &sectors, stamp),
                Asked::Status { .. } | Asked::Nothing => {}
            }
        }
        let mut allowed = vec![vec![stamp]; sectors.len()];
        self.allow_changes(&sectors, &mut allowed);
        (
            sectors.clone(),
            Asked::Write {
                sectors,
                stamp,
                certain,
                allowed,
            },
        )
    }

    /// Adds what is being written to `sectors`.
    fn allow_changes(&self, sectors: &Range<usize>, allowed: &mut Allowed) {
        for asked in self.outstanding.values() {
            if let Asked::Write {
                sectors: written,
                stamp,
                ..
            } = asked
            {
                allow(sectors, allowed, written, *stamp);
            }
        }
    }

    /// A range of the disk in bytes; of sectors where the disk is writable.
    fn range(&self, random: &mut Random) -> (u64, u32) {
        let size = (self.sectors * SECTOR) as u64;
        let unit = if self.sector_aligned {
            SECTOR as u64
        } else {
            1
        };
        let offset = random.below(size / unit) * unit;
        let most = random.pick(&[1, 512, 4096, 20_000]);
        let length = random
            .between(1, most)
            .next_multiple_of(unit)
            .min(size - offset);
        (offset, u32::try_from(length).unwrap())
    }
}

/// Adds `stamp` to what `allowed` has for those of its sectors that are in `changed`.
fn allow(sectors: &Range<usize>, allowed: &mut Allowed, changed: &Range<usize>, stamp: Stamp) {
    for sector in changed.start.max(sectors.start)..changed.end.min(sectors.end) {
        allowed[sector - sectors.start].push(stamp);
    }
}

fn sectors_of(bytes: &Range<usize>) -> Range<usize> {
    bytes.start / SECTOR..bytes.end.div_ceil(SECTOR)
}

fn bytes_of(sectors: &Range<usize>) -> (u64, u32) {
    (
        (sectors.start * SECTOR) as u64,
        u32::try_from(sectors.len() * SECTOR).unwrap(),
    )
}
