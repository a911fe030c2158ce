//! `nbd-proxy share`: serves a local image to a distant nbd-proxy, as a page does, without a browser.

mod address;
mod connection;
mod exchange;
mod image;
mod progress;
mod reconnect;
mod trust;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::{Context as _, bail};

use crate::{cli::ShareArgs, report, serve, signals::Signals, tls::Fingerprint, units};
use address::Address;
use connection::{Connection, PATIENCE};
use exchange::{Ending, Exchange, Finished};
use image::Image;
use progress::{Progress, Sum};
use reconnect::{Found, Search};
use trust::Trust;

/// Serves an image until the session ends.
pub(crate) async fn run(args: ShareArgs) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let mut address = Address::parse(&args.url, args.token)?;
    address.trust = trust(args.fingerprint, args.ca, address.tls)?;
    let image = Arc::new(Image::open(&args.image, args.name)?);
    let session = serve::random_hex::<16>().context("no random numbers")?;
    let mut progress = Progress::new(image.info());
    let connection = tokio::select! {
        connection = connection::open(&mut address, &session, args.takeover, PATIENCE) => connection?,
        _ = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    let mut sharing = Sharing {
        address,
        session,
        progress: &mut progress,
        signals: &mut signals,
    };
    let finished = sharing.run(connection, image).await;
    connection::log_out(&sharing.address).await;
    let sum = progress.sum();
    drop(progress);
    Ok(conclude(&finished, sum))
}

/// What the command line says of the server's certificate.
fn trust(
    fingerprint: Option<Fingerprint>,
    ca: Option<PathBuf>,
    tls: bool,
) -> anyhow::Result<Trust> {
    let trust = match (fingerprint, ca) {
        (Some(fingerprint), _) => Trust::Certificate(fingerprint),
        (None, Some(path)) => Trust::Authorities(path),
        (None, None) => Trust::Machine,
    };
    if !tls && trust != Trust::Machine {
        bail!(
            "without TLS there is no certificate to check; begin the address with https:// or wss://"
        );
    }
    Ok(trust)
}

/// An image, as long as it is shared.
struct Sharing<'a> {
    address: Address,
    session: String,
    progress: &'a mut Progress,
    signals: &'a mut Signals,
}

impl Sharing<'_> {
    /// A link for the session, now.
    async fn open(&mut self) -> anyhow::Result<Connection> {
        connection::open(&mut self.address, &self.session, false, PATIENCE).await
    }

    /// Serves over one link after the other.
    async fn run(&mut self, mut connection: Connection, mut image: Arc<Image>) -> Finished {
        let mut last: Option<Search> = None;
        // Whether the login at hand has ever been good for a link.
        let mut was_known = false;
        loop {
            let exchange = Exchange::new(connection, Arc::clone(&image), self.progress);
            let loss = match exchange.run(self.signals).await {
                Ending::Finished(finished) => return finished,
                // A server that keeps no logins knows nobody's cookie when it was started anew; the token may be good.
                Ending::NotAllowed(refused) => {
                    if !was_known || !self.address.forget_cookie() {
                        return refused;
                    }
                    was_known = false;
                    match self.open().await {
                        Ok(again) => connection = again,
                        Err(error) => return Finished::failed(format!("{error:#}")),
                    }
                    continue;
                }
                Ending::Lost(loss) => loss,
            };
            was_known |= loss.served;
            // A link that was lost before it served does not prolong what is left.
            let mut search = match last.take() {
                Some(search) if !loss.served => search,
                _ => Search::new(&loss),
            };
            if !search.left().is_zero() {
                self.progress.set_lost(&loss.cause, search.left());
            }
            let seen = (&mut *self.progress, &mut *self.signals);
            match search
                .run(&mut self.address, &self.session, &image, seen)
                .await
            {
                Found::Connection(found, reopened) => {
                    (connection, image, last) = (*found, reopened, Some(search));
                }
                Found::Nothing(why) => {
                    return Finished::failed(format!("{}; {why}", loss.cause));
                }
            }
        }
    }
}

fn conclude(finished: &Finished, sum: Sum) -> ExitCode {
    let Sum { bytes, requests } = sum;
    let message = match requests {
        0 => finished.sentence.clone(),
        _ => format!(
            "{}; {} were read in {requests} requests",
            finished.sentence,
            units::bytes(bytes)
        ),
    };
    if finished.in_order {
        report::information(message);
        ExitCode::SUCCESS
    } else {
        report::error(message);
        ExitCode::FAILURE
    }
}
