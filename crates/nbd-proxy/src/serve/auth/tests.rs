use hyper::header::{HeaderName, HeaderValue};

use super::*;
use crate::{accounts::Accounts as _, config::Access};

async fn client(tls: bool) -> Client {
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(1));
    let peer = Peer::Network("192.0.2.1:1000".parse().unwrap());
    Client {
        tls,
        ..Client::new(peer, places.acquire_owned().await.unwrap())
    }
}

fn auth(config: &ServeConfig) -> Auth {
    Auth::new(8000, config, Err(anyhow::anyhow!("a test"))).unwrap()
}

async fn log_in(
    auth: &Auth,
    client: &Client,
    headers: &HeaderMap,
    token: &str,
) -> Option<HeaderValue> {
    let credentials = Credentials::Token(token.to_owned());
    let login = auth.log_in(client, headers, credentials).await;
    login.ok().map(|(_, cookie)| cookie)
}

fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()))
        .collect()
}

fn user(auth: &Auth, client: &Client, name: HeaderName, value: &str) -> Option<String> {
    auth.identify(client, &headers(&[(name, value)]))
        .map(|identity| identity.user)
}

/// The pair that a browser sends back.
fn pair(set_cookie: &HeaderValue) -> String {
    let text = set_cookie.to_str().unwrap();
    text.split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn the_token_and_the_cookie_it_was_traded_for_tell_who_it_is() {
    let auth = auth(&ServeConfig::default());
    let client = client(false).await;
    let token = auth.token().unwrap().reveal();
    let login = log_in(&auth, &client, &HeaderMap::new(), token).await;
    let cookie = pair(&login.unwrap());
    for (name, value) in [
        (header::COOKIE, format!("theme=dark; {cookie}")),
        (header::AUTHORIZATION, format!("Bearer {token}")),
        (header::AUTHORIZATION, format!("bearer {token}")),
        (header::SEC_WEBSOCKET_PROTOCOL, token.to_owned()),
    ] {
        let found = user(&auth, &client, name, &value);
        assert_eq!(found.as_deref(), Some(LOCAL), "{value}");
    }
}

#[tokio::test]
async fn anything_else_tells_nothing() {
    let auth = auth(&ServeConfig::default());
    let client = client(false).await;
    let token = auth.token().unwrap().reveal();
    let short = &token[1..];
    let login = log_in(&auth, &client, &HeaderMap::new(), token).await;
    let cookie = pair(&login.unwrap());
    for (name, value) in [
        (header::COOKIE, format!("nbd-proxy-8000={token}")),
        (header::COOKIE, cookie.replace("8000", "8001")),
        (header::AUTHORIZATION, format!("Basic {token}")),
        (header::AUTHORIZATION, token.to_owned()),
        (header::AUTHORIZATION, format!("Bearer {short}")),
        (header::SEC_WEBSOCKET_PROTOCOL, format!("{token}, other")),
        (header::SEC_WEBSOCKET_PROTOCOL, short.to_owned()),
    ] {
        assert_eq!(user(&auth, &client, name, &value), None, "{value}");
    }
    assert!(auth.identify(&client, &HeaderMap::new()).is_none());
    for wrong in ["", short] {
        let login = log_in(&auth, &client, &HeaderMap::new(), wrong).await;
        assert!(login.is_none());
    }
}

#[tokio::test]
async fn a_proxy_that_speaks_tls_makes_the_cookie_a_secure_one() {
    let behind = auth(&ServeConfig {
        tls_terminated: true,
        ..ServeConfig::default()
    });
    let alone = auth(&ServeConfig::default());
    let proto = |value| headers(&[(HeaderName::from_static("x-forwarded-proto"), value)]);
    for (auth, tls, headers, secure) in [
        (&alone, false, HeaderMap::new(), false),
        (&alone, false, proto("https"), false),
        (&alone, true, HeaderMap::new(), true),
        (&behind, false, HeaderMap::new(), true),
        (&behind, false, proto("https"), true),
        (&behind, false, proto("http"), false),
    ] {
        let client = client(tls).await;
        let login = log_in(auth, &client, &headers, auth.token().unwrap().reveal());
        let cookie = login.await.unwrap();
        assert_eq!(cookie.to_str().unwrap().contains("Secure"), secure);
    }
}

#[tokio::test]
async fn a_certificate_tells_who_it_is_where_nothing_else_does() {
    let auth = auth(&ServeConfig::default());
    let shows = async |name: &str| Client {
        certificate: Some(name.to_owned()),
        ..client(true).await
    };
    let alice = shows("alice").await;
    let identity = auth.identify(&alice, &HeaderMap::new()).unwrap();
    assert_eq!(identity.user, "alice");
    let token = format!("Bearer {}", auth.token().unwrap().reveal());
    let found = user(&auth, &alice, header::AUTHORIZATION, &token);
    assert_eq!(found.as_deref(), Some(LOCAL));
    let found = user(&auth, &alice, header::AUTHORIZATION, "Bearer wrong");
    assert_eq!(found.as_deref(), Some("alice"));
}

#[tokio::test]
async fn a_certificate_for_the_name_local_does_not_make_its_holder_local() {
    let auth = auth(&ServeConfig::default());
    for name in [LOCAL, "*", "", " eva"] {
        let client = Client {
            certificate: Some(name.to_owned()),
            ..client(true).await
        };
        assert!(
            auth.identify(&client, &HeaderMap::new()).is_none(),
            "{name}"
        );
    }
}

/// Some of many attempts at once find no place to wait for their hash. None would, if nobody cost nothing.
#[tokio::test]
async fn whoever_is_nobody_costs_a_hash_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users.json");
    Users::default().save(&path).unwrap();
    let config = ServeConfig {
        access: Access {
            users: Some(path),
            ..Access::default()
        },
        ..ServeConfig::default()
    };
    let auth = std::sync::Arc::new(auth(&config));
    let attempts: Vec<_> = (0..64)
        .map(|number| {
            let auth = std::sync::Arc::clone(&auth);
            tokio::spawn(async move {
                let client = Client {
                    peer: Peer::Network(([192, 0, 2, number], 1000).into()),
                    ..client(false).await
                };
                let credentials = Credentials::Password {
                    user: format!("user{number}"),
                    password: "wrong".to_owned(),
                };
                auth.log_in(&client, &HeaderMap::new(), credentials).await
            })
        })
        .collect();
    let mut busy = 0;
    for attempt in attempts {
        match attempt.await.unwrap().unwrap_err() {
            LoginError::Busy => busy += 1,
            error => assert!(matches!(error, LoginError::WrongPassword), "{error}"),
        }
    }
    assert!(busy > 0);
}
