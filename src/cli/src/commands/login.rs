//! `boxlite login` and `boxlite logout`

use std::io::{self, IsTerminal, Read};
use std::process::ExitCode;

use boxlite::BoxliteRuntime;

use crate::args::{LoginArgs, LogoutArgs};
use crate::exit::{self, Failure};
use crate::output;

/// The longest password that is read, in bytes: tokens of registries have some thousands.
const PASSWORD_MAX: u64 = 64 << 10;

pub(crate) async fn login(runtime: &BoxliteRuntime, args: LoginArgs) -> Result<ExitCode, Failure> {
    let Some(username) = args.username else {
        return Err(Failure::Told("who logs in?\nhint: give the name with -u".into()));
    };
    if !args.password_stdin {
        // Arguments can be read by everybody on this machine, and a terminal shows what is typed.
        let text = "the password is read from standard input only\nhint: `boxlite login -u NAME --password-stdin HOST < FILE`";
        return Err(Failure::Told(text.into()));
    }
    if io::stdin().is_terminal() {
        exit::message("reading the password from the terminal; end it with Ctrl-D");
    }
    let password = tokio::task::spawn_blocking(read_password).await.map_err(io::Error::other)??;
    runtime.login(&args.registry, &username, &password).await?;
    output::line("Login Succeeded")?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn logout(runtime: &BoxliteRuntime, args: LogoutArgs) -> Result<ExitCode, Failure> {
    if runtime.logout(&args.registry).await? {
        output::line(&format!("Removed the login for {}", args.registry))?;
    } else {
        exit::message(&format!("there is no login for {} in this home", args.registry));
    }
    Ok(ExitCode::SUCCESS)
}

/// Without the line end that `echo` adds.
fn read_password() -> Result<String, Failure> {
    let mut text = String::new();
    let read = io::stdin().lock().take(PASSWORD_MAX + 1).read_to_string(&mut text);
    read.map_err(|error| Failure::Told(format!("cannot read the password: {error}")))?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() || text.len() as u64 > PASSWORD_MAX {
        return Err(Failure::Told("the password is empty or too long".into()));
    }
    Ok(password.to_owned())
}
