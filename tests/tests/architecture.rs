//! The invariants of ARCHITECTURE.md that a machine can check: who may depend on whom, where `unsafe` may stand, and that
//! the documents name what exists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Every crate of the workspace, and which others of it it may depend on, be it for its tests or its build.
///
/// A new crate is added here, and to the table in ARCHITECTURE.md.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("boxlite-portal", &[]),
    ("boxlite-control", &[]),
    ("boxlite-vsock", &[]),
    ("boxlite-copy", &["boxlite-tricks"]),
    ("boxlite-fs", &["boxlite-vsock"]),
    ("boxlite-net", &["boxlite-control"]),
    ("libkrun-sys", &[]),
    ("boxlite", &["boxlite-control", "boxlite-copy", "boxlite-portal"]),
    (
        "boxlite-shim",
        &["boxlite-control", "boxlite-fs", "boxlite-net", "boxlite-portal", "boxlite-vsock", "libkrun-sys"],
    ),
    ("boxlite-guest", &["boxlite-copy", "boxlite-portal", "boxlite-tricks"]),
    ("boxlite-cli", &["boxlite"]),
    (
        "boxlite-tests",
        &["boxlite", "boxlite-control", "boxlite-portal", "boxlite-raw-guest", "boxlite-vsock"],
    ),
    ("boxlite-raw-guest", &[]),
    ("boxlite-hostile-guest", &["boxlite-guest"]),
    ("boxlite-tricks", &[]),
];

/// Those that need the kernel or a C library without a safe wrapper in between.
const MAY_BE_UNSAFE: &[&str] = &["libkrun-sys", "boxlite-shim", "boxlite-guest", "boxlite-raw-guest"];

/// More than this is more than one noun. Tests included, generated code not.
const LINES_PER_FILE: usize = 800;

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// What `cargo metadata` says, for the invariants.
struct Workspace {
    /// Name to folder, of our own crates.
    members: BTreeMap<String, PathBuf>,
    /// Name to names of direct dependencies of every kind, of our own crates.
    direct: BTreeMap<String, BTreeSet<String>>,
    /// Package id to ids of what is linked into it.
    linked: BTreeMap<String, Vec<String>>,
    /// Package id to name, of all crates.
    names: BTreeMap<String, String>,
}

fn text(value: &Value) -> String {
    value.as_str().expect("cargo metadata has a string here").to_owned()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().expect("cargo metadata has a list here").iter()
}

impl Workspace {
    fn load() -> Self {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let out = Command::new(cargo)
            .args(["metadata", "--format-version", "1", "--locked"])
            .current_dir(top())
            .output()
            .unwrap();
        assert!(out.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
        let metadata: Value = serde_json::from_slice(&out.stdout).unwrap();

        let ours: BTreeSet<String> = list(&metadata["workspace_members"]).map(text).collect();
        let mut workspace = Self {
            members: BTreeMap::new(),
            direct: BTreeMap::new(),
            linked: BTreeMap::new(),
            names: BTreeMap::new(),
        };
        for package in list(&metadata["packages"]) {
            let (id, name) = (text(&package["id"]), text(&package["name"]));
            if ours.contains(&id) {
                let manifest = PathBuf::from(text(&package["manifest_path"]));
                workspace.members.insert(name.clone(), manifest.parent().unwrap().to_owned());
                let direct =
                    list(&package["dependencies"]).map(|dependency| text(&dependency["name"])).collect();
                workspace.direct.insert(name.clone(), direct);
            }
            workspace.names.insert(id, name);
        }
        for node in list(&metadata["resolve"]["nodes"]) {
            // A kind of null is a plain dependency, as opposed to "dev" and "build".
            let plain =
                |dependency: &&Value| list(&dependency["dep_kinds"]).any(|kind| kind["kind"].is_null());
            let linked =
                list(&node["deps"]).filter(plain).map(|dependency| text(&dependency["pkg"])).collect();
            workspace.linked.insert(text(&node["id"]), linked);
        }
        workspace
    }

    /// Names of all crates that are linked into this one of ours.
    fn linked_into(&self, name: &str) -> BTreeSet<&str> {
        let start = self.names.iter().find(|(_, n)| *n == name).expect("a crate of the workspace").0;
        let (mut found, mut open) = (BTreeSet::new(), vec![start]);
        while let Some(id) = open.pop() {
            for next in &self.linked[id] {
                if found.insert(next) {
                    open.push(next);
                }
            }
        }
        found.into_iter().map(|id| self.names[id].as_str()).collect()
    }
}

/// All files below a folder that end so, without what is generated or built.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let entry = entry.unwrap();
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if entry.file_type().unwrap().is_dir() {
                if !name.starts_with('.') && !["generated", "target", "dist"].contains(&&*name) {
                    open.push(path);
                }
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "no {ending} below {}", folder.display());
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// `file:line` of each line that fits.
fn places(paths: &[PathBuf], fits: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for path in paths {
        for (number, line) in read(path).lines().enumerate().filter(|(_, line)| fits(line)) {
            let path = path.strip_prefix(top()).unwrap();
            found.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
        }
    }
    found
}

/// Whether a line of Rust opens something unsafe.
fn opens_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    code.match_indices("unsafe").any(|(at, word)| {
        let begins = !code[..at].ends_with(|c: char| c.is_alphanumeric() || "_\"'".contains(c));
        let rest = code[at + word.len()..].trim_start();
        let opens = ["{", "fn", "impl", "extern", "trait", "(no_mangle", "(export_name", "(link_section"];
        begins && opens.iter().any(|what| rest.starts_with(what))
    })
}

