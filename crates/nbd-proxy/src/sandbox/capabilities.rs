//! Capabilities (`capabilities(7)`).

use rustix::{
    io::Errno,
    thread::{
        CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities,
        clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
        set_capabilities_secure_bits,
    },
};

/// User number 0 means nothing special from now on, and nobody can change that. The kernel's further bits are left as
/// they are.
const SECURE_BITS: CapabilitiesSecureBits = CapabilitiesSecureBits::NO_ROOT
    .union(CapabilitiesSecureBits::NO_ROOT_LOCKED)
    .union(CapabilitiesSecureBits::NO_SETUID_FIXUP)
    .union(CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED)
    .union(CapabilitiesSecureBits::KEEP_CAPS_LOCKED)
    .union(CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE)
    .union(CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED);

/// Drops every capability but `wanted`, from every set. What we do not have is not asked for.
pub(super) fn keep_only(wanted: CapabilitySet) -> Result<(), Errno> {
    let current = capabilities(None)?;
    let kept = current.permitted & wanted;
    if current.permitted.contains(CapabilitySet::SETPCAP) {
        empty_bounding_set(kept)?;
        set_capabilities_secure_bits(SECURE_BITS)?;
    }
    clear_ambient_capability_set()?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )
}

fn empty_bounding_set(kept: CapabilitySet) -> Result<(), Errno> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            // The kernel knows no such number, nor a greater one.
            Err(Errno::INVAL) => break,
            result => result?,
        }
    }
    Ok(())
}
