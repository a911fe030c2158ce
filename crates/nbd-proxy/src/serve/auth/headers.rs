//! Headers that tell who it is, taken apart.

use hyper::{
    HeaderMap,
    header::{self, HeaderName},
};

/// The value of a header that may be there once only.
pub(super) fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values
        .next()
        .is_none()
        .then(|| value.to_str().ok())
        .flatten()
}

pub(super) fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

pub(super) fn cookies<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(move |pair| pair.trim().split_once('=').filter(|(key, _)| *key == name))
        .map(|(_, value)| value)
}

/// The subprotocol of a WebSocket request that offers exactly one.
pub(super) fn sole_subprotocol(headers: &HeaderMap) -> Option<&str> {
    single(headers, &header::SEC_WEBSOCKET_PROTOCOL)
        .map(str::trim)
        .filter(|value| !value.contains(','))
}
