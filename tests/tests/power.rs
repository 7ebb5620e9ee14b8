//! The store is cut off at each change of its files, once by killing the program and once by taking the power away. It
//! opens again as it was before the operation or as it is after it, and never as anything else.

#![allow(clippy::print_stdout, reason = "how often a work was cut off is told on standard output")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use boxlite::{BoxOptions, BoxUpdate, BoxliteOptions, BoxliteRuntime, Result};
use boxlite_tests::cut::{self, Step};
use boxlite_tests::durable::{Change, Disk, Entry, Loss, Tree, read_tree, write_tree};
use boxlite_tests::story::Story;

/// What is the images' is not cut here, and every home of a test has that of the story.
const SHARED: [&str; 3] = ["images", "blobs", "cache"];
/// How a disk of a box begins that is one: this is written last.
const QCOW2: &[u8] = b"QFI\xfb";

/// A test runs itself again, as a worker, by its name.
macro_rules! tests {
    ($($name:ident: $cut:ident($work:ident);)*) => {
        $(#[test]
        fn $name() {
            $cut(stringify!($name), Work::$work);
        })*
    };
}

tests! {
    whatever_call_of_a_creation_is_the_last_one_the_box_is_there_or_not: kill(Create);
    whatever_a_loss_of_power_leaves_of_a_creation_the_box_is_there_or_not: lose_power(Create);
    whatever_call_of_two_creations_of_one_name_is_the_last_one_there_is_at_most_one_box: kill(CreateTwice);
    whatever_a_loss_of_power_leaves_of_two_creations_of_one_name_there_is_at_most_one_box: lose_power(CreateTwice);
    whatever_call_of_a_renaming_is_the_last_one_the_box_has_one_of_the_names: kill(Rename);
    whatever_a_loss_of_power_leaves_of_a_renaming_the_box_has_one_of_the_names: lose_power(Rename);
    whatever_call_of_an_update_is_the_last_one_all_settings_are_old_or_all_are_new: kill(Update);
    whatever_a_loss_of_power_leaves_of_an_update_all_settings_are_old_or_all_are_new: lose_power(Update);
    whatever_call_of_a_removal_is_the_last_one_the_box_is_there_or_not: kill(Remove);
    whatever_a_loss_of_power_leaves_of_a_removal_the_box_is_there_or_not: lose_power(Remove);
    whatever_call_of_a_recovery_is_the_last_one_the_next_one_ends_it: kill(Recover);
    whatever_a_loss_of_power_leaves_of_a_recovery_the_next_one_ends_it: lose_power(Recover);
    whatever_call_of_the_making_of_a_home_is_the_last_one_it_opens: kill(Found);
    whatever_a_loss_of_power_leaves_of_the_making_of_a_home_it_opens: lose_power(Found);
}

/// What is done to a home, and cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Create,
    /// Of two at once the slower one is refused when it has made everything.
    CreateTwice,
    Rename,
    Update,
    Remove,
    /// A home is opened in which there is something to clear away.
    Recover,
    /// An empty folder becomes a home.
    Found,
}

/// Boxes by name.
type State = BTreeMap<String, Seen>;

/// As much of a box as an operation may change. Boxes that the operation has made have no id here, since every time it is
/// another one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    id: Option<String>,
    cpus: u8,
    memory_mib: u32,
    labels: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Old,
    New,
}

fn options() -> BoxOptions {
    let mut options = BoxOptions::image("busybox");
    (options.detach, options.auto_remove) = (true, false);
    options.labels.insert("is".into(), "old".into());
    options
}

impl Work {
    async fn perform(self, runtime: &BoxliteRuntime) -> Result<()> {
        match self {
            Self::Create => runtime.create(options(), Some("made".into())).await.map(drop),
            Self::CreateTwice => {
                let create = || runtime.create(options(), Some("made".into()));
                let (one, other) = tokio::join!(create(), create());
                assert!(one.is_err() || other.is_err(), "two boxes have one name");
                one.or(other).map(drop)
            }
            Self::Rename => rename(runtime, "subject", "renamed").await,
            Self::Update => update(runtime, 3, 512, "new").await,
            Self::Remove => runtime.remove("subject", false).await,
            Self::Recover | Self::Found => Ok(()),
        }
    }

