//! The library, as a program uses it.

use std::time::Duration;

use boxlite::{BoxCommand, BoxOptions, BoxStatus, BoxliteRuntime, ErrorKind};
use boxlite_tests::story::Story;

fn tell<F: Future<Output = ()>>(story: impl FnOnce() -> F) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(story());
}

fn runtime(story: &Story) -> BoxliteRuntime {
    BoxliteRuntime::new(story.options()).unwrap()
}

#[test]
fn a_box_is_created_used_stopped_and_started_with_its_disk() {
    tell(|| async {
        let story = Story::with_busybox();
        let runtime = runtime(&story);
        let mut options = BoxOptions::image("busybox");
        options.auto_remove = false;
        let sandbox = runtime.create(options, Some("kept".into())).await.unwrap();
        assert_eq!(sandbox.info().unwrap().status, BoxStatus::Configured);
        sandbox.start().await.unwrap();
        let info = sandbox.info().unwrap();
        assert_eq!((info.status, info.exit_code), (BoxStatus::Running, None));
        let write = sandbox.exec(BoxCommand::new("sh").args(["-c", "echo kept > /root/file"])).await.unwrap();
        assert_eq!(write.wait().await.unwrap().exit_code, 0);
        sandbox.stop().await.unwrap();
        assert_eq!(sandbox.info().unwrap().status, BoxStatus::Stopped);
        let error = sandbox.exec(BoxCommand::new("true")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stopped, "{}", error.report());

        sandbox.start().await.unwrap();
        let mut read = sandbox.exec(BoxCommand::new("cat").arg("/root/file")).await.unwrap();
        assert_eq!(read.stdout().unwrap().read_to_end(100).await, b"kept\n");
        assert_eq!(read.wait().await.unwrap().exit_code, 0);
        let error = runtime.remove("kept", false).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidState);
        runtime.remove("kept", true).await.unwrap();
        assert!(!runtime.exists("kept").await.unwrap());
        drop((sandbox, runtime));
    });
}

#[test]
fn an_exec_starts_a_box_that_was_only_created() {
    tell(|| async {
        let story = Story::with_busybox();
        let runtime = runtime(&story);
        let sandbox = runtime.create(BoxOptions::image("busybox"), None).await.unwrap();
        let mut echo = sandbox.exec(BoxCommand::new("echo").arg("hello")).await.unwrap();
        assert_eq!(echo.stdout().unwrap().read_to_end(100).await, b"hello\n");
        assert_eq!(echo.wait().await.unwrap().exit_code, 0);
        // Any number of waits, also after the end.
        assert_eq!(echo.wait().await.unwrap().exit_code, 0);
        runtime.shutdown(Some(1)).await.unwrap();
        assert!(runtime.list_info().await.unwrap().is_empty());
    });
}

#[test]
fn executions_run_side_by_side_and_are_killed_apart() {
    tell(|| async {
        let story = Story::with_busybox();
        let runtime = runtime(&story);
        let sandbox = runtime.create(BoxOptions::image("busybox"), None).await.unwrap();
        let sleeper = sandbox.exec(BoxCommand::new("sleep").arg("1000")).await.unwrap();
        let mut cat = sandbox.exec(BoxCommand::new("cat")).await.unwrap();
        let mut stdin = cat.stdin().unwrap();
        stdin.send_input("one ").await.unwrap();
        stdin.send_input("two").await.unwrap();
        // Closing the input is the end of the input, and not of the output.
        stdin.close().await.unwrap();
        assert_eq!(cat.stdout().unwrap().read_to_end(100).await, b"one two");
        assert_eq!(cat.wait().await.unwrap().exit_code, 0);
        sleeper.kill().await.unwrap();
        assert_eq!(sleeper.wait().await.unwrap().exit_code, -9);
        let slow =
            BoxCommand::new("sh").args(["-c", "sleep 1000 & wait"]).timeout(Duration::from_millis(500));
        let result = sandbox.exec(slow).await.unwrap().wait().await.unwrap();
        assert!(result.timed_out);
        // The first process of this box is a shell that reaps nobody, so the dead stay visible.
        let mut left = sandbox
            .exec(BoxCommand::new("sh").args(["-c", "ps -o stat,args | grep -v '^Z' | grep -c '[s]leep'"]))
            .await
            .unwrap();
        assert_eq!(left.stdout().unwrap().read_to_end(100).await, b"0\n");
        let many: Vec<_> = (0..20)
            .map(|n: i32| {
                let sandbox = sandbox.clone();
                async move {
                    let command = BoxCommand::new("sh").args(["-c".to_owned(), format!("exit {n}")]);
                    sandbox.exec(command).await.unwrap().wait().await.unwrap().exit_code
                }
            })
            .collect();
        let codes = futures_util::future::join_all(many).await;
        assert_eq!(codes, (0..20).collect::<Vec<_>>());
        sandbox.stop_with(0, Duration::ZERO).await.unwrap();
    });
}

