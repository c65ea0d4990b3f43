"""Converts data sets between the formats of insightface and MXNet; images pass byte for byte.

    python tools/convert.py shuffle dataset/ms1m dataset/shuffled_ms1m --seed 0
    python tools/convert.py folder-to-rec aligned_faces/ dataset/mine
    python tools/convert.py lst-to-rec faces.lst dataset/faces.rec --root aligned_faces/
    python tools/convert.py rec-to-folder dataset/ms1m/train.rec faces/
    python tools/convert.py pairs pairs.txt lfw.bin --root aligned_faces/
    python tools/convert.py bin-to-folder lfw.bin lfw/

shuffle        a record file's images in a random order, as insightface's shuffle_rec leaves them:
               keys from 0, one label each, no header and no identity records. `property` and
               identities.txt are kept, what else lies beside the file is not. Reads and writes in
               sequence, in a few hundred MiB of memory; the images need room on the disk twice.
folder-to-rec  what tools/folder_to_rec.py does.
lst-to-rec     what im2rec --pass-through writes: keys are the list's indices. Any size of images.
rec-to-folder  <class>/<key>.jpg; classes are called as identities.txt beside the file says, else
               by their labels.
pairs          lines "<path> <path> <0|1>", with tabs between where a path has spaces, to a set of
               pairs for verification, in insightface's .bin format.
bin-to-folder  its images and pairs.txt; `pairs` makes the same set of it again.

Nothing is replaced: what is there must be what the same command has made, and is then kept.
"""

import json
import os
import pickle
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bct.command import Parser, file_path, run_cli, takes
from bct.data.image_files import as_text, read_regular
from bct.data.images import SIZE, decode
from bct.data.lst_files import images_of, read_lst
from bct.data.record_writer import RecordWriter, claim, holds
from bct.data.recordio import Header
from bct.data.sets import RecordSet
from bct.errors import BctError
from bct.files import atomic, read_json, sha256_file, without_mark, write_json
from bct.folders import atomic_folder
from bct.keys import whole
from bct.log import progress
from bct.protocols.pairs import image_bytes, read_bin
from tools.formats.pack import pack

BUCKET, _BUCKETS = 1 << 28, 256  # bytes of images in memory, and files that are open at once
_HEAD = struct.Struct("<QfI")  # in a bucket: place, label, bytes of the image
_KEPT = ("property", "identities.txt")
_MANIFEST = "converted.json"
_SUFFIXES = (
    (b"\xff\xd8", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"BM", ".bmp"),
    (b"GIF8", ".gif"),
    (b"RIFF", ".webp"),
    *((b"P%d" % kind, ".ppm") for kind in range(1, 7)),
)


def main() -> None:
    parser = Parser(__doc__)
    commands = parser.add_subparsers(
        dest="command", required=True, parser_class=lambda **how: Parser(__doc__, how["prog"])
    )

    def command(name: str, source: str, out: str) -> Parser:
        added = commands.add_parser(name)
        added.add_argument("source", type=file_path, help=source)
        added.add_argument("out", type=file_path, help=out)
        return added

    shuffling = command("shuffle", "a .rec, or its folder", "folder for train.rec")
    shuffling.add_argument("--seed", type=takes(whole(0)), default=0, help="of the order")
    command("folder-to-rec", "one sub-folder per identity", "folder for train.rec")
    below = "folder that paths start in; default: the list's, or what its first line says"
    listed = command("lst-to-rec", "a .lst", "the record file, .rec")
    listed.add_argument("--root", type=file_path, help=below)
    command("rec-to-folder", "a .rec, or its folder", "a new folder")
    paired = command("pairs", "lines of two paths and 0 or 1", "the set, .bin")
    paired.add_argument("--root", type=file_path, help="folder that paths start in; default: here")
    command("bin-to-folder", "a set of pairs, .bin", "a new folder")
    args = parser.parse_args()
    run = {
        "shuffle": lambda: shuffle(args.source, args.out, args.seed),
        "folder-to-rec": lambda: pack(args.source, args.out),
        "lst-to-rec": lambda: lst_to_rec(args.source, args.out, args.root),
        "rec-to-folder": lambda: rec_to_folder(args.source, args.out),
        "pairs": lambda: pairs(args.source, args.out, args.root),
        "bin-to-folder": lambda: bin_to_folder(args.source, args.out),
    }
    run[args.command]()


def _open_records(source: Path) -> RecordSet:
    return RecordSet(source / "train.rec" if source.is_dir() else source)