    /// The way back.
    async fn undo(self, runtime: &BoxliteRuntime) -> Result<()> {
        match self {
            Self::Create | Self::CreateTwice => runtime.remove("made", false).await,
            Self::Rename => rename(runtime, "renamed", "subject").await,
            Self::Update => update(runtime, 1, 1024, "old").await,
            Self::Remove => runtime.create(options(), Some("subject".into())).await.map(drop),
            // What was cleared away is not in the way of another one.
            Self::Recover => {
                runtime.create(options(), Some("third".into())).await?;
                runtime.remove("third", false).await
            }
            Self::Found => Ok(()),
        }
    }

    fn expected(self, before: &State) -> State {
        let mut after = before.clone();
        match self {
            Self::Create | Self::CreateTwice => {
                after.insert("made".into(), Seen { id: None, ..before["subject"].clone() });
            }
            Self::Rename => {
                let subject = after.remove("subject").unwrap();
                after.insert("renamed".into(), subject);
            }
            Self::Update => {
                let subject = after.get_mut("subject").unwrap();
                (subject.cpus, subject.memory_mib) = (3, 512);
                subject.labels.insert("is".into(), "new".into());
            }
            Self::Remove => {
                after.remove("subject");
            }
            Self::Recover | Self::Found => {}
        }
        after
    }
}

async fn rename(runtime: &BoxliteRuntime, from: &str, to: &str) -> Result<()> {
    runtime.get(from).await?.expect("the box is there").rename(to).await
}

async fn update(runtime: &BoxliteRuntime, cpus: u8, memory_mib: u32, is: &str) -> Result<()> {
    let mut update = BoxUpdate::default();
    (update.cpus, update.memory_mib) = (Some(cpus), Some(memory_mib));
    update.labels.push(("is".into(), Some(is.into())));
    runtime.get("subject").await?.expect("the box is there").update(update).await
}

fn tell<T>(story: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(story)
}

/// The worker's side: from the opening of the home to its closing.
fn work_on(worker: &cut::Worker, work: Work) {
    tell(async {
        let runtime = BoxliteRuntime::new(BoxliteOptions::with_home(worker.home())).unwrap();
        work.perform(&runtime).await.unwrap();
        worker.returned();
        drop(runtime);
    });
}

/// Homes to work on, and what they were and may become.
struct Homes {
    /// Has the images that all homes share.
    _story: Option<Story>,
    folder: tempfile::TempDir,
    made: u32,
    work: Work,
    /// What a home may be before the work.
    bases: Vec<Tree>,
    before: State,
    after: State,
    /// The disks of boxes that are there before, by id.
    disks: BTreeMap<String, Vec<u8>>,
    /// The disk of a box that the work makes, where it is known.
    new_disk: Option<Vec<u8>>,
}

impl Homes {
    fn new(work: Work) -> Self {
        // What this machine's disk takes for a sync is not what is tested.
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let folder = tempfile::Builder::new().prefix("boxlite-cuts-").tempdir_in(place).unwrap();
        let mut homes = Self {
            _story: None,
            folder,
            made: 0,
            work,
            bases: vec![Tree::new()],
            before: State::new(),
            after: State::new(),
            disks: BTreeMap::new(),
            new_disk: None,
        };
        if work != Work::Found {
            let story = Story::with_busybox();
            tell(homes.fill(&story));
            homes._story = Some(story);
        }
        homes
    }

    async fn fill(&mut self, story: &Story) {
        let runtime = BoxliteRuntime::new(story.options()).unwrap();
        for name in ["bystander", "subject"] {
            let made = runtime.create(options(), Some(name.into())).await.unwrap();
            self.disks.insert(made.id().to_owned(), disk(story.home(), made.id()));
        }
        self.before = self.state(&runtime).await;
        self.after = self.work.expected(&self.before);
        let third = match self.work {
            Work::Recover => {
                Some(runtime.create(options(), Some("third".into())).await.unwrap().id().to_owned())
            }
            _ => None,
        };
        let base = || {
            let left_out = |path: &Path| cut::is_shared_memory(path) || is_shared(path);
            let mut base = read_tree(story.home(), left_out).unwrap();
            base.extend(SHARED.map(|name| (name.into(), Entry::Link(story.home().join(name)))));
            if let Some(third) = &third {
                leave_behind(&mut base, third);
            }
            base
        };
        // As a killed program leaves it, all in the database's log, and as one leaves it that came to its end.
        let with_log = base();
        drop(runtime);
        self.bases = vec![with_log, base()];
    }

