//! The state hook: a program of the administrator's, run as `STATE-HOOK start NAME` and `STATE-HOOK stop NAME`.

use std::{
    fmt, io,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::{
    fs::{Access, FileType},
    io::Errno,
    process::{Pid, Signal, kill_process_group, test_kill_process_group},
};
use serde::{Deserialize, Serialize};
use tokio::{
    process::{Child, Command},
    sync::oneshot,
    time::{sleep, timeout},
};

use crate::config::Configuration;
#[cfg(feature = "serve")]
use crate::privileged;

/// What a `start` that is no longer wanted has between SIGTERM and SIGKILL. The stdin/stdout form must be gone within
/// 500 ms of the end.
const GRACE: Duration = Duration::from_millis(100);

/// When the hook is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Action {
    /// The device has its size and is readable.
    Start,
    /// The device is about to be detached.
    Stop,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::Stop => "stop",
        })
    }
}

/// What the hook is told of its device; kept in a file from `start` to `stop`, for whoever comes after a killed
/// process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Subject {
    /// `NBD_PROXY_DEVICE`: its path.
    pub(crate) device: String,
    /// `NBD_PROXY_SIZE`, in bytes.
    pub(crate) size: u64,
    /// `NBD_PROXY_READ_ONLY`: 0 or 1.
    pub(crate) read_only: bool,
    /// `NBD_PROXY_IMAGE`: the image's name, as its server announced it.
    pub(crate) image: String,
    /// `NBD_PROXY_USER`; empty where nobody was asked who they are.
    pub(crate) user: String,
    /// `NBD_PROXY_MEDIA`: `disk` or `cdrom`.
    pub(crate) media: String,
}

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    /// It could not be started.
    #[error("can't run {}: {source}", path.display())]
    Spawn {
        /// The hook.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It said so.
    #[error("{} {action} ended with {}", path.display(), describe(*status))]
    Failed {
        /// The hook.
        path: PathBuf,
        /// Its argument.
        action: Action,
        /// How.
        status: ExitStatus,
    },
    /// It took too long.
    #[error("{} {action} took longer than {} s and was killed; see \"hook-timeout\"", path.display(), limit.as_secs())]
    Late {
        /// The hook.
        path: PathBuf,
        /// Its argument.
        action: Action,
        /// How long it had.
        limit: Duration,
    },
    /// The session ended meanwhile.
    #[error("{} start was ended, since the session is over", path.display())]
    Abandoned {
        /// The hook.
        path: PathBuf,
    },
    /// The helper process that ran it says so.
    #[error("{0}")]
    Told(String),
}

