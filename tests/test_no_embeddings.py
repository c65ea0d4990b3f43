"""Figures do not depend on the length or type of embeddings; rows of zeros stay out of what is made
of them, and what is no embedding at all is refused by name: in every evaluation and tool."""

import json
import pickle
import zipfile
from contextlib import suppress

import numpy as np
import pytest
from support.old_models import tool
from support.pictures import jpeg
from support.script import run_script

from bct.adapters import Procrustes
from bct.api import compare
from bct.data.image_set import ImageSet
from bct.errors import BctError
from bct.metrics.backfill import refreshed
from bct.metrics.folds import accuracy
from bct.metrics.label_free import neighbour_overlap, procrustes_residual
from bct.metrics.mixed import retrieve_mixed
from bct.metrics.relevance import ByClass
from bct.metrics.retrieval import retrieve
from bct.models.model import open_model
from bct.protocols.pair_tests import pair_tests
from bct.protocols.protocol import Pairs, Protocol
from bct.protocols.roles import Roles
from bct.protocols.templates import Templates
from bct.rows import unit_rows
from bct.scenarios import scenario_of
from bct.search.orders import disagreement, distance_to_centre
from bct.stored.artefacts import artefact_path, write_artefact
from bct.stored.vector_files import open_vectors, read_arrays

N, D = 60, 16
LABELS = np.arange(N) // 5
# how embeddings can be stored: a scale and a type that has room for it
KINDS = [(32, "f2"), (1e20, "f4"), (1e-30, "f4"), (1e-40, "f4"), (3e37, "f4")]
KINDS += [(1, "f8"), (1e300, "f8"), (1e-300, "f8"), (1, ">f4"), (1, "g")]


class Faces(ImageSet):
    """Images that nobody looks at."""

    path, fingerprint, mirror = "faces", "these", True

    def __init__(self):
        self.labels = LABELS

    def __len__(self):
        return N

    def describe(self, index):
        return f"face {index}.jpg"


