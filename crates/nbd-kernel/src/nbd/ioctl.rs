//! The driver's ioctls (`include/uapi/linux/nbd.h`).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use rustix::ioctl::{IntegerSetter, NoArg, Opcode, ioctl, opcode};

use crate::error::{Doing, Error, Result};
use crate::nbd::{Device, ServerFlags};

const NBD_SET_SOCK: Opcode = opcode::none(0xab, 0);
const NBD_SET_BLKSIZE: Opcode = opcode::none(0xab, 1);
const NBD_DO_IT: Opcode = opcode::none(0xab, 3);
const NBD_CLEAR_SOCK: Opcode = opcode::none(0xab, 4);
const NBD_SET_SIZE_BLOCKS: Opcode = opcode::none(0xab, 7);
const NBD_DISCONNECT: Opcode = opcode::none(0xab, 8);
const NBD_SET_TIMEOUT: Opcode = opcode::none(0xab, 9);
const NBD_SET_FLAGS: Opcode = opcode::none(0xab, 10);

/// The largest block size that every kernel and page size takes.
const LARGEST_BLOCK_SIZE: u32 = 4096;
/// Between the start of NBD_DO_IT and the device's size in sysfs there is no wait in the kernel.
const START_TIMEOUT: Duration = Duration::from_secs(5);
const START_POLL: Duration = Duration::from_millis(5);

/// What a device is to be, for [`IoctlAttachment::attach`].
#[derive(Debug, Clone, Copy)]
pub struct IoctlOptions {
    /// Bytes, a multiple of `block_size`.
    pub size: u64,
    /// Bytes, a power of two from 512 to the page size. Where `long` has 32 bits and the blocks are too many to
    /// count, a larger one is taken.
    pub block_size: u32,
    /// The export's transmission flags.
    pub server_flags: ServerFlags,
}

/// A device that is attached for as long as a thread of this process sits in `NBD_DO_IT`.
#[derive(Debug)]
pub struct IoctlAttachment {
    device: Device,
    file: Weak<File>,
    end: Mutex<Receiver<Result<()>>>,
}

impl IoctlAttachment {
    /// Attaches a free device to one connected socket in transmission phase. Opening the device waits for
    /// nobody, as a free one has no size and so no partitions to look for.
    pub fn attach(index: u32, options: &IoctlOptions, socket: OwnedFd) -> Result<Self> {
        let device = Device::new(index);
        device.ensure_free()?;
        let file =
            Arc::new(File::open(device.disk().path()).doing_to("open", device.disk().path())?);
        // An open file keeps netlink from attaching; an attachment that came before it shows now.
        device.ensure_free()?;

        let (sender, end) = channel();
        let attachment = IoctlAttachment {
            device,
            file: Arc::downgrade(&file),
            end: Mutex::new(end),
        };
        let options = *options;
        thread::Builder::new()
            .name(format!("nbd{index}"))
            .spawn(move || {
                let result = run(index, &options, &file, &socket);
                drop(file); // the device is free from here on, unless others have it open
                let _ = sender.send(result);
            })
            .doing("start a thread")?;
        attachment.wait_until_started(options.size)?;
        Ok(attachment)
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Asks the driver to send NBD_CMD_DISC. It ends when the socket's other side closes; should that side not
    /// read, this call waits until it is closed.
    pub fn disconnect(&self) -> Result<()> {
        let Some(file) = self.file.upgrade() else {
            return Ok(()); // ended by itself
        };
        command::<NBD_DISCONNECT>(&file).doing_to("detach", self.device.disk().path())
    }

    /// Waits for the end of `NBD_DO_IT`; `None` when `timeout` ran out. Gives the end once.
    pub fn wait(&self, timeout: Duration) -> Option<Result<()>> {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        match end.recv_timeout(timeout) {
            Ok(result) => Some(result),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Ok(())),
        }
    }

    fn wait_until_started(&self, size: u64) -> Result<()> {
        let mut left = START_TIMEOUT;
        loop {
            if self.device.attached().is_some() && self.device.disk().size() == size {
                return Ok(());
            }
            let path = self.device.disk().path();
            if let Some(end) = self.wait(START_POLL) {
                end?;
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof)).doing_to("attach", path);
            }
            left = left.saturating_sub(START_POLL);
            if left.is_zero() {
                return Err(io::Error::from(io::ErrorKind::TimedOut)).doing_to("attach", path);
            }
        }
    }
}

