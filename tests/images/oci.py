"""Writes OCI layout folders byte by byte as asked: any compression, any media types, any list of platforms.

    oci.py LAYOUT TAG [--cmd WORD]... SOURCE...     an image with one gzip layer for each SOURCE, a folder or a tar file

The scripts beside this one use it as a module.
"""

import argparse
import hashlib
import json
import os
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CHUNK = 1 << 20
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Ending of a layer's media type, and the program that makes it from a tar file.
COMPRESSIONS = {
    "none": ("", None),
    "gzip": ("+gzip", ["gzip", "-6", "-n"]),
    "zstd": ("+zstd", ["zstd", "-q", "-3", "-c"]),
}


@dataclass(frozen=True)
class Family:
    """Names of media types."""

    index: str
    manifest: str
    config: str
    layer: str


OCI = Family(
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.oci.image.layer.v1.tar",
)
DOCKER = Family(
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.container.image.v1+json",
    "application/vnd.docker.image.rootfs.diff.tar",
)


@dataclass(frozen=True)
class Layer:
    compression: str
    digest: str
    size: int
    diff_id: str

    def descriptor(self, family: Family) -> dict:
        ending = COMPRESSIONS[self.compression][0]
        # Docker writes a dot where OCI writes a plus.
        ending = ending.replace("+", ".") if family is DOCKER else ending
        return {"mediaType": family.layer + ending, "digest": self.digest, "size": self.size}


def read_tar(source: Path) -> subprocess.Popen:
    """The bytes of a tar file, or of what a folder holds, owned by root where this user is not."""
    if source.is_file():
        command = ["cat", source]
    else:
        command = ["tar", "-C", source, "--format=pax", "--sort=name", "--numeric-owner", "--xattrs", "-cf", "-", "."]
        command[4:4] = [] if os.geteuid() == 0 else ["--owner=0", "--group=0"]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


class Layout:
    def __init__(self, folder: Path):
        self.folder = folder
        self.blobs = folder / "blobs/sha256"
        self.blobs.mkdir(parents=True, exist_ok=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        self.tags: list[dict] = []

    def put(self, data: bytes, media_type: str) -> dict:
        digest = hashlib.sha256(data).hexdigest()
        (self.blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def put_json(self, value: dict, media_type: str) -> dict:
        return self.put(json.dumps(value, separators=(",", ":")).encode(), media_type)

    def layer(self, source: Path, compression: str = "gzip") -> Layer:
        """Stores a layer without holding it in memory."""
        tar = read_tar(source)
        with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as out:
            program = COMPRESSIONS[compression][1] or ["cat"]
            packer = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            plain, packed = hashlib.sha256(), hashlib.sha256()

            def feed() -> None:
                with packer.stdin as pipe:
                    while chunk := tar.stdout.read(CHUNK):
                        plain.update(chunk)
                        pipe.write(chunk)

            feeder = threading.Thread(target=feed)
            feeder.start()
            while chunk := packer.stdout.read(CHUNK):
                packed.update(chunk)
                out.write(chunk)
            feeder.join()
            size = out.tell()
        for process in (tar, packer):
            if process.wait() != 0:
                raise SystemExit(f"{process.args} failed with {source}")
        # A temporary file is its owner's alone.
        os.chmod(out.name, 0o644)
        os.replace(out.name, self.blobs / packed.hexdigest())
        return Layer(compression, f"sha256:{packed.hexdigest()}", size, f"sha256:{plain.hexdigest()}")

    def layers(self, sources: list[Path]) -> list[Layer]:
        """Several layers at once; the first the largest gives the best use of the cores."""
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            return list(pool.map(self.layer, sources))

    def image(
        self, layers: list[Layer], cmd: list[str], architecture: str = "amd64", family: Family = OCI, **platform: str
    ) -> dict:
        """The descriptor of a manifest, with its platform."""
        platform = {"architecture": architecture, "os": "linux"} | platform
        config = platform | {
            "created": "2024-01-01T00:00:00Z",
            "config": {"Cmd": cmd, "Env": [PATH]},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [{"created": "2024-01-01T00:00:00Z", "created_by": "tests/images"} for _ in layers],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": family.manifest,
            "config": self.put_json(config, family.config),
            "layers": [layer.descriptor(family) for layer in layers],
        }
        return self.put_json(manifest, family.manifest) | {"platform": platform}

    def index(self, manifests: list[dict], family: Family = OCI) -> dict:
        index = {"schemaVersion": 2, "mediaType": family.index, "manifests": manifests}
        return self.put_json(index, family.index)

    def tag(self, name: str, descriptor: dict) -> None:
        """Names a manifest or an index; index.json is always complete."""
        self.tags.append(descriptor | {"annotations": {"org.opencontainers.image.ref.name": name}})
        index = {"schemaVersion": 2, "mediaType": OCI.index, "manifests": self.tags}
        (self.folder / "index.json").write_text(json.dumps(index))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layout", type=Path)
    parser.add_argument("tag")
    parser.add_argument("--cmd", action="append", default=[])
    parser.add_argument("sources", type=Path, nargs="+", metavar="SOURCE")
    arguments = parser.parse_args()
    layout = Layout(arguments.layout)
    layout.tag(arguments.tag, layout.image(layout.layers(arguments.sources), arguments.cmd or ["sh"]))


if __name__ == "__main__":
    main()