/// What a hook finds in its environment besides what it is told of its device.
pub(crate) enum Environment {
    /// All that we were started with.
    Ours,
    /// These variables alone.
    #[cfg(feature = "serve")]
    Only(Vec<(&'static str, std::ffi::OsString)>),
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// The hook of one configuration.
#[derive(Debug, Clone)]
pub(crate) struct Hook {
    /// The program.
    pub(crate) path: PathBuf,
    /// How long it may take.
    pub(crate) timeout: Duration,
    /// Name of the configuration: its second argument.
    pub(crate) name: String,
}

impl Hook {
    /// The hook that a configuration names.
    pub(crate) fn of(configuration: &Configuration) -> Self {
        Self {
            path: configuration.state_hook.clone(),
            timeout: configuration.hook_timeout,
            name: configuration.name.clone(),
        }
    }

    /// Whether there is an executable program at the path; without one nothing is run, and nothing is wrong.
    /// What this process may not look at is for its helper to judge.
    pub(crate) fn exists(&self) -> bool {
        match is_executable(&self.path) {
            #[cfg(feature = "serve")]
            Err(Errno::ACCESS) => privileged::helper().is_some(),
            result => result == Ok(true),
        }
    }

    /// Runs it to its end. `abandon` ends it early when it fires, and does nothing when it is dropped. What the hook
    /// leaves running in its process group after a normal exit is left alone.
    pub(crate) async fn run(
        &self,
        action: Action,
        subject: &Subject,
        reason: &str,
        abandon: oneshot::Receiver<()>,
    ) -> Result<(), HookError> {
        #[cfg(feature = "serve")]
        if let Some(helper) = privileged::helper() {
            return helper
                .run_hook(self, action, subject, reason, abandon)
                .await;
        }
        self.run_here(action, subject, reason, &Environment::Ours, abandon)
            .await
    }

    /// The same, in this process.
    pub(crate) async fn run_here(
        &self,
        action: Action,
        subject: &Subject,
        reason: &str,
        environment: &Environment,
        abandon: oneshot::Receiver<()>,
    ) -> Result<(), HookError> {
        let mut command = self.command(environment, action, subject, reason);
        let mut child = command.spawn().map_err(|source| HookError::Spawn {
            path: self.path.clone(),
            source,
        })?;
        let abandoned = async {
            if abandon.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            status = child.wait() => self.judge(action, status),
            () = sleep(self.timeout) => {
                end_group(&mut child, Duration::ZERO).await;
                Err(HookError::Late { path: self.path.clone(), action, limit: self.timeout })
            }
            () = abandoned => {
                end_group(&mut child, GRACE).await;
                Err(HookError::Abandoned { path: self.path.clone() })
            }
        }
    }

    fn command(
        &self,
        environment: &Environment,
        action: Action,
        subject: &Subject,
        reason: &str,
    ) -> Command {
        let mut command = Command::new(&self.path);
        match environment {
            Environment::Ours => {}
            #[cfg(feature = "serve")]
            Environment::Only(variables) => {
                command
                    .env_clear()
                    .envs(variables.iter().map(|(name, value)| (name, value)));
            }
        }
        command
            .arg(action.to_string())
            .arg(&self.name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0)
            .env("NBD_PROXY_DEVICE", &subject.device)
            .env("NBD_PROXY_SIZE", subject.size.to_string())
            .env(
                "NBD_PROXY_READ_ONLY",
                if subject.read_only { "1" } else { "0" },
            )
            .env("NBD_PROXY_IMAGE", subject.image.replace('\0', ""))
            .env("NBD_PROXY_USER", &subject.user)
            .env("NBD_PROXY_MEDIA", &subject.media)
            .env("NBD_PROXY_REASON", reason);
        command
    }

    fn judge(&self, action: Action, status: io::Result<ExitStatus>) -> Result<(), HookError> {
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(HookError::Failed {
                path: self.path.clone(),
                action,
                status,
            }),
            Err(source) => Err(HookError::Spawn {
                path: self.path.clone(),
                source,
            }),
        }
    }
}

fn is_executable(path: &Path) -> Result<bool, Errno> {
    let facts = rustix::fs::stat(path)?;
    let is_file = FileType::from_raw_mode(facts.st_mode) == FileType::RegularFile;
    Ok(is_file && rustix::fs::access(path, Access::EXEC_OK).map(|()| true)?)
}

/// Ends the process group that `child` leads: asks, waits for `grace`, kills whoever is left, and takes in the child.
async fn end_group(child: &mut Child, grace: Duration) {
    let Some(group) = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw)
    else {
        return;
    };
    if !grace.is_zero() {
        let _ = kill_process_group(group, Signal::TERM);
        if timeout(grace, group_is_gone(child, group)).await.is_ok() {
            return;
        }
    }
    let _ = kill_process_group(group, Signal::KILL);
    let _ = child.wait().await;
}

/// Waits for the child, and for those of its group that outlive it: as long as there are any, nobody else gets the
/// group's number.
async fn group_is_gone(child: &mut Child, group: Pid) {
    let _ = child.wait().await;
    while test_kill_process_group(group).is_ok() {
        sleep(GRACE / 10).await;
    }
}

#[cfg(test)]
mod tests {
    use std::os::{fd::AsFd as _, unix::fs::PermissionsExt};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn hook(folder: &Path, script: &str) -> Hook {
        let path = folder.join("state");
        std::fs::write(
            &path,
            format!("#!/bin/sh\ncd {}\n{script}\n", folder.display()),
        )
        .unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Hook {
            path,
            timeout: Duration::from_secs(60),
            name: "the name".into(),
        }
    }

    fn subject() -> Subject {
        Subject {
            device: "/dev/nbd7".into(),
            size: 1024,
            read_only: true,
            image: "a b\0.iso".into(),
            user: String::new(),
            media: "cdrom".into(),
        }
    }

