//! Requests and replies of one regular file.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::netlink::u32_at;

/// A buffer of this many bytes holds every request: the kernel asks for no less, and sends no more to a file
/// system that takes writes of at most 4 KiB.
pub const REQUEST_BUFFER: usize = 8192;
/// The most bytes that one read asks for: 256 pages of 4 KiB (`FUSE_MAX_MAX_PAGES`).
pub const MAX_READ: u32 = 1 << 20;

const IN_HEADER: usize = 40;
const OUT_HEADER: u32 = 16;
const MAJOR: u32 = 7;
/// FUSE_MAX_PAGES (Linux 4.20).
const MINOR: u32 = 28;
/// The size of INIT's reply since Linux 3.15.
const OLDEST_MINOR: u32 = 23;
const MAX_WRITE: u32 = 4096;
const ROOT: u64 = 1;

const FUSE_FORGET: u32 = 2;
const FUSE_GETATTR: u32 = 3;
const FUSE_OPEN: u32 = 14;
const FUSE_READ: u32 = 15;
const FUSE_STATFS: u32 = 17;
const FUSE_RELEASE: u32 = 18;
const FUSE_INIT: u32 = 26;
const FUSE_DESTROY: u32 = 38;
const FUSE_BATCH_FORGET: u32 = 42;

const INIT_ASYNC_READ: u32 = 1;
const INIT_ASYNC_DIO: u32 = 1 << 15;
const INIT_MAX_PAGES: u32 = 1 << 22;
const OPEN_KEEP_CACHE: u32 = 1 << 1;
/// Closing the file asks nothing of us (since Linux 5.16; an older kernel ignores it). We open it ourselves, and a
/// process that is killed meanwhile would wait in its exit for the answer that it can't give any more.
const OPEN_NO_FLUSH: u32 = 1 << 5;

const MODE_REGULAR: u32 = 0o100_000;
/// Reads ahead and reads of a loop device count as background; the default of 12 would limit them.
const MAX_BACKGROUND: u16 = 128;
/// Nothing about the file ever changes.
const FOREVER: u64 = 365 * 24 * 3600;

/// What a request asks of the caller.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Write these bytes to the descriptor, in one call.
    Reply(Vec<u8>),
    /// Read `length` bytes (at most [`MAX_READ`], never past the end, not 0) at `offset`, then write
    /// [`reply_header`] and the data to the descriptor in one call.
    Read {
        /// Goes into the reply.
        unique: u64,
        /// Bytes.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// Nothing.
    None,
    /// The file system was unmounted.
    Unmounted,
}

/// The kernel's view of one read-only file.
#[derive(Debug, Clone)]
pub struct FileServer {
    size: u64,
    permissions: u32,
    owner: (u32, u32),
    modified: Duration,
}

