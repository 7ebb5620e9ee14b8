//! The runtime: one home folder, its boxes and its images.
//!
//! How a box comes to be is in `create`, how it goes in `recovery`, how it is started in `launch`; what there is says the
//! database.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use boxlite_control::{Event, EventKind, Phase, event};

use crate::error::{Error, ErrorKind, Result, storage};
use crate::home::{FileLock, Held, Home, is_id};
use crate::image::{ImageStore, Progress};
use crate::images::{Abandoned, ImageHandle, image_error};
use crate::info::BoxInfo;
use crate::litebox::LiteBox;
use crate::monitor::{Monitor, unix_nanos};
use crate::options::{BoxOptions, BoxliteOptions, Engine};
use crate::programs::Programs;
use crate::record::BoxRecord;
use crate::registry::Registries;
use crate::settings::Settings;
use crate::stats::Counters;
use crate::store::Store;

/// Runs boxes. Cheap to clone; all clones are one runtime. When the last one is dropped, the boxes that it started end,
/// unless they are detached.
#[derive(Clone, Debug)]
pub struct BoxliteRuntime {
    inner: Arc<RuntimeInner>,
}

#[derive(Debug)]
pub(crate) struct RuntimeInner {
    pub(crate) home: Home,
    pub(crate) boot_timeout: Duration,
    pub(crate) store: ImageStore,
    pub(crate) registries: Registries,
    pub(crate) boxes: Store,
    pub(crate) counters: Counters,
    engine: Engine,
    options: BoxliteOptions,
    programs: OnceLock<Programs>,
    held: Mutex<HashMap<String, Holding>>,
}

/// What this runtime holds of a box.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    /// Held as long as this process answers for the box.
    pub(crate) owner: Option<FileLock>,
    pub(crate) monitor: Option<Arc<Monitor>>,
    /// Taken by whoever starts the box, so that of several at once one starts it and the others find it started.
    starting: Arc<tokio::sync::Mutex<()>>,
}

impl BoxliteRuntime {
    /// Opens a home folder, and clears away what killed processes left in it.
    ///
    /// # Errors
    /// When the folder cannot be made or read, or a setting is wrong.
    pub fn new(options: BoxliteOptions) -> Result<Self> {
        let home = Home::open(options.home()?)?;
        let engine = options.engine()?;
        let boot_timeout = options.boot_timeout()?;
        let settings = Settings::read(&options, home.root())?;
        let store = ImageStore::open(home.root()).map_err(image_error)?;
        let registries = settings.registries(home.root())?;
        let store = store.with_limits(settings.limits).with_policy(settings.policy);
        let boxes = Store::open(home.root())?;
        let inner = RuntimeInner {
            home,
            boot_timeout,
            store,
            registries,
            boxes,
            counters: Counters::default(),
            engine,
            options,
            programs: OnceLock::new(),
            held: Mutex::default(),
        };
        inner.recover();
        Ok(Self { inner: Arc::new(inner) })
    }

    /// A runtime with the options that the environment gives.
    ///
    /// # Errors
    /// As [`BoxliteRuntime::new`].
    pub fn with_defaults() -> Result<Self> {
        Self::new(BoxliteOptions::default())
    }

    pub(crate) fn inner(&self) -> &RuntimeInner {
        &self.inner
    }

    pub(crate) fn shared(&self) -> Arc<RuntimeInner> {
        self.inner.clone()
    }

    /// The home folder.
    pub fn home_dir(&self) -> &Path {
        self.inner.home.root()
    }

    /// Images.
    pub fn images(&self) -> ImageHandle {
        ImageHandle::new(self.inner.clone())
    }

    /// Creates a box. It takes no CPU, memory or disk space until it is started.
    ///
    /// # Errors
    /// When an option cannot be right, the name is taken, or the image is not there and cannot be pulled. No box is left
    /// behind then.
    pub async fn create(&self, options: BoxOptions, name: Option<String>) -> Result<LiteBox> {
        self.create_with(options, name, |_| {}).await
    }

