//! `boxlite` on the command line: a thin reading of the library, in Docker's words.
//!
//! Data goes to standard output, messages and progress to standard error. Exit codes are in [`exit`].

mod args;
mod box_args;
mod commands;
mod exit;
mod filter;
mod keys;
mod mounts;
mod network_args;
mod output;
mod progress;
mod streams;
mod template;
mod terminal;
mod time;

use std::process::ExitCode;

use boxlite::{BoxliteOptions, BoxliteRuntime};
use clap::Parser;

use crate::args::{Command, ImageCommand, Line, SystemCommand};
use crate::exit::Failure;

fn main() -> ExitCode {
    let line = match Line::try_parse() {
        Ok(line) => line,
        Err(error) => return exit::usage(&error),
    };
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(if line.debug { "debug" } else { "warn" }))
        .with_writer(std::io::stderr)
        .init();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::tool(&format!("cannot start: {error}")),
    };
    let tool_code = line.command.tool_code();
    let outcome = runtime.block_on(run(line));
    // A read of the terminal that is under way cannot be ended: nobody waits for it.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => code,
        Err(failure) => failure.report(tool_code),
    }
}

async fn run(line: Line) -> Result<ExitCode, Failure> {
    if let Command::Version(args) = &line.command {
        return commands::version::run(args);
    }
    let mut options = BoxliteOptions::default();
    options.home_dir = line.home;
    options.config_file = line.config;
    options.search_registries = line.registry;
    let runtime = BoxliteRuntime::new(options)?;
    match line.command {
        Command::Run(args) => commands::run::run(&runtime, args).await,
        Command::Exec(args) => commands::exec::run(&runtime, args).await,
        Command::Cp(args) => commands::cp::run(&runtime, args).await,
        Command::Ps(args) => commands::ps::run(&runtime, &args).await,
        Command::Create(args) => commands::run::create(&runtime, args).await,
        Command::Start(args) => commands::each::start(&runtime, &args).await,
        Command::Attach(args) => commands::attach::run(&runtime, args).await,
        Command::Inspect(args) => commands::inspect::any(&runtime, args).await,
        Command::Logs(args) => commands::logs::run(&runtime, args).await,
        Command::Events(args) => commands::events::run(&runtime, args).await,
        Command::Stats(args) => commands::stats::run(&runtime, args).await,
        Command::Metrics(args) => commands::stats::metrics(&runtime, args).await,
        Command::Stop(args) => commands::each::stop(&runtime, &args).await,
        Command::Restart(args) => commands::each::restart(&runtime, &args).await,
        Command::Kill(args) => commands::each::kill(&runtime, &args).await,
        Command::Pause(args) => commands::each::pause(&runtime, &args).await,
        Command::Unpause(args) => commands::each::unpause(&runtime, &args).await,
        Command::Wait(args) => commands::each::wait(&runtime, &args).await,
        Command::Rename(args) => commands::each::rename(&runtime, &args).await,
        Command::Update(args) => commands::each::update(&runtime, &args).await,
        Command::Rm(args) => commands::rm::run(&runtime, args).await,
        Command::Pull(args) | Command::Image(ImageCommand::Pull(args)) => {
            commands::pull::run(&runtime, args).await
        }
        Command::Images(args) | Command::Image(ImageCommand::Ls(args)) => {
            commands::images::run(&runtime, &args).await
        }
        Command::Rmi(args) | Command::Image(ImageCommand::Rm(args)) => {
            commands::rmi::run(&runtime, args).await
        }
        Command::Load(args) | Command::Image(ImageCommand::Load(args)) => {
            commands::load::run(&runtime, args).await
        }
        Command::Save(args) | Command::Image(ImageCommand::Save(args)) => {
            commands::save::run(&runtime, args).await
        }
        Command::Tag(args) | Command::Image(ImageCommand::Tag(args)) => {
            commands::tag::run(&runtime, args).await
        }
        Command::Image(ImageCommand::Inspect(args)) => commands::inspect::run(&runtime, args).await,
        Command::Image(ImageCommand::Prune(args)) => commands::prune::images(&runtime, args).await,
        Command::System(SystemCommand::Df(args)) => commands::df::run(&runtime, &args).await,
        Command::System(SystemCommand::Prune(args)) => commands::prune::system(&runtime, args).await,
        Command::Port(args) => commands::network::port(&runtime, args).await,
        Command::Network(command) => commands::network::run(&runtime, command).await,
        Command::Volume(command) => commands::volume::run(&runtime, command).await,
        Command::Login(args) => commands::login::login(&runtime, args).await,
        Command::Logout(args) => commands::login::logout(&runtime, args).await,
        Command::Doctor(args) => commands::doctor::run(&runtime, &args).await,
        Command::Version(args) => commands::version::run(&args),
    }
}
