//! The JSON API: what is shown of configurations and sessions, and what may be asked of them. `status` and `eject`
//! read the same types at the other end of the control socket.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hyper::{
    HeaderMap, Method, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
};
use nbd_session::KeepState;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    Client, Server, events,
    http::{self, Body},
    registry::Slot,
};
use crate::{
    attachment::{EjectError, Ejected, Phase, Status},
    audit::{Event, Who},
};

/// All configurations.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Configurations {
    /// In the configuration file's order.
    pub(crate) configurations: Vec<ConfigurationView>,
}

/// A configuration, as people and programs see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ConfigurationView {
    /// Its name.
    pub(crate) name: String,
    /// Whether it is taken where none is named.
    pub(crate) default: bool,
    /// `device` of the configuration file.
    pub(crate) device: String,
    /// As in the configuration file.
    pub(crate) metadata: Option<Map<String, Value>>,
    /// None while nothing is attached.
    pub(crate) session: Option<SessionView>,
}

/// A session, as people and programs see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SessionView {
    /// `attaching`, `attached`, `held`, or `draining`.
    pub(crate) state: String,
    /// None until the image was announced.
    pub(crate) image: Option<ImageView>,
    /// Where the machine finds it; None until it is there.
    pub(crate) device: Option<String>,
    /// Of the device, bytes.
    pub(crate) size: u64,
    /// Whether the machine may not write.
    pub(crate) read_only: bool,
    /// Who attached it.
    pub(crate) user: String,
    /// From where.
    pub(crate) from: String,
    /// When, milliseconds since 1970.
    pub(crate) since: u64,
    /// Bytes that the machine has read.
    pub(crate) bytes_read: u64,
    /// Requests that the machine has made.
    pub(crate) requests: u64,
    /// While held: seconds until the session is given up.
    pub(crate) seconds_left: Option<u64>,
    /// While draining: what has to end before the device is free, as far as that is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) draining_for: Vec<String>,
    /// How far the copy of the image is that is kept here; None where none is wanted.
    pub(crate) keep: Option<KeepState>,
}

/// An image, as its page announced it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ImageView {
    /// File name, for people.
    pub(crate) name: String,
    /// Bytes.
    pub(crate) size: u64,
    /// Milliseconds since 1970, where known.
    pub(crate) modified: Option<i64>,
}

/// A refusal.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ErrorView {
    /// A sentence with cause and remedy.
    pub(crate) error: String,
    /// Who uses the device, where that is the cause.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) users: Vec<String>,
}

/// The body of an eject.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct EjectRequest {
    /// Detach although the device is in use.
    pub(crate) force: bool,
}

/// The body of a login.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LoginRequest {
    token: String,
}

impl SessionView {
    /// None for a session that has ended.
    pub(super) fn of(status: &Status) -> Option<Self> {
        let state = match status.phase {
            Phase::Attaching => "attaching",
            Phase::Attached => "attached",
            Phase::Held { .. } => "held",
            Phase::Draining => "draining",
            Phase::Ended => return None,
        };
        let seconds_left = match status.phase {
            Phase::Held { until } => {
                Some(until.saturating_duration_since(Instant::now()).as_secs())
            }
            _ => None,
        };
        Some(Self {
            state: state.to_owned(),
            image: status.image.as_ref().map(|image| ImageView {
                name: image.name.clone(),
                size: image.size,
                modified: image.modified,
            }),
            device: status.device.clone(),
            size: status.size,
            read_only: status.read_only,
            user: status.peer.user.clone(),
            from: status.peer.from.clone(),
            since: milliseconds(status.since),
            bytes_read: status.bytes_read,
            requests: status.requests,
            seconds_left,
            draining_for: status.draining_for.clone(),
            keep: status.keep.clone(),
        })
    }
}

fn milliseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// Answers `POST /api/v1/login`: the token for a cookie.
pub(super) async fn log_in(
    server: &Server,
    client: &Client,
    headers: &HeaderMap,
    body: Incoming,
) -> Response<Body> {
    let request: LoginRequest = match http::read_json(body).await {
        Ok(request) => request,
        Err(refusal) => return refusal,
    };
    const REFUSAL: &str = "this token is not valid (any more); open the address that the server printed when it started";
    match server.auth.log_in(client, headers, &request.token).await {
        Some(cookie) => {
            server.note_login(client.who(Some("local")), "token", None);
            with_cookie(cookie)
        }
        None => {
            server.note_login(client.who(None), "token", Some(REFUSAL.to_owned()));
            http::unauthorized(REFUSAL)
        }
    }
}

