//! The data of options that have a form (proto.md, "Option types").

use crate::text::{InvalidString, parse_string};
use crate::wire::{InfoType, OptionReplyCode};

/// What is wrong with the data of an option, and what is said about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadOption {
    pub(super) reply: OptionReplyCode,
    pub(super) message: &'static str,
}

impl BadOption {
    const CUT_SHORT: Self = Self::invalid("the option's lengths don't add up");
    const BAD_QUERY: Self = Self::invalid("a query is a namespace, a colon and a name");
    pub(super) const HAS_DATA: Self = Self::invalid("the option has no data");
    pub(super) const NOT_STRUCTURED: Self =
        Self::invalid("metadata contexts need structured replies, ask for those first");
    pub(super) const TLS_ALREADY: Self = Self::invalid("TLS is spoken already");
    pub(super) const TLS_REQUIRED: Self = Self {
        reply: OptionReplyCode::ERR_TLS_REQD,
        message: "nothing is served here without TLS, ask for that first",
    };
    pub(super) const TOO_LONG: Self = Self {
        reply: OptionReplyCode::ERR_TOO_BIG,
        message: "the option is too long",
    };
    pub(super) const UNKNOWN_EXPORT: Self = Self {
        reply: OptionReplyCode::ERR_UNKNOWN,
        message: "there is no export of this name",
    };
    pub(super) const UNSUPPORTED: Self = Self {
        reply: OptionReplyCode::ERR_UNSUP,
        message: "this server does not have the option",
    };

    const fn invalid(message: &'static str) -> Self {
        Self {
            reply: OptionReplyCode::ERR_INVALID,
            message,
        }
    }
}

impl From<InvalidString> for BadOption {
    fn from(error: InvalidString) -> Self {
        match error {
            InvalidString::TooLong(_) => Self {
                reply: OptionReplyCode::ERR_TOO_BIG,
                message: "a string is longer than 4096 bytes",
            },
            InvalidString::NotUtf8 => Self::invalid("a string is not UTF-8"),
            InvalidString::Nul => Self::invalid("a string has a NUL character in it"),
        }
    }
}

/// Of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InfoRequest {
    pub(super) export: String,
    infos: Vec<InfoType>,
}

impl InfoRequest {
    pub(super) fn parse(data: &[u8]) -> Result<Self, BadOption> {
        let mut fields = Fields(data);
        let export = fields.string()?;
        let count = usize::from(fields.u16()?);
        let (infos, rest) = fields.0.as_chunks::<2>();
        if infos.len() != count || !rest.is_empty() {
            return Err(BadOption::CUT_SHORT);
        }
        let infos = infos
            .iter()
            .map(|info| InfoType(u16::from_be_bytes(*info)))
            .collect();
        Ok(Self { export, infos })
    }

    /// Whether the client asked for this information.
    pub(super) fn wants(&self, info: InfoType) -> bool {
        self.infos.contains(&info)
    }
}

/// Of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MetaContextRequest {
    pub(super) export: String,
    pub(super) queries: Vec<String>,
}

impl MetaContextRequest {
    pub(super) fn parse(data: &[u8]) -> Result<Self, BadOption> {
        let mut fields = Fields(data);
        let export = fields.string()?;
        let count = fields.u32()?;
        let mut queries = Vec::new();
        for _ in 0..count {
            let query = fields.string()?;
            let namespace = query.split_once(':').map_or("", |(namespace, _)| namespace);
            if namespace.is_empty() {
                return Err(BadOption::BAD_QUERY);
            }
            queries.push(query);
        }
        if fields.0.is_empty() {
            Ok(Self { export, queries })
        } else {
            Err(BadOption::CUT_SHORT)
        }
    }
}

/// The rest of an option's data, read field by field.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], BadOption> {
        let (field, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(BadOption::CUT_SHORT)?;
        self.0 = rest;
        Ok(field)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadOption> {
        self.take(N)?.try_into().map_err(|_| BadOption::CUT_SHORT)
    }

    fn u16(&mut self) -> Result<u16, BadOption> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, BadOption> {
        self.array().map(u32::from_be_bytes)
    }

    fn string(&mut self) -> Result<String, BadOption> {
        let length = self.u32()? as usize;
        Ok(parse_string(self.take(length)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_of_queries_allocates_nothing() {
        let data = [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(MetaContextRequest::parse(&data), Err(BadOption::CUT_SHORT));
    }

    #[test]
    fn lengths_that_do_not_add_up_are_refused() {
        let cut_short: [&[u8]; 6] = [
            b"",
            b"\0\0\0",
            b"\0\0\0\x07name\0\0",
            b"\xff\xff\xff\xffname\0\0",
            b"\0\0\0\x04name\0\x01",
            b"\0\0\0\x04name\0\0\0",
        ];
        for data in cut_short {
            assert_eq!(
                InfoRequest::parse(data),
                Err(BadOption::CUT_SHORT),
                "{data:x?}"
            );
        }
    }

    #[test]
    fn strings_are_checked() {
        let long = [&4097u32.to_be_bytes(), &[b'x'; 4097][..], &[0, 0]].concat();
        let parse = |data| InfoRequest::parse(data).unwrap_err().reply;
        assert_eq!(parse(&long), OptionReplyCode::ERR_TOO_BIG);
        assert_eq!(parse(b"\0\0\0\x01\0\0\0"), OptionReplyCode::ERR_INVALID);
        assert_eq!(parse(b"\0\0\0\x01\xff\0\0"), OptionReplyCode::ERR_INVALID);
    }

    #[test]
    fn a_query_needs_a_namespace() {
        for query in ["base", ":allocation", ""] {
            let data = [
                &[0, 0, 0, 0, 0, 0, 0, 1][..],
                &crate::text::with_length(query),
            ]
            .concat();
            assert_eq!(
                MetaContextRequest::parse(&data),
                Err(BadOption::BAD_QUERY),
                "{query:?}"
            );
        }
    }
}
