# layers:latest: fifteen layers, five of them of packages and ten that change, remove and replace what lies below in
# every way that a layer can. Sourced by build.sh. Other tags are the same content in other forms: see layers.py.
# shellcheck shell=bash

# shellcheck disable=SC2034  # Read by build.sh.
reference=layers:latest needs=debian archive=no

make_layers() {
    local work=$1
    begin_packages "$work" "$out/debian.rootfs.tar"
    unpack_packages "$work" "$work/python" python3
    unpack_packages "$work" "$work/git" git
    unpack_packages "$work" "$work/cpp" cpp
    unpack_packages "$work" "$work/vim" vim-nox
    python3 "$here/layers.py" "$work/layout" "$work/edits" "$out/debian.rootfs.tar" "$work"/{python,git,cpp,vim}

    # What a layer means is what umoci makes of it. As another user it cannot make devices and owners.
    if ((EUID == 0)); then
        umoci unpack --image "$work/layout:latest" "$work/bundle"
        python3 "$here/tree.py" "$work/bundle/rootfs" >"$work/layout/tree.txt"
    fi
}
