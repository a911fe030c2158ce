//! A socket device: an NBD server on a Unix socket or on TCP, for QEMU, libnbd and the like.

mod place;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nbd::{Export, server::Handshake};
use place::SocketFile;
use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Notify,
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};

use super::{
    AttachRequest, Detached, DeviceError,
    budget::Inlet,
    client::{self, ClientError},
    guard::Guard,
    tasks, users,
};
use crate::{config::TlsFiles, paths, report::Kind, tcp};

/// How many clients one device has at most.
const MAX_CLIENTS: usize = 64;
static FAILED_ACCEPTS: Kind = Kind::new();
static REFUSED_CLIENTS: Kind = Kind::new();
static DROPPED_CLIENTS: Kind = Kind::new();
/// What the kernel may keep that a client of a Unix socket did not take yet, in bytes; it doubles that for what it needs
/// itself (socket(7)). A reply of 256 KiB fits. With what is usual it was sent in two parts, and waited in between.
const SEND_BUFFER: usize = 192 << 10;
/// How long nothing is accepted after the system refused to (no file descriptors, for one).
const PAUSE: Duration = Duration::from_millis(100);
/// How long a client that has just hung up may take to be seen gone: `nbdcopy … && nbd-proxy eject` is to work.
const FAREWELL: Duration = Duration::from_millis(500);

/// An NBD server on a socket.
#[derive(Debug)]
pub(crate) struct SocketDevice {
    path: String,
    clients: Arc<Clients>,
    /// The task that accepts clients and owns their tasks: all of them end with it.
    acceptor: AbortHandle,
    /// Of a Unix socket.
    file: Option<SocketFile>,
}

impl SocketDevice {
    fn new(
        path: String,
        listener: Listener,
        file: Option<SocketFile>,
        request: AttachRequest,
    ) -> Self {
        let clients = Arc::new(Clients::default());
        let acceptor = Acceptor {
            listener,
            exports: ["", &request.name]
                .map(|name| client::export(name, &request.geometry))
                .to_vec(),
            inlet: Inlet::new(request.requests, request.memory),
            clients: Arc::clone(&clients),
            path: path.clone(),
            tasks: JoinSet::new(),
        };
        let acceptor = tokio::spawn(acceptor.run()).abort_handle();
        Self {
            path,
            clients,
            acceptor,
            file,
        }
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) async fn users(&self) -> Vec<String> {
        self.clients.settled().await
    }

    pub(crate) async fn detach(&self, force: bool) -> Result<Detached, DeviceError> {
        let users = if force {
            Vec::new()
        } else {
            self.clients.settled().await
        };
        if !users.is_empty() {
            return Err(DeviceError::InUse {
                device: self.path.clone(),
                users,
            });
        }
        self.close();
        // The listening socket goes with the task: whoever comes next may want the same port.
        tasks::end(&self.acceptor).await;
        Ok(Detached::Free)
    }

    pub(crate) async fn drained(&self) {}

    fn close(&self) {
        self.acceptor.abort();
        if let Some(file) = &self.file {
            file.remove();
        }
    }
}

impl Drop for SocketDevice {
    fn drop(&mut self) {
        self.close();
    }
}

/// Puts a server at `path`, or at `R/NAME.sock`.
pub(crate) async fn attach_unix(
    path: Option<&Path>,
    request: AttachRequest,
) -> Result<SocketDevice, DeviceError> {
    let path = unix_path(path, &request.name, &request.runtime_dir);
    place::make_way(&path)?;
    let (listener, file) = place::listen_at(&path)?;
    let listener = UnixListener::from_std(listener).map_err(DeviceError::io("watch a socket"))?;
    Ok(SocketDevice::new(
        path.display().to_string(),
        Listener::Unix(listener),
        Some(file),
        request,
    ))
}

/// Puts a server at `address`, which the configuration has found to be on loopback where there is no TLS.
pub(crate) async fn attach_tcp(
    address: SocketAddr,
    tls: Option<&TlsFiles>,
    request: AttachRequest,
) -> Result<SocketDevice, DeviceError> {
    let guard = match tls {
        Some(files) => Some(Guard::new(files).await?),
        None => None,
    };
    let listener = tcp::listen(address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => DeviceError::Refused(format!(
            "something listens on {address} already; end it, or choose another port for the device"
        )),
        _ => DeviceError::io(format!("listen on tcp:{address}"))(error),
    })?;
    let address = listener
        .local_addr()
        .map_err(DeviceError::io("tell a socket's address"))?;
    Ok(SocketDevice::new(
        address.to_string(),
        Listener::Tcp(listener, guard),
        None,
        request,
    ))
}

/// Removes the socket that a killed process left, if nobody listens on it.
pub(crate) fn recover(
    path: Option<&Path>,
    name: &str,
    runtime_dir: &Path,
) -> Result<Vec<String>, DeviceError> {
    let path = unix_path(path, name, runtime_dir);
    Ok(place::make_way(&path)?
        .then(|| format!("removed the socket {}", path.display()))
        .into_iter()
        .collect())
}

pub(crate) fn unix_path(path: Option<&Path>, name: &str, runtime_dir: &Path) -> PathBuf {
    let path = path.map_or_else(
        || paths::runtime_file(runtime_dir, name, "sock"),
        Path::to_path_buf,
    );
    // Those who are told the path may be in another folder than we.
    std::path::absolute(&path).unwrap_or(path)
}

