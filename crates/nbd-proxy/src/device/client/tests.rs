//! Clients that ask for much and read little. The clock is tokio's, and goes on when all wait.

use nbd::{
    Command, Payload, Reply,
    client::{Handshake as ClientHandshake, HandshakeOptions, Transmission as ClientTransmission},
    wire::{CommandFlags, Errno},
};
use tokio::{
    io::{DuplexStream, duplex},
    sync::mpsc,
    task::JoinHandle,
};

use super::*;
use crate::device::{DeviceRequest, budget::BUDGET, testing};

/// What one client asks for at a time.
const REQUEST: u32 = 16 << 20;
const CROWD: usize = 64;

fn geometry() -> Geometry {
    Geometry {
        read_only: false,
        can_flush: true,
        ..testing::geometry(1 << 30)
    }
}

/// A device whose volume answers at once, and what was handed to it.
struct Device {
    inlet: Inlet,
    handed: JoinHandle<usize>,
}

impl Device {
    fn new() -> Self {
        let (requests, mut inbox) = mpsc::channel::<DeviceRequest>(256);
        let handed = tokio::spawn(async move {
            let mut handed = 0;
            while let Some(DeviceRequest { command, reply, .. }) = inbox.recv().await {
                handed += 1;
                reply.answer(match command {
                    Command::Read { length, .. } => Ok(Reply::Data(Payload::zeros(
                        usize::try_from(length).unwrap(),
                    ))),
                    Command::Write { .. } => Ok(Reply::Done),
                    _ => Err(Errno::EINVAL),
                });
            }
            handed
        });
        Self {
            inlet: Inlet::new(requests, BUDGET),
            handed,
        }
    }

    async fn connect(&self) -> Client {
        let (ours, mut stream) = duplex(4096);
        let serving = tokio::spawn(serve(
            ours,
            handshake(vec![export("", &geometry())]),
            self.inlet.clone(),
        ));
        let mut handshake = ClientHandshake::new(HandshakeOptions::default());
        let transmission = loop {
            while let Some(output) = handshake.poll_output() {
                stream.write_all(&output).await.unwrap();
            }
            if let Some((_, transmission)) = handshake.finish() {
                break transmission;
            }
            let mut input = BytesMut::with_capacity(4096);
            stream.read_buf(&mut input).await.unwrap();
            handshake.handle_input(input.freeze()).unwrap();
        };
        Client {
            stream,
            transmission,
            serving,
            cookie: 0,
        }
    }
}

struct Client {
    stream: DuplexStream,
    transmission: ClientTransmission,
    serving: JoinHandle<Result<ClientEnd, ClientError>>,
    cookie: u64,
}

impl Client {
    /// Sends a request, of a WRITE its first part alone.
    async fn ask(&mut self, command: Command) {
        self.cookie += 1;
        let mut output = Vec::new();
        self.transmission
            .request(self.cookie, CommandFlags::default(), &command, &mut output)
            .unwrap();
        self.stream.write_all(&output[0]).await.unwrap();
    }

    async fn ask_to_read(&mut self, length: u32) {
        self.ask(Command::Read { offset: 0, length }).await;
    }

    /// Reads `length` bytes of data behind one reply's head.
    async fn receive(&mut self, length: usize) {
        const SIMPLE_REPLY: usize = 16;
        let mut rest = SIMPLE_REPLY + length;
        let mut buffer = vec![0; 1 << 16];
        while rest > 0 {
            let room = buffer.len().min(rest);
            rest -= self.stream.read(&mut buffer[..room]).await.unwrap();
        }
    }
}

/// Lets everybody do what they can without the clock.
async fn settle() {
    for _ in 0..10_000 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_crowd_that_reads_nothing_holds_no_more_than_the_budget() {
    let device = Device::new();
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        let mut client = device.connect().await;
        for _ in 0..4 {
            client.ask_to_read(REQUEST).await;
        }
        crowd.push(client);
    }
    settle().await;
    // Gone before anybody is dropped for being slow.
    crowd.iter().for_each(|client| client.serving.abort());
    drop(crowd);
    let Device { inlet, handed } = device;
    drop(inlet);
    assert_eq!(handed.await.unwrap() * REQUEST as usize, BUDGET);
}

#[tokio::test(start_paused = true)]
async fn who_reads_is_served_though_a_crowd_came_before_and_the_crowd_is_dropped() {
    let device = Device::new();
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        let mut client = device.connect().await;
        client.ask_to_read(REQUEST).await;
        crowd.push(client);
    }
    settle().await;
    let mut honest = device.connect().await;
    honest.ask_to_read(REQUEST).await;
    honest.receive(REQUEST as usize).await;
    let dropped = crowd.iter().filter(|client| client.serving.is_finished());
    assert!(dropped.count() >= CROWD - BUDGET / REQUEST as usize);
    let first = crowd.remove(0);
    assert!(matches!(first.serving.await, Ok(Err(ClientError::Stuck))));
    assert!(!honest.serving.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_and_keeps_nobody_waiting_is_left_alone() {
    let device = Device::new();
    let mut client = device.connect().await;
    client.ask_to_read(REQUEST).await;
    tokio::time::sleep(100 * LOOK).await;
    assert!(!client.serving.is_finished());
    client.receive(REQUEST as usize).await;
}

#[tokio::test(start_paused = true)]
async fn who_announces_writes_and_sends_no_data_is_dropped_when_others_wait() {
    let device = Device::new();
    let mut crowd = Vec::new();
    for _ in 0..8 {
        let mut client = device.connect().await;
        let data = Payload::zeros(REQUEST as usize);
        client.ask(Command::Write { offset: 0, data }).await;
        crowd.push(client);
    }
    settle().await;
    let mut honest = device.connect().await;
    honest.ask_to_read(REQUEST).await;
    honest.receive(REQUEST as usize).await;
    let first = crowd.remove(0);
    assert!(matches!(first.serving.await, Ok(Err(ClientError::Stuck))));
}

#[tokio::test(start_paused = true)]
async fn refusals_that_nobody_reads_end_the_taking_of_requests() {
    let device = Device::new();
    let mut client = device.connect().await;
    // A READ at the end of the 64-bit range (proto.md, "Request message").
    let beyond = [
        &0x2560_9513_u32.to_be_bytes()[..],
        &[0; 12],
        &u64::MAX.to_be_bytes(),
        &1_u32.to_be_bytes(),
    ]
    .concat();
    let asking = async {
        loop {
            client.stream.write_all(&beyond).await.unwrap();
        }
    };
    // It can't go on for ever: the connection is not read from any more.
    assert!(timeout(LOOK, asking).await.is_err());
}
