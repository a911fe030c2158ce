//! Lists `web/`, which the program carries with it: the page, nbd.js, and nothing else. Leaves out of the profile
//! `small` what it has no use for.

use std::{
    collections::hash_map::DefaultHasher,
    env,
    error::Error,
    fmt::Write as _,
    fs,
    hash::Hasher as _,
    path::{Path, PathBuf},
};

/// Where the web server finds its files, and which of them it serves; `web/tests` is not among them.
const WEB: &str = "../../web";
const SERVED: [&str; 6] = ["index.html", "lite.html", "lite.js", "app", "nbd", "js"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    leave_out_unwinding()?;
    if env::var_os("CARGO_FEATURE_SERVE").is_none() {
        return Ok(());
    }
    let web = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?)
        .join(WEB)
        .canonicalize()?;
    let mut files = Vec::new();
    for entry in SERVED {
        println!("cargo::rerun-if-changed={}", web.join(entry).display());
        collect(&web.join(entry), &mut files)?;
    }
    files.sort();
    let mut table = String::from("&[\n");
    for file in &files {
        table.push_str(&entry(&web, file)?);
    }
    table.push_str("]\n");
    fs::write(Path::new(&env::var("OUT_DIR")?).join("assets.rs"), table)?;
    Ok(())
}

/// No other profile than `small`, which doesn't unwind, is optimised for nothing but size.
fn leave_out_unwinding() -> Result<(), Box<dyn Error>> {
    if env::var("OPT_LEVEL")? == "z" {
        let script = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("no-unwinding.ld");
        println!("cargo::rerun-if-changed={}", script.display());
        println!("cargo::rustc-link-arg-bins=-Wl,--no-eh-frame-hdr");
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", script.display());
    }
    Ok(())
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}

fn entry(web: &Path, file: &Path) -> Result<String, Box<dyn Error>> {
    let name = file
        .strip_prefix(web)?
        .to_str()
        .ok_or("a file name in web/ is not UTF-8")?;
    let Some(content_type) = content_type(name)? else {
        return Ok(String::new());
    };
    let mut hash = DefaultHasher::new();
    hash.write(&fs::read(file)?);
    let mut text = String::new();
    writeln!(
        text,
        "    Asset {{ path: {:?}, content_type: {content_type:?}, etag: \"\\\"{:016x}\\\"\", body: include_bytes!({:?}) }},",
        format!("/{name}"),
        hash.finish(),
        file.display(),
    )?;
    Ok(text)
}

/// None for what only tools read.
fn content_type(name: &str) -> Result<Option<&'static str>, String> {
    if name.ends_with(".d.ts") || name.ends_with(".json") || name.ends_with(".md") {
        return Ok(None);
    }
    match name.rsplit('.').next() {
        Some("html") => Ok(Some("text/html; charset=utf-8")),
        Some("js") => Ok(Some("text/javascript; charset=utf-8")),
        Some("css") => Ok(Some("text/css; charset=utf-8")),
        Some("svg") => Ok(Some("image/svg+xml")),
        Some("png") => Ok(Some("image/png")),
        Some("ico") => Ok(Some("image/x-icon")),
        Some("webmanifest") => Ok(Some("application/manifest+json")),
        _ => Err(format!(
            "web/{name}: build.rs doesn't know the content type of such a file"
        )),
    }
}
