//! Bytes through the streams of an execution: none added, none lost, at any border.
//!
//! The sizes from 1 to 65,537 are two gigabytes in all, so the tests share them.

use std::sync::LazyLock;
use std::time::Duration;

use boxlite::{BoxCommand, BoxOptions, BoxliteRuntime, ExecOutput, ExecStdin, LiteBox};
use boxlite_tests::story::Story;

/// The largest chunk: one more than a message of the portal carries.
const LARGEST: usize = 65_537;
/// How many tests share the sizes.
const SHARES: usize = 6;

fn tell<F: Future<Output = ()>>(story: impl FnOnce() -> F) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(story());
}

async fn sandbox(story: &Story) -> (BoxliteRuntime, LiteBox) {
    let runtime = BoxliteRuntime::new(story.options()).unwrap();
    let sandbox = runtime.create(BoxOptions::image("busybox"), None).await.unwrap();
    (runtime, sandbox)
}

/// An endless sequence that has every byte value in every 256 bytes, and within 16 MiB, after which it comes again, no two
/// windows of a chunk's size the same.
struct Pattern {
    position: u64,
}

/// One period of the sequence and as much again as a window may reach into the next: gigabytes are compared, which byte
/// by byte would take longer than they take through a box.
static SEQUENCE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let bytes = (0..PERIOD + WINDOW).map(|at| {
        let [low, row, high, ..] = at.to_le_bytes();
        low ^ row.wrapping_mul(167) ^ high.wrapping_mul(59)
    });
    bytes.collect()
});
const PERIOD: u64 = 1 << 24;
const WINDOW: u64 = 1 << 20;

impl Pattern {
    fn new() -> Self {
        Self { position: 0 }
    }

    /// The next bytes, a window of them at most.
    fn next(&mut self, count: usize) -> &'static [u8] {
        let start = usize::try_from(self.position % PERIOD).unwrap();
        self.position += count as u64;
        &SEQUENCE[start..start + count]
    }
}

/// Reads what comes and compares it with the pattern; gives how much there was.
async fn compare(mut output: ExecOutput) -> u64 {
    let mut expected = Pattern::new();
    while let Some(chunk) = output.next().await {
        let at = expected.position;
        assert!(&chunk[..] == expected.next(chunk.len()), "a difference behind byte {at}");
    }
    expected.position
}

async fn send(mut stdin: ExecStdin, sizes: impl Iterator<Item = usize>) -> u64 {
    let mut pattern = Pattern::new();
    for size in sizes {
        stdin.send_input(pattern.next(size)).await.unwrap();
    }
    stdin.close().await.unwrap();
    pattern.position
}

fn share(number: usize) {
    tell(|| async {
        let story = Story::with_busybox();
        let (_runtime, sandbox) = sandbox(&story).await;
        let mut cat = sandbox.exec(BoxCommand::new("cat")).await.unwrap();
        let (stdin, stdout, stderr) = (cat.stdin().unwrap(), cat.stdout().unwrap(), cat.stderr().unwrap());
        let sizes = (1..=LARGEST).filter(|size| size % SHARES == number);
        let (sent, received, said) =
            tokio::join!(send(stdin, sizes.clone()), compare(stdout), compare(stderr));
        assert_eq!((sent, received, said), (sizes.sum::<usize>() as u64, sent, 0));
        let result = cat.wait().await.unwrap();
        assert_eq!((result.exit_code, result.output_cut), (0, false));
        sandbox.stop_with(0, Duration::ZERO).await.unwrap();
    });
}

#[test]
fn every_byte_value_passes_in_chunks_of_every_size_first_share() {
    share(0);
}

#[test]
fn every_byte_value_passes_in_chunks_of_every_size_second_share() {
    share(1);
}

#[test]
fn every_byte_value_passes_in_chunks_of_every_size_third_share() {
    share(2);
}

#[test]
fn every_byte_value_passes_in_chunks_of_every_size_fourth_share() {
    share(3);
}

#[test]
fn every_byte_value_passes_in_chunks_of_every_size_fifth_share() {
    share(4);
}

#[test]
fn every_byte_value_passes_in_chunks_of_every_size_last_share() {
    share(5);
}

#[test]
fn a_kill_at_any_moment_leaves_a_beginning_of_what_was_sent() {
    tell(|| async {
        let story = Story::with_busybox();
        let (_runtime, sandbox) = sandbox(&story).await;
        // A number that differs in every run, and is shown when the test fails.
        let mut seed = u64::from(std::process::id()) << 20 | 1;
        println!("seed {seed}");
        let mut random = move |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        for _ in 0..60 {
            let mut cat = sandbox.exec(BoxCommand::new("cat")).await.unwrap();
            let (mut stdin, stdout) = (cat.stdin().unwrap(), cat.stdout().unwrap());
            let chunks: Vec<usize> =
                (0..random(40)).map(|_| usize::try_from(1 + random(LARGEST as u64)).unwrap()).collect();
            let total: u64 = chunks.iter().map(|size| *size as u64).sum();
            let kill_after = random(total + 1);
            let sending = async {
                let mut pattern = Pattern::new();
                for size in chunks {
                    // Once it is killed, nobody takes any more.
                    if stdin.send_input(pattern.next(size)).await.is_err() {
                        break;
                    }
                }
                // The input stays open: without a kill it would not end.
                std::future::pending::<()>().await;
            };
            let receiving = async {
                let mut expected = Pattern::new();
                let mut stdout = stdout;
                let mut killed = kill_after == 0;
                if killed {
                    cat.kill().await.unwrap();
                }
                while let Some(chunk) = stdout.next().await {
                    let at = expected.position;
                    assert!(&chunk[..] == expected.next(chunk.len()), "a difference behind byte {at}");
                    if !killed && expected.position >= kill_after {
                        killed = true;
                        cat.kill().await.unwrap();
                    }
                }
                assert!(killed, "it ended without a kill");
                assert!(expected.position <= total);
            };
            tokio::select! {
                () = sending => unreachable!("it never ends"),
                () = receiving => {}
            }
            for _ in 0..2 {
                let result = cat.wait().await.unwrap();
                assert_eq!((result.exit_code, result.timed_out, result.output_cut), (-9, false, false));
            }
        }
        sandbox.stop_with(0, Duration::ZERO).await.unwrap();
    });
}
