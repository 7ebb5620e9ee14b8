//! `boxlite images`

use std::process::ExitCode;

use boxlite::BoxliteRuntime;
use serde_json::{Value, json};

use crate::args::{Format, ImagesArgs};
use crate::exit::Failure;
use crate::output;

/// What stands for a name that there is not.
const NONE: &str = "<none>";
/// Digits of a digest that are shown in a table.
const DIGEST: usize = 12;

pub(crate) async fn run(runtime: &BoxliteRuntime, args: &ImagesArgs) -> Result<ExitCode, Failure> {
    let images = runtime.images().list().await?;
    if args.quiet {
        for image in &images {
            output::line(&image.digest)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if args.format.format == Format::Json {
        let all = images.iter().map(|image| {
            json!({
                "references": image.references,
                "digest": image.digest,
                "size": image.size_bytes,
                "created": image.created,
                "architecture": image.architecture,
            })
        });
        output::json(&Value::Array(all.collect()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = Vec::new();
    for image in &images {
        let digest = image.digest.split(':').next_back().unwrap_or_default();
        let short: String = digest.chars().take(DIGEST).collect();
        let names: Vec<&str> = image.references.iter().map(String::as_str).collect();
        for name in if names.is_empty() { vec![NONE] } else { names } {
            let (repository, tag) = if name == NONE { (NONE.into(), NONE.into()) } else { split(name) };
            rows.push(vec![
                repository,
                tag,
                short.clone(),
                output::bytes(image.size_bytes),
                image.architecture.clone(),
            ]);
        }
    }
    output::table(&["REPOSITORY", "TAG", "DIGEST", "SIZE", "ARCH"], &rows)?;
    Ok(ExitCode::SUCCESS)
}

/// Repository and tag as Docker shows them: without the default registry.
fn split(name: &str) -> (String, String) {
    let short = name.strip_prefix("docker.io/").unwrap_or(name);
    let short = short.strip_prefix("library/").unwrap_or(short);
    let (repository, digest) = short.split_once('@').map_or((short, None), |(r, d)| (r, Some(d)));
    match (digest, repository.rsplit_once(':')) {
        (None, Some((repository, tag))) if !tag.contains('/') => (repository.into(), tag.into()),
        (Some(_), _) => (repository.into(), NONE.into()),
        _ => (repository.into(), "latest".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_without_the_default_registry() {
        for (name, repository, tag) in [
            ("docker.io/library/busybox:latest", "busybox", "latest"),
            ("docker.io/a/b:1", "a/b", "1"),
            ("localhost:5000/a", "localhost:5000/a", "latest"),
            ("localhost:5000/a:2", "localhost:5000/a", "2"),
        ] {
            assert_eq!(split(name), (repository.into(), tag.into()));
        }
    }
}
