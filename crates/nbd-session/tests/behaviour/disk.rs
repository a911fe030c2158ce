//! The image looks like a disk: whole sectors, requests of any length, every command.

use nbd::wire::{CommandFlags, Errno, ExtentFlags, TransmissionFlags};
use nbd::{BlockSizes, Command, Export, Extent, Reply};
use nbd_session::{LinkKind, SessionConfig};

use crate::bench::{Bench, WRITABLE, export, image};

fn config(max_request: u32) -> SessionConfig {
    SessionConfig {
        max_request,
        one_link: true,
        ..SessionConfig::default()
    }
}

fn submit(bench: &mut Bench, command: Command) -> Result<Reply, Errno> {
    let id = bench.submit(command);
    bench.answer(id).expect("it is answered").clone()
}

#[test]
fn the_tail_is_padded_with_zeroes() {
    let mut bench = Bench::serving(config(4096), 1_000_001);
    let geometry = bench.volume.geometry().unwrap();
    assert_eq!((geometry.image_size, geometry.size), (1_000_001, 1_000_448));
    let read = bench.read(999_936, 512);
    assert_eq!(
        bench.bytes(read),
        [&image(1_000_001)[999_936..], &[0; 447]].concat()
    );
    let padding = bench.read(1_000_001, 447);
    assert_eq!(bench.bytes(padding), [0; 447]);
    assert!(
        bench
            .peer()
            .asked
            .iter()
            .all(|command| command.offset() + command.length() <= 1_000_001)
    );
}

#[test]
fn long_reads_are_split() {
    let mut bench = Bench::serving(config(4096), 100_000);
    let read = bench.read(1, 50_000);
    assert_eq!(bench.bytes(read), image(100_000)[1..50_001]);
    assert_eq!(bench.peer().asked.len(), 13);
}

#[test]
fn what_a_disk_does_not_have_or_allow_is_refused() {
    let mut bench = Bench::serving(config(4096), 1000);
    let data = nbd::Payload::zeros(512);
    assert_eq!(
        submit(
            &mut bench,
            Command::Read {
                offset: 1024,
                length: 1
            }
        ),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        submit(
            &mut bench,
            Command::Read {
                offset: u64::MAX,
                length: 2
            }
        ),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        submit(&mut bench, Command::Write { offset: 0, data }),
        Err(Errno::EPERM)
    );
    assert_eq!(
        submit(
            &mut bench,
            Command::Trim {
                offset: 0,
                length: 512
            }
        ),
        Err(Errno::EPERM)
    );
    assert!(bench.peer().asked.is_empty());
}

#[test]
fn flush_and_cache_succeed_where_there_is_nothing_to_do() {
    let mut bench = Bench::serving(config(4096), 1000);
    assert_eq!(submit(&mut bench, Command::Flush), Ok(Reply::Done));
    assert_eq!(
        submit(
            &mut bench,
            Command::Cache {
                offset: 0,
                length: 1024
            }
        ),
        Ok(Reply::Done)
    );
    assert!(bench.peer().asked.is_empty());
}

#[test]
fn without_block_status_everything_but_the_padding_is_data() {
    let mut bench = Bench::new(config(4096));
    bench.connect(LinkKind::Plain, TransmissionFlags::READ_ONLY, image(1000));
    let padding = Extent {
        length: 24,
        flags: ExtentFlags::HOLE | ExtentFlags::ZERO,
    };
    let data = Extent {
        length: 1000,
        flags: ExtentFlags::empty(),
    };
    let status = submit(
        &mut bench,
        Command::BlockStatus {
            offset: 0,
            length: 1024,
        },
    );
    assert_eq!(status, Ok(Reply::BlockStatus(vec![data, padding])));
    let status = submit(
        &mut bench,
        Command::BlockStatus {
            offset: 1000,
            length: 24,
        },
    );
    assert_eq!(status, Ok(Reply::BlockStatus(vec![padding])));
    let id = nbd_session::RequestId(99);
    let command = Command::BlockStatus {
        offset: 0,
        length: 1024,
    };
    bench
        .volume
        .submit(bench.now, id, CommandFlags::REQ_ONE, command);
    bench.run();
    assert_eq!(bench.answer(99), Some(&Ok(Reply::BlockStatus(vec![data]))));
}

#[test]
fn what_the_image_cannot_do_is_not_offered() {
    let mut bench = Bench::new(config(4096));
    bench.connect(LinkKind::Plain, WRITABLE, image(65_536));
    let geometry = bench.volume.geometry().unwrap();
    assert!(geometry.can_flush && geometry.can_trim && geometry.can_fua);
    assert!(!geometry.can_write_zeroes && !geometry.can_fast_zero && !geometry.can_cache);
    let zeroes = Command::WriteZeroes {
        offset: 512,
        length: 512,
    };
    assert_eq!(submit(&mut bench, zeroes), Err(Errno::EINVAL));
}

#[test]
fn the_padding_cannot_keep_anything_but_zeroes() {
    let mut bench = Bench::new(config(4096));
    bench.connect(LinkKind::Plain, WRITABLE, image(1000));
    let tail = |byte: u8| {
        let mut bytes = vec![byte; 488];
        bytes.resize(512, 0);
        bytes
    };
    let write = |bytes: Vec<u8>| Command::Write {
        offset: 512,
        data: bytes::Bytes::from(bytes).into(),
    };
    assert_eq!(submit(&mut bench, write(tail(5))), Ok(Reply::Done));
    let read = bench.read(512, 512);
    assert_eq!(bench.bytes(read), tail(5));
    assert_eq!(submit(&mut bench, write(vec![5; 512])), Err(Errno::ENOSPC));
}

#[test]
fn reads_keep_to_the_blocks_of_the_image() {
    let mut bench = Bench::new(config(8192));
    let sizes = BlockSizes {
        minimum: 512,
        preferred: 4096,
        maximum: 4096,
    };
    let read_only = TransmissionFlags::READ_ONLY;
    let export = Export {
        block_sizes: Some(sizes),
        ..export(10_240, read_only)
    };
    bench.open(LinkKind::Plain, export, image(10_240));
    bench.greet();
    assert_eq!(bench.volume.geometry().unwrap().minimum_block, 1);
    let read = bench.read(1000, 9000);
    assert_eq!(bench.bytes(read), image(10_240)[1000..10_000]);
    let asked: Vec<_> = bench
        .peer()
        .asked
        .iter()
        .map(|read| (read.offset(), read.length()))
        .collect();
    assert_eq!(asked, [(512, 4096), (4608, 4096), (8704, 1536)]);
}
