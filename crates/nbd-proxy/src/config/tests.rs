use super::*;

fn load(text: &str, strictness: Strictness) -> Result<(Config, Vec<String>), ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, text).unwrap();
    Config::load(&path, strictness)
}

fn message(text: &str, strictness: Strictness) -> String {
    load(text, strictness).unwrap_err().to_string()
}

fn one(members: &str) -> String {
    format!("{{\"configurations\": {{\"0\": {{{members}}}}}}}")
}

const PROTOTYPE: &str = r#"{
    "timeout": 30,
    "configurations": {
        "0": { "nbd-device": "/dev/nbd0", "metadata": { "description": "Virtual media device" } },
        "1": { "nbd-device": "/dev/nbd1", "metadata": { "z": 1, "a": [true, null] } },
        "2": { "nbd-device": "/dev/nbd2" }
    }
}"#;

#[test]
fn a_file_of_the_prototype_means_what_it_meant() {
    for strictness in [Strictness::Strict, Strictness::Lenient] {
        let (config, warnings) = load(PROTOTYPE, strictness).unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(config.timeout, Duration::from_secs(30));
        assert_eq!(
            config.choose(Some("1")).unwrap().device,
            DeviceSpec::Kernel { index: Some(1) }
        );
        assert!(config.choose(None).is_err());
    }
}

#[test]
fn metadata_is_one_line_with_its_keys_in_order() {
    let (config, _) = load(PROTOTYPE, Strictness::Lenient).unwrap();
    assert_eq!(
        config.metadata().to_string(),
        r#"{"0":{"description":"Virtual media device"},"1":{"z":1,"a":[true,null]},"2":null}"#
    );
}

