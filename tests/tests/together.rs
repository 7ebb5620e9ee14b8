//! Many programs use one home at the same time.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use boxlite::{BoxCommand, BoxOptions, BoxUpdate, BoxliteRuntime, Error, ErrorKind};
use boxlite_tests::story::{Story, eventually};

const PROGRAMS: usize = 8;
const OPERATIONS: usize = 50;
/// Boxes are called so: fewer names than programs, so that they meet.
const NAMES: usize = 5;
/// Which program of several a process is, and the seed of its dice.
const WORKER: &str = "BOXLITE_TEST_WORKER";
/// The home that it works on.
const HOME: &str = "BOXLITE_TEST_HOME";

/// A generator of numbers that look random: xorshift64*.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap() % limit
    }

    fn name(&mut self) -> String {
        format!("box{}", self.below(NAMES))
    }
}

/// Does one thing, and tells what it changed in the set of boxes: `+id` or `-id`.
async fn operate(runtime: &BoxliteRuntime, dice: &mut Dice) -> Result<Option<String>, Error> {
    let name = dice.name();
    let kind = dice.below(100);
    if kind < 30 {
        let mut options = BoxOptions::image("busybox");
        options.auto_remove = false;
        options.detach = true;
        options.cmd = Some(vec!["sleep".into(), "1000".into()]);
        let made = runtime.create(options, Some(name)).await?;
        return Ok(Some(format!("+{}", made.id())));
    }
    if kind < 45 {
        runtime.list_info().await?;
        return Ok(None);
    }
    let Some(found) = runtime.get(&name).await? else { return Ok(None) };
    match kind {
        45..60 => {
            runtime.remove(found.id(), dice.below(2) == 0).await?;
            return Ok(Some(format!("-{}", found.id())));
        }
        60..70 => found.rename(&dice.name()).await?,
        70..78 => {
            let labels = vec![("by".to_owned(), Some(std::process::id().to_string()))];
            found.update(BoxUpdate { labels, ..BoxUpdate::default() }).await?;
        }
        78..84 => found.start().await?,
        84..88 => {
            found.exec(BoxCommand::new("true").stdin(false)).await?.wait().await?;
        }
        88..92 => found.pause().await?,
        92..96 => found.resume().await?,
        _ => found.stop_with(0, Duration::ZERO).await?,
    }
    Ok(None)
}

#[allow(clippy::print_stdout, reason = "what a worker does is told to the test on its standard output")]
fn work(seed: u64) {
    let home = std::env::var_os(HOME).unwrap();
    // The harness has begun a line.
    println!();
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio.block_on(async {
        let runtime = BoxliteRuntime::new(boxlite::BoxliteOptions::with_home(home)).unwrap();
        for _ in 0..OPERATIONS {
            match operate(&runtime, &mut dice).await {
                Ok(Some(change)) => println!("did {change}"),
                Ok(None) => println!("did"),
                // What the documentation of the operations names.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::NotFound
                            | ErrorKind::AlreadyExists
                            | ErrorKind::InvalidState
                            | ErrorKind::Stopped
                    ) =>
                {
                    println!("refused {:?}", error.kind());
                }
                // A command whose box is stopped or killed by another program meanwhile.
                Err(error) if matches!(error.kind(), ErrorKind::Execution | ErrorKind::Portal) => {
                    println!("lost {}", error.report().replace('\n', " "));
                }
                // A start that another program has cut short by force.
                Err(error) if error.kind() == ErrorKind::Engine && error.report().contains("meanwhile") => {
                    println!("lost {}", error.report().replace('\n', " "));
                }
                Err(error) => {
                    println!("undocumented {:?}: {}", error.kind(), error.report().replace('\n', " "))
                }
            }
        }
    });
}