impl FileServer {
    /// A file of `size` bytes with these permission bits, owned by this process's user.
    pub fn new(size: u64, permissions: u32) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        FileServer {
            size,
            permissions: permissions & 0o777,
            owner: (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            ),
            modified: now.unwrap_or_default(),
        }
    }

    /// Takes one request, as one read of the descriptor gave it.
    pub fn handle(&self, request: &[u8]) -> Result<Action> {
        let header = request
            .get(..IN_HEADER)
            .ok_or(Error::Malformed("a FUSE request without a whole header"))?;
        let body = &request[IN_HEADER..];
        let opcode = u32_at(header, 4).unwrap_or_default();
        let unique = u64_at(header, 8).unwrap_or_default();
        let node = u64_at(header, 16).unwrap_or_default();
        let short = Error::Malformed("a FUSE request that is too short");
        Ok(match opcode {
            FUSE_INIT => self.init(unique, body).ok_or(short)?,
            FUSE_FORGET | FUSE_BATCH_FORGET => Action::None,
            FUSE_DESTROY => Action::Unmounted,
            _ if node != ROOT && node != 0 => fail(unique, libc::ENOENT),
            FUSE_GETATTR => Action::Reply(self.getattr(unique)),
            FUSE_OPEN => Action::Reply(open(unique)),
            FUSE_RELEASE => Action::Reply(reply(unique, &[])),
            FUSE_READ => self.read(unique, body).ok_or(short)?,
            FUSE_STATFS => Action::Reply(self.statfs(unique)),
            // The kernel remembers ENOSYS and asks no more (FLUSH, ACCESS, GETXATTR, INTERRUPT, LSEEK...).
            _ => fail(unique, libc::ENOSYS),
        })
    }

    fn init(&self, unique: u64, body: &[u8]) -> Option<Action> {
        let (major, minor) = (u32_at(body, 0)?, u32_at(body, 4)?);
        let max_readahead = u32_at(body, 8)?;
        let offered = u32_at(body, 12)?;
        if major != MAJOR || minor < OLDEST_MINOR {
            return Some(fail(unique, libc::EPROTO));
        }
        let flags = offered & (INIT_ASYNC_READ | INIT_ASYNC_DIO | INIT_MAX_PAGES);
        let pages = (MAX_READ as usize / rustix::param::page_size()).max(1);
        let out = Bytes::default()
            .u32(MAJOR)
            .u32(MINOR)
            .u32(max_readahead)
            .u32(flags)
            .u16(MAX_BACKGROUND)
            .u16(MAX_BACKGROUND / 4 * 3) // congestion threshold, in libfuse's proportion
            .u32(MAX_WRITE)
            .u32(1) // granularity of times, ns
            .u16(u16::try_from(pages).unwrap_or(u16::MAX))
            .zeros(2 + 8 * 4);
        Some(Action::Reply(reply(unique, &out.0)))
    }

    fn read(&self, unique: u64, body: &[u8]) -> Option<Action> {
        let offset = u64_at(body, 8)?;
        let wanted = u32_at(body, 16)?.min(MAX_READ);
        let left = self.size.saturating_sub(offset);
        let length = u32::try_from(left).unwrap_or(u32::MAX).min(wanted);
        Some(if length == 0 {
            Action::Reply(reply(unique, &[]))
        } else {
            Action::Read {
                unique,
                offset,
                length,
            }
        })
    }

    fn getattr(&self, unique: u64) -> Vec<u8> {
        let seconds = self.modified.as_secs();
        let nanoseconds = self.modified.subsec_nanos();
        let out = Bytes::default()
            .u64(FOREVER)
            .zeros(8)
            .u64(ROOT)
            .u64(self.size)
            .u64(self.size.div_ceil(512))
            .u64(seconds)
            .u64(seconds)
            .u64(seconds)
            .u32(nanoseconds)
            .u32(nanoseconds)
            .u32(nanoseconds)
            .u32(MODE_REGULAR | self.permissions)
            .u32(1) // links
            .u32(self.owner.0)
            .u32(self.owner.1)
            .u32(0) // device number
            .u32(4096)
            .u32(0); // flags
        reply(unique, &out.0)
    }

    fn statfs(&self, unique: u64) -> Vec<u8> {
        let out = Bytes::default()
            .u64(self.size.div_ceil(4096))
            .u64(0)
            .u64(0)
            .u64(1)
            .u64(0)
            .u32(4096)
            .u32(255)
            .u32(4096)
            .zeros(4 + 6 * 4);
        reply(unique, &out.0)
    }
}

/// The header before `length` bytes of data, or before nothing when `errno` is not 0 (a positive `EIO` and so on).
pub fn reply_header(unique: u64, errno: i32, length: u32) -> [u8; OUT_HEADER as usize] {
    let length = if errno == 0 { length } else { 0 };
    let mut header = [0; OUT_HEADER as usize];
    header[..4].copy_from_slice(&length.saturating_add(OUT_HEADER).to_ne_bytes());
    header[4..8].copy_from_slice(&errno.wrapping_neg().to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
    header
}

fn open(unique: u64) -> Vec<u8> {
    let out = Bytes::default()
        .u64(0)
        .u32(OPEN_KEEP_CACHE | OPEN_NO_FLUSH)
        .u32(0);
    reply(unique, &out.0)
}

fn fail(unique: u64, errno: i32) -> Action {
    Action::Reply(reply_header(unique, errno, 0).to_vec())
}

fn reply(unique: u64, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [&reply_header(unique, 0, length)[..], body].concat()
}

fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(data.get(at..at + 8)?.try_into().ok()?))
}

