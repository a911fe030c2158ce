//! HTTP/1.1 on a socket: connections, bodies, and the headers that every answer carries.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full, Limited, combinators::BoxBody};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Frame, Incoming, SizeHint},
    header::{self, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

use super::{api::ErrorView, auth::Host, patience::Patient, seats::Occupied};

/// The body of an answer.
pub(super) type Body = BoxBody<Bytes, Infallible>;

/// How long a client may take to send the head of a request; also ends idle connections.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest head of a request, bytes.
const HEAD_LIMIT: usize = 16 << 10;
/// The longest body of a request, bytes. Bodies are small JSON objects.
const BODY_LIMIT: usize = 4 << 10;

/// Answers the requests of one connection until it closes or is upgraded. What goes wrong with a connection is the
/// client's affair alone.
pub(super) async fn connection<S, F, A>(stream: S, answer: F)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> A,
    A: Future<Output = Response<Body>>,
{
    let service = service_fn(|request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_LIMIT)
        .serve_connection(TokioIo::new(Patient::new(stream)), service)
        .with_upgrades();
    let _ = connection.await;
}

/// An answer without a body.
pub(super) fn empty(status: StatusCode) -> Response<Body> {
    respond(status, Empty::new().boxed())
}

/// An answer with a body that is there already.
pub(super) fn full(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    respond(status, Full::new(body.into()).boxed())
}

/// An answer with any body.
pub(super) fn respond(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

/// Keeps the connection's seat until the answer has been handed to it.
pub(super) fn occupied(response: Response<Body>, occupied: Occupied) -> Response<Body> {
    response.map(|body| {
        Held {
            body,
            _occupied: occupied,
        }
        .boxed()
    })
}

/// A body on whose connection something goes on until all of it was taken.
struct Held {
    body: Body,
    _occupied: Occupied,
}

impl hyper::body::Body for Held {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer in plain text.
pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    typed("text/plain; charset=utf-8", full(status, body))
}

/// An answer in JSON.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(body) => typed("application/json", full(status, body)),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// A refusal, with a sentence that names the cause and the remedy.
pub(super) fn error(status: StatusCode, sentence: impl Into<String>) -> Response<Body> {
    json(
        status,
        &ErrorView {
            error: sentence.into(),
            ..ErrorView::default()
        },
    )
}

/// The path is right, the method is not.
pub(super) fn wrong_method(allowed: &'static str) -> Response<Body> {
    let mut response = error(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("this path takes {allowed} only"),
    );
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

/// Nobody that we know.
pub(super) fn unauthorized(error: &ErrorView) -> Response<Body> {
    let mut response = json(StatusCode::UNAUTHORIZED, error);
    let challenge = HeaderValue::from_static("Bearer");
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, challenge);
    response
}

/// Too much, or too often; `pause` is how long to wait (RFC 9110, section 10.2.3).
pub(super) fn too_many(sentence: String, pause: Duration) -> Response<Body> {
    let mut response = error(StatusCode::TOO_MANY_REQUESTS, sentence);
    let seconds = pause.as_secs() + u64::from(pause.subsec_nanos() > 0);
    response
        .headers_mut()
        .insert(header::RETRY_AFTER, seconds.max(1).into());
    response
}

/// Names the type of an answer's body.
pub(super) fn typed(content_type: &'static str, mut response: Response<Body>) -> Response<Body> {
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Reads a small JSON body; an empty one stands for `T::default()`.
pub(super) async fn read_json<T: DeserializeOwned + Default>(
    body: Incoming,
) -> Result<T, Response<Body>> {
    let body = timeout(BODY_TIMEOUT, Limited::new(body, BODY_LIMIT).collect()).await;
    let body = body.map_err(|_| {
        error(
            StatusCode::REQUEST_TIMEOUT,
            "the request's body did not come in time",
        )
    })?;
    let body = body.map_err(|cause| {
        let sentence =
            format!("the request's body can't be read ({cause}); send at most {BODY_LIMIT} bytes");
        error(StatusCode::PAYLOAD_TOO_LARGE, sentence)
    })?;
    let body = body.to_bytes();
    if body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(&body).map_err(|cause| {
        error(
            StatusCode::BAD_REQUEST,
            format!("the request's body is not the JSON that belongs here: {cause}"),
        )
    })
}

/// Adds what every answer carries: what the page may do, and that nobody else may frame, sniff, or keep it. `host` is
/// the checked Host of the request: not every WebKit takes `'self'` for WebSockets.
pub(super) fn secure(headers: &mut HeaderMap, host: Option<&Host>) {
    let sockets = host
        .map(|host| format!(" ws://{host} wss://{host}"))
        .unwrap_or_default();
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'{sockets}; \
         worker-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    );
    if let Ok(policy) = HeaderValue::try_from(policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
        (
            HeaderName::from_static("permissions-policy"),
            "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
}
