//! What a server offers, and what was agreed on.

use crate::wire::{DEFAULT_MAXIMUM_PAYLOAD, TransmissionFlags};

/// A named range of bytes that a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Its canonical name, at most 4096 bytes; may be empty. One from a server may hold any
    /// character but NUL: escape it for people.
    pub name: String,
    /// For people, at most 4096 bytes.
    pub description: Option<String>,
    /// In bytes, at most 2^63 - 1.
    pub size: u64,
    /// What it can do. `HAS_FLAGS` and `SEND_DF` are set and cleared by the server side as the
    /// protocol demands.
    pub flags: TransmissionFlags,
    /// Constraints on requests; `None` where the server announced none.
    pub block_sizes: Option<BlockSizes>,
}

impl Export {
    /// Whether writing commands are refused.
    pub fn is_read_only(&self) -> bool {
        self.flags.contains(TransmissionFlags::READ_ONLY)
    }

    /// The constraints that hold: those announced, or the defaults.
    pub fn effective_block_sizes(&self) -> BlockSizes {
        self.block_sizes.unwrap_or_default()
    }
}

/// Constraints on the ranges of requests, in bytes (proto.md, "Size constraints").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths are multiples of this: a power of two, 1 to 65,536.
    pub minimum: u32,
    /// Multiples of this are fast: a power of two, at least 512 and at least `minimum`.
    pub preferred: u32,
    /// The longest payload of one request or reply, at least `preferred`.
    pub maximum: u32,
}

/// What holds where a server announced nothing.
impl Default for BlockSizes {
    fn default() -> Self {
        Self {
            minimum: 1,
            preferred: 4096,
            maximum: DEFAULT_MAXIMUM_PAYLOAD,
        }
    }
}

impl BlockSizes {
    /// Checks what proto.md demands of the three values.
    pub fn validate(&self) -> Result<(), InvalidBlockSizes> {
        let Self {
            minimum,
            preferred,
            maximum,
        } = *self;
        if !minimum.is_power_of_two() || minimum > 1 << 16 {
            Err(InvalidBlockSizes::Minimum(minimum))
        } else if !preferred.is_power_of_two() || preferred < minimum.max(512) {
            Err(InvalidBlockSizes::Preferred { minimum, preferred })
        } else if maximum < preferred {
            Err(InvalidBlockSizes::Maximum { preferred, maximum })
        } else {
            Ok(())
        }
    }
}

/// Block sizes that proto.md forbids ("Size constraints").
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBlockSizes {
    /// The minimum is not a power of two from 1 to 65,536.
    #[error("the minimum block size {0} is not a power of two from 1 to 65536")]
    Minimum(u32),
    /// The preferred size is no power of two, below 512 or below the minimum.
    #[error(
        "the preferred block size {preferred} is not a power of two of at least 512 and the minimum ({minimum})"
    )]
    Preferred {
        /// Of the same constraints.
        minimum: u32,
        /// The offender.
        preferred: u32,
    },
    /// The maximum is below the preferred size.
    #[error(
        "the maximum payload of {maximum} bytes is below the preferred block size ({preferred})"
    )]
    Maximum {
        /// Of the same constraints.
        preferred: u32,
        /// The offender.
        maximum: u32,
    },
}

/// What client and server agreed on beyond the baseline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Negotiated {
    /// `NBD_OPT_STRUCTURED_REPLY` was acknowledged.
    pub structured_replies: bool,
    /// `base:allocation` was selected: BLOCK_STATUS may be used.
    pub base_allocation: bool,
}
