//! The runtime: one home folder, its boxes and its images.
//!
//! # The life of a box's folder
//!
//! ```text
//!   tmp/box-<id>/  ──rename──▶  boxes/<id>/  ──rename──▶  tmp/removed-<id>/  ──▶  nothing
//!   made by create              owned by the monitor      by remove, by the
//!                               once it is started        monitor, by recovery
//! ```
//!
//! While the creator of a box that is not detached lives, it holds the lock `owner` in the folder. Recovery, which runs
//! whenever a runtime is opened, removes boxes that were to remove themselves and whose owner and monitor are gone. It
//! decides under the box's lock, keeps that lock until the folder is away, and never fails the runtime.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use boxlite_control::{
    BoxFiles, ContainerSpec, Direction, DiskFormat, DiskSpec, EngineChoice, MonitorConfig, ProcessSpec,
    VERSION, VmSpec, VsockPort,
};
use boxlite_portal::ports;

use crate::disk;
use crate::erofs;
use crate::error::{Error, ErrorKind, Result, storage};
use crate::home::{DRAFT, FileLock, Held, Home, TRASH, is_id, new_id, write_atomic};
use crate::image::{ImageConfig, ImageStore, Platform, Progress, Watch};
use crate::images::{Abandoned, ImageHandle, image_error};
use crate::info::BoxInfo;
use crate::litebox::LiteBox;
use crate::monitor::{self, Monitor, Observed, unix_nanos};
use crate::options::{BoxOptions, BoxliteOptions, Engine, validate_name};
use crate::programs::{self, Programs};
use crate::record::BoxRecord;
use crate::registry::Registries;
use crate::settings::Settings;

/// Defaults of [`BoxOptions`].
const CPUS: u8 = 1;
const MEMORY_MIB: u32 = 1024;
const DISK_GB: u64 = 10;
/// How long the main command of a box gets to end when the program that owns it ends.
const OWNER_GONE_GRACE: Duration = Duration::from_millis(500);
/// The lock that says that a box's creator lives.
const OWNER: &str = "owner";
/// How long a box may take to be gone after its end: its monitor says good-bye and removes files.
pub(crate) const RELEASE: Duration = Duration::from_secs(30);
/// How often a lock that a monitor still holds is tried again.
const RELEASE_LOOK: Duration = Duration::from_millis(10);
/// The end of the shim's log that is looked at, in bytes.
const LOG_TAIL: u64 = 64 << 10;
/// Lines of the shim's log that an error shows.
const LOG_LINES: usize = 20;

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
    engine: Engine,
    options: BoxliteOptions,
    programs: OnceLock<Programs>,
    boxes: Mutex<HashMap<String, Owned>>,
}

