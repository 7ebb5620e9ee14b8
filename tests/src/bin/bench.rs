//! `make bench`: what a box costs, beside a raw floor that is measured in the same run.
//!
//! The floor is QEMU with the same kernel and a bare init: see `tests/raw-guest`. Measurements of the two alternate, so
//! that a slow minute of the machine slows both down. Every line ends with the ratio and the bound that it has to keep.
//!
//! Names of parts as arguments leave the other parts out: `boot`, `lives`, `box`.

#![allow(clippy::print_stdout, reason = "a table is what this program is for")]

use std::fs;
use std::io::{Read, Write};
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use boxlite::{BoxCommand, BoxOptions, BoxliteRuntime, LiteBox};
use boxlite_raw_guest::Command;
use boxlite_tests::raw::RawGuest;
use boxlite_tests::story::{Story, program};
use boxlite_tests::table::{Table, median, ms, percentile};

const BOOTS: usize = 7;
const EXECS: usize = 200;
const STREAM: u64 = 128 << 20;
const STARTS: usize = 20;
const STOPPED: usize = 500;
const PAUSES: usize = 10;
/// How long an idle box is watched, and how long it may take to become one.
const IDLE: Duration = Duration::from_secs(20);
const SETTLE: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let story = Story::with_busybox();
    // The first box makes what all boxes share: kernel, boot disk, empty file system.
    let first = Instant::now();
    cold_run(&story)?;
    println!("first run in a new home (image loaded): {}", millis(first.elapsed()));
    let mut table = Table::default();
    let parts: Vec<String> = std::env::args().skip(1).collect();
    let asked = |part: &str| parts.is_empty() || parts.iter().any(|name| name == part);
    ensure!(
        parts.iter().all(|part| ["boot", "lives", "box"].contains(&part.as_str())),
        "parts are boot, lives and box"
    );
    if asked("boot") {
        start_up(&story, &mut table)?;
        boot(&story, &mut table)?;
    }
    if asked("lives") {
        lives(&story, &mut table)?;
    }
    if asked("box") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(running_box(&story, &mut table))?;
    }
    table.print();
    ensure!(table.broken == 0, "{} bounds do not hold", table.broken);
    Ok(())
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", ms(time))
}

fn cold_run(story: &Story) -> Result<Duration> {
    let start = Instant::now();
    let status = Process::new(program("BOXLITE_CLI"))
        .args(["run", "--rm", "busybox", "true"])
        .env("BOXLITE_HOME", story.home())
        .stdin(Stdio::null())
        .status()?;
    ensure!(status.success(), "run: {status}");
    Ok(start.elapsed())
}

fn start_up(story: &Story, table: &mut Table) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let start = Instant::now();
        let output = Process::new(program("BOXLITE_CLI"))
            .args(["ps", "-a"])
            .env("BOXLITE_HOME", story.home())
            .output()?;
        ensure!(output.status.success(), "ps: {}", output.status);
        times.push(ms(start.elapsed()));
    }
    table.limit("start of library and command line (ps)", median(times), None, "ms", 30.0);
    Ok(())
}

fn boot(story: &Story, table: &mut Table) -> Result<()> {
    let (mut floors, mut runs) = (Vec::new(), Vec::new());
    for _ in 0..BOOTS {
        let guest = RawGuest::boot(1);
        floors.push(ms(guest.boot));
        guest.power_off();
        runs.push(ms(cold_run(story)?));
    }
    table.ratio("run --rm busybox true, start to exit", median(runs), median(floors), "ms", 1.6, true);
    Ok(())
}

