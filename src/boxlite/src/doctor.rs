//! What this host has, and what it lacks.

use std::process::Stdio;
use std::time::Duration;

use boxlite_control::{ProbeReport, VERSION};
use tokio::process::Command;

use crate::error::{Error, ErrorKind, Result};
use crate::info::engine_name;
use crate::options::Engine;
use crate::runtime::BoxliteRuntime;

/// How long the shim may take to look at the host.
const DEADLINE: Duration = Duration::from_secs(20);

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// It works.
    Good,
    /// It does not work, and boxes run without it.
    Notice,
    /// Boxes do not run without it.
    Bad,
}

impl Health {
    /// A stable lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Notice => "notice",
            Self::Bad => "bad",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Check {
    /// What it is.
    pub name: String,
    /// How it stands.
    pub health: Health,
    /// Why, for people.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// What was found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Diagnosis {
    /// Everything that was looked at, in an order for reading.
    pub checks: Vec<Check>,
    /// The engine that boxes would run on; `None` when none works.
    pub engine: Option<String>,
}

impl Diagnosis {
    /// Whether a box can run.
    pub fn can_run(&self) -> bool {
        self.engine.is_some() && !self.checks.iter().any(|check| check.health == Health::Bad)
    }

    fn add(&mut self, name: &str, health: Health, message: impl Into<String>, hint: Option<String>) {
        self.checks.push(Check { name: name.into(), health, message: message.into(), hint });
    }

    fn add_error(&mut self, name: &str, error: &Error) {
        self.add(name, Health::Bad, error.to_string(), error.hint().map(Into::into));
    }
}

impl BoxliteRuntime {
    /// Looks at everything that a box needs on this host.
    ///
    /// # Errors
    /// Only for faults of the examination itself: what is missing is part of the answer.
    pub async fn diagnose(&self) -> Result<Diagnosis> {
        let mut found = Diagnosis { checks: Vec::new(), engine: None };
        found.add("home", Health::Good, format!("{} is usable", self.home_dir().display()), None);
        match self.inner().programs() {
            Ok(programs) => {
                found.add(
                    "agent",
                    Health::Good,
                    format!("the guest agent is {}", programs.guest.display()),
                    None,
                );
                match self.probe().await {
                    Ok(report) => examine(&mut found, self.inner().engine(), &report),
                    Err(error) => found.add_error("shim", &error),
                }
            }
            Err(error) => found.add_error("installation", &error),
        }
        match crate::disk::base::available(&self.inner().home.cache()) {
            Ok(how) => found.add("disks", Health::Good, how, None),
            Err(error) => {
                let hint = error.hint().map(Into::into);
                found.add("disks", Health::Bad, error.to_string(), hint);
            }
        }
        Ok(found)
    }

    async fn probe(&self) -> Result<ProbeReport> {
        let shim = &self.inner().programs()?.shim;
        let failed = || Error::new(ErrorKind::Config, format!("{} does not work", shim.display()));
        let run = Command::new(shim).arg("probe").stdin(Stdio::null()).kill_on_drop(true).output();
        let output = tokio::time::timeout(DEADLINE, run).await;
        let output = output.map_err(|e| failed().with_source(e))?.map_err(|e| failed().with_source(e))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(failed().with_details(text.lines().take(10).map(crate::rpc::shown).collect()));
        }
        let report: ProbeReport =
            serde_json::from_slice(&output.stdout).map_err(|e| failed().with_source(e))?;
        if report.version != VERSION {
            return Err(
                failed().with_hint("boxlite and boxlite-shim are of different versions: install both anew")
            );
        }
        Ok(report)
    }
}

fn examine(found: &mut Diagnosis, asked: Engine, report: &ProbeReport) {
    match &report.kernel {
        Ok(path) => {
            found.add("kernel", Health::Good, format!("the guest kernel comes from {}", path.display()), None)
        }
        Err(why) => found.add(
            "kernel",
            Health::Bad,
            why.clone(),
            Some("run `make deps`, or set BOXLITE_LIBKRUNFW".into()),
        ),
    }
    let chosen = match asked {
        Engine::Auto => report.chosen.map(engine_name),
        named => report
            .engines
            .iter()
            .filter(|e| e.usable)
            .map(|e| engine_name(e.engine))
            .find(|n| *n == named.name()),
    };
    for engine in &report.engines {
        let name = engine_name(engine.engine);
        let health = match (engine.usable, chosen) {
            (true, _) => Health::Good,
            // One engine is enough, unless this one was asked for.
            (false, Some(_)) => Health::Notice,
            (false, None) => Health::Bad,
        };
        let mut message = engine.reasons.join("; ");
        if chosen == Some(name) {
            message.push_str(if engine.accelerated {
                " (in use)"
            } else {
                " (in use, without acceleration)"
            });
        }
        found.add(&format!("engine {name}"), health, message, engine.hint.clone());
    }
    found.engine = chosen.map(Into::into);
}