def models(rows: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Old and new embeddings of rows of 12 people, float32 of lengths that float16 has, too."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((12, D))[LABELS[:rows]]
    old = centres + 0.8 * rng.standard_normal((rows, D))
    new = centres + 0.6 * rng.standard_normal((rows, D))
    return old.astype("f2").astype("f4"), new.astype("f2").astype("f4")


def protocol() -> Protocol:
    first, second = np.triu_indices(N, 1)
    return Protocol("faces", Faces(), pairs=Pairs(first, second, LABELS[first] == LABELS[second]))


def stored(x: np.ndarray, scale: float, kind: str) -> np.ndarray:
    return (x.astype("g") * scale).astype(kind)


def verdict(old, new):
    found = compare(protocol(), old, new, far=0.01, resamples=20).figures()
    return [found[key] for key in ("old", "cross", "new", "interval") if key in found] or found


def of_pairs(old, new):
    tests, scores = pair_tests(protocol(), {"old": old, "new": new}, Roles(["new"], "old"), 0.01)
    return [[test["accuracy"], test["tar"], test["auc"]] for test in tests.values()], scores


def templates(old, new):
    made = Templates(LABELS, np.arange(N) // 2, np.linspace(0.1, 1, N))
    return [made.aggregate(x, normalise) for x in (old, new) for normalise in (False, True)]


def searches(old, new):
    relevance = ByClass(LABELS, LABELS, leave_one_out=True)
    found = [retrieve(new, old, relevance), retrieve(old, old, relevance)]
    curve = refreshed(np.arange(N), [0, 0.5, 1])
    found += retrieve_mixed(new, [old, new], [curve], relevance)[0]
    return [(each.ap, each.rank) for each in found]


def label_free(old, new):
    return procrustes_residual(new, old), neighbour_overlap(old, old, new, new, 5, True)


def orders(old, new):
    return distance_to_centre(old, LABELS), disagreement(old, new)


def adapter(old, new):
    return unit_rows(Procrustes().fit(old, new).transform(models()[0]))


FIGURES = [verdict, of_pairs, templates, searches, label_free, orders, adapter]


def same(found, want):
    if isinstance(want, dict):
        assert found.keys() == want.keys()
        found, want = list(found.values()), list(want.values())
    if isinstance(want, list | tuple):
        assert len(found) == len(want)
        for pair in zip(found, want, strict=True):
            same(*pair)
    elif isinstance(want, str) or want is None:
        assert found == want
    else:
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("figures", FIGURES)
@pytest.mark.parametrize(("scale", "kind"), KINDS)
def test_figures_do_not_depend_on_length_and_type(figures, scale, kind):
    old, new = models()
    if scale == 1e-40:  # so short that float32 keeps five digits
        old, new = (stored(x, scale, kind).astype("f8") / scale for x in (old, new))
    want = figures(old, new)
    same(figures(stored(old, scale, kind), stored(new, scale, kind)), want)
    if figures is not templates or scale == 1:  # rows of one model weigh by their lengths
        same(figures(old, stored(new, scale, kind)), want)


# what evaluations give to of_pairs, embed_models has looked at
@pytest.mark.parametrize("figures", [figures for figures in FIGURES if figures is not of_pairs])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_refused(figures, bad):
    old, new = models()
    new[23, 4] = bad
    with pytest.raises(BctError, match=r"row 23 .*is not finite"):
        figures(old, new)


def with_zeros() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Old and new embeddings with zeros in three rows of the old and one more of the new ones; and
    which rows have both."""
    old, new = models()
    old[[3, 20, 41]] = 0
    new[[20, 59]] = 0
    return old, new, np.setdiff1d(np.arange(N), [3, 20, 41, 59])


def test_zeros_stay_out_of_fits():
    old, new, both = with_zeros()
    fitted, want = Procrustes().fit(old, new), Procrustes().fit(old[both], new[both])
    np.testing.assert_allclose(fitted.matrix, want.matrix, atol=1e-6)
    assert fitted.made_from == {"rows": 56, "rows_of_zeros": 4}
    assert not fitted.transform(old)[3].any()
    found = procrustes_residual(new, old)
    assert found == pytest.approx(procrustes_residual(new[both], old[both]), abs=1e-6)
    for wrong in ((old * 0, new), (old, new * 0)):
        with pytest.raises(BctError, match="all 60 rows are zeros"):
            Procrustes().fit(*wrong)
    old[::2], new[1::2] = 0, 0
    with pytest.raises(BctError, match="each of the 60 rows to fit is zeros in one"):
        Procrustes().fit(old, new)
    with pytest.raises(BctError, match="no item has embeddings by both models"):
        procrustes_residual(new, old)


def test_zeros_stay_out_of_averages():
    old, new, both = with_zeros()
    found = neighbour_overlap(old, new, new, new, 5)
    assert found == pytest.approx(neighbour_overlap(old[both], new, new[both], new, 5))
    template, medium = np.repeat([0, 1], [3, 1]), np.array([7, 7, 8, 7])
    rows = np.array([[1, 0], [0, 0], [0, 1], [3, 3]], float)
    want = unit_rows(np.array([[1, 1], [1, 1]]))  # not [1/2, 1]: the medium 7 has one embedding
    np.testing.assert_allclose(Templates(template, medium).aggregate(rows), want, atol=1e-6)
    distance, whole = distance_to_centre(old, LABELS), old[LABELS == 0][[0, 1, 2, 4]]
    np.testing.assert_allclose(
        distance[[0, 1, 2, 4]], distance_to_centre(whole, np.zeros(4)), atol=1e-5
    )


def test_zeros_score_0():
    old, new, _ = with_zeros()
    _, scores = of_pairs(old, new)
    first, second, _ = protocol().pairs
    for name, (query, gallery) in {"old / old": (old, old), "new / old": (new, old)}.items():
        nothing = ~(gallery[first].any(1) & query[second].any(1))
        assert (scores[name][nothing] == 0).all() and nothing.sum() > 50
        assert scores[name][~nothing].all()
    np.testing.assert_allclose(disagreement(old, new)[[3, 20, 41, 59]], 1)
    np.testing.assert_allclose(distance_to_centre(old, LABELS)[[3, 20, 41]], 2**0.5)
    relevance = ByClass(LABELS, LABELS, leave_one_out=True)
    rank = retrieve(old, old, relevance).rank  # its positives score 0 as all others do: the last
    assert (rank[[3, 20, 41]] == N - 4).all()


def test_accuracy_of_pairs_with_zeros():
    """Such a pair has cosine 0, as two rows at a right angle."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((40, 8))
    second, same = first + 0.1 * rng.standard_normal((40, 8)), np.arange(40) % 2 == 0
    second[~same] = rng.standard_normal((20, 8))
    across = second.copy()
    across[4] = np.linalg.svd(first[4:5])[2][1]  # at a right angle to its partner
    second[4] = 0
    with np.errstate(all="raise"):
        found = accuracy(first, second, same)
    assert found[:2] == accuracy(first, across, same)[:2]
    assert found.xnorm == pytest.approx(
        np.linalg.norm([*first, *np.delete(second, 4, 0)], axis=1).mean()
    )


def test_l2_tells_what_float32_does_not_hold():
    old, _ = models()
    relevance = ByClass(LABELS, LABELS, leave_one_out=True)
    want = retrieve(old, old, relevance, "l2").ap
    np.testing.assert_allclose(
        retrieve(old * 1e-8, old * 1e-8, relevance, "l2").ap, want, atol=0.01
    )
    for scale, word in ((1e-20, "short"), (1e20, "long"), (1e300, "large")):
        x = old.astype("f8") * scale
        with pytest.raises(BctError, match=f"too {word} for float32"):
            retrieve(x, x, relevance, "l2")


# ---- the files


def test_archives_that_unpack_to_far_more_than_they_are(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, np.zeros((6_000_000, 1), np.float32))
    assert path.stat().st_size < 100_000
    for rows in (None, 6_000_000):
        with pytest.raises(BctError, match="unpacks to 24,000,128"):
            open_vectors(path, rows)
    with pytest.raises(BctError, match="6000000 rows for 5 images"):
        open_vectors(path, 5)
    with pytest.raises(BctError, match="unpacks to"):
        read_arrays(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # many small ones
        for k in range(30):
            with archive.open(f"a{k}.npy", "w") as file:
                np.save(file, np.zeros(250_000, np.float32))
    with pytest.raises(BctError, match="unpacks to"):
        read_arrays(path)
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(path, "w", method) as archive, archive.open("a.npy", "w") as file:
            np.save(file, np.ones((5, 2)))
        with pytest.raises(BctError, match="NumPy does not compress so"):
            open_vectors(path)
    np.savez_compressed(path, models()[0])
    assert open_vectors(path, N)[0].shape == (N, D)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.zeros((36, 4)), "old.npy: all 36 rows are zeros"),
        (np.zeros((0, 4)), "old.npy has no rows"),
        (np.zeros((4, 0)), "not floats"),
        (np.zeros(4, [("a", "f4")]), "not floats"),
        (np.ones((4, 2), complex), "not floats"),
        (np.ones((4, 2), int), "not floats"),
        (np.array([["a"]]), "not floats"),
        (np.array([[True]]), "not floats"),
    ],
)
def test_files_that_hold_no_embeddings(tmp_path, rows, words):
    np.save(tmp_path / "old.npy", rows)
    np.savez(tmp_path / "old.npz", rows)
    for name in ("old.npy", "old.npz"):
        with pytest.raises(BctError) as info:
            open_vectors(tmp_path / name)
        assert words.replace(".npy", name[3:]) in info.value.what


