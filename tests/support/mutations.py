"""Seeded mutations of files, and reading them in bounded time and memory."""

import re
import resource
import signal
import struct
import tracemalloc

import numpy as np

from bct.data.recordio import MAGIC
from bct.errors import BctError

SECONDS = 20  # of CPU time that one input may take
FIELD = re.compile(rb"[^\s,=:\"']+")
EXTREME = (0, 1, 7, 24, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 29) - 1, 1 << 29, MAGIC)
NUMBERS = (
    b"-1 0 +3 1e3 1.5 0x10 1_0 99999999999999999999 9223372036854775807 9223372036854775808 "
    b"18446744073709551615 -9223372036854775809 nan inf # 536870911 \xd9\xa1 ../x /etc/passwd"
).split()


def flip(rng, data):
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)


def overwrite(rng, data):
    at, n = rng.integers(len(data)), rng.integers(1, 9)
    data[at : at + n] = rng.choice([rng.bytes(n), b"\0" * n, b"\xff" * n])


def truncate(rng, data):
    del data[rng.integers(len(data)) :]


def insert(rng, data):
    at = rng.integers(len(data) + 1)
    data[at:at] = rng.choice([rng.bytes(int(rng.integers(1, 9))), b"\0", b"\xff\xfe", b"\n", b"#"])


def delete(rng, data):
    at = rng.integers(len(data))
    del data[at : at + rng.integers(1, 41)]


def swap(rng, data):
    n = int(rng.integers(1, max(2, len(data) // 4)))
    a, b = sorted(rng.integers(0, max(1, len(data) - n), 2))
    if b - a >= n:
        data[a : a + n], data[b : b + n] = data[b : b + n], data[a : a + n]


def extreme(rng, data):
    """An aligned word, where a length may be, becomes an extreme number."""
    at = int(rng.integers(max(1, len(data) // 4))) * 4
    data[at : at + 4] = struct.pack("<I", rng.choice(EXTREME))


def number(rng, data):
    """A field of a text becomes another number, or none."""
    fields = list(FIELD.finditer(data))
    if fields:
        start, end = fields[rng.integers(len(fields))].span()
        data[start:end] = rng.choice(np.array(NUMBERS, object))


def repeat_line(rng, data):
    lines = data.splitlines(keepends=True)
    if lines:
        at = rng.integers(len(lines))
        data[:] = b"".join([*lines[: at + 1], *lines[at:]])


def drop_line(rng, data):
    lines = data.splitlines(keepends=True)
    if lines:
        del lines[rng.integers(len(lines))]
        data[:] = b"".join(lines)


def swap_lines(rng, data):
    lines = data.splitlines(keepends=True)
    if lines:
        a, b = rng.integers(0, len(lines), 2)
        lines[a], lines[b] = lines[b], lines[a]
        data[:] = b"".join(lines)


BYTES = (flip, overwrite, truncate, insert, delete, swap, extreme)
TEXT = (*BYTES, number, number, number, repeat_line, drop_line, swap_lines)


def mutated(content, kinds, count, seed):
    """`count` times the content with 1 mutation or, one time in four, up to 4."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        data = bytearray(content)
        for _ in range(rng.choice([1, 1, 1, rng.integers(2, 5)])):
            if data:
                kinds[rng.integers(len(kinds))](rng, data)
        yield bytes(data)


def stop(*_):
    raise TimeoutError(f"no answer within {SECONDS} s")


def attempt(name, read, *arguments):
    """What `read` gives, or None when it refuses properly, saying `name`, a pattern."""
    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        return read(*arguments)
    except BctError as error:
        assert re.search(name, error.what) and len(str(error).splitlines()) == 2, str(error)
        return None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def bounded(mebibytes, call, *arguments):
    """What `call` gives, in bounded memory: of Python and NumPy exactly, else as the system saw."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        result = call(*arguments)
        assert tracemalloc.get_traced_memory()[1] < mebibytes << 20
    finally:
        tracemalloc.stop()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4 * mebibytes << 10
    return result
