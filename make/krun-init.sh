#!/bin/sh
# PID 1 of the outer machine of the krun lane (see krun_lane.py): mounts what a Linux system has, runs each test in a
# process of its own, and says on the console how it went. Run by busybox, whose applets are all on the path.
#
# Every line for the host begins with "@$TOKEN ", which no test can know:
#
#   TEST <name>  PASS <name> <seconds>  RETRY <name>: <why>  FAIL <name>: <why>  NOTE <text>  DONE <passed> <failed>

export PATH=/usr/bin:/usr/sbin HOME=/root TERM=dumb
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
# The kernel mounts /dev by itself.
mkdir -p /dev/pts /dev/shm
mount -t devpts -o nosuid,noexec,ptmxmode=0666 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev tmpfs /dev/shm
mount -t tmpfs -o nosuid,nodev,mode=0755 tmpfs /run
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup
ln -sf /proc/self/fd /dev/fd
ip link set lo up
hostname outer

. /lane/config

say() {
    echo "@$TOKEN $*"
}

# Ends everything but this process: kill(2) with -1 spares its caller and PID 1, and this is both.
kill_all() {
    kill -9 -1 2>/dev/null
    wait
}

# Whether a process of a box is still there. After a test its lifelines are closed, so boxes must end by themselves.
boxes_left() {
    waited=0
    while pidof boxlite-shim >/dev/null; do
        [ $waited -ge 20 ] && return 0
        sleep 1
        waited=$((waited + 1))
    done
    return 1
}

# run_once <program> <test>: leaves the reason of a failure in $why, empty when it passed.
run_once() {
    why=
    (cd /tmp && exec setsid timeout -s KILL "$TEST_SECONDS" "$1" --exact "$2" --test-threads=1 --nocapture) \
        >/lane/output 2>&1 </dev/null
    code=$?
    if [ $code -eq 137 ] || [ $code -eq 143 ] || [ $code -eq 124 ]; then
        why="did not end within $TEST_SECONDS s"
    elif [ $code -ne 0 ]; then
        why="exit code $code"
    elif ! grep -q '^test result: ok\. 1 passed' /lane/output; then
        why="it did not run"
    elif boxes_left; then
        why="left processes of a box: $(ps -o pid,args | grep '[b]oxlite-shim' | tr -s ' \n' ' ')"
    fi
    kill_all
}

# Emulated nested virtualization hangs a boot now and then: the only failures that deserve a second chance are those.
may_be_a_hung_boot() {
    case $why in
        did\ not\ end*) return 0 ;;
        *) grep -qF "$HUNG_BOOT" /lane/output ;;
    esac
}

show_output() {
    tail -n 200 /lane/output | sed 's/^/    | /'
    echo
}

passed=0
failed=0
test_one() {
    say "TEST $2"
    started=$(date +%s)
    run_once "$@"
    if [ -n "$why" ] && may_be_a_hung_boot; then
        show_output
        say "RETRY $2: $why"
        run_once "$@"
    fi
    if [ -z "$why" ]; then
        passed=$((passed + 1))
        say "PASS $2 $(($(date +%s) - started))"
    else
        failed=$((failed + 1))
        show_output
        say "FAIL $2: $why"
    fi
}

if [ -e /dev/kvm ]; then
    say "NOTE kernel $(uname -r), /dev/kvm is there"
else
    say "NOTE kernel $(uname -r), there is no /dev/kvm"
fi
if [ -f /lane/script ]; then
    sh /lane/script </dev/null
    say "DONE 0 $?"
else
    while read -r program name <&3; do
        test_one "$program" "$name"
    done 3</lane/tests
    say "DONE $passed $failed"
fi
sync
# The host ends the machine once it has read the line above; a PID 1 that ends first would panic over it.
while :; do sleep 60; done
