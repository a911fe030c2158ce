//! Server-sent events: each configuration when the client comes, and again whenever it changes.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{Response, StatusCode, body::Frame};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};

use super::{
    Server,
    auth::Identity,
    http::{self, Body},
    stopped,
};

/// How often a quiet stream says that it lives: proxies cut what is silent for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How many events may wait for a slow client; meanwhile changes gather into one.
const QUEUE: usize = 4;

/// Answers `GET /api/v1/events`.
pub(super) fn stream(server: &Arc<Server>, identity: &Identity) -> Response<Body> {
    let place = match server.events.take(&identity.user) {
        Ok(place) => place,
        Err(reached) => return server.too_many(reached),
    };
    let (sender, receiver) = mpsc::channel(QUEUE);
    let changes = server
        .registry
        .visible(&identity.user)
        .map(|slot| slot.changes())
        .collect();
    let (server, identity) = (Arc::clone(server), identity.clone());
    tokio::spawn(async move {
        let _place = place;
        let gone = sender.clone();
        let (version, stopping) = (server.registry.version(), server.stopping.clone());
        tokio::select! {
            () = send(sender, changes, version, stopping) => {}
            () = gone.closed() => {}
            () = server.auth.revoked(&identity) => {}
        }
    });
    http::typed(
        "text/event-stream",
        http::respond(StatusCode::OK, EventBody(receiver).boxed()),
    )
}

/// Sends until the client goes or the server stops.
async fn send(
    client: mpsc::Sender<Bytes>,
    mut changes: Vec<watch::Receiver<String>>,
    mut version: watch::Receiver<u64>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut keep_alive = interval(KEEP_ALIVE);
    keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    changes.iter_mut().for_each(watch::Receiver::mark_changed);
    loop {
        version.borrow_and_update();
        for change in &mut changes {
            if change.has_changed().unwrap_or(false) {
                let event = format!(
                    "event: configuration\ndata: {}\n\n",
                    *change.borrow_and_update()
                );
                if client.send(event.into()).await.is_err() {
                    return;
                }
            }
        }
        tokio::select! {
            changed = version.changed() => if changed.is_err() { return },
            () = stopped(&mut stopping) => return,
            _ = keep_alive.tick() => if client.send(Bytes::from_static(b":\n\n")).await.is_err() { return },
        }
    }
}

/// A body that arrives by and by.
struct EventBody(mpsc::Receiver<Bytes>);

impl hyper::body::Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(context)
            .map(|event| event.map(|event| Ok(Frame::data(event))))
    }
}
