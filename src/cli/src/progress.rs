//! How far an image is: one line per layer on a terminal, a line per event elsewhere. On standard error.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use boxlite::CopyProgress;
use boxlite::image::Progress;

use crate::output;

/// How often lines are drawn at most: faster is only flicker.
const REDRAW: Duration = Duration::from_millis(100);
/// Layers that have a line of their own. Of images with more, those at work are shown.
const LINES: usize = 20;
/// Characters of a bar.
const BAR: usize = 20;

/// A copy, as one line on a terminal. Elsewhere nothing is shown.
#[derive(Debug, Clone)]
pub(crate) struct Copied {
    shared: Arc<Mutex<Line>>,
}

#[derive(Debug)]
struct Line {
    shown: bool,
    drawn: bool,
    begun: Instant,
    last: Option<Instant>,
}

impl Copied {
    pub(crate) fn new(quiet: bool) -> Self {
        let shown = !quiet && io::stderr().is_terminal();
        let line = Line { shown, drawn: false, begun: Instant::now(), last: None };
        Self { shared: Arc::new(Mutex::new(line)) }
    }

    /// What the library tells goes here.
    pub(crate) fn teller(&self) -> impl FnMut(CopyProgress) + Send + 'static {
        let shared = self.shared.clone();
        move |now| shared.lock().unwrap_or_else(PoisonError::into_inner).draw(now)
    }

    /// Takes the line away.
    pub(crate) fn end(&self) {
        let mut line = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        line.shown = false;
        if std::mem::take(&mut line.drawn) {
            // A terminal that has gone needs no line taken away.
            write!(io::stderr(), "\r\x1b[K").unwrap_or_default();
        }
    }
}

impl Line {
    fn draw(&mut self, now: CopyProgress) {
        if !self.shown || self.last.is_some_and(|last| last.elapsed() < REDRAW) {
            return;
        }
        self.last = Some(Instant::now());
        self.drawn = true;
        let text = copy_line(now, self.begun.elapsed());
        // As above.
        write!(io::stderr(), "\r{text}\x1b[K").and_then(|()| io::stderr().flush()).unwrap_or_default();
    }
}

fn copy_line(now: CopyProgress, since: Duration) -> String {
    let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX).max(1);
    let rate = output::bytes(now.bytes.saturating_mul(1000) / millis);
    match now.total {
        Some(total) if total > 0 => {
            let percent = now.bytes.saturating_mul(100) / total;
            format!("{} of {}, {percent} %, {rate}/s", output::bytes(now.bytes), output::bytes(total))
        }
        _ => format!("{} files, {}, {rate}/s", now.entries, output::bytes(now.bytes)),
    }
}

/// The layers of one image. Clones show the same.
#[derive(Debug, Clone)]
pub(crate) struct Layers {
    shared: Arc<Mutex<View>>,
}

#[derive(Debug)]
struct View {
    name: String,
    mode: Mode,
    layers: Vec<Layer>,
    /// What is done as a whole, where that is no layer.
    note: Option<&'static str>,
    /// Lines on the terminal that are ours.
    drawn: usize,
    last: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Quiet,
    Plain,
    Terminal,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Layer {
    fetched: u64,
    total: u64,
    converted: u64,
    is_done: bool,
    since: Option<Instant>,
    seconds: f64,
}

impl Layers {
    pub(crate) fn new(name: &str, quiet: bool) -> Self {
        let mode = match (quiet, io::stderr().is_terminal()) {
            (true, _) => Mode::Quiet,
            (false, true) => Mode::Terminal,
            (false, false) => Mode::Plain,
        };
        let name = name.escape_debug().to_string();
        let view = View { name, mode, layers: Vec::new(), note: None, drawn: 0, last: None };
        Self { shared: Arc::new(Mutex::new(view)) }
    }

    /// What is told how far the image is.
    pub(crate) fn teller(&self) -> impl FnMut(Progress) + Send + 'static {
        let shared = self.shared.clone();
        move |step| shared.lock().unwrap_or_else(PoisonError::into_inner).tell(step)
    }

    /// Draws the lines for the last time; what is printed next stands below.
    pub(crate) fn end(&self) {
        let mut view = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if view.drawn > 0 {
            view.draw(true);
            view.drawn = 0;
        }
    }
}

impl View {
    fn tell(&mut self, step: Progress) {
        if self.mode == Mode::Quiet {
            return;
        }
        let before = self.note;
        match step {
            Progress::Waiting => self.note = Some("waiting for another process that makes the same image"),
            Progress::Resolving => self.note = Some("asking the registry"),
            Progress::Unpacking { .. } => self.note = Some("unpacking the archive"),
            _ => self.note = None,
        }
        if self.mode == Mode::Plain && self.note != before && matches!(step, Progress::Waiting) {
            self.line(&format!("{}: {}", self.name, self.note.unwrap_or_default()));
        }
        self.layer(step);
        if self.mode == Mode::Terminal && self.last.is_none_or(|last| last.elapsed() >= REDRAW) {
            self.draw(false);
        }
    }

