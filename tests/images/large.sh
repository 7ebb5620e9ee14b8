# large:latest: 1.1 GiB of a developer's machine in five layers, for benchmarks. Sourced by build.sh.
# shellcheck shell=bash

# shellcheck disable=SC2034  # Read by build.sh.
reference=large:latest needs=debian archive=no

make_large() {
    local work=$1
    begin_packages "$work" "$out/debian.rootfs.tar"
    unpack_packages "$work" "$work/cxx" g++
    unpack_packages "$work" "$work/boost" libboost-dev
    unpack_packages "$work" "$work/science" python3-scipy
    unpack_packages "$work" "$work/go" golang-go golang-src
    python3 "$here/oci.py" "$work/layout" latest "$out/debian.rootfs.tar" "$work"/{go,cxx,boost,science}
}
