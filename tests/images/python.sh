# python:3: a minimal system of the host's own distribution with its python3. Sourced by build.sh.
# shellcheck shell=bash

# shellcheck disable=SC2034  # Read by build.sh.
reference=python:3

make_python() {
    local work=$1
    # The options take out what nobody reads in a box: a third of the size.
    main_sources | mmdebstrap --quiet --variant=minbase --include=python3 \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --aptopt='Acquire::Languages "none"' \
        --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin' \
        --customize-hook='chroot "$1" useradd --create-home --shell /bin/bash app' \
        "$(suite)" "$work/rootfs.tar" -

    mkdir "$work/root"
    tar -xf "$work/rootfs.tar" -C "$work/root" --numeric-owner --exclude='./dev/*'
    umoci init --layout "$work/layout"
    umoci new --image "$work/layout:3"
    umoci insert "${rootless[@]}" --image "$work/layout:3" "$work/root" /
    umoci config --image "$work/layout:3" --config.cmd python3 --config.env LANG=C.UTF-8 \
        --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    umoci gc --layout "$work/layout"
}
