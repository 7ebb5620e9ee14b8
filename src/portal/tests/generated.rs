//! The committed code in `src/generated` is what the proto file gives. `UPDATE=1` writes it anew.

use std::fs;
use std::path::Path;

#[test]
fn the_committed_code_matches_the_proto_file() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .out_dir(out.path())
        .bytes(".boxlite.portal.v1.Output")
        .bytes(".boxlite.portal.v1.StdinRequest")
        .emit_rerun_if_changed(false)
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
        .client_mod_attribute(".", "#[cfg(feature = \"client\")]")
        .compile_protos(&[here.join("proto/portal.proto")], &[here.join("proto")])
        .unwrap();
    let name = "boxlite.portal.v1.rs";
    let fresh = fs::read_to_string(out.path().join(name)).unwrap();
    let committed = here.join("src/generated").join(name);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&committed, &fresh).unwrap();
    }
    let same = fs::read_to_string(&committed).unwrap() == fresh;
    assert!(same, "src/generated is stale: run `UPDATE=1 cargo test -p boxlite-portal --test generated`");
}