/// What boxes cost that outlive their commands: one that is started again, one that idles, many that have stopped.
fn lives(story: &Story, table: &mut Table) -> Result<()> {
    let cli = |args: &[&str]| -> Result<Duration> {
        let start = Instant::now();
        let output = Process::new(program("BOXLITE_CLI"))
            .args(args)
            .env("BOXLITE_HOME", story.home())
            .stdin(Stdio::null())
            .output()?;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(start.elapsed())
    };
    cli(&["create", "--name", "kept", "busybox", "sleep", "100000"])?;
    let (mut starts, mut runs) = (Vec::new(), Vec::new());
    let mut start = || {
        starts.push(ms(cli(&["start", "kept"])?));
        cli(&["kill", "kept"])?;
        cli(&["wait", "kept"])
    };
    let mut run = || {
        runs.push(ms(cli(&["run", "-d", "--name", "new", "busybox", "sleep", "100000"])?));
        cli(&["rm", "-f", "new"])
    };
    // In turns each is the first: what the other leaves to the host's caches helps both alike.
    for round in 0..BOOTS {
        if round.is_multiple_of(2) {
            start()?;
            run()?;
        } else {
            run()?;
            start()?;
        }
    }
    table.ratio("start of a stopped box, to run -d", median(starts), median(runs), "ms", 1.05, true);

    cli(&["start", "kept"])?;
    let (mut monitor, mut machine) = (None, Vec::new());
    for (pid, line) in story.processes() {
        if line.ends_with("boxlite-shim monitor ") {
            monitor = Some(pid);
        } else {
            machine.push(pid);
        }
    }
    let monitor = monitor.context("a monitor")?;
    // What starting leaves to do is done by then.
    std::thread::sleep(SETTLE);
    let before = (cpu(&[monitor])?, cpu(&machine)?);
    std::thread::sleep(IDLE);
    let after = (cpu(&[monitor])?, cpu(&machine)?);
    let percent = |used: Duration| used.as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    let (ours, theirs) = (percent(after.0 - before.0), percent(after.1 - before.1));
    table.limit("an idle box: CPU of its monitor", ours, None, "%", 0.5);
    table.limit("an idle box: CPU of monitor and machine", ours + theirs, None, "%", 0.5);
    table.limit("private memory of a monitor", private_mib(monitor)?, None, "MiB", 6.0);
    let pauses = (0..PAUSES).map(|_| {
        let pause = cli(&["pause", "kept"])?;
        cli(&["unpause", "kept"])?;
        Ok(ms(pause))
    });
    table.note("pause of a box", format!("{:.1} ms", median(pauses.collect::<Result<_>>()?)), String::new());
    cli(&["rm", "-f", "kept"])?;

    let mut creations = Vec::new();
    for _ in 0..STOPPED {
        creations.push(ms(cli(&["create", "busybox", "true"])?));
    }
    table.limit("create of a box, as a command", median(creations), None, "ms", 15.0);
    let listings: Result<Vec<f64>> = (0..STARTS).map(|_| Ok(ms(cli(&["ps", "-a"])?))).collect();
    table.limit("ps -a with 500 stopped boxes", median(listings?), None, "ms", 50.0);
    cli(&["system", "prune", "-f"])?;
    Ok(())
}

/// CPU time that processes have used.
fn cpu(pids: &[i32]) -> Result<Duration> {
    let mut ticks = 0;
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(')').context("a name")?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        ticks += fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    }
    Ok(Duration::from_millis(ticks * 10))
}

async fn running_box(story: &Story, table: &mut Table) -> Result<()> {
    let opening = Instant::now();
    let runtime = BoxliteRuntime::new(story.options())?;
    table.note("  phase: library", millis(opening.elapsed()), String::new());
    let creating = Instant::now();
    let sandbox = runtime.create(BoxOptions::image("busybox"), None).await?;
    table.note("  phase: image and disk (create)", millis(creating.elapsed()), String::new());
    second_box(&runtime, table).await?;
    let starting = Instant::now();
    sandbox.start().await?;
    let started = starting.elapsed();
    for step in sandbox.start_steps() {
        table.note(&format!("  phase: {}", step.name), millis(step.took), String::new());
    }
    table.note("  start, all phases", millis(started), String::new());
    let first = Instant::now();
    let mut echo = sandbox.exec(BoxCommand::new("echo").arg("x")).await?;
    let byte = echo.stdout().context("stdout")?.next().await;
    ensure!(byte.is_some(), "no output");
    table.note("  phase: first byte of a first exec", millis(first.elapsed()), String::new());
    echo.wait().await?;

    let guest = RawGuest::boot(1);
    memory(story, &guest, table)?;
    exec_round_trip(&sandbox, &guest, table).await?;
    throughput(&sandbox, &guest, table).await?;
    guest.power_off();
    let stopping = Instant::now();
    sandbox.stop_with(0, Duration::ZERO).await?;
    table.note("  phase: teardown", millis(stopping.elapsed()), String::new());
    Ok(())
}

