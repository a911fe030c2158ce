//! What a configuration needs.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use rustix::thread::CapabilitySet;

use crate::{
    config::{Config, Configuration, Destination, Place, TlsFiles},
    device::DeviceSpec,
};

/// Ports below take a capability (`ip_unprivileged_port_start` of `ip(7)`, unless somebody changed it).
const UNPRIVILEGED_PORTS: u16 = 1024;

/// What the server is left.
#[derive(Debug)]
pub(crate) struct Needs {
    /// Of those that it has.
    pub(super) capabilities: CapabilitySet,
    /// Whether it answers the kernel's block layer.
    pub(super) kernel_devices: bool,
    /// Files and directories that are only read.
    pub(super) read: Vec<PathBuf>,
    /// Directories in which files are made, written and removed.
    pub(super) write: Vec<PathBuf>,
    /// Directories that should be there, and are not.
    pub(super) missing: Vec<PathBuf>,
    /// Device nodes.
    pub(super) devices: Vec<PathBuf>,
    /// Directories of the kernel's whose files are written to.
    pub(super) knobs: Vec<PathBuf>,
    /// TCP ports that it listens on.
    pub(super) ports: Vec<u16>,
    /// Whether it sends to a socket without a file.
    pub(super) abstract_sockets: bool,
}

impl Needs {
    /// Of a server with that configuration, which listens at `addresses`.
    pub(crate) fn of(config: &Config, addresses: &[SocketAddr]) -> Self {
        let mut needs = Self::nothing();
        needs.ports.extend(addresses.iter().map(SocketAddr::port));
        needs.devices.push("/dev/null".into());
        for configuration in &config.configurations {
            needs.add(configuration);
        }
        needs.read_all_beside(config.serve.files());
        if let Some(Destination::File(file)) = &config.serve.audit {
            needs.write_beside(file);
        }
        if needs
            .ports
            .iter()
            .any(|port| (1..UNPRIVILEGED_PORTS).contains(port))
        {
            needs.capabilities |= CapabilitySet::NET_BIND_SERVICE;
        }
        let notify = std::env::var("NOTIFY_SOCKET");
        needs.abstract_sockets = notify.is_ok_and(|path| path.starts_with('@'));
        needs
    }

    /// Nothing at all.
    pub(super) fn nothing() -> Self {
        Self {
            capabilities: CapabilitySet::empty(),
            kernel_devices: false,
            read: Vec::new(),
            write: Vec::new(),
            missing: Vec::new(),
            devices: Vec::new(),
            knobs: Vec::new(),
            ports: Vec::new(),
            abstract_sockets: false,
        }
    }

    fn add(&mut self, configuration: &Configuration) {
        match &configuration.device {
            DeviceSpec::Kernel { .. } => self.attach_kernel_devices(),
            DeviceSpec::Auto if nbd_kernel::nbd::driver_loaded() => self.attach_kernel_devices(),
            // Where nothing is said they are in the runtime directory.
            DeviceSpec::Unix { path: Some(path) } | DeviceSpec::Fuse { path: Some(path) } => {
                self.write_beside(path);
            }
            DeviceSpec::Tcp { address, tls } => {
                self.ports.push(address.port());
                self.read_all_beside(tls.iter().flat_map(TlsFiles::paths));
            }
            // The helper mounts, and attaches loop devices.
            DeviceSpec::Auto
            | DeviceSpec::Loop
            | DeviceSpec::Unix { path: None }
            | DeviceSpec::Fuse { path: None } => {}
        }
        if let Some(keep) = &configuration.keep
            && let Place::Directory(directory) = &keep.place
        {
            self.write_in(directory);
        }
    }

    /// The driver asks for CAP_SYS_ADMIN, by netlink as by ioctl.
    fn attach_kernel_devices(&mut self) {
        self.kernel_devices = true;
        self.capabilities |= CapabilitySet::SYS_ADMIN;
        let nodes = nbd_kernel::nbd::Device::all();
        self.devices
            .extend(nodes.iter().map(|device| device.disk().path()));
        self.knobs = vec!["/sys/devices/virtual/block".into()];
    }

    /// It has files in that directory.
    pub(crate) fn write_in(&mut self, directory: &Path) {
        let list = if directory.is_dir() {
            &mut self.write
        } else {
            &mut self.missing
        };
        list.push(directory.into());
    }

    /// It makes that file, or others beside it to put in its place.
    pub(crate) fn write_beside(&mut self, file: &Path) {
        self.write_in(parent(file));
    }

    fn read_all_beside<'a>(&mut self, files: impl IntoIterator<Item = &'a Path>) {
        files.into_iter().for_each(|file| self.read_beside(file));
    }

    /// A file that is replaced by another of its name is read through its directory; so is one that a symbolic link leads
    /// to, as the certificates of Let's Encrypt are.
    fn read_beside(&mut self, file: &Path) {
        self.read.push(parent(file).into());
        if let Ok(target) = fs::canonicalize(file) {
            self.read.push(parent(&target).into());
        }
    }
}

fn parent(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
