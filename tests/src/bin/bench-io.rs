//! `make bench-io`: what the daily work with a box costs, beside raw floors on the same machine that are measured in the
//! same run: a bare guest that forks and streams, and what the box itself does without us.
//!
//! Names of parts as arguments leave the other parts out: `exec`, `stream`, `copy`, `tree`, `share`.

#![allow(clippy::print_stdout, reason = "a table is what this program is for")]

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use boxlite::{BoxCommand, BoxOptions, BoxliteRuntime, CopyOptions, LiteBox, VolumeSpec};
use boxlite_raw_guest::Command;
use boxlite_tests::raw::RawGuest;
use boxlite_tests::story::Story;
use boxlite_tests::table::{Table, median, ms, percentile};

const EXECS: usize = 200;
const AT_ONCE: usize = 64;
const STREAM: u64 = 128 << 20;
const FILE: u64 = 1 << 30;
const SHARED: u64 = 256 << 20;
const SMALL_FILES: usize = 10_000;
/// Where the box's own disk is.
const OWN: &str = "/own";
/// Where its volume is.
const VOLUME: &str = "/volume";

fn main() -> Result<()> {
    let story = Story::with_busybox();
    let mut table = Table::default();
    let parts: Vec<String> = std::env::args().skip(1).collect();
    let all = ["exec", "stream", "copy", "tree", "share"];
    ensure!(parts.iter().all(|part| all.contains(&part.as_str())), "parts are {}", all.join(", "));
    let asked = |part: &str| parts.is_empty() || parts.iter().any(|name| name == part);
    let (volume, work) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let library = BoxliteRuntime::new(story.options())?;
        let mut options = BoxOptions::image("busybox");
        options.memory_mib = Some(2048);
        options.auto_remove = false;
        options.disk_size_gb = Some(8);
        options.volumes.push(VolumeSpec::host(volume.path(), VOLUME));
        let sandbox = library.create(options, None).await?;
        sandbox.start().await?;
        sh(&sandbox, &format!("mkdir {OWN}")).await?;
        let guest = RawGuest::boot(1);
        if asked("exec") {
            one_exec(&sandbox, &guest, &mut table).await?;
            many_execs(&sandbox, &mut table).await?;
        }
        if asked("stream") {
            output(&sandbox, &guest, &mut table).await?;
        }
        if asked("copy") {
            file(&sandbox, &guest, work.path(), &mut table).await?;
        }
        if asked("tree") {
            tree(&sandbox, work.path(), &mut table).await?;
        }
        guest.power_off();
        if asked("share") {
            share(&sandbox, volume.path(), &mut table).await?;
        }
        sandbox.stop_with(0, Duration::ZERO).await?;
        library.remove(sandbox.id(), true).await?;
        anyhow::Ok(())
    })?;
    table.print();
    ensure!(table.broken == 0, "{} bounds do not hold", table.broken);
    Ok(())
}

async fn run(sandbox: &LiteBox, command: BoxCommand) -> Result<()> {
    let result = sandbox.exec(command).await?.wait().await?;
    ensure!(result.exit_code == 0, "{result:?}");
    Ok(())
}

async fn one_exec(sandbox: &LiteBox, guest: &RawGuest, table: &mut Table) -> Result<()> {
    let mut spawn = guest.command(Command::Spawn, &[])?;
    let (mut execs, mut spawns) = (Vec::new(), Vec::new());
    for _ in 0..EXECS {
        let start = Instant::now();
        run(sandbox, BoxCommand::new("/bin/true").stdin(false)).await?;
        execs.push(ms(start.elapsed()));
        let start = Instant::now();
        spawn.write_all(b"x")?;
        spawn.read_exact(&mut [0])?;
        spawns.push(ms(start.elapsed()));
    }
    execs.sort_by(f64::total_cmp);
    spawns.sort_by(f64::total_cmp);
    let floor = percentile(&spawns, 50);
    table.ratio(
        "exec /bin/true p50 (floor: fork, exec, wait)",
        percentile(&execs, 50),
        floor,
        "ms",
        3.0,
        true,
    );
    Ok(())
}

