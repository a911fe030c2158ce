//! A page that serves an image from memory over a WebSocket.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use nbd::{
    Command, Export, Payload, Reply,
    server::{Handshake, HandshakeEvent, HandshakeLimits, Incoming, Transmission},
    wire::TransmissionFlags,
};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_websockets::{ClientBuilder, Message, WebSocketStream};

use crate::harness::{PATIENCE, Server};

/// 32 hexadecimal digits.
pub(crate) const ID: &str = "0123456789abcdef0123456789abcdef";
/// Others.
pub(crate) const OTHER_ID: &str = "fedcba9876543210fedcba9876543210";

/// The path of a `v=1` link to configuration `"0"`.
pub(crate) fn link(id: &str) -> String {
    format!("/nbd/0?session={id}&v=1")
}

/// An open WebSocket.
pub(crate) struct Page {
    socket: WebSocketStream<TcpStream>,
    /// What the server chose of the subprotocols.
    pub(crate) protocol: Option<String>,
}

impl Page {
    /// Opens a link with the token.
    pub(crate) async fn open(server: &Server, path: &str) -> Self {
        Self::open_with(
            server,
            path,
            &[("authorization", &format!("Bearer {}", server.token))],
        )
        .await
    }

    /// Opens a link with any headers.
    pub(crate) async fn open_with(
        server: &Server,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Self {
        let mut builder = ClientBuilder::new()
            .uri(&format!("ws://{}{path}", server.address))
            .unwrap();
        for (name, value) in headers {
            builder = builder
                .add_header((*name).try_into().unwrap(), value.parse().unwrap())
                .unwrap();
        }
        let stream = TcpStream::connect(server.address).await.unwrap();
        let (socket, response) = builder.connect_on(stream).await.unwrap();
        let protocol = response
            .headers()
            .get("sec-websocket-protocol")
            .map(|value| value.to_str().unwrap().to_owned());
        Self { socket, protocol }
    }

    /// Announces an image, as a `v=1` link does first.
    pub(crate) async fn announce(&mut self, name: &str, content: &[u8]) {
        self.say(json!({"type": "image", "name": name, "size": content.len(), "modified": null}))
            .await;
    }

    pub(crate) async fn say(&mut self, message: Value) {
        self.socket
            .send(Message::text(message.to_string()))
            .await
            .unwrap();
    }

    pub(crate) async fn send_text(&mut self, text: &str) {
        self.socket
            .send(Message::text(text.to_owned()))
            .await
            .unwrap();
    }

    /// Reads until the server closes; its code and reason.
    pub(crate) async fn closed(&mut self) -> (u16, String) {
        timeout(PATIENCE, async {
            loop {
                let message = self.socket.next().await.expect("a close frame").unwrap();
                if let Some((code, reason)) = message.as_close() {
                    return (code.into(), reason.to_owned());
                }
            }
        })
        .await
        .expect("the server closes")
    }

    /// Serves `content` up to the first request, which it leaves unanswered.
    pub(crate) async fn stall(&mut self, content: &[u8]) {
        let mut server = NbdServer::new(Bytes::copy_from_slice(content));
        let asked = async {
            loop {
                if let NbdServer::Handshake(..) = server {
                    for part in server.output() {
                        self.socket.send(Message::binary(part)).await.unwrap();
                    }
                }
                let message = self.socket.next().await.unwrap().unwrap();
                match server {
                    _ if !message.is_binary() => {}
                    NbdServer::Transmission(..) => return,
                    NbdServer::Handshake(..) => server.input(message.into_payload().into()),
                }
            }
        };
        timeout(PATIENCE, asked).await.expect("a request");
    }

    /// Serves `content` in a task, until the link ends.
    pub(crate) fn serve(self, content: &[u8]) -> Serving {
        let content = Bytes::copy_from_slice(content);
        let (stop, stopped) = tokio::sync::oneshot::channel();
        Serving {
            task: tokio::spawn(serve(self.socket, content, stopped)),
            stop,
        }
    }
}

/// How a page is to leave.
enum Leave {
    Bye,
    Clean,
    Lost,
    Frozen,
}

/// A page that serves.
pub(crate) struct Serving {
    task: tokio::task::JoinHandle<Ended>,
    stop: tokio::sync::oneshot::Sender<Leave>,
}

/// How that ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Of the server's close frame; 1006 if there was none.
    pub(crate) code: u16,
    /// The server's text messages.
    pub(crate) texts: Vec<Value>,
    /// The connection, if it was left open.
    frozen: Option<WebSocketStream<TcpStream>>,
}

impl Ended {
    fn new(code: u16, texts: Vec<Value>) -> Self {
        Self {
            code,
            texts,
            frozen: None,
        }
    }
}

impl Serving {
    /// Waits for the server to close.
    pub(crate) async fn ended(self) -> Ended {
        let stop = self.stop;
        let ended = timeout(PATIENCE, self.task)
            .await
            .expect("the link ends")
            .unwrap();
        drop(stop);
        ended
    }

    /// Closes with 1000.
    pub(crate) async fn close(self) -> Ended {
        let _ = self.stop.send(Leave::Clean);
        timeout(PATIENCE, self.task)
            .await
            .expect("the link ends")
            .unwrap()
    }

