"""eval/ijbc.py: the command line, its results and its refusals."""

import json
import shutil

import numpy as np
import pytest
import torch
from support.script import run_script

from backbones import get_model
from bct.protocols.templates import pair_scores
from tools.ijbc.modes import MODES
from tools.ijbc.protocol import read_protocol
from tools.ijbc.report import draw_saved, save_scores


def evaluate(tmp_path, *arguments, ranks=1):
    common = ("-o", tmp_path / "out", "--cache", tmp_path / "cache", "--amp", "off", "-j", "1")
    return run_script("eval/ijbc.py", *common, *arguments, ranks=ranks)


def test_command_line(ijb, weights, tmp_path):
    old, new = weights
    common = ("-d", ijb.parent, "-m", new, "-net", "demo_w16")
    cross = ("-m_old", old, "-old_net", "demo_w16", "-N", "--far", "1e-1")
    done = evaluate(tmp_path, *common, *cross)
    assert done.returncode == 0, done.stderr
    for row in ("old / old", "new / old", "new / new", "compatible at FAR 1e-1", "TPIR@1e-1"):
        assert row in done.stdout
    stem = tmp_path / "out" / "new_vs_old_IJBC_1N"
    summary = json.loads(stem.with_suffix(".json").read_text())
    assert set(summary["tests"]) == {"old / old", "new / old", "new / new"}
    assert stem.with_suffix(".md").read_text() in done.stdout
    assert stem.with_suffix(".png").read_bytes().startswith(b"\x89PNG")

    again = evaluate(tmp_path, *common, *cross)
    assert again.stdout.count("cached") == 2
    wrong = evaluate(tmp_path, "-d", ijb.parent, "-m", new, "-net", "demo_w24")
    assert wrong.returncode == 1 and "does not fit" in wrong.stderr  # cached or not
    assert json.loads(stem.with_suffix(".json").read_text()) == summary
    shutil.rmtree(tmp_path / "cache")
    two = evaluate(tmp_path, *common, *cross, ranks=2)
    assert two.returncode == 0, two.stderr
    shared = json.loads(stem.with_suffix(".json").read_text())
    assert (
        shared["tests"]["new / old"]["pairs"]["tar"]
        == summary["tests"]["new / old"]["pairs"]["tar"]
    )

    alone = evaluate(tmp_path, *common)
    assert (
        "new / new" in alone.stdout
        and "old" not in alone.stdout.split("written")[0].split("|", 1)[1]
    )


