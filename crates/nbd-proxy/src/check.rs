//! `check`: what this machine can do, what is missing, and the remedy.
//!
//! Nothing is changed, apart from a runtime directory that is made and a file in it that is removed again.

mod devices;

use std::{
    fmt, fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::{
    cli::CheckArgs,
    config::{Config, Strictness},
    device::DeviceSpec,
    hook::Hook,
    paths,
};

/// What the stdin/stdout form asks for.
const WANTED_PIPE_SIZE: u64 = 1 << 20;

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    subject: String,
    verdict: Verdict,
    detail: String,
    remedy: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Works,
    Lacking,
    /// Neither good nor bad.
    Fact,
}

impl Finding {
    fn works(subject: &str, detail: impl Into<String>) -> Self {
        Self::new(subject, Verdict::Works, detail, None)
    }

    fn fact(subject: &str, detail: impl Into<String>) -> Self {
        Self::new(subject, Verdict::Fact, detail, None)
    }

    fn lacking(subject: &str, detail: impl fmt::Display, remedy: &str) -> Self {
        Self::new(
            subject,
            Verdict::Lacking,
            detail.to_string(),
            Some(remedy.into()),
        )
    }

    fn new(
        subject: &str,
        verdict: Verdict,
        detail: impl Into<String>,
        remedy: Option<String>,
    ) -> Self {
        Self {
            subject: subject.into(),
            verdict,
            detail: detail.into(),
            remedy,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Works => "yes",
            Verdict::Lacking => "no",
            Verdict::Fact => "",
        };
        write!(f, "{:<18} {verdict:<4} {}", self.subject, self.detail)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n{:<23} remedy: {remedy}", ""),
            None => Ok(()),
        }
    }
}

