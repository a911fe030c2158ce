//! The program `nbd-proxy`. Nothing of it is meant for other programs: it is a library so that what takes bytes from
//! strangers can be fuzzed, and manual pages are made from the command line's definition.

#![cfg_attr(
    not(feature = "serve"),
    expect(
        dead_code,
        reason = "what the web server alone uses of the shared parts"
    )
)]

#[cfg(feature = "serve")]
mod accounts;
mod attachment;
mod audit;
mod check;
mod claim;
mod cli;
mod config;
#[cfg(feature = "serve")]
mod control;
mod device;
#[cfg(test)]
#[cfg(feature = "serve")]
mod documents;
#[cfg(feature = "serve")]
mod eject;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod hook;
mod keep;
mod link;
#[cfg(feature = "serve")]
mod passwd;
mod paths;
mod polling;
#[cfg(feature = "serve")]
mod private_file;
mod privileged;
mod record;
mod report;
#[cfg(feature = "serve")]
mod sandbox;
#[cfg(feature = "serve")]
mod secret;
#[cfg(feature = "serve")]
mod serve;
#[cfg(feature = "serve")]
mod share;
mod signals;
#[cfg(feature = "serve")]
mod status;
mod stdio;
mod tcp;
mod throttle;
#[cfg(feature = "serve")]
mod tls;
mod units;

use std::{future::Future, io::Write, path::Path, process::ExitCode};

use cli::Action;
use config::{Config, Strictness};
use nbd_kernel::memory::keep_freed;
use tokio::runtime::{Builder, Runtime};

/// How much freed memory stays for what comes next, in bytes: about what is on its way at a time.
const KEPT_BY_FILTER: usize = 512 << 10;
#[cfg(feature = "serve")]
const KEPT_BY_SERVER: usize = 16 << 20;
#[cfg(feature = "serve")]
const KEPT_BY_SHARE: usize = 16 << 20;

/// Runs the program with the arguments of this process.
pub fn main() -> ExitCode {
    let action = match cli::parse(std::env::args_os()) {
        Ok(action) => action,
        Err(error) => return usage(&error),
    };
    match run(action) {
        Ok(code) => code,
        Err(error) => {
            report::error(report::sentence(&error));
            ExitCode::FAILURE
        }
    }
}

/// The command line's definition, from which manual pages and completions are made.
pub fn command() -> clap::Command {
    <cli::Cli as clap::CommandFactory>::command()
}

/// Prints help or the version on standard output, and anything else as one line on standard error.
fn usage(error: &clap::Error) -> ExitCode {
    if error.exit_code() == 0 {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    report::error(cli::one_line(error));
    ExitCode::from(2)
}

fn run(action: Action) -> anyhow::Result<ExitCode> {
    match action {
        Action::Stdio {
            config,
            configuration,
        } => {
            report::enable_syslog();
            keep_freed(KEPT_BY_FILTER);
            // One thread suffices for one link and one device, and leaves a BMC's few cores alone.
            finish(
                Builder::new_current_thread(),
                stdio::run(config, configuration),
            )
        }
        Action::Metadata { config } => print_metadata(config.as_deref()),
        #[cfg(feature = "serve")]
        Action::Passwd(args) => passwd::run(&args),
        Action::Check(args) => finish(Builder::new_current_thread(), check::run(args)),
        #[cfg(feature = "serve")]
        Action::Serve(args) => {
            keep_freed(KEPT_BY_SERVER);
            let prepared = serve::prepare(args)?;
            // For the fuzzer the program is a part of another one.
            if !cfg!(feature = "fuzzing") {
                prepared.give_up_power()?;
            }
            // It starts the threads for sessions itself.
            finish(Builder::new_current_thread(), serve::run(prepared))
        }
        #[cfg(feature = "serve")]
        Action::ServeHelper(args) => finish(
            Builder::new_current_thread(),
            privileged::helper::run(args.config),
        ),
        #[cfg(feature = "serve")]
        Action::Share(args) => {
            keep_freed(KEPT_BY_SHARE);
            finish(Builder::new_current_thread(), share::run(args))
        }
        #[cfg(feature = "serve")]
        Action::Status(args) => finish(Builder::new_current_thread(), status::run(args)),
        #[cfg(feature = "serve")]
        Action::Eject(args) => finish(Builder::new_current_thread(), eject::run(args)),
    }
}

/// Runs a part of the program to its end, and then waits for nothing that still runs beside it: a thread may be
/// stuck in a read of standard input or in a system call on a device.
fn finish(
    mut builder: Builder,
    part: impl Future<Output = anyhow::Result<ExitCode>>,
) -> anyhow::Result<ExitCode> {
    let runtime: Runtime = builder.enable_all().build()?;
    let result = runtime.block_on(part);
    runtime.shutdown_background();
    result
}

fn print_metadata(config: Option<&Path>) -> anyhow::Result<ExitCode> {
    let (config, warnings) = Config::load(&paths::config_file(config), Strictness::Lenient)?;
    warnings.iter().for_each(report::warning);
    writeln!(std::io::stdout(), "{}", config.metadata())?;
    Ok(ExitCode::SUCCESS)
}
