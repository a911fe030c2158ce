//! Landlock: which files and ports (`Documentation/userspace-api/landlock.rst`). As far as the kernel goes: an older one
//! restricts less, one without Landlock nothing.

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

use super::Needs;

/// What is restricted where the kernel can: that of Linux 6.12.
const NEWEST: ABI = ABI::V6;

/// What every server reads: of the system's libraries nothing may be loaded yet, and there are our own threads, memory
/// and mounts in /proc, and disks in /sys.
const SYSTEM: [&str; 6] = ["/usr", "/lib", "/lib64", "/etc/localtime", "/proc", "/sys"];

/// Restricts this thread, and says by which version of Landlock's interface; none where the kernel has none.
pub(super) fn restrict(needs: &Needs) -> Result<Option<i32>, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?
        .scope(scopes(needs))?
        .create()?
        .add_rules(path_beneath_rules(SYSTEM, read))?
        .add_rules(path_beneath_rules(&needs.read, read))?
        .add_rules(path_beneath_rules(&needs.write, in_directories()))?
        .add_rules(path_beneath_rules(
            &needs.devices,
            AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
        ))?
        .add_rules(path_beneath_rules(
            &needs.knobs,
            read | AccessFs::WriteFile | AccessFs::Truncate,
        ))?
        .add_rules(
            needs
                .ports
                .iter()
                .map(|port| Ok::<_, RulesetError>(NetPort::new(*port, AccessNet::BindTcp))),
        )?
        .restrict_self()?;
    Ok(match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => None,
        (
            _,
            LandlockStatus::Available {
                effective_abi,
                kernel_abi,
            },
        ) => Some(kernel_abi.unwrap_or(effective_abi as i32)),
        _ => None,
    })
}

/// Everything that is done to files of ours: no programs, no devices.
fn in_directories() -> BitFlags<AccessFs> {
    AccessFs::from_all(NEWEST)
        & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev)
}

fn scopes(needs: &Needs) -> BitFlags<Scope> {
    if needs.abstract_sockets {
        Scope::Signal.into()
    } else {
        Scope::Signal | Scope::AbstractUnixSocket
    }
}
