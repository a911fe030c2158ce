//! The least that takes a browser's bytes: a WebSocket server that passes what it gets to a Unix socket, and nothing
//! back. What a page reaches with it is the browser's own ceiling, which `bench/` compares the program with.
//!
//! `sink SOCKET` prints the port of loopback that it listens on. Each connection gets one of its own to SOCKET.

use std::{error::Error, path::PathBuf};

use futures_util::StreamExt as _;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream, UnixStream},
};
use tokio_websockets::{Limits, ServerBuilder};

/// The longest message, in bytes.
const LONGEST: usize = 64 << 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let socket: PathBuf = std::env::args_os()
        .nth(1)
        .ok_or("which Unix socket to write to?")?
        .into();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?.port());
    loop {
        let (stream, _) = listener.accept().await?;
        let socket = socket.clone();
        tokio::spawn(async move {
            if let Err(error) = pass(stream, socket).await {
                eprintln!("sink: {error}");
            }
        });
    }
}

/// Passes one connection's messages on until it closes.
async fn pass(stream: TcpStream, socket: PathBuf) -> Result<(), Box<dyn Error>> {
    let mut drain = UnixStream::connect(socket).await?;
    let limits = Limits::default().max_payload_len(Some(LONGEST));
    let (_, mut messages) = ServerBuilder::new().limits(limits).accept(stream).await?;
    while let Some(message) = messages.next().await {
        let message = message?;
        if message.is_binary() {
            drain.write_all(message.as_payload()).await?;
        }
    }
    Ok(())
}
