//! Files into a box and out of it, and the files of a box.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use boxlite::{
    BoxCommand, BoxOptions, BoxliteRuntime, CopyOptions, ErrorKind, FileEventKind, FileKind, LiteBox,
    TmpfsSpec, WriteOptions,
};
use boxlite_tests::story::Story;
use boxlite_tests::tree::seen;

fn tell<F: Future<Output = ()>>(story: impl FnOnce() -> F) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(story());
}

async fn sandbox(story: &Story) -> (BoxliteRuntime, LiteBox) {
    let runtime = BoxliteRuntime::new(story.options()).unwrap();
    let mut options = BoxOptions::image("busybox");
    options.tmpfs.push(TmpfsSpec::new("/scratch").size(64 << 20));
    let sandbox = runtime.create(options, None).await.unwrap();
    sandbox.start().await.unwrap();
    (runtime, sandbox)
}

async fn output(sandbox: &LiteBox, script: &str) -> String {
    let mut execution = sandbox.exec(BoxCommand::new("sh").args(["-c", script])).await.unwrap();
    let text = execution.stdout().unwrap().read_to_end(1 << 20).await;
    execution.wait().await.unwrap();
    String::from_utf8(text).unwrap()
}

fn tree() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("d/e/f")).unwrap();
    fs::write(at("d/text"), "content\n").unwrap();
    fs::write(at("d/large"), (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>()).unwrap();
    fs::set_permissions(at("d/text"), fs::Permissions::from_mode(0o741)).unwrap();
    fs::hard_link(at("d/text"), at("d/e/same")).unwrap();
    symlink("../text", at("d/e/link")).unwrap();
    fs::write(at("d/e/with \n odd \u{fc} name"), "").unwrap();
    fs::File::create(at("d/holes")).unwrap().set_len(40 << 20).unwrap();
    fs::set_permissions(at("d/e"), fs::Permissions::from_mode(0o1777)).unwrap();
    folder
}

#[test]
fn a_tree_goes_into_every_place_of_a_box_and_comes_back_as_it_was() {
    tell(|| async {
        let story = Story::with_busybox();
        let (_runtime, sandbox) = sandbox(&story).await;
        let (from, to) = (tree(), tempfile::tempdir().unwrap());
        for (number, place) in
            ["/root/new", "/tmp/new", "/dev/shm/new", "/scratch/new"].into_iter().enumerate()
        {
            let options = CopyOptions::default;
            let copied = sandbox.copy_into(from.path().join("d"), place, options()).await.unwrap();
            assert_eq!(copied.entries, 9, "{place}");
            // The processes of the box see it there.
            assert_eq!(output(&sandbox, &format!("cat {place}/e/link")).await, "content\n", "{place}");
            let back = to.path().join(number.to_string());
            sandbox.copy_out(place, &back, options()).await.unwrap();
            assert_eq!(seen(&back), seen(&from.path().join("d")), "{place}");
            assert!(fs::metadata(back.join("holes")).unwrap().blocks() < 1000, "holes stay holes");
        }
        let error = sandbox
            .copy_into(from.path().join("d"), "/none/there/", CopyOptions::default())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.report());
        let error = sandbox.copy_out("/none", to.path(), CopyOptions::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.report());
        sandbox.stop_with(0, Duration::ZERO).await.unwrap();
    });
}

#[test]
fn copies_have_the_owner_that_was_asked_for() {
    tell(|| async {
        let story = Story::with_busybox();
        let (_runtime, sandbox) = sandbox(&story).await;
        let from = tree();
        let mut options = CopyOptions::default();
        sandbox.copy_into(from.path().join("d/text"), "/root/a", options.clone()).await.unwrap();
        options.owner = Some("12:34".into());
        sandbox.copy_into(from.path().join("d/text"), "/root/b", options.clone()).await.unwrap();
        assert_eq!(output(&sandbox, "stat -c '%u:%g %a' /root/a /root/b").await, "0:0 741\n12:34 741\n");
        options.overwrite = false;
        let error = sandbox.copy_into(from.path().join("d/text"), "/root/b", options).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{}", error.report());
        // What has more rights in the box has none of them here.
        output(&sandbox, "cp /bin/busybox /root/s; chmod 6755 /root/s; mknod /root/null c 1 3").await;
        let to = tempfile::tempdir().unwrap();
        let copied = sandbox.copy_out("/root", to.path().join("r"), CopyOptions::default()).await.unwrap();
        assert_eq!(copied.skipped_devices, 1);
        assert_eq!(fs::metadata(to.path().join("r/s")).unwrap().mode() & 0o7777, 0o755);
        sandbox.stop_with(0, Duration::ZERO).await.unwrap();
    });
}

