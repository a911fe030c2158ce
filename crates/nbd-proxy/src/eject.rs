//! `nbd-proxy eject`: detach.

use std::process::ExitCode;

use anyhow::bail;
use hyper::{Method, StatusCode};

use crate::{
    cli::EjectArgs,
    control::{self, Answer},
    serve::{
        api::{ConfigurationView, EjectRequest},
        path,
    },
};

/// Detaches what is attached to a configuration of the running server.
pub(crate) async fn run(args: EjectArgs) -> anyhow::Result<ExitCode> {
    let address = format!(
        "/api/v1/configurations/{}/eject",
        path::encode(&args.configuration)
    );
    let body = EjectRequest { force: args.force };
    match control::ask::<ConfigurationView>(args.control, Method::POST, &address, &body).await? {
        Answer::Done(StatusCode::ACCEPTED, _) => {
            println!(
                "{}: being detached; it takes another image once the state hook has ended and the last program has closed the \
                 device",
                args.configuration
            );
        }
        Answer::Done(..) => println!("{}: nothing is attached any more", args.configuration),
        Answer::Refused(refusal) => bail!("{}", refusal.error),
    }
    Ok(ExitCode::SUCCESS)
}