    /// As [`BoxliteRuntime::create`]; `progress` is told how far the image is, when it has to be pulled or loaded.
    ///
    /// # Errors
    /// As [`BoxliteRuntime::create`].
    pub async fn create_with(
        &self,
        options: BoxOptions,
        name: Option<String>,
        mut progress: impl FnMut(Progress) + Send + 'static,
    ) -> Result<LiteBox> {
        let inner = self.inner.clone();
        let abandoned = Abandoned::default();
        let check = abandoned.check();
        let told = move |step| {
            progress(step);
            check()
        };
        let record = blocking(move || {
            let mut told = told;
            inner.create(&options, name, &mut told)
        })
        .await?;
        Ok(LiteBox::new(self.inner.clone(), record))
    }

    /// The box of this name, or a new one: the flag says whether it is new.
    ///
    /// # Errors
    /// As [`BoxliteRuntime::create`].
    pub async fn get_or_create(&self, options: BoxOptions, name: Option<String>) -> Result<(LiteBox, bool)> {
        let Some(wanted) = name else { return Ok((self.create(options, None).await?, true)) };
        loop {
            if let Some(found) = self.get(&wanted).await? {
                return Ok((found, false));
            }
            match self.create(options.clone(), Some(wanted.clone())).await {
                // Somebody else was quicker: theirs is the one.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                outcome => return Ok((outcome?, true)),
            }
        }
    }

    /// The box with this name, id, or unique start of an id.
    ///
    /// # Errors
    /// When the start of an id fits several boxes, or files cannot be read.
    pub async fn get(&self, id_or_name: &str) -> Result<Option<LiteBox>> {
        let (inner, wanted) = (self.inner.clone(), id_or_name.to_owned());
        let record = blocking(move || inner.find(&wanted)).await?;
        Ok(record.map(|record| LiteBox::new(self.inner.clone(), record)))
    }

    /// What is known of a box.
    ///
    /// # Errors
    /// As [`BoxliteRuntime::get`].
    pub async fn get_info(&self, id_or_name: &str) -> Result<Option<BoxInfo>> {
        self.get(id_or_name).await?.map(|found| found.info()).transpose()
    }

    /// All boxes, the newest first.
    ///
    /// # Errors
    /// When files cannot be read.
    pub async fn list_info(&self) -> Result<Vec<BoxInfo>> {
        let inner = self.inner.clone();
        blocking(move || inner.list()).await
    }

    /// Whether there is such a box.
    ///
    /// # Errors
    /// As [`BoxliteRuntime::get`].
    pub async fn exists(&self, id_or_name: &str) -> Result<bool> {
        Ok(self.get(id_or_name).await?.is_some())
    }

    /// Removes a box and its disk. A running box is only removed with `force`, which kills it.
    ///
    /// # Errors
    /// When there is no such box, or it runs and `force` is false.
    pub async fn remove(&self, id_or_name: &str, force: bool) -> Result<()> {
        let missing =
            || Error::new(ErrorKind::NotFound, format!("there is no box `{}`", id_or_name.escape_debug()));
        let found = self.get(id_or_name).await?.ok_or_else(missing)?;
        if force {
            // Also one that is about to start or to end; when none runs there is nothing to stop.
            found.stop_with(0, Duration::ZERO).await?;
        }
        let (inner, record) = (self.inner.clone(), found.record().clone());
        blocking(move || inner.remove(&record)).await
    }

    /// Stops all boxes that this runtime started and that are not detached: SIGTERM, then SIGKILL after the grace, in
    /// seconds; `None`: 10.
    ///
    /// # Errors
    /// The first failure, after all boxes have been tried.
    pub async fn shutdown(&self, grace_seconds: Option<i32>) -> Result<()> {
        let grace = match grace_seconds {
            None => Duration::from_secs(10),
            Some(seconds) => u64::try_from(seconds).map(Duration::from_secs).map_err(|_| {
                Error::new(ErrorKind::InvalidArgument, format!("{seconds} s are no time to wait"))
            })?,
        };
        let started: Vec<String> = self
            .inner
            .held()
            .iter()
            .filter(|(_, own)| own.monitor.is_some())
            .map(|(id, _)| id.clone())
            .collect();
        let stops = started.into_iter().map(|id| async move {
            match self.get(&id).await? {
                Some(found) if !found.info()?.detach => found.stop_within(grace).await,
                _ => Ok(()),
            }
        });
        futures_util::future::join_all(stops).await.into_iter().collect()
    }
}

/// Runs work that blocks on files where it does not hold up others.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Error::new(ErrorKind::Internal, "a background task failed").with_source(e)))
}

