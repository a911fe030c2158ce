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

const NOT_JSON: &str =
    "send Content-Type: application/json: other sites' forms can't, which is how they are known";
const CROSS_SITE: &str = "another site's page may not ask this";

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
        Peer::Network(_) => server.auth.check_address(client, uri, headers).map(Some),
    }
}

async fn dispatch(
    server: &Arc<Server>,
    client: &Arc<Client>,
    request: Request<Incoming>,
) -> Response<Body> {
    if links::is_upgrade(request.headers()) {
        if is_cross_site(request.headers()) {
            return http::error(StatusCode::FORBIDDEN, CROSS_SITE);
        }
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
        ["api", ..] | ["metrics"] if is_cross_site(&request.headers) => {
            http::error(StatusCode::FORBIDDEN, CROSS_SITE)
        }
        ["api", "v1", "login" | "logout"] if method != Method::POST => http::wrong_method("POST"),
        ["api", ..] if method == Method::POST && !is_json(&request.headers) => {
            http::error(StatusCode::UNSUPPORTED_MEDIA_TYPE, NOT_JSON)
        }
        ["api", "v1", "login"] => api::log_in(server, client, &request.headers, body).await,
        ["api", "v1", "logout"] => api::log_out(server, client, &request.headers).await,
        ["api", "v1", ..] | ["metrics"] => {
            let Some(identity) = server.auth.identify(client, &request.headers) else {
                return api::unknown(server);
            };
            let mut response = match path[..] {
                ["metrics"] => only_get(&method, || {
                    (server.metrics).render(&server.registry, &identity.user, &server.audit)
                }),
                _ => {
                    let who = server.who(client, &request.headers, Some(&identity));
                    api::answer(server, &identity, who, &method, &path[2..], body).await
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

/// Whether a browser says that a page of another site asks, which the check of the Origin doesn't see where a browser
/// sends none. A page whose Origin was checked may.
fn is_cross_site(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    !headers.contains_key(header::ORIGIN) && matches!(site, Some(b"cross-site" | b"same-site"))
}

/// Forms can send three types only, and this is none of them.
fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE);
    let essence = value.and_then(|value| value.to_str().ok()?.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

fn only_get(method: &Method, answer: impl FnOnce() -> Response<Body>) -> Response<Body> {
    match *method {
        Method::GET => answer(),
        _ => http::wrong_method("GET"),
    }
}
