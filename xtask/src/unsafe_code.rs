//! Where `unsafe` is written: the crate that speaks to the kernel, and nowhere else.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::command::{Failure, root};

/// Where it may be.
const ALLOWED: &str = "crates/nbd-kernel";
const FOLDERS: [&str; 3] = ["crates", "xtask", "fuzz/fuzz_targets"];
/// How code that is unsafe goes on after the keyword.
const FORMS: [&str; 5] = ["{", "fn", "impl", "extern", "trait"];

/// Lists it by file, and fails where it must not be.
pub(crate) fn check() -> Result<(), Failure> {
    let mut files = Vec::new();
    for folder in FOLDERS {
        collect(&root().join(folder), &mut files).map_err(|error| format!("{folder}: {error}"))?;
    }
    files.sort();
    let mut elsewhere = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).map_err(|error| error.to_string())?;
        let count = text.lines().filter(|line| is_unsafe(line)).count();
        let place = file.strip_prefix(root()).unwrap_or(&file);
        if count > 0 {
            println!("unsafe: {count:3} in {}", place.display());
        }
        if count > 0 && !place.starts_with(ALLOWED) {
            elsewhere.push(place.display().to_string());
        }
    }
    if elsewhere.is_empty() {
        return Ok(());
    }
    Err(format!(
        "unsafe code outside of {ALLOWED}: {}",
        elsewhere.join(", ")
    ))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let mut words = code.split_whitespace().peekable();
    while let Some(word) = words.next() {
        let follows = |next: &&str| FORMS.iter().any(|form| next.starts_with(form));
        if word.trim_start_matches(['(', '=', '{']) == "unsafe" && words.peek().is_some_and(follows)
        {
            return true;
        }
    }
    false
}
