//! Somebody else on the machine who tampers with the place of a Unix socket.

use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _, symlink},
        net::UnixListener,
    },
    path::Path,
};

use super::{
    arena::{Arena, SIZE, image},
    page::{Kind, Offer, Page},
};

/// A device at `place/0.sock`, whose folder has been prepared by somebody: nothing is attached, and a reason is given.
#[track_caller]
fn is_refused(said: &str, prepare: impl Fn(&Path)) -> Arena {
    let arena = Arena::with_device("unix:FOLDER/place/0.sock", "\"hold\": 60", 30);
    let place = arena.server.folder.path().join("place");
    fs::create_dir(&place).unwrap();
    prepare(&place);
    let (code, reason) = offer(&arena);
    assert!(
        matches!(code, 4500 | 4409) && reason.contains(said),
        "{code} {reason}"
    );
    arena.server.wait_until_free();
    arena
}

/// The server's answer to a page that offers an image.
fn offer(arena: &Arena) -> (u16, String) {
    let mut page: Page = arena.page(Kind::Plain);
    if page.is_closed_within(std::time::Duration::from_millis(200)) {
        return page.closed();
    }
    page.negotiate(&Offer::default());
    while let Ok(asked) = page.asked() {
        page.answer(&image(SIZE), asked);
    }
    page.closed()
}

/// Defence: crates/nbd-proxy/src/device/socket/place.rs, `bind`: the mode of the socket.
#[test]
fn another_user_who_would_connect() {
    let arena = Arena::new();
    let _page = arena.attached(Kind::Plain, false);
    let found = fs::symlink_metadata(arena.server.device()).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o7777, 0o600);
    arena.survives();
}

/// Defence: crates/nbd-proxy/src/claim.rs and control.rs: the modes of files. Whoever can open a lock can hold it, and
/// keep us from starting.
#[test]
fn another_user_who_would_hold_our_locks_or_read_what_is_attached() {
    let arena = Arena::new();
    arena.server.write_hook("exit 0");
    let _page = arena.attached(Kind::V1, false);
    let mut seen = Vec::new();
    for folder in ["run", "state"] {
        for entry in fs::read_dir(arena.server.folder.path().join(folder)).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{:?}", entry.path());
            seen.push(entry.file_name().into_string().unwrap());
        }
    }
    for file in ["logins.lock", "control.sock", "0.lock", "0.state"] {
        assert!(seen.iter().any(|name| name == file), "{file}: {seen:?}");
    }
    arena.survives();
}

/// Defence: crates/nbd-proxy/src/device/socket/place.rs, `check_folders`.
#[test]
fn a_folder_that_everybody_can_change() {
    let arena = is_refused("can be changed by everybody", |place| {
        fs::set_permissions(place, fs::Permissions::from_mode(0o777)).unwrap();
    });
    assert_eq!(
        fs::read_dir(arena.server.folder.path().join("place"))
            .unwrap()
            .count(),
        0
    );
    arena.survives();
}

/// Defence: crates/nbd-proxy/src/device/socket/place.rs, `make_way`: nothing is followed.
#[test]
fn a_link_in_the_place_of_the_socket() {
    let arena = is_refused("is not a socket", |place| {
        fs::write(place.join("precious"), "bytes").unwrap();
        symlink(place.join("precious"), place.join("0.sock")).unwrap();
    });
    let place = arena.server.folder.path().join("place");
    assert_eq!(fs::read_to_string(place.join("precious")).unwrap(), "bytes");
    let is_link = |path: &Path| fs::symlink_metadata(path).unwrap().is_symlink();
    assert!(is_link(&place.join("0.sock")));
    arena.survives();
    // Nor a dead socket of our own, which would be removed if it stood there itself.
    let arena = is_refused("is not a socket", |place| {
        drop(UnixListener::bind(place.join("dead.sock")).unwrap());
        symlink(place.join("dead.sock"), place.join("0.sock")).unwrap();
    });
    assert!(is_link(&arena.server.folder.path().join("place/0.sock")));
    arena.survives();
}

/// Defence: crates/nbd-proxy/src/device/socket/place.rs, `make_way`: what is not ours is never removed.
#[test]
fn a_file_in_the_place_of_the_socket() {
    let arena = is_refused("is not a socket", |place| {
        fs::write(place.join("0.sock"), "precious").unwrap();
    });
    let file = arena.server.folder.path().join("place/0.sock");
    assert_eq!(fs::read_to_string(file).unwrap(), "precious");
    arena.survives();
}

/// Defence: crates/nbd-proxy/src/device/socket/place.rs, `is_listening`.
#[test]
fn another_server_in_the_place_of_the_socket() {
    let listening = std::cell::RefCell::new(None);
    let arena = is_refused("another process listens", |place| {
        *listening.borrow_mut() = Some(UnixListener::bind(place.join("0.sock")).unwrap());
    });
    assert!(arena.server.folder.path().join("place/0.sock").exists());
    arena.survives();
}

/// Defence: crates/nbd-proxy/src/device/socket/place.rs, `SocketFile::remove`.
#[test]
fn a_file_that_takes_the_place_of_the_socket_later() {
    let arena = Arena::new();
    let page = arena.attached(Kind::Plain, false);
    let place = arena.server.device();
    fs::remove_file(&place).unwrap();
    fs::write(&place, "precious").unwrap();
    let mut page = page;
    page.frame(super::page::CLOSE, &1000_u16.to_be_bytes());
    arena.server.wait_until_free();
    assert_eq!(fs::read_to_string(&place).unwrap(), "precious");
    arena.survives();
}
