//! `nbd-proxy passwd`: who may sign in, and with which tokens programs come. A running server reads what is written here
//! within a second.

use std::{
    fs::File,
    io::{self, BufRead as _, IsTerminal as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use rustix::fs::FlockOperation;

use crate::{
    accounts::{Accounts, Token, Tokens, User, Users, now, password},
    cli::{PasswdArgs, PasswdCommand, Password, TokenCommand},
    config::{Access, Config, Strictness},
    paths, report,
    secret::Secret,
    units,
};

/// How long a day is, seconds.
const DAY: u64 = 24 * 3600;

/// Does what is asked.
pub(crate) fn run(args: &PasswdArgs) -> anyhow::Result<ExitCode> {
    let files = Files { args };
    match &args.command {
        PasswdCommand::Add(Password { user, stdin }) => add(&files, user, *stdin)?,
        PasswdCommand::Remove { user } => remove(&files, user)?,
        PasswdCommand::List => list(&files)?,
        PasswdCommand::Token(TokenCommand::Add {
            name,
            user,
            expires,
        }) => add_token(&files, name, user, *expires)?,
        PasswdCommand::Token(TokenCommand::Revoke { name }) => revoke_token(&files, name)?,
        PasswdCommand::Token(TokenCommand::List) => list_tokens(&files)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Where the two files are: as told, else where the configuration says.
struct Files<'a> {
    args: &'a PasswdArgs,
}

impl Files<'_> {
    fn users(&self) -> anyhow::Result<PathBuf> {
        self.find("users", self.args.users.as_ref(), |access| access.users)
    }

    fn tokens(&self) -> anyhow::Result<PathBuf> {
        self.find("tokens", self.args.tokens.as_ref(), |access| access.tokens)
    }

    fn find(
        &self,
        key: &str,
        given: Option<&PathBuf>,
        configured: impl FnOnce(Access) -> Option<PathBuf>,
    ) -> anyhow::Result<PathBuf> {
        if let Some(path) = given {
            return Ok(path.clone());
        }
        let config = paths::config_file(self.args.config.as_deref());
        let (read, _) = Config::load(&config, Strictness::Strict)
            .with_context(|| format!("the file is unknown; name it with --{key} FILE"))?;
        configured(read.serve.access).with_context(|| {
            format!(
                "{} says in \"serve\" nothing of \"{key}\"; add the path of a file there, or name it with --{key} FILE",
                config.display()
            )
        })
    }
}

/// Changes a file of accounts; two at once wait for each other.
fn change<T: Accounts, R>(
    path: &Path,
    change: impl FnOnce(&mut T) -> anyhow::Result<R>,
) -> anyhow::Result<R> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let lock = File::open(folder).with_context(|| format!("can't open {}", folder.display()))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    let mut accounts = T::load(path)?.unwrap_or_default();
    let result = change(&mut accounts)?;
    accounts.save(path)?;
    Ok(result)
}

fn read<T: Accounts>(path: &Path) -> anyhow::Result<T> {
    Ok(T::load(path)?.unwrap_or_default())
}

fn add(files: &Files<'_>, name: &str, stdin: bool) -> anyhow::Result<()> {
    let path = files.users()?;
    // What can't be is told before a password is asked for.
    read::<Users>(&path)?.set(name, User::new(String::new(), 0))?;
    let chosen = match stdin {
        true => first_line(io::stdin().lock())?,
        false => ask(name)?,
    };
    password::check(&chosen)?;
    let user = User::new(password::hash(&chosen)?, now());
    let changed = change(&path, |users: &mut Users| users.set(name, user))?;
    report::information(match changed {
        true => format!("{name} has a new password; who signed in with the old one is signed out"),
        false => format!("{name} may sign in; what they may do, \"allow\" of a configuration says"),
    });
    Ok(())
}

/// Asks at the terminal, which doesn't show what is typed.
fn ask(name: &str) -> anyhow::Result<String> {
    ensure!(
        io::stdin().is_terminal(),
        "there is no terminal to ask for a password at; pass it on standard input, with --stdin"
    );
    let first = rpassword::prompt_password(format!("Password of {name}: "))?;
    password::check(&first)?;
    let second = rpassword::prompt_password("The same again: ")?;
    ensure!(first == second, "the two differ; nothing is changed");
    Ok(first)
}

fn first_line(input: impl io::BufRead) -> anyhow::Result<String> {
    let mut line = String::new();
    let limit = u64::try_from(password::LONGEST + 2)?;
    input.take(limit).read_line(&mut line)?;
    let line = line.strip_suffix('\n').unwrap_or(&line);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

fn remove(files: &Files<'_>, name: &str) -> anyhow::Result<()> {
    let path = files.users()?;
    let was_there = change(&path, |users: &mut Users| Ok(users.remove(name)))?;
    let revoked = match files.tokens() {
        Ok(path) if path.exists() => {
            change(&path, |tokens: &mut Tokens| Ok(tokens.revoke_all_of(name)))?
        }
        _ => Vec::new(),
    };
    for token in &revoked {
        report::information(format_args!("token {token:?} of {name} is revoked"));
    }
    if !was_there && revoked.is_empty() {
        bail!("there is no user {name:?} in {}", path.display());
    }
    report::information(format_args!("{name} is removed, and signed out everywhere"));
    Ok(())
}

fn list(files: &Files<'_>) -> anyhow::Result<()> {
    let users: Users = read(&files.users()?)?;
    for (name, user) in users.iter() {
        println!("{name}\tpassword set {} ago", span(user.changed, now()));
    }
    Ok(())
}

fn add_token(
    files: &Files<'_>,
    name: &str,
    user: &str,
    expires: Option<u32>,
) -> anyhow::Result<()> {
    let path = files.tokens()?;
    let secret = Secret::for_program().context("no random numbers")?;
    let token = Token {
        user: user.to_owned(),
        sha256: secret.digest(),
        created: now(),
        expires: expires.map(|days| now() + u64::from(days) * DAY),
    };
    change(&path, |tokens: &mut Tokens| tokens.add(name, token))?;
    report::information(format_args!(
        "token {name:?} of {user}; it is shown this once, and not kept"
    ));
    println!("{}", secret.reveal());
    Ok(())
}

fn revoke_token(files: &Files<'_>, name: &str) -> anyhow::Result<()> {
    let path = files.tokens()?;
    let was_there = change(&path, |tokens: &mut Tokens| Ok(tokens.revoke(name)))?;
    ensure!(
        was_there,
        "there is no token {name:?} in {}",
        path.display()
    );
    report::information(format_args!("token {name:?} is revoked"));
    Ok(())
}

fn list_tokens(files: &Files<'_>) -> anyhow::Result<()> {
    let tokens: Tokens = read(&files.tokens()?)?;
    for (name, token) in tokens.iter() {
        let expires = match token.expires {
            None => "never expires".to_owned(),
            Some(_) if token.is_expired(now()) => "has expired".to_owned(),
            Some(expires) => format!("expires in {}", span(now(), expires)),
        };
        println!(
            "{name}\t{}\tmade {} ago\t{expires}",
            token.user,
            span(token.created, now())
        );
    }
    Ok(())
}

fn span(from: u64, to: u64) -> String {
    units::duration(Duration::from_secs(to.saturating_sub(from)))
}
