//! What takes the kernel's driver, and so runs in the guest of tests/vm; elsewhere these tests return early.

use std::{os::fd::AsFd, path::PathBuf};

use nbd_kernel::nbd::{ConnectOptions, Device, Netlink};

use super::{attachment::load_driver, leftovers::backend_identifier, *};
use crate::device::{
    AttachMode,
    testing::{Bench, Opener, have_root, read_by_other},
};

const WAYS: [AttachMode; 2] = [AttachMode::Netlink, AttachMode::Ioctl];

fn have_driver() -> bool {
    have_root() && load_driver().is_ok()
}

/// A bench of its own session, so that tests can run side by side.
fn bench(size: usize, attach: AttachMode, name: &str) -> Bench {
    let mut bench = Bench::new(size);
    bench.request.attach = attach;
    bench.request.name = name.into();
    bench.request.session = format!("{}-{attach:?}", name.replace(':', "-"));
    bench
}

async fn open(path: &str) -> Opener {
    let path = PathBuf::from(path);
    blocking::run(move || Opener::new(&path)).await.unwrap()
}

async fn end(device: &KernelDevice) {
    assert_eq!(device.detach(false).await.unwrap(), Detached::Free);
}

#[tokio::test]
async fn a_free_device_has_the_image_padded_to_the_sector() {
    if !have_driver() {
        return;
    }
    for way in WAYS {
        let bench = bench(1_000_001, way, "read");
        let device = attach(None, bench.request.clone()).await.unwrap();
        assert!(
            read_by_other(device.path()).await.unwrap() == bench.disk(),
            "{way:?}"
        );
        assert!(device.attachment.device().disk().read_only());
        end(&device).await;
        end(&device).await;
    }
}

#[tokio::test]
async fn a_device_in_use_is_ejected_by_force_alone_and_then_drains() {
    if !have_driver() {
        return;
    }
    for way in WAYS {
        let mut bench = bench(4 << 20, way, "force");
        let device = attach(None, bench.request.clone()).await.unwrap();
        let opener = open(device.path()).await;
        let Err(DeviceError::InUse { users, .. }) = device.detach(false).await else {
            panic!("detached")
        };
        assert!(
            users.len() == 1 && users[0].contains("(sleep)"),
            "{users:?}"
        );
        bench.fall_silent();
        let reader = tokio::spawn(read_by_other(device.path().to_owned()));
        while device.users().await.len() < 2 {
            tokio::task::yield_now().await;
        }
        let Detached::Draining { users } = device.detach(true).await.unwrap() else {
            panic!("free, {way:?}")
        };
        assert!(
            users.iter().any(|user| user.contains("(sleep)")),
            "{users:?}"
        );
        assert_eq!(reader.await.unwrap(), None);
        drop(opener);
        device.drained().await;
    }
}

#[tokio::test]
async fn what_somebody_else_attached_is_refused_and_unharmed() {
    if !have_driver() {
        return;
    }
    for theirs in WAYS {
        let first = bench(1 << 20, theirs, "theirs");
        let device = attach(None, first.request.clone()).await.unwrap();
        let index = device.attachment.device().index();
        for ours in WAYS {
            let second = bench(2 << 20, ours, "ours");
            let refused = attach(Some(index), second.request.clone()).await;
            assert!(
                matches!(refused, Err(DeviceError::InUse { .. })),
                "{refused:?}"
            );
        }
        assert!(read_by_other(device.path()).await.unwrap() == first.image);
        end(&device).await;
    }
}

#[tokio::test]
async fn somebody_who_disconnects_the_device_ends_the_session_in_order() {
    if !have_driver() {
        return;
    }
    for way in WAYS {
        let mut bench = bench(1 << 20, way, "disc");
        let device = attach(None, bench.request.clone()).await.unwrap();
        let netlink = Netlink::open().unwrap().unwrap();
        netlink
            .disconnect(device.attachment.device().index())
            .unwrap();
        let event = bench.events.recv().await;
        assert!(
            matches!(event, Some(DeviceEvent::Disconnected)),
            "{event:?}"
        );
        end(&device).await;
    }
}

#[tokio::test]
async fn an_attach_that_is_given_up_leaves_nothing() {
    if !have_driver() {
        return;
    }
    for way in WAYS {
        let mut bench = bench(1 << 20, way, "gone");
        bench.fall_silent();
        // The last one, which the other tests don't come to.
        let device = Device::all().pop().unwrap();
        let attaching = tokio::spawn(attach(Some(device.index()), bench.request.clone()));
        while device.attached().is_none() {
            tokio::task::yield_now().await;
        }
        attaching.abort();
        let _ = attaching.await;
        assert!(poll_until(Duration::from_secs(60), || device.attached().is_none()).await);
    }
}

#[tokio::test]
async fn a_leftover_is_freed_unless_its_process_lives() {
    if !have_driver() {
        return;
    }
    let bench = bench(1 << 20, AttachMode::Netlink, "left:over");
    let device = attach(None, bench.request.clone()).await.unwrap();
    let alive = recover("left:over").await;
    assert!(matches!(alive, Err(DeviceError::InUse { .. })), "{alive:?}");
    end(&device).await;

    let index = leave_behind("left:over");
    assert_eq!(
        recover("left").await.unwrap(),
        [""; 0],
        "another configuration's"
    );
    assert_eq!(
        recover("left:over").await.unwrap(),
        [format!("/dev/nbd{index} was still attached")]
    );
    assert_eq!(recover("left:over").await.unwrap(), [""; 0]);
}

#[cfg(feature = "serve")]
#[tokio::test]
async fn a_device_that_was_left_is_taken_over_with_what_is_in_flight() {
    if !have_driver() {
        return;
    }
    let mut first = bench(1 << 20, AttachMode::Netlink, "leave");
    let device = attach(None, first.request.clone()).await.unwrap();
    let left = Left {
        spec: crate::device::DeviceSpec::Auto,
        device: device.path().into(),
        name: "leave".into(),
        session: first.request.session.clone(),
        size: 1 << 20,
        hold: Duration::from_secs(60),
    };
    first.fall_silent();
    let reader = tokio::spawn(read_by_other(device.path().to_owned()));
    while device.users().await.is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(device.outlives_us());
    device.leave().await;
    drop(device);

    for changed in [
        Left {
            size: 2 << 20,
            ..left.clone()
        },
        Left {
            spec: crate::device::DeviceSpec::Loop,
            ..left.clone()
        },
        Left {
            session: "another".into(),
            ..left.clone()
        },
    ] {
        let refused = reclaim(changed).await;
        assert!(
            matches!(refused, Err(DeviceError::Refused(_))),
            "{refused:?}"
        );
    }
    let second = bench(1 << 20, AttachMode::Netlink, "leave");
    let device = reclaim(left).await.unwrap().serve(&second.request);
    assert!(reader.await.unwrap().unwrap() == second.image);
    end(&device).await;
}

/// What a process that was killed leaves: a device whose socket is dead.
fn leave_behind(name: &str) -> u32 {
    let (_ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let options = ConnectOptions {
        index: None,
        size: 1 << 20,
        block_size: 512,
        server_flags: 3,
        dead_connection_timeout: Duration::from_secs(600),
        backend_identifier: &backend_identifier(name, "dead"),
    };
    Netlink::open()
        .unwrap()
        .unwrap()
        .connect(&options, theirs.as_fd())
        .unwrap()
}
