# debian:bookworm: a minimal system of the host's own distribution, as mmdebstrap makes it. Sourced by build.sh.
# shellcheck shell=bash

# The reference is fixed, so that tests can name it; what is inside is what this machine's own apt fetches.
# shellcheck disable=SC2034  # Read by build.sh.
reference=debian:bookworm

make_debian() {
    local work=$1
    # The options take out what nobody reads in a box: a third of the size.
    main_sources | mmdebstrap --quiet --variant=minbase \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --aptopt='Acquire::Languages "none"' \
        --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin' \
        "$(suite)" "$work/rootfs.tar" -
    python3 "$here/oci.py" "$work/layout" bookworm "$work/rootfs.tar"
}
