//! A server that is killed in the middle of an attach, which reads the device that only the server answers for.

use crate::{
    harness::Server,
    page::{Page, until},
};

/// A process in its exit that waits for itself would keep the configuration's lock for ever.
async fn is_gone_once_killed(device: &str) {
    let needed = ["/dev/fuse", "/dev/loop-control"];
    if !rustix::process::geteuid().is_root()
        || needed
            .iter()
            .any(|path| !std::path::Path::new(path).exists())
    {
        eprintln!("skipped: only root makes loop devices, where there are any");
        return;
    }
    let server = Server::with_device(device, "\"hold\": 60", "");
    let content = vec![7; 1 << 20];
    let mut page = Page::open(&server, "/nbd/0").await;
    page.stall(&content).await;
    server.process.signal(rustix::process::Signal::KILL);
    let Server {
        folder, process, ..
    } = server;
    process.wait();

    let server = Server::again(folder);
    let page = Page::open(&server, "/nbd/0").await.serve(&content);
    until("the device", || server.session()["state"] == "attached").await;
    page.close().await;
    server.wait_until_free();
}

#[tokio::test]
async fn a_server_killed_while_it_attaches_a_fuse_file_is_gone_and_has_a_successor() {
    is_gone_once_killed("fuse:FOLDER/disk").await;
}

#[tokio::test]
async fn a_server_killed_while_it_attaches_a_loop_device_is_gone_and_has_a_successor() {
    is_gone_once_killed("loop:").await;
}
