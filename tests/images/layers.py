"""The image `layers`: layers of packages, and upon them layers that change, remove and replace.

    layers.py LAYOUT SCRATCH SOURCE...     SOURCE is a folder or a tar file, the lowest first

Tags; the first three have the same tree:

    latest      gzip, OCI media types
    docker      the same blobs under Docker's media types
    mixed       one layer zstd, one not compressed, OCI media types
    only-NN     the layer of packages NN alone, to measure what it costs; the others are small, and need what lies below
"""

import io
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

from oci import DOCKER, Layer, Layout

# The times of all that has no time of its own: 2024-01-01.
DAY = 1704067200
# VFS_CAP_REVISION_2 with cap_net_bind_service and cap_net_raw, permitted and effective: as setcap(8) writes it.
CAPABILITY = bytes.fromhex("0100000200240000000000000000000000000000")


class Edit:
    """A tar file in which any entry can be written, without root and without a folder that has it."""

    def __init__(self, path: Path):
        self.tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape")

    def add(self, name: str | bytes, kind: bytes, data: bytes = b"", xattrs: dict[str, bytes] | None = None, **fields):
        if isinstance(name, bytes):
            name = name.decode(errors="surrogateescape")
        info = tarfile.TarInfo(name)
        info.type, info.size, info.mtime, info.mode = kind, len(data), DAY, 0o644
        for field, value in fields.items():
            setattr(info, field, value)
        for key, value in (xattrs or {}).items():
            # The module writes what it is given as UTF-8; these bytes come out as they went in.
            info.pax_headers[f"SCHILY.xattr.{key}"] = value.decode(errors="surrogateescape")
        self.tar.addfile(info, io.BytesIO(data))

    def file(self, name: str | bytes, data: bytes | str = b"", **fields):
        self.add(name, tarfile.REGTYPE, data.encode() if isinstance(data, str) else data, **fields)

    def folder(self, name: str | bytes, **fields):
        self.add(name, tarfile.DIRTYPE, **({"mode": 0o755} | fields))

    def symlink(self, name: str, target: str, **fields):
        self.add(name, tarfile.SYMTYPE, linkname=target, **({"mode": 0o777} | fields))

    def link(self, name: str, target: str, **fields):
        self.add(name, tarfile.LNKTYPE, linkname=target, **fields)

    def whiteout(self, name: str):
        folder, _, last = name.rpartition("/")
        self.file(f"{folder}/.wh.{last}")

    def opaque(self, folder: str):
        self.file(f"{folder}/.wh..wh..opq")


def ground(edit: Edit) -> None:
    """What the layers above work upon."""
    for folder in ["t", "t/kept", "t/gone", "t/gone/deep", "t/opaque", "t/opaque/sub", "t/swap", "t/swap/folder",
                   "t/swap/folder/in", "t/links"]:  # fmt: skip
        edit.folder(folder)
    for number in range(20):
        edit.file(f"t/kept/{number}", f"kept {number}\n")
        edit.file(f"t/gone/deep/{number}", f"gone {number}\n")
        edit.file(f"t/opaque/sub/{number}", f"hidden {number}\n")
    edit.file("t/opaque/old", "hidden")
    edit.file("t/removed-and-made-again", "first")
    edit.file("t/swap/folder/in/file", "below")
    edit.file("t/swap/file", "a file")
    edit.symlink("t/swap/link", "folder")
    for name in ["one", "two", "three"]:
        edit.file(f"t/links/{name}", f"lower {name}\n" * 300)
    edit.link("t/links/two-again", "t/links/two")
    edit.link("t/links/two-thrice", "t/links/two")


def changed(edit: Edit) -> None:
    edit.file("etc/motd", "changed by a layer\n")
    edit.file("t/kept/0", "another content, longer than before\n" * 500)
    edit.file("t/kept/1")
    edit.file("t/kept/2", "kept 2\n", mode=0o4755)
    edit.file("t/kept/3", "kept 3\n", uid=1000, gid=1001)
    edit.folder("t/kept", mode=0o1777, uid=33, gid=33, mtime=DAY + 100)


def removed(edit: Edit) -> None:
    edit.whiteout("t/gone/deep/7")
    edit.whiteout("t/kept/4")
    edit.whiteout("t/kept/never-there")
    edit.whiteout("t/removed-and-made-again")
    # A whole folder, and with it what is in it.
    edit.whiteout("usr/share/perl5")
    edit.whiteout("etc/debian_version")


def opaque(edit: Edit) -> None:
    edit.whiteout("t/gone/deep")
    edit.file("t/removed-and-made-again", "second")
    # The mark stands behind an entry of its own layer, which it must spare. (Behind the folder as well, umoci would
    # give that the time of its own work.)
    edit.folder("t/opaque", mode=0o750)
    edit.file("t/opaque/new", "new")
    edit.opaque("t/opaque")
    edit.folder("t/opaque/sub")
    edit.file("t/opaque/sub/3", "new in an old folder")


def swapped(edit: Edit) -> None:
    """Each kind becomes another."""
    edit.file("t/swap/folder", "was a folder")
    edit.folder("t/swap/file")
    edit.file("t/swap/file/in", "was a file")
    edit.folder("t/swap/link", mode=0o700)
    edit.file("t/swap/link/in", "was a link")
    edit.symlink("t/kept/5", "6")
    edit.add("t/kept/7", tarfile.FIFOTYPE, mode=0o600)


def swapped_back(edit: Edit) -> None:
    edit.folder("t/swap/folder", mode=0o711)
    edit.file("t/swap/folder/again", "a folder again, without what was in it")
    edit.file("t/swap/file", "a file again")
    edit.symlink("t/swap/link", "folder/again")
    edit.file("t/kept/7", "a file again")


