//! `boxlite version`

use std::process::ExitCode;

use serde_json::json;

use crate::args::{Format, FormatArgs};
use crate::exit::Failure;
use crate::output;

pub(crate) fn run(args: &FormatArgs) -> Result<ExitCode, Failure> {
    match args.format {
        Format::Json => output::json(&json!({"name": "boxlite", "version": boxlite::VERSION}))?,
        Format::Table => output::line(&format!("boxlite {}", boxlite::VERSION))?,
    }
    Ok(ExitCode::SUCCESS)
}