def test_no_array_takes_a_model_json_for_its_manifest(tmp_path):
    (tmp_path / "model.json").write_text('{"network": "r18"}')
    with (
        pytest.raises(BctError, match=r"model.json is no manifest of ours"),
        write_artefact(tmp_path / "model.npy", (2, 2), "float32"),
    ):
        pass
    assert json.loads((tmp_path / "model.json").read_text()) == {"network": "r18"}
    assert [file.name for file in tmp_path.iterdir()] == ["model.json"]


def test_stored_rows_are_named_with_their_image(tmp_path):
    old, _ = models()
    old[31, 2] = np.nan
    np.save(tmp_path / "old.npy", old)
    with pytest.raises(BctError, match=r"old.npy: row 31 \(face 31.jpg\) is not finite"):
        open_model(tmp_path / "old.npy").embed(Faces())


# ---- the commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of images, a verification set of as many, and embeddings of all kinds."""
    folder = tmp_path_factory.mktemp("evaluations")
    for label in range(12):
        (folder / f"set/{label:02}").mkdir(parents=True)
        for i in range(5):
            (folder / f"set/{label:02}/{i}.jpg").write_bytes(jpeg(label, i))
    images = [jpeg(k // 5, k % 5) for k in range(N)]
    flags = [LABELS[k] == LABELS[k + 1] for k in range(0, N, 2)]
    (folder / "pairs.bin").write_bytes(pickle.dumps((images, flags)))
    for name, x in zip(("old", "new"), models(), strict=True):
        some, bad = x.copy(), x.copy()
        some[[7, 30]], bad[23, 4] = 0, np.nan
        kinds = {"fine": x, "long": x * np.float32(1e20), "half": (x * 32).astype("f2")}
        kinds |= {"some": some, "bad": bad, "zero": x * 0, "alike": x * 0 + 1}
        for kind, rows in kinds.items():
            np.save(folder / f"{name}_{kind}.npy", rows)
    return folder


EVALUATIONS = {
    "retrieval": ("--data", "set", "--leave-one-out", "--name", "r", "--resamples", "20"),
    "verification": ("--set", "pairs.bin", "--far", "0.1"),
    "report": ("--images", "set", "--far", "0.1", "--resamples", "20"),
}
KEYS = {"retrieval": "tests", "verification": "sets", "report": "tests"}


def evaluate(script: str, folder, kind: str):
    """The process, and its figures."""
    words = [str(folder / word) if word in ("set", "pairs.bin") else word
             for word in EVALUATIONS[script]]  # fmt: skip
    out = folder / f"{script}_{kind}"
    done = run_script(f"eval/{script}.py", "-m", folder / f"new_{kind}.npy", "-m_old",
                      folder / f"old_{kind}.npy", "-o", out, *words)  # fmt: skip
    written = list(out.glob("*.json")) if out.is_dir() else []
    return done, json.loads(written[0].read_text())[KEYS[script]] if written else None


def numbers(found) -> list[float]:
    """Those that are not lengths or thresholds of another precision."""
    if isinstance(found, dict):
        return [x for key, value in found.items() if key != "xnorm" for x in numbers(value)]
    if isinstance(found, list):
        return [x for value in found for x in numbers(value)]
    return [found] if isinstance(found, float) else []


@pytest.mark.parametrize("script", EVALUATIONS)
def test_every_evaluation(script, folder):
    _, want = evaluate(script, folder, "fine")
    for kind in ("long", "half"):
        done, found = evaluate(script, folder, kind)
        assert done.returncode == 0, done.stderr
        np.testing.assert_allclose(numbers(found), numbers(want), atol=1e-4)
    done, found = evaluate(script, folder, "some")
    assert done.returncode == 0 and found is not None
    for name in ("old", "new"):
        line = next(line for line in done.stdout.splitlines() if f"{name}_some.npy: " in line)
        assert "2 of 60 rows are zeros" in line and "row 7 (" in line
    for kind, words in {
        "bad": "old_bad.npy: row 23 (",
        "zero": "old_zero.npy: all 60 rows are zeros",
        "alike": "old_alike.npy: all 60 rows are alike",
    }.items():
        done, found = evaluate(script, folder, kind)
        assert (done.returncode, found) == (1, None)
        assert words in done.stderr and len(done.stderr.splitlines()) == 2, done.stderr


SD = "f128_r18_softmax_class70"
TOOLS = {
    "average_features": (),
    "class_statistics": (),
    "denoise": ("--T", "0.5"),
    "denoise by entropy": ("--by", "entropy", "--T", "0.9"),
}


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_that_sums_up_old_embeddings(name, tmp_path, capsys):
    old, _ = models()
    old[[7, 30]] = 0
    about = {"model": "m", "data": "d", "parity": "p", "amp": "a", "weights": "w", "data_path": "x"}

    def make(rows: np.ndarray) -> tuple[list[str], str]:
        for kind, array in (("old_embedding", rows), ("old_embedding_label", LABELS)):
            path = artefact_path(kind, tmp_path, scenario_of(SD), SD)
            with write_artefact(path, array.shape, array.dtype, **about) as out:
                out[:] = array
        with suppress(SystemExit):
            tool(name.split()[0], *TOOLS[name], "--SD", SD, "--feature-save", tmp_path)
        said = capsys.readouterr()
        return said.out.splitlines(), said.err

    (_, second), _ = make(old)
    assert "2 of 60 rows are zeros, so no embeddings; they are left out (row 7, 30)" in second
    before = {file.name for file in tmp_path.rglob("*.npy")}
    assert len(before) == 3
    for file in tmp_path.rglob("*.npy"):
        file.unlink()
    bad, of_class = old.copy(), old.copy()
    bad[23, 4], of_class[LABELS == 4] = np.inf, 0
    for rows, words in (
        (bad, "row 23 is not finite"),
        (old * 0, "all 60 rows are zeros"),
        (of_class, "all rows of class 4 are zeros, so it has no mean"),
    ):
        out, error = make(rows)
        assert not out and words in error and f"{SD}_feature.npy" in error
        assert len(error.splitlines()) == 2
        assert len(list(tmp_path.rglob("*.npy"))) == 2  # nothing was made of them
