"""Data sets and the loader: what arrives on the device is what is in the file."""

import numpy as np
import pytest
import simplejpeg
import torch
from support.pictures import jpeg, write_faces
from support.ranks import run_on_ranks

from bct.data.images import decode, to_network
from bct.data.loader import Loader
from bct.data.record_writer import RecordWriter
from bct.data.recordio import Header, RecordReader
from bct.data.sets import FolderSet, RecordSet, open_images
from bct.errors import BctError

CPU = torch.device("cpu")


@pytest.fixture
def rec(tmp_path):
    return write_faces(tmp_path / "train.rec", [3, 1, 4, 5, 2])


def reference(faces, index, mirrored):
    """One image by the classic per-image path, in float64."""
    image = (
        decode(faces.payload(index)[0])[:, ::-1] if mirrored else decode(faces.payload(index)[0])
    )
    return torch.from_numpy(((image.astype(np.float64) - 127.5) / 127.5).transpose(2, 0, 1).copy())


def collect(loader, epoch):
    batches = list(loader.epoch(epoch))
    return [
        torch.cat([getattr(b, name) for b in batches]) for name in ("images", "labels", "index")
    ]


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("array", [True, False])
def test_layouts(tmp_path, header, array):
    faces = RecordSet(write_faces(tmp_path / "a.rec", [3, 1, 4], header, array))
    assert len(faces) == 8 and faces.num_classes == 3
    assert faces.labels.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert bytes(faces.payload(3)[0]) == jpeg(1, 0)
    assert faces.payload(3)[1] == 1


def test_header_of_a_split_shard_holds_the_number_of_classes(tmp_path):
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(0, Header([4, 2]), b"")
        for key, label in ((1, 0), (2, 1), (3, 1)):
            writer.write(key, Header([label, 0]), jpeg(label, key))
    faces = RecordSet(tmp_path / "a.rec")
    assert len(faces) == 3 and faces.num_classes == 2


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_hold_the_images_of_their_indices(rec, workers):
    faces = RecordSet(rec)
    loader = Loader(faces, 4, CPU, seed=3, num_workers=workers)
    images, labels, index = collect(loader, 0)
    assert len(index) == 12 and len(index.unique()) == 12  # 15 images, the last 3 dropped
    assert labels.tolist() == faces.labels[index].tolist()
    mirrored = 0
    for image, i in zip(images.double(), index.tolist(), strict=True):
        if not torch.allclose(image, reference(faces, i, False), atol=1e-6):
            torch.testing.assert_close(image, reference(faces, i, True), atol=1e-6, rtol=0)
            mirrored += 1
    assert 0 < mirrored < 12


def test_order_and_mirroring_follow_seed_and_epoch_not_the_workers(rec):
    faces = RecordSet(rec)
    runs = {
        key: [collect(Loader(faces, 4, CPU, seed=key[0], num_workers=key[1]), e) for e in (0, 1)]
        for key in ((3, 0), (3, 2), (4, 0))
    }
    for epoch in (0, 1):
        for a, b in zip(runs[3, 0][epoch], runs[3, 2][epoch], strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(runs[3, 0][0][2], runs[3, 0][1][2])
    assert not torch.equal(runs[3, 0][0][2], runs[4, 0][0][2])


def test_the_mirror_stream_differs_between_epochs(rec):
    faces = RecordSet(rec)
    loader = Loader(faces, 15, CPU, train=False, mirror=True, num_workers=0)
    first, second = collect(loader, 0)[0], collect(loader, 1)[0]
    assert not torch.equal(first, second)
    assert torch.equal(first, collect(loader, 0)[0])


def test_the_ring_survives_many_batches_and_epochs(tmp_path):
    """Far more batches than buffers; a slot overwritten early would show as a wrong image."""
    faces = RecordSet(write_faces(tmp_path / "train.rec", [8] * 12))
    want = torch.stack([reference(faces, i, False) for i in range(len(faces))]).float()
    loader = Loader(faces, 3, CPU, num_workers=2, train=False)
    for _ in range(3):
        for batch in loader.epoch():
            torch.testing.assert_close(batch.images, want[batch.index], atol=1e-6, rtol=0)


def shares(path):
    faces = RecordSet(path)
    train = [collect(Loader(faces, 2, CPU, num_workers=0), e)[2] for e in (0, 1)]
    return *train, collect(Loader(faces, 2, CPU, num_workers=0, train=False), 0)[2]


def test_ranks_share_an_epoch(rec):
    one, two = run_on_ranks(2, shares, rec)
    for a, b in zip(one[:2], two[:2], strict=True):
        assert len(a) == len(b) == 8  # 15 images padded to 16, two ranks
        assert set(torch.cat((a, b)).tolist()) == set(range(15))
    assert torch.cat((one[2], two[2])).tolist() == list(range(15))  # extraction: runs, no padding


def test_to_network_constants_and_layout():
    image = torch.tensor([0, 255, 127, 128], dtype=torch.uint8).view(1, 2, 2, 1).expand(1, 2, 2, 3)
    x = to_network(image.contiguous())
    assert x.shape == (1, 3, 2, 2) and x.is_contiguous(memory_format=torch.channels_last)
    want = [-1.0, 1.0, -0.5 / 127.5, 0.5 / 127.5]
    torch.testing.assert_close(x[0, 0].flatten(), torch.tensor(want))


def test_decode_agrees_with_pillow_on_odd_files():
    from io import BytesIO

    from PIL import Image

    image = np.arange(112 * 112 * 3, dtype=np.uint8).reshape(112, 112, 3)
    png = BytesIO()
    Image.fromarray(image).save(png, "PNG")
    assert (decode(png.getvalue()) == image).all()
    grey = simplejpeg.encode_jpeg(image[..., :1].copy(), colorspace="GRAY")
    assert (decode(grey)[..., 0] == decode(grey)[..., 2]).all()


def broken(tmp_path, data):
    with RecordWriter(tmp_path / "bad.rec") as writer:
        writer.write(0, Header(0.0), jpeg(0, 0))
        writer.write(1, Header(1.0), data)
    return tmp_path / "bad.rec"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("data", "word"),
    [(jpeg(1, 0)[:700], "truncated"), (b"x", "not an image"), (jpeg(1, 0, 64), "64x64")],
)
def test_a_broken_image_names_file_key_and_offset(tmp_path, workers, data, word):
    path = broken(tmp_path, data)
    offset = RecordReader(path).offset(1)
    with pytest.raises(BctError) as info:
        list(Loader(RecordSet(path), 2, CPU, num_workers=workers, train=False).epoch())
    what = info.value.what
    del info  # its traceback holds the loader, whose workers would end 5 s later
    assert word in what and "bad.rec" in what and "key 1" in what
    assert f"offset {offset}" in what or word == "64x64"


