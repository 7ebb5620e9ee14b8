//! The start of a box's monitor.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use boxlite_control::{
    BoxFiles, ContainerSpec, Direction, DiskFormat, DiskSpec, EngineChoice, MonitorConfig, ShareSpec,
    VERSION, VmSpec, VsockPort, step,
};
use boxlite_portal::ports;

use crate::erofs;
use crate::error::{Error, ErrorKind, Result, storage};
use crate::image::Watch;
use crate::images::{Abandoned, image_error};
use crate::monitor::Monitor;
use crate::options::Engine;
use crate::programs;
use crate::record::BoxRecord;
use crate::runtime::{RuntimeInner, blocking};
use crate::volume;

/// How long the main command of a box gets to end when the program that owns it ends.
const OWNER_GONE_GRACE: Duration = Duration::from_millis(500);

/// How a box is started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StartHow {
    /// The main command's output waits for a reader.
    pub(crate) await_attach: bool,
    /// The box goes on without this process, whatever it was created for.
    pub(crate) detach: bool,
}

impl RuntimeInner {
    /// Starts the monitor of the box of this id, as the database describes the box now.
    pub(crate) async fn start(self: &Arc<Self>, id: &str, how: StartHow) -> Result<Arc<Monitor>> {
        let (inner, id) = (self.clone(), id.to_owned());
        let abandoned = Abandoned::default();
        let check = abandoned.check();
        let asked = id.clone();
        let (shim, files, config) = blocking(move || {
            let record = inner.boxes.get(&asked)?.filter(|record| !inner.is_gone(&record.id));
            let record = record
                .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("box {asked} has been removed")))?;
            inner.prepare(&record, how, &mut |_| check())
        })
        .await?;
        step::reached("library", "start-prepared");
        let monitor = Arc::new(Monitor::spawn(&shim, &files, &config).await?);
        let mut boxes = self.held();
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
        how: StartHow,
        watch: Watch<'_>,
    ) -> Result<(PathBuf, BoxFiles, MonitorConfig)> {
        let programs = self.programs()?;
        let files = self.home.files(&record.id);
        self.check_policy(&record.image_digest, record.image_name.as_deref())?;
        let image = self.store.disk(&record.image_digest, watch).map_err(image_error)?;
        let (volumes, mut mounts) = volume::share(&record.volumes, |name| self.managed_volume(name))?;
        mounts.extend(record.container.mounts.iter().cloned());
        let container = ContainerSpec {
            await_attach: how.await_attach,
            mounts: volume::in_order(mounts),
            ..record.container.clone()
        };
        let owner = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let share = ShareSpec { socket: files.share_socket(), owner, volumes };
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
            share: Some(share).filter(|share| !share.volumes.is_empty()),
            network: None,
        };
        let config = MonitorConfig {
            version: VERSION,
            box_id: record.id.clone(),
            name: record.name.clone(),
            image: record.image.clone(),
            folder: files.folder().to_owned(),
            trash: self.home.trash(&record.id),
            cache: self.home.cache(),
            journal: self.home.journal(),
            engine: match self.engine() {
                Engine::Auto => EngineChoice::Auto,
                Engine::Krun => EngineChoice::Krun,
                Engine::Qemu => EngineChoice::Qemu,
            },
            vm,
            container,
            detached: record.detach || how.detach,
            auto_remove: record.auto_remove,
            boot_timeout_millis: u64::try_from(self.boot_timeout.as_millis()).unwrap_or(u64::MAX),
            owner_grace_millis: u64::try_from(OWNER_GONE_GRACE.as_millis()).unwrap_or(u64::MAX),
            stop_signal: record.stop_signal,
            stop_grace_millis: record.stop_grace_millis,
            restart: record.restart,
            health: record.health.clone(),
            idle_timeout_millis: record.idle_timeout_millis,
            max_duration_millis: record.max_duration_millis,
            log: record.log,
            network: record.network.as_ref().map(|network| network.0.clone()),
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
}
