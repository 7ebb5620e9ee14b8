//! All executions of the box, by id.
//!
//! ```text
//!            reserve              start                 end
//!   (none) ──────────▶ starting ────────▶ live ─────────────────▶ ended ──▶ (forgotten)
//!                         │ failure                                  the oldest beyond 256
//!                         ▼
//!                       (none)            "main" is never forgotten
//! ```
//!
//! The caller chooses the id, and an id is started at most once: who asks for one that is being started, runs or has
//! ended gets the answer of the first.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use boxlite_portal::v1::StartFailure;
use boxlite_portal::{MAIN, limits};
use tokio::sync::watch;

use super::Execution;

/// The most executions that run at the same time, the main command aside.
pub const MAX_LIVE: usize = 1024;
/// How many ended executions are remembered.
pub const MAX_ENDED: usize = 256;
/// How much output all ended executions together keep for late readers.
const MAX_KEPT: usize = 32 << 20;

/// Why there is no execution of an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// Never heard of, or forgotten.
    #[error("there is no execution of this id")]
    Unknown,
    /// The main command did not start.
    #[error("the main command did not start: {}", .0.message)]
    NotStarted(StartFailure),
    /// The machine ends before it was started.
    #[error("the box ends, and this was never started")]
    NeverStarted,
}

/// Why an id cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReserveError {
    /// It is no valid id.
    #[error("an execution id has 1 to {max} characters of [A-Za-z0-9_-] and is not \"{MAIN}\"", max = limits::EXECUTION_ID)]
    Invalid,
    /// Too many executions.
    #[error("{MAX_LIVE} executions run already")]
    TooMany,
    /// The box ends.
    #[error("the box is shutting down")]
    Closed,
}

/// How a start came out; `None` as long as it has not.
pub type Outcome = watch::Receiver<Option<Result<Arc<Execution>, StartFailure>>>;

/// What [`Table::reserve`] found.
#[derive(Debug)]
pub enum Reserved {
    /// The caller is the first and must start it.
    New(Starting),
    /// Somebody else was.
    Known(Outcome),
}

/// The duty to start an execution. Dropped without an outcome, the id is free again.
#[derive(Debug)]
pub struct Starting {
    id: String,
    table: Table,
    sender: watch::Sender<Option<Result<Arc<Execution>, StartFailure>>>,
}

/// The executions. Clones share one table.
#[derive(Clone, Debug)]
pub struct Table {
    inner: Arc<Mutex<Inner>>,
    /// How many executions live, the main command included.
    live: watch::Sender<usize>,
}

#[derive(Debug)]
struct Inner {
    known: HashMap<String, Outcome>,
    ended: VecDeque<String>,
    /// Those of them that keep output, the newest last.
    keeping: VecDeque<Arc<Execution>>,
    starting: usize,
    closed: bool,
}

impl Table {
    /// An empty table, and the duty to start the main command.
    pub fn new() -> (Self, Starting) {
        let (sender, outcome) = watch::channel(None);
        let known = HashMap::from([(MAIN.to_owned(), outcome)]);
        let inner =
            Inner { known, ended: VecDeque::new(), keeping: VecDeque::new(), starting: 0, closed: false };
        let table = Self { inner: Arc::new(Mutex::new(inner)), live: watch::Sender::new(0) };
        let starting = Starting { id: MAIN.to_owned(), table: table.clone(), sender };
        (table, starting)
    }

    fn locked<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes an id.
    ///
    /// # Errors
    /// When it is invalid, there are too many executions, or the box ends.
    pub fn reserve(&self, id: &str) -> Result<Reserved, ReserveError> {
        if !valid(id) {
            return Err(ReserveError::Invalid);
        }
        let live = *self.live.borrow();
        self.locked(|inner| {
            if let Some(outcome) = inner.known.get(id) {
                return Ok(Reserved::Known(outcome.clone()));
            }
            if inner.closed {
                return Err(ReserveError::Closed);
            }
            if live + inner.starting >= MAX_LIVE {
                return Err(ReserveError::TooMany);
            }
            let (sender, outcome) = watch::channel(None);
            inner.known.insert(id.to_owned(), outcome);
            inner.starting += 1;
            Ok(Reserved::New(Starting { id: id.to_owned(), table: self.clone(), sender }))
        })
    }

    /// How the start of the main command came out, or will.
    pub fn main(&self) -> Outcome {
        // "main" is in the table from the start on and never removed.
        self.locked(|inner| inner.known[MAIN].clone())
    }

