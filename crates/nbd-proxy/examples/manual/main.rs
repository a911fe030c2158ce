//! Writes the manual pages and the shells' completions, both from the definition of the command line: what they say is
//! what the program does. `cargo xtask man` runs it. An example, so that the program itself carries nothing of this.

mod page;

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use clap::Command;
use clap_complete::Shell;

fn main() -> Result<(), Box<dyn Error>> {
    let directory: PathBuf = std::env::args_os()
        .nth(1)
        .ok_or("which directory to write to?")?
        .into();
    let mut command = nbd_proxy::command();
    command.build();
    write_pages(&command, &directory.join("man"))?;
    write_completions(&mut command, &directory.join("completions"))?;
    Ok(())
}

/// One page for the program, and one for each command of it.
fn write_pages(program: &Command, directory: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(directory)?;
    let commands: Vec<&Command> = program
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .collect();
    let names: Vec<String> = commands.iter().map(|command| name(command)).collect();
    let path = |name: &str| directory.join(format!("{name}.1"));
    fs::write(path("nbd-proxy"), page::program(program, &names)?)?;
    for (command, name) in commands.into_iter().zip(&names) {
        fs::write(path(name), page::command(command, name)?)?;
    }
    Ok(())
}

/// `nbd-proxy-serve`
fn name(command: &Command) -> String {
    format!("nbd-proxy-{}", command.get_name())
}

fn write_completions(program: &mut Command, directory: &Path) -> std::io::Result<()> {
    fs::create_dir_all(directory)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, program, "nbd-proxy", directory)?;
    }
    Ok(())
}
