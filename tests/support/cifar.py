"""CIFAR's files, pickled as Python 2 pickles them."""

import struct

import numpy as np


def python2(value) -> bytes:
    """The pickle operations by which Python 2's pickler, protocol 2, writes a value."""
    if isinstance(value, dict):
        items = b"".join(python2(k) + python2(v) for k, v in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(python2, value)) + b"e"
    if isinstance(value, str):
        return b"U" + bytes([len(value)]) + value.encode()
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    shape = b"".join(map(python2, value.shape))
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85U\x01btR(K\x01(" + shape
        + b"tcnumpy\ndtype\n(U\x02u1K\0K\x01tR(K\x03U\x01|NNN" + 2 * b"J\xff\xff\xff\xff"
        + b"K\0tb\x89T"
        + struct.pack("<i", value.size) + value.tobytes() + b"tb"
    )  # fmt: skip


def write_cifar(root, per_file=6, classes=100):
    """CIFAR-100 or CIFAR-10 with random pixels in torchvision's layout; its folder."""
    rng = np.random.default_rng(0)
    folder = root / ("cifar-100-python" if classes == 100 else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    files = ["train", "test"]
    if classes == 10:
        files = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    for file in files:
        labels = rng.integers(0, classes, per_file).tolist()
        labels[: min(per_file, classes)] = range(min(per_file, classes))
        content = {
            "filenames": [f"{k}.png" for k in range(per_file)],
            "fine_labels" if classes == 100 else "labels": labels,
            "data": rng.integers(0, 256, (per_file, 3072), np.uint8),
        }
        (folder / file).write_bytes(b"\x80\x02" + python2(content) + b".")
    key, meta = ("fine_label_names", "meta") if classes == 100 else ("label_names", "batches.meta")
    names = {key: [f"c{k:02}" for k in range(classes)]}
    (folder / meta).write_bytes(b"\x80\x02" + python2(names) + b".")
    return folder
