//! Loop devices (`drivers/block/loop.c`, `include/uapi/linux/loop.h`): a file as a block device.
//!
//! Attaching reads the file, for its partitions: whoever serves that file must not be the one who waits here.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::ioctl::{IntegerSetter, NoArg, Opcode, Setter, ioctl};

use crate::block::{self, Disk};
use crate::error::{Doing, Result};

const LOOP_SET_FD: Opcode = 0x4C00;
const LOOP_CLR_FD: Opcode = 0x4C01;
const LOOP_SET_STATUS64: Opcode = 0x4C04;
const LOOP_SET_DIRECT_IO: Opcode = 0x4C08;
const LOOP_CONFIGURE: Opcode = 0x4C0A;
const LOOP_CTL_GET_FREE: Opcode = 0x4C82;

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_PARTSCAN: u32 = 8;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// Others look for a free device at the same time: how often to look again.
const ATTEMPTS: u32 = 64;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

/// One `/dev/loopN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loop {
    index: u32,
    disk: Disk,
}

impl Loop {
    /// Attaches the first free loop device to `file`, read-only, with partitions, without a page cache of the
    /// file beneath the device's own. The device is as long as the file's whole 512-byte sectors. It outlives
    /// this process; `/dev/loop-control` and the devices are root's.
    pub fn attach(file: &File) -> Result<Self> {
        let control = open_read_write(Path::new("/dev/loop-control"))?;
        for _ in 0..ATTEMPTS {
            let index = free_index(&control).doing("find a free loop device")?;
            let device = Self::new(index);
            let path = device.disk.path();
            let node = File::open(&path).doing_to("open", &path)?;
            match configure(&node, file) {
                Ok(()) => return Ok(device),
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
                Err(e) => return Err(e).doing(format!("attach {}", path.display())),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EBUSY)).doing("find a free loop device")
    }

    /// `/dev/loopINDEX`; it need not exist.
    pub fn new(index: u32) -> Self {
        Loop {
            index,
            disk: Disk::new(&format!("loop{index}")),
        }
    }

    /// All attached loop devices whose file `wanted` accepts.
    pub fn backed_by(wanted: impl Fn(&Path) -> bool) -> Vec<Self> {
        block::disks(Path::new("/sys"), "loop")
            .into_iter()
            .map(|(index, disk)| Loop { index, disk })
            .filter(|device| device.backing_file().is_some_and(|file| wanted(&file)))
            .collect()
    }

    /// N of `/dev/loopN`.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The block device.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// The file, as the kernel names it now; `None` when the device is free.
    pub fn backing_file(&self) -> Option<PathBuf> {
        backing_file(&self.disk)
    }

    /// Detaches. While others have the device open it stays until the last of them closes it.
    pub fn detach(&self) -> Result<()> {
        let path = self.disk.path();
        let node = File::open(&path).doing_to("open", &path)?;
        match clear(&node) {
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(()), // free already
            result => result.doing_to("detach", &path),
        }
    }
}

pub(crate) fn backing_file(disk: &Disk) -> Option<PathBuf> {
    let name = disk.attribute("loop/backing_file")?;
    Some(PathBuf::from(name.trim_end_matches(" (deleted)")))
}

fn open_read_write(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .open(path)
        .doing_to("open", path)
}

fn configure(node: &File, file: &File) -> io::Result<()> {
    let flags = LO_FLAGS_READ_ONLY | LO_FLAGS_PARTSCAN;
    match configure_at_once(node, file, flags | LO_FLAGS_DIRECT_IO) {
        // Linux before 5.8 has no LOOP_CONFIGURE.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOTTY)) => {
            configure_in_steps(node, file, flags)
        }
        result => result,
    }
}

fn configure_in_steps(node: &File, file: &File, flags: u32) -> io::Result<()> {
    set_fd(node, file)?;
    let result = set_status(node, info(flags));
    if result.is_err() {
        let _ = clear(node); // the first error is the one to tell
    } else {
        let _ = set_direct_io(node); // without it the file is cached twice, no more
    }
    result
}

fn info(flags: u32) -> LoopInfo64 {
    LoopInfo64 {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    }
}

fn raw(file: &File) -> u32 {
    file.as_raw_fd().cast_unsigned()
}

#[allow(unsafe_code)]
fn free_index(control: &File) -> io::Result<u32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument and touches none of our memory; its result is the return
    // value, which FreeIndex hands out.
    let index = unsafe { ioctl(control, FreeIndex) }?;
    u32::try_from(index).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// LOOP_CTL_GET_FREE, whose answer is the ioctl's return value.
struct FreeIndex;

// SAFETY: the ioctl takes no argument (the pointer is null) and mutates nothing; the output is its return value.
#[allow(unsafe_code)]
unsafe impl rustix::ioctl::Ioctl for FreeIndex {
    type Output = rustix::ioctl::IoctlOutput;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        LOOP_CTL_GET_FREE
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(
        output: rustix::ioctl::IoctlOutput,
        _: *mut std::ffi::c_void,
    ) -> rustix::io::Result<Self::Output> {
        Ok(output)
    }
}

#[allow(unsafe_code)]
fn configure_at_once(node: &File, file: &File, flags: u32) -> io::Result<()> {
    let config = LoopConfig {
        fd: raw(file),
        block_size: 512,
        info: info(flags),
        reserved: [0; 8],
    };
    // SAFETY: LoopConfig is `struct loop_config`, which LOOP_CONFIGURE reads and does not keep.
    unsafe { ioctl(node, Setter::<LOOP_CONFIGURE, _>::new(config)) }.map_err(io::Error::from)
}

#[allow(unsafe_code)]
fn set_fd(node: &File, file: &File) -> io::Result<()> {
    // SAFETY: LOOP_SET_FD takes a descriptor by value and touches none of our memory.
    unsafe {
        ioctl(
            node,
            IntegerSetter::<LOOP_SET_FD>::new_usize(raw(file) as usize),
        )
    }
    .map_err(io::Error::from)
}

#[allow(unsafe_code)]
fn set_status(node: &File, info: LoopInfo64) -> io::Result<()> {
    // SAFETY: LoopInfo64 is `struct loop_info64`, which LOOP_SET_STATUS64 reads and does not keep.
    unsafe { ioctl(node, Setter::<LOOP_SET_STATUS64, _>::new(info)) }.map_err(io::Error::from)
}

#[allow(unsafe_code)]
fn set_direct_io(node: &File) -> io::Result<()> {
    // SAFETY: LOOP_SET_DIRECT_IO takes a number by value and touches none of our memory.
    unsafe { ioctl(node, IntegerSetter::<LOOP_SET_DIRECT_IO>::new_usize(1)) }
        .map_err(io::Error::from)
}

#[allow(unsafe_code)]
fn clear(node: &File) -> io::Result<()> {
    // SAFETY: LOOP_CLR_FD takes no argument and touches none of our memory.
    unsafe { ioctl(node, NoArg::<LOOP_CLR_FD>::new()) }.map_err(io::Error::from)
}

/// Fails where this machine has no loop devices, or this process may not attach them.
pub fn available() -> Result<()> {
    open_read_write(Path::new("/dev/loop-control")).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<LoopInfo64>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
    }
}
