//! seccomp: which system calls.
//!
//! The filter names what is refused, and lets the rest through: what a Rust program, its allocator and glibc call differs
//! from version to version, and an omission would end sessions. Refused calls give EPERM rather than kill, for the same
//! reason: a library that probes for a feature takes the answer that it gets from a kernel without it.

#[cfg(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64"
))]
mod filter;

use anyhow::Result;

/// Whether this architecture and kernel have what it takes.
pub(crate) fn is_available() -> bool {
    cfg!(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64"
    )) && std::path::Path::new("/proc/sys/kernel/seccomp").exists()
}

/// Whether it is in force.
pub(super) fn restrict() -> Result<bool> {
    if !is_available() {
        return Ok(false);
    }
    #[cfg(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64"
    ))]
    filter::apply()?;
    Ok(true)
}
