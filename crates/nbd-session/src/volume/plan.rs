//! What the image is asked so that a disk can answer.

use nbd::wire::{CommandFlags, Errno, ExtentFlags};
use nbd::{Command, Extent, Payload, Reply};

use super::geometry::Geometry;

/// What can be asked of the image just now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The longest READ or WRITE, in bytes: a multiple of `block`.
    pub(super) max_request: u32,
    /// Ranges must be multiples of this, in bytes.
    pub(super) block: u32,
    /// Whether BLOCK_STATUS can be asked.
    pub(super) block_status: bool,
}

/// How a disk answers one request.
#[derive(Debug)]
pub(super) enum Plan {
    /// At once.
    Answer(Result<Reply, Errno>),
    /// By asking the image all of these, in order, and making the answer of theirs.
    Ask(Vec<(CommandFlags, Command)>, Shape),
}

/// How the answer is made of the image's answers.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    /// It is done when all are.
    Done,
    /// The data in a row, without what was read for alignment alone, and with the padding.
    Data(Cut),
    /// The same with extents; all that is unknown counts as data.
    Extents(Cut),
}

/// Which part of the image's answer is wanted. All in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    /// Before it.
    skip: u64,
    /// The part itself.
    length: u64,
    /// Of zeroes behind it.
    padding: u64,
    /// Whether one extent is enough.
    one: bool,
}

/// Plans the answer to `command` of a disk with this geometry.
pub(super) fn plan(
    geometry: &Geometry,
    limits: Limits,
    flags: CommandFlags,
    command: Command,
) -> Plan {
    match check(geometry, flags, &command) {
        Err(errno) => Plan::Answer(Err(errno)),
        Ok(()) => match command {
            Command::Read { .. } => plan_read(geometry, limits, &command),
            Command::BlockStatus { .. } => plan_block_status(geometry, limits, flags, &command),
            Command::Write { offset, data } => {
                plan_write(geometry, limits, flags & CommandFlags::FUA, offset, &data)
            }
            Command::WriteZeroes { .. } => plan_whole(geometry, flags, &command),
            Command::Flush if geometry.can_flush => Plan::Ask(vec![(flags, command)], Shape::Done),
            Command::Trim { .. } if geometry.can_trim => plan_whole(geometry, flags, &command),
            Command::Cache { .. } if geometry.can_cache => plan_cache(geometry, limits, &command),
            Command::Flush | Command::Trim { .. } | Command::Cache { .. } => {
                Plan::Answer(Ok(Reply::Done))
            }
        },
    }
}

/// What a disk refuses, with the errors that proto.md asks for ("Error values").
fn check(geometry: &Geometry, flags: CommandFlags, command: &Command) -> Result<(), Errno> {
    if matches!(command, Command::Flush) {
        return Ok(());
    }
    if command.is_write() && geometry.read_only {
        return Err(Errno::EPERM);
    }
    if command.length() == 0 {
        return Err(Errno::EINVAL);
    }
    if command
        .offset()
        .checked_add(command.length())
        .is_none_or(|end| end > geometry.size)
    {
        return Err(if command.is_write() {
            Errno::ENOSPC
        } else {
            Errno::EINVAL
        });
    }
    let block = u64::from(geometry.minimum_block.max(1));
    let aligned = command.offset().is_multiple_of(block) && command.length().is_multiple_of(block);
    if command.is_write() && !aligned {
        return Err(Errno::EINVAL);
    }
    if matches!(command, Command::WriteZeroes { .. }) && !geometry.can_write_zeroes {
        return Err(Errno::EINVAL);
    }
    if flags.contains(CommandFlags::FAST_ZERO) && !geometry.can_fast_zero {
        return Err(Errno::ENOTSUP);
    }
    Ok(())
}

fn plan_read(geometry: &Geometry, limits: Limits, command: &Command) -> Plan {
    let Some((start, end, cut)) = aligned(geometry, limits, command) else {
        return Plan::Answer(Ok(Reply::Data(Payload::zeros(to_usize(command.length())))));
    };
    let parts = pieces(start, end, limits.max_request)
        .map(|(offset, length)| (CommandFlags::empty(), Command::Read { offset, length }));
    Plan::Ask(parts.collect(), Shape::Data(cut))
}

