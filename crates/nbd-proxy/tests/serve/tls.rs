//! `share` over TLS, which a proxy in front of the server speaks.

use std::{net::SocketAddr, sync::Arc};

use rcgen::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer},
};

use crate::{
    certificates::pem,
    disk::Disk,
    harness::{Process, Server},
    page::blocking,
};

/// Speaks TLS as `localhost`, and hands on what it hears to `server`.
async fn terminate(server: SocketAddr) -> (u16, String) {
    let CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut outside) = acceptor.accept(stream).await else {
                    return;
                };
                let mut inside = TcpStream::connect(server).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            });
        }
    });
    (port, pem("CERTIFICATE", cert.der()))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_shared_through_a_proxy_that_this_machine_trusts() {
    let server = Arc::new(Server::start());
    let (port, certificate) = terminate(server.address).await;
    server.image("ca.pem", certificate.as_bytes());
    server.image("a.iso", &[7; 3_000_000]);
    blocking(&server, move |server| {
        let url = format!("https://localhost:{port}/#token={}", server.token);
        let mut command = server.command(&[
            "share",
            server.folder.path().join("a.iso").to_str().unwrap(),
            &url,
        ]);
        command.env("SSL_CERT_FILE", server.folder.path().join("ca.pem"));
        let sharing = Process::start(command);
        server.wait_for_state("attached");
        assert!(Disk::connect(&server.device()).read_all()[..3_000_000] == [7; 3_000_000]);
        sharing.signal(rustix::process::Signal::TERM);
        let (status, stderr) = sharing.wait();
        assert!(status.success(), "{stderr}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_this_machine_does_not_trust_is_told_nothing() {
    let server = Arc::new(Server::start());
    let (port, _) = terminate(server.address).await;
    let (_, another) = terminate(server.address).await;
    server.image("ca.pem", another.as_bytes());
    server.image("a.iso", &[7; 512]);
    blocking(&server, move |server| {
        let url = format!("wss://localhost:{port}/nbd/0#token={}", server.token);
        let mut command = server.command(&[
            "share",
            server.folder.path().join("a.iso").to_str().unwrap(),
            &url,
        ]);
        command.env("SSL_CERT_FILE", server.folder.path().join("ca.pem"));
        let (status, stderr) = Process::start(command).wait();
        assert_eq!(status.code(), Some(1));
        assert!(stderr.contains("certificate"), "{stderr}");
        assert!(server.session().is_null());
    })
    .await;
}
