//! The command line on a real terminal: a pseudo terminal in the hands of the test.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use boxlite_tests::story::{PATIENCE, Story, eventually, program};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};

/// How often the screen is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What a person sees and types.
struct Screen {
    keyboard: File,
    terminal: OwnedFd,
    seen: Arc<Mutex<String>>,
}

impl Screen {
    fn of(rows: u16, columns: u16) -> Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None).unwrap();
        let seen = Arc::new(Mutex::new(String::new()));
        let mut screen = File::from(master.try_clone().unwrap());
        let shown = Arc::clone(&seen);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Ends with the terminal.
            while let Ok(length @ 1..) = screen.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
                shown.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
            }
        });
        Self { keyboard: master.into(), terminal: slave, seen }
    }

    fn run(&self, story: &Story, args: &[&str]) -> Child {
        let end = || Stdio::from(self.terminal.try_clone().unwrap());
        let mut command = Command::new(program("BOXLITE_CLI"));
        command.args(args).env("BOXLITE_HOME", story.home());
        command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap()
    }

    fn type_in(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    /// Waits until the screen has shown this since it was asked last.
    fn shows(&self, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = seen.find(what) {
                seen.drain(..at + what.len());
                return;
            }
            assert!(Instant::now() < deadline, "the screen does not show {what:?}: {seen:?}");
            drop(seen);
            thread::sleep(LOOK);
        }
    }

    fn settings(&self) -> Termios {
        tcgetattr(self.terminal.as_fd()).unwrap()
    }

    fn is_raw(&self) -> bool {
        !self.settings().local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    }
}

fn end(mut child: Child) -> Option<i32> {
    let mut code = None;
    eventually("the command ends", PATIENCE, || {
        code = child.try_wait().unwrap();
        code.is_some()
    });
    code.unwrap().code()
}

#[test]
fn a_shell_is_left_with_the_detach_keys_and_found_again() {
    let story = Story::with_busybox();
    story.boxlite(["run", "-d", "-i", "-t", "--name", "shell", "busybox", "sh"]).run().success();
    let mut screen = Screen::of(33, 101);
    let before = screen.settings();
    let attach = screen.run(&story, &["attach", "shell"]);
    // The shell has shown its prompt before anybody came, and it was kept.
    screen.shows("# ");
    assert!(screen.is_raw());
    screen.type_in(b"stty size; echo $((6 * 7))\r");
    screen.shows("33 101");
    screen.shows("42");
    screen.type_in(b"\x10\x11");
    assert_eq!(end(attach), Some(0));
    screen.shows("detached");
    assert_eq!(screen.settings(), before, "the terminal is as it was");

    let again = screen.run(&story, &["attach", "shell"]);
    eventually("the terminal is handed over", PATIENCE, || screen.is_raw());
    // Ctrl-C is for what runs in the box, and does not end the command that passes it on.
    screen.type_in(b"sh -c 'echo waiting; sleep 1000'\r");
    screen.shows("\nwaiting");
    screen.type_in(b"\x03");
    screen.type_in(b"echo still $((2 * 4))\r");
    screen.shows("still 8");
    screen.type_in(b"exit 5\r");
    assert_eq!(end(again), Some(5));
    assert_eq!(screen.settings(), before, "the terminal is as it was");
}

#[test]
fn a_box_that_was_run_in_the_foreground_goes_on_when_its_user_leaves_it() {
    let story = Story::with_busybox();
    let mut screen = Screen::of(24, 80);
    let before = screen.settings();
    let run = screen.run(&story, &["run", "--rm", "-it", "--name", "shell", "busybox", "sh"]);
    screen.shows("# ");
    screen.type_in(b"here=$((6 * 7))\r\x10\x11");
    assert_eq!(end(run), Some(0), "the prompt comes back");
    screen.shows("detached");
    assert_eq!(screen.settings(), before, "the terminal is as it was");

    let attach = screen.run(&story, &["attach", "shell"]);
    eventually("the terminal is handed over", PATIENCE, || screen.is_raw());
    screen.type_in(b"echo still $here; exit 4\r");
    screen.shows("still 42");
    assert_eq!(end(attach), Some(4));
    eventually("the box removes itself", PATIENCE, || story.boxes().is_empty());
}

#[test]
fn a_command_on_a_terminal_ends_with_its_code_and_gives_the_terminal_back() {
    let story = Story::with_busybox();
    let mut screen = Screen::of(24, 80);
    let before = screen.settings();
    let run = screen.run(
        &story,
        &["run", "--rm", "-it", "busybox", "sh", "-c", "tty; read line; echo got $line; exit 3"],
    );
    screen.shows("/dev/");
    screen.type_in(b"words\r");
    screen.shows("got words");
    assert_eq!(end(run), Some(3));
    assert_eq!(screen.settings(), before, "the terminal is as it was");
    // A signal takes the command away, and not the settings of the terminal.
    let script = "echo up; exec sleep 1000";
    let mut run = screen.run(&story, &["run", "--rm", "-it", "busybox", "sh", "-c", script]);
    screen.shows("up");
    let pid = i32::try_from(run.id()).unwrap();
    // The command, which takes no notice of this signal, is killed when it has been passed on often enough.
    eventually("the command ends", PATIENCE, || {
        boxlite_tests::story::kill(pid, 15);
        run.try_wait().unwrap().is_some()
    });
    assert_eq!(screen.settings(), before, "the terminal is as it was");
}
