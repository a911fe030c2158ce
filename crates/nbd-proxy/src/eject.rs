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
        Answer::Done(StatusCode::ACCEPTED, view) => {
            let causes = view.session.map(|session| session.draining_for);
            println!(
                "{}: being detached; it takes another image once this has ended: {}",
                args.configuration,
                describe(&causes.unwrap_or_default())
            );
        }
        Answer::Done(..) => println!("{}: nothing is attached any more", args.configuration),
        Answer::Refused(refusal) => bail!("{}", refusal.error),
    }
    Ok(ExitCode::SUCCESS)
}

/// What still drains, also where that is not known.
fn describe(causes: &[String]) -> String {
    if causes.is_empty() {
        return "the state hook, and the last program that has the device open".into();
    }
    causes.join(", ")
}