impl RuntimeInner {
    pub(crate) fn held(&self) -> MutexGuard<'_, HashMap<String, Holding>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The monitor that this runtime started for a box.
    pub(crate) fn monitor(&self, id: &str) -> Option<Arc<Monitor>> {
        self.held().get(id).and_then(|own| own.monitor.clone())
    }

    /// The right to start this box, one at a time in this process. Other processes meet at the monitor's lock.
    pub(crate) fn gate(&self, id: &str) -> Arc<tokio::sync::Mutex<()>> {
        self.held().entry(id.to_owned()).or_default().starting.clone()
    }

    pub(crate) fn engine(&self) -> Engine {
        self.engine
    }

    pub(crate) fn programs(&self) -> Result<&Programs> {
        if let Some(programs) = self.programs.get() {
            return Ok(programs);
        }
        let found = Programs::find(&self.options)?;
        Ok(self.programs.get_or_init(|| found))
    }

    /// The ids of the folders of boxes.
    pub(crate) fn folders(&self) -> Result<Vec<String>> {
        let folder = self.home.boxes();
        let failed = |e| storage(format!("cannot list {}", folder.display()), e);
        let mut ids = Vec::new();
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            ids.extend(name.to_str().filter(|name| is_id(name)).map(str::to_owned));
        }
        Ok(ids)
    }

    /// Whether a box that the database has does not exist any more: its folder is gone.
    pub(crate) fn is_gone(&self, id: &str) -> bool {
        !self.home.files(id).folder().is_dir()
    }

    /// Whether the program that created a box, and answers for it, lives.
    pub(crate) fn has_owner(&self, id: &str) -> Result<bool> {
        let owner = FileLock::attempt_existing(&self.home.files(id).owner())?;
        Ok(matches!(owner, Held::ByAnother))
    }

    fn find(&self, wanted: &str) -> Result<Option<BoxRecord>> {
        let here = |record: &BoxRecord| !self.is_gone(&record.id);
        if is_id(wanted)
            && let Some(record) = self.boxes.get(wanted)?.filter(here)
        {
            return Ok(Some(record));
        }
        if let Some(record) = self.boxes.by_name(wanted)?.filter(here) {
            return Ok(Some(record));
        }
        let is_start = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !(2..12).contains(&wanted.len()) || !is_start(wanted) {
            return Ok(None);
        }
        // Rows of boxes that have removed themselves stand between those that are there.
        let mut records = self.boxes.by_start(wanted, usize::MAX)?;
        records.retain(here);
        if records.len() > 1 {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("`{wanted}` fits {} boxes", records.len()),
            ));
        }
        Ok(records.pop())
    }

    pub(crate) fn list(&self) -> Result<Vec<BoxInfo>> {
        let mut infos = Vec::new();
        for record in self.boxes.all()? {
            if self.is_gone(&record.id) {
                continue;
            }
            match self.look(&record) {
                Ok(observed) => infos.push(BoxInfo::new(&record, observed.update())),
                Err(error) => tracing::warn!(id = record.id, error = %error.report(), "a box cannot be read"),
            }
        }
        Ok(infos)
    }

    /// Tells the home's journal what this process did to a box.
    pub(crate) fn tell(&self, record: &BoxRecord, kind: EventKind) {
        let told = Event {
            time_unix_nanos: unix_nanos(SystemTime::now()),
            box_id: record.id.clone(),
            name: record.name.clone(),
            image: record.image.clone(),
            kind,
        };
        if let Err(error) = event::append(&self.home.journal(), &told) {
            tracing::warn!(%error, event = told.kind.name(), "an event is not in the journal");
        }
    }
}

impl Drop for RuntimeInner {
    /// Boxes that were never started and nobody can find again go with their creator.
    fn drop(&mut self) {
        let held = std::mem::take(self.held.get_mut().unwrap_or_else(PoisonError::into_inner));
        for (id, own) in held {
            if own.monitor.is_some() || own.owner.is_none() || self.is_gone(&id) {
                continue;
            }
            let Ok(Some(record)) = self.boxes.get(&id) else { continue };
            let unused = record.auto_remove
                && matches!(self.look(&record), Ok(seen) if seen.phase() == Phase::Created);
            if unused && let Err(error) = self.remove(&record) {
                tracing::warn!(id, error = %error.report(), "cannot remove a box that was never started");
            }
        }
    }
}
