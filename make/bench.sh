#!/usr/bin/env bash
# Runs the benchmark on the software engine, which every machine has, with the programs in the folder that is given.

# shellcheck source=make/lib.sh
source "$(dirname "$0")/lib.sh"
bin=$1 program=$2
shift 2
cargo build --locked --profile "$(basename "$bin")" -p boxlite-tests --bin "$program"
images=$("$(dirname "$0")/../tests/images/build.sh" busybox)
kernel=$("$bin/boxlite-shim" kernel "$cache")
export BOXLITE_CLI=$bin/boxlite BOXLITE_SHIM=$bin/boxlite-shim BOXLITE_GUEST=$bin/boxlite-guest BOXLITE_ENGINE=qemu \
    BOXLITE_TEST_IMAGES=$images BOXLITE_TEST_KERNEL=$kernel BOXLITE_TEST_RAW_GUEST=$bin/boxlite-raw-guest
exec "$bin/$program" "$@"