/// Answers `POST /api/v1/logout`: the cookie is good for nothing any more. Whoever has none is signed out already.
pub(super) async fn log_out(
    server: &Server,
    client: &Client,
    headers: &HeaderMap,
) -> Response<Body> {
    if let Some(identity) = server.auth.identify(client, headers) {
        let who = client.who(Some(&identity.user));
        server.audit.tell(Event::LoggedOut { who });
    }
    match server.auth.log_out(client, headers).await {
        Some(cookie) => with_cookie(cookie),
        None => http::empty(StatusCode::NO_CONTENT),
    }
}

fn with_cookie(cookie: HeaderValue) -> Response<Body> {
    let mut response = http::empty(StatusCode::NO_CONTENT);
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    response
}

/// Answers the rest of the API; `path` is what follows `/api/v1/`, percent-decoded. Who asks may.
pub(super) async fn answer(
    server: &Server,
    who: Who,
    method: &Method,
    path: &[&str],
    body: Incoming,
) -> Response<Body> {
    match (method, path) {
        (&Method::GET, ["configurations"]) => {
            let configurations = server
                .registry
                .slots()
                .iter()
                .map(|slot| slot.view())
                .collect();
            http::json(StatusCode::OK, &Configurations { configurations })
        }
        (&Method::GET, ["configurations", name]) => match server.registry.find(name) {
            Some(slot) => http::json(StatusCode::OK, &slot.view()),
            None => no_configuration(server, name),
        },
        (&Method::POST, ["configurations", name, "eject"]) => match server.registry.find(name) {
            Some(slot) => eject(server, slot, who, body).await,
            None => no_configuration(server, name),
        },
        (&Method::GET, ["events"]) => events::stream(server),
        (_, ["configurations"] | ["configurations", _] | ["events"]) => http::wrong_method("GET"),
        (_, ["configurations", _, "eject"]) => http::wrong_method("POST"),
        _ => http::error(
            StatusCode::NOT_FOUND,
            "the API has nothing at this path; see docs/protocol.md",
        ),
    }
}

fn no_configuration(server: &Server, name: &str) -> Response<Body> {
    http::error(StatusCode::NOT_FOUND, server.registry.no_such(name))
}

async fn eject(server: &Server, slot: &Slot, who: Who, body: Incoming) -> Response<Body> {
    let request: EjectRequest = match http::read_json(body).await {
        Ok(request) => request,
        Err(refusal) => return refusal,
    };
    let configuration = || slot.configuration().name.clone();
    server.audit.tell(match request.force {
        false => Event::EjectAsked {
            who: who.clone(),
            configuration: configuration(),
        },
        true => Event::EjectForced {
            who: who.clone(),
            configuration: configuration(),
        },
    });
    let ejected = slot.eject(request.force).await;
    if let Err(error) = &ejected {
        server.audit.tell(Event::EjectRefused {
            who,
            configuration: configuration(),
            reason: error.to_string(),
        });
    }
    match ejected {
        Ok(Ejected::Free) => http::json(StatusCode::OK, &slot.view()),
        Ok(Ejected::Draining { users }) => {
            let mut view = slot.view();
            if let Some(session) = &mut view.session {
                session.draining_for = users;
            }
            http::json(StatusCode::ACCEPTED, &view)
        }
        Err(EjectError::InUse(users)) => {
            let error = format!(
                "{} is in use: {}; end that first, or eject by force, which makes what is outstanding fail",
                slot.view()
                    .session
                    .and_then(|session| session.device)
                    .unwrap_or_default(),
                users.join(", "),
            );
            http::json(StatusCode::CONFLICT, &ErrorView { error, users })
        }
        Err(failed @ EjectError::Failed(_)) => {
            http::error(StatusCode::INTERNAL_SERVER_ERROR, failed.to_string())
        }
    }
}
