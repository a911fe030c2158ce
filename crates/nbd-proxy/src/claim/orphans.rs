//! What killed processes left of configurations that are no more.

use std::path::Path;

use super::{ClaimError, file_error, lock};
use crate::{
    config::Config,
    device::{self, DeviceSpec},
    paths, record, report,
};

/// Cleans up after every configuration that was claimed in R, that `config` does not have, and that no process claims
/// now. Says what there was.
pub(crate) async fn clean_up_orphans(config: &Config, runtime_dir: &Path) {
    let is_known = |name: &String| config.configurations.iter().any(|one| one.name == *name);
    for name in paths::runtime_names(runtime_dir, "lock") {
        if is_known(&name) {
            continue;
        }
        if let Err(error) = clean_up(&name, runtime_dir).await {
            report::warning(format_args!(
                "left of configuration {name:?}, which there is no more: {error}"
            ));
        }
    }
}

async fn clean_up(name: &str, runtime_dir: &Path) -> Result<(), ClaimError> {
    let _lock = match lock(name, &paths::runtime_file(runtime_dir, name, "lock")).await {
        // Of a process with a configuration file of its own.
        Err(ClaimError::Busy { .. }) => return Ok(()),
        locked => locked?,
    };
    let path = paths::runtime_file(runtime_dir, name, "session");
    let was_noted = record::remove(runtime_dir, name).map_err(file_error(&path))?;
    let mut freed = device::recover(&DeviceSpec::Auto, name, runtime_dir, was_noted).await?;
    if was_noted {
        freed.push(format!("{} is deleted", path.display()));
    }
    for one in &freed {
        report::warning(format_args!(
            "left of configuration {name:?}, which there is no more: {one}"
        ));
    }
    let owes_stop = paths::runtime_file(runtime_dir, name, "state").exists();
    if owes_stop && !freed.is_empty() {
        report::warning(format_args!(
            "the state hook of configuration {name:?} was not told to stop: it is not known any more"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn the_record_of_a_configuration_goes_with_it_unless_a_process_claims_it() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::built_in();
        let known = config.configurations[0].name.as_str();
        let file = |name: &str, suffix| paths::runtime_file(folder.path(), name, suffix);
        for name in ["gone/1", "claimed", known] {
            fs::write(file(name, "lock"), "").unwrap();
            fs::write(file(name, "session"), "").unwrap();
        }
        let claim = lock("claimed", &file("claimed", "lock")).await.unwrap();
        clean_up_orphans(&config, folder.path()).await;
        assert!(!file("gone/1", "session").exists());
        assert!(file("claimed", "session").exists());
        assert!(file(known, "session").exists(), "its slot sees to it");
        drop(claim);
        clean_up_orphans(&config, folder.path()).await;
        assert!(!file("claimed", "session").exists());
    }
}