def test_modes_embeddings_scores_and_plots(ijb, weights, tmp_path):
    """-B, -E, -L and -P, and -E's file taken as a model."""
    old, new = weights
    out = tmp_path / "out"
    data = ("-d", ijb.parent)
    models = ("-m", new, "-net", "demo_w16", "-m_old", old, "-old_net", "demo_w16")
    done = evaluate(tmp_path, *data, *models, "-B", "-E", "-L", "--far", "1e-1")
    assert done.returncode == 0, done.stderr
    stem = out / "new_vs_old_IJBC_11_8modes"
    tests = json.loads(stem.with_suffix(".json").read_text())["tests"]
    assert set(tests) == {
        f"{pair}, {mode}" for pair in ("old / old", "new / old", "new / new") for mode in MODES
    }
    aucs = [tests[f"old / old, {mode}"]["pairs"]["auc"] for mode in MODES]
    assert len(set(aucs)) == 4  # all detection scores are 0.9 here, so D makes no difference

    saved = np.load(stem.with_suffix(".npz"))
    protocol = read_protocol(ijb.parent)
    assert (saved["label"] == protocol.pairs.genuine).all()
    names = [f"{pair}, {mode}" for mode in MODES for pair in PAIRS_OF_TESTS]
    assert saved["names"].tolist() == names and "fpir" not in saved
    published = names.index("new / old, N0D1F1")
    stored = {label: np.load(out / f"{label}_IJBC.npy") for label in ("old", "new")}
    templates = {label: protocol.item_features(f) for label, f in stored.items()}
    np.testing.assert_allclose(
        saved["scores"][published],
        pair_scores(templates["old"], templates["new"], *protocol.pairs[:2]),
        atol=1e-6,
    )

    again = evaluate(
        tmp_path, *data, "-m", out / "new_IJBC.npy", "-m_old", out / "old_IJBC.npy", "-N"
    )
    assert again.returncode == 0, again.stderr
    figures = json.loads((out / "new_IJBC_vs_old_IJBC_IJBC_1N.json").read_text())["tests"]
    assert figures["new / old"]["pairs"] == tests["new / old, N0D1F1"]["pairs"]

    drawn = evaluate(tmp_path, "-P", stem.with_suffix(".npz"))
    assert drawn.returncode == 0 and "new / old, N1D0F1" in drawn.stdout, drawn.stderr
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")

    one = names.index("old / old, N0D1F1")
    np.savetxt(tmp_path / "plain.txt", saved["scores"][one])
    np.save(tmp_path / "plain2.npy", saved["scores"][one])
    before = (out / "curves.json").read_bytes()
    refused = evaluate(tmp_path, "-P", tmp_path / "plain.txt")
    assert refused.returncode == 1 and "--overwrite" in refused.stderr
    assert (out / "curves.json").read_bytes() == before
    unlabelled = evaluate(tmp_path, "-P", tmp_path / "plain.txt", "--overwrite")
    assert unlabelled.returncode == 1 and "no labels" in unlabelled.stderr
    area = f"{tests['old / old, N0D1F1']['pairs']['auc']:.4f}"
    pairs = ijb / "meta" / "ijbc_template_pair_label.txt"
    for words in (
        [tmp_path / "plain.txt", *data],
        [tmp_path / "plain.txt", pairs],
        [f"{tmp_path}/plai*.txt,{tmp_path}/plain2.npy,{pairs}"],
    ):
        labelled = evaluate(tmp_path, "-P", *words, "--overwrite")
        assert labelled.returncode == 0 and "plain" in labelled.stdout, labelled.stderr
        rows = [line for line in labelled.stdout.splitlines() if line.startswith("| plain")]
        assert all(area in row for row in rows) and len(rows) == 1 + ("2.npy" in str(words[0]))

    # 1:N: the curves are those of the evaluation, and are in the files of -N alone
    searched = out / "new_IJBC_vs_old_IJBC_IJBC_1N.npz"
    arrays = np.load(searched)
    of_tests = [figures[name]["search"] for name in arrays["names"]]
    assert [found["mean"]["tpir"] for found in of_tests] == arrays["tpir"].tolist()
    theirs = np.stack([np.stack([arrays["fpir"], row]) for row in arrays["tpir"]])
    np.savez(tmp_path / "mixbct.npz", scores=theirs, names=[f"their {n}" for n in arrays["names"]])
    drawn = evaluate(tmp_path, "-P", searched, tmp_path / "mixbct.npz", "-N")
    assert drawn.returncode == 0 and "TPIR@1e-1" in drawn.stdout, drawn.stderr
    for picture in ("curves_1N_idroc.png", f"{searched.stem}_idroc.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    shown = json.loads((out / "curves_1N.json").read_text())["tests"]
    at = of_tests[1]["mean"]["tpir"][int(np.abs(np.array(of_tests[1]["fpir"]) - 0.1).argmin())]
    assert shown[f"their {PAIRS_OF_TESTS[1]}"] == shown[PAIRS_OF_TESTS[1]]
    assert shown[PAIRS_OF_TESTS[1]]["tpir"]["1e-1"] == pytest.approx(at)
    none = evaluate(tmp_path, "-P", stem.with_suffix(".npz"), "-N", "--overwrite")
    assert none.returncode == 1 and "holds no curves of 1:N" in none.stderr


PAIRS_OF_TESTS = ("old / old", "new / old", "new / new")


def test_matrix_of_a_chain_and_nothing_replaced(ijb, weights, tmp_path):
    old, new = weights
    torch.manual_seed(2)
    third = tmp_path / "v3.pt"
    torch.save(get_model("demo_w16", 8).state_dict(), third)
    arguments = ("-d", ijb.parent, "-m", new, third, "-net", "demo_w16", "demo_w16",
                 "-m_old", old, "-old_net", "demo_w16", "--far", "1e-1")  # fmt: skip
    done = evaluate(tmp_path, *arguments, "--matrix")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "out" / "new+v3_vs_old_IJBC_11_matrix.json"
    tests = json.loads(path.read_text())["tests"]
    assert len(tests) == 9 and "v3 / new" in tests and "old / v3" in tests
    tar = {name: test["pairs"]["tar"]["1e-1"] for name, test in tests.items()}
    kept = sum(
        tar[f"{query} / {gallery}"] > tar[f"{gallery} / {gallery}"]
        for query, gallery in (("new", "old"), ("v3", "old"), ("v3", "new"))
    )
    assert f"average compatibility {kept / 3:.3f}" in done.stdout
    assert "chain old -> new -> v3" in done.stdout

    torch.save(get_model("demo_w16", 8).state_dict(), third)  # other weights of the same name
    before = path.read_bytes()
    refused = evaluate(tmp_path, *arguments, "--matrix")
    assert refused.returncode == 1 and "results of other models" in refused.stderr
    assert path.read_bytes() == before
    assert evaluate(tmp_path, *arguments, "--matrix", "--overwrite").returncode == 0
    assert path.read_bytes() != before


def test_more_curves_than_colours(tmp_path):
    rng = np.random.default_rng(0)
    genuine = np.arange(40) % 2 == 0
    names = [f"v{i} / v{k}" for i in range(4) for k in range(4)]
    scores = {name: rng.standard_normal(40) + genuine for name in names}
    save_scores(tmp_path / "s.npz", scores, genuine)
    draw_saved([tmp_path / "s.npz"], None, "strict", tmp_path / "curves", 1e-1)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_no_verdict_at_a_far_that_allows_no_false_accept(ijb, tmp_path):
    """By no rule: "nearest" has a threshold there, but of no meaning."""
    rng = np.random.default_rng(0)
    for name in ("v1", "v2", "v3"):
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((36, 8)))
    line = ("-d", ijb.parent, "-m", tmp_path / "v2.npy", tmp_path / "v3.npy",
            "-m_old", tmp_path / "v1.npy")  # fmt: skip
    for more in ((), ("--matrix",), ("--roc", "nearest")):
        done = evaluate(tmp_path, *line, *more)
        assert done.returncode == 0, done.stderr
        assert "No verdict: FAR 1e-4 allows no false accept among 60" in done.stdout
        assert "compatible at" not in done.stdout and "chain" not in done.stdout
    done = evaluate(tmp_path, *line, "--far", "1e-1")
    assert done.stdout.count("compatible at FAR 1e-1") == 2


