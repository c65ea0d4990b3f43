"""Opening a record file of MS1MV3's size: ours, with its index cached, and the classic way.

Classic: as mxnet.recordio does, the text of the .idx goes line by line into a dict key -> offset
and a list of the keys. Every loader worker ends up with its own copy of these objects: a look-up
changes their reference counts, and with that their pages, which were shared until then. The memory
is the private one of a forked worker that has looked up every key, as the kernel counts it.

The records are without data, 32 bytes each; keys are 1 ... n and, as insightface writes it, 0 last.
All files are in the page cache. The limit is reading the bytes of the .idx.
"""

import multiprocessing
import os
import re
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bct.data.record_index import cache_folder
from bct.data.recordio import MAGIC, RecordReader
from benchmarks.classic import ClassicRecords
from benchmarks.common import Goal, Row, interleaved, median, publish, seconds, start

RECORDS = 5_179_511  # MS1MV3's images and a header
RECORD = np.dtype(
    [("magic", "<u4"), ("length", "<u4"), ("flag", "<u4"), ("label", "<f4"), ("id", "<u8", 2)]
)


def main() -> None:
    args = start(__doc__, training=False)
    count, repeats = (400_000, 1) if args.small else (RECORDS, 3)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # not the user's own
        path = _write(Path(folder) / "train.rec", np.roll(np.arange(count), -1))
        index = path.with_suffix(".idx")
        first = seconds(lambda: RecordReader(path))
        (kept,) = cache_folder().iterdir()
        memory = private_mb(path, RecordReader, _look_up_ours)
        candidates = {
            "ours": lambda: RecordReader(path),
            "limit": index.read_bytes,
            "classic": lambda: ClassicRecords(path),
        }
        times = interleaved(candidates, repeats)
        reader = RecordReader(path)
        heads = interleaved({"": reader.heads}, repeats)[""]
        of_classic = private_mb(path, ClassicRecords, _look_up_classic)
        _check(RecordReader(path), ClassicRecords(path))
        text = index.stat().st_size / 1e6, kept.stat().st_size / 1e6
        _write(path, np.random.default_rng(0).permutation(count))
        again = interleaved({"": lambda: RecordReader(path)}, repeats)[""]
    size = f"{count / 1e6:.1f} M"
    rows = [
        Row(
            f"open a {size}-record index",
            **times,
            limit_name="reading the text",
            goal=Goal(times=20),
        ),
        Row(
            f"memory of a loader worker, {size} records",
            [memory],
            [of_classic],
            unit="MB",
            goal=Goal(times=20),
        ),
    ]
    publish(
        args,
        rows,
        f"{count:,} records, {text[0]:.0f} MB of text, {text[1]:.0f} MB in the cache. The first "
        f"opening, which parses the text and fills the cache, took {first:.2f} s, "
        f"{median(times['classic']) / first:.1f} times as fast as the classic way. With keys in "
        f"random order, which have to be sorted: {median(again):.3f} s. All labels, by which "
        f"classes are counted: {median(heads):.3f} s. Both ways gave the same keys and offsets.",
    )


def private_mb(
    path: Path, opened: Callable[[Path], object], look_up: Callable[[object], None]
) -> float:
    """Private memory, in MB, of a worker forked after the opening, when it has looked up all."""
    reader = opened(path)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        look_up(reader)
        lines = Path("/proc/self/smaps_rollup").read_text()
        sender.send(sum(map(int, re.findall(r"^Private_\w+: +(\d+) kB", lines, re.M))))

    worker = context.Process(target=work)
    worker.start()
    private = receiver.recv()
    worker.join()
    return private * 1024 / 1e6


def _look_up_ours(reader: RecordReader) -> None:
    for i in range(len(reader)):
        reader.offset(int(reader.keys[i]))


def _look_up_classic(records: ClassicRecords) -> None:
    keys = np.arange(len(records.keys))  # insightface has them in an array, too
    for i in range(len(keys)):
        records.offsets[keys[i]]


def _check(reader: RecordReader, records: ClassicRecords) -> None:
    assert reader.keys.tolist() == records.keys
    assert reader.offsets.tolist() == list(records.offsets.values())
    for key in records.keys[:: len(records.keys) // 100]:
        header, data = reader.read(key)
        assert struct.unpack("<IfQQ", records.read(key)) == (0, *header) and not data


def _write(path: Path, keys: np.ndarray) -> Path:
    """Records with these keys (n,), in this order, and their index."""
    records = np.zeros(len(keys), RECORD)
    records["magic"], records["length"], records["id"][:, 0] = MAGIC, RECORD.itemsize - 8, keys
    records.tofile(path)
    rows = zip(keys.tolist(), range(0, records.nbytes, RECORD.itemsize), strict=True)
    with open(path.with_suffix(".idx"), "w") as index:
        index.writelines(f"{key}\t{offset}\n" for key, offset in rows)
    return path


if __name__ == "__main__":
    main()
