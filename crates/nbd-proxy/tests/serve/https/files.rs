//! Certificates in files: replaced while they are used, and what is said of bad ones.

use super::*;

#[test]
fn a_certificate_is_replaced_without_dropping_the_session() {
    let secured = Secured::start();
    let server = &secured.server;
    let before = fingerprint_of(server.address);
    let ca = secured.ca.to_str().unwrap();
    let mut sharing = share(server, 3_000_000, &["--ca", ca]);
    secured.authority.server().write(server.folder.path());
    secured.wait_for_certificate_in_file();
    assert_ne!(fingerprint_of(server.address), before);
    assert!(Disk::connect(&server.device()).read_all()[..3_000_000] == [7; 3_000_000]);
    assert!(sharing.is_running());
    sharing.signal(rustix::process::Signal::TERM);
    let (status, said) = sharing.wait();
    assert!(status.success() && !said.contains("lost"), "{said}");
}

#[test]
fn a_certificate_that_takes_its_time_to_be_read_keeps_nobody_waiting() {
    let secured = Secured::start();
    let address = secured.server.address;
    let folder = secured.server.folder.path();
    let before = fingerprint_of(address);
    let certificate = folder.join("server.crt");
    let (next, at_once) = (secured.authority.server(), rustix::fs::OFlags::NONBLOCK);
    // Whoever reads a pipe waits for who writes to it.
    std::fs::remove_file(&certificate).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &certificate,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let mut pipe = wait_for("the server to read", || {
        let flags = rustix::fs::OFlags::WRONLY | at_once;
        let opened = rustix::fs::open(&certificate, flags, rustix::fs::Mode::empty());
        opened.ok().map(std::fs::File::from)
    });
    for _ in 0..3 {
        assert_eq!(secured.get("/healthz", None).unwrap().status, 200);
    }
    assert_eq!(fingerprint_of(address), before);
    std::fs::write(folder.join("server.key"), &next.key).unwrap();
    std::io::Write::write_all(&mut pipe, next.certificate.as_bytes()).unwrap();
    drop(pipe);
    wait_for("the new certificate", || {
        (fingerprint_of(address) != before).then_some(())
    });
}

#[test]
fn a_broken_new_certificate_leaves_the_old_one_and_says_so() {
    let secured = Secured::start();
    let server = &secured.server;
    let before = fingerprint_of(server.address);
    let certificate = server.folder.path().join("server.crt");
    let good = std::fs::read(&certificate).unwrap();
    std::fs::write(&certificate, "nothing").unwrap();
    wait_for("a complaint", || {
        assert_eq!(secured.get("/healthz", None).unwrap().status, 200);
        let said = server.process.said();
        let complaint = said
            .lines()
            .find(|line| line.contains("the old one stays"))?;
        assert!(
            complaint.contains("server.crt has no certificate"),
            "{complaint}"
        );
        Some(())
    });
    assert_eq!(fingerprint_of(server.address), before);
    std::fs::write(&certificate, good).unwrap();
    secured.authority.server().write(server.folder.path());
    secured.wait_for_certificate_in_file();
}

/// Landlock is in force in the process that faces the network: what the configuration does not name is out of its reach,
/// also where its user may read it.
#[test]
fn a_file_outside_of_the_directories_that_are_named_is_out_of_reach() {
    let secured = Secured::start();
    let server = &secured.server;
    if server.process.said().contains("Landlock is not to be had") {
        eprintln!("skipped: this kernel has no Landlock");
        return;
    }
    let elsewhere = tempfile::tempdir().unwrap();
    secured.authority.server().write(elsewhere.path());
    let certificate = server.folder.path().join("server.crt");
    std::fs::remove_file(&certificate).unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("server.crt"), &certificate).unwrap();
    let complaint = wait_for("a complaint", || {
        let said = server.process.said();
        let line = said.lines().rfind(|line| line.contains("stays"))?;
        line.contains("ermission").then(|| line.to_owned())
    });
    assert!(complaint.contains("server.crt"), "{complaint}");
    assert_eq!(secured.get("/healthz", None).unwrap().status, 200);
}

/// Starts a server that can't, with these files.
fn fails(prepare: impl FnOnce(&Path)) -> String {
    let folder = folder(FILES);
    Authority::new("servers").server().write(folder.path());
    prepare(folder.path());
    let mut command = crate::harness::program(folder.path());
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--config"])
        .arg(folder.path().join("config.json"));
    let (status, said) = Process::start(command).wait();
    assert_eq!(status.code(), Some(1));
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

#[test]
fn what_is_wrong_with_a_certificate_or_its_key_is_told_in_one_line_with_the_remedy() {
    let write = |name: &'static str, text: &'static str| {
        move |folder: &Path| std::fs::write(folder.join(name), text).unwrap()
    };
    let said = fails(|folder| std::fs::remove_file(folder.join("server.key")).unwrap());
    assert!(
        said.contains("can't read") && said.contains("server.key"),
        "{said}"
    );
    let said = fails(write("server.crt", "# empty\n"));
    assert!(
        said.contains("has no certificate") && said.contains("BEGIN CERTIFICATE"),
        "{said}"
    );
    let said = fails(write("server.crt", "-----BEGIN CERTIFICATE-----\nYQ==\n"));
    assert!(said.contains("not PEM"), "{said}");
    let bad = "-----BEGIN CERTIFICATE-----\nYWJj\n-----END CERTIFICATE-----\n";
    let said = fails(write("server.crt", bad));
    assert!(said.contains("server.crt"), "{said}");
    let said = fails(write(
        "server.key",
        "-----BEGIN NOTHING-----\n-----END NOTHING-----\n",
    ));
    assert!(said.contains("has no private key"), "{said}");
    let said = fails(|folder| {
        let other = Authority::new("others").server();
        let path = folder.join("server.key");
        std::fs::write(path, other.key).unwrap();
    });
    assert!(
        said.contains("does not belong to the first certificate"),
        "{said}"
    );
}

#[test]
fn an_encrypted_key_is_told_from_a_broken_one() {
    let said = fails(|folder| {
        let key = folder.join("server.key");
        let clear = folder.join("clear.key");
        std::fs::rename(&key, &clear).unwrap();
        let paths = [
            "-in",
            clear.to_str().unwrap(),
            "-out",
            key.to_str().unwrap(),
        ];
        let ran = openssl(&[&["pkcs8", "-topk8", "-passout", "pass:x"], &paths[..]].concat());
        assert!(ran.status.success(), "{}", ran.stderr);
    });
    assert!(
        said.contains("is encrypted") && said.contains("openssl pkey"),
        "{said}"
    );
}

#[test]
fn a_key_that_everybody_can_read_is_warned_of() {
    let secured = Secured::with("", |folder| {
        let readable = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(folder.join("server.key"), readable).unwrap();
    });
    wait_for("a warning", || {
        secured
            .server
            .process
            .said()
            .contains("chmod 600")
            .then_some(())
    });
    assert_eq!(secured.get("/healthz", None).unwrap().status, 200);
}
