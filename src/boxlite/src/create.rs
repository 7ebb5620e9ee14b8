//! The making of a box, up to the moment from which it exists.
//!
//! ```text
//!   tmp/box-<id>/  ──rename──▶  boxes/<id>/  ──commit──▶  its row in the database
//!   made here, owned            no box yet:               the box exists
//!   by the lock `owner`         goes if its maker does
//! ```
//!
//! Everything is on the disk before the next step is taken, so a loss of power leaves one of these states as well.

use std::fs;
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use boxlite_control::{BoxFiles, ContainerSpec, DiskFormat, EventKind, ProcessSpec, step};

use crate::disk;
use crate::error::{Error, ErrorKind, Result, storage};
use crate::home::{DRAFT, FileLock, new_id};
use crate::image::{ImageConfig, Platform, Watch};
use crate::images::image_error;
use crate::monitor::unix_nanos;
use crate::options::{BoxOptions, validate_name};
use crate::record::BoxRecord;
use crate::runtime::RuntimeInner;
use crate::signal::parse_signal;
use crate::stats::count;
use crate::ulimit::Ulimit;
use crate::volume;

/// Defaults of [`BoxOptions`].
const CPUS: u8 = 1;
const MEMORY_MIB: u32 = 1024;
const DISK_GB: u64 = 10;
const STOP_GRACE: Duration = Duration::from_secs(10);
/// Rows and columns of a terminal, until somebody who is attached says otherwise.
const TERMINAL: (u16, u16) = (24, 80);
/// What an image whose stop signal is none that Linux has is stopped by.
const SIGTERM: u32 = 15;

impl RuntimeInner {
    pub(crate) fn create(
        &self,
        options: &BoxOptions,
        name: Option<String>,
        watch: Watch<'_>,
    ) -> Result<BoxRecord> {
        options.validate()?;
        if let Some(name) = &name {
            validate_name(name)?;
            // Told before anything is downloaded; what counts is the answer when the box is published.
            self.boxes.check_name(name, |id| self.is_gone(id))?;
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
        let mut record = BoxRecord::new(
            id.clone(),
            unix_nanos(SystemTime::now()),
            (reference, image.digest.clone(), image_name),
            container,
        );
        record.name = name;
        (record.volumes, record.container.mounts) = volume::resolve(&options.volumes, &options.tmpfs)?;
        fill(&mut record, options, &image.config)?;
        record.encode().map_err(|error| {
            Error::new(ErrorKind::InvalidArgument, "the box cannot be recorded").with_source(error)
        })?;
        let size = options.disk_size_gb.unwrap_or(DISK_GB);
        let base = disk::base::ensure(&self.home.cache(), size).map_err(disk_error)?;

        let draft = self.home.tmp().join(format!("{DRAFT}{id}"));
        let made = make(&draft, &base, size << 30);
        let published = made.and_then(|owner| self.publish(&draft, &mut record).map(|()| owner));
        match published {
            Ok(owner) => {
                if !options.detach {
                    self.held().entry(id).or_default().owner = Some(owner);
                }
                count(&self.counters.created);
                self.tell(&record, EventKind::Created);
                Ok(record)
            }
            Err(error) => {
                let trash = self.home.trash(&id);
                for folder in [&draft, self.home.files(&id).folder()] {
                    if let Err(cleanup) = fs::rename(folder, &trash).and_then(|()| fs::remove_dir_all(&trash))
                        && cleanup.kind() != std::io::ErrorKind::NotFound
                    {
                        tracing::warn!(error = %cleanup, folder = %folder.display(), "cannot remove a draft");
                    }
                }
                Err(error)
            }
        }
    }

    /// Makes the draft a box, under the lock under which images that no box uses are removed.
    fn publish(&self, draft: &Path, record: &mut BoxRecord) -> Result<()> {
        let _changing = self.home.lock()?;
        self.claim_volumes(record)?;
        // From here on it is used.
        self.store.info(&record.image_digest).map_err(image_error)?;
        let place = self.home.files(&record.id);
        let renamed = fs::rename(draft, place.folder()).and_then(|()| sync(&self.home.boxes()));
        renamed.map_err(|e| storage(format!("cannot make {}", place.folder().display()), e))?;
        step::reached("library", "create-renamed");
        self.boxes.insert(record, |id| self.is_gone(id))?;
        step::reached("library", "create-recorded");
        Ok(())
    }
}

/// What the options and the image say beyond what runs in the box.
fn fill(record: &mut BoxRecord, options: &BoxOptions, image: &ImageConfig) -> Result<()> {
    let millis =
        |time: Option<Duration>| time.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    record.cpus = options.cpus.unwrap_or(CPUS);
    record.memory_mib = options.memory_mib.unwrap_or(MEMORY_MIB);
    record.auto_remove = options.auto_remove;
    record.detach = options.detach;
    record.labels.clone_from(&options.labels);
    record.restart = options.restart;
    record.health = options.health_check.resolve(image.health_check.as_ref())?;
    record.idle_timeout_millis = millis(options.auto_stop);
    record.max_duration_millis = millis(options.max_duration);
    record.auto_resume = options.auto_resume;
    record.stop_signal = match (&options.stop_signal, &image.stop_signal) {
        (Some(asked), _) => parse_signal(asked)?,
        (None, Some(signal)) => parse_signal(signal).unwrap_or_else(|_| {
            tracing::warn!(signal = crate::rpc::shown(signal), "the image's stop signal is none");
            SIGTERM
        }),
        (None, None) => SIGTERM,
    };
    record.stop_grace_millis = millis(Some(options.stop_timeout.unwrap_or(STOP_GRACE)));
    record.log = options.keep_output;
    record.network = options.network_record()?;
    Ok(())
}

/// Makes everything of a new box in a folder that nobody looks at yet.
fn make(draft: &Path, base: &Path, size: u64) -> Result<FileLock> {
    let failed = |e| storage(format!("cannot make {}", draft.display()), e);
    fs::DirBuilder::new().mode(0o700).create(draft).map_err(failed)?;
    let files = BoxFiles::new(draft);
    let owner = FileLock::attempt(&files.owner())?;
    // Only a recovery that takes the draft for an abandoned one gets in between, and that removes it.
    let owner = owner.ok_or_else(|| {
        Error::new(ErrorKind::Storage, format!("{} is being cleared away", draft.display()))
            .with_hint("try again")
    })?;
    step::reached("library", "create-owned");
    fs::DirBuilder::new().mode(0o700).create(files.logs()).map_err(failed)?;
    disk::qcow2::create_overlay(&files.disk(), base, DiskFormat::Raw, size).map_err(disk_error)?;
    sync(&files.disk()).and_then(|()| sync(draft)).map_err(failed)?;
    step::reached("library", "create-made");
    Ok(owner)
}

/// Flushes a file, or the names in a folder, to the disk.
fn sync(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
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
        terminal: options.tty.then_some(TERMINAL),
        stdin: options.open_stdin || options.tty,
        rlimits: options.ulimits.iter().map(Ulimit::to_record).collect(),
    };
    Ok(ContainerSpec {
        hostname: options.hostname.clone().unwrap_or_else(|| id.to_owned()),
        main,
        capabilities_add: options.cap_add.clone(),
        capabilities_drop: options.cap_drop.clone(),
        await_attach: false,
        mounts: Vec::new(),
    })
}
