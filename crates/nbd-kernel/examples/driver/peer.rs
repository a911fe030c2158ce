//! The serving side of a socket pair: every 8 bytes of the disk hold their own offset.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const READ: u16 = 0;
const DISCONNECT: u16 = 2;

/// Answers reads on one end, and returns the other for the kernel.
pub(crate) fn serve() -> OwnedFd {
    let (mut ours, theirs) = UnixStream::pair().expect("a socket pair");
    thread::spawn(move || while answer(&mut ours).is_ok() {});
    theirs.into()
}

/// A socket pair whose other end reads nothing: a dead peer. Keep both.
pub(crate) fn silent() -> (UnixStream, OwnedFd) {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    (ours, theirs.into())
}

fn answer(stream: &mut UnixStream) -> io::Result<()> {
    let mut request = [0; 28];
    stream.read_exact(&mut request)?;
    let [magic, offset, length] = [&request[..4], &request[16..24], &request[24..]].map(big_endian);
    assert_eq!(magic, u64::from(REQUEST_MAGIC), "the kernel's magic");
    let kind = u16::from_be_bytes([request[6], request[7]]);
    if kind == DISCONNECT {
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    let error: u32 = if kind == READ { 0 } else { 22 };
    let mut reply = Vec::new();
    reply.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    reply.extend_from_slice(&error.to_be_bytes());
    reply.extend_from_slice(&request[8..16]);
    if kind == READ {
        reply.extend(expected(offset, usize::try_from(length).expect("32 bits")));
    }
    stream.write_all(&reply)
}

fn big_endian(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn expected(offset: u64, length: usize) -> Vec<u8> {
    let words = offset / 8..(offset + length as u64) / 8;
    words.flat_map(|word| (word * 8).to_le_bytes()).collect()
}

/// Reads that range and compares it. Whole sectors.
pub(crate) fn check(disk: &Path, offset: u64, length: usize) -> Result<(), String> {
    let mut data = vec![0; length];
    File::open(disk)
        .and_then(|disk| disk.read_exact_at(&mut data, offset))
        .map_err(|e| format!("reading {} at {offset}: {e}", disk.display()))?;
    if data != expected(offset, length) {
        return Err(format!("{} has wrong bytes at {offset}", disk.display()));
    }
    Ok(())
}
