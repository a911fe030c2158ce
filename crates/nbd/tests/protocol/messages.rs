//! What errors say to people.

use nbd::client::{self, RequestError};
use nbd::server;
use nbd::wire::{ChunkType, CommandType, Errno, InfoType, OptionCode, OptionReplyCode};
use nbd::{BrokenRule, Failure};

#[test]
fn codes_show_the_names_of_the_document_or_their_number() {
    assert_eq!(OptionCode::GO.to_string(), "NBD_OPT_GO");
    assert_eq!(OptionCode(99).to_string(), "NBD_OPT_0x63");
    assert_eq!(OptionReplyCode::ERR_UNSUP.to_string(), "NBD_REP_ERR_UNSUP");
    assert_eq!(InfoType::BLOCK_SIZE.to_string(), "NBD_INFO_BLOCK_SIZE");
    assert_eq!(
        CommandType::WRITE_ZEROES.to_string(),
        "NBD_CMD_WRITE_ZEROES"
    );
    assert_eq!(
        ChunkType::ERROR_OFFSET.to_string(),
        "NBD_REPLY_TYPE_ERROR_OFFSET"
    );
}

#[test]
fn failures_show_the_peers_words_and_the_errno() {
    assert_eq!(Failure::from(Errno::EIO).to_string(), "input/output error");
    let failure = Failure::new(Errno::EIO, "the file changed on disk");
    assert_eq!(
        failure.to_string(),
        "the file changed on disk (input/output error)"
    );
}

#[test]
fn errors_name_what_came_and_the_rule() {
    let refused = |message: &str| client::HandshakeError::Refused {
        option: OptionCode::GO,
        reply: OptionReplyCode::ERR_POLICY,
        message: message.into(),
    };
    let unknown = |export: &str, message: &str| client::HandshakeError::UnknownExport {
        export: export.into(),
        message: message.into(),
    };
    let rule = BrokenRule::OutOfRange {
        command: CommandType::READ,
        offset: 1024,
        length: 512,
        size: 1024,
    };
    let cases = [
        (
            refused("").to_string(),
            "the server refused NBD_OPT_GO with NBD_REP_ERR_POLICY",
        ),
        (
            refused("no such image").to_string(),
            "the server refused NBD_OPT_GO with NBD_REP_ERR_POLICY: no such image",
        ),
        (
            unknown("", "try other").to_string(),
            "the server has no default export (one with an empty name) that we could use: try other",
        ),
        (
            unknown("lab", "").to_string(),
            "the server has no export named \"lab\" that we could use",
        ),
        (
            client::HandshakeError::NotNbd(0x4854_5450_2f31_2e31).to_string(),
            "this is not an NBD server: it began with 0x485454502f312e31 instead of NBDMAGIC",
        ),
        (
            RequestError::from(rule).to_string(),
            "NBD_CMD_READ of 512 bytes at 1024 reaches beyond the 1024 bytes of the export",
        ),
        (
            client::TransmissionError::Overlap {
                offset: 512,
                length: 1,
            }
            .to_string(),
            "1 bytes at 512 overlap with earlier ones of the same reply",
        ),
        (
            server::HandshakeError::UnknownExport("a\nb".into()).to_string(),
            "the client asked for the export \"a\\nb\", which does not exist",
        ),
        (
            server::TransmissionError::Magic(0x4745_5420).to_string(),
            "a request begins with 0x47455420, which is not its magic number",
        ),
    ];
    for (message, expected) in cases {
        assert_eq!(message, expected);
    }
}
