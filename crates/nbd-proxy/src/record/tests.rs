//! Records that are written and read.

use std::os::unix::fs::PermissionsExt as _;

use super::{reading::RecordError, *};

fn record() -> Record {
    let snapshot = serde_json::json!({
        "image": {"name": "x.iso", "size": 4096, "modified": 1},
        "announced": true,
        "export": {
            "name": "x.iso", "description": null, "size": 4096, "flags": 3, "block_sizes": null
        },
        "seen": {
            "key": u64::MAX, "edges": [{"offset": 0, "length": 4096, "hash": [1, u64::MAX]}],
            "blocks": [], "reads": 0
        },
    });
    Record {
        id: "0f".repeat(16),
        device: "/dev/nbd0".into(),
        peer: Peer {
            user: "local".into(),
            from: "127.0.0.1:5".into(),
            session: None,
        },
        since: 1_700_000_000,
        bytes_read: 3,
        requests: 2,
        hook_users: vec!["mounted on /mnt".into()],
        snapshot: serde_json::from_value(snapshot).unwrap(),
    }
}

#[tokio::test]
async fn what_was_noted_is_found_by_its_owner_alone() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(read(folder.path(), "0").unwrap(), None);
    let recorder = Recorder::new(folder.path(), "0");
    recorder.note(Record {
        requests: 1,
        ..record()
    });
    assert!(recorder.ask(Some(record())).wait().await);
    assert_eq!(read(folder.path(), "0").unwrap(), Some(record()));
    let mode = fs::metadata(path(folder.path(), "0"))
        .unwrap()
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    assert_eq!(read(folder.path(), "1").unwrap(), None);
}

#[tokio::test]
async fn what_is_forgotten_stays_so() {
    let folder = tempfile::tempdir().unwrap();
    let recorder = Recorder::new(folder.path(), "0");
    recorder.note(record());
    assert!(recorder.forget().wait().await);
    assert!(recorder.forget().wait().await);
    assert_eq!(read(folder.path(), "0").unwrap(), None);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn what_another_version_wrote_is_no_record_of_ours() {
    let folder = tempfile::tempdir().unwrap();
    let try_text = |text: &str| {
        crate::private_file::write(&path(folder.path(), "0"), text.as_bytes()).unwrap();
        read(folder.path(), "0").unwrap_err()
    };
    let foreign = try_text(r#"{"version": 2, "session": {"of": "the future"}}"#);
    assert!(matches!(foreign, RecordError::Foreign(_)), "{foreign}");
    for text in ["", "{}", r#"{"version": 1, "session": {}}"#, "\0\0"] {
        let damaged = try_text(text);
        assert!(matches!(damaged, RecordError::Damaged { .. }), "{damaged}");
    }
    assert!(remove(folder.path(), "0").unwrap());
    assert!(!remove(folder.path(), "0").unwrap());
}