    /// A home with everything of a tree.
    fn home(&mut self, tree: &Tree) -> PathBuf {
        self.made += 1;
        let home = self.folder.path().join(self.made.to_string());
        write_tree(tree, &home).unwrap();
        home
    }

    async fn state(&self, runtime: &BoxliteRuntime) -> State {
        let infos = runtime.list_info().await.unwrap().into_iter();
        infos
            .map(|info| {
                let id = Some(info.id).filter(|id| self.disks.contains_key(id));
                let seen = Seen { id, cpus: info.cpus, memory_mib: info.memory_mib, labels: info.labels };
                (info.name.expect("all boxes have names"), seen)
            })
            .collect()
    }

    /// Opens a home that was cut off, and says what the work has come to. It must have come to all or nothing.
    fn outcome(&self, home: &Path, cut: &str) -> Outcome {
        let open = || {
            let opened = BoxliteRuntime::new(BoxliteOptions::with_home(home));
            opened.unwrap_or_else(|error| panic!("{cut}: {}", error.report()))
        };
        tell(async {
            let runtime = open();
            let state = self.state(&runtime).await;
            let outcome = if state == self.after {
                Outcome::New
            } else if state == self.before {
                Outcome::Old
            } else {
                panic!("{cut}: there is {state:?}")
            };
            let infos = runtime.list_info().await.unwrap();
            let ids: BTreeSet<String> = infos.into_iter().map(|info| info.id).collect();
            assert_eq!(names(&home.join("boxes")), ids, "{cut}: folders and boxes");
            for id in &ids {
                self.check_disk(home, id, cut);
            }
            drop(runtime);

            let runtime = open();
            assert_eq!(names(&home.join("tmp")), BTreeSet::new(), "{cut}: left in tmp");
            assert_eq!(self.state(&runtime).await, state, "{cut}: after another look");
            self.go_on(&runtime, outcome, cut).await;
            outcome
        })
    }

    /// A disk that is known has what it had; any other one is as large as they are, and complete.
    fn check_disk(&self, home: &Path, id: &str, cut: &str) {
        let found = disk(home, id);
        let well = match self.disks.get(id).or(self.new_disk.as_ref()) {
            Some(intact) => found == *intact,
            None => {
                let other = self.disks.values().next().expect("there were boxes before");
                found.starts_with(QCOW2) && found.len() == other.len()
            }
        };
        assert!(well, "{cut}: the disk of {id} is damaged or not there");
    }

    /// What was not done can be done, and what was done can be undone and done once more.
    async fn go_on(&self, runtime: &BoxliteRuntime, outcome: Outcome, cut: &str) {
        let done = async {
            if outcome == Outcome::New {
                self.work.undo(runtime).await?;
            }
            self.work.perform(runtime).await
        };
        done.await.unwrap_or_else(|error| panic!("{cut}: the store is stuck: {}", error.report()));
        assert_eq!(self.state(runtime).await, self.after, "{cut}: after going on");
    }

    /// A work that came to the same wherever it was cut off was not cut off in the middle.
    fn check_seen(&self, seen: &[Outcome]) {
        if self.before != self.after {
            assert!(seen.contains(&Outcome::Old) && seen.contains(&Outcome::New), "{seen:?}");
        }
    }
}

/// What killed programs leave: creations before and behind the rename, and removals before and behind the end of the
/// row. They look like this third box, which is one of the removed.
fn leave_behind(home: &mut Tree, third: &str) {
    let folder = Path::new("boxes").join(third);
    let (third_box, others): (Tree, Tree) =
        std::mem::take(home).into_iter().partition(|(path, _)| path.starts_with(&folder));
    *home = others;
    let with_row = format!("tmp/removed-{third}");
    let unfinished = ["tmp/box-bbbbbbbbbbbb", "boxes/cccccccccccc"];
    for place in [&with_row, "tmp/removed-aaaaaaaaaaaa"].into_iter().chain(unfinished) {
        home.extend(third_box.iter().map(|(path, entry)| {
            let inside = path.strip_prefix(&folder).unwrap();
            (Path::new(place).iter().chain(inside).collect(), entry.clone())
        }));
    }
    // In which order a folder is emptied is up to the file system. Of so many files the lock is not the last one to go.
    for place in unfinished {
        let more = (0..6).map(|number| Path::new(place).join(format!("more-{number}")));
        home.extend(more.map(|path| (path, Entry::File(Vec::new()))));
    }
    home.insert("tmp/box-dddddddddddd".into(), Entry::Folder);
}

