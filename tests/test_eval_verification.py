"""eval/verification.py: figures against plain numpy, the cross test, sets that can't be judged."""

import json
import pickle

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve
from support.pictures import jpeg
from support.script import run_script

from backbones import get_model
from bct.metrics.folds import accuracy
from bct.models.embed import embed_set
from bct.protocols.pairs import load_bin


@pytest.fixture
def models(tmp_path):
    files = []
    for name, seed in (("old", 0), ("new", 1)):
        torch.manual_seed(seed)
        files.append(tmp_path / f"{name}.pt")
        torch.save(get_model("demo_w16", 8).state_dict(), files[-1])
    return files


def make_set(path, same, different):
    """`same` genuine and `different` impostor pairs, alternating as long as both last."""
    flags = [True] * same + [False] * different
    flags = [flags[i] for i in np.random.default_rng(0).permutation(len(flags))]
    images = []
    for i, flag in enumerate(flags):
        images += [jpeg(i, 0), jpeg(i if flag else i + 100, 1)]
    path.write_bytes(pickle.dumps((images, flags)))
    return path


def run(tmp_path, *arguments, ranks=1):
    common = ("-o", tmp_path / "out", "--cache", tmp_path / "cache", "--amp", "off")
    return run_script("eval/verification.py", *common, *arguments, ranks=ranks)


def test_self_and_cross_figures(models, tmp_path):
    old, new = models
    sets = [make_set(tmp_path / "a.bin", 12, 18), make_set(tmp_path / "b.bin", 10, 10)]
    arguments = ("-m", new, "-net", "demo_w16", "-m_old", old, "-old_net", "demo_w16",
                 "--far", "0.1", "--set", *sets)  # fmt: skip
    done = run(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/new_vs_old_a+b.json").read_text())["sets"]
    assert list(found) == ["a", "b"] and set(found["a"]) == {"old / old", "new / old", "new / new"}

    images = load_bin(sets[0])
    unit = {}
    for name, file in (("old", old), ("new", new)):
        network = get_model("demo_w16", 8)
        network.load_state_dict(torch.load(file))
        unit[name] = embed_set(network, images, torch.device("cpu"), 256, mirror=True)
    for query, gallery in (("old", "old"), ("new", "old"), ("new", "new")):
        first, second = unit[gallery][0::2], unit[query][1::2]  # the first image is the gallery's
        figures = found["a"][f"{query} / {gallery}"]
        assert figures["accuracy"] == pytest.approx(accuracy(first, second, images.issame).mean)
        cosine = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(first, second)]  # noqa: B905
        false, true, _ = roc_curve(images.issame, cosine, drop_intermediate=False)
        assert figures["tar"] == pytest.approx(true[false <= 0.1].max())
    assert "compatible at FAR 1e-1" in done.stdout and "flips at FAR" in done.stdout

    two = run(tmp_path, *arguments, ranks=2)
    assert two.returncode == 0, two.stderr
    again = json.loads((tmp_path / "out/new_vs_old_a+b.json").read_text())["sets"]
    for test, figures in found["a"].items():
        assert again["a"][test] == pytest.approx(figures, rel=1e-4)