def test_a_label_outside_the_classes_is_refused(rec):
    with pytest.raises(BctError, match=r"has label 4, outside 0\.\.3"):
        list(Loader(RecordSet(rec), 4, CPU, num_workers=0, num_classes=4, train=False).epoch())


def test_too_few_images_for_a_batch(rec):
    with pytest.raises(BctError, match="do not fill a batch"):
        Loader(RecordSet(rec), 16, CPU)


def test_header_that_promises_more_than_the_index(tmp_path):
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(0, Header([9, 2]), b"")
        writer.write(1, Header([0, 0]), jpeg(0, 0))
    with pytest.raises(BctError, match="promises images 1 to 8"):
        RecordSet(tmp_path / "a.rec")


def test_folders_and_their_record_file(tmp_path):
    from tools.formats.pack import write_record_file

    for identity, count in (("bob", 2), ("alice", 3), ("alice/.hidden", 0)):
        (tmp_path / "set" / identity).mkdir(parents=True, exist_ok=True)
        for variant in range(count):
            (tmp_path / "set" / identity / f"{variant}.jpg").write_bytes(
                jpeg(len(identity), variant)
            )
    folder = open_images(tmp_path / "set")
    assert isinstance(folder, FolderSet)
    assert folder.labels.tolist() == [0, 0, 0, 1, 1] and folder.identities == ["alice", "bob"]
    write_record_file(folder, tmp_path / "rec" / "train.rec")
    packed = open_images(tmp_path / "rec")
    assert packed.num_classes == 2 and packed.labels.tolist() == folder.labels.tolist()
    for i in range(5):
        assert bytes(packed.payload(i)[0]) == folder.payload(i)[0]  # passed through
    reader = packed.reader
    assert reader.read(0)[0].label.tolist() == [6, 8]
    assert [reader.read(k)[0].label.tolist() for k in (6, 7)] == [[1, 4], [4, 6]]
    assert (tmp_path / "rec" / "property").read_text() == "2,112,112\n"


def test_fingerprint_follows_the_content(tmp_path, rec):
    same = write_faces(tmp_path / "copy.rec", [3, 1, 4, 5, 2])
    other = write_faces(tmp_path / "other.rec", [3, 1, 4, 2, 5])
    assert RecordSet(rec).fingerprint == RecordSet(same).fingerprint
    assert RecordSet(rec).fingerprint != RecordSet(other).fingerprint


def test_nowhere(tmp_path):
    with pytest.raises(BctError, match="no data set"):
        open_images(tmp_path / "nothing")
    with pytest.raises(BctError, match=r"neither train\.rec nor"):
        open_images(tmp_path)


def test_lfw(shared):
    faces = open_images(shared / "data/lfw")
    assert len(faces) == 6671 and faces.num_classes == 1184
    assert np.array_equal(np.unique(faces.labels), np.arange(1184))


@pytest.mark.parametrize(
    ("key", "label", "word"),
    [
        (0, [5.0], r"labels of its header are \[5.0\], not two counts"),
        (0, [float("nan"), 2.0], "not two counts"),
        (2, float("nan"), r"key 2 has label nan, not 0, 1"),
        (2, [float("inf"), 0.0], r"key 2 has label inf, not 0, 1"),
        (None, None, "promises images 1 to 4, its index has 3"),
    ],
)
def test_labels_and_keys_that_can_not_be(tmp_path, key, label, word):
    """A missing key in the middle must not shift the labels behind it."""
    with RecordWriter(tmp_path / "train.rec") as writer:
        for k in range(5):
            given = [5.0, 2.0] if k == 0 else float(k % 2)
            if key is None and k == 2:
                continue
            writer.write(k, Header(label if k == key else given, k), b"" if k == 0 else jpeg(0, k))
    with pytest.raises(BctError, match=word):
        faces = RecordSet(tmp_path / "train.rec")
        assert len(faces.labels) == 4
