//! The command line.

use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};

#[cfg(feature = "serve")]
const EXAMPLES: &str = "\
Examples:
  nbd-proxy serve                 open the address that it prints, and choose an image: this machine has it as a disk
  nbd-proxy check                 what kind of disk that will be here, and what is missing for a better one
  nbd-proxy share a.iso ADDRESS   the same without a browser
  websocketd --port=8000 --staticdir=web --binary nbd-proxy 0";
#[cfg(not(feature = "serve"))]
const EXAMPLES: &str = "\
Examples:
  nbd-proxy check                 what kind of disk works here, and what is missing for a better one
  websocketd --port=8000 --staticdir=web --binary nbd-proxy 0";

/// Gives this machine a disk whose image is served by a browser tab.
///
/// Without a subcommand one configuration is served over standard input and output: raw NBD bytes, the peer is the NBD
/// server. That is how websocketd and OpenBMC's bmcweb start it.
#[derive(Debug, Parser)]
#[command(
    name = "nbd-proxy",
    bin_name = "nbd-proxy",
    version,
    disable_help_subcommand = true,
    after_long_help = EXAMPLES
)]
pub(crate) struct Cli {
    /// Configuration file [default: $NBD_PROXY_CONFIG, then /etc/nbd-proxy/config.json]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one line of JSON: each configuration's name with its metadata, or null
    #[arg(long, conflicts_with = "configuration")]
    metadata: bool,
    /// Configuration to serve [default: the one marked so, or the only one]
    configuration: Option<String>,
    #[command(subcommand)]
    command: Option<Subcommands>,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Run the built-in web server
    #[cfg(feature = "serve")]
    Serve(ServeArgs),
    /// For `serve` alone: does what takes privileges
    #[cfg(feature = "serve")]
    #[command(name = crate::privileged::helper::SUBCOMMAND, hide = true)]
    ServeHelper(HelperArgs),
    /// Serve a local image to a distant nbd-proxy, without a browser
    #[cfg(feature = "serve")]
    Share(ShareArgs),
    /// Show the configurations and sessions of the running server
    #[cfg(feature = "serve")]
    Status(StatusArgs),
    /// Detach the device of a configuration of the running server
    #[cfg(feature = "serve")]
    Eject(EjectArgs),
    /// Tell what this machine can do, what is missing, and the remedy
    Check(CheckArgs),
    /// Say who may sign in, and make tokens for programs
    #[cfg(feature = "serve")]
    Passwd(PasswdArgs),
}

/// Arguments of `serve`.
#[cfg(feature = "serve")]
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Prints one address; whoever opens it may attach an image. SIGINT or SIGTERM ends all sessions in order; SIGUSR1 does
so, too, but leaves kernel devices (/dev/nbdN) to the next start, as --keep-sessions does with any signal. After SIGKILL
the next start goes on with kernel devices, and cleans up what was left of others.

Examples:
  nbd-proxy serve
  nbd-proxy serve --listen 127.0.0.1:9000 --listen [::1]:9000
  nbd-proxy serve --listen 0.0.0.0:8000 --tls-self-signed
  nbd-proxy serve --keep-sessions                       may be upgraded and restarted while disks are in use
  ssh -L 8000:127.0.0.1:8000 MACHINE nbd-proxy serve    an image of this desk for a distant machine")]
pub(crate) struct ServeArgs {
    /// Address to listen on; may be repeated [default: the configuration's, then 127.0.0.1:8000]
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_address)]
    pub(crate) listen: Vec<std::net::SocketAddr>,
    /// Speak TLS with a certificate that is made now and kept in the state directory; its fingerprint is shown
    #[arg(long)]
    pub(crate) tls_self_signed: bool,
    /// Configuration file [default: $NBD_PROXY_CONFIG, then /etc/nbd-proxy/config.json, then a built-in one]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Control socket [default: control.sock in the runtime directory]
    #[arg(long, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,
    /// On SIGINT and SIGTERM leave kernel devices (/dev/nbdN) attached: the next serve goes on with their sessions, as
    /// long as "hold" lasts. All others end
    #[arg(long)]
    pub(crate) keep_sessions: bool,
}

#[cfg(feature = "serve")]
fn parse_address(text: &str) -> Result<std::net::SocketAddr, &'static str> {
    text.parse()
        .map_err(|_| "an IP address and a port are needed, such as 127.0.0.1:8000 or [::1]:8000")
}