/// Prints the table on standard output. Success when at least one kind of device works.
pub(crate) async fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let findings = tokio::task::spawn_blocking(move || survey(args.config.as_deref())).await??;
    let mut table = String::new();
    for finding in &findings.lines {
        table.push_str(&format!("{finding}\n"));
    }
    std::io::stdout().write_all(table.as_bytes())?;
    Ok(if findings.any_device {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

struct Survey {
    lines: Vec<Finding>,
    any_device: bool,
}

fn survey(config: Option<&Path>) -> anyhow::Result<Survey> {
    let runtime_dir = paths::runtime_dir().map_err(|error| format!("{error:#}"));
    let kinds = devices::all(runtime_dir.as_deref().ok());
    // Whatever the device, a session has its lock in the runtime directory.
    let any_device = kinds.iter().any(|kind| kind.verdict == Verdict::Works) && runtime_dir.is_ok();
    let automatic = automatic(&kinds);
    let mut lines = kinds;
    lines.push(automatic);
    let (file, required) = (paths::config_file(config), config.is_some());
    let configurations = configurations(&file, required, &lines)?;
    lines.push(runtime_directory(&runtime_dir));
    lines.push(pipe_size());
    #[cfg(feature = "serve")]
    lines.push(sandbox());
    lines.extend(configurations);
    Ok(Survey { lines, any_device })
}

fn automatic(kinds: &[Finding]) -> Finding {
    let order = ["nbd:", "loop:", "fuse:", "unix:"];
    let works = |subject: &&str| {
        kinds
            .iter()
            .any(|kind| kind.subject == *subject && kind.verdict == Verdict::Works)
    };
    match order.into_iter().find(works) {
        Some(first) => Finding::works("auto", format!("takes {first}")),
        None => Finding::lacking("auto", "none of its devices works", "see the lines above"),
    }
}

fn runtime_directory(directory: &Result<PathBuf, String>) -> Finding {
    let subject = "runtime directory";
    let remedy = "set RUNTIME_DIRECTORY to a directory that you may write to";
    match directory {
        Ok(path) => match try_to_write(path) {
            Ok(()) => Finding::works(subject, path.display().to_string()),
            Err(error) => Finding::lacking(subject, format!("{}: {error}", path.display()), remedy),
        },
        Err(error) => Finding::lacking(subject, error, remedy),
    }
}

fn try_to_write(directory: &Path) -> std::io::Result<()> {
    let probe = directory.join(format!(".check-{}", std::process::id()));
    fs::write(&probe, "")?;
    fs::remove_file(&probe)
}

/// The stdin/stdout form is given pipes, and raises them: bmcweb breaks off when ours is full.
fn pipe_size() -> Finding {
    let subject = "pipe size";
    let limit = fs::read_to_string("/proc/sys/fs/pipe-max-size").ok();
    let Some(limit) = limit.and_then(|text| text.trim().parse::<u64>().ok()) else {
        return Finding::fact(subject, "its limit is not known");
    };
    let detail = format!("up to {limit} bytes");
    if limit >= WANTED_PIPE_SIZE {
        return Finding::works(subject, detail);
    }
    let remedy = format!(
        "sysctl fs.pipe-max-size={WANTED_PIPE_SIZE} (matters under bmcweb and websocketd alone)"
    );
    Finding::lacking(subject, detail, &remedy)
}

/// What `serve` can shut itself up in.
#[cfg(feature = "serve")]
fn sandbox() -> Finding {
    let subject = "sandbox of serve";
    let remedy = "take a kernel of 5.13 or newer with Landlock and seccomp (CONFIG_SECURITY_LANDLOCK and \"landlock\" in \
                  its parameter lsm=, CONFIG_SECCOMP_FILTER)";
    match crate::sandbox::trial() {
        Ok(in_force) if in_force.is_all() => Finding::works(subject, in_force.to_string()),
        Ok(in_force) => Finding::lacking(subject, in_force, remedy),
        Err(error) => Finding::lacking(subject, format!("{error:#}"), remedy),
    }
}

/// The configurations of the file, each with its device and hook. `kinds` are the lines of the kinds of device.
fn configurations(file: &Path, required: bool, kinds: &[Finding]) -> anyhow::Result<Vec<Finding>> {
    if !required && !file.exists() {
        let detail = format!(
            "{} does not exist: serve has one of its own",
            file.display()
        );
        return Ok(vec![Finding::fact("configuration", detail)]);
    }
    let (config, warnings) = Config::load(file, Strictness::Lenient)?;
    let mut findings = vec![Finding::fact("configuration", file.display().to_string())];
    findings.extend(
        warnings
            .into_iter()
            .map(|warning| Finding::fact("", warning)),
    );
    #[cfg(feature = "serve")]
    findings.extend(doubts(file));
    for configuration in &config.configurations {
        let subject = format!("  {:?}", configuration.name);
        let hook = Hook::of(configuration);
        let hook_words = match (hook.exists(), hook.path.exists()) {
            (true, _) => format!("state hook {}", hook.path.display()),
            (false, true) => format!(
                "state hook {} is not executable and so is not run",
                hook.path.display()
            ),
            (false, false) => format!("no state hook ({})", hook.path.display()),
        };
        let kind = kind(&configuration.device);
        let verdict = (kinds.iter().find(|line| line.subject == kind))
            .map_or(Verdict::Fact, |line| line.verdict);
        findings.push(Finding::new(
            &subject,
            verdict,
            format!("{}; {hook_words}", configuration.device),
            (verdict == Verdict::Lacking).then(|| format!("that of {kind} above")),
        ));
        if let DeviceSpec::Kernel { index: Some(index) } = configuration.device {
            findings.extend(devices::kernel_device(index));
        }
    }
    Ok(findings)
}

/// The subject of the line on a kind of device.
fn kind(device: &DeviceSpec) -> &'static str {
    match device {
        DeviceSpec::Kernel { .. } => "nbd:",
        DeviceSpec::Loop => "loop:",
        DeviceSpec::Fuse { .. } => "fuse:",
        DeviceSpec::Unix { .. } => "unix:",
        DeviceSpec::Tcp { .. } => "tcp:",
        DeviceSpec::Auto => "auto",
    }
}

/// What `serve` would refuse or warn of: it is stricter than the stdin/stdout form.
#[cfg(feature = "serve")]
fn doubts(file: &Path) -> Vec<Finding> {
    let subject = "  \"serve\"";
    let config = match Config::load(file, Strictness::Strict) {
        Ok((config, _)) => config,
        Err(refusal) => {
            let remedy =
                "mend the file; without a web server, on standard input and output, it will do";
            return vec![Finding::lacking(subject, refusal, remedy)];
        }
    };
    (config.serve.doubts().into_iter())
        .map(|doubt| Finding::lacking(subject, doubt.what, doubt.remedy))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_the_first_kind_that_works() {
        let lacking = |subject| Finding::lacking(subject, "gone", "find it");
        let works = |subject| Finding::works(subject, "");
        let kinds = [
            lacking("nbd:"),
            lacking("loop:"),
            works("fuse:"),
            works("unix:"),
        ];
        assert_eq!(automatic(&kinds).detail, "takes fuse:");
        assert_eq!(automatic(&kinds[..2]).verdict, Verdict::Lacking);
    }

    #[test]
    fn what_is_lacking_has_its_remedy_beneath() {
        let finding = Finding::lacking("nbd:", "no driver", "modprobe nbd");
        let text = finding.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "nbd:               no   no driver");
        assert_eq!(lines[1].trim_start(), "remedy: modprobe nbd");
    }

    #[test]
    fn a_machine_without_a_configuration_file_is_fine_unless_it_was_named() {
        let nowhere = Path::new("/nonexistent/config.json");
        assert_eq!(configurations(nowhere, false, &[]).unwrap().len(), 1);
        assert!(configurations(nowhere, true, &[]).is_err());
    }

    #[test]
    fn a_configuration_is_judged_by_its_kind_of_device() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        let text = r#"{"configurations": {"a": {"device": "loop:"}, "b": {"device": "unix:"}}}"#;
        fs::write(&file, text).unwrap();
        let kinds = [
            Finding::lacking("loop:", "gone", "find it"),
            Finding::works("unix:", ""),
        ];
        let lines = configurations(&file, true, &kinds).unwrap();
        let verdicts: Vec<_> = lines.iter().map(|line| line.verdict).collect();
        assert_eq!(verdicts, [Verdict::Fact, Verdict::Lacking, Verdict::Works]);
        assert_eq!(lines[1].remedy.as_deref(), Some("that of loop: above"));
    }

    #[test]
    #[cfg(feature = "serve")]
    fn what_serve_refuses_is_said_though_the_filter_takes_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        let text = r#"{"configurations": {"a": {"device": "unix:", "holt": 5}}}"#;
        fs::write(&file, text).unwrap();
        let lines = configurations(&file, true, &[]).unwrap();
        let refusal = lines.iter().find(|line| line.subject == "  \"serve\"");
        assert!(refusal.unwrap().detail.contains("hold"), "{refusal:?}");
    }
}