async fn many_execs(sandbox: &LiteBox, table: &mut Table) -> Result<()> {
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let start = Instant::now();
        let all = (0..AT_ONCE).map(|_| run(sandbox, BoxCommand::new("/bin/true").stdin(false)));
        for outcome in futures_util::future::join_all(all).await {
            outcome?;
        }
        ours.push(ms(start.elapsed()));
        let start = Instant::now();
        let script = format!("i=0; while [ $i -lt {AT_ONCE} ]; do /bin/true; i=$((i+1)); done");
        run(sandbox, BoxCommand::new("sh").args(["-c", &script])).await?;
        floor.push(ms(start.elapsed()));
    }
    table.ratio("64 executions at once (floor: a loop)", median(ours), median(floor), "ms", 1.5, true);
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "a rate to one digit")]
fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64()
}

/// How fast the bare guest sends.
fn raw_from_guest(guest: &RawGuest, bytes: u64) -> Result<f64> {
    let mut source = guest.command(Command::Source, &bytes.to_be_bytes())?;
    let start = Instant::now();
    let (mut count, mut buffer) = (0, vec![0; 256 << 10]);
    loop {
        match source.read(&mut buffer)? {
            0 => break,
            length => count += length as u64,
        }
    }
    ensure!(count == bytes, "{count} bytes");
    Ok(rate(bytes, start.elapsed()))
}

async fn output(sandbox: &LiteBox, guest: &RawGuest, table: &mut Table) -> Result<()> {
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        raw.push(raw_from_guest(guest, STREAM)?);
        // Written as the bare guest writes: in pieces of 64 KiB.
        let count = format!("count={}", STREAM >> 16);
        let mut zeros = sandbox.exec(BoxCommand::new("dd").args(["if=/dev/zero", "bs=64k", &count])).await?;
        let mut stdout = zeros.stdout().context("stdout")?;
        let (start, mut count) = (Instant::now(), 0);
        while let Some(chunk) = stdout.next().await {
            count += chunk.len() as u64;
        }
        ensure!(count == STREAM, "{count} bytes");
        ours.push(rate(STREAM, start.elapsed()));
    }
    table.ratio("stdout of a box (floor: vsock stream)", median(ours), median(raw), "MB/s", 0.6, false);
    Ok(())
}

/// How fast the bare guest takes what is sent.
fn raw_into_guest(guest: &RawGuest, bytes: u64) -> Result<f64> {
    let mut sink = guest.command(Command::Sink, &[])?;
    let start = Instant::now();
    let (mut left, buffer) = (bytes, vec![0; 256 << 10]);
    while left > 0 {
        let now = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        sink.write_all(&buffer[..now])?;
        left -= now as u64;
    }
    sink.shutdown(std::net::Shutdown::Write)?;
    let mut told = [0; 16];
    sink.read_exact(&mut told)?;
    Ok(rate(bytes, start.elapsed()))
}

async fn sh(sandbox: &LiteBox, script: &str) -> Result<()> {
    run(sandbox, BoxCommand::new("sh").args(["-ec", script]).stdin(false)).await
}

/// One large file, both ways. Its bytes differ, so that nothing can be left out.
async fn file(sandbox: &LiteBox, guest: &RawGuest, work: &Path, table: &mut Table) -> Result<()> {
    let source = work.join("large");
    let mut random = std::fs::File::open("/dev/urandom")?.take(1 << 20);
    let mut piece = Vec::new();
    random.read_to_end(&mut piece)?;
    let mut large = std::fs::File::create(&source)?;
    for _ in 0..FILE >> 20 {
        large.write_all(&piece)?;
    }
    let (raw_in, start) = (raw_into_guest(guest, FILE)?, Instant::now());
    let there = format!("{OWN}/large");
    sandbox.copy_into(&source, &there, CopyOptions::default()).await?;
    let into = rate(FILE, start.elapsed());
    table.ratio("copy 1 GiB into a box (floor: vsock stream)", into, raw_in, "MB/s", 0.5, false);

    let (raw_out, start) = (raw_from_guest(guest, FILE)?, Instant::now());
    sandbox.copy_out(&there, work.join("back"), CopyOptions::default()).await?;
    let out = rate(FILE, start.elapsed());
    table.ratio("copy 1 GiB out of a box (floor: vsock stream)", out, raw_out, "MB/s", 0.5, false);
    for name in ["large", "back"] {
        std::fs::remove_file(work.join(name))?;
    }
    sh(sandbox, &format!("rm {there}")).await
}

