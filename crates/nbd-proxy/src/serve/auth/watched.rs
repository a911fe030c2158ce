//! A file of accounts that is read again whenever it changes.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

use crate::{accounts::Accounts, report};

/// How often it is looked at.
const PERIOD: Duration = Duration::from_secs(1);

/// What the file holds, or held when it could be read last.
#[derive(Debug)]
pub(super) struct Watched<T>(watch::Receiver<Arc<T>>);

/// By what a change is seen: whoever writes as `passwd` does makes a new file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

impl<T: Accounts + Send + Sync + 'static> Watched<T> {
    /// Reads it, and goes on looking at it. One that is not there is empty until it is made.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let stamp = Stamp::of(path);
        let accounts = T::load(path)?.unwrap_or_else(|| {
            report::warning(format_args!(
                "there is no {} yet; nbd-proxy passwd makes it",
                path.display()
            ));
            T::default()
        });
        let (sender, receiver) = watch::channel(Arc::new(accounts));
        tokio::spawn(follow(path.to_owned(), stamp, sender));
        Ok(Self(receiver))
    }

    pub(super) fn current(&self) -> Arc<T> {
        Arc::clone(&self.0.borrow())
    }

    /// Waits for another content.
    pub(super) fn changes(&self) -> watch::Receiver<Arc<T>> {
        self.0.clone()
    }
}

async fn follow<T: Accounts + Send + Sync + 'static>(
    path: PathBuf,
    mut seen: Option<Stamp>,
    sender: watch::Sender<Arc<T>>,
) {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !sender.is_closed() {
        period.tick().await;
        let file = path.clone();
        let looked = spawn_blocking(move || {
            let stamp = Stamp::of(&file);
            let accounts = (stamp != seen).then(|| T::load(&file));
            (stamp, accounts)
        });
        let Ok((stamp, accounts)) = looked.await else {
            return;
        };
        seen = stamp;
        match accounts {
            None => {}
            Some(Ok(Some(accounts))) => {
                report::information(format_args!("{} was read again", path.display()));
                sender.send_replace(Arc::new(accounts));
            }
            Some(Ok(None)) => report::error(format_args!(
                "{} is gone; what it said goes on counting until it is back",
                path.display()
            )),
            Some(Err(error)) => report::error(format_args!(
                "what {} said before goes on counting: {}",
                path.display(),
                report::sentence(&error)
            )),
        }
    }
}
