"""Measures what pulling an image costs, beside what other tools need for the same in the same run.

    bench_images.py [--rounds N] [--bin FOLDER]

Prints a line for each number with the bound that it has to keep, and fails when one is missed. Without --bin only the
other tools are measured.

Everything comes from a registry on this machine, so no network is in the numbers. Measurements of ours and of theirs
alternate, so that a slow minute of the machine slows both down; what a table shows is the median.
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent

ROUNDS = 3
# Bounds: see the lines that use them.
OF_UNPACK = 0.6
OF_MKFS = 0.7
PEAK_MIB = 128
PRESENT_MS = 50
OF_SLOWEST_TWO = 1.0

OCI_INDEX = "index.json"


class BenchFailed(Exception):
    pass


def publish(layout: Path, root: Path, repository: str) -> None:
    """Puts an OCI layout into a registry's storage as the registry itself would, without copying a byte."""
    store = root / "docker/registry/v2"
    home = store / "repositories" / repository
    for blob in (layout / "blobs/sha256").iterdir():
        data = store / "blobs/sha256" / blob.name[:2] / blob.name / "data"
        data.parent.mkdir(parents=True, exist_ok=True)
        # Images share layers.
        if not data.exists():
            data.symlink_to(blob)
        # A registry has a list of manifests and one of layers; naming each blob in both does no harm.
        for kind in ("_layers", "_manifests/revisions"):
            write_link(home / kind / "sha256" / blob.name, blob.name)
    for entry in json.loads((layout / OCI_INDEX).read_text())["manifests"]:
        tag = entry["annotations"]["org.opencontainers.image.ref.name"]
        write_link(home / "_manifests/tags" / tag / "current", entry["digest"].removeprefix("sha256:"))


def write_link(folder: Path, digest: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "link").write_text(f"sha256:{digest}")


@contextmanager
def registry(root: Path) -> Iterator[str]:
    """A registry that serves this storage without writing to it; its address."""
    config = root / "config.yml"
    config.write_text(
        "version: 0.1\n"
        "log: {level: info, formatter: json, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {root}}}, maintenance: {{readonly: {{enabled: true}}}}}}\n"
        "http: {addr: '127.0.0.1:0', secret: bench}\n"
    )
    log = root / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(["docker-registry", "serve", config], stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 20
        while not (found := re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text())):
            if server.poll() is not None or time.monotonic() > deadline:
                raise BenchFailed(f"the registry does not start: {log.read_text()}")
            time.sleep(0.02)
        yield found[1]
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()


@dataclass
class Usage:
    seconds: float
    peak_mib: float


def measure(*command: str | Path, env: dict[str, str] | None = None, output: int | None = subprocess.DEVNULL) -> Usage:
    """Runs a program to its end."""
    # What an earlier program left to be written is not this one's work.
    os.sync()
    started = time.monotonic()
    process = subprocess.Popen(
        [str(word) for word in command], env=os.environ | (env or {}), stdin=subprocess.DEVNULL, stdout=output
    )
    # The kernel counts what the process held before it became the program, too: no peak is below this script's own.
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise BenchFailed(f"{' '.join(map(str, command))}: exit code {process.returncode}")
    return Usage(seconds, usage.ru_maxrss / 1024)


@dataclass
class Table:
    lines: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    broken: int = 0

    def note(self, what: str, ours: str, theirs: str = "") -> None:
        self.lines.append((what, ours, theirs, "", ""))

    def bound(self, what: str, ours: str, theirs: str, value: float, most: float) -> None:
        good = value <= most
        self.broken += not good
        self.lines.append((what, ours, theirs, f"{value:.2f} <= {most:g}", "holds" if good else "BROKEN"))

    def print(self) -> None:
        print(f"\n{'':52} {'ours':>12} {'theirs':>12}   {'value':20} bound")
        for what, ours, theirs, value, verdict in self.lines:
            print(f"{what:52} {ours:>12} {theirs:>12}   {value:20} {verdict}".rstrip())


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


