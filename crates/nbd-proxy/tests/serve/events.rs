//! Server-sent events.

use std::{
    io::{BufRead as _, BufReader},
    net::TcpStream,
};

use serde_json::Value;

use crate::{
    harness::Server,
    page::{ID, Page, link},
};

/// The events of a stream, in order.
struct Events(BufReader<TcpStream>);

impl Events {
    fn open(server: &Server) -> Self {
        let authorization = format!("Authorization: Bearer {}", server.token);
        let mut reader =
            BufReader::new(server.send("GET", "/api/v1/events", &[&authorization], ""));
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(reader.read_line(&mut head).unwrap(), 0, "{head}");
        }
        assert!(
            head.starts_with("HTTP/1.1 200") && head.contains("content-type: text/event-stream"),
            "{head}"
        );
        Self(reader)
    }

    /// The data of the next event; chunk sizes, comments and blank lines are passed over. None at the end.
    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.0.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if let Some(data) = line.strip_prefix("data: ") {
                return Some(serde_json::from_str(data).unwrap());
            }
        }
    }

    fn next_of(&mut self, name: &str, state: &str) -> Value {
        loop {
            let event = self.next().expect("another event");
            if event["name"] == name && event["session"]["state"] == state {
                return event;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_configuration_is_told_at_first_and_when_it_changes() {
    let server = Server::start();
    let mut events = Events::open(&server);
    let names = [events.next().unwrap(), events.next().unwrap()].map(|event| event["name"].clone());
    assert_eq!(names, ["0", "lab 2"]);

    let mut page = Page::open(&server, &link(ID)).await;
    page.announce("a.iso", &[1; 512]).await;
    let page = page.serve(&[1; 512]);
    let mut events = tokio::task::spawn_blocking(move || {
        let event = events.next_of("0", "attached");
        assert_eq!(event["session"]["image"]["name"], "a.iso");
        events
    })
    .await
    .unwrap();
    page.close().await;
    tokio::task::spawn_blocking(move || {
        while !events.next().expect("another event")["session"].is_null() {}
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_the_server() {
    let server = Server::start();
    let mut events = Events::open(&server);
    server.process.signal(rustix::process::Signal::TERM);
    while events.next().is_some() {}
    let (status, stderr) = server.process.wait();
    assert!(status.success(), "{stderr}");
}
