//! One manual page.

use std::io;

use clap::{Arg, Command, builder::StyledStr};
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};

/// What stands before the examples in a command's help.
const EXAMPLES: &str = "Examples:\n";

/// What the commands have in common: heading, and a paragraph for each name and what is to say about it.
const COMMON: [(&str, &[(&str, &str)]); 3] = [
    (
        "FILES",
        &[
            (
                "/etc/nbd-proxy/config.json",
                "The configuration, unless $NBD_PROXY_CONFIG or --config names another.",
            ),
            (
                "/etc/nbd-proxy/state",
                "Run with \"start\" and a configuration's name once its device is there, and with \"stop\" before it goes.",
            ),
            (
                "/run/nbd-proxy",
                "The control socket and the devices that are files or sockets; $RUNTIME_DIRECTORY where it is set, \
                 nbd-proxy in $XDG_RUNTIME_DIR for others than root.",
            ),
            (
                "/var/lib/nbd-proxy",
                "What outlives the server: logins, its own certificate; $STATE_DIRECTORY where it is set, \
                 nbd-proxy in $XDG_STATE_HOME for others than root.",
            ),
        ],
    ),
    (
        "ENVIRONMENT",
        &[
            (
                "NBD_PROXY_CONFIG",
                "The configuration file, where --config names none.",
            ),
            (
                "NBD_PROXY_LOG",
                "How messages look on standard error: \"text\", or \"json\" for a line of JSON each.",
            ),
        ],
    ),
    (
        "EXIT STATUS",
        &[
            ("0", "It ended in order."),
            (
                "1",
                "Something failed; standard error says what, and what would help.",
            ),
            ("2", "The command line is wrong."),
        ],
    ),
];

/// The program's own page. `commands`: the names of the others.
pub(crate) fn program(definition: &Command, commands: &[String]) -> io::Result<Vec<u8>> {
    // Without its list of commands, whose references go to pages of another name.
    let man = Man::new(definition.clone()).title("NBD-PROXY");
    let mut page = beginning(&man)?;
    let mut list = Roff::new();
    list.control("SH", ["COMMANDS"]);
    for (command, name) in visible(definition).zip(commands) {
        list.control("TP", []);
        list.text([bold(format!("{name}(1)"))]);
        list.text([roman(text(command.get_about()))]);
    }
    list.to_writer(&mut page)?;
    ending(definition, &mut page)?;
    common(&mut page)?;
    Ok(page)
}

/// The page of a command that is called `name` there.
pub(crate) fn command(definition: &Command, name: &str) -> io::Result<Vec<u8>> {
    let man = Man::new(definition.clone()).title(name.to_uppercase());
    let mut page = beginning(&man)?;
    below(definition, &mut page)?;
    ending(definition, &mut page)?;
    common(&mut page)?;
    let mut see = Roff::new();
    see.control("SH", ["SEE ALSO"]);
    see.text([bold("nbd-proxy"), roman("(1)")]);
    see.to_writer(&mut page)?;
    Ok(page)
}

fn visible(program: &Command) -> impl Iterator<Item = &Command> {
    program
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
}

/// The commands of a command, at all depths, in their own words.
fn below(definition: &Command, page: &mut Vec<u8>) -> io::Result<()> {
    let mut leaves = Vec::new();
    collect_leaves(definition, &mut leaves);
    let mut roff = Roff::new();
    for (index, leaf) in leaves.into_iter().enumerate() {
        if index == 0 {
            roff.control("SH", ["COMMANDS"]);
        }
        let usage = leaf.clone().render_usage().to_string();
        roff.control("TP", []);
        roff.text([bold(usage.trim_start_matches("Usage: "))]);
        roff.text([roman(text(leaf.get_about()))]);
        let own = |argument: &&Arg| argument.is_positional() || !argument.is_global_set();
        for argument in leaf.get_arguments().filter(own) {
            if let (false, Some(about)) = (argument.get_id() == "help", argument.get_help()) {
                roff.control("br", []);
                roff.text([roman(format!("{argument}: {about}"))]);
            }
        }
    }
    roff.to_writer(page)
}

fn collect_leaves<'c>(command: &'c Command, leaves: &mut Vec<&'c Command>) {
    for below in visible(command) {
        match below.has_subcommands() {
            true => collect_leaves(below, leaves),
            false => leaves.push(below),
        }
    }
}

fn text(styled: Option<&StyledStr>) -> String {
    styled.map(ToString::to_string).unwrap_or_default()
}

fn beginning(man: &Man) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    Ok(page)
}

/// What the help says at its end: words, then examples, which keep their lines.
fn ending(definition: &Command, page: &mut Vec<u8>) -> io::Result<()> {
    let Some(help) = definition
        .get_after_long_help()
        .or(definition.get_after_help())
    else {
        return Ok(());
    };
    let help = help.to_string();
    let (words, examples) = help.split_once(EXAMPLES).unwrap_or((&help, ""));
    let mut roff = Roff::new();
    if !words.trim().is_empty() {
        roff.control("SH", ["NOTES"]);
        roff.text([roman(
            words.split_whitespace().collect::<Vec<_>>().join(" "),
        )]);
    }
    if !examples.is_empty() {
        roff.control("SH", ["EXAMPLES"]);
        for line in examples.lines() {
            let (line, about) = line.trim().split_once("  ").unwrap_or((line.trim(), ""));
            roff.control("TP", []);
            roff.text([bold(line)]);
            roff.text([roman(about.trim())]);
        }
    }
    roff.to_writer(page)
}

fn common(page: &mut Vec<u8>) -> io::Result<()> {
    let mut roff = Roff::new();
    for (heading, paragraphs) in COMMON {
        roff.control("SH", [heading]);
        for (name, about) in paragraphs {
            roff.control("TP", []);
            roff.text([bold(*name)]);
            roff.text([roman(*about)]);
        }
    }
    roff.to_writer(page)
}
