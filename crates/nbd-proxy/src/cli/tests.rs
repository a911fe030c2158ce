//! What a line means, and what is said of one that means nothing.

use super::*;

fn action(line: &str) -> Result<Action, clap::Error> {
    parse(std::iter::once("nbd-proxy").chain(line.split_whitespace()))
}

#[test]
fn clap_finds_no_fault_in_the_definition() {
    Cli::command().debug_assert();
}

#[test]
fn a_lone_word_is_a_configuration() {
    let Ok(Action::Stdio {
        configuration: Some(name),
        config: None,
    }) = action("0")
    else {
        panic!("not the stdin/stdout form")
    };
    assert_eq!(name, "0");
    assert!(matches!(
        action(""),
        Ok(Action::Stdio {
            configuration: None,
            ..
        })
    ));
}

#[test]
fn a_configuration_named_like_a_subcommand_is_reached_after_two_dashes() {
    assert!(
        matches!(action("-- check"), Ok(Action::Stdio { configuration: Some(name), .. }) if name == "check")
    );
}

#[test]
fn config_is_taken_before_and_after_the_subcommand() {
    for line in ["--config f check", "check --config f"] {
        assert!(
            matches!(
                action(line),
                Ok(Action::Check(CheckArgs { config: Some(_) }))
            ),
            "{line}"
        );
    }
}

#[test]
fn what_does_not_go_together_is_a_usage_error_in_one_line() {
    for line in [
        "--metadata 0",
        "0 check",
        "--metadata check",
        "--frobnicate",
        "0 1",
    ] {
        let error = action(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
        let message = one_line(&error);
        assert!(
            !message.contains('\n') && !message.starts_with("error"),
            "{message}"
        );
    }
}

#[test]
#[cfg(feature = "serve")]
fn an_address_that_is_none_is_refused_with_an_example() {
    for line in ["serve --listen 8000", "serve --listen localhost:8000"] {
        let error = action(line).expect_err(line);
        assert!(one_line(&error).contains("127.0.0.1:8000"), "{error}");
    }
}

#[test]
#[cfg(feature = "serve")]
fn the_help_of_each_command_has_examples_that_parse() {
    for command in [
        "",
        "serve",
        "share",
        "status",
        "eject",
        "passwd",
        "passwd token",
        "check",
    ] {
        let help = action(&format!("{command} --help")).expect_err(command);
        let text = help.to_string();
        let (_, examples) = text.split_once("Examples:\n").expect(command);
        let lines: Vec<_> = examples
            .lines()
            .filter_map(|line| line.trim().strip_prefix("nbd-proxy "))
            .filter_map(|line| line.split("  ").next()?.split(" | ").next())
            .collect();
        assert!(!lines.is_empty(), "{command}");
        for line in lines {
            assert!(action(line).is_ok(), "{line}");
        }
    }
}

#[test]
fn help_exits_with_0() {
    assert_eq!(action("-h").expect_err("help").exit_code(), 0);
}
