"""Unpacks the zips of a data set into one folder.

    python tools/unpack.py ../shared/data/omniglot_small --out work_dirs/omniglot/data
    python tools/unpack.py tiny-imagenet-200.zip --out dataset/tiny-imagenet

A folder stands for the zips in it, or else in the first level below that has any. Where all of a
zip is in one folder, that one is left out: images_background_small1.zip and ...small2.zip of
Omniglot give alphabets side by side. A file that two zips have must be the same in both. The folder
appears when it is complete; a second call reuses it as long as the zips are the same.
"""

import contextlib
import filecmp
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from bct.command import Parser, file_path, run_cli
from bct.errors import BctError
from bct.files import read_json, sha256_file, write_json
from bct.folders import atomic_folder

MANIFEST = "unpacked.json"


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("source", type=file_path, nargs="+", help="zips, or folders of zips")
    parser.add_argument("--out", type=file_path, required=True, help="a new folder")
    args = parser.parse_args()
    unpack([file for source in args.source for file in find_zips(source)], args.out)


def find_zips(source: Path) -> list[Path]:
    """A zip itself, or the sorted zips of the highest level of a folder. BctError if none."""
    found = [source] if source.is_file() else sorted(source.rglob("*.zip"))
    if not found:
        raise BctError(f"there is no zip in {source}", "check the path")
    depth = min(len(file.parts) for file in found)
    return [file for file in found if len(file.parts) == depth]


def unpack(zips: list[Path], out: Path) -> None:
    """Unpacks zips into a new folder. BctError for what is no zip, is damaged, or would write
    outside of the folder."""
    manifest = {"zips": {file.name: sha256_file(file) for file in zips}}
    if _is_there(out, manifest):
        return print(f"{out} is up to date: reusing it")
    with atomic_folder(out, MANIFEST) as folder:
        for file in zips:
            _extract(file, folder)
        write_json(folder / MANIFEST, manifest)
        _is_there(out, manifest)  # another process may have been faster
    print(f"{out}: {', '.join(file.name for file in zips)} unpacked")


def _is_there(out: Path, manifest: dict) -> bool:
    if not out.exists():
        return False
    if (out / MANIFEST).is_file() and read_json(out / MANIFEST) == manifest:
        return True
    raise BctError(f"{out} exists and was not made of these zips", "move it away, or another --out")


def _extract(file: Path, folder: Path) -> None:
    with _reading(file):
        archive = zipfile.ZipFile(file)
    with archive:
        members = [m for m in archive.infolist() if not m.is_dir()]
        paths = [_inside(file, member) for member in members]
        needed, free = sum(m.file_size for m in members), shutil.disk_usage(folder).free
        if needed > free:
            raise BctError(
                f"{file} holds {needed >> 20} MiB, {folder.parent} has {free >> 20} left",
                "make room, or give another --out",
            )
        tops = {path.parts[0] for path in paths}
        strip = len(tops) == 1 and all(len(path.parts) > 1 for path in paths)
        for member, path in zip(members, paths, strict=True):
            target = folder.joinpath(*path.parts[strip:])
            target.parent.mkdir(parents=True, exist_ok=True)
            there = target.exists()
            place = target.with_name(f"{target.name[:200]}.again") if there else target
            with _reading(file), archive.open(member) as source, open(place, "xb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)  # in bounded memory; checks its CRC
            if there:
                if not filecmp.cmp(target, place, shallow=False):
                    raise BctError(
                        f"{file}: {path} is in another zip, too, and differs there",
                        "give one of them",
                    )
                place.unlink()


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        reason = f"it is damaged: {error}"
    except NotImplementedError as error:
        reason = f"{error}"
    except RuntimeError:  # zipfile's word for it
        reason = "it is encrypted"
    else:
        return
    raise BctError(
        f"{file} can't be unpacked ({reason})",
        "copy the zip again, or take one from another source",
    )


def _inside(file: Path, member: zipfile.ZipInfo) -> PurePosixPath:
    path = PurePosixPath(member.filename)
    link = stat.S_ISLNK(member.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or link or not path.parts:
        raise BctError(
            f"{file} would write outside of its folder: {member.filename!r}",
            "do not use this file",
        )
    return path


if __name__ == "__main__":
    run_cli(main)
