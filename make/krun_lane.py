"""The krun lane: runs VM tests with libkrun on a machine that has no usable KVM.

    ┌ host ─────────────────────────────────────────────────────────┐
    │  this program ── reads the console ──┐                        │
    │  ┌ outer machine: QEMU, emulating AMD's virtualization ─────┐ │
    │  │  krun-init.sh ── one process per test                    │ │
    │  │  ┌ a box: libkrun on the outer machine's /dev/kvm ─────┐ │ │
    │  │  └─────────────────────────────────────────────────────┘ │ │
    │  └──────────────────────────────────────────────────────────┘ │
    └───────────────────────────────────────────────────────────────┘

The outer machine boots the guest kernel of BoxLite, which has KVM built in, from an ext4 disk that is made here and
holds the host's C library, busybox, our programs, the test programs and the test images.

By hand, to look around (a shell script runs in place of the tests):

    krun_lane.py --bin target/fast --script 'ls -l /dev/kvm; boxlite doctor'
"""

import argparse
import ctypes
import mmap
import os
import re
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent

# One test, with its boxes, under two layers of emulation.
TEST_SECONDS = int(os.environ.get("BOXLITE_KRUN_TEST_SECONDS", "240"))
# All of them. The outer machine is killed then, and what has not run has failed.
LANE_SECONDS = int(os.environ.get("BOXLITE_KRUN_SECONDS", "2700"))
# What the error of a box says whose guest never came up.
HUNG_BOOT = "did not start within"

DISK_BYTES = 8 << 30
MEMORY_MIB = 4096
# How many outer machines share the tests.
MOST_MACHINES = 2

# With vgif and v-vmsave-vmload on, most inner machines hang while they boot.
CPU = "max,svm=on,npt=on,vgif=off,v-vmsave-vmload=off"
# One CPU: with several that QEMU 7.2 emulates in parallel, the kernel now and then trips over code that another CPU is
# patching, and KVM has code patched whenever its first machine comes and its last one goes.
CPUS = "1"
# The frequency of the TSC is told and not measured by the kernel: on a busy host that measurement fails, KVM then has no
# clock, and no inner machine ever gets through the first instructions of its kernel.
CMDLINE = (
    "console=hvc0 root=/dev/vda rw rootfstype=ext4 init=/lane/init reboot=k panic=-1 nomodule quiet loglevel=2 "
    "tsc=reliable no_timer_check tsc_early_khz={tsc_khz}"
)

# The test images that stories of boxes use; the others are of tests that this lane leaves out.
LANE_IMAGES = ["busybox", "python"]

# Programs of the host that the library or the tests may call, where the host has them.
HOST_TOOLS = ["mke2fs", "mkfs.erofs", "fsck.erofs", "e2fsck"]


class LaneFailed(Exception):
    pass


