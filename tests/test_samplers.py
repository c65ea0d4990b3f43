"""Batches of P classes with K images each: what is in them, on any number of ranks."""

from collections import Counter

import numpy as np
import pytest
import torch
from support.pictures import write_faces
from support.ranks import run_on_ranks

from bct.data.loader import Loader
from bct.data.samplers import ClassBatches
from bct.data.sets import RecordSet
from bct.errors import BctError

COUNTS = [9, 1, 4, 17, 3, 8, 2, 5]  # images of the classes
P, K = 3, 4
BATCH = P * K
VISITS = sum(max(n // K, 1) for n in COUNTS)


def labels(counts=COUNTS):
    """Class by class in a random order, so that no rule can lean on theirs."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))


def batches(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return np.array(list(sampler)).reshape(-1, BATCH)


def test_every_batch_has_its_classes_and_images():
    of = labels()
    sampler = ClassBatches(of, BATCH, K)
    for epoch in range(20):
        found = batches(sampler, epoch)
        assert found.size == len(sampler) and len(found) == VISITS // P
        for batch in found:
            counts = Counter(of[batch].tolist())
            assert len(counts) == P and set(counts.values()) == {K}
            for one in counts:
                own = batch[of[batch] == one]
                assert len(set(own.tolist())) == K or COUNTS[one] < K


def test_an_image_comes_again_only_when_all_classes_begin_anew():
    """That is when fewer than P classes have K images left."""
    for counts in (COUNTS, [12] * 5, [16, 4, 4, 4]):
        of, anew = labels(counts), 0
        for epoch in range(30):
            left, seen = np.maximum(np.array(counts) // K, 1), set()
            for batch in batches(ClassBatches(of, BATCH, K), epoch):
                if (left > 0).sum() < P:
                    left, seen, anew = np.maximum(np.array(counts) // K, 1), set(), anew + 1
                for one in np.unique(of[batch]):
                    images = set(batch[of[batch] == one].tolist())
                    assert left[one] > 0 and not images & seen
                    left[one] -= 1
                    seen |= images
        assert anew or counts == COUNTS


def test_every_image_has_its_chance():
    of = labels()
    sampler = ClassBatches(of, BATCH, K)
    seen = Counter()
    for epoch in range(400):
        seen.update(batches(sampler, epoch).ravel().tolist())
    assert set(seen) == set(range(len(of)))
    for one in range(len(COUNTS)):  # and all of a class the same one
        counts = [seen[i] for i in np.flatnonzero(of == one).tolist()]
        assert max(counts) - min(counts) < 6 * np.sqrt(max(counts)) + 1


def test_batches_follow_from_seed_and_epoch():
    of = labels()
    first = batches(ClassBatches(of, BATCH, K, seed=3), 2)
    assert np.array_equal(first, batches(ClassBatches(of, BATCH, K, seed=3), 2))
    assert not np.array_equal(first, batches(ClassBatches(of, BATCH, K, seed=3), 3))
    assert not np.array_equal(first, batches(ClassBatches(of, BATCH, K, seed=4), 2))


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_one_list_of_batches(ranks):
    of = labels()
    whole = batches(ClassBatches(of, BATCH, K), 1)
    parts = [batches(ClassBatches(of, BATCH, K, ranks, rank), 1) for rank in range(ranks)]
    assert {len(part) for part in parts} == {VISITS // P // ranks}
    for rank, part in enumerate(parts):
        assert np.array_equal(part, whole[rank::ranks][: len(part)])


@pytest.mark.parametrize(
    ("batch", "each", "counts", "said"),
    [
        (10, 4, COUNTS, "batch_size = 10 is no multiple of images_per_class = 4"),
        (3, 4, COUNTS, "is no multiple"),
        (4, 4, COUNTS, "leaves one class in a batch"),
        (36, 4, COUNTS, "8 classes do not fill a batch of 9 classes"),
    ],
)
def test_what_fills_no_batch_is_refused(batch, each, counts, said):
    with pytest.raises(BctError, match=said) as info:
        ClassBatches(labels(counts), batch, each)
    assert len(str(info.value).splitlines()) == 2


# ---- in the loader


@pytest.fixture
def rec(tmp_path):
    return write_faces(tmp_path / "train.rec", COUNTS)


def loaded(path, workers=0, start=0, epoch=1):
    loader = Loader(
        RecordSet(path), BATCH, torch.device("cpu"), num_workers=workers, images_per_class=K
    )
    return [(b.index.tolist(), b.labels.tolist()) for b in loader.epoch(epoch, start=start)], len(
        loader
    )


def test_the_loader_goes_on_where_it_stopped(rec):
    whole, steps = loaded(rec)
    assert len(whole) == steps == VISITS // P
    for _, seen in whole:
        assert sorted(Counter(seen).values()) == [K] * P
    for workers in (0, 2):
        assert loaded(rec, workers, start=2)[0] == whole[2:]


def test_ranks_of_a_loader_have_different_batches(rec):
    (one, steps), (two, _) = run_on_ranks(2, loaded, rec)
    whole, _ = loaded(rec)
    assert one == whole[0 : 2 * steps : 2] and two == whole[1 : 2 * steps : 2]


def test_of_a_part_of_the_images(rec):
    """A set that says which of its items are trained on."""
    faces = RecordSet(rec)
    faces.chosen = np.flatnonzero(np.isin(faces.labels, (0, 3, 5, 7)))
    loader = Loader(faces, BATCH, torch.device("cpu"), num_workers=0, images_per_class=K)
    for batch in loader.epoch():
        assert set(batch.index.tolist()) <= set(faces.chosen.tolist())
        assert sorted(Counter(batch.labels.tolist()).values()) == [K] * P


def test_too_few_images_for_all_ranks_are_refused(rec):
    faces = RecordSet(rec)
    faces.chosen = np.flatnonzero(np.isin(faces.labels, (1, 6)))
    with pytest.raises(BctError, match="2 classes do not fill a batch of 3 classes"):
        Loader(faces, BATCH, torch.device("cpu"), num_workers=0, images_per_class=K)
