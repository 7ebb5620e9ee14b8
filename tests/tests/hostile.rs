//! A box whose agent is not ours any more.

use std::collections::BTreeSet;
use std::fs;

use boxlite::{BoxOptions, BoxliteRuntime, CopyOptions, ErrorKind, VolumeSpec};
use boxlite_tests::raw::required_file;
use boxlite_tests::story::Story;
use boxlite_tests::tree::seen;

/// A library whose boxes have a hostile agent.
fn hostile(story: &Story) -> BoxliteRuntime {
    let mut options = story.options();
    options.guest = Some(required_file("BOXLITE_TEST_HOSTILE_GUEST"));
    BoxliteRuntime::new(options).unwrap()
}

#[tokio::test]
async fn no_trick_of_a_hostile_agent_leaves_the_destination_of_a_copy_and_each_is_told() {
    let story = Story::with_busybox();
    let runtime = hostile(&story);
    let sandbox = runtime.create(BoxOptions::image("busybox"), None).await.unwrap();
    sandbox.start().await.unwrap();

    let place = tempfile::tempdir().unwrap();
    // Short, so that a name in an old header has room for it.
    let outside = place.path().join("o");
    fs::create_dir(&outside).unwrap();
    for canary in [outside.join("canary"), place.path().join("canary")] {
        fs::write(canary, "alive").unwrap();
    }
    let inside = place.path().join("inside");
    let unchanged = |what: &str| {
        assert_eq!(fs::read_to_string(place.path().join("canary")).unwrap(), "alive", "{what}");
        let around = fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let around: BTreeSet<_> = around.collect();
        assert_eq!(around, ["canary", "inside", "o"].map(Into::into).into(), "{what}");
        for path in seen(&inside).keys() {
            let path = path.escape_ascii().to_string();
            assert!(!path.contains(".boxlite-"), "{what} left {path}");
        }
    };
    let before = seen(&outside);
    let mut played = 0;
    loop {
        let source = format!("/tricks/{played}{}", outside.display());
        fs::create_dir(&inside).unwrap();
        // Into a folder, under the name that the agent says.
        let refused = sandbox.copy_out(&source, &inside, CopyOptions::default()).await;
        let error = refused.expect_err(&format!("trick {played}"));
        let told = format!("{:#}", anyhow::Error::from(error));
        println!("{played}: {told}");
        if told.contains("no more tricks") {
            break;
        }
        unchanged(&told);
        // Under a name of ours, which makes some of them harmless.
        let named = sandbox.copy_out(&source, inside.join("new"), CopyOptions::default()).await;
        println!("{played}: {named:?}");
        unchanged(&told);
        assert_eq!(seen(&outside), before, "{told}");
        fs::remove_dir_all(&inside).unwrap();
        played += 1;
    }
    assert!(played >= 60, "{played}");

    // The host has lost nothing by it: the box does what it should.
    let result = sandbox.copy_out("/bin/busybox", &inside, CopyOptions::default()).await.unwrap();
    assert_eq!(result.entries, 1);
    let missing = sandbox.copy_out("/nothing", &inside, CopyOptions::default()).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    runtime.remove(sandbox.id(), true).await.unwrap();
}

/// Both engines have one share for all volumes. Where it is a device, the guest's kernel stands between an agent and the
/// host; where it is a stream, which is the way of libkrun, an agent can say to the host what it likes.
#[tokio::test]
async fn no_trick_of_a_hostile_agent_leaves_the_volumes_of_its_box_and_each_is_told() {
    let story = Story::with_busybox();
    let runtime = hostile(&story);
    let place = tempfile::tempdir().unwrap();
    let mut wanted = BoxOptions::image("busybox");
    for (name, read_only) in [("writable", false), ("kept", true)] {
        let folder = place.path().join(name);
        fs::create_dir_all(folder.join("sub")).unwrap();
        fs::write(folder.join("file"), "alive").unwrap();
        wanted.volumes.push(VolumeSpec::host(&folder, format!("/{name}")).read_only(read_only));
    }
    fs::write(place.path().join("canary"), "alive").unwrap();
    let before = seen(place.path());
    let sandbox = runtime.create(wanted, None).await.unwrap();
    sandbox.start().await.unwrap();
    let told = sandbox.copy_out("/tricks/share", place.path().join("none"), CopyOptions::default()).await;
    let told = told.unwrap_err().to_string();
    println!("{told}");
    assert_eq!(seen(place.path()), before);
    assert!(told.contains("through: []"), "{told}");
    let refused: u32 = told.split(' ').find_map(|word| word.parse().ok()).unwrap();
    let (least, kinds) = match sandbox.info().unwrap().engine {
        Some("krun") => (60, &["Name", "ReadOnly", "Volume", "Device", "Node"][..]),
        _ => (13, &["ReadOnly", "Volume", "Device"][..]),
    };
    assert!(refused >= least, "{told}");
    let log = fs::read_to_string(story.home().join("boxes").join(sandbox.id()).join("logs/shim.log"));
    let log = log.unwrap();
    for kind in kinds {
        assert!(log.contains(&format!("kind={kind}")), "{kind}: {log}");
    }
    runtime.remove(sandbox.id(), true).await.unwrap();
}
