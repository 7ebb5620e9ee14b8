# Packages of the host's own distribution, unpacked beside each other. Sourced by the scripts of images.
# shellcheck shell=bash

# Where this machine's own apt fetches packages, as the lines of a sources.list, security updates included.
apt_sources() {
    apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' | sort -u
}

# Codename of the host's own distribution.
suite() {
    (. /etc/os-release && echo "${VERSION_CODENAME:?this system has no codename}")
}

# The lines of a sources.list of what images are made of: neither backports nor anything that is not free.
main_sources() {
    apt_sources | grep -E " $(suite)(-updates|-security)? main\$"
}

# An apt of its own, which knows the packages of <work>/status alone as installed, needs no root, and leaves the host's
# lists alone.
private_apt() {
    local work=$1
    shift
    apt-get -qq -y --no-install-recommends -o Dir::State="$work/apt" -o Dir::State::status="$work/status" \
        -o Dir::Cache="$work/apt/cache" -o Dir::Etc::SourceList="$work/apt/sources.list" -o Dir::Etc::SourceParts=- \
        -o APT::Sandbox::User="$(id -un)" -o APT::Get::AllowUnauthenticated=false -o Debug::NoLocking=1 \
        -o Acquire::Languages=none "$@"
}

# begin_packages <work> <rootfs.tar>: what is installed in that system is in no layer again.
begin_packages() {
    local work=$1
    mkdir -p "$work/apt/lists/partial" "$work/apt/cache/archives/partial" "$work/debs"
    tar -xOf "$2" ./var/lib/dpkg/status >"$work/status"
    main_sources >"$work/apt/sources.list"
    private_apt "$work" update
}

# unpack_packages <work> <folder> <package>...: these and what they need and no earlier call unpacked. The packages are
# not configured: no script of theirs runs.
unpack_packages() {
    local work=$1 folder=$2
    shift 2
    wanted=("${wanted[@]}" "$@")
    private_apt "$work" install --download-only "${wanted[@]}" >/dev/null
    mkdir -p "$folder" "$work/debs/$(basename "$folder")"
    local deb new=()
    for deb in "$work"/apt/cache/archives/*.deb; do
        [[ -e $work/debs/seen.$(basename "$deb") ]] && continue
        : >"$work/debs/seen.$(basename "$deb")"
        new+=("$deb")
    done
    # One after the other: two at once would race for the same folders.
    for deb in "${new[@]}"; do
        dpkg-deb -x "$deb" "$folder"
    done
}
wanted=()
