use std::{os::unix::fs::MetadataExt, path::Path};

use super::*;
use crate::device::DeviceEvent;
use crate::device::testing::{Bench, Opener, have_root, read_by_other};

async fn attach_default(bench: &Bench) -> FuseDevice {
    attach(None, bench.request.clone()).await.unwrap()
}

#[tokio::test]
async fn a_file_has_the_image_padded_to_the_sector_and_goes_with_the_session() {
    if !have_root() {
        return;
    }
    let bench = Bench::new(3_000_001);
    let device = attach_default(&bench).await;
    let path = PathBuf::from(device.path());
    assert_eq!(path, bench.request.runtime_dir.join("0.img"));
    assert!(
        read_by_other(&path).await.unwrap() == bench.disk(),
        "the bytes differ"
    );
    let facts = blocking::run({
        let path = path.clone();
        move || fs::metadata(path).unwrap()
    })
    .await
    .unwrap();
    assert_eq!((facts.len(), facts.mode() & 0o777), (3_000_320, 0o444));
    assert_eq!(device.detach(false).await.unwrap(), Detached::Free);
    assert!(!path.exists());
    assert_eq!(
        device.detach(false).await.unwrap(),
        Detached::Free,
        "a second time"
    );
}

#[tokio::test]
async fn an_open_file_is_not_ejected_unless_forced() {
    if !have_root() {
        return;
    }
    let bench = Bench::new(10_000);
    let device = attach_default(&bench).await;
    let path = PathBuf::from(device.path());
    let opener = blocking::run({
        let path = path.clone();
        move || Opener::new(&path)
    })
    .await
    .unwrap();
    let Err(DeviceError::InUse { users, .. }) = device.detach(false).await else {
        panic!("detached")
    };
    assert!(
        users.len() == 1 && users[0].contains("(sleep)"),
        "{users:?}"
    );
    assert!(
        read_by_other(&path).await.unwrap() == bench.disk(),
        "it still works"
    );
    assert_eq!(device.detach(true).await.unwrap(), Detached::Free);
    drop(opener);
}

#[tokio::test]
async fn a_reader_of_a_dead_link_gets_an_error_when_the_file_is_forced_off() {
    if !have_root() {
        return;
    }
    let mut bench = Bench::new(1 << 20);
    let device = attach_default(&bench).await;
    bench.fall_silent();
    let reader = tokio::spawn(read_by_other(device.path().to_owned()));
    while device.users().await.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(device.detach(true).await.unwrap(), Detached::Free);
    assert_eq!(reader.await.unwrap(), None);
}

#[tokio::test]
async fn unmounting_the_file_by_hand_is_reported() {
    if !have_root() {
        return;
    }
    let mut bench = Bench::new(10_000);
    let device = attach_default(&bench).await;
    let path = PathBuf::from(device.path());
    blocking::run(move || kernel_fuse::unmount(&path))
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(
        bench.events.recv().await,
        Some(DeviceEvent::Disconnected)
    ));
    device.detach(false).await.unwrap();
}

#[tokio::test]
async fn a_mount_left_by_a_killed_process_is_freed() {
    if !have_root() {
        return;
    }
    let bench = Bench::new(10_000);
    let device = attach_default(&bench).await;
    let path = PathBuf::from(device.path());
    device.file.stop_answering().await;
    std::mem::forget(device); // what SIGKILL leaves
    assert!(kernel_fuse::is_mounted(&path));
    let spec = DeviceSpec::Fuse { path: None };
    let freed = recover(&spec, "0", bench.runtime_dir()).await.unwrap();
    assert_eq!(freed, [format!("{} was still mounted", path.display())]);
    assert!(!path.exists());
    assert_eq!(
        recover(&spec, "0", bench.runtime_dir()).await.unwrap(),
        [""; 0]
    );
}

#[tokio::test]
async fn a_file_that_is_served_is_neither_taken_for_a_leftover_nor_mounted_twice() {
    if !have_root() {
        return;
    }
    let bench = Bench::new(10_000);
    let device = attach_default(&bench).await;
    let spec = DeviceSpec::Fuse { path: None };
    assert_eq!(
        recover(&spec, "0", bench.runtime_dir()).await.unwrap(),
        [""; 0]
    );
    assert!(matches!(
        attach(None, bench.request.clone()).await,
        Err(DeviceError::InUse { .. })
    ));
    assert!(read_by_other(device.path()).await.unwrap() == bench.disk());
    device.detach(false).await.unwrap();
}

#[tokio::test]
async fn a_file_with_content_is_not_hidden() {
    let bench = Bench::new(10_000);
    let path = bench.request.runtime_dir.join("mine");
    fs::write(&path, "mine").unwrap();
    assert!(matches!(
        attach(Some(&path), bench.request.clone()).await,
        Err(DeviceError::Refused(_))
    ));
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    let nowhere = Path::new("/");
    assert!(matches!(
        attach(Some(nowhere), bench.request.clone()).await,
        Err(DeviceError::Refused(_))
    ));
}