def test_a_model_against_itself_is_not_compatible_and_flips_nothing(models, tmp_path):
    path = make_set(tmp_path / "a.bin", 12, 18)
    done = run(tmp_path, "-m", models[0], "-net", "demo_w16", "-m_old", models[0],
               "-old_net", "demo_w16", "--far", "0.1", "--set", path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not compatible at FAR 1e-1, a tie: cross - old self +0.0000" in done.stdout
    assert "lost 0, won 0; impostors newly accepted 0, newly rejected 0" in done.stdout


@pytest.mark.parametrize(
    ("same", "different", "word"),
    [(12, 0, "has genuine pairs only: FAR is undefined"), (0, 12, "TAR is undefined")],
)
def test_sets_of_one_kind_say_so(models, tmp_path, same, different, word):
    path = make_set(tmp_path / "a.bin", same, different)
    done = run(tmp_path, "-m", models[0], "-net", "demo_w16", "--set", path)
    assert done.returncode == 0, done.stderr
    assert word in done.stdout and "| - | - | - |" in done.stdout


@pytest.mark.parametrize(
    ("same", "different", "far", "word"),
    [
        (12, 18, "1e-2", "No verdict: FAR 1e-2 allows no false accept among 18 impostor pairs."),
        (4, 26, "0.1", "No verdict: 4 genuine pairs only."),
    ],
)
def test_no_verdict_without_grounds(models, tmp_path, same, different, far, word):
    path = make_set(tmp_path / "a.bin", same, different)
    done = run(tmp_path, "-m", models[1], "-net", "demo_w16", "-m_old", models[0],
               "-old_net", "demo_w16", "--far", far, "--set", path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert word in done.stdout and "compatible at" not in done.stdout
    assert "flips at" not in done.stdout


def test_pairs_of_an_image_with_itself_are_left_out(tmp_path):
    """Of noise they would have TAR 1; the others' figures are as without them."""
    flags = [True, False] * 15
    images = [jpeg(i if flag else i + 100 * k, k) for i, flag in enumerate(flags) for k in (0, 1)]
    rows = np.random.default_rng(0).standard_normal((70, 8)).astype(np.float32)
    rows[61::2] = rows[60::2]
    (tmp_path / "a.bin").write_bytes(pickle.dumps((images, flags)))
    twice = [jpeg(k, 7) for k in range(5) for _ in range(2)]
    (tmp_path / "b.bin").write_bytes(pickle.dumps((images + twice, [*flags, *[True] * 5])))
    np.save(tmp_path / "a.npy", rows[:60])
    np.save(tmp_path / "b.npy", rows)
    found = {}
    for name in ("a", "b"):
        line = ("-m", tmp_path / f"{name}.npy", "--far", "0.1", "--set", tmp_path / f"{name}.bin")
        done = run(tmp_path, *line)
        assert done.returncode == 0, done.stderr
        found[name] = json.loads((tmp_path / f"out/{name}_{name}.json").read_text())["sets"][name]
    assert "5 of 35 pairs of b are left out, as both images are one: pair 30" in done.stdout
    assert found["a"] == found["b"] and found["a"]["new / new"]["tar"] < 0.6
    (tmp_path / "c.bin").write_bytes(pickle.dumps((twice, [True] * 5)))
    done = run(tmp_path, "-m", tmp_path / "a.npy", "--set", tmp_path / "c.bin")
    assert done.returncode == 1 and "all pairs are of an image with itself" in done.stderr


def test_many_sets_of_long_names(tmp_path):
    """Their results have a name that fits, and two collections have two names."""
    rows = np.random.default_rng(0).standard_normal((60, 8))
    np.save(tmp_path / "m.npy", rows)
    sets = [make_set(tmp_path / f"{letter * 80}.bin", 12, 18) for letter in "abcd"]
    for some in (sets, sets[:3] + sets[:0]):
        done = run(tmp_path, "-m", tmp_path / "m.npy", "--far", "0.1", "--set", *some)
        assert done.returncode == 0, done.stderr
    found = sorted(path.name for path in (tmp_path / "out").glob("*.json"))
    assert len(found) == 2 and all(name.startswith("m_aaa") for name in found)


def test_insightfaces_own_set(models, shared, tmp_path):
    path = shared / "data/insightface_small_lfw/small_lfw.bin"
    done = run(tmp_path, "-m", models[0], "-net", "demo_w16", "--set", path)
    assert done.returncode == 0 and "genuine pairs only" in done.stdout, done.stderr


def test_stored_embeddings_stand_for_a_model(models, tmp_path):
    path = make_set(tmp_path / "a.bin", 12, 18)
    network = get_model("demo_w16", 8)
    network.load_state_dict(torch.load(models[0]))
    rows = embed_set(network, load_bin(path), torch.device("cpu"), 256, mirror=True)
    np.save(tmp_path / "e.npy", rows)
    common = ("--far", "0.1", "--set", path)
    of_model = run(tmp_path, "-m", models[0], "-net", "demo_w16", *common)
    of_rows = run(tmp_path, "-m", tmp_path / "e.npy", *common)
    assert of_rows.returncode == 0, of_rows.stderr
    rows = [o.stdout.split("\n\nwritten")[0].strip() for o in (of_model, of_rows)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--set", "nothing.bin"], "nothing.bin does not exist"),
        (["--set", "x.bin", "y/x.bin"], "two sets have one name"),
    ],
)
def test_refusals(models, tmp_path, arguments, word):
    done = run(tmp_path, "-m", models[0], "-net", "demo_w16", *arguments)
    assert done.returncode == 1 and word in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 2, done.stderr


def test_results_of_another_model_are_not_replaced_unasked(models, tmp_path):
    path, out = make_set(tmp_path / "a.bin", 12, 18), tmp_path / "out" / "m_a.json"
    rng = np.random.default_rng(0)
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "m.npy", rng.standard_normal((60, 4)))
    common = ("--far", "0.1", "--set", path)
    assert run(tmp_path, "-m", tmp_path / "x" / "m.npy", *common).returncode == 0
    before = out.read_bytes()
    refused = run(tmp_path, "-m", tmp_path / "y" / "m.npy", *common)
    assert refused.returncode == 1 and "results of other models" in refused.stderr
    assert out.read_bytes() == before
    done = run(tmp_path, "-m", tmp_path / "y" / "m.npy", *common, "--overwrite")
    assert done.returncode == 0 and out.read_bytes() != before
