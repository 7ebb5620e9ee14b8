//! `boxlite image prune` and `boxlite system prune`

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;

use boxlite::BoxliteRuntime;
use boxlite::image::Pruned;

use crate::args::PruneArgs;
use crate::exit::{self, Failure};
use crate::output;

pub(crate) async fn images(runtime: &BoxliteRuntime, args: PruneArgs) -> Result<ExitCode, Failure> {
    let what = if args.all { "every image that no box uses" } else { "all images without a name" };
    if !args.force && !confirmed(&format!("This removes {what}.")).await? {
        return Ok(ExitCode::from(1));
    }
    let pruned = runtime.images().prune(args.all).await?;
    tell(&pruned)?;
    output::line(&format!("Total reclaimed space: {}", output::bytes(pruned.freed_bytes)))?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn system(runtime: &BoxliteRuntime, args: PruneArgs) -> Result<ExitCode, Failure> {
    let what = if args.all { "every image that no box uses then" } else { "all images without a name" };
    if !args.force && !confirmed(&format!("This removes all boxes that do not run, and {what}.")).await? {
        return Ok(ExitCode::from(1));
    }
    let pruned = runtime.prune(args.all).await?;
    for id in &pruned.boxes {
        output::line(&format!("Deleted box: {id}"))?;
    }
    tell(&pruned.images)?;
    output::line(&format!("Total reclaimed space: {}", output::bytes(pruned.freed_bytes)))?;
    Ok(ExitCode::SUCCESS)
}

fn tell(pruned: &Pruned) -> io::Result<()> {
    for name in &pruned.untagged {
        output::line(&format!("Untagged: {name}"))?;
    }
    for digest in &pruned.deleted {
        output::line(&format!("Deleted: {digest}"))?;
    }
    if pruned.incomplete {
        exit::message(
            "images are being pulled, loaded or saved: files without an image stay for the next prune",
        );
    }
    Ok(())
}

/// Asks whoever sits there. Where nobody does, the answer must be in the command.
pub(crate) async fn confirmed(what: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::Told(format!("{what} It needs a confirmation\nhint: add --force")));
    }
    let question = format!("{what} Go on? [y/N] ");
    let asked = tokio::task::spawn_blocking(move || {
        let mut answer = String::new();
        write!(io::stderr(), "{question}")?;
        io::stdin().lock().read_line(&mut answer)?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    });
    let answer: io::Result<bool> = asked.await.map_err(io::Error::other)?;
    answer.map_err(|error| Failure::Told(format!("cannot ask: {error}")))
}
