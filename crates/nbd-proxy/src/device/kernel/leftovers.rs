//! What a killed process left attached.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    time::Duration,
};

use nbd_kernel::nbd::Device;

use crate::{
    device::{
        DeviceError, blocking,
        users::{self, poll_until},
    },
    privileged,
};

/// A leftover is free within this time, unless somebody holds it: its readers may be on their way out.
const RECOVER_LIMIT: Duration = Duration::from_secs(2);

pub(super) fn backend_identifier(name: &str, session: &str) -> String {
    format!("nbd-proxy:{name}:{session}")
}

/// The session in a backend identifier of ours for that configuration. A name may have colons, a session has none.
fn session_of<'a>(backend: &'a str, name: &str) -> Option<&'a str> {
    let (owner, session) = backend.rsplit_once(':')?;
    (owner.strip_prefix("nbd-proxy:")? == name).then_some(session)
}

/// An abstract socket that is bound as long as the process that attached lives: proof against taking another nbd-proxy's
/// device for a leftover, should it have another runtime directory and so another lock.
pub(super) fn sign_of_life(session: &str) -> io::Result<UnixDatagram> {
    UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(format!(
        "nbd-proxy/{session}"
    ))?)
}

fn is_alive(session: &str) -> bool {
    sign_of_life(session).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// Cuts the devices off that a killed process left attached for configuration `name`: whoever reads them gets an error
/// at once rather than when the hold is over. They are free when nobody has them open.
pub(crate) async fn cut_off(name: &str) -> Result<Vec<Device>, DeviceError> {
    let name = name.to_owned();
    blocking::run(move || cut_off_now(&name))
        .await
        .map_err(DeviceError::io("detach a leftover"))?
}

fn cut_off_now(name: &str) -> Result<Vec<Device>, DeviceError> {
    let mut leftovers = Vec::new();
    for device in Device::all() {
        let backend = device.attached().and_then(|attached| attached.backend);
        let Some(session) = backend
            .as_deref()
            .and_then(|backend| session_of(backend, name))
        else {
            continue;
        };
        let path = device.disk().path();
        if is_alive(session) {
            let users = vec!["another nbd-proxy serves this configuration".into()];
            return Err(DeviceError::InUse {
                device: path.display().to_string(),
                users,
            });
        }
        privileged::disconnect(device.index())
            .map_err(io::Error::other)
            .map_err(DeviceError::io(format!("detach {}", path.display())))?;
        leftovers.push(device);
    }
    Ok(leftovers)
}

/// Whether an nbd-proxy that lives no more attached `/dev/nbdINDEX`.
#[cfg(feature = "serve")]
pub(crate) fn is_leftover(index: u32) -> bool {
    let attached = Device::new(index).attached();
    let backend = attached.and_then(|attached| attached.backend);
    backend.is_some_and(|backend| match backend.rsplit_once(':') {
        Some((owner, session)) => owner.starts_with("nbd-proxy:") && !is_alive(session),
        None => false,
    })
}

/// Frees the devices whose backend identifier names configuration `name`.
pub(crate) async fn recover(name: &str) -> Result<Vec<String>, DeviceError> {
    let mut freed = Vec::new();
    for device in cut_off(name).await? {
        let path = device.disk().path();
        if !poll_until(RECOVER_LIMIT, || !device_is_left(&device, name)).await {
            let device_path = path.display().to_string();
            return Err(DeviceError::InUse {
                device: device_path,
                users: users::of_disk(device.disk()).await,
            });
        }
        freed.push(format!("{} was still attached", path.display()));
    }
    Ok(freed)
}

fn device_is_left(device: &Device, name: &str) -> bool {
    let backend = device.attached().and_then(|attached| attached.backend);
    backend.is_some_and(|backend| session_of(&backend, name).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leftover_belongs_to_exactly_one_configuration() {
        let backend = backend_identifier("a:b", "0f");
        assert_eq!(session_of(&backend, "a:b"), Some("0f"));
        assert_eq!(session_of(&backend, "a"), None);
        assert_eq!(session_of("nbd-client:a:0f", "a"), None);
        assert_eq!(session_of("nbd-proxy:a", "a"), None);
    }

    #[tokio::test]
    async fn a_process_shows_that_it_lives_until_it_ends() {
        let session = format!("test-{}", std::process::id());
        assert!(!is_alive(&session));
        let sign = sign_of_life(&session).unwrap();
        assert!(is_alive(&session));
        drop(sign);
        // A program that another test is just starting has it until its exec.
        assert!(poll_until(RECOVER_LIMIT, || !is_alive(&session)).await);
    }
}
