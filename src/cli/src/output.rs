//! Tables, JSON and times, on standard output.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use serde_json::Value;

/// Columns as wide as their widest cell; the last one is not padded.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = io::stdout().lock();
    let header: Vec<String> = header.iter().map(|cell| (*cell).to_owned()).collect();
    for row in [&header].into_iter().chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 3));
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    out.flush()
}

/// One line.
pub(crate) fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// One JSON document.
pub(crate) fn json(value: &Value) -> io::Result<()> {
    line(&format!("{value:#}"))
}

/// How long ago, in words.
pub(crate) fn ago(time: SystemTime) -> String {
    format!("{} ago", span(SystemTime::now().duration_since(time).unwrap_or_default()))
}

/// A time in words: its largest unit.
pub(crate) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..172_800 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    if count == 1 { format!("1 {unit}") } else { format!("{count} {unit}s") }
}

/// Seconds since the Unix epoch, for JSON.
pub(crate) fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Bytes with a decimal unit, as Docker shows them.
pub(crate) fn bytes(count: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = count as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            return if unit == "B" {
                format!("{count} B")
            } else {
                format!("{value:.*} {unit}", digits(value))
            };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

fn digits(value: f64) -> usize {
    if value < 10.0 { 2 } else { usize::from(value < 100.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (count, text) in
            [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (45_600_000, "45.6 MB"), (1 << 30, "1.07 GB")]
        {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn times_have_one_unit() {
        for (seconds, text) in
            [(1, "1 second"), (59, "59 seconds"), (60, "1 minute"), (7200, "2 hours"), (172_800, "2 days")]
        {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }
}
