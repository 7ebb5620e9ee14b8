"""Lists a folder so that two of them are the same when, and only when, their lists are.

    tree.py FOLDER

One line an entry, sorted: path, kind, mode, owner and group, links, size or device, time of change in nanoseconds,
target or SHA-256 of the content, extended attributes. Of the names of one file each has the first of them in its line.
"""

import hashlib
import os
import stat
import sys

KINDS = {
    stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link", stat.S_IFCHR: "char", stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket",
}  # fmt: skip


def shown(name: bytes) -> str:
    """Any bytes as a word without white space."""
    return "".join(chr(byte) if 0x21 <= byte < 0x7F and byte != 0x5C else f"\\x{byte:02x}" for byte in name)


def content(path: bytes) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def attributes(path: bytes) -> list[str]:
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return [f"{name}={os.getxattr(path, name, follow_symlinks=False).hex()}" for name in names]


def paths(folder: bytes) -> list[bytes]:
    found = [folder]
    for place, folders, files in os.walk(folder):
        found += [os.path.join(place, name) for name in folders + files]
    return sorted(found)


def main() -> None:
    top = os.fsencode(sys.argv[1])
    first_names: dict[int, str] = {}
    for path in paths(top):
        status = os.lstat(path)
        kind = KINDS[stat.S_IFMT(status.st_mode)]
        name = shown(path[len(top) :] or b"/")
        # Folders have as many links as a file system likes, and sizes as well.
        links = "-" if kind == "folder" else f"{status.st_nlink}:{first_names.setdefault(status.st_ino, name)}"
        size, what = "-", "-"
        if kind == "file":
            size, what = str(status.st_size), content(path)
        elif kind == "link":
            what = shown(os.readlink(path))
        elif kind in ("char", "block"):
            size = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        owner = f"{status.st_uid}:{status.st_gid}"
        print(name, kind, mode, owner, links, size, status.st_mtime_ns, what, *attributes(path))


if __name__ == "__main__":
    main()