#[test]
fn one_stream_does_not_wait_for_the_reader_of_the_other() {
    tell(|| async {
        let story = Story::with_busybox();
        let runtime = runtime(&story);
        let sandbox = runtime.create(BoxOptions::image("busybox"), None).await.unwrap();
        let script = "head -c 8m /dev/zero >&2 & head -c 8m /dev/zero; wait";
        let mut both = sandbox.exec(BoxCommand::new("sh").args(["-c", script])).await.unwrap();
        let (mut stdout, mut stderr) = (both.stdout().unwrap(), both.stderr().unwrap());
        let mut count = 0;
        while count < 8 << 20 {
            count += stdout.next().await.unwrap().len();
        }
        // The shell itself keeps its output open until the other half is done.
        assert_eq!(stderr.read_to_end(16 << 20).await.len(), 8 << 20);
        assert_eq!((count, stdout.next().await), (8 << 20, None));
        assert_eq!(both.wait().await.unwrap().exit_code, 0);
        sandbox.stop_with(0, Duration::ZERO).await.unwrap();
    });
}

#[test]
fn a_runtime_that_is_dropped_takes_its_boxes_along() {
    tell(|| async {
        let story = Story::with_busybox();
        let runtime = runtime(&story);
        let sandbox = runtime.create(BoxOptions::image("busybox"), None).await.unwrap();
        sandbox.start().await.unwrap();
        let unused = runtime.create(BoxOptions::image("busybox"), None).await.unwrap();
        drop((sandbox, unused, runtime));
        // The story's own end proves that nothing is left.
    });
}

#[test]
fn a_detached_box_outlives_its_runtime_and_is_found_by_the_next() {
    tell(|| async {
        let story = Story::with_busybox();
        let first = runtime(&story);
        let mut options = BoxOptions::image("busybox");
        options.detach = true;
        first.create(options, Some("daemon".into())).await.unwrap().start().await.unwrap();
        drop(first);
        let second = runtime(&story);
        let found = second.get("daemon").await.unwrap().unwrap();
        assert_eq!(found.info().unwrap().status, BoxStatus::Running);
        let mut echo = found.exec(BoxCommand::new("echo").arg("found")).await.unwrap();
        assert_eq!(echo.stdout().unwrap().read_to_end(100).await, b"found\n");
        found.stop_with(0, Duration::ZERO).await.unwrap();
    });
}

