//! The filter.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// What no server of ours calls.
const REFUSED: &[c_long] = &[
    // Programs: the helper runs them.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_perf_event_open,
    // Mounts and namespaces: the helper mounts.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_mknodat,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_fanotify_init,
    // The kernel itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_personality,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    // Parts of the kernel in which many faults were found, and which carry out other system calls past this filter.
    libc::SYS_bpf,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[c_long] = &[
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_mknod,
    libc::SYS_fork,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[c_long] = &[];

/// The families of sockets that there may be; the others are refused.
const FAMILIES: [u64; 4] = [
    libc::AF_UNIX as u64,
    libc::AF_INET as u64,
    libc::AF_INET6 as u64,
    libc::AF_NETLINK as u64,
];

/// Namespaces come by clone(2) too.
const NAMESPACES: [u64; 7] = [
    libc::CLONE_NEWNS as u64,
    libc::CLONE_NEWCGROUP as u64,
    libc::CLONE_NEWUTS as u64,
    libc::CLONE_NEWIPC as u64,
    libc::CLONE_NEWUSER as u64,
    libc::CLONE_NEWPID as u64,
    libc::CLONE_NEWNET as u64,
];

/// What puts words into the terminal that we were started from: TIOCSTI, TIOCLINUX (`asm-generic/ioctls.h`).
const TERMINAL: [u64; 2] = [0x5412, 0x541c];

/// Puts the filters in force for this thread and those that it starts. They are for the one architecture: a system call
/// by the numbers of another ends the process.
pub(super) fn apply() -> Result<(), Error> {
    // Its arguments are in memory, where no filter sees them; glibc takes this answer and calls clone(2).
    let clone3 = Rules::from([(libc::SYS_clone3, vec![])]);
    apply_filter(&compile(clone3, libc::ENOSYS)?)?;
    apply_filter(&compile(refused()?, libc::EPERM)?)
}

fn compile(rules: Rules, error: libc::c_int) -> Result<BpfProgram, Error> {
    let action = SeccompAction::Errno(error.cast_unsigned());
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, architecture)?;
    Ok(BpfProgram::try_from(filter)?)
}

fn refused() -> Result<Rules, Error> {
    let mut rules = Rules::new();
    for number in REFUSED.iter().chain(REFUSED_HERE) {
        rules.insert(*number, vec![]);
    }
    let other_family = FAMILIES.map(|family| argument(0, SeccompCmpOp::Ne, family));
    let other_family: Result<Vec<_>, Error> = other_family.into_iter().collect();
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(other_family?)?]);
    rules.insert(
        libc::SYS_clone,
        each(0, &NAMESPACES.map(|flag| (flag, true)))?,
    );
    rules.insert(
        libc::SYS_ioctl,
        each(1, &TERMINAL.map(|request| (request, false)))?,
    );
    #[cfg(target_arch = "x86_64")]
    refuse_x32(&mut rules);
    Ok(rules)
}

/// One rule for each value that an argument must not have, or not contain.
fn each(index: u8, values: &[(u64, bool)]) -> Result<Vec<SeccompRule>, Error> {
    let rule = |(value, is_flag): &(u64, bool)| {
        let operation = if *is_flag {
            SeccompCmpOp::MaskedEq(*value)
        } else {
            SeccompCmpOp::Eq
        };
        Ok(SeccompRule::new(vec![argument(index, operation, *value)?])?)
    };
    values.iter().map(rule).collect()
}

fn argument(index: u8, operation: SeccompCmpOp, value: u64) -> Result<SeccompCondition, Error> {
    Ok(SeccompCondition::new(
        index,
        SeccompCmpArgLen::Dword,
        operation,
        value,
    )?)
}

/// The x32 calls have numbers of their own on the same architecture, where the kernel has them at all; no program of
/// ours is one.
#[cfg(target_arch = "x86_64")]
fn refuse_x32(rules: &mut Rules) {
    /// `__X32_SYSCALL_BIT`
    const BIT: i64 = 0x4000_0000;
    /// Those that differ from x86-64 (`arch/x86/entry/syscalls/syscall_64.tbl`).
    const OWN: std::ops::RangeInclusive<i64> = 512..=547;
    let ordinary: Vec<i64> = rules.keys().copied().collect();
    for number in ordinary.into_iter().chain(OWN) {
        rules.insert(number | BIT, vec![]);
    }
}
