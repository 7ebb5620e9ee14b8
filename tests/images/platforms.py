"""The image `platforms`.

    platforms.py LAYOUT AMD64 ARM64     the folders that the images of the two platforms hold
"""

import sys
from pathlib import Path

from oci import DOCKER, OCI, Layout


def main() -> None:
    folder, amd64, arm64 = map(Path, sys.argv[1:])
    layout = Layout(folder)
    here, there = layout.layers([amd64, arm64])
    for tag, family in (("latest", OCI), ("docker", DOCKER)):
        # The other platform comes first: whoever takes the first of a list takes the wrong one.
        manifests = [
            layout.image([there], ["cat", "/platform"], "arm64", family, variant="v8"),
            layout.image([here], ["cat", "/platform"], "amd64", family),
        ]
        layout.tag(tag, layout.index(manifests, family))


if __name__ == "__main__":
    main()
