//! `nbd-proxy serve`: the built-in web server. It lets people in; of NBD it knows nothing.

pub(crate) mod api;
mod assets;
mod auth;
mod events;
mod following;
mod http;
mod idle;
mod limits;
mod links;
mod listen;
mod memory;
mod metrics;
pub(crate) mod path;
mod patience;
mod places;
mod prepare;
mod refusal;
mod registry;
mod rights;
mod router;
mod seats;
mod service;
mod threads;
mod tls;

use std::{
    fmt,
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use hyper::{HeaderMap, Response};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, watch},
    task::spawn_blocking,
    time::timeout,
};

pub(crate) use crate::secret::random_hex;
use crate::{
    audit::{self, Audit, Event, Who},
    config::{Config, Doubt},
    control::ControlListener,
    paths, report,
    secret::Secret,
    signals::{Signals, Succession},
};
use auth::{Auth, Identity, LoginError};
use http::Body;
use limits::{Limit, Reached};
use listen::Secured;
use metrics::Metrics;
use places::Places;
pub(crate) use prepare::{Prepared, load, prepare};
use registry::Registry;
use seats::{Occupied, Seat, Seats};
use threads::Threads;
use tls::Tls;

/// How long sessions may take to end beyond what their stop hooks may take.
const GRACE: Duration = Duration::from_secs(10);
/// How long links may take to close once their sessions have ended.
const FAREWELL: Duration = Duration::from_secs(3);

/// What all connections share.
struct Server {
    auth: Auth,
    registry: Registry,
    metrics: Metrics,
    seats: Arc<Seats>,
    links: Arc<Places>,
    events: Arc<Places>,
    /// How many connections there may be.
    connections: usize,
    audit: Audit,
    stopping: watch::Receiver<bool>,
}

impl Server {
    fn new(
        auth: Auth,
        config: &Arc<Config>,
        registry: Registry,
        audit: &Audit,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let limits = config.serve.limits;
        Self {
            auth,
            registry,
            metrics: Metrics::default(),
            seats: Arc::new(Seats::new(&limits, config.serve.access.proxies.clone())),
            links: Places::new(
                (Limit::Links, limits.links),
                (Limit::LinksPerUser, limits.links_per_user),
            ),
            events: Places::new(
                (Limit::Events, limits.events),
                (Limit::EventsPerUser, limits.events_per_user),
            ),
            connections: limits.connections,
            audit: audit.clone(),
            stopping,
        }
    }

    /// Answers a request for which there is no room.
    fn too_many(&self, reached: Reached) -> Response<Body> {
        self.metrics.reached(reached.limit);
        http::too_many(reached.to_string(), limits::PAUSE)
    }

    /// Counts and tells of an attempt to sign in, which may have failed for a reason.
    fn note_login(&self, who: Who, method: &'static str, failure: Option<&LoginError>) {
        self.metrics.login(failure.is_none());
        self.audit.tell(match failure {
            None => Event::LoginSucceeded { who, method },
            Some(LoginError::TooSoon(pause)) => Event::LoginSlowed {
                who,
                method,
                seconds: pause.as_secs().max(1),
            },
            Some(error) => Event::LoginFailed {
                who,
                method,
                reason: error.to_string(),
            },
        });
    }

    /// Whose request this is, for the audit trail.
    fn who(&self, client: &Client, headers: &HeaderMap, identity: Option<&Identity>) -> Who {
        Who {
            user: identity.map(|identity| identity.user.clone()),
            from: self.auth.origin(client, headers),
        }
    }
}

/// Waits until the server stops.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // Fails when the server is gone, which is the same.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Who is at the other end of a connection, for as long as that lasts, as a link too.
struct Client {
    peer: Peer,
    /// Whether they speak TLS with us.
    tls: bool,
    /// The name in the certificate that they showed, for which an authority vouches that the configuration names.
    certificate: Option<String>,
    /// None at the control socket, and where there was no seat left.
    seat: Option<Seat>,
    /// There is no room for this connection: it is told so, and nothing else.
    too_late: Option<Reached>,
    _place: OwnedSemaphorePermit,
}

impl Client {
    fn new(peer: Peer, place: OwnedSemaphorePermit) -> Self {
        Self {
            peer,
            tls: false,
            certificate: None,
            seat: None,
            too_late: None,
            _place: place,
        }
    }

    /// As long as this lives, something goes on on the connection.
    fn occupy(&self) -> Option<Occupied> {
        self.seat.as_ref().map(Seat::occupy)
    }
}

/// Where a connection comes from.
#[derive(Debug)]
enum Peer {
    /// Anybody who reaches a listening address.
    Network(SocketAddr),
    /// A process of our own user, or of root, at the control socket.
    Control,
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(address) => address.fmt(formatter),
            Self::Control => formatter.write_str("the control socket"),
        }
    }
}