#[test]
fn a_copy_that_is_cut_leaves_no_half_file() {
    tell(|| async {
        let story = Story::with_busybox();
        let (_runtime, sandbox) = sandbox(&story).await;
        let from = tempfile::tempdir().unwrap();
        fs::write(from.path().join("large"), vec![7; 200 << 20]).unwrap();
        let (begun, mut waiting) = tokio::sync::mpsc::channel(1);
        let progress = move |now: boxlite::CopyProgress| {
            if now.bytes > 4 << 20 {
                // The first is enough.
                begun.try_send(()).unwrap_or_default();
            }
        };
        tokio::select! {
            done = sandbox.copy_into_with(from.path().join("large"), "/root/large", CopyOptions::default(), progress) => {
                panic!("it was too quick: {done:?}");
            }
            _ = waiting.recv() => {}
        }
        let mut left = String::from("first look");
        for _ in 0..200 {
            left = output(&sandbox, "ls -A /root").await;
            if left.is_empty() {
                break;
            }
        }
        assert_eq!(left, "", "the draft goes as soon as the agent sees the end of the connection");
        sandbox.stop_with(0, Duration::ZERO).await.unwrap();
    });
}

#[test]
fn the_command_line_copies_files_and_archives() {
    let story = Story::with_busybox();
    let from = tree();
    let at = |name: &str| from.path().join(name).to_str().unwrap().to_owned();
    story.boxlite(["run", "-d", "--name", "b", "busybox", "sleep", "1000"]).run().success();
    let told = story.boxlite(["cp", &at("d"), "b:/tmp"]).run().success();
    assert!(told.err().contains("copied 9 files"), "{}", told.err());
    story.boxlite(["cp", "-q", &at("d/text"), "b:/tmp/other"]).run().success();
    assert_eq!(
        story.boxlite(["exec", "b", "cat", "/tmp/d/text", "/tmp/other"]).run().out(),
        "content\ncontent\n"
    );
    story.boxlite(["cp", "b:/tmp/d/.", &at("back")]).run().success();
    assert_eq!(seen(&from.path().join("back")), seen(&from.path().join("d")));
    let archive = story.boxlite(["cp", "b:/tmp/d", "-"]).run().success();
    let mut names: Vec<String> = tar::Archive::new(archive.stdout.as_slice())
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    names.sort();
    assert_eq!(names[..2], ["d/", "d/e/"]);
    story.boxlite(["exec", "b", "mkdir", "/tmp/again"]).run().success();
    story.boxlite(["cp", "-", "b:/tmp/again"]).input(archive.stdout).run().success();
    assert_eq!(story.boxlite(["exec", "b", "cat", "/tmp/again/d/text"]).run().out(), "content\n");
    for (arguments, words) in [
        (["cp", "b:/tmp/none", "/tmp/x"], "No such file"),
        (["cp", "/does/not/exist", "b:/tmp"], "No such file"),
        (["cp", "/tmp/a", "/tmp/b"], "must be in a box"),
        (["cp", "none:/tmp", "/tmp"], "no box"),
        (["cp", "-", "b:/none"], "No such file"),
    ] {
        let told = story.boxlite(arguments).input("").run().code(1);
        assert!(told.err().contains(words), "{arguments:?}: {}", told.err());
    }
    let told = story.boxlite(["cp", "-", "b:/tmp"]).input(vec![b'x'; 2000]).run().code(1);
    assert!(told.err().contains("no tar stream"), "{}", told.err());
    story.boxlite(["rm", "-f", "b"]).run().success();
}

