//! The page and nbd.js, carried inside the program. They hold no secret, so nobody is asked who they are.

use bytes::Bytes;
use hyper::{
    HeaderMap, Response, StatusCode,
    header::{self, HeaderValue},
};

use super::http::{self, Body};

/// One file of `web/`.
struct Asset {
    path: &'static str,
    content_type: &'static str,
    etag: &'static str,
    body: &'static [u8],
}

/// Sorted by path; made by build.rs.
static ASSETS: &[Asset] = include!(concat!(env!("OUT_DIR"), "/assets.rs"));

/// The file at `path`, or None. A browser asks each time and is told 304 while its copy is good, so that a new version
/// of the program is never mixed with scripts of an older one.
pub(super) fn get(path: &str, headers: &HeaderMap) -> Option<Response<Body>> {
    let path = if path == "/" { "/index.html" } else { path };
    let index = ASSETS.binary_search_by(|asset| asset.path.cmp(path)).ok()?;
    let asset = ASSETS.get(index)?;
    let mut response = if is_current(headers, asset.etag) {
        http::empty(StatusCode::NOT_MODIFIED)
    } else {
        let mut response = http::full(StatusCode::OK, Bytes::from_static(asset.body));
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(asset.content_type),
        );
        response
    };
    response
        .headers_mut()
        .insert(header::ETAG, HeaderValue::from_static(asset.etag));
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Some(response)
}

/// RFC 9110, section 13.1.2: weak comparison with each tag of the list.
fn is_current(headers: &HeaderMap, etag: &str) -> bool {
    headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|tag| tag.trim())
        .any(|tag| tag == "*" || tag.trim_start_matches("W/") == etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_holds_the_page_and_both_forms_of_the_library() {
        assert!(ASSETS.is_sorted_by_key(|asset| asset.path));
        for path in ["/", "/js/nbd.js", "/nbd/nbd.js"] {
            assert_eq!(
                get(path, &HeaderMap::new()).map(|response| response.status()),
                Some(StatusCode::OK),
                "{path}"
            );
        }
        assert!(get("/tests/", &HeaderMap::new()).is_none());
    }

    #[test]
    fn a_browser_whose_copy_is_good_is_told_so() {
        let etag = ASSETS[0].etag;
        let mut headers = HeaderMap::new();
        headers.insert(
            header::IF_NONE_MATCH,
            HeaderValue::from_str(&format!("\"x\", W/{etag}")).unwrap(),
        );
        assert_eq!(
            get(ASSETS[0].path, &headers).unwrap().status(),
            StatusCode::NOT_MODIFIED
        );
        headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static("\"x\""));
        assert_eq!(
            get(ASSETS[0].path, &headers).unwrap().status(),
            StatusCode::OK
        );
    }
}