def test_embeddings_of_two_models_are_never_saved_as_one_file(ijb, weights, tmp_path):
    for model, folder in zip(weights, ("a", "b"), strict=True):
        (tmp_path / folder).mkdir()
        shutil.copy(model, tmp_path / folder / "r.pt")
    line = ("-d", ijb.parent, "-m", tmp_path / "a/r.pt", "-net", "demo_w16",
            "-m_old", tmp_path / "b/r.pt", "-old_net", "demo_w16")  # fmt: skip
    done = evaluate(tmp_path, *line, "-E")
    assert done.returncode == 1 and "would both be saved as" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()
    assert evaluate(tmp_path, *line).returncode == 0


def test_many_models_of_long_names(ijb, tmp_path):
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{letter * 90}.npy" for letter in "abcd"]
    for file in files:
        np.save(file, rng.standard_normal((36, 8)))
    done = evaluate(tmp_path, "-d", ijb.parent, "-m", *files, "-E", "--far", "1e-1")
    assert done.returncode == 0, done.stderr
    kinds = [path.suffix for path in (tmp_path / "out").iterdir()]
    assert sorted(kinds) == [".json", ".md", *[".npy"] * 4, ".npz", ".png"]


def test_force_reload_computes_again(ijb, weights, tmp_path):
    arguments = ("-d", ijb.parent, "-m", weights[1], "-net", "demo_w16")
    assert evaluate(tmp_path, *arguments).returncode == 0
    (cached,) = (tmp_path / "cache").glob("*.npy")
    values = np.load(cached)
    np.save(cached, np.zeros_like(values))  # wrong on purpose: a valid manifest is believed
    again = evaluate(tmp_path, *arguments, "-F")
    assert again.returncode == 0 and "cached" not in again.stdout, again.stderr
    np.testing.assert_allclose(np.load(cached), values, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda ijb, new: ["-d", ijb.parent / "x", "-m", new, "-net", "demo_w16"], "holds no IJBC"),
        (lambda ijb, new: ["-d", ijb.parent, "-m", new + "x", "-net", "demo_w16"], "not exist"),
        (lambda ijb, new: ["-d", ijb.parent, "-m", new, "-net", "demo_w24"], "does not fit"),
        (lambda ijb, new: ["-d", ijb.parent, "-m", new], "does not say which network"),
        (lambda ijb, new: ["-d", ijb.parent, "-m", new, "-net", "a", "b"], "2 networks for 1"),
        (
            lambda ijb, new: ["-d", ijb.parent, "-m", new, "--far", "3e-3"],
            "not a FAR of the",
        ),
        (lambda ijb, new: ["-d", ijb.parent, "-m", new, new], "two have one name"),
        (lambda ijb, new: ["-P", new + ".npz"], "does not exist"),
        (lambda ijb, new: ["-P", new], "holds no scores"),
    ],
)
def test_command_line_refusals(ijb, weights, tmp_path, change, word):
    done = evaluate(tmp_path, *change(ijb, weights[1]))
    assert done.returncode == 1
    assert word in done.stderr and len(done.stderr.strip().splitlines()) == 2, done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_broken_or_missing_image_is_named(ijb, weights, tmp_path, damage):
    file = ijb / "loose_crop" / "7.jpg"
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:500])
    else:
        file.unlink()
    done = evaluate(tmp_path, "-d", ijb.parent, "-m", weights[0], "-net", "demo_w16")
    assert done.returncode == 1 and "7.jpg" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2, done.stderr
    assert not list((tmp_path / "cache").glob("*")) if (tmp_path / "cache").exists() else True
