//! A connection that goes along with its task, from the thread that answers requests to that of a session.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    runtime::{Handle, Id},
};

/// A socket that is watched by the runtime of the task that uses it: that of another would have to wake its thread.
pub(super) struct Following {
    /// None: it could not be moved, and is closed.
    stream: Option<TcpStream>,
    /// Whose it is.
    runtime: Id,
}

impl Following {
    /// `stream` is of the runtime within which this is called.
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream: Some(stream),
            runtime: Handle::current().id(),
        }
    }

    /// The socket, which is the present runtime's now if it was not before.
    fn here(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        let here = Handle::current().id();
        if self.runtime != here {
            self.runtime = here;
            let moved = self.stream.take().map(move_here).transpose()?;
            self.stream = moved;
        }
        let stream = self.stream.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        Ok(Pin::new(stream))
    }
}

fn move_here(stream: TcpStream) -> io::Result<TcpStream> {
    TcpStream::from_std(stream.into_std()?)
}

impl AsyncRead for Following {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.here()?.poll_read(context, buffer)
    }
}

impl AsyncWrite for Following {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.here()?.poll_write(context, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.here()?.poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        (self.stream.as_ref()).is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.here()?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.here()?.poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        runtime::Builder,
    };

    use super::*;

    async fn pair() -> (Following, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).await;
        let (ours, _) = listener.accept().await.unwrap();
        (Following::new(ours), theirs.unwrap())
    }

    #[test]
    fn it_goes_on_in_another_runtime_when_its_first_one_is_gone() {
        let first = Builder::new_current_thread().enable_all().build().unwrap();
        let (mut ours, theirs) = first.block_on(async {
            let (mut ours, mut theirs) = pair().await;
            theirs.write_all(b"before").await.unwrap();
            let mut buffer = [0; 3];
            ours.read_exact(&mut buffer).await.unwrap();
            assert_eq!(&buffer, b"bef");
            (ours, theirs.into_std().unwrap())
        });
        let second = Builder::new_current_thread().enable_all().build().unwrap();
        second.block_on(async {
            let mut buffer = [0; 3];
            ours.read_exact(&mut buffer).await.unwrap();
            assert_eq!(&buffer, b"ore");
            first.shutdown_background();
            let mut theirs = TcpStream::from_std(theirs).unwrap();
            // Whoever has to wait is woken by this runtime.
            let answer = tokio::spawn(async move {
                ours.read_exact(&mut buffer).await.unwrap();
                ours.write_all(&buffer).await.unwrap();
            });
            theirs.write_all(b"now").await.unwrap();
            let mut received = Vec::new();
            theirs.read_to_end(&mut received).await.unwrap();
            assert_eq!(received, b"now");
            answer.await.unwrap();
        });
    }
}
