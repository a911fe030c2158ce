//! The process that faces the network gives up what it does not need, for itself and every thread that it starts.
//!
//! What a stranger's bytes might make of it then cannot start a program, look at other processes, gain a privilege,
//! connect anywhere, or touch files that have nothing to do with its devices. The helper keeps the privileges, and does
//! with them what its own reading of the configuration allows.

mod capabilities;
mod files;
mod needs;
mod system_calls;

use std::{fmt, thread};

use anyhow::Context as _;

use crate::report;
pub(crate) use needs::Needs;

/// What is in force.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InForce {
    /// The version of Landlock's interface.
    landlock: Option<i32>,
    /// Whether system calls are filtered.
    seccomp: bool,
}

impl InForce {
    /// Whether it is all that there can be.
    pub(crate) fn is_all(&self) -> bool {
        self.landlock.is_some() && self.seccomp
    }
}

impl fmt::Display for InForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.landlock {
            Some(version) => write!(f, "Landlock (version {version}) is in force")?,
            None => f.write_str("Landlock is not to be had here")?,
        }
        f.write_str(if self.seccomp {
            ", seccomp is in force"
        } else {
            ", seccomp is not to be had here"
        })
    }
}

/// What would be in force: tried on a thread that ends with the trial.
pub(crate) fn trial() -> anyhow::Result<InForce> {
    let trial = thread::spawn(|| enter(&Needs::nothing()));
    trial
        .join()
        .unwrap_or_else(|_| Err(anyhow::anyhow!("the trial ended early")))
}

/// Gives up everything but `needs`. The order matters: dropping a capability takes a capability, and the filter of system
/// calls comes last, since it refuses some that the others use.
pub(crate) fn enter(needs: &Needs) -> anyhow::Result<InForce> {
    if needs.kernel_devices {
        // Memory that we wait for must not be freed by writing to the device that we serve (prctl(2)).
        let _ = rustix::process::configure_io_flusher_behavior(true); // takes CAP_SYS_RESOURCE and Linux 5.6
    }
    capabilities::keep_only(needs.capabilities).context("can't drop capabilities")?;
    rustix::thread::set_no_new_privs(true).context("can't set no_new_privs")?;
    for path in &needs.missing {
        report::warning(format_args!(
            "{} does not exist; what is made there later is out of reach until nbd-proxy is restarted",
            path.display()
        ));
    }
    Ok(InForce {
        landlock: files::restrict(needs).context("can't restrict access to files (Landlock)")?,
        seccomp: system_calls::restrict().context("can't filter system calls (seccomp)")?,
    })
}

#[cfg(test)]
mod tests;
