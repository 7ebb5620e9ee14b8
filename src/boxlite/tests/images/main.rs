//! Images, from archives to the disks that are made of them, judged by `fsck.erofs`, the kernel and `umoci`.

#![allow(unreachable_pub, reason = "modules of a test program have no public")]
#![allow(clippy::print_stdout, reason = "says what could not be tested")]
#![allow(missing_debug_implementations, reason = "test helpers are not printed")]

mod archives;
mod concurrent;
mod content;
mod hostile;
mod layers;
mod layout;
mod random;
mod snapshot;
mod store;
mod tar;
mod trust;

use std::path::{Path, PathBuf};
use std::process::Command;

use boxlite::image::{ImageError, ImageInfo, ImageStore, Progress};

use layout::{Layout, Packed};
use snapshot::{Mount, Snapshot, is_root, run, snapshot};
use tar::Layer;

/// A store and a place for layouts, gone in the end.
pub(crate) struct Home {
    folder: tempfile::TempDir,
    pub store: ImageStore,
}

impl Home {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = ImageStore::open(folder.path()).unwrap();
        Self { folder, store }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn load(&self, path: &Path) -> Result<Vec<ImageInfo>, ImageError> {
        self.store.load(path, &mut |_: Progress| Ok(()))
    }

    /// A layout with one image of plain layers.
    pub fn layout(&self, layers: &[Layer]) -> Layout {
        let mut layout = Layout::new(&self.path("layout"));
        let layers: Vec<_> = layers.iter().map(|layer| (layer.clone().bytes(), Packed::Plain)).collect();
        layout.image(&layers, "test");
        layout
    }

    /// Loads one image and gives its disk, which `fsck.erofs` has found to be sound.
    pub fn disk(&self, path: &Path) -> PathBuf {
        let images = self.load(path).unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(images.len(), 1);
        let disk = self.store.get(&images[0].digest).unwrap().disk;
        run(Command::new("fsck.erofs").arg("--extract").arg(&disk));
        disk
    }

    /// What the loaded image looks like to the kernel.
    pub fn tree(&self, layers: &[Layer]) -> Option<Snapshot> {
        let layout = self.layout(layers);
        let disk = self.disk(&layout.folder);
        is_root().then(|| snapshot(Mount::new(&disk).path()))
    }

    /// Why an image with these layers is refused. Nothing of it may be left.
    pub fn refusal(&self, layers: &[Layer]) -> String {
        let layout = self.layout(layers);
        self.refusal_of(&layout.folder)
    }

    pub fn refusal_of(&self, path: &Path) -> String {
        let error = match self.load(path) {
            Ok(images) => panic!("it was loaded: {images:?}"),
            Err(error) => chain(&error),
        };
        assert_eq!(self.store.list().unwrap(), []);
        let left = |name| {
            std::fs::read_dir(self.path(name)).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>()
        };
        assert!(left("tmp").is_empty(), "{:?}", left("tmp"));
        let images = left("images");
        assert!(images.iter().all(|name| name == "lock" || name == "users"), "{images:?}");
        assert!(left("blobs/sha256").is_empty() && left("blobs/partial").is_empty());
        error
    }
}

/// An error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}