/// Many small files, both ways, beside a `tar` at each end of an execution.
async fn tree(sandbox: &LiteBox, work: &Path, table: &mut Table) -> Result<()> {
    let source = work.join("tree");
    for number in 0..SMALL_FILES {
        let folder = source.join(format!("{:02}", number % 100));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(number.to_string()), vec![b'x'; number % 4096])?;
    }
    let (mut ours, mut floor) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..3 {
        sh(sandbox, &format!("rm -rf {OWN}/*; mkdir {OWN}/piped")).await?;
        let start = Instant::now();
        sandbox.copy_into(&source, &format!("{OWN}/copied"), CopyOptions::default()).await?;
        ours[0].push(ms(start.elapsed()));

        let start = Instant::now();
        let mut tar =
            Process::new("tar").arg("-c").arg("-C").arg(&source).arg(".").stdout(Stdio::piped()).spawn()?;
        let mut pipe = tar.stdout.take().context("pipe")?;
        let mut unpack =
            sandbox.exec(BoxCommand::new("tar").args(["-x", "-C", &format!("{OWN}/piped")])).await?;
        let mut stdin = unpack.stdin().context("stdin")?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = pipe.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            stdin.send_input(buffer[..count].to_vec()).await?;
        }
        stdin.close().await?;
        ensure!(unpack.wait().await?.exit_code == 0 && tar.wait()?.success());
        floor[0].push(ms(start.elapsed()));

        let start = Instant::now();
        sandbox.copy_out(&format!("{OWN}/copied"), work.join("back"), CopyOptions::default()).await?;
        ours[1].push(ms(start.elapsed()));

        std::fs::create_dir(work.join("piped"))?;
        let start = Instant::now();
        let mut pack =
            sandbox.exec(BoxCommand::new("tar").args(["-c", "-C", &format!("{OWN}/copied"), "."])).await?;
        let mut tar =
            Process::new("tar").arg("-x").arg("-C").arg(work.join("piped")).stdin(Stdio::piped()).spawn()?;
        let (mut stdout, mut pipe) = (pack.stdout().context("stdout")?, tar.stdin.take().context("pipe")?);
        while let Some(chunk) = stdout.next().await {
            pipe.write_all(&chunk)?;
        }
        drop(pipe);
        ensure!(pack.wait().await?.exit_code == 0 && tar.wait()?.success());
        floor[1].push(ms(start.elapsed()));
        for name in ["back", "piped"] {
            std::fs::remove_dir_all(work.join(name))?;
        }
    }
    for (way, (ours, floor)) in ["into", "out of"].into_iter().zip(ours.into_iter().zip(floor)) {
        let what = format!("10,000 files {way} a box (floor: tar pipe)");
        table.ratio(&what, median(ours), median(floor), "ms", 1.0, true);
    }
    Ok(())
}

/// A file of a volume beside the same on the box's own disk, each read by a machine that has just booted and so has nothing
/// of it in memory.
async fn share(sandbox: &LiteBox, volume: &Path, table: &mut Table) -> Result<()> {
    std::fs::write(volume.join("file"), vec![7; usize::try_from(SHARED)?])?;
    sh(sandbox, &format!("cp {VOLUME}/file {OWN}/file; sync")).await?;
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for turn in 0..4 {
        sandbox.stop_with(0, Duration::from_secs(20)).await?;
        sandbox.start().await?;
        let mut places = [(VOLUME, &mut ours), (OWN, &mut floor)];
        if turn % 2 == 1 {
            places.reverse();
        }
        for (place, rates) in places {
            let start = Instant::now();
            sh(sandbox, &format!("dd if={place}/file of=/dev/null bs=1M 2>/dev/null")).await?;
            rates.push(rate(SHARED, start.elapsed()));
        }
    }
    table.ratio("read a volume (floor: the own disk)", median(ours), median(floor), "MB/s", 0.5, false);
    Ok(())
}
