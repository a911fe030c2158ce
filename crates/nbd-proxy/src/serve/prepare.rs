//! Before the server runs: its configuration, and what it gives up.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;

use super::{listen, service};
use crate::{
    claim,
    cli::ServeArgs,
    config::{Config, ConfigError, Strictness},
    control, paths,
    privileged::{self, Helper},
    report,
    sandbox::{self, Needs},
};

/// A server that is about to start.
pub(crate) struct Prepared {
    pub(super) args: ServeArgs,
    pub(super) config: Arc<Config>,
    pub(super) addresses: Vec<SocketAddr>,
    /// Sockets that systemd passes, which listen at these addresses already.
    pub(super) passed: Vec<TcpListener>,
    pub(super) runtime_dir: PathBuf,
    pub(super) control_path: PathBuf,
}

/// Reads the configuration, and sees whether what it names can be.
pub(crate) fn prepare(args: ServeArgs) -> anyhow::Result<Prepared> {
    report::check_form()?;
    let config = Arc::new(load(args.config.as_deref())?);
    let wants_tls = args.tls_self_signed || config.serve.tls.is_some();
    let passed = service::passed_listeners()?;
    let given = match &passed[..] {
        [] => args.listen.clone(),
        passed => (passed.iter().map(TcpListener::local_addr)).collect::<io::Result<_>>()?,
    };
    let addresses = listen::addresses(&given, &config.serve, wants_tls)?;
    for one in &config.configurations {
        let checked = one.device.check();
        checked.with_context(|| format!("configuration {:?}", one.name))?;
    }
    let runtime_dir = paths::runtime_dir()?;
    let control_path = args
        .control
        .clone()
        .unwrap_or_else(|| control::default_path(&runtime_dir));
    Ok(Prepared {
        args,
        config,
        addresses,
        passed,
        runtime_dir,
        control_path,
    })
}

impl Prepared {
    /// Starts the helper, and gives up what the server does not need. Whatever the process starts from then on, threads
    /// above all, has no more; so this comes before the runtime.
    pub(crate) fn give_up_power(&self) -> anyhow::Result<()> {
        claim::clean_up_elsewhere(&self.config, &self.runtime_dir);
        let helper = Helper::start(self.args.config.as_deref())?;
        load_drivers(&self.config);
        let mut needs = Needs::of(&self.config, &self.addresses);
        needs.write_in(&self.runtime_dir);
        needs.write_beside(&self.control_path);
        if let Ok(directory) = paths::state_dir(self.config.serve.state_dir.as_deref()) {
            needs.write_in(&directory);
        }
        let in_force = sandbox::enter(&needs)?;
        if !in_force.is_all() {
            report::warning(format_args!(
                "{in_force}; nbd-proxy check says what is missing"
            ));
        }
        privileged::watch(helper)?;
        Ok(())
    }
}

/// Loads the kernel's NBD driver where a device may need it, since only devices that exist now are left to us.
fn load_drivers(config: &Config) {
    let needed = config
        .configurations
        .iter()
        .any(|one| one.device.may_be_kernel());
    if needed && !nbd_kernel::nbd::driver_loaded() && rustix::process::geteuid().is_root() {
        let _ = privileged::load_nbd(); // without it attaching says what is missing
    }
}

/// The configuration: as given or at its usual place, else the built-in one.
pub(crate) fn load(given: Option<&Path>) -> anyhow::Result<Config> {
    let chosen = given.is_some()
        || std::env::var_os("NBD_PROXY_CONFIG").is_some_and(|value| !value.is_empty());
    match Config::load(&paths::config_file(given), Strictness::Strict) {
        Ok((config, _)) => Ok(config),
        Err(ConfigError::Unreadable { source, .. })
            if source.kind() == io::ErrorKind::NotFound && !chosen =>
        {
            Ok(Config::built_in())
        }
        Err(error) => Err(error.into()),
    }
}
