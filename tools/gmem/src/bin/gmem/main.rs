// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `gmem`: looks at the guest_memfds of a machine, and at what its kernel can do with them.

mod caps;
mod files;
mod map;
mod trace;

use clap::{
    CommandFactory,
    Parser,
    Subcommand,
    ValueEnum, //
};
use gmem::fdinfo::FdInfoError;
use std::{
    fmt,
    io::{
        self,
        IsTerminal,
        Write, //
    },
    path::PathBuf,
    process::ExitCode,
    time::Duration, //
};

/// Looks at the guest_memfds of a machine.
#[derive(Parser)]
#[command(name = "gmem", version)]
struct Arguments {
    /// Print JSON, with sizes in bytes; commands that continue print one value a line.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show what this kernel converts in place, for each type of VM, phase, direction and policy.
    Caps,
    /// List every open guest_memfd, with its process and how much is private and shared.
    Ls,
    /// Show one guest_memfd, and the guest frames it is bound to.
    Show {
        /// The process.
        pid: u32,
        /// The descriptor.
        fd: u32,
    },
    /// Draw which parts of a guest_memfd are private, shared, and without memory.
    Map {
        /// The process.
        pid: u32,
        /// The descriptor.
        fd: u32,
        /// Write an SVG to this file instead.
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
    /// Draw a guest_memfd each time it has changed, until it is closed.
    Watch {
        /// The process.
        pid: u32,
        /// The descriptor.
        fd: u32,
        /// How often to look, in milliseconds.
        #[arg(long, value_name = "MS", default_value_t = 500, value_parser = clap::value_parser!(u64).range(10..))]
        interval: u64,
    },
    /// Print each conversion on the machine as it ends, and a summary.
    Trace {
        /// Stop after this many seconds; by default at the end of standard input, or when killed.
        #[arg(long, value_name = "N")]
        seconds: Option<u64>,
    },
    /// Print the manual page, or completions for a shell.
    #[command(hide = true)]
    Generate {
        /// What.
        what: Generated,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Generated {
    Man,
    Bash,
    Fish,
    Zsh,
}

/// Why nothing useful was printed.
#[derive(Debug)]
enum Failure {
    /// About one descriptor.
    Descriptor(u32, u32, FdInfoError),
    /// A sentence.
    Other(String),
    /// `/proc` or the output.
    Io(io::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Descriptor(pid, fd, error) => {
                write!(f, "process {pid}, descriptor {fd}: {error}")
            }
            Self::Other(why) => write!(f, "{why}"),
            Self::Io(error) => write!(f, "{error}"),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Where everything is printed to.
struct Output {
    to: io::StdoutLock<'static>,
    /// JSON is wanted.
    json: bool,
    /// Colours are.
    colour: bool,
}

impl Output {
    fn new(json: bool) -> Self {
        let to = io::stdout().lock();
        Self {
            colour: to.is_terminal() && !json && std::env::var_os("NO_COLOR").is_none(),
            json,
            to,
        }
    }

    /// Prints a line, and does not keep it back.
    fn line(&mut self, line: impl fmt::Display) -> Result<(), Failure> {
        writeln!(self.to, "{line}")?;
        Ok(self.to.flush()?)
    }
}

fn generate(what: Generated) -> Result<(), Failure> {
    use clap_complete::Shell;

    let mut command = Arguments::command();
    let mut text = Vec::new();
    let shell = match what {
        Generated::Man => {
            clap_mangen::Man::new(command.clone()).render(&mut text)?;
            for part in command.get_subcommands().filter(|part| !part.is_hide_set()) {
                writeln!(text, ".SH \"GMEM {}\"", part.get_name().to_uppercase())?;
                let man = clap_mangen::Man::new(part.clone());
                man.render_description_section(&mut text)?;
                man.render_options_section(&mut text)?;
            }
            None
        }
        Generated::Bash => Some(Shell::Bash),
        Generated::Fish => Some(Shell::Fish),
        Generated::Zsh => Some(Shell::Zsh),
    };
    if let Some(shell) = shell {
        clap_complete::generate(shell, &mut command, "gmem", &mut text);
    }
    Ok(io::stdout().write_all(&text)?)
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let out = &mut Output::new(arguments.json);

    match arguments.command {
        Command::Caps => caps::print(out),
        Command::Ls => files::list(out),
        Command::Show { pid, fd } => files::show(out, pid, fd),
        Command::Map { pid, fd, svg } => map::print(out, pid, fd, svg.as_deref()),
        Command::Watch { pid, fd, interval } => {
            map::watch(out, pid, fd, Duration::from_millis(interval))
        }
        Command::Trace { seconds } => trace::follow(out, seconds.map(Duration::from_secs)),
        Command::Generate { what } => generate(what),
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of the output has closed it.
        Err(Failure::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("gmem: {failure}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_make_sense() {
        Arguments::command().debug_assert();
    }
}
