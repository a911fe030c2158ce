//! Stores: what they give back, when they refuse, what they leave.

use std::{os::unix::fs::PermissionsExt, path::Path};

use bytes::Bytes;

use super::*;

const ID: &str = "0123456789abcdef0123456789abcdef";

fn subject(size: u64) -> Subject {
    Subject {
        name: "lab.2/x".into(),
        session: ID.into(),
        size,
        device: "/nonexistent.sock".into(),
    }
}

fn keep_in(place: Place) -> Keep {
    Keep { place, limit: None }
}

fn bytes(length: usize) -> Bytes {
    (0..length)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect()
}

fn open_in(directory: &Path) -> Box<dyn Store> {
    let keep = keep_in(Place::Directory(directory.into()));
    let subject = subject(3 << 20);
    let path = file::Name::new(directory, &subject).path().to_owned();
    open(&keep, &subject, Some(path)).unwrap()
}

#[test]
fn stores_give_back_what_they_were_given() {
    let folder = tempfile::tempdir().unwrap();
    let memory = open(&keep_in(Place::Memory), &subject(3 << 20), None).unwrap();
    for mut store in [memory, open_in(folder.path())] {
        let data = bytes(2_500_000);
        let payload: Payload = [data.slice(..700_001), data.slice(700_001..)]
            .into_iter()
            .collect();
        store.write(1000, &payload).unwrap();
        store.sync().unwrap();
        assert_eq!(store.read(1000, 2_500_000).unwrap().to_bytes(), data);
        let part = store.read((1 << 20) - 7, 14).unwrap().to_bytes();
        assert_eq!(part, data.slice((1 << 20) - 1007..(1 << 20) - 993));
    }
}

#[test]
fn a_file_is_private_and_goes_with_its_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_in(folder.path());
    let file = folder.path().join(format!("lab.2%2Fx.{ID}.keep"));
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(store);
    assert!(!file.exists());
}

#[test]
fn leftovers_of_this_configuration_alone_are_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, "x").unwrap();
        path
    };
    let ours = make(&format!("lab.{ID}.keep"));
    let others = [
        make(&format!("lab.2.{ID}.keep")),
        make("lab.keep"),
        make("lab.0123.keep"),
        make(&format!("lab.{ID}.iso")),
    ];
    let keep = keep_in(Place::Directory(folder.path().into()));
    assert_eq!(remove_leftovers(&keep, "lab"), [ours]);
    assert!(others.iter().all(|path| path.exists()));
    assert!(remove_leftovers(&keep_in(Place::Memory), "lab").is_empty());
}

#[test]
fn what_is_too_large_is_refused_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let directory = Place::Directory(folder.path().into());
    let missing = Place::Directory(folder.path().join("missing"));
    for (place, limit, size, remedy) in [
        (Place::Memory, Some(99), 100, "raise its \"limit\""),
        (Place::Memory, None, 1 << 60, "keep it in a directory"),
        (directory, None, 1 << 60, "make room"),
        (missing, None, 100, "can be written to"),
    ] {
        let keep = Keep { place, limit };
        let path = folder.path().join("file");
        let refusal = open(&keep, &subject(size), Some(path.clone()))
            .err()
            .unwrap();
        assert!(refusal.contains(remedy), "{refusal}");
        assert!(!path.exists());
    }
}

#[tokio::test]
async fn a_keeper_does_its_tasks_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let keep = keep_in(Place::Directory(folder.path().into()));
    let mut keeper = Keeper::start(keep, subject(100)).unwrap();
    assert!(matches!(keeper.event().await, Some(Kept::Opened)));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    drop(keeper);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
