//! Much data through a box, unchanged and in bounded memory.

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use boxlite_tests::story::Story;
use sha2::{Digest, Sha256};

/// MiB that go through; nested emulation gets fewer, by this variable.
fn mebibytes() -> usize {
    std::env::var("BOXLITE_TEST_BULK_MIB").map_or(256, |text| text.parse().unwrap())
}

/// Bytes that do not repeat, so that a lost or doubled chunk is seen.
fn fill(block: &mut [u8], number: usize) {
    let mut state = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in block.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
    }
}

/// The most memory that a process has had, in KiB.
fn peak_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

#[test]
fn what_goes_through_cat_comes_back_unchanged_in_bounded_memory() {
    let story = Story::with_busybox();
    let mut run = story.boxlite(["run", "--rm", "-i", "busybox", "cat"]).start_piped();
    let (mut stdin, mut stdout) = (run.child.stdin.take().unwrap(), run.child.stdout.take().unwrap());
    let blocks = mebibytes();
    let writer = thread::spawn(move || {
        let mut sum = Sha256::new();
        let mut block = vec![0; 1 << 20];
        for number in 0..blocks {
            fill(&mut block, number);
            sum.update(&block);
            stdin.write_all(&block).unwrap();
        }
        sum.finalize()
    });
    let (mut sum, mut count, mut peak, mut chunk) = (Sha256::new(), 0, 0, vec![0; 1 << 16]);
    let mut looked = Instant::now();
    loop {
        let length = stdout.read(&mut chunk).unwrap();
        if length == 0 {
            break;
        }
        sum.update(&chunk[..length]);
        count += length;
        if looked.elapsed() > Duration::from_millis(200) {
            looked = Instant::now();
            peak = story
                .processes()
                .iter()
                .filter(|(_, line)| !line.contains("qemu"))
                .map(|(pid, _)| peak_kib(*pid))
                .chain([peak_kib(run.pid())])
                .fold(peak, u64::max);
        }
    }
    assert!(run.wait().success());
    assert_eq!(count, blocks << 20);
    assert_eq!(sum.finalize(), writer.join().unwrap());
    println!("peak memory of one process: {peak} KiB");
    // The VMM role of libkrun has the guest's memory in it: only helpers are bounded there.
    if std::env::var("BOXLITE_ENGINE").as_deref() != Ok("krun") {
        assert!(peak < 100 << 10, "{peak} KiB");
    }
}

#[test]
fn a_reader_that_does_not_read_stops_the_box_and_not_the_host() {
    let story = Story::with_busybox();
    let script = "head -c 64m /dev/zero; echo done >&2";
    let mut run = story.boxlite(["run", "--rm", "busybox", "sh", "-c", script]).start_piped();
    let (mut stdout, mut stderr) = (run.child.stdout.take().unwrap(), run.child.stderr.take().unwrap());
    let mut first = vec![0; 1 << 16];
    stdout.read_exact(&mut first).unwrap();
    // The command cannot be done while most of its output has nowhere to be.
    let done = thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).unwrap();
        text
    });
    let before = Instant::now();
    while before.elapsed() < Duration::from_secs(3) {
        assert!(!done.is_finished(), "64 MiB were taken without a reader");
        thread::yield_now();
        thread::park_timeout(Duration::from_millis(50));
    }
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    assert_eq!(first.len() + rest.len(), 64 << 20);
    assert_eq!(done.join().unwrap(), "done\n");
    assert!(run.wait().success());
}
