#!/usr/bin/env bash
# assemble.sh <folder of the static binaries> <folder of boxlite-shim> <program>...
#
# Puts these programs for the guest and libkrunfw beside the shim: the library looks for the agent beside the running program, and
# the shim for libkrunfw beside itself.

# shellcheck source=make/lib.sh
source "$(dirname "$0")/lib.sh"
from=$1 to=$2
shift 2

for program in "$@"; do
    # A dynamic agent would be the first program of a VM without a dynamic linker: a panic without a message.
    if readelf --program-headers "$from/$program" | grep -q INTERP; then
        die "$from/$program is not linked statically"
    fi
    install -C -m 0755 "$from/$program" "$to/$program"
done
install -C -m 0755 "$("$(dirname "$0")/libkrunfw.sh")" "$to/libkrunfw.so.5"
