#!/usr/bin/env bash
# quickstart.sh <folder of the binaries>
#
# Loads a small image and runs a command in a box of its own. The boxes live in the user's own BOXLITE_HOME.

# shellcheck source=make/lib.sh
source "$(dirname "$0")/lib.sh"
boxlite=$1/boxlite
images=$("$(dirname "$0")/../tests/images/build.sh" busybox)

run() {
    say "+ boxlite $*"
    "$boxlite" "$@"
}

run load -i "$images/busybox.oci.tar"
run run --rm busybox uname -a
run doctor
say "Now try: $boxlite run --rm -i busybox sh"
