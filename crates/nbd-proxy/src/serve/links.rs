//! WebSocket endpoints: the handshake, and what becomes of the connection.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri, Version,
    body::Incoming,
    header::{self, HeaderValue},
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use ring::digest;
use tokio::{
    runtime::Handle,
    time::{MissedTickBehavior, interval},
};

use super::{
    Client, Server,
    auth::Identity,
    http::{self, Body},
    path,
    places::Place,
    refusal::{self, Refusal},
    registry::Slot,
};
use crate::{
    attachment::Limits,
    audit::{Event, Who},
    link::{LinkCommand, LinkKind, Peer, websocket},
    report::Kind,
};

/// RFC 6455, section 1.3.
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Of WebSocket; there is no other (RFC 6455, section 4.1).
const VERSION: &str = "13";
/// Bytes of a WebSocket key (RFC 6455, section 4.1).
const KEY_LENGTH: usize = 16;
/// Lengths of a session's ID: at least 128 bits in any encoding that fits an address.
const ID_LENGTH: std::ops::RangeInclusive<usize> = 22..=64;

/// How often the login behind a link is noted to be in use.
const LOGIN_USE: Duration = Duration::from_secs(600);

/// Messages that somebody who may open links can cause.
static FAILURES: Kind = Kind::new();

/// Whether a request wants to become a WebSocket.
pub(super) fn is_upgrade(headers: &HeaderMap) -> bool {
    lists(headers, &header::CONNECTION, "upgrade") && lists(headers, &header::UPGRADE, "websocket")
}

fn lists(headers: &HeaderMap, name: &header::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|item| item.trim().eq_ignore_ascii_case(token))
}

/// A link that may be.
struct Admission {
    slot: Arc<Slot>,
    /// The ID of a `v=1` link.
    session: Option<String>,
    /// Whether it may take over from a link that lives.
    takeover: bool,
    identity: Identity,
}

/// Opens a WebSocket, as a link or to say why it is refused.
pub(super) fn upgrade(
    server: &Arc<Server>,
    client: &Arc<Client>,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let accept = match accept_key(&request) {
        Ok(accept) => accept,
        Err(bad) => return bad.response(),
    };
    let connection = hyper::upgrade::on(&mut request);
    let response = switch_protocols(&accept, request.headers());
    let (server, client) = (Arc::clone(server), Arc::clone(client));
    let identity = server.auth.identify(&client, request.headers());
    let who = server.who(&client, request.headers(), identity.as_ref());
    let applicant = Applicant::of(who, request.uri());
    let entry = enter(&server, &client, identity, &request);
    let occupied = client.occupy();
    let runtime = match &entry {
        Ok((Ok(admission), _)) => server.registry.runtime_of(&admission.slot),
        _ => Handle::current(),
    };
    runtime.spawn(async move {
        let (_client, _occupied) = (client, occupied);
        let (admission, _place) = match entry {
            Ok((admission, place)) => (admission, Some(place)),
            Err(refusal) => (Err(refusal), None),
        };
        keep(&server, connection, admission, applicant).await;
    });
    response
}

/// Who wants a link, and which, as they put it: for the audit trail.
struct Applicant {
    who: Who,
    configuration: Option<String>,
    session: Option<String>,
}

impl Applicant {
    fn of(who: Who, uri: &Uri) -> Self {
        let configuration = match &path::segments(uri.path())[..] {
            [nbd, name] if nbd == "nbd" => Some(name.clone()),
            _ => None,
        };
        Self {
            who,
            configuration,
            session: session_of(uri.query().unwrap_or_default()).ok().flatten(),
        }
    }

    /// Counts and tells of a refusal.
    fn note_refusal(self, server: &Server, refusal: &Refusal) {
        server.metrics.refused(refusal.code);
        if let Some(limit) = refusal.limit {
            server.metrics.reached(limit);
        }
        server.audit.tell(Event::LinkRefused {
            who: self.who,
            configuration: self.configuration,
            session: self.session,
            code: refusal.code,
            reason: refusal.reason.clone(),
        });
    }
}

/// A handshake that is none (RFC 6455, section 4.2).
#[derive(Debug)]
enum BadHandshake {
    Http,
    Method,
    Version,
    Key,
}