/// A structure of the protocol, field by field, in native byte order.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn zeros(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        let header = Bytes::default()
            .u32(u32::try_from(IN_HEADER + body.len()).unwrap())
            .u32(opcode)
            .u64(77)
            .u64(node)
            .zeros(16);
        [&header.0, body].concat()
    }

    fn read(offset: u64, length: u32) -> Action {
        let body = Bytes::default().u64(0).u64(offset).u32(length).zeros(20);
        let file = FileServer::new(10_000, 0o444);
        file.handle(&request(FUSE_READ, ROOT, &body.0)).unwrap()
    }

    fn answer(action: &Action) -> (i32, &[u8]) {
        let Action::Reply(bytes) = action else {
            panic!("not a reply: {action:?}")
        };
        assert_eq!(u32_at(bytes, 0), Some(u32::try_from(bytes.len()).unwrap()));
        assert_eq!(u64_at(bytes, 8), Some(77));
        let errno = u32_at(bytes, 4).unwrap().cast_signed();
        (-errno, &bytes[OUT_HEADER as usize..])
    }

    #[test]
    fn reads_end_at_the_files_end() {
        let at = |offset, length| Action::Read {
            unique: 77,
            offset,
            length,
        };
        assert_eq!(read(0, 4096), at(0, 4096));
        assert_eq!(read(8192, 4096), at(8192, 1808));
        assert_eq!(answer(&read(10_000, 4096)), (0, &[][..]));
        assert_eq!(answer(&read(u64::MAX, 4096)), (0, &[][..]));
    }

    #[test]
    fn the_replies_have_the_kernels_sizes() {
        let file = FileServer::new(10_000, 0o444);
        let init = Bytes::default()
            .u32(7)
            .u32(36)
            .u32(131_072)
            .u32(u32::MAX)
            .zeros(48);
        for (opcode, body, size) in [
            (FUSE_INIT, &init.0[..], 64),
            (FUSE_GETATTR, &[0; 16][..], 104),
            (FUSE_OPEN, &[0; 8][..], 16),
            (FUSE_STATFS, &[][..], 80),
            (FUSE_RELEASE, &[0; 24][..], 0),
        ] {
            let action = file.handle(&request(opcode, ROOT, body)).unwrap();
            let (errno, body) = answer(&action);
            assert_eq!((errno, body.len()), (0, size), "opcode {opcode}");
        }
    }

    #[test]
    fn what_a_file_can_not_do_is_refused() {
        let file = FileServer::new(1, 0o444);
        let lookup = file.handle(&request(1, ROOT, b"x\0")).unwrap();
        assert_eq!(answer(&lookup).0, libc::ENOSYS);
        let other = file.handle(&request(FUSE_GETATTR, 5, &[0; 16])).unwrap();
        assert_eq!(answer(&other).0, libc::ENOENT);
        let old = Bytes::default().u32(7).u32(8).zeros(8);
        let init = file.handle(&request(FUSE_INIT, 0, &old.0)).unwrap();
        assert_eq!(answer(&init).0, libc::EPROTO);
    }

    #[test]
    fn cut_requests_are_errors() {
        let file = FileServer::new(1, 0o444);
        let whole = request(FUSE_READ, ROOT, &[0; 40]);
        for length in 0..IN_HEADER + 20 {
            assert!(file.handle(&whole[..length]).is_err(), "at {length}");
        }
    }

    #[test]
    fn an_error_carries_no_data() {
        let header = reply_header(1, libc::EIO, 4096);
        assert_eq!(u32_at(&header, 0), Some(16));
        assert_eq!(u32_at(&header, 4), Some((-libc::EIO).cast_unsigned()));
    }
}
