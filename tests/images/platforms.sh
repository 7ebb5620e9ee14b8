# platforms:latest: an index of one image for linux/amd64, which is busybox, and one for linux/arm64/v8, each with its
# platform in /platform; platforms:docker is the same as Docker's manifest list. Sourced by build.sh.
# shellcheck shell=bash

# shellcheck disable=SC2034  # Read by build.sh.
reference=platforms:latest archive=no

make_platforms() {
    local work=$1 platform
    mkdir -p "$work"/{amd64/bin,amd64/proc,amd64/tmp,arm64/bin}
    install -m 0755 "$(command -v busybox)" "$work/amd64/bin/busybox"
    ln -s busybox "$work/amd64/bin/sh"
    ln -s busybox "$work/amd64/bin/cat"
    for platform in amd64 arm64; do
        echo "linux/$platform" >"$work/$platform/platform"
    done
    python3 "$here/platforms.py" "$work/layout" "$work/amd64" "$work/arm64"
}
