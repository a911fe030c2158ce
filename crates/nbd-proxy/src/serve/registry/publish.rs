//! What those who look on are told of a slot, and how often.

use std::{sync::Arc, time::Duration};

use nbd_session::KeepState;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::slot::Slot;
use crate::{
    attachment::Status,
    serve::api::{ConfigurationView, SessionView},
};

/// How often a change of nothing but counters is told.
const COUNTERS: Duration = Duration::from_secs(1);

/// Keeps [`Slot::changes`] up to date.
pub(super) async fn publish(slot: Arc<Slot>, version: Arc<watch::Sender<u64>>) {
    let mut occupancies = slot.occupancy.subscribe();
    let mut statuses = None;
    let mut view = slot.view();
    let mut due = Instant::now();
    let mut waiting = false;
    loop {
        tokio::select! {
            changed = occupancies.changed() => {
                if changed.is_err() {
                    return;
                }
                let occupancy = occupancies.borrow_and_update();
                statuses = occupancy.occupant.as_ref().map(|occupant| occupant.attachment.status());
            }
            () = next_status(&mut statuses) => {}
            () = sleep_until(due), if waiting => {}
        }
        let now = slot.view();
        waiting = now != view && same_but_counters(&now, &view) && Instant::now() < due;
        if now != view && !waiting {
            view = now;
            due = Instant::now() + COUNTERS;
            slot.told.send_replace(json(&view));
            version.send_modify(|version| *version += 1);
        }
    }
}

/// Waits for the next change, if need be for ever.
async fn next_status(statuses: &mut Option<watch::Receiver<Status>>) {
    if let Some(present) = statuses {
        if present.changed().await.is_ok() {
            return;
        }
        *statuses = None;
    }
    std::future::pending::<()>().await;
}

fn same_but_counters(one: &ConfigurationView, other: &ConfigurationView) -> bool {
    let uncounted = |view: &ConfigurationView| {
        view.session.clone().map(|session| SessionView {
            bytes_read: 0,
            requests: 0,
            seconds_left: None,
            keep: session.keep.map(|keep| KeepState {
                bytes: 0,
                seconds_left: None,
                ..keep
            }),
            ..session
        })
    };
    uncounted(one) == uncounted(other)
}

pub(super) fn json(view: &ConfigurationView) -> String {
    serde_json::to_string(view).unwrap_or_default()
}
