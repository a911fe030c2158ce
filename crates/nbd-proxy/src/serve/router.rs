//! From a request to its answer: first where it came from, then who sent it, then what it wants.

use std::sync::Arc;

use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{self, HeaderValue},
};

use super::{
    Client, Peer, Server, api, assets,
    auth::{Host, WrongAddress},
    http::{self, Body},
    links, path,
};

/// To whom we don't know.
const UNKNOWN: &str = "not allowed: open the address that the server printed when it started, or send its token as \
                       Authorization: Bearer";

/// Answers one request.
pub(super) async fn answer(
    server: Arc<Server>,
    client: Arc<Client>,
    request: Request<Incoming>,
) -> Response<Body> {
    let occupied = client.occupy();
    let (mut response, host) =
        match check_address(&server, &client, request.uri(), request.headers()) {
            Ok(host) => (dispatch(&server, &client, request).await, host),
            Err(wrong) => (http::error(StatusCode::FORBIDDEN, wrong.to_string()), None),
        };
    server.metrics.answered(response.status());
    http::secure(response.headers_mut(), host.as_ref());
    match occupied {
        Some(occupied) => http::occupied(response, occupied),
        None => response,
    }
}

/// No page can reach the control socket.
fn check_address(
    server: &Server,
    client: &Client,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<Option<Host>, WrongAddress> {
    match client.peer {
        Peer::Control => Ok(None),
        Peer::Network(_) => server.auth.check_address(uri, headers).map(Some),
    }
}

async fn dispatch(
    server: &Arc<Server>,
    client: &Arc<Client>,
    request: Request<Incoming>,
) -> Response<Body> {
    if links::is_upgrade(request.headers()) {
        return links::upgrade(server, client, request);
    }
    if let Some(reached) = client.too_late {
        let mut response = server.too_many(reached.limit);
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
        return response;
    }
    let (request, body) = request.into_parts();
    let method = match request.method {
        Method::HEAD => Method::GET,
        other => other,
    };
    let segments = path::segments(request.uri.path());
    let path: Vec<&str> = segments.iter().map(String::as_str).collect();
    match path[..] {
        ["healthz"] => only_get(&method, || http::text(StatusCode::OK, "ok\n")),
        ["api", "v1", "login" | "logout"] if method != Method::POST => http::wrong_method("POST"),
        ["api", "v1", "login"] => api::log_in(server, client, &request.headers, body).await,
        ["api", "v1", "logout"] => api::log_out(server, client, &request.headers).await,
        ["api", "v1", ..] | ["metrics"] => {
            let Some(identity) = server.auth.identify(client, &request.headers) else {
                return http::unauthorized(UNKNOWN);
            };
            let mut response = match path[..] {
                ["metrics"] => only_get(&method, || {
                    server.metrics.render(&server.registry, &server.audit)
                }),
                _ => {
                    let who = client.who(Some(&identity.user));
                    api::answer(server, who, &method, &path[2..], body).await
                }
            };
            if let Some(cookie) = (server.auth.renew(client, &request.headers, &identity)).await {
                response.headers_mut().insert(header::SET_COOKIE, cookie);
            }
            response
        }
        _ => match assets::get(request.uri.path(), &request.headers) {
            Some(asset) => only_get(&method, || asset),
            None => http::error(StatusCode::NOT_FOUND, "there is nothing at this path"),
        },
    }
}

fn only_get(method: &Method, answer: impl FnOnce() -> Response<Body>) -> Response<Body> {
    match *method {
        Method::GET => answer(),
        _ => http::wrong_method("GET"),
    }
}