    /// Says and answers nothing any more; the connection stays as long as what this gives.
    pub(crate) async fn freeze(self) -> WebSocketStream<TcpStream> {
        let _ = self.stop.send(Leave::Frozen);
        timeout(PATIENCE, self.task)
            .await
            .expect("the link freezes")
            .unwrap()
            .frozen
            .unwrap()
    }

    /// Says `bye` once the server has told it that it serves a session of before, and waits for the server to close.
    pub(crate) async fn say_bye(self) -> Ended {
        let _ = self.stop.send(Leave::Bye);
        timeout(PATIENCE, self.task)
            .await
            .expect("the link ends")
            .unwrap()
    }

    /// Breaks the connection without a word.
    pub(crate) async fn lose(self) {
        let _ = self.stop.send(Leave::Lost);
        let _ = timeout(PATIENCE, self.task).await.expect("the link ends");
    }
}

fn export(content: &Bytes) -> Export {
    Export {
        name: "memory".to_owned(),
        description: None,
        size: content.len() as u64,
        flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY,
        block_sizes: None,
    }
}

async fn serve(
    mut socket: WebSocketStream<TcpStream>,
    content: Bytes,
    mut stop: tokio::sync::oneshot::Receiver<Leave>,
) -> Ended {
    let mut server = NbdServer::new(content);
    let mut texts = Vec::new();
    let mut leaving = false;
    let mut owes_bye = false;
    loop {
        if owes_bye && texts.iter().any(|text: &Value| text["resumed"] == true) {
            owes_bye = false;
            let _ = socket.send(Message::text(r#"{"type":"bye"}"#)).await;
        }
        for part in server.output() {
            if socket.feed(Message::binary(part)).await.is_err() {
                break;
            }
        }
        let _ = socket.flush().await;
        let message = tokio::select! {
            message = socket.next() => message,
            leave = &mut stop, if !leaving => {
                leaving = true;
                match leave {
                    Ok(Leave::Lost) => return Ended::new(1006, texts),
                    Ok(Leave::Frozen) => {
                        let frozen = Some(socket);
                        return Ended { frozen, ..Ended::new(1006, texts) };
                    }
                    Ok(Leave::Bye) => owes_bye = true,
                    Ok(Leave::Clean) => {
                        let _ = socket.send(Message::close(Some(tokio_websockets::CloseCode::NORMAL_CLOSURE), "")).await;
                    }
                    Err(_) => {}
                }
                continue;
            }
        };
        match message {
            Some(Ok(message)) if message.is_binary() => server.input(message.into_payload().into()),
            Some(Ok(message)) => {
                if let Some(text) = message.as_text() {
                    texts.push(serde_json::from_str(text).unwrap());
                } else if let Some((code, _)) = message.as_close() {
                    return Ended::new(code.into(), texts);
                }
            }
            _ => return Ended::new(1006, texts),
        }
    }
}

enum NbdServer {
    Handshake(Box<Handshake>, Bytes),
    Transmission(Transmission, Bytes),
}

impl NbdServer {
    fn new(content: Bytes) -> Self {
        Self::Handshake(
            Box::new(Handshake::new(
                vec![export(&content)],
                HandshakeLimits::default(),
            )),
            content,
        )
    }

    fn input(&mut self, data: Bytes) {
        match self {
            Self::Handshake(handshake, _) => handshake.handle_input(data).unwrap(),
            Self::Transmission(transmission, _) => transmission.handle_input(data),
        }
    }

    fn output(&mut self) -> Vec<Bytes> {
        let mut output = Vec::new();
        if let Self::Handshake(handshake, content) = self {
            output.extend(std::iter::from_fn(|| handshake.poll_output()));
            let Some(HandshakeEvent::Transmission { transmission, .. }) = handshake.poll_event()
            else {
                return output;
            };
            *self = Self::Transmission(transmission, content.clone());
        }
        if let Self::Transmission(transmission, content) = self {
            while let Some(incoming) = transmission.poll_request().unwrap() {
                let (reply_to, result) = match incoming {
                    Incoming::Request {
                        reply_to,
                        command: Command::Read { offset, length },
                        ..
                    } => {
                        let start = usize::try_from(offset).unwrap();
                        let data = content.slice(start..start + usize::try_from(length).unwrap());
                        (reply_to, Ok(Reply::Data(Payload::from(data))))
                    }
                    Incoming::Request { reply_to, .. } => (reply_to, Ok(Reply::Done)),
                    Incoming::Refused { reply_to, failure } => (reply_to, Err(failure)),
                    Incoming::Disconnect => break,
                };
                transmission.reply(reply_to, result, &mut output);
            }
        }
        output
    }
}

/// Lets other tasks run while a blocking check is repeated.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let check = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, check)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"));
}

/// Runs blocking code while pages go on serving.
pub(crate) async fn blocking<T: Send + 'static>(
    server: &Arc<Server>,
    work: impl FnOnce(&Server) -> T + Send + 'static,
) -> T {
    let server = Arc::clone(server);
    tokio::task::spawn_blocking(move || work(&server))
        .await
        .unwrap()
}