#[derive(Debug)]
enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener, Option<Guard>),
}

/// Accepts clients and serves each in a task of its own.
struct Acceptor {
    listener: Listener,
    exports: Vec<Export>,
    inlet: Inlet,
    clients: Arc<Clients>,
    path: String,
    tasks: JoinSet<()>,
}

impl Acceptor {
    async fn run(mut self) {
        loop {
            if let Err(error) = self.accept().await {
                FAILED_ACCEPTS.warning(format_args!(
                    "{}: can't accept a client: {error}",
                    self.path
                ));
                sleep(PAUSE).await;
            }
            while self.tasks.try_join_next().is_some() {}
        }
    }

    async fn accept(&mut self) -> io::Result<()> {
        match &self.listener {
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let _ = set_socket_send_buffer_size(&stream, SEND_BUFFER);
                let peer = describe_peer(&stream);
                self.welcome(stream, peer);
            }
            Listener::Tcp(listener, guard) => {
                let (stream, peer) = listener.accept().await?;
                tcp::hasten(&stream);
                let guard = guard.clone();
                match guard {
                    Some(guard) => self.admit(stream, peer.to_string(), guard),
                    None => self.welcome(stream, peer.to_string()),
                }
            }
        }
        Ok(())
    }

    fn welcome<S>(&mut self, stream: S, peer: String)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handshake = client::handshake(self.exports.clone());
        let host = self.host(peer);
        if let Some(entry) = host.enter() {
            self.tasks.spawn(host.serve(entry, stream, handshake));
        }
    }

    /// Who has not shown who it is is no client yet: it takes no client's place, and doesn't keep the device in use.
    fn admit(&mut self, stream: TcpStream, peer: String, guard: Guard) {
        let exports = self.exports.clone();
        let host = self.host(peer);
        self.tasks.spawn(async move {
            match guard.admit(stream, exports).await {
                Ok(Some((stream, handshake))) => {
                    if let Some(entry) = host.enter() {
                        host.serve(entry, stream, handshake).await;
                    }
                }
                Ok(None) => {}
                Err(error) => host.tell(&error),
            }
        });
    }

    fn host(&self, peer: String) -> Host {
        Host {
            path: self.path.clone(),
            peer,
            inlet: self.inlet.clone(),
            clients: Arc::clone(&self.clients),
        }
    }
}

/// Serves one client.
struct Host {
    path: String,
    peer: String,
    inlet: Inlet,
    clients: Arc<Clients>,
}

impl Host {
    /// None when there are too many.
    fn enter(&self) -> Option<Entry> {
        let entry = Clients::enter(&self.clients, format!("connected: {}", self.peer));
        if entry.is_none() {
            REFUSED_CLIENTS.warning(format_args!(
                "{}: refused {}: there are {MAX_CLIENTS} clients",
                self.path, self.peer
            ));
        }
        entry
    }

    async fn serve<S>(self, _entry: Entry, stream: S, handshake: Handshake)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if let Err(error) = client::serve(stream, handshake, self.inlet.clone()).await {
            self.tell(&error);
        }
    }

    fn tell(&self, error: &ClientError) {
        DROPPED_CLIENTS.warning(format_args!(
            "{}: dropped {}: {error}",
            self.path, self.peer
        ));
    }
}

/// Who is at the other end of a Unix socket.
fn describe_peer(stream: &UnixStream) -> String {
    let Some(process) = stream
        .peer_cred()
        .ok()
        .and_then(|credentials| credentials.pid())
    else {
        return "a process".into();
    };
    match fs::read_to_string(format!("/proc/{process}/comm")) {
        Ok(name) => format!("process {process} ({})", users::printable(name.trim_end())),
        Err(_) => format!("process {process}"),
    }
}

/// Who is connected now.
#[derive(Debug, Default)]
struct Clients {
    present: Mutex<Present>,
    /// Somebody has left.
    left: Notify,
}

#[derive(Debug, Default)]
struct Present {
    names: BTreeMap<u64, String>,
    next: u64,
}

impl Clients {
    fn present(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn names(&self) -> Vec<String> {
        // A client may have several connections.
        let names: BTreeSet<_> = self.present().names.values().cloned().collect();
        names.into_iter().collect()
    }

    /// Who is still here after a moment in which all may leave.
    async fn settled(&self) -> Vec<String> {
        let all_gone = async {
            loop {
                let left = self.left.notified();
                if self.present().names.is_empty() {
                    return;
                }
                left.await;
            }
        };
        let _ = timeout(FAREWELL, all_gone).await;
        self.names()
    }

    /// None when there are too many.
    fn enter(clients: &Arc<Self>, name: String) -> Option<Entry> {
        let mut present = clients.present();
        if present.names.len() >= MAX_CLIENTS {
            return None;
        }
        let number = present.next;
        present.next += 1;
        present.names.insert(number, name);
        Some(Entry {
            clients: Arc::clone(clients),
            number,
        })
    }
}

/// One client's presence; it leaves when this is dropped.
struct Entry {
    clients: Arc<Clients>,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.clients.present().names.remove(&self.number);
        self.clients.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
