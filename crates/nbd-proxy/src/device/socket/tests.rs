//! Where a server was, another can be.

use super::*;
use crate::device::testing::Bench;

#[tokio::test]
async fn a_port_is_free_once_its_device_is() {
    let bench = Bench::new(512);
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let first = attach_tcp(anywhere, None, bench.request.clone())
        .await
        .unwrap();
    let address: SocketAddr = first.path().parse().unwrap();
    assert_eq!(first.detach(true).await.unwrap(), Detached::Free);
    let second = attach_tcp(address, None, bench.request.clone()).await;
    assert_eq!(second.unwrap().path(), first.path());
}

#[tokio::test]
async fn what_a_process_left_that_was_killed_on_the_way_is_in_nobodys_way() {
    let bench = Bench::new(512);
    let path = bench.runtime_dir().join("0.sock");
    let part = bench
        .runtime_dir()
        .join(format!(".0.sock.{}", std::process::id()));
    // Its number was ours: in a container all have the same.
    drop(std::os::unix::net::UnixListener::bind(&part).unwrap());
    let device = attach_unix(Some(&path), bench.request.clone())
        .await
        .unwrap();
    UnixStream::connect(device.path()).await.unwrap();
    assert!(!part.exists());
}
