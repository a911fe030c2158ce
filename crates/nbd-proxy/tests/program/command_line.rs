//! Usage, configuration and what is printed.

use crate::Place;

#[test]
fn metadata_is_one_line_of_json_in_the_files_order() {
    let place = Place::new();
    place.write_config(
        r#"// The prototype's parser took comments.
        { "timeout": 30, "configurations": {
            "b": { "nbd-device": "/dev/nbd0", "metadata": { "z": 1, "a": { "y": [], "x": null } } },
            "a": { "nbd-device": "/dev/nbd1" } } }"#,
    );
    let (code, output, messages) = place.run(&["--metadata"]);
    assert_eq!((code, messages.as_str()), (0, ""));
    assert_eq!(
        output,
        "{\"b\":{\"z\":1,\"a\":{\"y\":[],\"x\":null}},\"a\":null}\n"
    );
}

#[test]
fn help_and_version_go_to_standard_output_and_succeed() {
    let place = Place::new();
    for argument in ["-h", "--help", "--version"] {
        let (code, output, messages) = place.run(&[argument]);
        assert_eq!((code, messages.as_str()), (0, ""), "{argument}");
        assert!(output.contains("nbd-proxy"), "{output}");
    }
}

#[test]
fn wrong_usage_is_one_line_and_status_2() {
    let place = Place::new();
    for arguments in [
        &["--frobnicate"][..],
        &["0", "1"],
        &["--metadata", "0"],
        &["--config"],
    ] {
        let (code, output, messages) = place.run(arguments);
        assert_eq!((code, output.as_str()), (2, ""), "{arguments:?}");
        assert!(
            messages.starts_with("nbd-proxy: ") && messages.lines().count() == 1,
            "{messages}"
        );
    }
}

#[test]
fn what_is_wrong_with_the_configuration_is_told_in_one_line() {
    let place = Place::new();
    let two_defaults = r#"{"configurations": {"0": {"device": "auto", "default": true}, "1": {"device": "auto", "default": true}}}"#;
    for (config, arguments, message) in [
        ("{", &["0"][..], "not JSON"),
        ("{}", &["0"], "\"configurations\""),
        (two_defaults, &["0"], "both \"0\" and \"1\""),
        (
            r#"{"configurations": {"0": {"nbd-device": "/dev/sda"}}}"#,
            &["0"],
            "/dev/sda",
        ),
        (
            r#"{"configurations": {"0": {"device": "tcp:0.0.0.0:10809"}}}"#,
            &["0"],
            "it needs \"tls\"",
        ),
        (
            r#"{"configurations": {"0": {"device": "auto"}, "1": {"device": "auto"}}}"#,
            &[],
            "name one of \"0\", \"1\"",
        ),
        (
            r#"{"configurations": {"0": {"device": "auto"}}}"#,
            &["7"],
            "there is no configuration \"7\"; there is \"0\"",
        ),
        (
            r#"{"configurations": {"0": {"device": "auto"}}}"#,
            &["chekc"],
            "the command is \"check\"; what was given was taken for a configuration: there is no",
        ),
    ] {
        place.write_config(config);
        let (code, output, messages) = place.run(arguments);
        assert_eq!((code, output.as_str()), (1, ""), "{config}");
        assert!(
            messages.starts_with("nbd-proxy: ") && messages.contains(message),
            "{messages}"
        );
        assert_eq!(messages.lines().count(), 1, "{messages}");
    }
}

#[test]
fn an_unknown_key_is_a_warning_only() {
    let place = Place::new();
    place.write_config(r#"{"configurations": {"0": {"device": "unix:", "mood": "good"}}}"#);
    let (code, output, messages) = place.run(&["--metadata"]);
    assert_eq!((code, output.as_str()), (0, "{\"0\":null}\n"));
    assert!(
        messages.contains("\"configurations.0.mood\" is not known"),
        "{messages}"
    );
}

#[test]
fn the_configuration_given_on_the_command_line_comes_first() {
    let place = Place::new();
    let given = place.path("given.json");
    std::fs::write(
        &given,
        r#"{"configurations": {"given": {"device": "auto"}}}"#,
    )
    .unwrap();
    let (_, output, _) = place.run(&["--config", given.to_str().unwrap(), "--metadata"]);
    assert_eq!(output, "{\"given\":null}\n");
}