    /// The execution of this id, once it has started.
    ///
    /// # Errors
    /// When there is none.
    pub async fn find(&self, id: &str) -> Result<Arc<Execution>, LookupError> {
        let outcome = self.locked(|inner| inner.known.get(id).cloned());
        let mut outcome = outcome.ok_or(LookupError::Unknown)?;
        let lost = if id == MAIN { LookupError::NeverStarted } else { LookupError::Unknown };
        match outcome.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Ok(execution))) => Ok(Arc::clone(execution)),
            Ok(Some(Err(failure))) if id == MAIN => Err(LookupError::NotStarted(failure.clone())),
            Ok(Some(Err(_))) => Err(LookupError::Unknown),
            Ok(None) | Err(_) => Err(lost),
        }
    }

    /// An execution has ended: it is remembered, and an older one forgotten.
    pub fn ended(&self, id: &str) {
        self.live.send_modify(|live| *live -= 1);
        if id == MAIN {
            return;
        }
        self.locked(|inner| {
            inner.ended.push_back(id.to_owned());
            if let Some(Some(Ok(execution))) = inner.known.get(id).map(|outcome| outcome.borrow().clone())
                && execution.output.kept() > 0
            {
                inner.keeping.push_back(execution);
            }
            while inner.ended.len() > MAX_ENDED {
                if let Some(oldest) = inner.ended.pop_front() {
                    inner.known.remove(&oldest);
                    inner.keeping.retain(|execution| execution.id != oldest);
                }
            }
            let mut kept = 0;
            for execution in inner.keeping.iter().rev() {
                kept += execution.output.kept();
                if kept > MAX_KEPT {
                    execution.output.release();
                }
            }
            if kept > MAX_KEPT {
                inner.keeping.retain(|execution| execution.output.kept() > 0);
            }
        });
    }

    /// Nothing new is started from now on.
    pub fn close(&self) {
        self.locked(|inner| inner.closed = true);
    }

    /// Waits until no execution lives.
    pub async fn all_ended(&self) {
        let mut live = self.live.subscribe();
        // An error means that this table itself has gone, which it has not.
        drop(live.wait_for(|live| *live == 0).await);
    }
}

impl Starting {
    /// The outcome that others wait for.
    pub fn outcome(&self) -> Outcome {
        self.sender.subscribe()
    }

    /// It runs.
    pub fn succeed(self, execution: Arc<Execution>) {
        self.table.live.send_modify(|live| *live += 1);
        self.sender.send_replace(Some(Ok(execution)));
    }

    /// It did not start: the id is free again, unless it is the main command's.
    pub fn fail(self, failure: StartFailure) {
        self.sender.send_replace(Some(Err(failure)));
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let failed = !matches!(&*self.sender.borrow(), Some(Ok(_)));
        self.table.locked(|inner| {
            if self.id != MAIN {
                inner.starting -= 1;
                if failed {
                    inner.known.remove(&self.id);
                }
            }
        });
    }
}

fn valid(id: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (1..=limits::EXECUTION_ID).contains(&id.len()) && id != MAIN && id.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(table: &Table, id: &str) -> Starting {
        match table.reserve(id).unwrap() {
            Reserved::New(starting) => starting,
            Reserved::Known(_) => panic!("{id} is known"),
        }
    }

    fn run(table: &Table, id: &str) {
        new(table, id).succeed(Execution::for_tests(id));
    }

    #[test]
    fn ids_are_short_and_plain() {
        let long = "x".repeat(limits::EXECUTION_ID);
        for id in ["a", "A-9_z", &long] {
            assert!(valid(id), "{id}");
        }
        let longer = format!("{long}x");
        for id in ["", MAIN, "a/b", "..", "a b", "ä", "a\n", &longer] {
            assert!(!valid(id), "{id:?}");
        }
    }

    #[test]
    fn an_id_is_started_once_by_whoever_asks_first() {
        let (table, _main) = Table::new();
        let starting = new(&table, "x");
        let Reserved::Known(outcome) = table.reserve("x").unwrap() else { panic!("started twice") };
        assert!(outcome.borrow().is_none());
        starting.succeed(Execution::for_tests("x"));
        assert!(matches!(&*outcome.borrow(), Some(Ok(_))));
    }

    #[test]
    fn a_failed_start_is_told_to_all_who_wait_and_frees_the_id() {
        let (table, _main) = Table::new();
        let starting = new(&table, "x");
        let outcome = starting.outcome();
        starting.fail(StartFailure { message: "no".into(), ..Default::default() });
        assert!(matches!(&*outcome.borrow(), Some(Err(failure)) if failure.message == "no"));
        run(&table, "x");
    }

    #[test]
    fn an_abandoned_start_frees_the_id() {
        let (table, _main) = Table::new();
        drop(new(&table, "x"));
        run(&table, "x");
    }

    #[test]
    fn the_number_of_live_executions_is_bounded() {
        let (table, _main) = Table::new();
        for id in 0..MAX_LIVE {
            run(&table, &id.to_string());
        }
        assert_eq!(table.reserve("x").unwrap_err(), ReserveError::TooMany);
        table.ended("0");
        assert!(table.reserve("x").is_ok());
    }

    #[tokio::test]
    async fn ended_executions_are_remembered_up_to_a_number() {
        let (table, _main) = Table::new();
        for id in 0..=MAX_ENDED {
            run(&table, &id.to_string());
            table.ended(&id.to_string());
        }
        assert_eq!(table.find("0").await.unwrap_err(), LookupError::Unknown);
        assert!(table.find("1").await.is_ok());
        table.all_ended().await;
    }

    #[tokio::test]
    async fn who_asks_for_the_main_command_waits_until_it_starts_or_never_will() {
        let (table, main) = Table::new();
        let waiting = tokio::spawn({
            let table = table.clone();
            async move { table.find(MAIN).await.map(|_| ()) }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(main);
        assert_eq!(waiting.await.unwrap(), Err(LookupError::NeverStarted));
    }

    #[test]
    fn after_it_is_closed_nothing_new_starts_but_what_is_known_is_told() {
        let (table, _main) = Table::new();
        run(&table, "x");
        table.close();
        assert_eq!(table.reserve("y").unwrap_err(), ReserveError::Closed);
        assert!(matches!(table.reserve("x"), Ok(Reserved::Known(_))));
    }
}
