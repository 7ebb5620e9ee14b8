#!/usr/bin/env bash
# Installs what building and testing BoxLite needs and this machine lacks. Does nothing where nothing is missing.

# shellcheck source=make/lib.sh
source "$(dirname "$0")/lib.sh"

# Kept at one version, so that a new lint of a new release breaks no build.
cargo_deny=0.20.2

# command:package; a command may be several alternatives, any of which will do.
needed=(
    cc:gcc
    ldconfig:libc-bin
    make:make
    git:git
    python3:python3
    qemu-system-x86_64:qemu-system-x86
    mke2fs:e2fsprogs
    mkfs.erofs,fsck.erofs:erofs-utils
    umoci:umoci
    skopeo:skopeo
    docker-registry:docker-registry
    openssl:openssl
    zstd:zstd
    mmdebstrap:mmdebstrap
    gpg:gpg
    busybox:busybox-static
    protoc:protobuf-compiler
)

# The folders of mke2fs and its like are not on every user's path.
PATH=$PATH:/usr/sbin:/sbin

has_all() {
    local command
    for command in ${1//,/ }; do
        command -v "$command" >/dev/null || return 1
    done
}

has_pip() {
    python3 -m pip --version || pip3 --version || pip --version
} >/dev/null 2>&1

missing=()
for entry in "${needed[@]}"; do
    has_all "${entry%%:*}" || missing+=("${entry##*:}")
done
# The dynamic busybox of some systems is no use in an image without a C library.
if command -v busybox >/dev/null && ldd "$(command -v busybox)" >/dev/null 2>&1; then
    missing+=(busybox-static)
fi
# The guest's agent is linked statically, so the C library's archive is needed, not only its headers.
echo 'int main(void){return 0;}' | cc -x c -static -o /dev/null - 2>/dev/null || missing+=(libc6-dev)
has_pip || missing+=(python3-pip)
[[ -f /etc/ssl/certs/ca-certificates.crt ]] || missing+=(ca-certificates)

if ((${#missing[@]})); then
    if ! command -v apt-get >/dev/null; then
        say "This is no Debian or Ubuntu. Install what Debian calls: ${missing[*]}"
        die "and run this again"
    fi
    as_root=()
    if ((EUID != 0)); then
        command -v sudo >/dev/null ||
            die "run as root: apt-get install --no-install-recommends ${missing[*]}"
        as_root=(sudo)
    fi
    say "installing ${missing[*]}"
    "${as_root[@]}" apt-get update -qq </dev/null >/dev/null
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null
fi

command -v cargo >/dev/null ||
    die "there is no cargo: install a stable Rust toolchain with rustup, with rustfmt and clippy"
for component in fmt clippy; do
    cargo "$component" --version >/dev/null 2>&1 ||
        die "cargo $component is missing: rustup component add rustfmt clippy"
done

# Beside the cache and outside of target/: it is built once a machine. Not optimized: it takes 45 s of building that
# way, and half a second to run.
tools=$cache/tools
if ! "$tools/bin/cargo-deny" --version 2>/dev/null | grep -qxF "cargo-deny $cargo_deny"; then
    say "installing cargo-deny $cargo_deny into $tools"
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    CARGO_TARGET_DIR=$scratch CARGO_PROFILE_DEV_DEBUG=0 \
        cargo install --quiet --locked --debug --force --root "$tools" --version "$cargo_deny" cargo-deny
fi

"$(dirname "$0")/libkrunfw.sh" >/dev/null
say "everything that BoxLite needs is here"
