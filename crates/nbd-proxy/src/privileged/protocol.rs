//! What the server and its helper say to each other.
//!
//! A call is a socket pair of its own, one end of which the server sends to the helper: one line of JSON there, one line
//! back, with a descriptor where it is the answer. A second line of the server's, or its end, is the end of a hook that
//! is no longer wanted.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use nbd_kernel::{Error, descriptors};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Outcome, Request};
use crate::hook::{Action, Subject};

/// The longest call, in bytes: a name of 4096 bytes takes six times as many where JSON escapes each of them.
pub(super) const CALL_LIMIT: usize = 64 << 10;
/// The longest answer, in bytes. A socket holds more (`net.core.wmem_default`), so that an answer is sent at once.
const ANSWER_LIMIT: usize = 64 << 10;
/// How many users of a device are told of, and in how many letters each.
const USERS: usize = 32;
const USER_LETTERS: usize = 300;
/// Room for one read.
const CHUNK: usize = 4096;

/// What the server asks.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Call {
    /// Are you there?
    Hello,
    /// Run the hook of a configuration.
    Hook {
        /// Its name; which program that means is for the helper's own configuration to say.
        configuration: String,
        /// Its first argument.
        action: Action,
        /// What it is told.
        subject: Subject,
        /// `NBD_PROXY_REASON`.
        reason: String,
    },
    /// Do a piece of work.
    Work(Request),
}

/// What the helper answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// It is done.
    Done,
    /// Who uses the device.
    Users(Vec<String>),
    /// The descriptor of the mount comes with this.
    Mounted,
    /// The number of the loop device.
    Loop(u32),
    /// It failed: an error of the operating system, as far as it has a number.
    Failed {
        /// What was tried, to follow "cannot".
        action: String,
        /// `errno`.
        number: Option<i32>,
        /// Why, in words.
        cause: String,
    },
    /// A hook failed, or was not run: why, in a sentence.
    HookFailed(String),
}

impl Answer {
    /// What came of a piece of work, and the descriptor to send along.
    pub(super) fn of(result: Result<Outcome, Error>) -> (Self, Option<OwnedFd>) {
        match result {
            Ok(Outcome::Done) => (Self::Done, None),
            Ok(Outcome::Users(users)) => {
                let short = |user: String| user.chars().take(USER_LETTERS).collect();
                let users = users.into_iter().take(USERS).map(short).collect();
                (Self::Users(users), None)
            }
            Ok(Outcome::Mounted(descriptor)) => (Self::Mounted, Some(descriptor)),
            Ok(Outcome::Loop(index)) => (Self::Loop(index), None),
            Err(Error::Io { action, source }) => {
                let failed = Self::Failed {
                    action,
                    number: source.raw_os_error(),
                    cause: source.to_string(),
                };
                (failed, None)
            }
            Err(error) => {
                let failed = Self::Failed {
                    action: "do this".into(),
                    number: None,
                    cause: error.to_string(),
                };
                (failed, None)
            }
        }
    }

    /// The reverse.
    pub(super) fn outcome(self, descriptor: Option<OwnedFd>) -> Result<Outcome, Error> {
        match (self, descriptor) {
            (Self::Done, _) => Ok(Outcome::Done),
            (Self::Users(users), _) => Ok(Outcome::Users(users)),
            (Self::Loop(index), _) => Ok(Outcome::Loop(index)),
            (Self::Mounted, Some(descriptor)) => Ok(Outcome::Mounted(descriptor)),
            (Self::Mounted, None) => Err(Error::Malformed("a mount without its descriptor")),
            (Self::HookFailed(_), _) => Err(Error::Malformed("the end of a hook")),
            (
                Self::Failed {
                    action,
                    number,
                    cause,
                },
                _,
            ) => {
                let source = match number {
                    Some(number) => io::Error::from_raw_os_error(number),
                    None => io::Error::other(cause),
                };
                Err(Error::Io { action, source })
            }
        }
    }
}

/// A message as one line.
pub(super) fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// A line as a message.
pub(super) fn parse<T: DeserializeOwned>(line: &[u8]) -> io::Result<T> {
    Ok(serde_json::from_slice(line)?)
}

/// Sends all of `bytes`, with a descriptor at the first of them.
pub(super) fn send(
    socket: impl AsFd,
    mut bytes: &[u8],
    mut descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    while !bytes.is_empty() {
        let sent = descriptors::send(socket.as_fd(), bytes, descriptor.take())?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

/// Waits for the answer to a call.
pub(super) fn receive_answer(socket: &UnixStream) -> io::Result<(Answer, Option<OwnedFd>)> {
    let (mut line, mut descriptor) = (Vec::new(), None);
    let mut chunk = [0; CHUNK];
    while line.last() != Some(&b'\n') {
        let received = descriptors::receive(socket, &mut chunk)?;
        if received.length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.extend_from_slice(&chunk[..received.length]);
        descriptor = descriptor.or(received.descriptor);
        if line.len() > ANSWER_LIMIT {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok((parse(&line)?, descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through_the_wire(result: Result<Outcome, Error>) -> Result<Outcome, Error> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (answer, descriptor) = Answer::of(result);
        let descriptor = descriptor.as_ref().map(AsFd::as_fd);
        send(&theirs, &line(&answer).unwrap(), descriptor).unwrap();
        let (answer, descriptor) = receive_answer(&ours).unwrap();
        answer.outcome(descriptor)
    }

    #[test]
    fn an_error_of_the_operating_system_keeps_its_meaning() {
        let error = Error::Io {
            action: "mount it".into(),
            source: io::Error::from_raw_os_error(1),
        };
        let told = through_the_wire(Err(error)).unwrap_err();
        assert!(told.is_permission(), "{told}");
        assert!(told.to_string().starts_with("cannot mount it: "), "{told}");
    }

    #[test]
    fn a_descriptor_arrives() {
        let (descriptor, other) = UnixStream::pair().unwrap();
        let outcome = through_the_wire(Ok(Outcome::Mounted(descriptor.into()))).unwrap();
        let Outcome::Mounted(descriptor) = outcome else {
            panic!("{outcome:?}")
        };
        rustix::io::write(&descriptor, b"x").unwrap();
        assert_eq!(rustix::io::read(&other, &mut [0; 2]).unwrap(), 1);
    }

    #[test]
    fn users_who_are_too_many_or_too_long_are_cut_off() {
        let users = vec!["\u{1}".repeat(10_000); 10_000];
        let Ok(Outcome::Users(users)) = through_the_wire(Ok(Outcome::Users(users))) else {
            panic!("no users")
        };
        assert_eq!(users, vec!["\u{1}".repeat(USER_LETTERS); USERS]);
    }
}