def shuffle(source: Path, out: Path, seed: int, bucket: int = BUCKET) -> None:
    """Writes out/train.rec. Every order is equally likely, and follows from the seed alone.

    Args:
        bucket: bytes of images that are held in memory, more or less.

    Raises BctError: labels or records that are broken, or files of somebody else's in `out`.
    """
    records, path = _open_records(source), out / "train.rec"
    if path.resolve() == records.path.resolve():
        raise BctError(f"{path} would be replaced by itself", "give another folder")
    beside = {
        path.with_name(name): file.read_bytes().decode(errors="surrogateescape")
        for name in _KEPT
        if (file := records.path.with_name(name)).is_file()
    }
    about = {"source": records.fingerprint, "seed": seed, "images": len(records)}
    if not _claimed(path, {**about, "classes": records.num_classes}, beside):
        return
    place = np.random.default_rng([seed, len(records)]).permutation(len(records))
    count = min(max(-(-records.path.stat().st_size // bucket), 1), _BUCKETS)
    held = -(-len(records) // count)  # images of a bucket
    with ExitStack() as stack:
        writer = stack.enter_context(RecordWriter(path))
        buckets = [stack.enter_context(tempfile.TemporaryFile(dir=out)) for _ in range(count)]
        for index in progress(range(len(records)), "read", unit="img"):
            data, label = records.payload(index)
            if not len(data):
                raise records.reader.broken(int(records.keys[index]), "it has no data")
            file = buckets[place[index] // held]
            file.write(_HEAD.pack(place[index], label, len(data)))
            file.write(data)
        for file in progress(buckets, "write", unit="bucket"):
            for key, label, data in sorted(_read_bucket(file)):
                writer.write(key, Header(label, key), data)
            file.truncate(0)  # its room is free for the next
    print(f"{path}: {len(records)} images in the order of seed {seed}")
    if left := sorted(file.name for file in records.path.parent.glob("*.bin")):
        print(f"not copied: {', '.join(left)}")


def _read_bucket(file: BinaryIO) -> Iterator[tuple[int, float, bytes]]:
    file.seek(0)
    while head := file.read(_HEAD.size):
        key, label, length = _HEAD.unpack(head)
        yield key, label, file.read(length)


def _claimed(path: Path, about: dict, beside: dict[Path, str] | None = None) -> bool:
    """Whether `path` is to be written now: False if this command has done so before.

    Raises BctError for files of somebody else's.
    """
    side = path.with_suffix(".json")
    text = json.dumps(about, indent=2) + "\n"
    if os.path.lexists(path):
        if path.is_file() and holds(side, text):
            print(f"{path} is up to date: reusing it")
            return False
        raise BctError(f"{path} exists and was not made in this way", "give another name")
    claim(path, {**(beside or {}), side: text})
    return True


def lst_to_rec(source: Path, out: Path, root: Path | None) -> None:
    """Packs a list's images in its order. BctError like open_lst, for an index that occurs twice
    and for a broken image."""
    if out.suffix != ".rec":
        raise BctError(f"{out} is to be a record file", "give it a name that ends in .rec")
    read = read_lst(source)
    images = images_of(source, read, root)
    keys, counts = np.unique(read.keys, return_counts=True)
    if len(keys) < len(images):
        raise BctError(
            f"{source}: {counts.max()} lines have the index {keys[counts.argmax()]}",
            "give each line an index of its own: it is the record's key",
        )
    about = {"source": images.fingerprint, "list": sha256_file(source), "images": len(images)}
    if not _claimed(out, {**about, "classes": images.num_classes}):
        return
    with RecordWriter(out) as writer:
        for index in progress(range(len(images)), out.stem, unit="img"):
            data, label = images.payload(index)
            images.image(index)  # refuses a broken one
            key = int(read.keys[index])
            writer.write(key, Header(float(label), key), data)
    print(f"{out}: {len(images)} images, {images.num_classes} classes")


def rec_to_folder(source: Path, out: Path) -> None:
    """Writes a folder for each class. BctError for records or labels that are broken, and names in
    identities.txt that can't be folders."""
    records = _open_records(source)
    names, digits = _identities(records), len(str(len(records.reader.keys)))
    about = {"source": records.fingerprint, "names": names}
    if not _is_new(out, about):
        return
    with atomic_folder(out, _MANIFEST) as folder:
        for name in names:
            os.mkdir(folder / name)
        for index in progress(range(len(records)), out.name, unit="img"):
            data, label = records.payload(index)
            file = f"{records.keys[index]:0{digits}d}{_suffix(data, records.describe(index))}"
            (folder / names[label] / file).write_bytes(data)
        write_json(folder / _MANIFEST, about)
        _is_new(out, about)  # another process may have been faster
    print(f"{out}: {len(records)} images, {len(names)} classes")
    if names != sorted(names, key=os.fsencode):
        print("the order of the names is not that of the labels: read as a folder, these change")


def _identities(records: RecordSet) -> list[str]:
    """A name for each label: identities.txt of folder_to_rec, else the labels."""
    count, file = records.num_classes, records.path.with_name("identities.txt")
    if not file.is_file():
        return [f"{label:0{len(str(count - 1))}d}" for label in range(count)]
    names = [os.fsdecode(line) for line in file.read_bytes().split(b"\n")[:-1]]
    odd = [name for name in names if name in ("", ".", "..") or "/" in name or "\0" in name]
    if len(names) != count or odd or len(set(names)) < count:
        why = f"{odd[0]!r} is among its names" if odd else f"it has {len(set(names))} names"
        raise BctError(
            f"{file} does not name the {count} classes of {records.path}: {why}",
            "move it away: the classes are then called by their labels",
        )
    return names


def _is_new(out: Path, about: dict) -> bool:
    """Whether a folder is to be made; False if the same command has. BctError if it is another."""
    if not os.path.lexists(out):
        return True
    if (out / _MANIFEST).is_file() and read_json(out / _MANIFEST) == about:
        print(f"{out} is up to date: reusing it")
        return False
    raise BctError(f"{out} exists and was not made in this way", "give another folder")


def _suffix(data: bytes | memoryview, what: str) -> str:
    """An image file's suffix, by its first bytes. BctError if it is broken."""
    try:
        decode(data)
    except ValueError as error:
        raise BctError(f"{what} is broken ({error})", "take it out of the set first") from None
    start = bytes(data[:4])
    return next(suffix for head, suffix in _SUFFIXES if start.startswith(head))


def pairs(source: Path, out: Path, root: Path | None) -> None:
    """Writes a set of pairs. BctError for a line that does not parse and a broken image."""
    if out.suffix != ".bin":
        raise BctError(f"{out} is to be a set of pairs", "give it a name that ends in .bin")
    lines = _read_pairs(source)
    encoded, flags, other = [], [], None
    for number, first, second, same in progress(lines, out.stem, unit="pair"):
        for name in (first, second):
            file = os.path.join(os.fsencode(root) if root else b"", name)
            try:
                # read anew each time: pickle would store an object that it meets again by a number
                data = read_regular(os.fsdecode(file))
                size = decode(data).shape[:2]
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else error
                raise BctError(
                    f"{source}, line {number}: {as_text(file)!r} can't be used ({why})",
                    "mend the path or the file, or give the folder that paths start in: --root",
                ) from None
            if size != (SIZE, SIZE):
                other = other or f"{as_text(name)!r} is {size[1]}x{size[0]}"
            encoded.append(data)
        flags.append(same)
    content = pickle.dumps((encoded, flags), protocol=4)
    if os.path.lexists(out):
        if out.is_file() and out.read_bytes() == content:
            return print(f"{out} is up to date: reusing it")
        raise BctError(f"{out} exists and is another set", "move it away, or give another name")
    with atomic(out) as temporary:
        temporary.write_bytes(content)
    print(f"{out}: {len(flags)} pairs, {sum(flags)} of them genuine")
    if other:
        print(f"some are no faces of {SIZE}x{SIZE}, and will be resized when it is read: {other}")


def _read_pairs(source: Path) -> list[tuple[int, bytes, bytes, bool]]:
    """(number of the line, path, path, same)."""
    if not source.is_file():
        raise BctError(f"there is no file {source}", "check the path")
    found = []
    for number, line in enumerate(without_mark(source, source.read_bytes()).split(b"\n"), 1):
        line = line.rstrip(b"\r")
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split(b"\t" if b"\t" in line else None)]
        good = len(fields) == 3 and all(fields) and fields[2] in (b"0", b"1") and b"\0" not in line
        if not good:
            raise BctError(
                f"{source}, line {number} is not <path> <path> <0|1>: {as_text(line[:80])!r}",
                "mend the line; put tabs between where a path has spaces",
            )
        found.append((number, fields[0], fields[1], fields[2] == b"1"))
    if not found:
        raise BctError(f"{source} names no pair", "give a line for each pair")
    return found


def bin_to_folder(source: Path, out: Path) -> None:
    """Writes a set's images, in its order, and pairs.txt. BctError for what is no such set."""
    encoded, flags, _ = read_bin(source)
    about = {"source": sha256_file(source)}
    if not _is_new(out, about):
        return
    digits, names = len(str(len(encoded) - 1)), []
    with atomic_folder(out, _MANIFEST) as folder:
        for index, one in enumerate(progress(encoded, out.name, unit="img")):
            what = f"{source}: image {index}"
            try:
                data = image_bytes(one)
            except ValueError as error:
                raise BctError(f"{what} is broken ({error})", "write the set again") from None
            suffix = _suffix(data, what)
            names.append(f"{index:0{digits}d}{suffix}")
            (folder / names[-1]).write_bytes(data)
        rows = zip(names[0::2], names[1::2], flags, strict=True)
        text = "".join(f"{a} {b} {int(same)}\n" for a, b, same in rows)
        (folder / "pairs.txt").write_text(text)
        write_json(folder / _MANIFEST, about)
        _is_new(out, about)
    print(f"{out}: {len(flags)} pairs")


if __name__ == "__main__":
    run_cli(main)
