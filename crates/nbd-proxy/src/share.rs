//! `nbd-proxy share`: serves a local image to a distant nbd-proxy, as a page does, without a browser.

mod address;
mod connection;
mod exchange;
mod image;
mod progress;

use std::{process::ExitCode, sync::Arc};

use anyhow::Context as _;

use crate::{cli::ShareArgs, report, serve, signals::Signals, units};
use address::Address;
use exchange::{Exchange, Finished};
use image::Image;
use progress::Progress;

/// Serves an image until the session ends.
pub(crate) async fn run(args: ShareArgs) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let address = Address::parse(&args.url, args.token)?;
    let image = Arc::new(Image::open(&args.image, args.name)?);
    let session = serve::random_hex::<16>().context("no random numbers")?;
    let mut progress = Progress::new(image.info());
    let connected = tokio::select! {
        connected = connection::open(&address, &session) => connected?,
        _ = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    let finished = Exchange::new(connected, image, &mut progress)
        .run(&mut signals)
        .await;
    Ok(conclude(&finished, progress))
}

fn conclude(finished: &Finished, progress: Progress) -> ExitCode {
    let sum = progress.close();
    let message = format!(
        "{}; {} were read in {} requests",
        finished.sentence,
        units::bytes(sum.bytes),
        sum.requests
    );
    if finished.in_order {
        report::information(message);
        ExitCode::SUCCESS
    } else {
        report::error(message);
        ExitCode::FAILURE
    }
}
