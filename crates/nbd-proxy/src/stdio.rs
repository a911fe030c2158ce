//! The stdin/stdout form: one configuration, one link, one session; as websocketd and OpenBMC's bmcweb start it.

use std::{
    hash::{BuildHasher, RandomState},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use nbd_session::EndReason;
use tokio::time::timeout;

use crate::{
    attachment::{Attachment, Outcome, Settings},
    claim::Claim,
    config::{Config, ConfigError, Strictness},
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
    let name = configuration.as_deref();
    let loaded = Config::load(&paths::config_file(config.as_deref()), Strictness::Lenient);
    let (config, warnings) = explained(loaded, name)?;
    warnings.iter().for_each(report::warning);
    let configuration = explained(config.choose(name), name)?;
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

/// Says of a word that is no configuration, and nearly a command, that this form of the program took it.
fn explained<T>(result: Result<T, ConfigError>, word: Option<&str>) -> anyhow::Result<T> {
    let near = |name: &str| word.is_some_and(|word| strsim::osa_distance(word, name) <= 2);
    let commands = crate::command();
    let mut visible = commands.get_subcommands().filter(|one| !one.is_hide_set());
    let Some(meant) = visible.find(|one| near(one.get_name())) else {
        return Ok(result?);
    };
    result.with_context(|| {
        let name = meant.get_name();
        format!("the command is {name:?}; what was given was taken for a configuration")
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
