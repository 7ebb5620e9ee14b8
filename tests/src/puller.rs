//! A home that pulls images, and nothing of its surroundings: neither logins nor proxies nor policies of whoever tests.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::disk;
use crate::layout;
use crate::story::{Call, Story, Told};

/// What a user may have set that changes how images are pulled.
const SETTINGS: [&str; 9] = [
    "BOXLITE_CONFIG",
    "DOCKER_CONFIG",
    "XDG_CONFIG_HOME",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
];

/// A story about pulling.
#[derive(Debug)]
pub struct Puller {
    /// The home of its boxes and images.
    pub story: Story,
    user: TempDir,
}

impl Puller {
    /// An empty home of an unconfigured user.
    pub fn new() -> Self {
        let user = tempfile::Builder::new().prefix("boxlite-user-").tempdir().expect("a temporary folder");
        Self { story: Story::empty(), user }
    }

    /// A call of `boxlite`.
    pub fn boxlite(&self, words: &[&str]) -> Call {
        let call = self.story.boxlite(words).env("HOME", self.user.path());
        SETTINGS.iter().fold(call, |call, name| call.without(name))
    }

    /// Runs `boxlite pull -q`.
    pub fn pull(&self, reference: &str) -> Told {
        self.boxlite(&["pull", "-q", reference]).run()
    }

    /// Writes `<home>/config.json`.
    pub fn configure(&self, config: &Value) {
        self.write("config.json", config);
    }

    /// Writes a JSON file of the home.
    pub fn write(&self, name: &str, value: &Value) {
        fs::write(self.home().join(name), value.to_string()).expect("a file");
    }

    /// The home folder.
    pub fn home(&self) -> &Path {
        self.story.home()
    }

    /// The user's own home.
    pub fn user(&self) -> &Path {
        self.user.path()
    }

    /// What `boxlite images --format json` has.
    pub fn images(&self) -> Vec<Value> {
        let told = self.boxlite(&["images", "--format", "json"]).run().success();
        serde_json::from_slice(&told.stdout).expect("JSON")
    }

    /// All references of all images.
    pub fn references(&self) -> Vec<String> {
        let all = self.images();
        let names = all.iter().flat_map(|image| image["references"].as_array().expect("a list"));
        let mut names: Vec<_> = names.map(|name| name.as_str().expect("a reference").to_owned()).collect();
        names.sort();
        names
    }

    /// The list of the only image's disk.
    pub fn tree(&self) -> String {
        disk::tree_of_only_image(self.home())
    }
}

impl Default for Puller {
    fn default() -> Self {
        Self::new()
    }
}

/// A small image of three layers, none of which compresses, so that a place in a download is a place in a layer.
pub fn small_image() -> TempDir {
    let layers = [1, 2, 3].map(|number| {
        let name = format!("data-{number}");
        layout::tar_of(&[(&name, &layout::noise(number, 700_000)), ("same", &[number; 10])])
    });
    layout::of_layers(&layers, &serde_json::json!({"Cmd": ["/data-1"]}))
}
