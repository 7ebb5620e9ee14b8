//! Folders and files of the host in a box.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use boxlite_tests::story::Story;

/// Volumes of one box: half of them read-only.
const VOLUMES: usize = 32;

#[test]
fn thirty_two_volumes_are_what_they_were_at_creation_and_the_host_refuses_writes() {
    let story = Story::with_busybox();
    let host = tempfile::tempdir().unwrap();
    let at = |name: &str| host.path().join(name);
    let mut arguments =
        vec!["create".to_owned(), "--name".into(), "b".into(), "--cap-add".into(), "ALL".into()];
    for number in 0..VOLUMES {
        let place = at(&format!("v{number}"));
        let access = if number % 2 == 0 { ":ro" } else { "" };
        match number {
            // Two are single files.
            4 | 5 => fs::write(&place, format!("content {number}\n")).unwrap(),
            // One is behind a link.
            7 => {
                fs::create_dir(at("real")).unwrap();
                fs::write(at("real/file"), "content 7\n").unwrap();
                symlink("real", &place).unwrap();
            }
            _ => {
                fs::create_dir(&place).unwrap();
                fs::write(place.join("file"), format!("content {number}\n")).unwrap();
            }
        }
        arguments.extend(["-v".into(), format!("{}:/mnt/{number}{access}", place.display())]);
    }
    arguments.extend(["busybox".into(), "sleep".into(), "1000".into()]);
    story.boxlite(&arguments).run().success();
    // Whoever re-points the link later changes nothing.
    fs::create_dir(at("other")).unwrap();
    fs::write(at("other/file"), "the wrong one\n").unwrap();
    fs::remove_file(at("v7")).unwrap();
    symlink("other", at("v7")).unwrap();
    fs::write(at("secret"), "secret").unwrap();
    story.boxlite(["start", "b"]).run().success();

    let read =
        "for i in $(seq 0 31); do if [ -d /mnt/$i ]; then cat /mnt/$i/file; else cat /mnt/$i; fi; done";
    let expected: String = (0..VOLUMES).map(|number| format!("content {number}\n")).collect();
    assert_eq!(story.boxlite(["exec", "b", "sh", "-c", read]).run().success().out(), expected);
    // With all capabilities: as it is, remounted, and through the share itself, mounted anew.
    let attack = "for i in $(seq 0 2 30); do \
          mount -o remount,rw /mnt/$i; mount -o remount,rw,bind /mnt/$i; \
          for f in /mnt/$i /mnt/$i/file /mnt/$i/new; do echo owned > $f; done; \
          rm -rf /mnt/$i/file; mkdir /mnt/$i/made; ln -s /etc /mnt/$i/link; chmod 777 /mnt/$i/file; \
        done 2>/dev/null; \
        mkdir -p /share; mount -t virtiofs volumes /share; \
        for i in $(seq 0 2 30); do echo owned > /share/$i/file; echo owned > /share/$i; done 2>/dev/null; \
        cat /share/../secret /mnt/1/../../secret /mnt/1/../../../secret; true";
    story.boxlite(["exec", "b", "sh", "-c", attack]).run();
    for number in (0..VOLUMES).step_by(2) {
        let place = at(&format!("v{number}"));
        let file = if number == 4 { place.clone() } else { place.join("file") };
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("content {number}\n"), "{number}");
        if number != 4 {
            assert_eq!(fs::read_dir(&place).unwrap().count(), 1, "{number}");
        }
    }
    let write = "for i in $(seq 1 2 31); do if [ -d /mnt/$i ]; then echo new $i > /mnt/$i/made; \
        else echo new $i > /mnt/$i; fi || exit 1; done";
    story.boxlite(["exec", "b", "sh", "-c", write]).run().success();
    assert_eq!(fs::read_to_string(at("v5")).unwrap(), "new 5\n");
    assert_eq!(fs::read_to_string(at("real/made")).unwrap(), "new 7\n");
    assert_eq!(fs::metadata(at("v9/made")).unwrap().uid(), fs::metadata(host.path()).unwrap().uid());
    assert!(!at("other/made").exists());
    story.boxlite(["rm", "-f", "b"]).run().success();
}