/// What this runtime holds of a box.
#[derive(Debug, Default)]
struct Owned {
    /// Held as long as this process answers for the box.
    owner: Option<FileLock>,
    monitor: Option<Arc<Monitor>>,
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
        let inner = RuntimeInner {
            home,
            boot_timeout,
            store,
            registries,
            engine,
            options,
            programs: OnceLock::new(),
            boxes: Mutex::default(),
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
        let id = found.id().to_owned();
        if force {
            // Also one that is about to start or to end; when none runs there is nothing to stop.
            found.stop_with(0, Duration::ZERO).await?;
        }
        let inner = self.inner.clone();
        blocking(move || inner.remove(&id)).await
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
            .owned()
            .iter()
            .filter(|(_, own)| own.monitor.is_some())
            .map(|(id, _)| id.clone())
            .collect();
        let stops = started.into_iter().map(|id| async move {
            match self.get(&id).await? {
                Some(found) if !found.info()?.detach => found.stop_with(15, grace).await,
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
    fn owned(&self) -> MutexGuard<'_, HashMap<String, Owned>> {
        self.boxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The monitor that this runtime started for a box.
    pub(crate) fn monitor(&self, id: &str) -> Option<Arc<Monitor>> {
        self.owned().get(id).and_then(|own| own.monitor.clone())
    }

    /// The right to start this box, one at a time in this process. Other processes meet at the monitor's lock.
    pub(crate) fn gate(&self, id: &str) -> Arc<tokio::sync::Mutex<()>> {
        self.owned().entry(id.to_owned()).or_default().starting.clone()
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

    pub(crate) fn ids(&self) -> Result<Vec<String>> {
        let folder = self.home.boxes();
        let failed = |e| storage(format!("cannot list {}", folder.display()), e);
        let mut ids = Vec::new();
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            ids.extend(name.to_str().filter(|name| is_id(name)).map(str::to_owned));
        }
        Ok(ids)
    }

    /// Whether the program that created a box, and answers for it, lives.
    pub(crate) fn has_owner(&self, id: &str) -> Result<bool> {
        let owner = FileLock::attempt_existing(&self.home.files(id).folder().join(OWNER))?;
        Ok(matches!(owner, Held::ByAnother))
    }

    fn records(&self) -> Result<Vec<BoxRecord>> {
        let mut records = Vec::new();
        for id in self.ids()? {
            // A box may be removed while we look.
            match BoxRecord::read(&self.home.files(&id).config()) {
                Ok(record) => records.extend(record),
                Err(error) => tracing::warn!(id, error = %error.report(), "a box cannot be read"),
            }
        }
        records.sort_by(|a, b| b.created_unix_nanos.cmp(&a.created_unix_nanos).then_with(|| a.id.cmp(&b.id)));
        Ok(records)
    }

    fn find(&self, wanted: &str) -> Result<Option<BoxRecord>> {
        if is_id(wanted)
            && let Some(record) = BoxRecord::read(&self.home.files(wanted).config())?
        {
            return Ok(Some(record));
        }
        let mut records = self.records()?;
        if let Some(at) = records.iter().position(|record| record.name.as_deref() == Some(wanted)) {
            return Ok(Some(records.swap_remove(at)));
        }
        records.retain(|record| wanted.len() >= 2 && record.id.starts_with(wanted));
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
        for record in self.records()? {
            match monitor::observe(&self.home.files(&record.id)) {
                Ok(observed) => infos.push(BoxInfo::new(&record, observed.state())),
                Err(error) => tracing::warn!(id = record.id, error = %error.report(), "a box cannot be read"),
            }
        }
        Ok(infos)
    }

    fn create(&self, options: &BoxOptions, name: Option<String>, watch: Watch<'_>) -> Result<BoxRecord> {
        options.validate()?;
        if let Some(name) = &name {
            validate_name(name)?;
            // Told before anything is downloaded; what counts is the answer when the box is published.
            self.check_name_is_free(name)?;
        }
        let (reference, image) = self.image(options, watch)?;
        let host = Platform::host();
        if image.config.architecture != host.architecture() || image.config.os != host.os() {
            let of = format!("{}/{}", image.config.os, image.config.architecture);
            let message = format!(
                "the image {reference} is for {}, and this machine is {host}",
                crate::rpc::shown(&of)
            );
            return Err(Error::new(ErrorKind::Image, message));
        }
        let image_name = image.name.clone();
        self.check_policy(&image.digest, image_name.as_deref())?;
        let id = new_id()?;
        let container = container(options, &image.config, &id)?;
        let record = BoxRecord::new(
            id.clone(),
            name,
            unix_nanos(SystemTime::now()),
            reference,
            (image.digest.clone(), image_name),
            (options.cpus.unwrap_or(CPUS), options.memory_mib.unwrap_or(MEMORY_MIB)),
            (options.auto_remove, options.detach),
            container,
        );
        let bytes = record.encode()?;
        let size = options.disk_size_gb.unwrap_or(DISK_GB);
        let base = disk::base::ensure(&self.home.cache(), size).map_err(disk_error)?;

        let draft = self.home.tmp().join(format!("{DRAFT}{id}"));
        let made = self.fill(&draft, &bytes, &base, size << 30);
        let published = made.and_then(|owner| self.publish(&draft, &record).map(|()| owner));
        match published {
            Ok(owner) => {
                if !options.detach {
                    self.owned().entry(id).or_default().owner = Some(owner);
                }
                Ok(record)
            }
            Err(error) => {
                if let Err(cleanup) = fs::remove_dir_all(&draft)
                    && cleanup.kind() != std::io::ErrorKind::NotFound
                {
                    tracing::warn!(error = %cleanup, folder = %draft.display(), "cannot remove a draft");
                }
                Err(error)
            }
        }
    }

    /// Makes everything of a new box in a folder that nobody looks at yet.
    fn fill(&self, draft: &Path, record: &[u8], base: &Path, size: u64) -> Result<FileLock> {
        use std::os::unix::fs::DirBuilderExt;
        let failed = |e| storage(format!("cannot make {}", draft.display()), e);
        fs::DirBuilder::new().mode(0o700).create(draft).map_err(failed)?;
        let files = BoxFiles::new(draft);
        let owner = FileLock::attempt(&draft.join(OWNER))?;
        // Only a recovery that takes the draft for an abandoned one gets in between, and that removes it.
        let owner = owner.ok_or_else(|| {
            Error::new(ErrorKind::Storage, format!("{} is being cleared away", draft.display()))
                .with_hint("try again")
        })?;
        fs::DirBuilder::new().mode(0o700).create(files.logs()).map_err(failed)?;
        write_atomic(&files.config(), record)?;
        disk::qcow2::create_overlay(&files.disk(), base, DiskFormat::Raw, size).map_err(disk_error)?;
        Ok(owner)
    }

    /// The commit point of create: one rename, under the lock that makes names unique.
    fn publish(&self, draft: &Path, record: &BoxRecord) -> Result<()> {
        let _changing = self.home.lock()?;
        if let Some(name) = &record.name {
            self.check_name_is_free(name)?;
        }
        // Under the lock under which images that no box uses are removed: from here on it is used.
        self.store.info(&record.image_digest).map_err(image_error)?;
        let place = self.home.files(&record.id);
        fs::rename(draft, place.folder())
            .map_err(|e| storage(format!("cannot make {}", place.folder().display()), e))
    }

    fn check_name_is_free(&self, name: &str) -> Result<()> {
        if self.records()?.iter().all(|other| other.name.as_deref() != Some(name)) {
            return Ok(());
        }
        let message = format!("there is a box named `{name}` already");
        Err(Error::new(ErrorKind::AlreadyExists, message)
            .with_hint("choose another name, or remove that box"))
    }

    /// Waits until no monitor has the box any more: it may still be at its last work when the final state is known.
    /// Returns the box's lock, or `None` when its folder is gone.
    fn released(&self, id: &str) -> Result<Option<FileLock>> {
        let files = self.home.files(id);
        let deadline = Instant::now() + RELEASE;
        loop {
            match FileLock::attempt_existing(&files.lock())? {
                Held::ByUs(lock) => return Ok(Some(lock)),
                Held::ByAnother => {}
                Held::Gone if !files.folder().is_dir() => return Ok(None),
                // Never started: the lock is made by the first who wants it.
                Held::Gone => {
                    if let Some(lock) = FileLock::attempt(&files.lock())? {
                        return Ok(Some(lock));
                    }
                }
            }
            let observed = monitor::observe(&files)?;
            if matches!(observed, Observed::Live(_)) {
                return Err(Error::new(ErrorKind::InvalidState, format!("box {id} is running"))
                    .with_hint("stop it first, or remove it by force"));
            }
            if Instant::now() >= deadline {
                let message = format!("the monitor of box {id} does not end");
                return Err(Error::new(ErrorKind::Engine, message));
            }
            thread::sleep(RELEASE_LOOK);
        }
    }

    /// Waits until nobody runs the box, and lets it go again.
    pub(crate) fn wait_released(&self, id: &str) -> Result<()> {
        self.released(id).map(drop)
    }

    fn remove(&self, id: &str) -> Result<()> {
        if let Some(_lock) = self.released(id)? {
            self.discard(&self.home.files(id), id)?;
        }
        self.owned().remove(id);
        Ok(())
    }

    /// Takes a folder away at once, then deletes it. The caller holds its lock.
    fn discard(&self, files: &BoxFiles, id: &str) -> Result<()> {
        let trash = self.home.trash(id);
        let changing = self.home.lock()?;
        match fs::rename(files.folder(), &trash) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(storage(format!("cannot remove {}", files.folder().display()), e)),
        }
        // What is in the trash is nobody's: others may help to delete it.
        drop(changing);
        delete(&trash)
    }

    /// Clears away what killed processes left. What cannot be cleared away is told and left.
    fn recover(&self) {
        match self.records() {
            Ok(records) => {
                for record in records.into_iter().filter(|record| record.auto_remove) {
                    if let Err(error) = self.recover_box(&record) {
                        tracing::warn!(id = record.id, error = %error.report(), "a box cannot be cleared away");
                    }
                }
            }
            Err(error) => tracing::warn!(error = %error.report(), "boxes cannot be looked through"),
        }
        let entries = fs::read_dir(self.home.tmp()).into_iter().flatten().flatten();
        for entry in entries {
            if let Err(error) = recover_draft(&entry.path()) {
                tracing::warn!(error = %error.report(), "what was left behind cannot be cleared away");
            }
        }
    }

    fn recover_box(&self, record: &BoxRecord) -> Result<()> {
        let files = self.home.files(&record.id);
        if matches!(monitor::observe(&files)?, Observed::Live(_)) {
            return Ok(());
        }
        // A detached box has no owner to wait for.
        let _owner = match FileLock::attempt_existing(&files.folder().join(OWNER))? {
            Held::ByUs(lock) => lock,
            Held::ByAnother | Held::Gone => return Ok(()),
        };
        let Some(_lock) = FileLock::attempt(&files.lock())? else { return Ok(()) };
        // Under both locks nobody can start it any more: now the answer holds.
        match monitor::observe(&files)? {
            Observed::Live(_) => return Ok(()),
            Observed::NeverStarted if record.detach => return Ok(()),
            Observed::NeverStarted | Observed::Ended(_) | Observed::Crashed(_) => {}
        }
        tracing::info!(id = record.id, "removing a box that was left behind");
        self.discard(&files, &record.id)
    }

    /// Starts a box's monitor.
    pub(crate) async fn start(
        self: &Arc<Self>,
        record: &BoxRecord,
        await_attach: bool,
    ) -> Result<Arc<Monitor>> {
        let inner = self.clone();
        let record = record.clone();
        let id = record.id.clone();
        let abandoned = Abandoned::default();
        let check = abandoned.check();
        let (shim, files, config) =
            blocking(move || inner.prepare(&record, await_attach, &mut |_| check())).await?;
        let monitor = Arc::new(Monitor::spawn(&shim, &files, &config).await?);
        let mut boxes = self.owned();
        // Boxes that have removed themselves are forgotten here, so that the map does not grow with their number.
        boxes.retain(|id, own| {
            let over = own.monitor.as_ref().is_some_and(|monitor| monitor.view().over);
            !over || self.home.files(id).folder().is_dir()
        });
        boxes.entry(id).or_default().monitor = Some(monitor.clone());
        drop(boxes);
        Ok(monitor)
    }

    fn prepare(
        &self,
        record: &BoxRecord,
        await_attach: bool,
        watch: Watch<'_>,
    ) -> Result<(PathBuf, BoxFiles, MonitorConfig)> {
        let programs = self.programs()?;
        let files = self.home.files(&record.id);
        self.check_policy(&record.image_digest, record.image_name.as_deref())?;
        let image = self.store.disk(&record.image_digest, watch).map_err(image_error)?;
        let disk = |path, format, read_only| DiskSpec { path, format, read_only };
        let port = |port, path, direction| VsockPort { port, path, direction };
        let vm = VmSpec {
            cpus: record.cpus,
            memory_mib: record.memory_mib,
            kernel: PathBuf::new(),
            disks: vec![
                disk(self.boot_disk(&programs.guest)?, DiskFormat::Raw, true),
                disk(image, DiskFormat::Raw, true),
                disk(files.disk(), DiskFormat::Qcow2, false),
            ],
            ports: vec![
                port(ports::PORTAL, files.portal_socket(), Direction::HostToGuest),
                port(ports::BOOT, files.boot_socket(), Direction::GuestToHost),
            ],
        };
        let config = MonitorConfig {
            version: VERSION,
            box_id: record.id.clone(),
            folder: files.folder().to_owned(),
            trash: self.home.trash(&record.id),
            cache: self.home.cache(),
            engine: match self.engine {
                Engine::Auto => EngineChoice::Auto,
                Engine::Krun => EngineChoice::Krun,
                Engine::Qemu => EngineChoice::Qemu,
            },
            vm,
            container: ContainerSpec { await_attach, ..record.container.clone() },
            detached: record.detach,
            auto_remove: record.auto_remove,
            boot_timeout_millis: u64::try_from(self.boot_timeout.as_millis()).unwrap_or(u64::MAX),
            stop_grace_millis: u64::try_from(OWNER_GONE_GRACE.as_millis()).unwrap_or(u64::MAX),
        };
        Ok((programs.shim.clone(), files, config))
    }

    /// The disk that holds the agent, made once for each build of it.
    fn boot_disk(&self, guest: &Path) -> Result<PathBuf> {
        let disk = self.home.cache().join(format!("boot-{}.erofs", programs::identity(guest)?));
        if !disk.exists() {
            erofs::boot_disk(guest, &disk)
                .map_err(|e| storage(format!("cannot make the boot disk {}", disk.display()), e))?;
        }
        Ok(disk)
    }

    /// The end of what monitor and VMM wrote.
    pub(crate) fn shim_log_tail(&self, files: &BoxFiles) -> Vec<String> {
        use std::io::{Read, Seek, SeekFrom};
        let mut text = Vec::new();
        let read = fs::File::open(files.shim_log()).and_then(|mut log| {
            let length = log.seek(SeekFrom::End(0))?;
            log.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
            log.take(LOG_TAIL).read_to_end(&mut text)
        });
        if let Err(error) = read {
            return vec![format!("the log cannot be read: {error}")];
        }
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines.iter().rev().take(LOG_LINES).rev().map(|line| crate::rpc::shown(line)).collect()
    }
}

impl Drop for RuntimeInner {
    /// Boxes that were never started and nobody can find again go with their creator.
    fn drop(&mut self) {
        let boxes = std::mem::take(self.boxes.get_mut().unwrap_or_else(PoisonError::into_inner));
        for (id, own) in boxes {
            if own.monitor.is_some() || own.owner.is_none() {
                continue;
            }
            let files = self.home.files(&id);
            let unused =
                BoxRecord::read(&files.config()).ok().flatten().is_some_and(|record| record.auto_remove)
                    && matches!(monitor::observe(&files), Ok(Observed::NeverStarted));
            if unused && let Err(error) = self.remove(&id) {
                tracing::warn!(id, error = %error.report(), "cannot remove a box that was never started");
            }
        }
    }
}

/// Deletes a folder that others may be deleting as well.
fn delete(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(storage(format!("cannot remove {}", folder.display()), e))
        }
        _ => Ok(()),
    }
}

/// Deletes an entry of `tmp` that belongs to nobody.
fn recover_draft(entry: &Path) -> Result<()> {
    let name = entry.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with(TRASH) {
        return delete(entry);
    }
    if !name.starts_with(DRAFT) {
        return Ok(());
    }
    match FileLock::attempt_existing(&entry.join(OWNER))? {
        // Held until the folder is away: its maker, should it come late, fails and starts anew.
        Held::ByUs(_owner) => delete(entry),
        Held::ByAnother => Ok(()),
        // Made a moment ago or abandoned before anything was in it: an empty folder goes, any other stays.
        Held::Gone => match fs::remove_dir(entry) {
            Err(e)
                if matches!(
                    e.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                Ok(())
            }
            Err(e) => Err(storage(format!("cannot remove {}", entry.display()), e)),
            Ok(()) => Ok(()),
        },
    }
}

fn disk_error(error: disk::DiskError) -> Error {
    let hint = error.hint();
    let error = storage("cannot prepare the disk of a box", error);
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

/// What runs in a box: the image's settings, then the caller's.
fn container(options: &BoxOptions, image: &ImageConfig, id: &str) -> Result<ContainerSpec> {
    // As Docker has it: another entrypoint drops the image's command.
    let entrypoint = options.entrypoint.clone().unwrap_or_else(|| image.entrypoint.clone());
    let cmd = match (&options.cmd, &options.entrypoint) {
        (Some(cmd), _) => cmd.clone(),
        (None, Some(_)) => Vec::new(),
        (None, None) => image.cmd.clone(),
    };
    let args: Vec<String> = entrypoint.into_iter().chain(cmd).collect();
    if args.first().is_some_and(String::is_empty) {
        return Err(Error::new(ErrorKind::InvalidArgument, "the main command is empty"));
    }
    let mut env = image.env.clone();
    for (name, value) in &options.env {
        env.retain(|entry| entry.split_once('=').is_none_or(|(have, _)| have != name));
        env.push(format!("{name}={value}"));
    }
    let main = ProcessSpec {
        args,
        env,
        cwd: options.working_dir.clone().unwrap_or_else(|| image.working_dir.clone()),
        user: options.user.clone().unwrap_or_else(|| image.user.clone()),
        terminal: None,
        stdin: options.open_stdin,
    };
    Ok(ContainerSpec {
        hostname: options.hostname.clone().unwrap_or_else(|| id.to_owned()),
        main,
        capabilities_add: options.cap_add.clone(),
        capabilities_drop: options.cap_drop.clone(),
        await_attach: false,
    })
}