#[cfg(feature = "serve")]
fn parse_fingerprint(text: &str) -> Result<crate::tls::Fingerprint, &'static str> {
    crate::tls::Fingerprint::parse(text)
        .ok_or("a SHA-256 fingerprint is 64 hexadecimal digits, in pairs with colons between them or without")
}

/// Arguments of the helper process.
#[cfg(feature = "serve")]
#[derive(Debug, clap::Args)]
pub(crate) struct HelperArgs {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// Arguments of `share`.
#[cfg(feature = "serve")]
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The image is only read. SIGINT or SIGTERM takes it away in order; the exit status is 0 if the session ended so.

Examples:
  nbd-proxy share a.iso 'http://127.0.0.1:8000/#token=…'
  nbd-proxy share /dev/sr0 wss://disks.example/nbd/lab --token …")]
pub(crate) struct ShareArgs {
    /// File or block device to serve
    pub(crate) image: PathBuf,
    /// Address that `serve` printed, or ws(s)://HOST:PORT/nbd/NAME
    pub(crate) url: String,
    /// Token, where the address has none
    #[arg(long)]
    pub(crate) token: Option<String>,
    /// SHA-256 fingerprint of the server's certificate, which `serve --tls-self-signed` shows; no other is accepted then
    #[arg(long, value_name = "SHA256", value_parser = parse_fingerprint, conflicts_with = "ca")]
    pub(crate) fingerprint: Option<crate::tls::Fingerprint>,
    /// PEM file of the authority of the server's certificate [default: those that this machine trusts]
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Name to show for the image [default: the file's]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Take over from another link of the same user that serves the same image
    #[arg(long)]
    pub(crate) takeover: bool,
}

/// Arguments of `status`.
#[cfg(feature = "serve")]
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A configuration is free, attaching, attached, held (without a link, until somebody serves the image again), or draining
(being detached).

Examples:
  nbd-proxy status
  nbd-proxy status --json | jq -r '.configurations[].session.device'")]
pub(crate) struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Control socket of the server [default: control.sock in the runtime directory]
    #[arg(long, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,
}

/// Arguments of `eject`.
#[cfg(feature = "serve")]
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A device that is mounted or open is left alone, and the message names who uses it.

Examples:
  nbd-proxy eject 0
  nbd-proxy eject 0 --force")]
pub(crate) struct EjectArgs {
    /// Configuration whose device to detach
    pub(crate) configuration: String,
    /// Detach although the device is in use; what is outstanding fails
    #[arg(long)]
    pub(crate) force: bool,
    /// Control socket of the server [default: control.sock in the runtime directory]
    #[arg(long, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,
}

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Nothing is changed. The exit status is 0 if at least one kind of device works here; each that doesn't has its remedy.
Of the configuration file it says whether its devices work, and what serve would refuse in it.

Examples:
  nbd-proxy check
  nbd-proxy check --config new.json    before it takes the place of /etc/nbd-proxy/config.json")]
pub(crate) struct CheckArgs {
    /// Configuration file to look at as well [default: $NBD_PROXY_CONFIG, then /etc/nbd-proxy/config.json]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// Arguments of `passwd`.
#[cfg(feature = "serve")]
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The files are those that \"users\" and \"tokens\" in \"serve\" of the configuration name. A running server reads them again
within a second. Passwords and tokens are kept as hashes. What a user may do, \"allow\" of each configuration says.

Examples:
  nbd-proxy passwd add eva                          asks for a password, twice
  nbd-proxy passwd remove eva                       and signs her out, and revokes her tokens
  nbd-proxy passwd token add ci --user eva --expires 90
  nbd-proxy passwd token revoke ci")]
pub(crate) struct PasswdArgs {
    /// Configuration file that names the two files [default: $NBD_PROXY_CONFIG, then /etc/nbd-proxy/config.json]
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
    /// File of users [default: the configuration's]
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) users: Option<PathBuf>,
    /// File of tokens [default: the configuration's]
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) tokens: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: PasswdCommand,
}

/// What `passwd` does.
#[cfg(feature = "serve")]
#[derive(Debug, Subcommand)]
pub(crate) enum PasswdCommand {
    /// Add a user, or set another password
    Add(Password),
    /// Remove a user, their logins and their tokens
    Remove {
        /// Name of the user
        user: String,
    },
    /// List the users
    List,
    /// Tokens, by which programs sign in
    #[command(
        subcommand,
        after_help = "\
A program sends its token as Authorization: Bearer; share takes it as --token, Prometheus as credentials_file.

Examples:
  nbd-proxy passwd token add build --user ci --expires 90
  nbd-proxy passwd token list
  nbd-proxy passwd token revoke build"
    )]
    Token(TokenCommand),
}