#[test]
fn eight_programs_at_random_on_one_home_lose_nothing_and_leave_nothing() {
    if let Ok(seed) = std::env::var(WORKER) {
        return work(seed.parse().unwrap());
    }
    let story = Story::with_busybox();
    let name = "eight_programs_at_random_on_one_home_lose_nothing_and_leave_nothing";
    let workers: Vec<_> = (1..=PROGRAMS)
        .map(|seed| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
            command.env(WORKER, seed.to_string()).env(HOME, story.home());
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let (mut created, mut removed) = (BTreeSet::new(), BTreeSet::new());
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    for worker in workers {
        let output = worker.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        for line in text.lines() {
            let mut words = line.split(' ');
            let kind = words.next().unwrap_or_default();
            match (kind, words.next().unwrap_or_default()) {
                ("did", id) if id.starts_with('+') => {
                    assert!(created.insert(id[1..].to_owned()), "{id} twice")
                }
                ("did", id) if id.starts_with('-') => drop(removed.insert(id[1..].to_owned())),
                ("undocumented", _) => panic!("{line}"),
                _ => {}
            }
            if ["did", "refused", "lost"].contains(&kind) {
                *outcomes.entry(kind.to_owned()).or_default() += 1;
            }
        }
    }
    println!("{} boxes were created, {} removed; outcomes: {outcomes:?}", created.len(), removed.len());
    assert_eq!(outcomes.values().sum::<usize>(), PROGRAMS * OPERATIONS);
    assert!(created.len() > NAMES && !removed.is_empty(), "the programs did not meet");

    // The model: what was created and not removed is there, under as many different names.
    let expected: BTreeSet<String> = created.difference(&removed).cloned().collect();
    let boxes = story.boxes();
    let there: BTreeSet<String> = boxes.iter().map(|info| info["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(there, expected);
    let names: BTreeSet<&str> = boxes.iter().map(|info| info["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), boxes.len(), "{boxes:?}");
    let folders = std::fs::read_dir(story.home().join("boxes")).unwrap().count();
    assert_eq!(folders, expected.len());
    // Whatever was left paused, running or stopped can be removed, and takes everything with it.
    story.boxlite(["rm", "-f"]).args(&there).run();
    eventually("nothing is left", Duration::from_secs(30), || story.leftovers().is_empty());
    let told =
        story.boxlite(["events", "--since", "1", "--until", "0s", "--format", "json"]).run().success().out();
    let count =
        |kind: &str| told.lines().filter(|line| line.contains(&format!("\"event\":\"{kind}\""))).count();
    assert_eq!((count("created"), count("removed")), (created.len(), created.len()));
}

#[test]
fn ten_boxes_that_start_at_once_all_come_up() {
    let story = Story::with_busybox();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for number in 0..10 {
            let name = format!("box{number}");
            let run = story.boxlite(["run", "-d", "-m", "256m", "--name", &name, "busybox", "sleep", "1000"]);
            scope.spawn(move || run.run().success());
        }
    });
    println!("ten boxes were up after {:?}", began.elapsed());
    assert!(story.boxes().iter().all(|info| info["status"] == "running"));
}

#[test]
fn a_machine_that_ends_before_its_agent_has_come_up_is_started_once_more() {
    let story = Story::with_busybox();
    let run = story.boxlite(["run", "-d", "--name", "box", "busybox", "sleep", "1000"]);
    // QEMU takes SIGTERM for the guest's power button, once it listens to it: it ends as if the guest had powered off.
    let listens = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or_default();
        u64::from_str_radix(caught.trim(), 16).is_ok_and(|caught| caught & 1 << (15 - 1) != 0)
    };
    let machine = |story: &Story| {
        let mut processes = story.processes().into_iter();
        processes.find(|(_, line)| line.contains("-machine microvm")).map(|(pid, _)| pid).filter(listens)
    };
    std::thread::scope(|scope| {
        let run = scope.spawn(move || run.run());
        let mut first = None;
        eventually("there is a machine", Duration::from_secs(30), || {
            first = machine(&story);
            first.is_some()
        });
        let pid = first.unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        run.join().unwrap().success();
    });
    let id = story.boxes()[0]["id"].as_str().unwrap().to_owned();
    let log = std::fs::read_to_string(story.home().join("boxes").join(id).join("logs/shim.log")).unwrap();
    assert_eq!(log.matches("is started once more").count(), 1, "{log}");
    assert_eq!(log.matches("the VMM starts").count(), 2, "{log}");
}
