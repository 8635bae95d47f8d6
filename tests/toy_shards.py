"""Tar shards for the tests, made by tarfile itself."""

import io
import tarfile
from pathlib import Path

from toy import draw


def picture(number: int, form: str = "PNG", size: int = 16) -> bytes:
    buffer = io.BytesIO()
    draw(number, size).save(buffer, form)
    return buffer.getvalue()


def make_tar(path: Path, members: dict[str, bytes], form: int = tarfile.USTAR_FORMAT, **options) -> Path:
    """A tar file of these members. options: of tarfile."""
    with tarfile.open(path, "w", format=form, **options) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def make_shards(folder: Path, sizes: list[int]) -> str:
    """Shards s-0.tar, s-1.tar, ... of so many samples each, a caption each. Gives the pattern of their names."""
    number = 0
    for shard, size in enumerate(sizes):
        members = {}
        for _ in range(size):
            members |= {f"{number:06d}.png": picture(number), f"{number:06d}.txt": b"photo %d" % number}
            number += 1
        make_tar(folder / f"s-{shard}.tar", members)
    return f"s-{{0..{len(sizes) - 1}}}.tar"


def write_section(folder: Path, urls: str) -> str:
    """A datasets.conf whose section `shards` has these urls. Returns its path."""
    (folder / "datasets.conf").write_text(f"[shards]\ndataset_class = WebDataset\nurls = {urls}\n")
    return str(folder / "datasets.conf")