/// Arguments of `passwd add`.
#[cfg(feature = "serve")]
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nbd-proxy passwd add eva                          asks for a password, twice
  nbd-proxy passwd add eva --stdin < FILE           takes the file's first line")]
pub(crate) struct Password {
    /// Name of the user
    pub(crate) user: String,
    /// Take the password from the first line of standard input
    #[arg(long)]
    pub(crate) stdin: bool,
}

/// What `passwd token` does.
#[cfg(feature = "serve")]
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token and print it, once
    Add {
        /// Name of the token, to revoke it by
        name: String,
        /// Whose rights it gives
        #[arg(long)]
        user: String,
        /// Days after which it is good for nothing [default: never]
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36500))]
        expires: Option<u32>,
    },
    /// Revoke a token
    Revoke {
        /// Name of the token
        name: String,
    },
    /// List the tokens
    List,
}

/// What was asked for.
#[derive(Debug)]
pub(crate) enum Action {
    /// Serve one configuration over standard input and output.
    Stdio {
        /// `--config`.
        config: Option<PathBuf>,
        /// Its name; none means the default one.
        configuration: Option<String>,
    },
    /// Print the metadata of all configurations.
    Metadata {
        /// `--config`.
        config: Option<PathBuf>,
    },
    /// `serve`
    #[cfg(feature = "serve")]
    Serve(ServeArgs),
    /// The helper process of `serve`.
    #[cfg(feature = "serve")]
    ServeHelper(HelperArgs),
    /// `share`
    #[cfg(feature = "serve")]
    Share(ShareArgs),
    /// `status`
    #[cfg(feature = "serve")]
    Status(StatusArgs),
    /// `eject`
    #[cfg(feature = "serve")]
    Eject(EjectArgs),
    /// `check`
    Check(CheckArgs),
    /// `passwd`
    #[cfg(feature = "serve")]
    Passwd(PasswdArgs),
}

/// Reads the command line. Help and version come back as errors too, as clap has it.
pub(crate) fn parse<I>(arguments: I) -> Result<Action, clap::Error>
where
    I: IntoIterator,
    I::Item: Into<std::ffi::OsString> + Clone,
{
    Cli::try_parse_from(arguments)?.into_action()
}

impl Cli {
    fn into_action(self) -> Result<Action, clap::Error> {
        let Some(command) = self.command else {
            return Ok(match self.metadata {
                true => Action::Metadata {
                    config: self.config,
                },
                false => Action::Stdio {
                    config: self.config,
                    configuration: self.configuration,
                },
            });
        };
        if self.metadata || self.configuration.is_some() {
            return Err(misplaced(
                "--metadata and CONFIGURATION don't go with a subcommand",
            ));
        }
        match command {
            #[cfg(feature = "serve")]
            Subcommands::Serve(args) => Ok(Action::Serve(ServeArgs {
                config: args.config.or(self.config),
                ..args
            })),
            #[cfg(feature = "serve")]
            Subcommands::ServeHelper(args) => Ok(Action::ServeHelper(args)),
            Subcommands::Check(args) => Ok(Action::Check(CheckArgs {
                config: args.config.or(self.config),
            })),
            #[cfg(feature = "serve")]
            Subcommands::Passwd(args) => Ok(Action::Passwd(PasswdArgs {
                config: args.config.or(self.config),
                ..args
            })),
            #[cfg(feature = "serve")]
            _ if self.config.is_some() => {
                Err(misplaced("this subcommand reads no configuration file"))
            }
            #[cfg(feature = "serve")]
            Subcommands::Share(args) => Ok(Action::Share(args)),
            #[cfg(feature = "serve")]
            Subcommands::Status(args) => Ok(Action::Status(args)),
            #[cfg(feature = "serve")]
            Subcommands::Eject(args) => Ok(Action::Eject(args)),
        }
    }
}

fn misplaced(message: &str) -> clap::Error {
    Cli::command().error(ErrorKind::ArgumentConflict, message)
}

/// A usage error as one line, without clap's `error: ` and without the usage text.
pub(crate) fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let sentence = text.split("\n\n").next().unwrap_or(&text);
    let words: Vec<&str> = sentence.split_whitespace().collect();
    let sentence = words.join(" ");
    format!(
        "{} (see nbd-proxy --help)",
        sentence.strip_prefix("error: ").unwrap_or(&sentence)
    )
}

#[cfg(test)]
mod tests;
