//! Generic netlink: one socket, one request at a time, attributes as byte strings.
//!
//! The formats are those of `include/uapi/linux/netlink.h` and `genetlink.h`: a header of 16 bytes, a
//! generic header of 4, then attributes (length, type, payload, padded to 4), all in native byte order.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::error::{Doing, Error, Result};

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;

/// The kernel answers a request within the call that sends it, so nothing waits this long in order.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Attributes of a request under construction.
#[derive(Debug, Default)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    pub(crate) fn bytes(mut self, kind: u16, payload: &[u8]) -> Self {
        // An attribute's length is 16 bits; what this crate sends is short by construction.
        let length = u16::try_from(4 + payload.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(payload);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    pub(crate) fn u64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    pub(crate) fn string(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub(crate) fn nested(self, kind: u16, inner: &Attributes) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }
}

/// The attributes in `data` as (type, payload); ends at the first one that is cut short.
pub(crate) fn attributes(mut data: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(data, 0)?);
        let kind = u16_at(data, 2)? & NLA_TYPE_MASK;
        let payload = data.get(4..length)?;
        data = data.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// The payload of the first attribute of that type.
pub(crate) fn attribute(data: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(data).find_map(|(k, payload)| (k == kind).then_some(payload))
}

pub(crate) fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(data.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

/// The netlink messages in one datagram as (type, body).
fn messages(mut data: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32_at(data, 0)? as usize;
        let kind = u16_at(data, 4)?;
        let body = data.get(HEADER..length)?;
        data = data.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// A generic netlink message that the kernel sent on its own: command and attributes.
pub(crate) struct Notice {
    pub(crate) command: u8,
    pub(crate) attributes: Vec<u8>,
}

/// A socket that talks to one generic netlink family.
#[derive(Debug)]
pub(crate) struct Family {
    socket: OwnedFd,
    id: u16,
    multicast_group: Option<u32>,
}

impl Family {
    /// Looks a family up; `None` where the kernel has none of that name (in this network namespace).
    pub(crate) fn open(name: &str) -> Result<Option<Self>> {
        let socket = open_socket().doing("open a generic netlink socket")?;
        let mut family = Family {
            socket,
            id: GENL_ID_CTRL,
            multicast_group: None,
        };
        let query = Attributes::default().string(CTRL_ATTR_FAMILY_NAME, name);
        let answer = match family.call(CTRL_CMD_GETFAMILY, &query) {
            Ok(answer) => answer,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).doing(format!("look up the netlink family {name}")),
        };
        family.id = attribute(&answer, CTRL_ATTR_FAMILY_ID)
            .and_then(|id| u16_at(id, 0))
            .ok_or(Error::Malformed("a netlink family without a number"))?;
        family.multicast_group = attribute(&answer, CTRL_ATTR_MCAST_GROUPS).and_then(first_group);
        Ok(Some(family))
    }

    /// Sends one request and waits for its end; the attributes of the (last) reply, if there was one.
    pub(crate) fn call(&self, command: u8, request: &Attributes) -> io::Result<Vec<u8>> {
        let message = encode(self.id, command, request);
        rustix::net::send(&self.socket, &message, SendFlags::empty())?;
        let mut reply = Vec::new();
        loop {
            let datagram = self.receive()?;
            for (kind, body) in messages(&datagram) {
                if kind == NLMSG_ERROR {
                    return match u32_at(body, 0).map(u32::cast_signed) {
                        Some(0) => Ok(reply), // the acknowledgement
                        Some(code) => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
                        None => Err(io::ErrorKind::InvalidData.into()),
                    };
                }
                reply = body.get(GENERIC_HEADER..).unwrap_or_default().to_vec();
            }
        }
    }

    /// Joins the family's (only) multicast group. Use the socket for [`Family::notice`] alone afterwards.
    pub(crate) fn subscribe(&self) -> Result<()> {
        let group = self.multicast_group.ok_or(Error::Malformed(
            "a netlink family without a multicast group",
        ))?;
        join_group(&self.socket, group).doing("join a netlink multicast group")
    }

    /// The next notice, `None` when `timeout` ran out.
    pub(crate) fn notice(&self, timeout: Option<Duration>) -> Result<Option<Notice>> {
        set_socket_timeout(&self.socket, Timeout::Recv, timeout)
            .doing("set the timeout of a netlink socket")?;
        let datagram = match self.receive() {
            Ok(datagram) => datagram,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Err(e).doing("receive a netlink notice"),
        };
        let notice = messages(&datagram).find_map(|(_, body)| {
            Some(Notice {
                command: *body.first()?,
                attributes: body.get(GENERIC_HEADER..)?.to_vec(),
            })
        });
        Ok(notice)
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut datagram = vec![0; 65536];
        let (length, _) = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&self.socket, &mut datagram[..], RecvFlags::empty())
        })?;
        datagram.truncate(length);
        Ok(datagram)
    }
}

fn open_socket() -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::GENERIC),
    )?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
    Ok(socket)
}

fn encode(family: u16, command: u8, request: &Attributes) -> Vec<u8> {
    let length = HEADER + GENERIC_HEADER + request.0.len();
    let mut message = Vec::with_capacity(length);
    message.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend_from_slice(&family.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend_from_slice(&[0; 8]); // sequence number, port: one request at a time needs neither
    message.extend_from_slice(&[command, 1, 0, 0]);
    message.extend_from_slice(&request.0);
    message
}

fn first_group(groups: &[u8]) -> Option<u32> {
    let (_, group) = attributes(groups).next()?;
    attribute(group, CTRL_ATTR_MCAST_GRP_NAME)?;
    u32_at(attribute(group, CTRL_ATTR_MCAST_GRP_ID)?, 0)
}

#[allow(unsafe_code)]
fn join_group(socket: &OwnedFd, group: u32) -> io::Result<()> {
    // SAFETY: the option's value is a u32 that outlives the call, and its size is passed with it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            (&raw const group).cast(),
            4, // of a u32
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_read_back_as_written() {
        let inner = Attributes::default().u32(1, 7);
        let outer = Attributes::default()
            .string(10, "abc")
            .nested(7, &inner)
            .u64(2, 5 << 40);
        let list: Vec<_> = attributes(&outer.0).collect();
        assert_eq!(list.len(), 3);
        assert_eq!(list[0], (10, &b"abc\0"[..]));
        assert_eq!(list[1].0, 7);
        assert_eq!(attribute(list[1].1, 1), Some(&7u32.to_ne_bytes()[..]));
        assert_eq!(list[2], (2, &(5u64 << 40).to_ne_bytes()[..]));
    }

    #[test]
    fn cut_attributes_end_the_list() {
        let whole = Attributes::default().u32(1, 7).string(2, "abcdef").0;
        for length in 0..=whole.len() - 2 {
            assert!(attributes(&whole[..length]).count() < 2, "at {length}");
        }
        assert_eq!(
            attributes(&[0; 64]).count(),
            0,
            "a length of 0 must not loop"
        );
    }

    #[test]
    fn an_unknown_family_is_absent() {
        assert!(matches!(Family::open("no-such-family"), Ok(None)));
    }

    #[test]
    fn the_controller_knows_itself() {
        let family = Family::open("nlctrl").unwrap().unwrap();
        assert_eq!(family.id, GENL_ID_CTRL);
        assert!(family.multicast_group.is_some());
    }
}