    fn layer(&mut self, step: Progress) {
        let (number, count) = match step {
            Progress::Fetch { layer, layers, .. }
            | Progress::Layer { layer, layers, .. }
            | Progress::Converted { layer, layers } => (layer, layers),
            _ => return,
        };
        self.layers.resize_with(count.max(self.layers.len()), Layer::default);
        let Some(layer) = number.checked_sub(1).and_then(|at| self.layers.get_mut(at)) else { return };
        let since = *layer.since.get_or_insert_with(Instant::now);
        match step {
            Progress::Fetch { bytes, total, .. } => {
                let is_first = layer.total == 0;
                (layer.fetched, layer.total) = (bytes, total);
                layer.seconds = since.elapsed().as_secs_f64();
                let size = output::bytes(total);
                if is_first {
                    self.plain(number, count, &format!("downloading {size}"));
                }
                if bytes == total {
                    self.plain(number, count, "downloaded");
                }
            }
            Progress::Layer { bytes, .. } => layer.converted = bytes,
            _ => {
                layer.is_done = true;
                self.plain(number, count, "done");
            }
        }
    }

    fn plain(&self, number: usize, count: usize, what: &str) {
        if self.mode == Mode::Plain {
            self.line(&format!("{}: layer {number} of {count}: {what}", self.name));
        }
    }

    fn line(&self, text: &str) {
        // Progress that cannot be shown is no reason to stop.
        drop(writeln!(io::stderr(), "{text}"));
    }

    fn draw(&mut self, is_last: bool) {
        let mut out = String::new();
        if self.drawn > 0 {
            out.push_str(&format!("\x1b[{}A", self.drawn));
        }
        let mut lines = Vec::new();
        let busy = |layer: &&Layer| layer.since.is_some() && !layer.is_done;
        let all = self.layers.len() <= LINES;
        for (number, layer) in (1..).zip(&self.layers).filter(|(_, layer)| all || busy(layer)).take(LINES) {
            lines.push(format!("layer {number:>2}/{}  {}", self.layers.len(), layer.shown()));
        }
        if let Some(note) = self.note.filter(|_| !is_last) {
            lines.push(note.to_owned());
        }
        for line in &lines {
            out.push_str(&format!("\r\x1b[K{line}\n"));
        }
        // Lines that were there and are not any more.
        for _ in lines.len()..self.drawn {
            out.push_str("\r\x1b[K\n");
        }
        self.drawn = lines.len().max(self.drawn);
        self.last = Some(Instant::now());
        drop(write!(io::stderr(), "{out}"));
    }
}

impl Layer {
    fn shown(&self) -> String {
        let size = output::bytes(self.total.max(self.fetched));
        if self.is_done {
            return if self.total > 0 { format!("done, {size}") } else { "done, was here".into() };
        }
        if self.since.is_none() {
            return "waiting".into();
        }
        if self.fetched < self.total {
            let done = usize::try_from(self.fetched.saturating_mul(BAR as u64) / self.total).unwrap_or(BAR);
            let bar: String = (0..BAR).map(|at| if at < done { '#' } else { '.' }).collect();
            return format!("[{bar}] {} of {size}, {}/s", output::bytes(self.fetched), self.rate());
        }
        match self.converted {
            0 => "downloaded".into(),
            bytes => format!("converting, {}", output::bytes(bytes)),
        }
    }

    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate for people"
    )]
    fn rate(&self) -> String {
        output::bytes(if self.seconds > 0.0 { (self.fetched as f64 / self.seconds) as u64 } else { 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_goes_from_waiting_to_done() {
        let mut layer = Layer::default();
        assert_eq!(layer.shown(), "waiting");
        layer.since = Some(Instant::now());
        (layer.fetched, layer.total, layer.seconds) = (1_000_000, 2_000_000, 2.0);
        assert_eq!(layer.shown(), "[##########..........] 1.00 MB of 2.00 MB, 500 kB/s");
        layer.fetched = 2_000_000;
        assert_eq!(layer.shown(), "downloaded");
        layer.converted = 3_000_000;
        assert_eq!(layer.shown(), "converting, 3.00 MB");
        layer.is_done = true;
        assert_eq!(layer.shown(), "done, 2.00 MB");
    }

    #[test]
    fn numbers_that_make_no_sense_are_no_reason_to_stop() {
        let view = View {
            name: "x".into(),
            mode: Mode::Plain,
            layers: Vec::new(),
            note: None,
            drawn: 0,
            last: None,
        };
        let mut view = View { mode: Mode::Quiet, ..view };
        view.layer(Progress::Fetch { layer: 0, layers: 2, bytes: 1, total: 0 });
        view.layer(Progress::Layer { layer: 9, layers: 2, bytes: 1 });
        assert_eq!(view.layers.len(), 2);
    }
}