impl BadHandshake {
    fn response(&self) -> Response<Body> {
        let bad = |sentence| http::error(StatusCode::BAD_REQUEST, sentence);
        match self {
            Self::Http => bad("a WebSocket is opened by HTTP/1.1"),
            Self::Method => bad("a WebSocket is opened with GET"),
            Self::Key => bad("the Sec-WebSocket-Key is not 16 bytes in base64"),
            Self::Version => {
                let sentence = "only version 13 of WebSocket is spoken here";
                let mut response = http::error(StatusCode::UPGRADE_REQUIRED, sentence);
                let version = HeaderValue::from_static(VERSION);
                response
                    .headers_mut()
                    .insert(header::SEC_WEBSOCKET_VERSION, version);
                response
            }
        }
    }
}

/// The value of `Sec-WebSocket-Accept`.
fn accept_key<B>(request: &Request<B>) -> Result<String, BadHandshake> {
    let header = |name| {
        request
            .headers()
            .get(name)
            .map(HeaderValue::as_bytes)
            .unwrap_or_default()
    };
    // hyper would announce the change of protocol and then end the connection.
    if request.version() < Version::HTTP_11 {
        return Err(BadHandshake::Http);
    }
    if request.method() != Method::GET {
        return Err(BadHandshake::Method);
    }
    if header(header::SEC_WEBSOCKET_VERSION) != VERSION.as_bytes() {
        return Err(BadHandshake::Version);
    }
    let key = header(header::SEC_WEBSOCKET_KEY);
    if STANDARD.decode(key).map_or(0, |bytes| bytes.len()) != KEY_LENGTH {
        return Err(BadHandshake::Key);
    }
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key);
    hash.update(ACCEPT_GUID);
    Ok(STANDARD.encode(hash.finish()))
}

fn switch_protocols(accept: &str, request: &HeaderMap) -> Response<Body> {
    let mut response = http::empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::try_from(accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    // Browsers give up on a server that takes none of their subprotocols, and then see no close code either.
    let offered = request
        .get(header::SEC_WEBSOCKET_PROTOCOL)
        .and_then(|value| value.to_str().ok());
    let first = offered
        .and_then(|list| list.split(',').next())
        .map(str::trim);
    if let Some(Ok(protocol)) = first.map(HeaderValue::try_from) {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    response
}

/// Somebody whom we know takes one of the places for links, also for as long as it takes to refuse them.
fn enter(
    server: &Server,
    client: &Client,
    identity: Option<Identity>,
    request: &Request<Incoming>,
) -> Result<(Result<Admission, Refusal>, Place), Refusal> {
    if let Some(reached) = client.too_late {
        return Err(Refusal::too_many(reached));
    }
    let identity = identity.ok_or_else(Refusal::not_allowed)?;
    let place = (server.links.take(&identity.user)).map_err(Refusal::too_many)?;
    Ok((admit(server, identity, request.uri()), place))
}

fn admit(server: &Server, identity: Identity, uri: &Uri) -> Result<Admission, Refusal> {
    let slot = Arc::clone(find_slot(server, &identity.user, uri.path())?);
    let query = uri.query().unwrap_or_default();
    let session = session_of(query)?;
    Ok(Admission {
        slot,
        session,
        takeover: path::parameter(query, "takeover").as_deref() == Some("1"),
        identity,
    })
}

fn find_slot<'a>(server: &'a Server, user: &str, path: &str) -> Result<&'a Arc<Slot>, Refusal> {
    let segments = path::segments(path);
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let registry = &server.registry;
    let named = |name: &str| {
        registry
            .find(user, name)
            .ok_or_else(|| Refusal::no_configuration(registry.no_such(user, name)))
    };
    match segments[..] {
        [] => registry.default(user).ok_or_else(|| {
            Refusal::no_configuration(
                "no configuration is marked \"default\": true; name one, as /nbd/NAME".to_owned(),
            )
        }),
        ["vm", "0", "0"] => named("0"),
        ["nbd", name] => named(name),
        _ => Err(Refusal::no_configuration(
            "there is no link at this path; use /nbd/NAME".to_owned(),
        )),
    }
}

