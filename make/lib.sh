# What the scripts in this folder share. Sourced, never run.
# shellcheck shell=bash

set -euo pipefail

# Everything that is downloaded or made once, and outlives `cargo clean`.
cache=${BOXLITE_CACHE:-$HOME/.cache/boxlite}

say() {
    printf '%s\n' "$*" >&2
}

die() {
    say "error: $*"
    exit 1
}

# Whether a file has this SHA-256.
has_sha256() {
    printf '%s  %s\n' "$2" "$1" | sha256sum --check --status
}
