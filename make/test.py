"""Runs lanes of tests, counts what ran, and ends with one line: `N passed, N failed`.

    test.py [--bin FOLDER] LANE...

    unit          every test that needs no VM, and the examples in the documentation
    integration   the VM tests, with the engine that works here (or BOXLITE_ENGINE)
    krun          the VM tests in which libkrun has a part of its own, inside an emulated machine: see krun_lane.py
    krun-all      every VM test that could behave otherwise with libkrun

Every VM test runs in a process of its own, so that one that hangs or dies takes no other along. Nothing is skipped:
a lane without tests, and a test that is marked as ignored, count as failures.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import krun_lane

TOP = Path(__file__).resolve().parent.parent

# The targets of boxlite-tests that boot nothing. All others are VM tests.
WITHOUT_VM = {"architecture"}

# Tests that the krun lane need not repeat: of the vsock device, where libkrun brings its own; of images and of the store,
# which no engine is asked about; and those that boot a hundred boxes to try the host's side of their lives.
QEMU_ALONE = {
    "vsock", "images", "image_faults", "image_policy", "power", "fault_steps", "together", "bytes", "network_policy",
}

# Tests of the command line, the library, the monitor and the agent, for which both engines are one: krun-all repeats them,
# krun does not, since a boot takes ten times as long in the emulated machine. A test that is not named here is in both.
ENGINES_ARE_ALIKE = {
    "a_box_lives_as_long_as_it_may_and_settings_change_while_it_does",
    "a_box_that_always_runs_again_stays_stopped_once_it_is_stopped",
    "a_box_that_another_runtime_starts_again_is_seen_as_it_is",
    "a_box_that_ran_when_the_host_went_down_is_recorded_as_that",
    "a_command_has_dockers_default_capabilities",
    "a_detached_box_outlives_its_program_and_another_one_takes_it_over",
    "a_detached_box_outlives_its_runtime_and_is_found_by_the_next",
    "a_failing_box_runs_as_often_as_its_policy_allows",
    "a_health_check_finds_a_box_well_unwell_and_well_again",
    "a_killed_exec_client_leaves_the_box_as_it_was",
    "a_missing_command_is_127_and_a_folder_is_126",
    "a_reader_that_goes_away_ends_the_box",
    "a_running_box_is_listed_used_and_stopped_by_other_commands",
    "a_stopped_box_stays_with_its_exit_code_until_it_is_removed",
    "an_archive_comes_through_standard_input",
    "an_exec_has_the_settings_of_the_box_and_its_own",
    "an_exec_starts_a_box_that_was_only_created",
    "an_execution_is_what_its_caller_asks_for",
    "an_idle_box_is_stopped_and_wakes_for_a_command",
    "an_image_without_a_shell_or_a_libc_runs",
    "an_unknown_image_is_125_with_a_hint_and_leaves_nothing",
    "another_process_attaches_to_an_execution_by_its_id",
    "changes_in_a_box_are_told",
    "copies_have_the_owner_that_was_asked_for",
    "every_kind_of_archive_gives_the_same_box",
    "executions_run_side_by_side_and_are_killed_apart",
    "exit_codes_of_exec_are_those_of_docker",
    "files_of_a_box_are_read_written_and_looked_at",
    "get_or_create_finds_what_is_there",
    "images_are_listed_with_name_and_size",
    "nothing_is_left_of_a_box_whose_cli_is_killed_while_it_boots",
    "one_stream_does_not_wait_for_the_reader_of_the_other",
    "orphans_do_not_survive_unless_they_may",
    "settings_reach_the_command",
    "several_first_commands_at_once_start_the_box_once",
    "the_command_is_process_1_and_sees_only_its_own",
    "the_command_line_copies_files_and_archives",
    "the_command_line_says_that_time_ran_out",
    "the_main_command_ends_by_sigterm_when_it_wants_to",
    "waiting_for_an_execution_keeps_nobody_from_ending_it",
    "without_i_the_command_reads_an_end_of_file",
    "wrong_settings_are_125_and_name_the_culprit",
}

UNIT_SECONDS = 600
VM_TEST_SECONDS = int(os.environ.get("BOXLITE_TEST_SECONDS", "180"))


@dataclass
class Count:
    passed: int = 0
    failed: int = 0
    # What to tell about failures at the very end.
    failures: list[str] = field(default_factory=list)

    def fail(self, what: str, number: int = 1) -> None:
        self.failed += number
        self.failures.append(what)

    def add(self, other: "Count") -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.failures += other.failures


@dataclass(frozen=True)
class Executable:
    """A test program that Cargo has built."""

    package: str
    name: str
    kind: str
    path: Path
    # Of its package: where Cargo would run it.
    folder: Path

    @property
    def is_vm_test(self) -> bool:
        return self.package == "boxlite-tests" and self.kind == "test" and self.name not in WITHOUT_VM


class BuildFailed(Exception):
    pass


def build_tests() -> list[Executable]:
    """Builds all tests of the workspace in one go: one set of features, so that nothing is built twice."""
    command = ["cargo", "test", "--locked", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]
    build = subprocess.run(command, cwd=TOP, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if build.returncode != 0:
        raise BuildFailed("the tests do not build")
    found = []
    for line in build.stdout.splitlines():
        message = json.loads(line)
        if message.get("reason") != "compiler-artifact" or not message["profile"]["test"] or not message["executable"]:
            continue
        target = message["target"]
        found.append(
            Executable(
                package=package_name(message["package_id"]),
                name=target["name"],
                kind=target["kind"][0],
                path=Path(message["executable"]),
                folder=Path(message["manifest_path"]).parent,
            )
        )
    return found


def package_name(package_id: str) -> str:
    """The name in `path+file:///some/where#name@1.2.3`, or in `…/name#1.2.3` when folder and name are the same."""
    place, _, version = package_id.partition("#")
    name, at, _ = version.partition("@")
    return name if at else place.rsplit("/", 1)[-1]


def run_bounded(command: list[str], folder: Path, seconds: float, env: dict[str, str]) -> tuple[str | None, str]:
    """Runs a program; why it failed, or None, and what it printed."""
    # A file and no pipe: whatever the program left running may hold its output open for ever.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
            why = None if code == 0 else f"exit code {code}" if code > 0 else f"killed by signal {-code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            why = f"did not end within {seconds:.0f} s"
        output.seek(0)
        return why, output.read().decode(errors="replace")


# A harness of our own may print no summary: then each line counts.
LINE = re.compile(r"^test .* \.\.\. (ok|FAILED)\b", re.MULTILINE)
RESULT = re.compile(r"^test result: .*?(\d+) passed; (\d+) failed; (\d+) ignored", re.MULTILINE)


def run_counted(title: str, command: list[str], folder: Path, env: dict[str, str]) -> Count:
    """Runs something that prints libtest's summaries; its output is shown when it fails."""
    count = Count()
    why, output = run_bounded(command, folder, UNIT_SECONDS, env)
    ignored = 0
    if summaries := RESULT.findall(output):
        count.passed = sum(int(passed) for passed, _, _ in summaries)
        count.failed = sum(int(failed) for _, failed, _ in summaries)
        ignored = sum(int(ignored) for _, _, ignored in summaries)
    else:
        lines = LINE.findall(output)
        count.passed, count.failed = lines.count("ok"), lines.count("FAILED")
    if why:
        print(output)
        count.failures.append(f"{title}: {why}")
        # A crash has no summary, and still is a failure.
        count.failed = max(count.failed, 1)
    if ignored:
        count.fail(f"{title}: {ignored} tests are marked as ignored", ignored)
    print(f"  {title}: {count.passed} passed, {count.failed} failed", flush=True)
    return count


