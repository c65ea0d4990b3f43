"""Saved scores: every file that holds none is refused in two lines; results before pictures."""

import json
import zipfile

import numpy as np
import pytest
from matplotlib.figure import Figure
from support.script import run_script

from bct.errors import BctError
from tools.ijbc.report import draw_saved, read_scores, read_search, save_scores
from tools.ijbc.saved import expanded, scores_and_labels

GOOD = np.linspace(-1, 1, 8, dtype=np.float32)
LABEL = np.arange(8) % 2 == 0


def archive(**arrays):
    return lambda path: np.savez(path, **arrays)


def array(values):
    return lambda path: np.save(path, values, allow_pickle=True)


def text(content):
    return lambda path: path.write_bytes(content)


def cut(path):
    np.savez(path, scores=GOOD)
    path.write_bytes(path.read_bytes()[:-30])


def claims(path):
    """A header that promises more than the file holds."""
    np.save(path, GOOD)
    path.write_bytes(path.read_bytes().replace(b"(8,)", b"(9,)"))


def not_an_array(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("scores.npy", b"hello")


BAD = {
    "none.npz": lambda path: None,
    "folder.npz": lambda path: path.mkdir(),
    "cut.npz": cut,
    "text.npz": text(b"hello"),
    "empty.npz": text(b""),
    "member.npz": not_an_array,
    "other.npz": archive(values=GOOD),
    "nothing.npz": archive(),
    "objects.npz": archive(scores=np.array([{}, None], object)),
    "strings.npz": archive(scores=np.array(["a", "b"])),
    "complex.npz": archive(scores=GOOD.astype(complex)),
    "whole.npz": archive(scores=np.arange(8)),
    "cube.npz": archive(scores=GOOD.reshape(2, 2, 2)),
    "number.npz": archive(scores=np.float32(1)),
    "no_pair.npz": archive(scores=GOOD[:0]),
    "nan.npz": archive(scores=np.where(LABEL, GOOD, np.nan)),
    "few_names.npz": archive(scores=np.stack([GOOD, GOOD]), names=["a"]),
    "same_names.npz": archive(scores=np.stack([GOOD, GOOD]), names=["a", "a"]),
    "number_names.npz": archive(scores=GOOD, names=[3]),
    "few_labels.npz": archive(scores=GOOD, label=LABEL[:5]),
    "other_labels.npz": archive(scores=GOOD, label=np.arange(8)),
    "minus_labels.npz": archive(scores=GOOD, label=np.where(LABEL, 1, -1)),
    "nan_labels.npz": archive(scores=GOOD, label=np.where(LABEL, 1, np.nan)),
    "word_labels.npz": archive(scores=GOOD, label=LABEL.astype(str)),
    "objects.npy": array(np.array([{}], object)),
    "wide.npy": array(GOOD.reshape(4, 2)),
    "number.npy": array(np.float32(1)),
    "inf.npy": array(np.append(GOOD, np.inf)),
    "no_pair.npy": array(GOOD[:0]),
    "claims.npy": claims,
    "text.npy": text(b"hello"),
    "empty.txt": text(b""),
    "words.txt": text(b"0.1\nhigh\n"),
    "bytes.txt": text(b"\xff\xfe\x00\n0.1"),
    "pairs.txt": text(b"0.1 1\n0.2 0\n"),
    "uneven.txt": text(b"0.1\n0.2 0.3\n"),
    "nan.txt": text(b"0.1\nnan\n"),
    "model.pt": text(b"PK\x03\x04"),
    "README": text(b"0.1\n0.2\n"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_without_scores_is_refused(name, tmp_path, recwarn):
    path = tmp_path / name
    BAD[name](path)
    with pytest.raises(BctError) as info:
        read_scores(path)
    assert name in info.value.what and len(str(info.value).splitlines()) == 2
    assert not recwarn.list


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", "longdouble"])
def test_scores_of_any_float_type(dtype, tmp_path):
    scores = GOOD.astype(dtype)
    np.savez(tmp_path / "s.npz", scores=scores, label=LABEL.astype(float))
    np.save(tmp_path / "s.npy", scores[:, None])
    np.savetxt(tmp_path / "s.txt", scores)
    for name in ("s.npz", "s.npy", "s.txt"):
        ((test, found, label),) = read_scores(tmp_path / name)
        assert test == "s" and found.dtype in (np.float32, np.float64)
        np.testing.assert_allclose(found, scores.astype(float), atol=1e-7)
        assert label is None or (label == LABEL).all()


def test_text_with_a_byte_order_mark(tmp_path):
    (tmp_path / "s.txt").write_bytes(b"\xef\xbb\xbf0.5\r\n0.25\r\n")
    assert read_scores(tmp_path / "s.txt")[0][1].tolist() == [0.5, 0.25]


def test_tests_of_one_name_are_told_apart_or_refused(tmp_path, capsys):
    for name in ("a", "b"):
        save_scores(tmp_path / f"{name}.npz", {"new / old": GOOD}, LABEL)
    files = [tmp_path / "a.npz", tmp_path / "b.npz"]
    draw_saved(files, None, "strict", tmp_path / "curves", 1e-1)
    found = json.loads((tmp_path / "curves.json").read_text())
    assert list(found["tests"]) == ["new / old", "b: new / old"]
    with pytest.raises(BctError, match="two tests are called 'b: new / old'"):
        draw_saved([*files, files[1]], None, "strict", tmp_path / "curves", 1e-1)
    assert capsys.readouterr().out.count("written to") == 1


@pytest.fixture
def no_pictures(monkeypatch):
    def fails(*_, **__):
        raise MemoryError("no picture today")

    monkeypatch.setattr(Figure, "savefig", fails)


def test_the_table_is_there_when_the_picture_fails(no_pictures, tmp_path):
    save_scores(tmp_path / "s.npz", {"new / old": GOOD}, LABEL)
    with pytest.raises(MemoryError):
        draw_saved([tmp_path / "s.npz"], None, "strict", tmp_path / "curves", 1e-1)
    assert "new / old" in (tmp_path / "curves.md").read_text()
    assert json.loads((tmp_path / "curves.json").read_text())["tests"]
    assert not (tmp_path / "curves.png").exists()


NAMES = ["_new / old", "$x$ / $y", "a\nb / \x1b[31mc", "日本 / \udcff", "x" * 500, r"\frac / \$"]


def test_names_of_any_kind_are_drawn(tmp_path, recwarn):
    """121 tests of 11 models, some with names that are formulas, escapes or too long."""
    rng = np.random.default_rng(0)
    names = [*NAMES[:3], *NAMES[4:], *(f"v{k}" for k in range(116))]
    scores = {name: rng.standard_normal(8).astype(np.float32) for name in names}
    save_scores(tmp_path / "s.npz", scores, LABEL)
    draw_saved([tmp_path / "s.npz"], None, "strict", tmp_path / "curves", 1e-1)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((tmp_path / "curves.json").read_text())["tests"]) == 121
    assert not recwarn.list


def test_where_nothing_can_be_written_is_said_before_the_work(ijb, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "out/curves.png").mkdir(parents=True)
    save_scores(tmp_path / "s.npz", {"new / old": GOOD}, LABEL)
    np.save(tmp_path / "m.npy", np.zeros((36, 4), np.float32))  # would be refused later
    model = ("-m", tmp_path / "m.npy", "-d", ijb.parent)
    for line, word in (
        (["-P", tmp_path / "s.npz", "-o", tmp_path / "out"], "curves.png is a folder"),
        (["-P", tmp_path / "s.npz", "-o", tmp_path / "file"], "is no folder"),
        ([*model, "-o", tmp_path / "file"], "is no folder"),
        ([*model, "-o", tmp_path, "-R", tmp_path / ("s" * 250)], "too long a name"),
        ([*model, "-o", tmp_path, "-R", tmp_path / "out"], "out is a folder"),
    ):
        done = run_script("eval/ijbc.py", *line)
        assert done.returncode == 1 and word in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 2


def test_patterns_and_commas(tmp_path):
    files = [tmp_path / name for name in ("a1.npz", "a2.npz", "b,c.npy")]
    for file in files:
        file.touch()
    assert expanded([f"{tmp_path}/a*"]) == files[:2]
    assert expanded([f"{files[1]},{tmp_path}/a?.npz", str(files[2])]) == [
        files[1],
        files[0],
        files[2],
    ]
    assert expanded(["gone.npz"])[0].name == "gone.npz"  # refused where it is read
    with pytest.raises(BctError, match="names no file"):
        expanded([","])
    with pytest.raises(BctError, match="no file fits"):
        expanded([f"{tmp_path}/c*"])


def test_a_list_of_pairs_says_which_are_genuine(tmp_path):
    pairs, bad, scores = tmp_path / "pair_label.txt", tmp_path / "bad.txt", tmp_path / "s.txt"
    pairs.write_text("1 2 1\n3 4 0\n")
    bad.write_text("1 2 1\n3 4 2\n")
    scores.write_text("0.5\n0.25\n")
    files, label = scores_and_labels([scores, pairs])
    assert files == [scores] and label.tolist() == [True, False]
    assert scores_and_labels([scores]) == ([scores], None)
    for given, word in (
        ([scores, pairs, bad], "both are lists"),
        ([pairs], "without scores"),
        ([scores, bad], "line 2: label 2"),
    ):
        with pytest.raises(BctError, match=word):
            scores_and_labels(given)


@pytest.mark.parametrize(
    "arrays",
    [
        {"scores": np.zeros(4)},
        {"scores": np.zeros((1, 3, 4))},
        {"scores": np.full((1, 2, 4), np.nan)},
        {"scores": np.zeros((2, 2, 4))},
        {"scores": np.zeros(4), "fpir": np.zeros(3), "tpir": np.zeros((1, 4))},
        {"fpir": np.zeros((2, 4)), "tpir": np.zeros((2, 4))},
        {"fpir": np.arange(4), "tpir": np.arange(4)},
    ],
)
def test_what_holds_no_searches(tmp_path, arrays):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(BctError, match="holds no curves of 1:N"):
        read_search(tmp_path / "s.npz")


def test_searches_are_read_back(tmp_path):
    scores = {"new / old": GOOD, "new / new": GOOD}
    search = {name: ([0.1, 1.0], [k, 1.0]) for k, name in zip((0.25, 0.5), scores, strict=True)}
    save_scores(tmp_path / "s.npz", scores, None, search)
    found = read_search(tmp_path / "s.npz")
    assert {name: [list(map(float, x)) for x in both] for name, both in found.items()} == {
        name: [list(x) for x in both] for name, both in search.items()
    }
    np.savez(tmp_path / "t.npz", scores=np.array([[[0.1, 1.0], [0.25, 1.0]]]))
    assert read_search(tmp_path / "t.npz")["t"][1].tolist() == [0.25, 1.0]