#[test]
fn a_volume_has_the_owner_of_the_containers_user_and_copies_go_into_it() {
    let story = Story::with_busybox();
    let host = tempfile::tempdir().unwrap();
    let mount = format!("{}:/data", host.path().display());
    story
        .boxlite(["run", "-d", "--name", "b", "-u", "1000:1000", "-v", &mount, "busybox", "sleep", "1000"])
        .run()
        .success();
    story.boxlite(["exec", "b", "sh", "-c", "echo mine > /data/f && stat -c %u:%g /data/f"]).run().success();
    assert_eq!(story.boxlite(["exec", "b", "stat", "-c", "%u:%g", "/data/f"]).run().out(), "1000:1000\n");
    let meta = fs::metadata(host.path().join("f")).unwrap();
    let caller = fs::metadata(host.path()).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (caller.uid(), caller.gid()));
    fs::write(host.path().join("from-host"), "seen\n").unwrap();
    assert_eq!(story.boxlite(["exec", "b", "cat", "/data/from-host"]).run().out(), "seen\n");
    story.boxlite(["cp", "b:/data/f", host.path().join("g").to_str().unwrap()]).run().success();
    story.boxlite(["cp", host.path().join("g").to_str().unwrap(), "b:/data/h"]).run().success();
    assert_eq!(fs::read_to_string(host.path().join("h")).unwrap(), "mine\n");
    story.boxlite(["rm", "-f", "b"]).run().success();
}

#[test]
fn named_volumes_outlive_boxes_and_keep_to_their_quota() {
    let story = Story::with_busybox();
    story.boxlite(["volume", "create", "--size", "1m", "data"]).run().success();
    let script = "echo kept > /data/f; head -c 4m /dev/zero > /data/large; stat -c %s /data/large";
    let told = story.boxlite(["run", "--rm", "-v", "data:/data", "busybox", "sh", "-c", script]).run();
    let size: u64 = told.out().trim().parse().unwrap();
    assert!(size < 1 << 20, "{size}");
    let told =
        story.boxlite(["run", "--rm", "-v", "data:/data:ro", "busybox", "cat", "/data/f"]).run().success();
    assert_eq!(told.out(), "kept\n");
    story
        .boxlite(["create", "--name", "b", "-v", "other:/data", "-v", "/own", "busybox", "true"])
        .run()
        .success();
    let refused = story.boxlite(["volume", "rm", "other"]).run().code(1);
    assert!(refused.err().contains("in use by b"), "{}", refused.err());
    story.boxlite(["update", "--volume-rm", "/data", "-v", "data:/more", "b"]).run().success();
    story.boxlite(["volume", "rm", "other"]).run().success();
    let listed = story.boxlite(["volume", "ls", "--format", "json"]).run().success().json();
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
    story.boxlite(["rm", "-f", "b"]).run().success();
    assert_eq!(story.boxlite(["volume", "ls", "-q"]).run().out(), "data\n", "its own went with it");
    story.boxlite(["volume", "rm", "data"]).run().success();
    for (mount, words) in
        [("/does/not/exist:/x", "no /does/not/exist"), ("data:/", "whole of a box"), ("data:x", "begin with")]
    {
        let told = story.boxlite(["create", "-v", mount, "busybox", "true"]).run().code(125);
        assert!(told.err().contains(words), "{mount}: {}", told.err());
    }
}

#[test]
fn memory_has_the_size_and_mode_that_were_asked_for() {
    let story = Story::with_busybox();
    let script =
        "stat -c %a /t; dd if=/dev/zero of=/t/f bs=1M count=9 2>/dev/null; stat -c %s /t/f; echo x > /r/f";
    let told = story
        .boxlite([
            "run",
            "--rm",
            "--tmpfs",
            "/t:size=4m,mode=700",
            "--mount",
            "type=tmpfs,target=/r,readonly",
        ])
        .args(["busybox", "sh", "-c", script])
        .run();
    assert_eq!(told.out(), "700\n4194304\n");
    assert!(told.err().contains("Read-only file system"), "{}", told.err());
}
