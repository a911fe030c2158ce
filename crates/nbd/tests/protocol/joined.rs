//! Client and server joined in memory: whatever is asked, in pieces of any length, gives what the
//! server's disk holds.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use nbd::client::{self, HandshakeOptions, ReplyEvent};
use nbd::server::{self, HandshakeEvent, HandshakeLimits, Incoming, ReplyTo};
use nbd::wire::{CommandFlags, Errno, ExtentFlags, TransmissionFlags};
use nbd::{BlockSizes, Command, Export, Extent, Failure, Payload, Reply};
use proptest::prelude::*;

const BLOCK: u32 = 512;
const BLOCKS: u32 = 64;
const SIZE: usize = (BLOCK * BLOCKS) as usize;

/// One direction of a connection, which delivers what was sent in pieces of its own choice.
struct Pipe {
    bytes: VecDeque<u8>,
    lengths: VecDeque<usize>,
}

impl Pipe {
    fn new(lengths: &[usize]) -> Self {
        Self {
            bytes: VecDeque::new(),
            lengths: lengths.iter().copied().collect(),
        }
    }

    fn send(&mut self, parts: impl IntoIterator<Item = Bytes>) {
        self.bytes.extend(parts.into_iter().flatten());
    }

    fn receive(&mut self) -> Option<Bytes> {
        let length = self.lengths[0].min(self.bytes.len());
        self.lengths.rotate_left(1);
        (length > 0).then(|| self.bytes.drain(..length).collect())
    }
}

/// Both ends of a connection in transmission.
struct Connection {
    client: client::Transmission,
    server: server::Transmission,
    to_client: Pipe,
    to_server: Pipe,
}

impl Connection {
    fn new(options: HandshakeOptions, export: &Export, lengths: &[usize]) -> Self {
        let (mut to_client, mut to_server) = (Pipe::new(lengths), Pipe::new(lengths));
        let mut client = client::Handshake::new(options);
        let mut server = server::Handshake::new(vec![export.clone()], HandshakeLimits::default());
        loop {
            to_client.send(std::iter::from_fn(|| server.poll_output()));
            if let Some(piece) = to_client.receive() {
                client.handle_input(piece).unwrap();
            }
            to_server.send(std::iter::from_fn(|| client.poll_output()));
            if let Some(piece) = to_server.receive() {
                server.handle_input(piece).unwrap();
            }
            if let Some((seen, client)) = client.finish() {
                let Some(HandshakeEvent::Transmission {
                    export,
                    transmission: server,
                }) = server.poll_event()
                else {
                    panic!("the server does not agree");
                };
                assert_eq!((&seen.name, seen.size), (&export.name, export.size));
                assert_eq!(seen.flags, export.flags);
                assert_eq!(client.negotiated(), server.negotiated());
                return Self {
                    client,
                    server,
                    to_client,
                    to_server,
                };
            }
        }
    }
}

/// The server's disk: what is asked of it happens at once.
fn carry_out(disk: &mut [u8], command: &Command) -> Result<Reply, Failure> {
    let start = usize::try_from(command.offset()).unwrap();
    let range = start..start + usize::try_from(command.length()).unwrap();
    match command {
        Command::Read { .. } => {
            let parts = disk[range].chunks(1000).map(Bytes::copy_from_slice);
            return Ok(Reply::Data(parts.collect()));
        }
        Command::Write { data, .. } => disk[range].copy_from_slice(&data.to_bytes()),
        Command::WriteZeroes { .. } => disk[range].fill(0),
        Command::BlockStatus { .. } => return Ok(Reply::BlockStatus(extents(&disk[range]))),
        Command::Cache { offset, .. } if offset % 1024 == 0 => {
            return Err(Failure::new(Errno::EIO, "not today"));
        }
        Command::Flush | Command::Trim { .. } | Command::Cache { .. } => {}
    }
    Ok(Reply::Done)
}

/// Blocks of zeroes are told apart from others.
fn extents(range: &[u8]) -> Vec<Extent> {
    let flags = |block: &[u8]| {
        if block.iter().all(|&byte| byte == 0) {
            ExtentFlags::ZERO
        } else {
            ExtentFlags::empty()
        }
    };
    range
        .chunks(BLOCK as usize)
        .map(|b| Extent {
            length: BLOCK,
            flags: flags(b),
        })
        .collect()
}

fn commands() -> impl Strategy<Value = Vec<Command>> {
    let command =
        (0u8..7, 0..BLOCKS, 1..=8u32, any::<u8>()).prop_map(|(kind, block, blocks, fill)| {
            let offset = u64::from(block * BLOCK);
            let length = blocks.min(BLOCKS - block) * BLOCK;
            match kind {
                0 => Command::Read { offset, length },
                1 => {
                    let data = Bytes::from(vec![fill; length as usize]);
                    let cut = length as usize / 3;
                    let parts = [data.slice(..cut), data.slice(cut..)];
                    Command::Write {
                        offset,
                        data: parts.into_iter().collect(),
                    }
                }
                2 => Command::Flush,
                3 => Command::Trim { offset, length },
                4 => Command::Cache { offset, length },
                5 => Command::WriteZeroes { offset, length },
                _ => Command::BlockStatus { offset, length },
            }
        });
    prop::collection::vec(command, 1..24)
}

