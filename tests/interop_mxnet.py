"""Our records against MXNet 1.9.1, both directions. Runs in its own environment:

make test-mxnet        # builds .venv-mxnet from requirements-mxnet.txt (NumPy < 1.24)
"""

import numpy as np
import pytest
from mxnet import recordio

from bct.data.record_writer import RecordWriter
from bct.data.recordio import MAGIC, Header, RecordReader
from bct.data.recordio_mxnet import MxnetReader

MAGIC_BYTES = MAGIC.to_bytes(4, "little")


def records():
    rng = np.random.default_rng(0)
    cases = [
        (Header(3.0, 1, 2), b"plain"),
        (Header(np.float32([1.5, 2.0]), 2**40, 7), b""),
        (Header(0.0), MAGIC_BYTES),  # the magic alone
        (Header(0.0), b"ab" + MAGIC_BYTES),  # not aligned: stays whole
        (Header(1.0), b"abcd" + MAGIC_BYTES + MAGIC_BYTES + b"e" + MAGIC_BYTES),
        (Header(np.float32([9.0] * 9), 5), rng.bytes(1000)),
    ]
    for _ in range(50):
        pieces = [rng.bytes(int(rng.integers(0, 9))) for _ in range(4)]
        cases.append(
            (Header(float(rng.integers(100)), int(rng.integers(2**31))), MAGIC_BYTES.join(pieces))
        )
    return cases


@pytest.fixture
def both(tmp_path):
    theirs = recordio.MXIndexedRecordIO(
        str(tmp_path / "theirs.idx"), str(tmp_path / "theirs.rec"), "w"
    )
    with RecordWriter(tmp_path / "ours.rec") as ours:
        for key, (header, data) in enumerate(records()):
            flag = 0 if np.ndim(header.label) == 0 else len(header.label)
            theirs.write_idx(
                key,
                recordio.pack(recordio.IRHeader(flag, header.label, header.id, header.id2), data),
            )
            ours.write(key, header, data)
    theirs.close()
    return tmp_path


def test_files_are_equal_byte_for_byte(both):
    for suffix in (".rec", ".idx"):
        assert (both / f"ours{suffix}").read_bytes() == (both / f"theirs{suffix}").read_bytes()


def test_each_reads_what_the_other_wrote(both):
    ours = RecordReader(both / "theirs.rec")
    theirs = recordio.MXIndexedRecordIO(str(both / "ours.idx"), str(both / "ours.rec"), "r")
    through = MxnetReader(both / "ours.rec")
    for key, (header, data) in enumerate(records()):
        for label, identifier, second, read in (
            (*ours.read(key)[0], ours.read(key)[1]),
            (*through.read(key)[0], through.read(key)[1]),
            (lambda h, d: (h.label, h.id, h.id2, d))(*recordio.unpack(theirs.read_idx(key))),
        ):
            np.testing.assert_array_equal(label, np.float32(header.label))
            assert (identifier, second, bytes(read)) == (header.id, header.id2, data)


def test_the_keys_are_mxnets(both):
    theirs = recordio.MXIndexedRecordIO(str(both / "ours.idx"), str(both / "ours.rec"), "r")
    assert theirs.keys == RecordReader(both / "ours.rec").keys.tolist()
