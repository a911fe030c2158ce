//! What is answered to whom.

use serde_json::json;

use crate::harness::Server;

#[test]
fn the_page_and_the_library_need_no_token_and_allow_nothing_foreign() {
    let server = Server::start();
    for (path, content_type) in [
        ("/", "text/html; charset=utf-8"),
        ("/js/nbd.js", "text/javascript; charset=utf-8"),
        ("/nbd/nbd.js", "text/javascript; charset=utf-8"),
    ] {
        let response = server.request("GET", path, &[], "");
        assert_eq!(response.status, 200, "{path}");
        assert_eq!(response.header("content-type"), Some(content_type));
        assert_eq!(response.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(response.header("referrer-policy"), Some("no-referrer"));
        assert_eq!(
            response.header("cross-origin-opener-policy"),
            Some("same-origin")
        );
        let policy = response.header("content-security-policy").unwrap();
        for part in [
            "default-src 'none'",
            "script-src 'self'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
        ] {
            assert!(policy.contains(part), "{policy}");
        }
        assert!(
            policy.contains(&format!("ws://{}", server.address)),
            "{policy}"
        );
        assert!(!policy.contains("unsafe"), "{policy}");
        let etag = response.header("etag").unwrap();
        assert_eq!(
            server
                .request("GET", path, &[&format!("If-None-Match: {etag}")], "")
                .status,
            304
        );
    }
    assert_eq!(server.request("GET", "/healthz", &[], "").text(), "ok\n");
    assert_eq!(server.request("GET", "/tests/", &[], "").status, 404);
    assert_eq!(server.request("HEAD", "/", &[], "").body, b"");
}

#[test]
fn without_the_token_nothing_is_told() {
    let server = Server::start();
    for path in [
        "/api/v1/configurations",
        "/api/v1/configurations/0",
        "/api/v1/events",
        "/api/v1/nothing",
        "/metrics",
    ] {
        for authorization in [
            "X: y",
            "Authorization: Bearer wrong",
            "Cookie: nbd-proxy-8000=wrong",
        ] {
            let response = server.request("GET", path, &[authorization], "");
            assert_eq!(response.status, 401, "{path} {authorization}");
            assert!(
                response.json()["error"]
                    .as_str()
                    .unwrap()
                    .contains("address")
            );
        }
    }
    assert_eq!(
        server
            .request("POST", "/api/v1/configurations/0/eject", &[], "{}")
            .status,
        401
    );
}

#[test]
fn the_token_is_traded_for_a_cookie() {
    let server = Server::start();
    let body = json!({ "token": server.token }).to_string();
    let response = server.request("POST", "/api/v1/login", &[], &body);
    assert_eq!(response.status, 204);
    let cookie = response.header("set-cookie").unwrap();
    assert!(
        cookie.starts_with(&format!("nbd-proxy-{}=", server.address.port())),
        "{cookie}"
    );
    assert!(
        cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"),
        "{cookie}"
    );
    assert!(!cookie.contains(&server.token));
    let cookie = format!("Cookie: {}", cookie.split(';').next().unwrap());
    assert_eq!(
        server
            .request("GET", "/api/v1/configurations", &[&cookie], "")
            .status,
        200
    );
}

#[test]
fn a_wrong_token_gives_no_cookie() {
    let server = Server::start();
    for (body, status) in [
        (json!({"token": "wrong"}).to_string(), 401),
        (json!({"token": ""}).to_string(), 401),
        (String::new(), 400),
        (
            json!({"token": server.token, "user": "eva"}).to_string(),
            400,
        ),
        ("{".to_owned(), 400),
        (json!({"token": server.token, "more": 1}).to_string(), 400),
        ("x".repeat(5000), 413),
    ] {
        let response = server.request("POST", "/api/v1/login", &[], &body);
        assert_eq!(response.status, status, "{body}");
        assert_eq!(response.header("set-cookie"), None);
        assert!(!response.json()["error"].as_str().unwrap().is_empty());
    }
}

#[test]
fn a_rebound_name_gets_403_for_everything() {
    let server = Server::start();
    let authorization = format!("Authorization: Bearer {}", server.token);
    for path in ["/", "/healthz", "/api/v1/configurations", "/nbd/0"] {
        for host in [
            "Host: evil.example",
            "Host: 127.0.0.1.evil.example:8000",
            "Host: ",
        ] {
            assert_eq!(
                server
                    .request("GET", path, &[host, &authorization], "")
                    .status,
                403,
                "{path} {host}"
            );
        }
    }
    for host in [
        "Host: localhost",
        "Host: 127.0.0.1:1",
        "Host: [::1]",
        "Host: 192.0.2.1",
    ] {
        assert_eq!(
            server.request("GET", "/", &[host], "").status,
            200,
            "{host}"
        );
    }
}

#[test]
fn a_foreign_page_gets_403_and_a_configured_one_does_not() {
    let server = Server::with(
        "\"hold\": 60",
        r#""hosts": ["disk.example"], "origins": ["https://panel.example"]"#,
    );
    let authorization = format!("Authorization: Bearer {}", server.token);
    let status = |headers: &[&str]| {
        let headers = [headers, &[authorization.as_str()]].concat();
        server
            .request("POST", "/api/v1/configurations/0/eject", &headers, "{}")
            .status
    };
    for origin in [
        "Origin: http://evil.example",
        "Origin: null",
        "Origin: https://panel.example.evil.example",
    ] {
        assert_eq!(status(&[origin]), 403, "{origin}");
    }
    for origin in [
        "Origin: http://127.0.0.1:1",
        "Origin: http://localhost",
        "Origin: https://panel.example",
    ] {
        assert_eq!(status(&[origin]), 200, "{origin}");
    }
    assert_eq!(
        status(&[
            "Host: disk.example:8443",
            "Origin: https://disk.example:8443"
        ]),
        200
    );
}

#[test]
fn configurations_are_shown_with_their_metadata_as_written() {
    let server = Server::start();
    let all = server.get("/api/v1/configurations").json();
    assert_eq!(all["configurations"][0]["name"], "0");
    assert_eq!(all["configurations"][0]["default"], true);
    assert_eq!(all["configurations"][0]["session"], json!(null));
    assert_eq!(all["configurations"][0]["media"], "disk");
    let response = server.get("/api/v1/configurations/lab%202");
    assert!(
        response.text().contains(r#""metadata":{"b":1,"a":2}"#),
        "{}",
        response.text()
    );
    assert_eq!(response.header("cache-control"), Some("no-store"));
}

#[test]
fn what_is_not_there_is_named_in_words() {
    let server = Server::start();
    for path in ["/api/v1/configurations/7", "/api/v1/nothing", "/nothing"] {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
    let error = server.get("/api/v1/configurations/7").json()["error"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        error.contains("\"7\"") && error.contains("\"lab 2\""),
        "{error}"
    );
    for path in [
        "/api/v1/configurations",
        "/api/v1/events",
        "/metrics",
        "/healthz",
        "/",
    ] {
        let response = server.post(path, "");
        assert_eq!(
            (response.status, response.header("allow")),
            (405, Some("GET")),
            "{path}"
        );
    }
    assert_eq!(server.get("/api/v1/login").status, 405);
}

#[test]
fn metrics_are_prometheus_text() {
    let server = Server::start();
    let _ = server.request("GET", "/api/v1/configurations", &[], "");
    let response = server.get("/metrics");
    assert!(
        response
            .header("content-type")
            .unwrap()
            .starts_with("application/openmetrics-text")
    );
    for line in [
        "nbd_proxy_http_requests_total{code=\"401\"} 1",
        "nbd_proxy_sessions{configuration=\"0\",state=\"attached\"} 0",
        "nbd_proxy_read_bytes_total{configuration=\"lab 2\"} 0",
        "# EOF",
    ] {
        assert!(
            response.text().lines().any(|found| found == line),
            "{line} in {}",
            response.text()
        );
    }
}