/// What came for one request so far.
#[derive(Default)]
struct Received {
    data: Vec<u8>,
    extents: Vec<Extent>,
    result: Option<Result<(), Failure>>,
}

impl Received {
    fn add(&mut self, command: &Command, event: ReplyEvent) {
        assert!(self.result.is_none(), "nothing follows the end");
        match event {
            ReplyEvent::Data { offset, data, .. } => {
                assert_eq!(offset, command.offset() + self.data.len() as u64);
                self.data.extend_from_slice(&data);
            }
            ReplyEvent::BlockStatus { extents, .. } => self.extents = extents,
            ReplyEvent::Done { result, .. } => self.result = Some(result),
            ReplyEvent::Hole { .. } => panic!("our server sends none"),
        }
    }

    fn into_reply(self, command: &Command) -> Result<Reply, Failure> {
        self.result.unwrap()?;
        Ok(match command {
            Command::Read { .. } => Reply::Data(Payload::from(Bytes::from(self.data))),
            Command::BlockStatus { .. } => Reply::BlockStatus(self.extents),
            _ => Reply::Done,
        })
    }
}

fn cookie(event: &ReplyEvent) -> u64 {
    match *event {
        ReplyEvent::Data { cookie, .. }
        | ReplyEvent::Hole { cookie, .. }
        | ReplyEvent::BlockStatus { cookie, .. }
        | ReplyEvent::Done { cookie, .. } => cookie,
    }
}

proptest! {
    #[test]
    fn every_request_gets_the_answer_that_the_disk_gave(
        structured in any::<bool>(),
        base_allocation in any::<bool>(),
        name in "[a-zé]{0,5}",
        lengths in prop::collection::vec(1usize..3000, 1..5),
        commands in commands(),
        order in any::<u64>(),
    ) {
        let options =
            HandshakeOptions {
                export: name.clone(),
                structured_replies: structured,
                base_allocation,
            };
        let export = Export {
            name,
            description: None,
            size: SIZE as u64,
            flags: TransmissionFlags::all() - TransmissionFlags::READ_ONLY,
            block_sizes: Some(BlockSizes { minimum: BLOCK, preferred: 4096, maximum: 1 << 20 }),
        };
        let mut connection = Connection::new(options, &export, &lengths);
        let has_status = connection.client.negotiated().base_allocation;
        let asked: Vec<Command> = commands
            .into_iter()
            .filter(|command| has_status || !matches!(command, Command::BlockStatus { .. }))
            .collect();

        for (cookie, command) in (0..).zip(&asked) {
            let mut out = Vec::new();
            connection.client.request(cookie, CommandFlags::empty(), command, &mut out).unwrap();
            connection.to_server.send(out);
        }
        let mut out = Vec::new();
        connection.client.disconnect(&mut out);
        connection.to_server.send(out);

        let answers = serve(&mut connection, &asked, order);
        let received = receive(&mut connection, &asked);
        for (cookie, (command, received)) in (0..).zip(asked.iter().zip(received)) {
            let mut expected: Result<Reply, Failure> = answers[&cookie].clone();
            if let (Err(failure), false) = (&mut expected, structured) {
                failure.message.clear();
            }
            prop_assert_eq!(received.into_reply(command), expected);
        }
        prop_assert_eq!(connection.client.outstanding(), 0);
    }
}

/// Carries out all requests in their order, and answers them in another. Gives what was answered.
fn serve(
    connection: &mut Connection,
    asked: &[Command],
    order: u64,
) -> HashMap<u64, Result<Reply, Failure>> {
    let mut disk = vec![0; SIZE];
    let mut waiting: Vec<(ReplyTo, Result<Reply, Failure>)> = Vec::new();
    let mut answers = HashMap::new();
    let mut disconnected = false;
    while let Some(piece) = connection.to_server.receive() {
        connection.server.handle_input(piece);
        while let Some(incoming) = connection.server.poll_request().unwrap() {
            match incoming {
                Incoming::Request {
                    reply_to, command, ..
                } => {
                    let cookie = waiting.len() as u64;
                    assert_eq!(command, asked[waiting.len()]);
                    let result = carry_out(&mut disk, &command);
                    answers.insert(cookie, result.clone());
                    waiting.push((reply_to, result));
                }
                Incoming::Disconnect => disconnected = true,
                Incoming::Refused { failure, .. } => panic!("{failure}"),
            }
        }
    }
    assert!(disconnected);
    while !waiting.is_empty() {
        let next = usize::try_from(order % waiting.len() as u64).unwrap();
        let (reply_to, result) = waiting.swap_remove(next);
        let mut out = Vec::new();
        connection.server.reply(reply_to, result, &mut out);
        connection.to_client.send(out);
    }
    answers
}

/// What the client receives for each request.
fn receive(connection: &mut Connection, asked: &[Command]) -> Vec<Received> {
    let mut received: Vec<Received> = asked.iter().map(|_| Received::default()).collect();
    while let Some(piece) = connection.to_client.receive() {
        connection.client.handle_input(piece);
        while let Some(event) = connection.client.poll_reply().unwrap() {
            let index = usize::try_from(cookie(&event)).unwrap();
            received[index].add(&asked[index], event);
        }
    }
    received
}
