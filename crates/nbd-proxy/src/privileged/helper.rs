//! The helper process: keeps the privileges that `serve` was started with, and does what [`Rules`] let it.

use std::{
    ffi::OsString,
    io,
    os::{fd::AsFd, unix::net},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    thread,
};

use anyhow::Context as _;
use nbd_kernel::descriptors;
use rustix::process::DumpableBehavior;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, Interest},
    net::UnixStream,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::spawn_blocking,
};

use super::{
    protocol::{self, Answer, CALL_LIMIT, Call},
    rules::Rules,
    turn, work,
};
use crate::{
    hook::{Action, Environment, Subject},
    paths, report, serve,
    signals::Signals,
};

/// How it is started; not for people.
pub(crate) const SUBCOMMAND: &str = "serve-helper";
/// How many calls are carried out at once; further ones wait. Some may wait for a device that is held.
const CALLS: usize = 256;

/// What hooks see of our environment.
const FOR_HOOKS: [&str; 8] = [
    "PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "HOME", "USER", "LOGNAME",
];
/// What the helper needs besides: where the configuration and the runtime directory are, and how its messages look.
const FOR_HELPER: [&str; 5] = [
    "NBD_PROXY_CONFIG",
    "RUNTIME_DIRECTORY",
    "XDG_RUNTIME_DIR",
    report::FORM_VARIABLE,
    "JOURNAL_STREAM",
];
/// Where programs are, should nobody have said.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The environment of the helper, out of ours.
pub(super) fn environment() -> Vec<(&'static str, OsString)> {
    let mut environment = hook_environment();
    environment.extend(present(&FOR_HELPER));
    environment
}

/// The clean environment of a hook, apart from what it is told of its device.
fn hook_environment() -> Vec<(&'static str, OsString)> {
    let mut environment = present(&FOR_HOOKS);
    if !environment.iter().any(|(name, _)| *name == "PATH") {
        environment.push(("PATH", DEFAULT_PATH.into()));
    }
    environment
}

fn present(names: &[&'static str]) -> Vec<(&'static str, OsString)> {
    let variable = |name: &&'static str| Some((*name, std::env::var_os(name)?));
    names.iter().filter_map(variable).collect()
}

/// Serves the process at the other end of standard input until that ends, and then finishes the hooks.
pub(crate) async fn run(config: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    rustix::net::sockopt::socket_type(io::stdin()).with_context(|| {
        format!("{SUBCOMMAND} is for serve to start, with a socket as its input")
    })?;
    // Our server says when it is time to end; whoever signals all of a service's processes means the server.
    let _ignored = Signals::new()?;
    // Nobody of our own user looks into our memory.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let server = rustix::process::getppid().context("our server has ended")?;
    let rules = Rules::new(serve::load(config.as_deref())?, paths::runtime_dir()?);
    let helper = Arc::new(Helper {
        rules,
        own: vec![
            std::process::id(),
            server.as_raw_nonzero().get().cast_unsigned(),
        ],
    });
    let (calls, mut accepted) = mpsc::channel(1);
    thread::Builder::new()
        .name("calls".into())
        .spawn(move || accept(&calls))?;
    let places = Arc::new(Semaphore::new(CALLS));
    let (hook_runs, mut hooks_are_over) = mpsc::channel::<()>(1);
    while let Some(call) = accepted.recv().await {
        let place = Arc::clone(&places).acquire_owned().await?;
        let (helper, running) = (Arc::clone(&helper), hook_runs.clone());
        tokio::spawn(async move {
            if let Err(error) = helper.answer(call, running, place).await {
                report::warning(format_args!("a call to the helper process failed: {error}"));
            }
        });
    }
    drop(hook_runs);
    hooks_are_over.recv().await;
    Ok(ExitCode::SUCCESS)
}

/// Takes calls from standard input until its other end is closed.
fn accept(calls: &mpsc::Sender<net::UnixStream>) {
    let stdin = io::stdin();
    loop {
        match descriptors::receive(stdin.as_fd(), &mut [0; 16]) {
            Ok(received) if received.length > 0 => {
                let Some(call) = received.descriptor else {
                    continue;
                };
                if calls.blocking_send(net::UnixStream::from(call)).is_err() {
                    return;
                }
            }
            Ok(_) => return,
            Err(error) => {
                report::error(format_args!(
                    "the helper process hears nothing more: {error}"
                ));
                return;
            }
        }
    }
}

struct Helper {
    rules: Rules,
    /// Our server and we: no users of what we serve.
    own: Vec<u32>,
}

impl Helper {
    /// Carries out one call. `running` is dropped once no hook of it runs.
    async fn answer(
        self: Arc<Self>,
        call: net::UnixStream,
        running: mpsc::Sender<()>,
        _place: OwnedSemaphorePermit,
    ) -> io::Result<()> {
        call.set_nonblocking(true)?;
        let mut stream = BufReader::new(UnixStream::from_std(call)?);
        let mut line = Vec::new();
        (&mut stream)
            .take(CALL_LIMIT as u64)
            .read_until(b'\n', &mut line)
            .await?;
        let (answer, descriptor) = match protocol::parse(&line)? {
            Call::Hello => (Answer::Done, None),
            Call::Work(request) => {
                drop(running);
                spawn_blocking(move || {
                    let allowed = self.rules.check(&request);
                    Answer::of(allowed.and_then(|()| work::perform(&request, &self.own)))
                })
                .await?
            }
            Call::Hook {
                configuration,
                action,
                subject,
                reason,
            } => {
                let ended = self.run_hook(&configuration, action, &subject, &reason, &mut stream);
                let answer = ended
                    .await
                    .map_or_else(Answer::HookFailed, |()| Answer::Done);
                drop(running);
                (answer, None)
            }
        };
        let line = protocol::line(&answer)?;
        let stream = stream.into_inner();
        let descriptor = descriptor.as_ref().map(AsFd::as_fd);
        // An answer is shorter than a socket's buffer, and nothing else was written to this one.
        stream
            .async_io(Interest::WRITABLE, || {
                protocol::send(&stream, &line, descriptor)
            })
            .await
    }

    async fn run_hook(
        &self,
        configuration: &str,
        action: Action,
        subject: &Subject,
        reason: &str,
        stream: &mut BufReader<UnixStream>,
    ) -> Result<(), String> {
        let hook = self.rules.hook(configuration, subject, reason)?;
        if !hook.exists() {
            return Ok(());
        }
        let _turn = turn::take(&self.rules.state_file(configuration), hook.timeout).await;
        let (abandon, abandoned) = oneshot::channel();
        let environment = Environment::Only(hook_environment());
        let run = hook.run_here(action, subject, reason, &environment, abandoned);
        tokio::pin!(run);
        let ended = tokio::select! {
            ended = &mut run => ended,
            () = is_unwanted(action, stream) => {
                let _ = abandon.send(());
                run.await
            }
        };
        ended.map_err(|error| error.to_string())
    }
}

/// Waits until the server no longer wants the hook. When the server itself is gone its session is over, which ends a
/// `start`; a `stop` is finished all the same.
async fn is_unwanted(action: Action, stream: &mut BufReader<UnixStream>) {
    let mut word = [0];
    let said = stream.read(&mut word).await;
    if action == Action::Stop && !matches!(said, Ok(1)) {
        std::future::pending::<()>().await;
    }
}