/// The ID of a `v=1` link; None for a plain one.
fn session_of(query: &str) -> Result<Option<String>, Refusal> {
    let value = |key| path::parameter(query, key);
    let is_id = |id: &String| {
        ID_LENGTH.contains(&id.len())
            && id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    match (value("v").as_deref(), value("session")) {
        (None, _) => Ok(None),
        (Some("1"), Some(id)) if is_id(&id) => Ok(Some(id)),
        (Some("1"), _) => Err(Refusal::malformed(
            "v=1 needs session=ID, 128 random bits in hexadecimal",
        )),
        (Some(_), _) => Err(Refusal::malformed(
            "only v=1 is spoken here; without v the link is a plain one",
        )),
    }
}

async fn keep(
    server: &Server,
    connection: OnUpgrade,
    admission: Result<Admission, Refusal>,
    applicant: Applicant,
) {
    // Fails when the client goes before it is answered.
    let Ok(connection) = connection.await else {
        return;
    };
    let connection = TokioIo::new(connection);
    let Admission {
        slot,
        session,
        takeover,
        identity,
    } = match admission {
        Ok(admission) => admission,
        Err(refusal) => {
            applicant.note_refusal(server, &refusal);
            let Refusal { code, reason, .. } = refusal;
            return websocket::accept(connection, 0).close(code, &reason).await;
        }
    };
    let max_request = slot
        .configuration()
        .max_request
        .unwrap_or(Limits::SERVE.max_request);
    let kind = if session.is_some() {
        LinkKind::V1
    } else {
        LinkKind::Plain
    };
    let socket = websocket::accept(connection, max_request);
    let peer = Peer {
        user: identity.user.clone(),
        from: applicant.who.from.clone(),
        session,
    };
    let (link, mut keeper) = websocket::link(socket, kind, peer, slot.configuration().silence);
    let commands = link.commands.clone();
    if let Err(refusal) = server.registry.offer(&slot, takeover, link).await {
        applicant.note_refusal(server, &refusal);
        let Refusal { code, reason, .. } = refusal;
        if code == refusal::FAILED {
            // Not the client's fault, so whoever looks after this machine wants to know; whole, for a close frame cuts.
            FAILURES.error(format_args!(
                "configuration {:?}: {reason}",
                slot.configuration().name
            ));
        }
        let _ = commands.send(LinkCommand::Close { code, reason });
    }
    // A link that nobody has commands for any more closes.
    let weak = commands.downgrade();
    drop(commands);
    tokio::select! {
        _ = &mut keeper => return,
        () = server.auth.revoked(&identity) => {}
        () = keep_login(server, &identity) => {}
    }
    if let Some(commands) = weak.upgrade() {
        let Refusal { code, reason, .. } = Refusal::signed_out();
        let _ = commands.send(LinkCommand::Cut { code, reason });
    }
    let _ = keeper.await;
}

/// A page whose image is served is in use, even if it asks nothing else for days.
async fn keep_login(server: &Server, identity: &Identity) {
    let mut interval = interval(LOGIN_USE);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        server.auth.touch(identity).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_key_is_that_of_the_rfc() {
        let request = Request::builder()
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==")
            .body(())
            .unwrap();
        assert_eq!(
            accept_key(&request).unwrap(),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[test]
    fn an_upgrade_by_http_1_0_is_refused() {
        let request = Request::builder()
            .version(Version::HTTP_10)
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==")
            .body(())
            .unwrap();
        let refusal = accept_key(&request).unwrap_err();
        assert_eq!(refusal.response().status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn a_link_is_version_1_when_it_says_so_and_carries_an_id() {
        let id = "0123456789abcdef0123456789abcdef";
        assert_eq!(session_of(""), Ok(None));
        assert_eq!(session_of(&format!("session={id}")), Ok(None));
        assert_eq!(
            session_of(&format!("session={id}&v=1")),
            Ok(Some(id.to_owned()))
        );
        for query in [
            "v=1",
            "v=1&session=",
            "v=1&session=short",
            "v=2&session=0123456789abcdef0123456789abcdef",
            "v=",
        ] {
            assert_eq!(
                session_of(query).map_err(|refusal| refusal.code),
                Err(1008),
                "{query}"
            );
        }
        assert!(session_of(&format!("v=1&session={}", "x".repeat(65))).is_err());
    }
}