def libraries(program: Path) -> list[Path]:
    """The shared libraries that a program asks for, dynamic linker included; none when it is static."""
    ldd = subprocess.run(["ldd", str(program)], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if "not found" in ldd.stdout:
        raise LaneFailed(f"{program} lacks libraries: {ldd.stdout}")
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", ldd.stdout)]


class Tree:
    """The root folder of the outer machine."""

    def __init__(self, root: Path):
        self.root = root
        for folder in ["usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "proc", "sys", "dev", "run", "root", "etc", "lane"]:
            (root / folder).mkdir(parents=True)
        for folder in ["tmp", "var/tmp"]:
            (root / folder).mkdir(parents=True)
            (root / folder).chmod(0o1777)
        for name in ["bin", "sbin", "lib", "lib64"]:
            (root / name).symlink_to(f"usr/{name}")

    def path(self, inside: str | Path) -> Path:
        return self.root / str(inside).lstrip("/")

    def write(self, inside: str, text: str) -> None:
        self.path(inside).write_text(text)

    def copy(self, source: Path, inside: str | Path) -> None:
        """By hard link where that is possible; the tree is only read, to make the disk."""
        target = self.path(inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        source = source.resolve()
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    def program(self, source: Path, inside: str) -> None:
        self.copy(source, inside)
        for library in libraries(source):
            if not self.path(library).exists():
                self.copy(library, library)

    def copy_all(self, source: Path, inside: str) -> None:
        """A file, or all files of a folder."""
        files = [source] if source.is_file() else sorted(file for file in source.rglob("*") if file.is_file())
        for file in files:
            place = f"{inside}/{file.relative_to(source)}" if file != source else inside
            self.copy(file, place)


def find_tool(name: str) -> Path | None:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    return Path(found) if found else None


def needed_tool(name: str) -> Path:
    found = find_tool(name)
    if found is None:
        raise LaneFailed(f"there is no {name}: run make deps")
    return found


def fill(tree: Tree, programs: Path, images: Path | None, token: str) -> None:
    busybox = needed_tool("busybox")
    if libraries(busybox):
        raise LaneFailed(f"{busybox} is not linked statically: install busybox-static")
    for tool in HOST_TOOLS:
        if (found := find_tool(tool)) is not None:
            tree.program(found, f"/usr/sbin/{tool}")
    tree.copy(busybox, "/usr/bin/busybox")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        if not tree.path(f"/usr/bin/{applet}").exists() and not tree.path(f"/usr/sbin/{applet}").exists():
            tree.path(f"/usr/bin/{applet}").symlink_to("busybox")

    for name in ["boxlite", "boxlite-shim", "boxlite-guest", "boxlite-hostile-guest", "libkrunfw.so.5"]:
        if (programs / name).exists():
            tree.program(programs / name, f"/boxlite/{name}")
    if images is not None:
        # Whatever else lies there is for lanes that see this machine.
        for name in LANE_IMAGES:
            for file in sorted(images.glob(f"{name}.oci*")) + sorted(images.glob(f"{name}.docker.tar")):
                tree.copy_all(file, f"/images/{file.name}")

    tree.write("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    tree.write("/etc/group", "root:x:0:\nnogroup:x:65534:\n")
    tree.write("/etc/hosts", "127.0.0.1 localhost outer\n")
    shutil.copy(HERE / "krun-init.sh", tree.path("/lane/init"))
    tree.path("/lane/init").chmod(0o755)
    settings = {
        "TOKEN": token,
        "TEST_SECONDS": TEST_SECONDS,
        "HUNG_BOOT": HUNG_BOOT,
        "BOXLITE_ENGINE": "krun",
        # Boots take four seconds there. One that hangs is to be told early enough for its second chance.
        "BOXLITE_BOOT_TIMEOUT": 45,
        "BOXLITE_CLI": "/boxlite/boxlite",
        "BOXLITE_SHIM": "/boxlite/boxlite-shim",
        "BOXLITE_GUEST": "/boxlite/boxlite-guest",
        "BOXLITE_TEST_HOSTILE_GUEST": "/boxlite/boxlite-hostile-guest",
        "BOXLITE_TEST_IMAGES": "/images",
        # What moves gigabytes elsewhere moves as much as ends in time here.
        "BOXLITE_TEST_BULK_MIB": 16,
        "RUST_BACKTRACE": "1",
        "PATH": "/usr/bin:/usr/sbin:/boxlite",
    }
    tree.write("/lane/config", "".join(f"export {name}='{value}'\n" for name, value in settings.items()))


def make_disk(root: Path, disk: Path) -> None:
    with open(disk, "wb") as file:
        file.truncate(DISK_BYTES)
    # The disk is thrown away: a journal would only be written.
    command = [needed_tool("mke2fs"), "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-E", "root_owner=0:0", "-d", root, disk]
    made = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if made.returncode != 0:
        raise LaneFailed(f"mke2fs: {made.stderr.strip()}")


def tsc_khz() -> int:
    """The frequency of this CPU's time stamp counter, which an emulated machine sees as it is."""
    # rdtsc; shl rdx, 32; or rax, rdx; ret
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3")
    read_tsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))

    def reading() -> tuple[int, int]:
        """Nanoseconds and ticks of one moment: of some tries, the one that was interrupted least."""
        tries = []
        for _ in range(20):
            before, ticks, after = time.monotonic_ns(), read_tsc(), time.monotonic_ns()
            tries.append((after - before, (before + after) // 2, ticks))
        return min(tries)[1:]

    (start, first), _, (end, last) = reading(), time.sleep(0.2), reading()
    return round((last - first) * 1_000_000 / (end - start))


def guest_kernel(programs: Path) -> Path:
    cache = Path(os.environ.get("BOXLITE_CACHE") or Path.home() / ".cache/boxlite")
    made = subprocess.run(
        [programs / "boxlite-shim", "kernel", cache], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    if made.returncode != 0:
        raise LaneFailed(f"boxlite-shim kernel: {made.stderr.strip()}")
    return Path(made.stdout.strip())


def start_machine(kernel: Path, disk: Path) -> subprocess.Popen:
    command = [
        # It must not outlive this program, however that ends.
        *[needed_tool("setpriv"), "--pdeathsig", "KILL", needed_tool("qemu-system-x86_64")],
        *["-M", "microvm,acpi=off,rtc=on,isa-serial=off", "-nodefaults", "-no-user-config", "-no-reboot"],
        *["-display", "none", "-accel", "tcg", "-cpu", CPU, "-smp", CPUS, "-m", str(MEMORY_MIB)],
        *["-kernel", kernel, "-append", CMDLINE.format(tsc_khz=tsc_khz())],
        *["-chardev", "stdio,id=console,signal=off", "-device", "virtio-serial-device"],
        *["-device", "virtconsole,chardev=console"],
        *["-drive", f"id=root,if=none,format=raw,cache=unsafe,file={disk}", "-device", "virtio-blk-device,drive=root"],
        *["-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-device,rng=rng"],
    ]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def console_lines(machine: subprocess.Popen, deadline: float, log: Path):
    """Every line of the console as it comes, until the machine ends or the deadline has passed."""
    descriptor = machine.stdout.fileno()
    pending = b""
    with open(log, "wb") as copy:
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([descriptor], [], [], left)[0]:
                return
            data = os.read(descriptor, 65536)
            if not data:
                return
            copy.write(data)
            copy.flush()
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace").rstrip("\r")


class Lane:
    """One run of the outer machine."""

    def __init__(self, programs: Path, images: Path | None, kernel: Path | None, number: int = 1):
        self.programs, self.images, self.kernel = programs, images, kernel
        self.token = secrets.token_hex(8)
        self.log = programs / f"krun-lane-{number}.console.log"

    def run(self, prepare, on_event, show_all: bool) -> tuple[int, int] | None:
        """What the machine counted; None when it did not come to an end."""
        kernel = self.kernel or guest_kernel(self.programs)
        # In the target folder: the programs lie there, so that they can be linked and need not be copied.
        with tempfile.TemporaryDirectory(prefix=".krun-lane.", dir=self.programs) as work:
            tree = Tree(Path(work) / "root")
            fill(tree, self.programs, self.images, self.token)
            prepare(tree)
            disk = Path(work) / "disk"
            make_disk(tree.root, disk)
            machine = start_machine(kernel, disk)
            try:
                return self.follow(machine, on_event, show_all)
            finally:
                machine.kill()
                machine.wait()

    def follow(self, machine, on_event, show_all: bool) -> tuple[int, int] | None:
        mark = f"@{self.token} "
        for line in console_lines(machine, time.monotonic() + LANE_SECONDS, self.log):
            # Not only at the start: a program may have left a line without its end.
            before, found, event = line.partition(mark)
            if before and (show_all or before.startswith("    | ")):
                print(f"  {before}", flush=True)
            if not found:
                continue
            verb, _, rest = event.partition(" ")
            if verb == "DONE":
                passed, failed = rest.split()
                return int(passed), int(failed)
            on_event(verb, rest)
        return None

    def console_tail(self) -> str:
        lines = self.log.read_bytes().decode(errors="replace").splitlines()
        return "\n".join(f"    | {line}" for line in lines[-60:])


def run_tests(tests: list[tuple[Path, str]], programs: Path, images: Path) -> tuple[int, list[str]]:
    """Runs these tests of these programs; how many passed, and a line for each that did not."""
    try:
        kernel = guest_kernel(programs)
    except LaneFailed as error:
        return 0, [f"krun lane: {error}"]
    # A machine has one CPU, so each of them keeps one of ours busy. The tests of one program take alike long.
    count = max(1, min(MOST_MACHINES, os.cpu_count() or 1, len(tests)))
    with ThreadPoolExecutor(max_workers=count) as pool:
        shares = [(tests[number::count], Lane(programs, images, kernel, number + 1)) for number in range(count)]
        runs = [pool.submit(run_share, *share) for share in shares]
        outcomes = [run.result() for run in runs]
    return sum(passed for passed, _ in outcomes), [failure for _, failures in outcomes for failure in failures]


def run_share(tests: list[tuple[Path, str]], lane: Lane) -> tuple[int, list[str]]:
    """Runs some of the tests in one outer machine."""
    waiting = [name for _, name in tests]
    passed, failures = 0, []

    def prepare(tree: Tree) -> None:
        inside = {}
        for path, _ in tests:
            if path not in inside:
                inside[path] = f"/lane/{path.name}"
                tree.program(path, inside[path])
        tree.write("/lane/tests", "".join(f"{inside[path]} {name}\n" for path, name in tests))

    def on_event(verb: str, rest: str) -> None:
        nonlocal passed
        if verb == "PASS":
            name, seconds = rest.rsplit(" ", 1)
            waiting.remove(name)
            passed += 1
            print(f"  ok {name} ({seconds} s)", flush=True)
        elif verb == "FAIL":
            waiting.remove(rest.split(": ", 1)[0])
            failures.append(rest)
            print(f"  FAILED {rest}", flush=True)
        elif verb == "RETRY":
            print(f"  RETRY {rest}", flush=True)
        elif verb == "NOTE":
            print(f"  {rest}", flush=True)

    try:
        counted = lane.run(prepare, on_event, show_all=False)
    except LaneFailed as error:
        return passed, [f"krun lane: {error}", *failures]
    if counted is None:
        print(f"the outer machine did not come to an end; its console ({lane.log}) ends with\n{lane.console_tail()}")
        failures += [f"{name}: the outer machine ended before it did" for name in waiting]
    elif counted != (passed, len(failures)):
        failures.append(f"the outer machine counted {counted}, its console {(passed, len(failures))}")
    return passed, failures


def run_script(script: str, lane: Lane) -> int:
    counted = lane.run(lambda tree: tree.write("/lane/script", script), lambda *event: print(*event), show_all=True)
    if counted is None:
        raise LaneFailed("the outer machine did not come to an end")
    return counted[1]


def main() -> int:
    parser = argparse.ArgumentParser(description="runs a shell script in the outer machine of the krun lane")
    parser.add_argument("--bin", type=Path, required=True, help="folder of boxlite, boxlite-shim and boxlite-guest")
    parser.add_argument("--images", type=Path, help="folder of the test images, for /images")
    parser.add_argument("--kernel", type=Path, help="guest kernel as an ELF file, instead of the shim's own")
    parser.add_argument("--script", required=True)
    arguments = parser.parse_args()
    try:
        return run_script(arguments.script, Lane(arguments.bin, arguments.images, arguments.kernel))
    except LaneFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 125


if __name__ == "__main__":
    sys.exit(main())
