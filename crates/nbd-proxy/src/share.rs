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
use progress::{Progress, Sum};

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
    let sum = progress.sum();
    drop(progress);
    Ok(conclude(&finished, sum))
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
