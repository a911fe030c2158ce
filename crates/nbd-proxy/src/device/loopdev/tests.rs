use super::*;
use crate::device::testing::{Bench, Opener, have_root, read_by_other};

#[tokio::test]
async fn a_loop_device_has_the_image_padded_to_the_sector() {
    if !have_root() {
        return;
    }
    let bench = Bench::new(1_000_001);
    let device = attach(bench.request.clone()).await.unwrap();
    assert!(device.path().starts_with("/dev/loop"));
    assert!(
        read_by_other(device.path()).await.unwrap() == bench.disk(),
        "the bytes differ"
    );
    assert!(device.attached.device.disk().read_only());
    let directory = device.file.path().parent().unwrap().to_path_buf();
    assert_eq!(device.detach(false).await.unwrap(), Detached::Free);
    assert_eq!(device.attached.device.backing_file(), None);
    assert!(!directory.exists());
}

#[tokio::test]
async fn an_open_loop_device_drains_after_a_forced_eject() {
    if !have_root() {
        return;
    }
    let mut bench = Bench::new(4 << 20);
    let device = attach(bench.request.clone()).await.unwrap();
    let path = PathBuf::from(device.path());
    let opener = blocking::run(move || Opener::new(&path)).await.unwrap();
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
        panic!("free")
    };
    assert!(
        users.iter().any(|user| user.contains("(sleep)")),
        "{users:?}"
    );
    assert_eq!(reader.await.unwrap(), None);
    drop(opener);
    device.drained().await;
}

#[tokio::test]
async fn what_a_killed_process_left_is_freed() {
    if !have_root() {
        return;
    }
    let bench = Bench::new(10_000);
    let device = attach(bench.request.clone()).await.unwrap();
    let (path, node) = (
        device.file.path().to_path_buf(),
        device.attached.device.clone(),
    );
    device.file.stop_answering().await;
    std::mem::forget(device); // what SIGKILL leaves
    assert_eq!(node.backing_file().as_ref(), Some(&path));

    let opener = blocking::run({
        let node = node.disk().path();
        move || Opener::new(&node)
    })
    .await
    .unwrap();
    let Err(DeviceError::InUse { users, .. }) = recover("0", bench.runtime_dir()).await else {
        panic!("freed")
    };
    assert!(
        users.len() == 1 && users[0].contains("(sleep)"),
        "{users:?}"
    );
    drop(opener);
    assert!(poll_until(RECOVER_LIMIT, || node.backing_file().is_none()).await);

    let freed = recover("0", bench.runtime_dir()).await.unwrap();
    assert_eq!(freed, [format!("{} was still mounted", path.display())]);
    assert_eq!(recover("0", bench.runtime_dir()).await.unwrap(), [""; 0]);
    assert!(!path.parent().unwrap().exists());
}