#[test]
fn get_or_create_finds_what_is_there() {
    tell(|| async {
        let story = Story::with_busybox();
        let runtime = runtime(&story);
        let options = BoxOptions::image("busybox");
        let (first, new) = runtime.get_or_create(options.clone(), Some("one".into())).await.unwrap();
        assert!(new);
        let (second, new) = runtime.get_or_create(options.clone(), Some("one".into())).await.unwrap();
        assert!(!new);
        assert_eq!(first.id(), second.id());
        let error = runtime.create(options, Some("one".into())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        runtime.remove("one", false).await.unwrap();
    });
}

#[test]
fn several_first_commands_at_once_start_the_box_once() {
    tell(|| async {
        let story = Story::with_busybox();
        let runtime = runtime(&story);
        let sandbox = runtime.create(BoxOptions::image("busybox"), None).await.unwrap();
        let boot_ids = (0..4).map(|_| {
            // Each through a handle of its own.
            let (runtime, id) = (runtime.clone(), sandbox.id().to_owned());
            async move {
                let handle = runtime.get(&id).await.unwrap().unwrap();
                let cat = BoxCommand::new("cat").arg("/proc/sys/kernel/random/boot_id");
                let mut cat = handle.exec(cat).await.unwrap();
                cat.stdout().unwrap().read_to_end(100).await
            }
        });
        let boot_ids = futures_util::future::join_all(boot_ids).await;
        assert!(boot_ids.iter().all(|id| id.len() > 30 && *id == boot_ids[0]), "{boot_ids:?}");
        assert_eq!(sandbox.info().unwrap().status, BoxStatus::Running);
        sandbox.stop_with(0, Duration::ZERO).await.unwrap();
    });
}

#[test]
fn a_box_that_another_runtime_starts_again_is_seen_as_it_is() {
    tell(|| async {
        let story = Story::with_busybox();
        let (first, second) = (runtime(&story), runtime(&story));
        let mut options = BoxOptions::image("busybox");
        options.auto_remove = false;
        let ours = first.create(options, Some("shared".into())).await.unwrap();
        ours.start().await.unwrap();
        ours.stop_with(0, Duration::ZERO).await.unwrap();
        let theirs = second.get("shared").await.unwrap().unwrap();
        theirs.start().await.unwrap();
        assert_eq!(ours.info().unwrap().status, BoxStatus::Running);
        let mut echo = ours.exec(BoxCommand::new("echo").arg("again")).await.unwrap();
        assert_eq!(echo.stdout().unwrap().read_to_end(100).await, b"again\n");
        first.remove("shared", true).await.unwrap();
        assert!(!second.exists("shared").await.unwrap());
    });
}

#[tokio::test]
async fn a_running_box_is_released_by_the_program_that_started_it_and_by_no_other() {
    let story = Story::with_busybox();
    let (ours, theirs) =
        (BoxliteRuntime::new(story.options()).unwrap(), BoxliteRuntime::new(story.options()).unwrap());
    let options = || {
        let mut options = BoxOptions::image("busybox");
        options.auto_remove = false;
        options
    };
    let sandbox = ours.create(options(), None).await.unwrap();
    assert_eq!(sandbox.release().await.unwrap_err().kind(), ErrorKind::InvalidState, "it was not started");
    sandbox.start().await.unwrap();
    let same = theirs.get(sandbox.id()).await.unwrap().unwrap();
    assert_eq!(same.release().await.unwrap_err().kind(), ErrorKind::InvalidState);
    assert!(!sandbox.info().unwrap().detach);

    sandbox.release().await.unwrap();
    sandbox.release().await.unwrap();
    assert!(same.info().unwrap().detach);
    drop((sandbox, ours));
    // A box that ends with its program ends at once, and takes this with it.
    let lasting = same.exec(BoxCommand::new("sleep").arg("3")).await.unwrap();
    assert_eq!(lasting.wait().await.unwrap().exit_code, 0);
    same.stop().await.unwrap();
    theirs.remove(same.id(), true).await.unwrap();

    let ended = theirs.create(options(), None).await.unwrap();
    ended.start().await.unwrap();
    ended.stop().await.unwrap();
    assert_eq!(ended.release().await.unwrap_err().kind(), ErrorKind::Stopped);
    theirs.remove(ended.id(), true).await.unwrap();
}