def links(edit: Edit) -> None:
    edit.symlink("t/links/absolute", "/etc/os-release")
    edit.symlink("t/links/relative", "../kept/0")
    edit.symlink("t/links/dangling", "/no/such/thing")
    edit.symlink("t/links/itself", "itself")
    edit.symlink("t/links/long", "x/" * 300 + "end")
    edit.symlink("t/links/owned", "one", uid=1000, gid=1000, mtime=DAY + 5)
    edit.file("t/links/here", "here\n" * 2000)
    for number in range(5):
        edit.link(f"t/links/here-{number}", "t/links/here")
    # To a file of a layer below, and to one of the packages' base.
    edit.link("t/links/across", "t/links/one")
    edit.link("t/links/release", "usr/lib/os-release")
    # One name of three gets a new file, one goes: the third keeps what it had.
    edit.file("t/links/two", "no longer the others'")
    edit.whiteout("t/links/two-again")
    edit.symlink("t/links/to-link", "absolute")
    edit.link("t/links/hard-to-soft", "t/links/to-link")


def special(edit: Edit) -> None:
    edit.folder("t/special", mode=0o2775, uid=7, gid=8)
    edit.add("t/special/null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
    edit.add("t/special/large", tarfile.CHRTYPE, devmajor=300, devminor=70000, mode=0o600)
    edit.add("t/special/disk", tarfile.BLKTYPE, devmajor=8, devminor=1, mode=0o660, gid=6)
    edit.add("t/special/fifo", tarfile.FIFOTYPE, mode=0o622, uid=5)
    edit.file("t/special/setuid", "#!\n", mode=0o4755)
    edit.file("t/special/setgid", "#!\n", mode=0o2711, gid=42)
    edit.file("t/special/nobody", "x", mode=0, uid=65534, gid=65534)
    edit.file("t/special/far", "x", uid=1234567, gid=3000000000)
    edit.file("t/special/ping", "#!\n", mode=0o755, xattrs={"security.capability": CAPABILITY})
    notes = {"user.note": b"text", "user.empty": b"", "user.bytes": b"\xff\xfe\n=\x01"}
    edit.file("t/special/noted", "x", xattrs=notes)
    edit.file("t/special/much", "x", xattrs={f"user.{number:03}": b"v" * 50 for number in range(30)})
    edit.folder("t/special/folder", xattrs={"user.note": b"on a folder"})
    for number in range(3):
        edit.file(f"t/special/alike-{number}", "x", xattrs={"user.shared": b"the same everywhere" * 4})


def names_and_times(edit: Edit) -> None:
    edit.folder("t/names")
    edit.file("t/names/" + "n" * 120, "longer than a header's field")
    edit.file("t/names/" + "m" * 255, "as long as a name may be")
    place = "t/names"
    for number in range(8):
        place = f"{place}/{number}" + "p" * 60
        edit.folder(place)
    edit.file(f"{place}/end", "a long way down")
    edit.link("t/names/far", f"{place}/end")
    edit.file(b"t/names/latin-\xe9\xff", "not UTF-8")
    edit.folder(b"t/names/folder-\xc3\x28")
    edit.file(b"t/names/folder-\xc3\x28/in", "in a folder that is not UTF-8")
    for name in ["new\nline", "two words", "back\\slash", "-dash", "quote'\"", "ünïcode", "*", ".hidden", "..."]:
        edit.file(f"t/names/{name}", name)
    edit.folder("t/times", mtime=DAY + 0.25)
    edit.file("t/times/nano", "x", pax_headers={"mtime": f"{DAY}.123456789"})
    edit.symlink("t/times/link", "nano", pax_headers={"mtime": f"{DAY}.000000001"})
    edit.file("t/times/zero", "x", mtime=0)
    edit.file("t/times/far", "x", mtime=4102444800)
    edit.folder("t/times/folder", pax_headers={"mtime": f"{DAY}.999999999"})
    edit.file("t/times/folder/in", "must not change the time of its folder")


def twins(edit: Edit) -> None:
    """The same content under many names, across this layer and those below."""
    edit.folder("t/twins")
    block = bytes(range(256)) * 256
    for number in range(200):
        edit.file(f"t/twins/{number}", block, mode=0o600 + number % 8)
        edit.file(f"t/twins/empty-{number}")
    edit.file("t/twins/zeros", bytes(8 << 20))
    edit.file("t/twins/nearly", block[:-1] + b"!")
    edit.file("t/twins/kept-8", "kept 8\n")


EDITS: list[Callable[[Edit], None]] = [
    ground, changed, removed, opaque, swapped, swapped_back, links, special, names_and_times, twins,
]  # fmt: skip


def main() -> None:
    folder, scratch, *packages = map(Path, sys.argv[1:])
    sources = list(packages)
    scratch.mkdir()
    for number, write in enumerate(EDITS):
        edit = Edit(scratch / f"{number:02}.tar")
        write(edit)
        edit.tar.close()
        sources.append(scratch / f"{number:02}.tar")

    layout, cmd = Layout(folder), ["bash"]
    layers = layout.layers(sources)
    layout.tag("latest", layout.image(layers, cmd))
    layout.tag("docker", layout.image(layers, cmd, family=DOCKER))
    mixed: list[Layer] = list(layers)
    mixed[1] = layout.layer(sources[1], "zstd")
    mixed[-1] = layout.layer(sources[-1], "none")
    layout.tag("mixed", layout.image(mixed, cmd))
    for number, layer in enumerate(layers[: len(packages)], 1):
        layout.tag(f"only-{number:02}", layout.image([layer], cmd))


if __name__ == "__main__":
    main()
