//! One file a command.

pub(crate) mod df;
pub(crate) mod doctor;
pub(crate) mod exec;
pub(crate) mod images;
pub(crate) mod inspect;
pub(crate) mod load;
pub(crate) mod login;
pub(crate) mod prune;
pub(crate) mod ps;
pub(crate) mod pull;
pub(crate) mod rm;
pub(crate) mod rmi;
pub(crate) mod run;
pub(crate) mod save;
pub(crate) mod stop;
pub(crate) mod tag;
pub(crate) mod version;

use boxlite::{BoxliteRuntime, LiteBox};

use crate::exit::Failure;

/// The box that the user names.
pub(crate) async fn find(runtime: &BoxliteRuntime, target: &str) -> Result<LiteBox, Failure> {
    let found = runtime.get(target).await?;
    found.ok_or_else(|| {
        Failure::Told(format!(
            "there is no box `{}`\nhint: `boxlite ps -a` lists them",
            target.escape_debug()
        ))
    })
}
