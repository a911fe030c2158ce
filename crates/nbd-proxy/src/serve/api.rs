//! The JSON API: what is shown of configurations and sessions, and what may be asked of them. `status` and `eject`
//! read the same types at the other end of the control socket.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use hyper::{
    HeaderMap, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
};
use nbd_session::KeepState;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    Client, Server,
    auth::{Credentials, Identity, LoginError},
    events,
    http::{self, Body},
    registry::Slot,
    rights,
};
use crate::{
    attachment::{EjectError, Ejected, Phase, Status},
    audit::{Event, Who},
    config::Right,
};

/// When somebody who came at a bad moment may try again.
const BUSY: Duration = Duration::from_secs(2);

/// All configurations that somebody may see.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Configurations {
    /// In the configuration file's order.
    pub(crate) configurations: Vec<ConfigurationView>,
    /// Who asks.
    pub(crate) user: String,
    /// Whether that is known by a login, which can be ended.
    pub(crate) login: bool,
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
    /// What the machine's hook is told to show it as, `disk` or `cdrom`.
    #[serde(default)]
    pub(crate) media: String,
    /// As in the configuration file.
    pub(crate) metadata: Option<Map<String, Value>>,
    /// What the user who asks may do with it; not in events, which are everybody's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) may: Vec<Right>,
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
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct ErrorView {
    /// A sentence with cause and remedy.
    pub(crate) error: String,
    /// Who uses the device, where that is the cause.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) users: Vec<String>,
    /// To whom we don't know: what they may sign in with, `password` or `token`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) sign_in: Vec<String>,
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
    token: Option<String>,
    user: Option<String>,
    password: Option<String>,
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

/// Answers who is nobody that we know.
pub(super) fn unknown(server: &Server) -> Response<Body> {
    http::unauthorized(&ErrorView {
        error: "not allowed: sign in on the page, open the address that the server printed when it started, or send a \
                token as Authorization: Bearer"
            .to_owned(),
        sign_in: sign_in(server),
        ..ErrorView::default()
    })
}

fn sign_in(server: &Server) -> Vec<String> {
    let ways = [
        ("password", server.auth.takes_passwords()),
        ("token", server.auth.takes_tokens()),
    ];
    (ways.into_iter())
        .filter(|(_, taken)| *taken)
        .map(|(way, _)| way.to_owned())
        .collect()
}

/// Answers `POST /api/v1/login`: a password or a token for a cookie.
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
    let (method, credentials) = match request {
        LoginRequest {
            user: Some(user),
            password: Some(password),
            token: None,
        } => ("password", Credentials::Password { user, password }),
        LoginRequest {
            token: Some(token),
            user: None,
            password: None,
        } => ("token", Credentials::Token(token)),
        _ => {
            let sentence = "send either \"user\" and \"password\", or \"token\"";
            return http::error(StatusCode::BAD_REQUEST, sentence);
        }
    };
    let mut who = server.who(client, headers, None);
    match server.auth.log_in(client, headers, credentials).await {
        Ok((user, cookie)) => {
            who.user = Some(user);
            server.note_login(who, method, None);
            with_cookie(cookie)
        }
        Err(error) => {
            server.note_login(who, method, Some(&error));
            login_refused(server, &error)
        }
    }
}

fn login_refused(server: &Server, error: &LoginError) -> Response<Body> {
    match error {
        LoginError::WrongToken | LoginError::WrongPassword | LoginError::NoPasswords => {
            http::unauthorized(&ErrorView {
                error: error.to_string(),
                sign_in: sign_in(server),
                ..ErrorView::default()
            })
        }
        LoginError::TooSoon(pause) => http::too_many(error.to_string(), *pause),
        LoginError::Busy => http::too_many(error.to_string(), BUSY),
        LoginError::Failed(_) => http::error(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// Answers `POST /api/v1/logout`: the cookie is good for nothing any more. Whoever has none is signed out already.
pub(super) async fn log_out(
    server: &Server,
    client: &Client,
    headers: &HeaderMap,
) -> Response<Body> {
    if let Some(identity) = server.auth.identify(client, headers) {
        let who = server.who(client, headers, Some(&identity));
        server.audit.tell(Event::LoggedOut { who });
    }
    with_cookie(server.auth.log_out(client, headers).await)
}

fn with_cookie(cookie: HeaderValue) -> Response<Body> {
    let mut response = http::empty(StatusCode::NO_CONTENT);
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    response
}

/// Answers the rest of the API, whose methods were looked at; `path` is what follows `/api/v1/`, percent-decoded.
pub(super) async fn answer(
    server: &Arc<Server>,
    identity: &Identity,
    who: Who,
    path: &[&str],
    body: Incoming,
) -> Response<Body> {
    let registry = &server.registry;
    let user = &identity.user;
    let no_such = |name| http::error(StatusCode::NOT_FOUND, registry.no_such(user, name));
    match path {
        ["configurations"] => http::json(StatusCode::OK, &list(server, identity)),
        ["configurations", name] => match registry.find(user, name) {
            Some(slot) => http::json(StatusCode::OK, &view(slot, &identity.user)),
            None => no_such(name),
        },
        ["configurations", name, "eject"] => match registry.find(user, name) {
            Some(slot) => eject(server, slot, identity, who, body).await,
            None => no_such(name),
        },
        ["events"] => events::stream(server, identity),
        _ => nothing(),
    }
}

/// Answers what asks for nothing that there is.
pub(super) fn nothing() -> Response<Body> {
    http::error(
        StatusCode::NOT_FOUND,
        "the API has nothing at this path; see docs/openapi.yaml",
    )
}

fn list(server: &Server, identity: &Identity) -> Configurations {
    let slots = server.registry.visible(&identity.user);
    Configurations {
        configurations: slots.map(|slot| view(slot, &identity.user)).collect(),
        user: identity.user.clone(),
        login: identity.is_login(),
    }
}

fn view(slot: &Slot, user: &str) -> ConfigurationView {
    ConfigurationView {
        may: slot.configuration().allow.rights(user),
        ..slot.view()
    }
}

async fn eject(
    server: &Server,
    slot: &Slot,
    identity: &Identity,
    who: Who,
    body: Incoming,
) -> Response<Body> {
    let request: EjectRequest = match http::read_json(body).await {
        Ok(request) => request,
        Err(refusal) => return refusal,
    };
    let configuration = || slot.configuration().name.clone();
    let refused = |reason| Event::EjectRefused {
        who: who.clone(),
        configuration: configuration(),
        reason,
    };
    if !slot.permits(&identity.user, Right::Eject) {
        let sentence = rights::missing(&identity.user, Right::Eject, slot.configuration());
        server.audit.tell(refused(sentence.clone()));
        return http::error(StatusCode::FORBIDDEN, sentence);
    }
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
        server.audit.tell(refused(error.to_string()));
    }
    match ejected {
        Ok(Ejected::Free) => http::json(StatusCode::OK, &view(slot, &identity.user)),
        Ok(Ejected::Draining { users }) => {
            let mut view = view(slot, &identity.user);
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
            http::json(
                StatusCode::CONFLICT,
                &ErrorView {
                    error,
                    users,
                    ..ErrorView::default()
                },
            )
        }
        Err(failed @ EjectError::Failed(_)) => {
            http::error(StatusCode::INTERNAL_SERVER_ERROR, failed.to_string())
        }
    }
}
