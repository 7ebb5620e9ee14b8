//! One file a command, or a few that belong together.

pub(crate) mod attach;
pub(crate) mod cp;
pub(crate) mod df;
pub(crate) mod doctor;
pub(crate) mod each;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod images;
pub(crate) mod inspect;
pub(crate) mod load;
pub(crate) mod login;
pub(crate) mod logs;
pub(crate) mod network;
pub(crate) mod prune;
pub(crate) mod ps;
pub(crate) mod pull;
pub(crate) mod rm;
pub(crate) mod rmi;
pub(crate) mod run;
pub(crate) mod save;
pub(crate) mod stats;
pub(crate) mod tag;
pub(crate) mod version;
pub(crate) mod volume;

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

/// Labels as `key=value`; one without a value has an empty one.
pub(crate) fn labels(texts: &[String]) -> Vec<(String, String)> {
    let pair = |text: &String| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        (key.to_owned(), value.to_owned())
    };
    texts.iter().map(pair).collect()
}