class Bench:
    def __init__(self, work: Path, address: str, programs: Path | None, images: Path, rounds: int):
        self.work, self.address, self.images, self.rounds = work, address, images, rounds
        self.cli = programs / "boxlite" if programs else None
        self.env = {"BOXLITE_SHIM": str(programs / "boxlite-shim")} if programs else {}
        # Settings and logins of whoever runs this must not be measured along.
        self.env |= {"HOME": str(work), "DOCKER_CONFIG": str(work)}
        os.environ.pop("BOXLITE_CONFIG", None)
        self.table = Table()

    def boxlite(self, home: Path, *words: str) -> Usage:
        return measure(self.cli, "--home", home, *words, env=self.env)

    def median(self, one: Callable[[], float]) -> float:
        return statistics.median(one() for _ in range(self.rounds))

    def skopeo(self, name: str) -> float:
        layout = fresh(self.work / "layout")
        return measure(
            "skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false",
            f"docker://{self.address}/{name}:latest", f"oci:{layout}:latest",
        ).seconds  # fmt: skip

    def unpack(self) -> float:
        bundle = fresh(self.work / "bundle")
        rootless = [] if os.geteuid() == 0 else ["--rootless"]
        return measure("umoci", "unpack", *rootless, "--image", f"{self.work / 'layout'}:latest", bundle).seconds

    def mkfs(self) -> float:
        disk = self.work / "disk.erofs"
        disk.unlink(missing_ok=True)
        return measure("mkfs.erofs", "-d0", disk, self.work / "bundle/rootfs").seconds

    def large(self) -> None:
        copies, unpacks, mkfs, pulls, peaks = [], [], [], [], []
        for number in range(1, self.rounds + 1):
            copies.append(self.skopeo("large"))
            unpacks.append(self.unpack())
            mkfs.append(self.mkfs())
            told = f"round {number}: skopeo copy {copies[-1]:.2f} s, umoci unpack {unpacks[-1]:.2f} s, "
            told += f"mkfs.erofs {mkfs[-1]:.2f} s"
            if self.cli:
                pull = self.boxlite(fresh(self.work / "home"), "pull", "-q", f"{self.address}/large")
                pulls.append(pull.seconds)
                peaks.append(pull.peak_mib)
                told += f", boxlite pull {pull.seconds:.2f} s, {pull.peak_mib:.0f} MiB"
            print(told, flush=True)
        layout = self.images / "large.oci"
        compressed = sum(blob.stat().st_size for blob in (layout / "blobs/sha256").iterdir())
        disk = (self.work / "disk.erofs").stat().st_size
        print(f"large: {compressed / 2**20:.0f} MiB to download, {disk / 2**20:.0f} MiB as EROFS by mkfs.erofs")
        with_unpack = statistics.median(map(sum, zip(copies, unpacks)))
        with_mkfs = statistics.median(map(sum, zip(copies, mkfs)))
        if not self.cli:
            self.table.note("skopeo copy + umoci unpack", "", f"{with_unpack:.2f} s")
            self.table.note("skopeo copy + mkfs.erofs of the ready tree", "", f"{with_mkfs:.2f} s")
            return
        pull, peak = statistics.median(pulls), max(peaks)
        self.table.bound(
            "pull, to skopeo copy + umoci unpack",
            f"{pull:.2f} s",
            f"{with_unpack:.2f} s",
            pull / with_unpack,
            OF_UNPACK,
        )
        self.table.bound(
            "pull, to skopeo copy + mkfs.erofs of the ready tree",
            f"{pull:.2f} s",
            f"{with_mkfs:.2f} s",
            pull / with_mkfs,
            OF_MKFS,
        )
        self.table.bound("peak memory of a pull, MiB", f"{peak:.0f} MiB", "", peak, PEAK_MIB)
        # The home of the last round has all of it.
        reference = f"{self.address}/large"
        again = self.median(lambda: 1e3 * self.boxlite(self.work / "home", "pull", "-q", reference).seconds)
        self.table.bound("pull of what is present, ms", f"{again:.1f} ms", "", again, PRESENT_MS)
        size = sum(file.stat().st_blocks * 512 for file in (self.work / "home").rglob("*") if not file.is_symlink())
        self.table.note("home after the pull", f"{size / 2**20:.0f} MiB", f"{(disk + compressed) / 2**20:.0f} MiB")

    def layers(self) -> None:
        """Layers are pulled side by side: all of them may take no longer than the slowest two, one after the other."""
        tags = [
            entry["annotations"]["org.opencontainers.image.ref.name"]
            for entry in json.loads((self.images / "layers.oci" / OCI_INDEX).read_text())["manifests"]
        ]
        alone = [tag for tag in tags if tag.startswith("only-")]

        def pull(tag: str) -> float:
            return self.boxlite(fresh(self.work / "home"), "pull", "-q", f"{self.address}/layers:{tag}").seconds

        all_of_them, one_each = [], {tag: [] for tag in alone}
        for _ in range(self.rounds):
            all_of_them.append(pull("latest"))
            for tag in alone:
                one_each[tag].append(pull(tag))
        slowest = sorted((statistics.median(times) for times in one_each.values()), reverse=True)[:2]
        together = statistics.median(all_of_them)
        self.table.bound(
            "pull of fifteen layers, to the slowest two alone",
            f"{together:.2f} s",
            f"{sum(slowest):.2f} s",
            together / sum(slowest),
            OF_SLOWEST_TWO,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=Path, help="folder of boxlite, boxlite-shim and boxlite-guest")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    names = ["large"] + (["layers"] if arguments.bin else [])
    built = subprocess.run([TOP / "tests/images/build.sh", *names], stdout=subprocess.PIPE, text=True, check=True)
    images = Path(built.stdout.strip())
    with tempfile.TemporaryDirectory(prefix="boxlite-bench-") as folder:
        work, root = Path(folder) / "work", Path(folder) / "registry"
        work.mkdir()
        root.mkdir()
        for name in names:
            publish(images / f"{name}.oci", root, name)
        with registry(root) as address:
            programs = arguments.bin and arguments.bin.resolve()
            bench = Bench(work, address, programs, images, arguments.rounds)
            bench.large()
            if programs:
                bench.layers()
            bench.table.print()
    if bench.table.broken:
        print(f"{bench.table.broken} bounds do not hold")
    return 1 if bench.table.broken else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BenchFailed, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
