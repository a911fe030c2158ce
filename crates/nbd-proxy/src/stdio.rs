//! The stdin/stdout form: one configuration, one link, one session; as websocketd and OpenBMC's bmcweb start it.

use std::{
    hash::{BuildHasher, RandomState},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use nbd_session::EndReason;
use tokio::time::timeout;

use crate::{
    attachment::{Attachment, Outcome, Settings},
    claim::Claim,
    config::{Config, Strictness},
    link, paths, report,
    signals::Signals,
};

/// How long the last bytes may take to be written. Whoever has asked us to end may not read them.
const FAREWELL: Duration = Duration::from_millis(50);

/// Serves one configuration until the link, the device or a signal ends it.
pub(crate) async fn run(
    config: Option<PathBuf>,
    configuration: Option<String>,
) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let (config, warnings) =
        Config::load(&paths::config_file(config.as_deref()), Strictness::Lenient)?;
    warnings.iter().for_each(report::warning);
    let configuration = config.choose(configuration.as_deref())?;
    let runtime_dir = paths::runtime_dir()?;

    let claim = tokio::select! {
        claim = Claim::lock(configuration, &runtime_dir) => claim?,
        _ = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    claim.clean_up(configuration, &runtime_dir).await?;

    let settings = Settings::for_stdio(&config, configuration, runtime_dir);
    let attachment = Attachment::start(settings, claim, new_session_id());
    let (link, ends) = link::stdio::open()?;
    attachment.link(link);

    let outcome = until_detached(&attachment, &mut signals, || ends.hang_up()).await;
    let _ = timeout(FAREWELL, ends.written()).await;
    Ok(match outcome {
        Outcome::InOrder(_) => ExitCode::SUCCESS,
        Outcome::Failed(_) => ExitCode::FAILURE,
    })
}

/// The first signal ends the session; the others are too late to change anything.
async fn until_detached(
    attachment: &Attachment,
    signals: &mut Signals,
    hang_up: impl Fn(),
) -> Outcome {
    let detached = attachment.detached();
    tokio::pin!(detached);
    loop {
        tokio::select! {
            outcome = &mut detached => return outcome,
            _ = signals.next() => {
                attachment.end(EndReason::Shutdown);
                // bmcweb stops reading when it sends the signal, and waits for us: nothing more will be answered.
                hang_up();
            }
        }
    }
}

/// Tells this session's device from that of another; no secret.
fn new_session_id() -> String {
    let random = || RandomState::new().hash_one(std::process::id());
    format!("{:016x}{:016x}", random(), random())
}
