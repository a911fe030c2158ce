//! `nbd-proxy status`: configurations and sessions of the running server, as a table or as the API's JSON.

use std::process::ExitCode;

use anyhow::bail;
use hyper::Method;

use crate::{
    cli::StatusArgs,
    control::{self, Answer},
    serve::api::{ConfigurationView, Configurations, SessionView},
    units,
};

/// Prints them.
pub(crate) async fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let address = "/api/v1/configurations";
    let all: Configurations = match control::ask(args.control, Method::GET, address, &()).await? {
        Answer::Done(_, all) => all,
        Answer::Refused(refusal) => bail!("{}", refusal.error),
    };
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&all)?),
        false => print!("{}", table(&all.configurations)),
    }
    Ok(ExitCode::SUCCESS)
}

const HEAD: [&str; 7] = [
    "CONFIGURATION",
    "STATE",
    "DEVICE",
    "IMAGE",
    "SIZE",
    "READ",
    "FROM",
];

fn table(configurations: &[ConfigurationView]) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(configurations.iter().map(row));
    let mut widths = [0; HEAD.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; HEAD.len()]| {
        let cells: Vec<_> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn row(configuration: &ConfigurationView) -> [String; HEAD.len()] {
    let name = match configuration.default {
        true => format!("{} (default)", configuration.name),
        false => configuration.name.clone(),
    };
    let nothing = || "-".to_owned();
    let Some(session) = &configuration.session else {
        return [
            name,
            "free".to_owned(),
            configuration.device.clone(),
            nothing(),
            nothing(),
            nothing(),
            nothing(),
        ];
    };
    [
        name,
        state(session),
        session
            .device
            .clone()
            .unwrap_or_else(|| configuration.device.clone()),
        session
            .image
            .as_ref()
            .map_or_else(nothing, |image| printable(&image.name)),
        units::bytes(session.size),
        units::bytes(session.bytes_read),
        format!("{} at {}", printable(&session.user), session.from),
    ]
}

fn state(session: &SessionView) -> String {
    match session.seconds_left {
        Some(seconds) => format!("{} ({seconds} s left)", session.state),
        None => session.state.clone(),
    }
}

/// A page chooses its image's name; it shall not steer a terminal.
fn printable(text: &str) -> String {
    text.chars().map(nbd::printable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::api::ImageView;

    fn configuration(name: &str, session: Option<SessionView>) -> ConfigurationView {
        ConfigurationView {
            name: name.into(),
            default: name == "0",
            device: "auto".into(),
            media: "disk".into(),
            metadata: None,
            may: Vec::new(),
            session,
        }
    }

    #[test]
    fn columns_are_aligned_and_names_cannot_steer_a_terminal() {
        let session = SessionView {
            state: "held".into(),
            image: Some(ImageView {
                name: "a\u{1b}[2Jb.iso".into(),
                size: 1_000_001,
                modified: None,
            }),
            device: Some("/dev/nbd0".into()),
            size: 1_000_448,
            read_only: true,
            user: "local".into(),
            from: "127.0.0.1:4711".into(),
            since: 0,
            bytes_read: 512,
            requests: 1,
            seconds_left: Some(299),
            draining_for: Vec::new(),
            keep: None,
        };
        let table = table(&[
            configuration("0", Some(session)),
            configuration("lab", None),
        ]);
        let expected = "\
CONFIGURATION  STATE              DEVICE     IMAGE       SIZE       READ   FROM
0 (default)    held (299 s left)  /dev/nbd0  a\u{fffd}[2Jb.iso  977.0 KiB  512 B  local at 127.0.0.1:4711
lab            free               auto       -           -          -      -
";
        assert_eq!(table, expected);
    }
}