fn plan_block_status(
    geometry: &Geometry,
    limits: Limits,
    flags: CommandFlags,
    command: &Command,
) -> Plan {
    let one = flags.contains(CommandFlags::REQ_ONE);
    let found = aligned(geometry, limits, command);
    match found.map(|(start, end, cut)| (start, u32::try_from(end - start), Cut { one, ..cut })) {
        Some((offset, Ok(length), cut)) if limits.block_status => {
            let flags = flags & CommandFlags::REQ_ONE;
            Plan::Ask(
                vec![(flags, Command::BlockStatus { offset, length })],
                Shape::Extents(cut),
            )
        }
        Some((_, _, cut)) => Plan::Answer(Ok(Reply::BlockStatus(cut.extents(&[])))),
        None => {
            let cut = Cut {
                skip: 0,
                length: 0,
                padding: command.length(),
                one,
            };
            Plan::Answer(Ok(Reply::BlockStatus(cut.extents(&[]))))
        }
    }
}

fn plan_cache(geometry: &Geometry, limits: Limits, command: &Command) -> Plan {
    let range = aligned(geometry, limits, command);
    match range.map(|(offset, end, _)| (offset, u32::try_from(end - offset))) {
        Some((offset, Ok(length))) => {
            let part = Command::Cache { offset, length };
            Plan::Ask(vec![(CommandFlags::empty(), part)], Shape::Done)
        }
        _ => Plan::Answer(Ok(Reply::Done)),
    }
}

/// Bytes of the padding cannot be kept: they must be the zeroes that they are.
fn plan_write(
    geometry: &Geometry,
    limits: Limits,
    flags: CommandFlags,
    offset: u64,
    data: &Payload,
) -> Plan {
    let kept = data
        .len()
        .min(to_usize(geometry.image_size.saturating_sub(offset)));
    let padding = data.slice(kept..data.len());
    if padding.parts().iter().flatten().any(|byte| *byte != 0) {
        return Plan::Answer(Err(Errno::ENOSPC));
    }
    let parts = pieces(offset, offset + kept as u64, limits.max_request).map(|(at, length)| {
        let start = to_usize(at - offset);
        (
            flags,
            Command::Write {
                offset: at,
                data: data.slice(start..start + length as usize),
            },
        )
    });
    match parts.collect::<Vec<_>>() {
        none if none.is_empty() => Plan::Answer(Ok(Reply::Done)),
        parts => Plan::Ask(parts, Shape::Done),
    }
}

/// Passes on a TRIM or WRITE_ZEROES, without the padding.
fn plan_whole(geometry: &Geometry, flags: CommandFlags, command: &Command) -> Plan {
    let (offset, length) = inside(geometry, command);
    let Some(length) = u32::try_from(length).ok().filter(|length| *length > 0) else {
        return Plan::Answer(Ok(Reply::Done));
    };
    let part = match command {
        Command::Trim { .. } => Command::Trim { offset, length },
        _ => Command::WriteZeroes { offset, length },
    };
    Plan::Ask(vec![(flags, part)], Shape::Done)
}

/// Offset and length of what a command is about inside the image.
fn inside(geometry: &Geometry, command: &Command) -> (u64, u64) {
    let end = command.offset() + command.length();
    (
        command.offset(),
        end.min(geometry.image_size)
            .saturating_sub(command.offset()),
    )
}

/// The aligned range of the image that has what is read, and what to cut out of it; `None` in the padding.
fn aligned(geometry: &Geometry, limits: Limits, command: &Command) -> Option<(u64, u64, Cut)> {
    let (offset, length) = inside(geometry, command);
    if length == 0 {
        return None;
    }
    let block = u64::from(limits.block.max(1));
    let start = offset / block * block;
    let end = (offset + length)
        .next_multiple_of(block)
        .min(geometry.image_size);
    Some((
        start,
        end,
        Cut {
            skip: offset - start,
            length,
            padding: command.length() - length,
            one: false,
        },
    ))
}

/// Offsets and lengths of a range in pieces of at most `most` bytes.
pub(super) fn pieces(start: u64, end: u64, most: u32) -> impl Iterator<Item = (u64, u32)> {
    let most = most.max(1);
    (start..end).step_by(most as usize).map(move |offset| {
        (
            offset,
            u32::try_from(end - offset).unwrap_or(most).min(most),
        )
    })
}