/// The life of an attachment. The driver ties set-up and NBD_DO_IT to one thread.
fn run(index: u32, options: &IoctlOptions, file: &File, socket: &OwnedFd) -> Result<()> {
    block_signals();
    let path = format!("/dev/nbd{index}");
    let (block_size, blocks) = count_blocks(options.size, options.block_size)?;
    let descriptor = usize::try_from(socket.as_raw_fd()).unwrap_or(usize::MAX);
    // First of all, since the driver refuses this one, harmlessly, while another task sets the device up.
    set::<NBD_SET_SOCK>(file, descriptor).map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY | libc::EINVAL) => Error::Busy { index, by: None },
        _ => Error::Io {
            action: format!("attach {path}"),
            source: e,
        },
    })?;
    let result = set_up(file, block_size, blocks, options.server_flags)
        .doing(format!("set {path} up"))
        .and_then(|()| command::<NBD_DO_IT>(file).doing(format!("serve {path}")));
    let _ = command::<NBD_CLEAR_SOCK>(file); // fails where nothing is left to clear
    result
}

fn set_up(file: &File, block_size: usize, blocks: usize, flags: ServerFlags) -> io::Result<()> {
    set::<NBD_SET_BLKSIZE>(file, block_size)?;
    set::<NBD_SET_SIZE_BLOCKS>(file, blocks)?;
    set::<NBD_SET_TIMEOUT>(file, 0)?;
    set::<NBD_SET_FLAGS>(file, usize::from(flags))
}

/// The block size and number of blocks as the ioctls take them, in an `unsigned long`: with 32 bits and blocks
/// of 512 bytes that is less than 2 TiB, so larger blocks are taken beyond.
fn count_blocks(size: u64, block_size: u32) -> Result<(usize, usize)> {
    let impossible = Error::Size { size, block_size };
    if !block_size.is_power_of_two() {
        return Err(impossible);
    }
    let mut unit = block_size;
    while unit <= LARGEST_BLOCK_SIZE.max(block_size) && size.is_multiple_of(u64::from(unit)) {
        if let (Ok(unit), Ok(blocks)) = (
            usize::try_from(unit),
            usize::try_from(size / u64::from(unit)),
        ) {
            return Ok((unit, blocks));
        }
        unit *= 2;
    }
    Err(impossible)
}

#[allow(unsafe_code)]
fn set<const OPCODE: Opcode>(file: &File, value: usize) -> io::Result<()> {
    // SAFETY: this NBD ioctl takes its argument by value and touches none of our memory.
    unsafe { ioctl(file, IntegerSetter::<OPCODE>::new_usize(value)) }.map_err(io::Error::from)
}

#[allow(unsafe_code)]
fn command<const OPCODE: Opcode>(file: &File) -> io::Result<()> {
    // SAFETY: this NBD ioctl takes no argument and touches none of our memory.
    unsafe { ioctl(file, NoArg::<OPCODE>::new()) }.map_err(io::Error::from)
}

/// A signal handled on this thread would end NBD_DO_IT, and with it the device.
#[allow(unsafe_code)]
fn block_signals() {
    // SAFETY: the set is initialised by sigfillset before it is read, and lives through both calls; a null
    // old set is allowed. Only this thread's mask changes.
    unsafe {
        let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_counted_in_the_asked_size_where_a_long_holds_them() {
        assert_eq!(count_blocks(5 << 30, 512).unwrap(), (512, 10 << 20));
        assert_eq!(count_blocks(0, 512).unwrap(), (512, 0));
    }

    #[test]
    fn more_than_a_long_can_count_takes_larger_blocks_or_is_refused() {
        let size = 3u64 << 40; // 6 * 2^30 sectors
        if cfg!(target_pointer_width = "32") {
            assert_eq!(count_blocks(size, 512).unwrap().0, 1024);
            assert!(count_blocks(1 << 50, 512).is_err());
        } else {
            assert_eq!(count_blocks(size, 512).unwrap().0, 512);
            assert_eq!(count_blocks(1 << 62, 512).unwrap().0, 512);
        }
    }

    #[test]
    fn odd_sizes_are_refused() {
        assert!(count_blocks(1000, 512).is_err());
        assert!(count_blocks(1024, 513).is_err());
    }
}
