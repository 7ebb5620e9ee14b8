#!/usr/bin/env bash
# dist.sh <folder of the binaries> <output folder>
#
# Gathers what a user needs into one folder. It may be moved anywhere: every file finds the others beside itself.

# shellcheck source=make/lib.sh
source "$(dirname "$0")/lib.sh"
from=$1 out=$2
top=$(cd "$(dirname "$0")/.." && pwd)

work=$(mktemp -d "$(dirname "$out")/.dist.XXXXXX")
trap 'rm -rf "$work"' EXIT
install -m 0755 "$from"/{boxlite,boxlite-shim,boxlite-guest,libkrunfw.so.5} "$work"
install -m 0644 "$top/LICENSE" "$work"

# Nothing but the system's C library may be asked of the machine it is moved to.
for program in boxlite boxlite-shim boxlite-guest; do
    strangers=$(readelf --dynamic "$work/$program" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' |
        grep -vE '^(lib(c|m|dl|rt|pthread|gcc_s)\.so\.[0-9]+|ld-linux-x86-64\.so\.2)$') || true
    [[ -z $strangers ]] || die "$program needs libraries that not every machine has: ${strangers//$'\n'/, }"
done
"$work/boxlite" --version >&2

rm -rf "$out"
chmod 0755 "$work"
mv -T "$work" "$out"
trap - EXIT
(cd "$out" && du -h -- *)
