# busybox:latest: one static program under all its names. Sourced by build.sh.
# shellcheck shell=bash

# shellcheck disable=SC2034  # Read by build.sh.
reference=busybox:latest

make_busybox() {
    local work=$1 root=$1/root applet
    mkdir -p "$root"/{bin,dev,etc,home,proc,root,sys,tmp,usr/{bin,sbin},var/{spool/mail,www},sbin}
    chmod 1777 "$root/tmp"
    chmod 0700 "$root/root"
    install -m 0755 "$(command -v busybox)" "$root/bin/busybox"
    for applet in $(busybox --list); do
        [[ $applet == busybox ]] || ln -s busybox "$root/bin/$applet"
    done
    printf '%s\n' root:x:0:0:root:/root:/bin/sh daemon:x:1:1:daemon:/usr/sbin:/bin/false \
        www-data:x:33:33:www-data:/var/www:/bin/false nobody:x:65534:65534:nobody:/home:/bin/false >"$root/etc/passwd"
    printf '%s\n' root:x:0: daemon:x:1: www-data:x:33: users:x:100:daemon nogroup:x:65534: >"$root/etc/group"
    echo 'root:*::0:::::' >"$root/etc/shadow"
    chmod 0640 "$root/etc/shadow"

    umoci init --layout "$work/layout"
    umoci new --image "$work/layout:latest"
    umoci insert "${rootless[@]}" --image "$work/layout:latest" "$root" /
    umoci config --image "$work/layout:latest" --config.cmd sh \
        --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    umoci gc --layout "$work/layout"
}