#[test]
fn a_link_may_be_silent_for_15_seconds_unless_told_otherwise() {
    for (members, seconds) in [("", 15), (r#", "silence": 60"#, 60)] {
        let text = one(&format!(r#""device": "auto"{members}"#));
        let (config, _) = load(&text, Strictness::Strict).unwrap();
        assert_eq!(
            config.configurations[0].silence,
            Duration::from_secs(seconds)
        );
    }
    let text = one(r#""device": "auto", "silence": 0"#);
    assert!(message(&text, Strictness::Strict).contains("at least 1"));
}

#[test]
fn a_sole_configuration_is_the_default() {
    let (config, _) = load(&one(r#""device": "auto""#), Strictness::Strict).unwrap();
    assert_eq!(config.choose(None).unwrap().name, "0");
}

#[test]
fn two_defaults_are_an_error() {
    let text = r#"{"configurations": {"a": {"device": "auto", "default": true}, "b": {"device": "auto", "default": true}}}"#;
    assert!(message(text, Strictness::Lenient).contains("both \"a\" and \"b\""));
}

#[test]
fn an_unknown_key_is_an_error_that_names_the_nearest_or_a_warning() {
    let text = one(r#""device": "auto", "hook-timout": 3"#);
    let strict = message(&text, Strictness::Strict);
    assert!(
        strict.contains("\"configurations.0.hook-timout\"") && strict.contains("\"hook-timeout\""),
        "{strict}"
    );
    let (config, warnings) = load(&text, Strictness::Lenient).unwrap();
    assert_eq!(config.configurations[0].hook_timeout, HOOK_TIMEOUT);
    assert!(warnings[0].contains("hook-timout"), "{warnings:?}");
}

#[test]
fn a_device_that_is_missing_for_a_misspelt_key_is_told_with_that_key() {
    for key in ["devise", "nbd-devic"] {
        let error = message(&one(&format!("\"{key}\": \"auto\"")), Strictness::Strict);
        assert!(
            error.contains(&format!("{key:?} may have been meant")),
            "{error}"
        );
    }
    assert!(message(&one(""), Strictness::Strict).contains("\"auto\" takes"));
}

#[test]
fn comments_pass_only_where_the_prototype_read_the_file() {
    let text = format!(
        "/* ours */ {}",
        one(r#""device": "auto", // the best"#).replace("the best}", "the best\n}")
    );
    assert!(load(&text, Strictness::Lenient).is_ok());
    assert!(message(&text, Strictness::Strict).contains("not JSON"));
}

#[test]
fn an_unknown_configuration_is_told_with_those_that_exist() {
    let (config, _) = load(PROTOTYPE, Strictness::Lenient).unwrap();
    let error = config.choose(Some("7")).unwrap_err().to_string();
    assert_eq!(
        error,
        r#"there is no configuration "7"; there is "0", "1", "2""#
    );
}

#[test]
fn every_form_of_device_is_understood() {
    let path = |text: &str| Some(PathBuf::from(text));
    for (text, device) in [
        ("/dev/nbd12", DeviceSpec::Kernel { index: Some(12) }),
        ("nbd:", DeviceSpec::Kernel { index: None }),
        ("loop:", DeviceSpec::Loop),
        ("fuse:", DeviceSpec::Fuse { path: None }),
        ("fuse:/a b", DeviceSpec::Fuse { path: path("/a b") }),
        ("unix:", DeviceSpec::Unix { path: None }),
        (
            "unix:/run/x:y.sock",
            DeviceSpec::Unix {
                path: path("/run/x:y.sock"),
            },
        ),
        (
            "tcp:127.0.0.1:10809",
            DeviceSpec::Tcp {
                address: ([127, 0, 0, 1], 10809).into(),
                tls: None,
            },
        ),
        (
            "tcp:[::1]:1",
            DeviceSpec::Tcp {
                address: "[::1]:1".parse().unwrap(),
                tls: None,
            },
        ),
        ("auto", DeviceSpec::Auto),
    ] {
        assert_eq!(parse_device(text).as_ref(), Ok(&device), "{text}");
        assert_eq!(device.to_string(), text);
    }
    for text in [
        "",
        "/dev/sda",
        "/dev/nbd",
        "/dev/nbd0p1",
        "/dev/nbd007",
        "nbd:0",
        "loop:x",
        "tcp:localhost",
        "udp:x",
    ] {
        assert!(parse_device(text).is_err(), "{text}");
    }
}

fn device_with_tls(device: &str, tls: &str) -> Result<DeviceSpec, String> {
    let members = format!(r#"{{"device": "{device}", "tls": {tls}}}"#);
    let value = serde_json::from_str(&members).unwrap();
    let mut reader = Reader::new(Strictness::Strict);
    Configuration::read(&mut reader, "0", &value).map(|configuration| configuration.device)
}

#[test]
fn tcp_beyond_loopback_needs_tls_and_an_authority_of_clients() {
    let half = r#"{"certificate": "/c", "key": "/k"}"#;
    let whole = r#"{"certificate": "/c", "key": "/k", "client-ca": "/a"}"#;
    for device in ["tcp:0.0.0.0:1", "tcp:192.0.2.1:1", "tcp:[::]:1"] {
        let device = &format!("{device}0809");
        let bare = secure(parse_device(device).unwrap(), None).unwrap_err();
        assert!(bare.0 == "device" && bare.1.contains("\"tls\""), "{bare:?}");
        let error = device_with_tls(device, half).unwrap_err();
        assert!(
            error.contains("configurations.0.tls") && error.contains("client-ca"),
            "{error}"
        );
        let Ok(DeviceSpec::Tcp {
            tls: Some(files), ..
        }) = device_with_tls(device, whole)
        else {
            panic!("{device} has no TLS");
        };
        assert_eq!(files.client_ca, Some("/a".into()));
    }
    for device in ["tcp:127.0.0.1:1", "tcp:[::1]:1", "tcp:[::ffff:127.0.0.1]:1"] {
        assert!(device_with_tls(device, half).is_ok(), "{device}");
    }
}

#[test]
fn tls_of_a_device_names_what_is_wrong() {
    for (device, tls, words) in [
        ("unix:", r#"{"certificate": "/c", "key": "/k"}"#, "tcp:"),
        ("tcp:127.0.0.1:1", r#"{"key": "/k"}"#, "tls.certificate"),
        ("tcp:127.0.0.1:1", r#"{"certificate": "/c"}"#, "tls.key"),
        (
            "tcp:127.0.0.1:1",
            r#"{"certificate": "/c", "key": "/k", "client_ca": "/a"}"#,
            "client-ca",
        ),
        ("tcp:127.0.0.1:1", "true", "not an object"),
    ] {
        let error = device_with_tls(device, tls).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_wrong_value_names_its_key() {
    for (members, key) in [
        (r#""device": 5"#, "configurations.0.device"),
        (r#""hold": 5"#, "configurations.0.device"),
        (
            r#""device": "auto", "nbd-device": "/dev/nbd0""#,
            "configurations.0.device",
        ),
        (r#""device": "auto", "hold": -1"#, "configurations.0.hold"),
        (
            r#""device": "auto", "hold": 1e300"#,
            "configurations.0.hold",
        ),
        (
            r#""device": "auto", "max-request": 1000"#,
            "configurations.0.max-request",
        ),
        (
            r#""device": "auto", "cache": "32M""#,
            "configurations.0.cache",
        ),
        (r#""device": "auto", "keep": true"#, "configurations.0.keep"),
        (
            r#""device": "auto", "keep": "ram""#,
            "configurations.0.keep",
        ),
        (
            r#""device": "auto", "keep": {"limit": 1}"#,
            "configurations.0.keep.in",
        ),
        (
            r#""device": "auto", "keep": {"in": "/k", "limit": "1G"}"#,
            "configurations.0.keep.limit",
        ),
        (
            r#""device": "auto", "keep": {"in": "/k", "limit": 0}"#,
            "configurations.0.keep.limit",
        ),
        (
            r#""device": "auto", "keep": {"in": "/k", "limt": 5}"#,
            "configurations.0.keep.limt",
        ),
        (
            r#""device": "auto", "attach": "magic""#,
            "configurations.0.attach",
        ),
        (
            r#""device": "auto", "media": "tape""#,
            "configurations.0.media",
        ),
        (
            r#""device": "auto", "metadata": 5"#,
            "configurations.0.metadata",
        ),
        (
            r#""device": "auto", "default": "yes""#,
            "configurations.0.default",
        ),
    ] {
        let error = message(&one(members), Strictness::Strict);
        assert!(error.contains(key), "{members}: {error}");
    }
    for text in [
        "[]",
        "{}",
        r#"{"configurations": []}"#,
        r#"{"configurations": {}}"#,
    ] {
        assert!(load(text, Strictness::Lenient).is_err(), "{text}");
    }
}

#[test]
fn a_copy_is_kept_where_the_file_says() {
    let keep = |value: &str| {
        let text = one(&format!(r#""device": "auto", "keep": {value}"#));
        load(&text, Strictness::Strict).unwrap().0.configurations[0]
            .keep
            .clone()
    };
    let memory = Keep {
        place: Place::Memory,
        limit: None,
    };
    let directory = Keep {
        place: Place::Directory("/var/lib/k".into()),
        limit: Some(1 << 30),
    };
    assert_eq!(keep(r#""off""#), None);
    assert_eq!(keep(r#""memory""#), Some(memory.clone()));
    assert_eq!(keep(r#"{"in": "memory"}"#), Some(memory));
    assert_eq!(
        keep(r#"{"in": "/var/lib/k", "limit": 1073741824}"#),
        Some(directory)
    );
}

#[test]
fn what_the_prototype_converted_is_converted() {
    let text = r#"{"timeout": "45", "configurations": {"0": {"nbd-device": "/dev/nbd0", "default": 1, "metadata": 5}}}"#;
    let (config, warnings) = load(text, Strictness::Lenient).unwrap();
    assert_eq!(config.timeout, Duration::from_secs(45));
    assert_eq!(config.metadata().to_string(), r#"{"0":null}"#);
    assert_eq!(warnings.len(), 1);
}

#[test]
fn the_section_serve_is_read_by_serve_alone() {
    let text = r#"{"configurations": {"0": {"device": "auto"}}, "serve": {"listen": ["127.0.0.1:8000"], "lisen": 1}}"#;
    assert!(message(text, Strictness::Strict).contains("serve.lisen"));
    let (config, warnings) = load(text, Strictness::Lenient).unwrap();
    assert!(config.serve.listen.is_empty() && warnings.is_empty());
}

#[test]
fn a_missing_file_is_named_with_the_remedy() {
    let error = Config::load(Path::new("/nonexistent/c.json"), Strictness::Strict)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/nonexistent/c.json") && error.contains("--config"),
        "{error}"
    );
}

#[test]
fn the_state_directory_is_an_absolute_path() {
    let with = |path: &str| {
        format!(
            r#"{{"configurations": {{"0": {{"device": "auto"}}}}, "serve": {{"state-dir": "{path}"}}}}"#
        )
    };
    let (config, _) = load(&with("/srv/state"), Strictness::Strict).unwrap();
    assert_eq!(config.serve.state_dir, Some("/srv/state".into()));
    let error = message(&with("state"), Strictness::Strict);
    assert!(error.contains("absolute"), "{error}");
}

#[test]
fn what_stands_twice_is_refused_by_serve_and_warned_of_where_the_prototype_took_it() {
    let text = r#"{"configurations": {"0": {"nbd-device": "/dev/nbd0"}, "0": {"nbd-device": "/dev/nbd1"}}}"#;
    let refusal = load(text, Strictness::Strict).unwrap_err().to_string();
    assert!(
        refusal.contains("\"configurations.0\" stands twice"),
        "{refusal}"
    );
    let (config, warnings) = load(text, Strictness::Lenient).unwrap();
    let device = &config.configurations[0].device;
    assert_eq!(*device, DeviceSpec::Kernel { index: Some(1) });
    assert!(warnings[0].contains("stands twice"), "{warnings:?}");
}

#[test]
fn a_configuration_cannot_have_the_socket_of_the_server_itself() {
    for device in ["unix:", "auto"] {
        let text = format!(r#"{{"configurations": {{"control": {{"device": "{device}"}}}}}}"#);
        let refusal = load(&text, Strictness::Strict).unwrap_err().to_string();
        assert!(
            refusal.contains("configurations.control.device") && refusal.contains("unix:PATH"),
            "{refusal}"
        );
    }
    let elsewhere = r#"{"configurations": {"control": {"device": "unix:/tmp/control.sock"}}}"#;
    assert!(load(elsewhere, Strictness::Strict).is_ok());
}
