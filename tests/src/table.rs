//! The table that a benchmark prints: what was measured, the floor of the same run, their ratio and its bound.

#![allow(clippy::print_stdout, reason = "a table is what a benchmark is for")]

use std::time::Duration;

/// Lines with a bound.
#[derive(Debug, Default)]
pub struct Table {
    lines: Vec<[String; 5]>,
    /// How many bounds do not hold.
    pub broken: usize,
}

impl Table {
    /// A line whose bound is one of the ratio.
    pub fn ratio(&mut self, what: &str, ours: f64, floor: f64, unit: &str, bound: f64, at_most: bool) {
        let ratio = ours / floor;
        let (good, sign) = if at_most { (ratio <= bound, "<=") } else { (ratio >= bound, ">=") };
        self.add(
            what,
            format!("{ours:.1} {unit}"),
            format!("{floor:.1} {unit}"),
            good,
            format!("{ratio:.2} {sign} {bound}"),
        );
    }

    /// A line whose bound is one of the measured value.
    pub fn limit(&mut self, what: &str, ours: f64, floor: Option<f64>, unit: &str, bound: f64) {
        let floor = floor.map_or(String::new(), |floor| format!("{floor:.1} {unit}"));
        self.add(
            what,
            format!("{ours:.1} {unit}"),
            floor,
            ours <= bound,
            format!("{ours:.1} <= {bound} {unit}"),
        );
    }

    /// A line without a bound.
    pub fn note(&mut self, what: &str, ours: String, floor: String) {
        self.lines.push([what.into(), ours, floor, String::new(), String::new()]);
    }

    fn add(&mut self, what: &str, ours: String, floor: String, good: bool, bound: String) {
        self.broken += usize::from(!good);
        self.lines.push([what.into(), ours, floor, bound, if good { "holds" } else { "BROKEN" }.into()]);
    }

    /// Prints it.
    pub fn print(&self) {
        println!("\n{:44} {:>14} {:>14}   {:24} bound", "", "box", "raw floor", "ratio");
        for [what, ours, floor, bound, verdict] in &self.lines {
            println!("{what:44} {ours:>14} {floor:>14}   {bound:24} {verdict}");
        }
    }
}

/// Milliseconds.
#[must_use]
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The one in the middle.
#[must_use]
pub fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The one below which so many percent are.
#[must_use]
pub fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}
