//! What waits to be sent to a client.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncWrite, AsyncWriteExt, WriteHalf};

/// How many pieces one write hands to the kernel, which takes 1024 (`UIO_MAXIOV`).
const MAX_PIECES: usize = 64;

/// What waits to be sent, written in as few system calls as there can be.
pub(super) struct Output<S> {
    writer: WriteHalf<S>,
    pieces: VecDeque<Bytes>,
    bytes: usize,
    /// Whether the writer keeps nothing back: TLS takes more than it can send.
    flushed: bool,
}

impl<S: AsyncWrite> Output<S> {
    pub(super) fn new(writer: WriteHalf<S>) -> Self {
        Self {
            writer,
            pieces: VecDeque::new(),
            bytes: 0,
            flushed: true,
        }
    }

    /// How many wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.flushed
    }

    pub(super) fn push(&mut self, pieces: Vec<Bytes>) {
        for piece in pieces {
            self.bytes += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// Writes once, and says how many bytes, or flushes what was written. Cancel safe: nothing is taken off the queue
    /// before it was written.
    pub(super) async fn send(&mut self) -> io::Result<usize> {
        let Self { writer, pieces, .. } = self;
        if pieces.is_empty() {
            writer.flush().await?;
            self.flushed = true;
            return Ok(0);
        }
        let written = poll_fn(|context| {
            let mut slices = [IoSlice::new(&[]); MAX_PIECES];
            let count = slices
                .iter_mut()
                .zip(pieces.iter())
                .map(|(slice, piece)| *slice = IoSlice::new(piece))
                .count();
            Pin::new(&mut *writer).poll_write_vectored(context, &slices[..count])
        })
        .await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.flushed = false;
        self.bytes -= written;
        self.consume(written);
        Ok(written)
    }

    fn consume(&mut self, mut written: usize) {
        while let Some(piece) = self.pieces.front_mut() {
            if written < piece.len() {
                piece.advance(written);
                return;
            }
            written -= piece.len();
            self.pieces.pop_front();
        }
    }
}