#[test]
fn every_crate_depends_on_those_alone_that_it_may_know() {
    let workspace = Workspace::load();
    let table: BTreeMap<&str, &[&str]> = MAY_DEPEND_ON.iter().copied().collect();
    let listed: BTreeSet<&str> = table.keys().copied().collect();
    let members: BTreeSet<&str> = workspace.members.keys().map(String::as_str).collect();
    assert_eq!(listed, members, "the table of this test and the workspace differ");
    for (name, direct) in &workspace.direct {
        let ours = direct.iter().map(String::as_str).filter(|dependency| members.contains(dependency));
        let strangers: Vec<&str> = ours.filter(|dependency| !table[&**name].contains(dependency)).collect();
        assert!(strangers.is_empty(), "{name} must not know {strangers:?}");
    }
}

#[test]
fn libkrun_is_linked_into_the_shim_and_into_nothing_else() {
    let workspace = Workspace::load();
    for name in workspace.members.keys() {
        let links = workspace.linked_into(name).contains("libkrun");
        assert_eq!(links, ["boxlite-shim", "libkrun-sys"].contains(&&**name), "{name}");
        let direct = workspace.direct[name].contains("libkrun");
        assert_eq!(direct, name == "libkrun-sys", "{name} names libkrun in its manifest");
    }
}

#[test]
fn no_vmm_and_no_container_runtime_is_linked_into_the_library() {
    let workspace = Workspace::load();
    let linked = workspace.linked_into("boxlite");
    for stranger in ["libkrun", "vhost", "vhost-user-backend", "vm-memory", "libcontainer"] {
        assert!(!linked.contains(stranger), "boxlite links {stranger}");
    }
}

#[test]
fn unsafe_code_stands_only_where_it_may() {
    let workspace = Workspace::load();
    for (name, folder) in &workspace.members {
        if !MAY_BE_UNSAFE.contains(&&**name) {
            // The tests' folder holds another crate.
            let sources = files(&folder.join("src"), ".rs");
            assert_eq!(places(&sources, opens_unsafe), Vec::<String>::new());
        }
    }
}

#[test]
fn the_compiler_itself_forbids_unsafe_code_in_the_library() {
    let root = read(&top().join("src/boxlite/src/lib.rs"));
    assert!(root.lines().any(|line| line == "#![forbid(unsafe_code)]"));
}

#[test]
fn the_search_for_unsafe_code_finds_it() {
    for line in [
        "unsafe {",
        "let x = unsafe { f() };",
        "pub unsafe fn f()",
        "unsafe impl Send for X {}",
        "#[unsafe(no_mangle)]",
    ] {
        assert!(opens_unsafe(line), "{line}");
    }
    for line in ["#![forbid(unsafe_code)]", "// unsafe { no }", "let not_unsafe = 1;", "\"unsafe fn\""] {
        assert!(!opens_unsafe(line), "{line}");
    }
}

#[test]
fn no_source_file_has_grown_beyond_one_noun() {
    let sources = [files(&top().join("src"), ".rs"), files(&top().join("tests"), ".rs")].concat();
    let lengths = sources.iter().map(|path| (path, read(path).lines().count()));
    let grown: Vec<_> = lengths.filter(|(_, lines)| *lines > LINES_PER_FILE).collect();
    assert!(grown.is_empty(), "{grown:?}");
}

#[test]
fn make_fetches_the_libkrunfw_that_is_looked_for() {
    let version = |path: &str, before: &str, behind: char| {
        let source = read(&top().join(path));
        let line = source.lines().find_map(|line| line.strip_prefix(before));
        line.unwrap_or_else(|| panic!("{path} has no {before}")).split(behind).next().unwrap().to_owned()
    };
    let looked_for = version("src/libkrun-sys/src/firmware.rs", "pub const VERSION: &str = \"", '"');
    assert_eq!(version("make/libkrunfw.sh", "version=", '\n'), looked_for);
}

#[test]
fn architecture_md_names_every_crate() {
    let document = read(&top().join("ARCHITECTURE.md"));
    for (name, folder) in Workspace::load().members {
        let folder = folder.strip_prefix(top()).unwrap().display().to_string();
        let row = document.lines().find(|line| line.starts_with(&format!("| `{folder}` |")));
        let row = row.unwrap_or_else(|| panic!("ARCHITECTURE.md has no row for {folder}"));
        assert!(row.contains(&format!("`{name}`")), "{row}");
    }
}

#[test]
fn the_readme_names_every_environment_variable_that_is_read() {
    let readme = read(&top().join("README.md"));
    let mut missing = BTreeSet::new();
    for path in files(&top().join("src"), ".rs") {
        for quoted in read(&path).split('"').filter(|part| part.starts_with("BOXLITE_")) {
            let is_name = quoted.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
            // Those of the tests are set by make, and no user needs them.
            let is_name = is_name && !quoted.starts_with("BOXLITE_TEST_");
            if is_name && !readme.contains(&format!("`{quoted}`")) {
                missing.insert(quoted.to_owned());
            }
        }
    }
    assert!(missing.is_empty(), "README.md does not name {missing:?}");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut links = 0;
    for document in files(top(), ".md") {
        let content = read(&document);
        let targets = content.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://") && !target.starts_with('#')) {
            let path = document.parent().unwrap().join(target.split('#').next().unwrap());
            assert!(path.exists(), "{} links to {target}, which is not there", document.display());
            links += 1;
        }
    }
    assert!(links > 0, "no document links to another one");
}