def test_images() -> Path:
    """The folder of the test images, which are made when they are not there."""
    built = subprocess.run(
        [TOP / "tests/images/build.sh"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    if built.returncode != 0:
        raise BuildFailed("the test images cannot be made")
    return Path(built.stdout.strip())


def unit_lane(executables: list[Executable], images: Path) -> Count:
    count = Count()
    env = {"BOXLITE_TEST_ROOTFS": str(images / "python.rootfs.tar")}
    for test in executables:
        if not test.is_vm_test:
            count.add(run_counted(f"{test.package} {test.name}", [str(test.path)], test.folder, env))
    doc = ["cargo", "test", "--locked", "--workspace", "--doc", "--no-fail-fast", "--quiet"]
    count.add(run_counted("examples in the documentation", doc, TOP, env))
    return count


def list_tests(test: Executable) -> tuple[list[str], list[str]]:
    """Names of all its tests, and of those of them that are ignored."""

    def listed(*options: str) -> list[str]:
        command = [str(test.path), "--list", "--format", "terse", *options]
        output = subprocess.run(
            command, cwd=test.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=60
        ).stdout
        return [line.removesuffix(": test") for line in output.splitlines() if line.endswith(": test")]

    return listed(), listed("--ignored")


def vm_tests(executables: list[Executable], count: Count) -> list[tuple[Executable, str]]:
    tests = []
    for executable in executables:
        if executable.is_vm_test:
            names, ignored = list_tests(executable)
            tests += [(executable, name) for name in names if name not in ignored]
            for name in ignored:
                count.fail(f"{executable.name} {name}: marked as ignored")
    return tests


def vm_env(programs: Path, images: Path) -> dict[str, str]:
    """Where a VM test finds what it runs. krun_lane.py has the same for the inside of its machine."""
    return {
        "BOXLITE_CLI": str(programs / "boxlite"),
        "BOXLITE_SHIM": str(programs / "boxlite-shim"),
        "BOXLITE_GUEST": str(programs / "boxlite-guest"),
        "BOXLITE_TEST_IMAGES": str(images),
        "BOXLITE_TEST_KERNEL": str(krun_lane.guest_kernel(programs)),
        "BOXLITE_TEST_RAW_GUEST": str(programs / "boxlite-raw-guest"),
        "BOXLITE_TEST_HOSTILE_GUEST": str(programs / "boxlite-hostile-guest"),
        "RUST_BACKTRACE": "1",
    }


def run_vm_test(executable: Executable, name: str, env: dict[str, str]) -> tuple[str | None, str, float]:
    """Why it failed, or None; what it printed; how long it took."""
    started = time.monotonic()
    command = [str(executable.path), "--exact", name, "--test-threads=1", "--nocapture"]
    why, output = run_bounded(command, executable.folder, VM_TEST_SECONDS, env)
    if why is None and "test result: ok. 1 passed" not in output:
        why = "it did not run"
    return why, output, time.monotonic() - started


def integration_lane(executables: list[Executable], programs: Path, images: Path) -> Count:
    count = Count()
    tests = vm_tests(executables, count)
    try:
        env = vm_env(programs, images)
    except krun_lane.LaneFailed as error:
        count.fail(f"lane integration: {error}", len(tests) or 1)
        return count
    # Each test waits for its boxes most of the time, yet an emulated box keeps one core busy while it boots.
    with ThreadPoolExecutor(max_workers=max(1, min(4, os.cpu_count() or 1))) as pool:
        runs = [(test, pool.submit(run_vm_test, *test, env)) for test in tests]
        for (executable, name), run in runs:
            why, output, seconds = run.result()
            print(f"  {'FAILED' if why else 'ok'} {executable.name} {name} ({seconds:.1f} s)", flush=True)
            if why:
                print("".join(f"    | {line}\n" for line in output.splitlines()), flush=True)
                count.fail(f"{executable.name} {name}: {why}")
            else:
                count.passed += 1
    return count


def krun_lane_of(executables: list[Executable], programs: Path, images: Path, left_out: set[str]) -> Count:
    count = Count()
    executables = [executable for executable in executables if executable.name not in QEMU_ALONE]
    found = vm_tests(executables, count)
    for name in sorted(ENGINES_ARE_ALIKE - {name for _, name in found}):
        count.fail(f"{name} is left out of the krun lane, and no such test is there")
    tests = [(executable.path, name) for executable, name in found if name not in left_out]
    if tests:
        passed, failures = krun_lane.run_tests(tests, programs, images)
        count.passed += passed
        for failure in failures:
            count.fail(failure)
    return count


def run_lane(lane: str, arguments: argparse.Namespace, executables: list[Executable], images: Path) -> Count:
    print(f"==> {lane}", flush=True)
    if lane == "unit":
        count = unit_lane(executables, images)
    elif lane == "integration":
        count = integration_lane(executables, arguments.bin, images)
    else:
        count = krun_lane_of(executables, arguments.bin, images, ENGINES_ARE_ALIKE if lane == "krun" else set())
    if count.passed == 0:
        count.fail(f"lane {lane}: no test passed")
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=lambda text: Path(text).resolve(), help="folder of boxlite, boxlite-shim and boxlite-guest")
    parser.add_argument("lanes", nargs="+", choices=["unit", "integration", "krun", "krun-all"], metavar="LANE")
    arguments = parser.parse_args()
    if arguments.lanes != ["unit"] and not (arguments.bin and arguments.bin.is_dir()):
        parser.error("VM tests need --bin: run them with make")

    counts = {}
    try:
        images = test_images()
        executables = build_tests()
        for lane in arguments.lanes:
            counts[lane] = run_lane(lane, arguments, executables, images)
    except BuildFailed as error:
        for lane in arguments.lanes:
            counts[lane] = Count(failed=1, failures=[f"lane {lane}: {error}"])

    print()
    for lane, count in counts.items():
        for failure in count.failures:
            print(f"FAILED {failure}")
    for lane, count in counts.items():
        print(f"{lane}: {count.passed} passed, {count.failed} failed")
    passed = sum(count.passed for count in counts.values())
    failed = sum(count.failed for count in counts.values())
    print(f"{passed} passed, {failed} failed", flush=True)
    return 0 if failed == 0 and all(count.passed for count in counts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
