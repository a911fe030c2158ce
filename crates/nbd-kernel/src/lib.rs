//! Linux interfaces of block devices, in types: the whole of this project's `unsafe`, and little of it.
//!
//! - [`nbd`]: the kernel's NBD driver, by generic netlink and by ioctl.
//! - [`loopdev`]: loop devices.
//! - [`fuse`]: a file system that is one file: mounting it, and its protocol without I/O.
//! - [`block`]: what sysfs tells of a disk, and its queue's knobs.
//! - [`users`]: who uses a device.
//! - [`mounts`], [`module`], [`descriptors`]: mount tables, kernel modules, what a new program inherits.
//! - [`reading`]: reads of files into new memory.
//! - [`memory`]: how the allocator keeps what was freed.
//!
//! Calls here block. Those that wait for whoever serves the device (attaching a loop device, opening one) say so;
//! a server must make them on another thread than the one that answers.

pub mod block;
pub mod descriptors;
mod error;
pub mod fuse;
pub mod loopdev;
pub mod memory;
pub mod module;
pub mod mounts;
pub mod nbd;
mod netlink;
pub mod reading;
#[cfg(test)]
mod testing;
pub mod users;

pub use error::{Error, Result};