#[test]
fn files_of_a_box_are_read_written_and_looked_at() {
    tell(|| async {
        let story = Story::with_busybox();
        let (_runtime, sandbox) = sandbox(&story).await;
        let files = sandbox.files();
        files.write("/tmp/f", "first").await.unwrap();
        assert_eq!(files.read("/tmp/f", 100).await.unwrap(), b"first");
        let append = {
            let mut o = WriteOptions::default();
            o.append = true;
            o
        };
        files.write_with("/tmp/f", " more", append).await.unwrap();
        assert_eq!(files.read_range("/tmp/f", 3, 4).await.unwrap(), b"st m");
        assert_eq!(output(&sandbox, "cat /tmp/f").await, "first more");
        assert_eq!(files.read("/tmp/f", 3).await.unwrap_err().kind(), ErrorKind::ResourceExhausted);
        let keep = {
            let mut o = WriteOptions::default();
            o.keep_existing = true;
            o
        };
        assert_eq!(files.write_with("/tmp/f", "x", keep).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
        let large: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_le_bytes).collect();
        files.write("/scratch/large", large.clone()).await.unwrap();
        assert!(files.read("/scratch/large", large.len()).await.unwrap() == large);
        // A file that is mounted cannot be replaced, and is written.
        files.write("/etc/hosts", "1.2.3.4 x\n").await.unwrap();
        assert_eq!(output(&sandbox, "cat /etc/hosts").await, "1.2.3.4 x\n");

        let info = files.stat("/tmp/f").await.unwrap();
        assert_eq!((info.kind, info.size, info.mode, info.uid), (FileKind::File, 10, 0o644, 0));
        output(&sandbox, "ln -s f /tmp/l; mkfifo /tmp/p").await;
        assert_eq!(files.stat("/tmp/l").await.unwrap().link_target, b"f");
        assert_eq!(files.stat_followed("/tmp/l").await.unwrap().kind, FileKind::File);
        assert_eq!(files.read("/tmp/p", 1).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
        files.make_folders("/tmp/a/b/c").await.unwrap();
        assert_eq!(files.make_folder("/tmp/a").await.unwrap_err().kind(), ErrorKind::AlreadyExists);
        let names: Vec<Vec<u8>> =
            files.list("/tmp", 100).await.unwrap().into_iter().map(|info| info.name).collect();
        assert_eq!(names, [&b"a"[..], b"f", b"l", b"p"]);
        files.rename("/tmp/f", "/tmp/a/f").await.unwrap();
        assert!(!files.exists("/tmp/f").await.unwrap());
        assert_eq!(files.remove("/tmp/a").await.unwrap_err().kind(), ErrorKind::InvalidState);
        files.remove_all("/tmp/a").await.unwrap();
        assert_eq!(files.stat("/tmp/a").await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(files.list("/tmp/none", 1).await.unwrap_err().kind(), ErrorKind::NotFound);
        sandbox.stop_with(0, Duration::ZERO).await.unwrap();
    });
}

#[test]
fn changes_in_a_box_are_told() {
    tell(|| async {
        let story = Story::with_busybox();
        let (_runtime, sandbox) = sandbox(&story).await;
        let mut watch = sandbox.files().watch("/tmp", true).await.unwrap();
        output(&sandbox, "mkdir /tmp/d; echo x > /tmp/d/f; mv /tmp/d/f /tmp/g; rm /tmp/g").await;
        let mut told = Vec::new();
        while told.last() != Some(&(FileEventKind::Removed, b"g".to_vec())) {
            let event = watch.next().await.unwrap().unwrap();
            told.push((event.kind, event.path));
        }
        for expected in [
            (FileEventKind::Created, &b"d"[..]),
            (FileEventKind::Created, b"d/f"),
            (FileEventKind::MovedTo, b"g"),
        ] {
            assert!(
                told.iter().any(|(kind, path)| (*kind, path.as_slice()) == expected),
                "{expected:?} in {told:?}"
            );
        }
        let error = sandbox.files().watch("/none", false).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        drop(watch);
        sandbox.stop_with(0, Duration::ZERO).await.unwrap();
    });
}
