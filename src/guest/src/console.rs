//! The machine's console: a few lines for whoever reads the log of a box that went wrong.

use std::error::Error;
use std::fmt;
use std::io::Write;

/// Writes one line.
pub fn line(text: fmt::Arguments<'_>) {
    let line = format!("boxlite-guest: {text}\n");
    // The console is the place where failures are told; there is none left to tell that it failed.
    drop(std::io::stderr().write_all(line.as_bytes()));
}

/// An error with all its causes, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Some libraries repeat the cause in the text of the error.
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_chain_names_every_cause_once() {
        assert_eq!(chain(&Outer(std::io::Error::other("inner"))), "outer: inner");
    }
}
