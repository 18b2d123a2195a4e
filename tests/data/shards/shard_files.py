# SPDX-License-Identifier: MIT
"""WebDataset shards that no converter of ours has written."""

import io
import tarfile

from PIL import Image


def jpeg(value=0):
    stream = io.BytesIO()
    Image.new("RGB", (24, 20), (value, 10, 90)).save(stream, "JPEG")
    return stream.getvalue()


def write_shard(path, members):
    """A tar file with the members (name, bytes), by nobody's converter but this one's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def sample(number, label=None):
    labels = [] if label is None else [(f"{number:04d}.cls", str(label).encode())]
    return [(f"{number:04d}.jpg", jpeg(number)), *labels]


def few(folder, count=3, each=4, labelled=True):
    """`count` shards with `each` samples; the label of sample n is n % 2."""
    for shard in range(count):
        numbers = range(shard * each, (shard + 1) * each)
        members = [m for n in numbers for m in sample(n, n % 2 if labelled else None)]
        write_shard(folder / f"part-{shard:04d}.tar", members)
    return folder
