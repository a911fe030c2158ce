//! What README and docs tell people to type is understood.

use std::path::{Path, PathBuf};

use crate::{
    cli,
    config::{Config, Strictness},
};

/// A fenced block of a document.
struct Block {
    path: PathBuf,
    language: String,
    text: String,
}

/// Every fenced block of README and docs.
fn blocks() -> Vec<Block> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let docs = std::fs::read_dir(root.join("docs")).unwrap();
    let mut paths: Vec<PathBuf> = docs.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    paths.push(root.join("README.md"));
    let mut blocks = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        // Between fences are prose and blocks in turn.
        for (index, part) in text.split("\n```").enumerate() {
            if let (1, Some((language, text))) = (index % 2, part.split_once('\n')) {
                blocks.push(Block {
                    path: path.clone(),
                    language: language.to_owned(),
                    text: text.to_owned(),
                });
            }
        }
    }
    blocks
}

/// The words of a command of ours in a line for a shell; what two spaces follow is a remark.
fn words(line: &str) -> Option<Vec<String>> {
    let (before, command) = line.split_at(line.find("nbd-proxy ")?);
    if !["", "websocketd --port=8000 --staticdir=web --binary "].contains(&before) {
        return None;
    }
    let fingerprint = "5B".repeat(32);
    let command = command.split("  ").next()?.replace("5B:0E:…", &fingerprint);
    let mut words = Vec::new();
    for (index, part) in command.split('\'').enumerate() {
        match index % 2 {
            0 => words.extend(part.split_whitespace().map(str::to_owned)),
            _ => words.push(part.to_owned()),
        }
    }
    let end = words
        .iter()
        .position(|word| ["<", "|", "#"].contains(&word.as_str()));
    words.truncate(end.unwrap_or(words.len()));
    Some(words)
}

#[test]
fn every_command_line_of_the_documents_parses() {
    let mut found = 0;
    for block in blocks() {
        if !["sh", ""].contains(&block.language.as_str()) {
            continue;
        }
        for words in block.text.lines().filter_map(words) {
            let shown = words.join(" ");
            assert!(
                cli::parse(words).is_ok(),
                "{}: {shown}",
                block.path.display()
            );
            found += 1;
        }
    }
    assert!(found >= 15, "{found}");
}

/// A whole configuration around a part of one: `serve`, a named configuration, or a member of one.
fn completed(part: &str) -> String {
    let key = part.trim_start().split('"').nth(1).unwrap_or_default();
    match (part.starts_with('{'), key) {
        (true, _) => part.to_owned(),
        (_, "serve") => format!(r#"{{"configurations": {{"0": {{"device": "auto"}}}}, {part}}}"#),
        (_, "lab") => format!(r#"{{"configurations": {{{part}}}}}"#),
        _ => format!(r#"{{"configurations": {{"0": {{"device": "auto", {part}}}}}}}"#),
    }
}

#[test]
fn every_configuration_of_the_documents_is_one() {
    let mut found = 0;
    for block in blocks() {
        let is_protocol = block.path.ends_with("protocol.md");
        if block.language != "json" || is_protocol {
            continue;
        }
        // Ways to say the same stand below each other.
        let alternatives = match block.text.starts_with(r#""keep""#) {
            true => block.text.lines().collect(),
            false => vec![block.text.as_str()],
        };
        for text in alternatives {
            let whole = completed(text);
            let read = Config::parse(&block.path, whole.clone(), Strictness::Strict);
            assert!(read.is_ok(), "{}: {whole}: {read:?}", block.path.display());
            found += 1;
        }
    }
    assert!(found >= 8, "{found}");
}
