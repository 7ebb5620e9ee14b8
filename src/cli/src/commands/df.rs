//! `boxlite system df`

use std::process::ExitCode;

use boxlite::{BoxliteRuntime, UsageGroup};
use serde_json::{Value, json};

use crate::args::{DfArgs, Format};
use crate::exit::Failure;
use crate::output;

pub(crate) async fn run(runtime: &BoxliteRuntime, args: &DfArgs) -> Result<ExitCode, Failure> {
    let usage = runtime.disk_usage().await?;
    let images = if args.verbose { runtime.images().list().await? } else { Vec::new() };
    let total = usage.total_bytes();
    if args.format.format == Format::Json {
        let group = |group: &UsageGroup| {
            json!({
                "count": group.count,
                "active": group.active,
                "size": group.bytes,
                "reclaimable": group.reclaimable_bytes,
            })
        };
        let mut shown = json!({
            "images": group(&usage.images),
            "boxes": group(&usage.boxes),
            "volumes": group(&usage.volumes),
            "cache": usage.cache_bytes,
            "other": usage.other_bytes,
            "total": total,
        });
        if args.verbose {
            let each = images.iter().map(|image| {
                json!({ "references": image.references, "digest": image.digest, "size": image.size_bytes, "disk": image.disk_bytes })
            });
            shown["each_image"] = Value::Array(each.collect());
        }
        output::json(&shown)?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |name: &str, group: &UsageGroup| {
        vec![
            name.to_owned(),
            group.count.to_string(),
            group.active.to_string(),
            output::bytes(group.bytes),
            output::bytes(group.reclaimable_bytes),
        ]
    };
    let rest = |name: &str, bytes| vec![name.to_owned(), String::new(), String::new(), output::bytes(bytes)];
    let rows = [
        row("Images", &usage.images),
        row("Boxes", &usage.boxes),
        row("Volumes", &usage.volumes),
        rest("Cache", usage.cache_bytes),
        rest("Other", usage.other_bytes),
        rest("Total", total),
    ];
    output::table(&["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"], &rows)?;
    if args.verbose {
        output::line("")?;
        let rows: Vec<_> = images
            .iter()
            .map(|image| {
                let name = image.references.first().cloned().unwrap_or_else(|| image.digest.clone());
                vec![name, output::bytes(image.size_bytes), output::bytes(image.disk_bytes)]
            })
            .collect();
        output::table(&["IMAGE", "SIZE", "DISK"], &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}