/// A box of an image that another box has: its disks are a reference to one and a small file of its own.
async fn second_box(runtime: &BoxliteRuntime, table: &mut Table) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let creating = Instant::now();
        let sandbox = runtime.create(BoxOptions::image("busybox"), None).await?;
        times.push(ms(creating.elapsed()));
        runtime.remove(sandbox.id(), false).await?;
    }
    table.limit("disks of a second box (create)", median(times), None, "ms", 10.0);
    Ok(())
}

async fn exec_round_trip(sandbox: &LiteBox, guest: &RawGuest, table: &mut Table) -> Result<()> {
    let mut ping = guest.command(Command::Ping, &[])?;
    let (mut execs, mut pings) = (Vec::new(), Vec::new());
    for _ in 0..EXECS {
        let start = Instant::now();
        let result = sandbox.exec(BoxCommand::new("/bin/true").stdin(false)).await?.wait().await?;
        ensure!(result.exit_code == 0, "true: {result:?}");
        execs.push(ms(start.elapsed()));
        let start = Instant::now();
        ping.write_all(b"x")?;
        ping.read_exact(&mut [0])?;
        pings.push(ms(start.elapsed()));
    }
    execs.sort_by(f64::total_cmp);
    pings.sort_by(f64::total_cmp);
    table.limit(
        "exec /bin/true p50 (floor: vsock ping)",
        percentile(&execs, 50),
        Some(percentile(&pings, 50)),
        "ms",
        25.0,
    );
    table.note(
        "exec /bin/true p99",
        format!("{:.1} ms", percentile(&execs, 99)),
        format!("{:.1} ms", percentile(&pings, 99)),
    );
    Ok(())
}

async fn throughput(sandbox: &LiteBox, guest: &RawGuest, table: &mut Table) -> Result<()> {
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    #[allow(clippy::cast_precision_loss, reason = "a rate to one digit")]
    let rate = |time: Duration| STREAM as f64 / 1e6 / time.as_secs_f64();
    for _ in 0..3 {
        let mut source = guest.command(Command::Source, &STREAM.to_be_bytes())?;
        let start = Instant::now();
        let (mut count, mut buffer) = (0, vec![0; 256 << 10]);
        loop {
            match source.read(&mut buffer)? {
                0 => break,
                length => count += length as u64,
            }
        }
        ensure!(count == STREAM, "{count} bytes");
        raw.push(rate(start.elapsed()));

        // Written as the bare guest writes: in pieces of 64 KiB.
        let count = format!("count={}", STREAM >> 16);
        let mut zeros = sandbox.exec(BoxCommand::new("dd").args(["if=/dev/zero", "bs=64k", &count])).await?;
        let mut stdout = zeros.stdout().context("stdout")?;
        let (start, mut count) = (Instant::now(), 0);
        while let Some(chunk) = stdout.next().await {
            count += chunk.len() as u64;
        }
        ensure!(count == STREAM, "{count} bytes");
        ours.push(rate(start.elapsed()));
    }
    table.ratio("stdout of a box (floor: vsock stream)", median(ours), median(raw), "MB/s", 0.5, false);
    Ok(())
}

/// Private memory of a process, in MiB: what nobody else has to pay for.
fn private_mib(pid: i32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let lines = text.lines().filter(|line| line.starts_with("Private_"));
    let kib: u32 = lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u32>().ok()).sum();
    Ok(f64::from(kib) / 1024.0)
}

fn memory(story: &Story, guest: &RawGuest, table: &mut Table) -> Result<()> {
    let (mut helpers, mut machine) = (0.0, None);
    for (pid, line) in story.processes() {
        if line.contains("qemu-system") {
            machine = Some(private_mib(pid)?);
        } else if line.contains("boxlite-shim") {
            helpers += private_mib(pid)?;
        }
    }
    let Some(machine) = machine else { bail!("no QEMU found: the benchmark measures the software engine") };
    table.limit("private memory of monitor and helpers", helpers, None, "MiB", 20.0);
    let floor = private_mib(i32::try_from(guest.qemu_pid())?)?;
    table.note("private memory of QEMU, idle box", format!("{machine:.1} MiB"), format!("{floor:.1} MiB"));
    Ok(())
}