    async fn run(
        hook: &Hook,
        action: Action,
        abandon: oneshot::Receiver<()>,
    ) -> Result<(), HookError> {
        hook.run(action, &subject(), "closed", abandon).await
    }

    fn never() -> oneshot::Receiver<()> {
        oneshot::channel().1
    }

    #[tokio::test]
    async fn it_is_told_action_name_and_subject_and_has_no_input_or_output() {
        let folder = tempfile::tempdir().unwrap();
        let script = r#"echo "$1|$2|$NBD_PROXY_DEVICE|$NBD_PROXY_SIZE|$NBD_PROXY_READ_ONLY|$NBD_PROXY_IMAGE|$NBD_PROXY_USER|$NBD_PROXY_MEDIA|$NBD_PROXY_REASON" >record
            ends=$(readlink /proc/$$/fd/0 /proc/$$/fd/1); echo "$ends" >>record"#;
        run(&hook(folder.path(), script), Action::Stop, never())
            .await
            .unwrap();
        let record = std::fs::read_to_string(folder.path().join("record")).unwrap();
        let lines: Vec<_> = record.lines().collect();
        assert_eq!(
            lines[0],
            "stop|the name|/dev/nbd7|1024|1|a b.iso||cdrom|closed"
        );
        assert_eq!(lines[1..], ["/dev/null", "/dev/null"]);
    }

    #[tokio::test]
    async fn a_nonzero_status_is_a_failure_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let error = run(&hook(folder.path(), "exit 3"), Action::Start, never())
            .await
            .unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("state start ended with status 3"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn it_is_killed_with_its_children_when_its_time_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let mut hook = hook(
            folder.path(),
            "trap '' TERM\nmkfifo held\nsleep 600 <>held &\nwait",
        );
        hook.timeout = Duration::from_millis(300);
        let error = run(&hook, Action::Stop, never()).await.unwrap_err();
        assert!(matches!(error, HookError::Late { .. }), "{error}");
    }

    #[tokio::test]
    async fn an_abandoned_start_is_ended_though_it_ignores_being_asked() {
        let folder = tempfile::tempdir().unwrap();
        let (abandon, abandoned) = oneshot::channel();
        let hook = hook(folder.path(), "trap '' TERM\nsleep 600");
        let running = tokio::spawn(async move { run(&hook, Action::Start, abandoned).await });
        abandon.send(()).unwrap();
        let error = running.await.unwrap().unwrap_err();
        assert!(matches!(error, HookError::Abandoned { .. }), "{error}");
    }

    #[tokio::test]
    async fn an_abandoned_start_leaves_no_child_that_ignores_being_asked() {
        let folder = tempfile::tempdir().unwrap();
        let held = folder.path().join("held");
        rustix::fs::mkfifoat(rustix::fs::CWD, &held, rustix::fs::Mode::RWXU).unwrap();
        let (abandon, abandoned) = oneshot::channel();
        // The shell itself goes when it is asked.
        let script = "(trap '' TERM; exec sleep 600) >held &\nwait";
        let hook = hook(folder.path(), script);
        let running = tokio::spawn(async move { run(&hook, Action::Start, abandoned).await });
        // Opened once the child has its end, and closed with it.
        let held = tokio::task::spawn_blocking(|| std::fs::File::open(held)).await;
        abandon.send(()).unwrap();
        running.await.unwrap().unwrap_err();
        let held = held.unwrap().unwrap();
        let mut end = [PollFd::from_borrowed_fd(held.as_fd(), PollFlags::empty())];
        assert_eq!(
            poll(
                &mut end,
                Some(&Timespec {
                    tv_sec: 10,
                    tv_nsec: 0
                })
            ),
            Ok(1)
        );
    }

    #[test]
    fn a_file_that_may_not_be_executed_is_no_hook() {
        let folder = tempfile::tempdir().unwrap();
        let hook = hook(folder.path(), "");
        assert!(hook.exists());
        std::fs::set_permissions(&hook.path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(!hook.exists());
        assert!(
            !Hook {
                path: folder.path().into(),
                ..hook
            }
            .exists()
        );
    }
}
