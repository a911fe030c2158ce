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

/// What stands for a configuration's name in a route.
const NAME: &str = "{name}";
/// Every path beside static files and links, and the method that it takes; `GET` stands for HEAD, too. What is not here
/// is nowhere. docs/openapi.yaml describes them.
const ROUTES: [(&str, &str); 8] = [
    ("GET", "/healthz"),
    ("GET", "/metrics"),
    ("POST", "/api/v1/login"),
    ("POST", "/api/v1/logout"),
    ("GET", "/api/v1/configurations"),
    ("GET", "/api/v1/configurations/{name}"),
    ("POST", "/api/v1/configurations/{name}/eject"),
    ("GET", "/api/v1/events"),
];

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
        let mut response = server.too_many(reached);
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
    let allowed = allowed_method(&path);
    if let Some(allowed) = allowed
        && method != allowed
    {
        return http::wrong_method(allowed);
    }
    match path[..] {
        ["api", ..] | ["metrics"] if is_cross_site(&request.headers) => {
            http::error(StatusCode::FORBIDDEN, CROSS_SITE)
        }
        ["api", ..] if method == Method::POST && !is_json(&request.headers) => {
            http::error(StatusCode::UNSUPPORTED_MEDIA_TYPE, NOT_JSON)
        }
        ["healthz"] => http::text(StatusCode::OK, "ok\n"),
        ["api", "v1", "login"] => api::log_in(server, client, &request.headers, body).await,
        ["api", "v1", "logout"] => api::log_out(server, client, &request.headers).await,
        ["api", "v1", ..] | ["metrics"] => {
            let Some(identity) = server.auth.identify(client, &request.headers) else {
                return api::unknown(server);
            };
            let mut response = match path[..] {
                _ if allowed.is_none() => api::nothing(),
                ["metrics"] => {
                    (server.metrics).render(&server.registry, &identity.user, &server.audit)
                }
                _ => {
                    let who = server.who(client, &request.headers, Some(&identity));
                    api::answer(server, &identity, who, &path[2..], body).await
                }
            };
            if let Some(cookie) = (server.auth.renew(client, &request.headers, &identity)).await {
                response.headers_mut().insert(header::SET_COOKIE, cookie);
            }
            response
        }
        _ => match assets::get(request.uri.path(), &request.headers) {
            Some(asset) if method == Method::GET => asset,
            Some(_) => http::wrong_method("GET"),
            None => http::error(StatusCode::NOT_FOUND, "there is nothing at this path"),
        },
    }
}

/// The one method that a path of [`ROUTES`] takes.
fn allowed_method(path: &[&str]) -> Option<&'static str> {
    let is_at = |route: &str| {
        let parts = route.split('/').skip(1);
        parts.clone().count() == path.len()
            && parts
                .zip(path)
                .all(|(part, segment)| part == NAME || part == *segment)
    };
    ROUTES
        .iter()
        .find_map(|(method, route)| is_at(route).then_some(*method))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// `  /path:` and `    method:` of docs/openapi.yaml.
    fn documented() -> Vec<(String, String)> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.yaml");
        let text = std::fs::read_to_string(path).unwrap();
        let mut route = String::new();
        let mut found = Vec::new();
        for line in text.lines() {
            let indent = line.len() - line.trim_start().len();
            match (indent, line.trim().trim_end_matches(':')) {
                (2, path) if path.starts_with('/') => route = path.to_owned(),
                (4, method @ ("get" | "post" | "put" | "delete" | "patch")) => {
                    found.push((method.to_uppercase(), route.clone()));
                }
                _ => {}
            }
        }
        found
    }

    #[test]
    fn every_route_is_described_in_openapi_and_nothing_is_that_is_not_there() {
        let mut described = documented();
        described.retain(|(_, route)| {
            let is_static = assets::get(route, &HeaderMap::new()).is_some();
            !is_static && !["/nbd/{name}", "/vm/0/0"].contains(&route.as_str())
        });
        described.sort();
        let mut routes = ROUTES.map(|(method, route)| (method.to_owned(), route.to_owned()));
        routes.sort();
        assert_eq!(described, routes);
    }
}
