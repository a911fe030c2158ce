//! Whom `share` trusts.

use super::*;

#[test]
fn share_takes_a_server_by_its_fingerprint_and_no_other() {
    let server = self_signed(folder_without_tls());
    let fingerprint = shown_fingerprint(&server);
    let sharing = share(&server, 3_000_000, &["--fingerprint", &fingerprint]);
    assert!(Disk::connect(&server.device()).read_all()[..3_000_000] == [7; 3_000_000]);
    sharing.signal(rustix::process::Signal::TERM);
    assert!(sharing.wait().0.success());
    let other = fingerprint.replace(':', "").to_lowercase();
    let other = format!("{}{}", &other[1..], &other[..1]);
    let image = server.folder.path().join("a.iso");
    let arguments = [
        "share",
        image.to_str().unwrap(),
        &url(&server),
        "--fingerprint",
        &other,
    ];
    // Where it took the server, it would share for ever.
    let (status, said) = Process::start(server.command(&arguments)).wait();
    assert_eq!(status.code(), Some(1));
    assert!(
        said.contains(&fingerprint) && said.contains("in its place"),
        "{said}"
    );
}

#[test]
fn share_tells_how_to_trust_a_server_that_it_does_not_know() {
    let server = self_signed(folder_without_tls());
    let fingerprint = shown_fingerprint(&server);
    let image = server.image("a.iso", &[7; 512]);
    let certificate = server.folder.path().join("state/self-signed.crt");
    let stranger = Authority::new("strangers").write(&server.folder.path().join("other.crt"));
    let mut command = server.command(&["share", image.to_str().unwrap(), &url(&server)]);
    command.env("SSL_CERT_FILE", &stranger);
    let (status, said) = Process::start(command).wait();
    assert_eq!(status.code(), Some(1));
    for remedy in ["--ca", &format!("--fingerprint {fingerprint}")] {
        assert!(said.contains(remedy), "{said}");
    }
    let mut sharing = share(&server, 512, &["--ca", certificate.to_str().unwrap()]);
    assert!(sharing.is_running());
}

#[test]
fn share_checks_no_certificate_where_there_is_no_tls() {
    let server = Server::start();
    let image = server.image("a.iso", &[7; 512]);
    let fingerprint = "00".repeat(32);
    let url = server.url();
    let ran = server.run(&[
        "share",
        image.to_str().unwrap(),
        &url,
        "--fingerprint",
        &fingerprint,
    ]);
    assert_eq!(ran.status.code(), Some(1));
    assert!(ran.stderr.contains("https://"), "{}", ran.stderr);
}
