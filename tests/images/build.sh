#!/usr/bin/env bash
# Makes the images that the tests and the quickstart run, out of the system's own packages: no registry is needed.
#
#   build.sh [IMAGE]...      prints the folder that holds them; without arguments, makes those that the tests need
#
# An image is a script beside this one: busybox, python, debian, layers and platforms for the tests, large for the
# benchmark. The folder is ${BOXLITE_CACHE:-~/.cache/boxlite}/test-images/v3, and holds for each image:
#
#   <name>.oci/          an OCI layout, tag = reference without the name (latest, 3)
#   <name>.oci.tar       an OCI archive; org.opencontainers.image.ref.name is the whole reference
#                        (busybox, python and debian)
#   <name>.docker.tar    what `docker save` writes (busybox alone)
#   <name>.rootfs.tar    the content of its one layer, as a plain tar file (python and debian)
#
# An image is made once. Raise the number in the folder's name when what goes into one changes.

# shellcheck source=make/lib.sh
source "$(dirname "$0")/../../make/lib.sh"
# shellcheck source=tests/images/packages.sh
source "$(dirname "$0")/packages.sh"
here=$(cd "$(dirname "$0")" && pwd)
out=$cache/test-images/v3
PATH=$PATH:/usr/sbin:/sbin

# umoci maps the caller to root in the image when it cannot be root itself.
rootless=()
((EUID == 0)) || rootless=(--rootless)

# publish <name> <reference> <layout>: makes the archives and moves all under the final names, the layout last, which
# says that the rest is there.
publish() {
    local name=$1 reference=$2 layout=$3 work
    work=$(dirname "$layout")
    if [[ $archive == yes ]]; then
        skopeo --insecure-policy copy --quiet "oci:$layout:${reference#*:}" "oci-archive:$work/oci.tar:$reference"
        mv -f "$work/oci.tar" "$out/$name.oci.tar"
    fi
    if [[ $name == busybox ]]; then
        skopeo --insecure-policy copy --quiet "oci:$layout:${reference#*:}" "docker-archive:$work/docker.tar:$reference"
        mv -f "$work/docker.tar" "$out/$name.docker.tar"
    fi
    if [[ -f $work/rootfs.tar ]]; then
        mv -f "$work/rootfs.tar" "$out/$name.rootfs.tar"
    fi
    mv -T "$layout" "$out/$name.oci"
}

make_image() {
    local name=$1 work started needs='' archive=yes reference
    [[ -d $out/$name.oci ]] && return
    # shellcheck source=/dev/null
    source "$here/$name.sh"
    for needed in $needs; do
        (make_image "$needed")
    done
    started=$SECONDS
    work=$(mktemp -d "$out/.$name.XXXXXX")
    # shellcheck disable=SC2064  # The path as it is now.
    trap "rm -rf '$work'" EXIT
    say "making the test image $name"
    "make_$name" "$work" >&2
    publish "$name" "$reference" "$work/layout"
    rm -rf "$work"
    say "made the test image $name in $((SECONDS - started)) s"
}

mkdir -p "$out"
# Two builds at once would do the same work twice, and the second would find the name taken.
exec 9>"$out/.lock"
flock 9
(($#)) || set -- busybox python debian layers platforms
for name; do
    [[ -f $here/$name.sh && $name != build && $name != packages ]] || die "there is no test image called $name"
    (make_image "$name")
done
echo "$out"
