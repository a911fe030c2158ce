//! The server's end of the helper.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, OnceLock},
    thread,
};

use anyhow::Context as _;
use nbd_kernel::Error;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::{sync::oneshot, task::spawn_blocking};

use super::{
    Outcome, Request,
    helper::{SUBCOMMAND, environment},
    protocol::{self, Answer, Call},
};
use crate::{
    hook::{Action, Hook, HookError, Subject},
    report,
};

/// A process has given up its privileges as a whole, so there is one helper, wherever in the process it is needed.
static HELPER: OnceLock<Arc<Helper>> = OnceLock::new();

/// The helper, once one was started.
pub(crate) fn helper() -> Option<&'static Arc<Helper>> {
    HELPER.get()
}

/// The process that kept our privileges. It ends with us.
#[derive(Debug)]
pub(crate) struct Helper {
    /// Carries one end of a socket pair for each call.
    channel: OwnedFd,
}

impl Helper {
    /// Starts it, with our privileges of now, and waits until it has read its configuration. Everything that this process
    /// does with privileges goes through it from then on.
    pub(crate) fn start(config: Option<&Path>) -> anyhow::Result<Child> {
        nbd_kernel::descriptors::close_on_exec().context("can't mark inherited files")?;
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .context("can't make a socket pair")?;
        let child = command(config, theirs)
            .spawn()
            .context("can't start the helper process from /proc/self/exe")?;
        let helper = Arc::new(Self { channel: ours });
        helper
            .call(&Call::Hello)
            .context("the helper process did not start; its own message says why")?;
        let _ = HELPER.set(helper);
        Ok(child)
    }

    /// Has a piece of work done.
    pub(super) fn perform(&self, request: &Request) -> Result<Outcome, Error> {
        let answer = self.call(&Call::Work(request.clone()));
        let (answer, descriptor) = answer.map_err(|source| Error::Io {
            action: "ask the helper process".into(),
            source,
        })?;
        answer.outcome(descriptor)
    }

    /// Has the hook run, as [`Hook::run`] does.
    pub(crate) async fn run_hook(
        self: &Arc<Self>,
        hook: &Hook,
        action: Action,
        subject: &Subject,
        reason: &str,
        abandon: oneshot::Receiver<()>,
    ) -> Result<(), HookError> {
        let call = Call::Hook {
            configuration: hook.name.clone(),
            action,
            subject: subject.clone(),
            reason: reason.into(),
        };
        match self.await_hook(call, abandon).await {
            Ok(Answer::Done) => Ok(()),
            Ok(Answer::HookFailed(sentence)) => Err(HookError::Told(sentence)),
            Ok(answer) => Err(HookError::Told(format!(
                "the helper process answered {answer:?} to the run of a hook"
            ))),
            Err(source) => Err(HookError::Spawn {
                path: hook.path.clone(),
                source,
            }),
        }
    }

    async fn await_hook(
        self: &Arc<Self>,
        call: Call,
        abandon: oneshot::Receiver<()>,
    ) -> io::Result<Answer> {
        let helper = Arc::clone(self);
        let stream = spawn_blocking(move || helper.open(&call)).await??;
        let answers = stream.try_clone()?;
        let mut answer = spawn_blocking(move || protocol::receive_answer(&answers));
        tokio::select! {
            answer = &mut answer => return Ok(answer?.map_err(gone)?.0),
            Ok(()) = abandon => {}
        }
        protocol::send(&stream, b"\n", None)?;
        Ok(answer.await?.map_err(gone)?.0)
    }

    fn call(&self, call: &Call) -> io::Result<(Answer, Option<OwnedFd>)> {
        let stream = self.open(call)?;
        protocol::receive_answer(&stream).map_err(gone)
    }

    fn open(&self, call: &Call) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        protocol::send(&self.channel, b"c", Some(theirs.as_fd())).map_err(gone)?;
        drop(theirs);
        protocol::send(&ours, &protocol::line(call)?, None).map_err(gone)?;
        Ok(ours)
    }
}

/// Says when the helper has ended before us. Sessions go on: their data does not pass through it. A thread has the
/// privileges that its maker has: this comes after they were given up.
pub(crate) fn watch(helper: Child) -> io::Result<()> {
    thread::Builder::new()
        .name("helper".into())
        .spawn(move || report_end(helper))
        .map(drop)
}

fn report_end(mut helper: Child) {
    let status = match helper.wait() {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    report::error(format_args!(
        "the helper process has ended ({status}): no hook can be run, and no device be attached or taken away unless by \
         force; restart nbd-proxy"
    ));
}

/// What a broken connection to the helper means.
fn gone(error: io::Error) -> io::Error {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    match error.kind() {
        BrokenPipe | ConnectionReset | UnexpectedEof => {
            io::Error::other("the helper process has ended; restart nbd-proxy")
        }
        _ => error,
    }
}

/// The helper's clean environment is that of the hooks too.
fn command(config: Option<&Path>, channel: OwnedFd) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("nbd-proxy")
        .arg(SUBCOMMAND)
        .env_clear()
        .envs(environment())
        .stdin(Stdio::from(channel))
        .stdout(Stdio::null())
        // What a terminal sends to us is not for it: hooks run until the sessions have ended.
        .process_group(0);
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    command
}