/// Serves until a signal.
pub(crate) async fn run(prepared: Prepared) -> anyhow::Result<ExitCode> {
    // First of all: a signal that comes while we start is not lost.
    let mut signals = Signals::new()?;
    let mut succession = Succession::new()?;
    raise_file_limit();
    let Prepared {
        args,
        config,
        addresses,
        passed,
        runtime_dir,
        control_path,
    } = prepared;
    let listeners = match passed {
        passed if passed.is_empty() => listen::bind(&addresses)?,
        passed => listen::adopt(passed)?,
    };
    let control = ControlListener::bind(&control_path).await?;
    let first = listeners
        .first()
        .context("there is no address to listen on")?
        .local_addr()?;
    let state_dir = || paths::state_dir(config.serve.state_dir.as_deref());
    let tls = Tls::start(&config.serve, args.tls_self_signed, &addresses, state_dir).await?;
    let auth = Auth::new(first.port(), &config.serve, state_dir())?;
    rights::warn(&config, &auth);
    for Doubt { what, remedy } in config.serve.doubts() {
        report::warning(format_args!("{what}; {remedy}"));
    }
    let audit = audit::of(&config.serve)?;
    let listening = listeners
        .iter()
        .map(TcpListener::local_addr)
        .collect::<io::Result<Vec<_>>>()?;
    audit.tell(started(&listening));
    let (stop, stopping) = watch::channel(false);
    let threads = Threads::start().context("can't start a thread")?;
    let registry = Registry::new(&config, &runtime_dir, &audit, threads.runtimes());
    let server = Arc::new(Server::new(auth, &config, registry, &audit, stopping));
    for listener in listeners {
        take_all(&server, listener, tls.as_ref());
    }
    let control = tokio::spawn(listen::take_all(Arc::clone(&server), control));
    let scheme = if tls.is_some() { "https" } else { "http" };
    print_address(scheme, first, server.auth.token());
    service::ready(&listening);
    tokio::spawn(service::keep_alive());
    tokio::spawn(idle::watch(Arc::clone(&server)));

    let (signal, leave) = tokio::select! {
        signal = signals.next() => (signal, args.keep_sessions),
        () = succession.begins() => (Succession::NAME, true),
    };
    service::stopping(signal);
    announce_end(signal, leave);
    let _ = stop.send(true);
    let ended = end_sessions(&server, &config, leave, &mut signals).await;
    // It takes its socket away.
    let _ = control.await;
    let reason = match &ended {
        Ok(()) => signal.to_string(),
        Err(error) => format!("{signal}; {error}"),
    };
    audit.tell(Event::ServerStopped { reason });
    let _ = spawn_blocking(move || audit.flush()).await;
    ended.map(|()| ExitCode::SUCCESS)
}

/// Serves whoever comes to `listener`, over TLS where there is any.
fn take_all(server: &Arc<Server>, listener: TcpListener, tls: Option<&Arc<Tls>>) {
    let server = Arc::clone(server);
    match tls.map(Arc::clone) {
        Some(tls) => tokio::spawn(listen::take_all(server, Secured { listener, tls })),
        None => tokio::spawn(listen::take_all(server, listener)),
    };
}

fn announce_end(signal: &str, leave: bool) {
    let what = match leave {
        true => "leaving kernel devices to the next nbd-proxy serve, ending other sessions",
        false => "ending all sessions",
    };
    report::information(format!(
        "{signal}: {what}; a second signal doesn't wait for them"
    ));
}

fn started(listening: &[SocketAddr]) -> Event {
    Event::ServerStarted {
        version: env!("CARGO_PKG_VERSION"),
        listen: listening.iter().map(SocketAddr::to_string).collect(),
    }
}

/// Ends every session in order, or leaves it to the next process: in bounded time, or at once on a second signal.
async fn end_sessions(
    server: &Server,
    config: &Config,
    leave: bool,
    signals: &mut Signals,
) -> anyhow::Result<()> {
    let hook = config
        .configurations
        .iter()
        .map(|one| one.hook_timeout)
        .max()
        .unwrap_or_default();
    let end = async {
        let ended = timeout(hook + GRACE, server.registry.end_all(leave)).await;
        // All places are free once every page was told.
        let _ = timeout(FAREWELL, server.links.all_free()).await;
        ended.context("some sessions did not end in time; the next start cleans up after them")
    };
    tokio::select! {
        ended = end => ended,
        signal = signals.next() => {
            anyhow::bail!("{signal} once more: sessions were left as they are; the next start cleans up after them")
        }
    }
}

/// As many open files as we may have: what a process gets unless it asks (1024) is less than the connections and devices
/// of a busy server. We use no select(2), for whose sake that is so.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Else we go on with what there is, and wait where it is too little.
    let _ = setrlimit(
        Resource::Nofile,
        rustix::process::Rlimit {
            current: limit.maximum,
            ..limit
        },
    );
}

/// The one line of standard output. Whoever opens an address with a token is in.
fn print_address(scheme: &str, mut address: SocketAddr, token: Option<&Secret>) {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    // Who closed our standard output doesn't want to know.
    let _ = match token {
        Some(token) => writeln!(
            io::stdout(),
            "{scheme}://{address}/#token={}",
            token.reveal()
        ),
        None => writeln!(io::stdout(), "{scheme}://{address}/"),
    };
}