/// Whether this is one of the folders of images.
fn is_shared(path: &Path) -> bool {
    SHARED.iter().any(|name| path == Path::new(name))
}

fn disk(home: &Path, id: &str) -> Vec<u8> {
    fs::read(home.join("boxes").join(id).join("disk.qcow2")).unwrap_or_default()
}

fn names(folder: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).collect()
}

/// Kills the work at each of its calls.
fn kill(test: &str, work: Work) {
    if let Some(worker) = cut::worker() {
        return work_on(&worker, work);
    }
    let mut homes = Homes::new(work);
    for base in homes.bases.clone() {
        let mut seen = Vec::new();
        loop {
            let home = homes.home(&base);
            let run = cut::run(test, &home, Some(seen.len()));
            let call =
                if run.killed { run.calls.last().expect("the one that was not made") } else { "its end" };
            let cut = format!("{work:?}, killed before {call}, its call {}", seen.len());
            let outcome = homes.outcome(&home, &cut);
            fs::remove_dir_all(&home).unwrap();
            assert!(!run.returned() || outcome == Outcome::New, "{cut}: what was promised is not there");
            if !run.killed {
                assert!(run.returned(), "{cut}: it has not said that it is done");
                break;
            }
            seen.push(outcome);
        }
        println!("{work:?} was killed at {} calls", seen.len());
        homes.check_seen(&seen);
    }
}

/// Takes the power away before and behind each change of the work, and loses what was not synced in all ways.
fn lose_power(test: &str, work: Work) {
    if let Some(worker) = cut::worker() {
        return work_on(&worker, work);
    }
    let mut homes = Homes::new(work);
    for base in homes.bases.clone() {
        let home = homes.home(&base);
        let run = cut::run(test, &home, None);
        let end = read_tree(&home, cut::is_shared_memory).unwrap();
        let new = names(&home.join("boxes")).into_iter().find(|id| !homes.disks.contains_key(id));
        homes.new_disk = new.map(|id| disk(&home, &id));

        let (mut model, mut returned, mut cuts) = (Disk::new(&base), false, 0);
        // Many cuts leave the same.
        let mut known: BTreeMap<Tree, Outcome> = BTreeMap::new();
        for number in 0..=run.steps.len() {
            let step = number.checked_sub(1).map(|last| &run.steps[last]);
            match step {
                Some(Step::Changed(change)) => model.apply(change),
                Some(Step::Returned) => returned = true,
                None => {}
            }
            for loss in Loss::ALL {
                cuts += 1;
                let step = step.map_or("none".into(), short);
                let cut = format!("{work:?}, {loss:?} lost behind step {number}, {step}");
                let left = model.after(loss);
                let outcome = if let Some(outcome) = known.get(&left) {
                    *outcome
                } else {
                    let home = homes.home(&left);
                    let outcome = homes.outcome(&home, &cut);
                    fs::remove_dir_all(&home).unwrap();
                    known.insert(left, outcome);
                    outcome
                };
                assert!(!returned || outcome == Outcome::New, "{cut}: what was promised is not there");
            }
        }
        assert!(model.after(Loss::Nothing) == end, "files were changed in a way that was not seen");
        println!("{work:?} lost its power in {cuts} ways, which left {} different homes", known.len());
        homes.check_seen(&known.into_values().collect::<Vec<_>>());
    }
}

/// A step without the bytes that it writes.
fn short(step: &Step) -> String {
    match step {
        Step::Changed(Change::Write { path, at, data }) => {
            format!("Write {{ {}, at {at}, {} bytes }}", path.display(), data.len())
        }
        step => format!("{step:?}"),
    }
}
