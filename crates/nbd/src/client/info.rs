//! What the server says of the export (proto.md, `NBD_REP_INFO`).

use super::HandshakeError;
use crate::export::{BlockSizes, Export};
use crate::rules::meaningful_flags;
use crate::text::{InvalidString, display_text, parse_string};
use crate::wire::{
    InfoType, MAX_EXPORT_SIZE, MAX_STRING_LENGTH, TransmissionFlags, u16_at, u32_at, u64_at,
};

/// Information gathered until the server acknowledges the export.
#[derive(Debug, Default)]
pub(super) struct ExportInfo {
    size_and_flags: Option<(u64, u16)>,
    name: Option<String>,
    description: Option<String>,
    block_sizes: Option<BlockSizes>,
}

impl ExportInfo {
    /// Bytes of size and transmission flags.
    pub(super) const EXPORT_LENGTH: usize = 10;

    /// Takes the data of one `NBD_REP_INFO`; `false` if its length is wrong for its type.
    pub(super) fn add(&mut self, data: &[u8]) -> Result<bool, HandshakeError> {
        let Some((info, payload)) = data.split_first_chunk() else {
            return Ok(false);
        };
        match InfoType(u16::from_be_bytes(*info)) {
            InfoType::EXPORT => {
                let Ok(payload) = payload.try_into() else {
                    return Ok(false);
                };
                self.set_export(payload);
            }
            InfoType::NAME => self.name = Some(parse_string(payload)?),
            InfoType::DESCRIPTION if payload.len() > MAX_STRING_LENGTH => {
                return Err(InvalidString::TooLong(payload.len()).into());
            }
            InfoType::DESCRIPTION => self.description = Some(display_text(payload)),
            InfoType::BLOCK_SIZE => {
                let Ok(payload) = payload.try_into() else {
                    return Ok(false);
                };
                self.block_sizes = Some(parse_block_sizes(payload)?);
            }
            _ => {}
        }
        Ok(true)
    }

    /// Takes size and transmission flags, as in `NBD_INFO_EXPORT` and in the reply to
    /// `NBD_OPT_EXPORT_NAME`.
    pub(super) fn set_export(&mut self, payload: &[u8; Self::EXPORT_LENGTH]) {
        self.size_and_flags = Some((u64_at(payload, 0), u16_at(payload, 8)));
    }

    /// The export, named as it was asked for where the server gave no other name.
    pub(super) fn export(self, asked: &str, structured: bool) -> Result<Export, HandshakeError> {
        let (size, flags) = self
            .size_and_flags
            .ok_or(HandshakeError::MissingExportInfo)?;
        if size > MAX_EXPORT_SIZE {
            return Err(HandshakeError::ExportTooLarge(size));
        }
        Ok(Export {
            name: self.name.unwrap_or_else(|| asked.to_owned()),
            description: self.description.filter(|text| !text.is_empty()),
            size,
            flags: parse_flags(flags, structured)?,
            block_sizes: self.block_sizes,
        })
    }
}

fn parse_flags(bits: u16, structured: bool) -> Result<TransmissionFlags, HandshakeError> {
    let flags = TransmissionFlags::from_bits_truncate(bits);
    if !flags.contains(TransmissionFlags::HAS_FLAGS) {
        return Err(HandshakeError::MissingHasFlags(bits));
    }
    Ok(meaningful_flags(flags, structured))
}

fn parse_block_sizes(payload: &[u8; 12]) -> Result<BlockSizes, HandshakeError> {
    let block_sizes = BlockSizes {
        minimum: u32_at(payload, 0),
        preferred: u32_at(payload, 4),
        maximum: u32_at(payload, 8),
    };
    block_sizes.validate()?;
    Ok(block_sizes)
}