impl Shape {
    /// The disk's answer, made of the image's.
    pub(super) fn answer(self, answers: Vec<Result<Reply, Errno>>) -> Result<Reply, Errno> {
        let answers: Result<Vec<_>, _> = answers.into_iter().collect();
        match self {
            Self::Done => answers.map(|_| Reply::Done),
            Self::Data(cut) => {
                let mut data = Payload::new();
                for answer in answers? {
                    let Reply::Data(part) = answer else {
                        return Err(Errno::EIO);
                    };
                    data.append(part);
                }
                cut.data(data).map(Reply::Data)
            }
            Self::Extents(cut) => match answers.as_deref() {
                Ok([Reply::BlockStatus(extents)]) => Ok(Reply::BlockStatus(cut.extents(extents))),
                _ => Ok(Reply::BlockStatus(cut.extents(&[]))),
            },
        }
    }
}

impl Cut {
    fn data(self, data: Payload) -> Result<Payload, Errno> {
        let (start, end) = (to_usize(self.skip), to_usize(self.skip + self.length));
        if data.len() < end {
            return Err(Errno::EIO);
        }
        let mut wanted = if (start, end) == (0, data.len()) {
            data
        } else {
            data.slice(start..end)
        };
        wanted.append(Payload::zeros(to_usize(self.padding)));
        Ok(wanted)
    }

    fn extents(self, known: &[Extent]) -> Vec<Extent> {
        let mut extents = Vec::new();
        let (mut skip, mut left) = (self.skip, self.length);
        for extent in known {
            let length = u64::from(extent.length).saturating_sub(skip).min(left);
            skip = skip.saturating_sub(u64::from(extent.length));
            left -= length;
            push_extent(&mut extents, length, extent.flags);
        }
        if extents.is_empty() {
            push_extent(&mut extents, left, ExtentFlags::empty());
            left = 0;
        }
        if left == 0 {
            push_extent(
                &mut extents,
                self.padding,
                ExtentFlags::HOLE | ExtentFlags::ZERO,
            );
        }
        extents.truncate(if self.one { 1 } else { usize::MAX });
        extents
    }
}

/// Appends an extent, or lengthens the last one.
fn push_extent(extents: &mut Vec<Extent>, length: u64, flags: ExtentFlags) {
    let Some(length) = u32::try_from(length).ok().filter(|length| *length > 0) else {
        return;
    };
    match extents.last_mut() {
        Some(last) if last.flags == flags && last.length.checked_add(length).is_some() => {
            last.length += length;
        }
        _ => extents.push(Extent { length, flags }),
    }
}

fn to_usize(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: ExtentFlags = ExtentFlags::empty();

    fn extents(cut: Cut, known: &[(u32, ExtentFlags)]) -> Vec<(u32, ExtentFlags)> {
        let known: Vec<_> = known
            .iter()
            .map(|&(length, flags)| Extent { length, flags })
            .collect();
        cut.extents(&known)
            .into_iter()
            .map(|extent| (extent.length, extent.flags))
            .collect()
    }

    #[test]
    fn extents_are_cut_to_what_was_asked_and_the_padding_is_a_hole() {
        let cut = Cut {
            skip: 100,
            length: 400,
            padding: 12,
            one: false,
        };
        let hole = ExtentFlags::HOLE | ExtentFlags::ZERO;
        let zero = ExtentFlags::ZERO;
        assert_eq!(extents(cut, &[]), [(400, DATA), (12, hole)]);
        assert_eq!(
            extents(cut, &[(50, zero), (150, DATA), (999, zero)]),
            [(100, DATA), (300, zero), (12, hole)]
        );
        assert_eq!(extents(cut, &[(100, zero), (400, hole)]), [(412, hole)]);
        assert_eq!(
            extents(Cut { one: true, ..cut }, &[(999, DATA)]),
            [(400, DATA)]
        );
    }

    #[test]
    fn of_a_part_that_is_not_described_nothing_is_said() {
        let cut = Cut {
            skip: 0,
            length: 400,
            padding: 12,
            one: false,
        };
        assert_eq!(
            extents(cut, &[(100, ExtentFlags::ZERO)]),
            [(100, ExtentFlags::ZERO)]
        );
    }

    #[test]
    fn pieces_cover_a_range_without_a_gap() {
        assert_eq!(
            pieces(1, 10, 4).collect::<Vec<_>>(),
            [(1, 4), (5, 4), (9, 1)]
        );
        assert_eq!(pieces(5, 5, 4).count(), 0);
    }
}
