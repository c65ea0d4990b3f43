"""Validation in training: every figure derived anew, what best.pt is chosen by, sets that are not
there."""

import json
import pickle
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.pictures import jpeg, write_faces
from support.ranks import run_on_ranks
from support.tiny import TINY, Job, stopping_at

from backbones import get_model
from backbones.basis import BasisNetwork
from bct.config import load_config
from bct.data.images import to_network
from bct.data.sets import open_images
from bct.errors import BctError
from bct.log import RunLog
from bct.method import Method
from bct.models.embed import embed_models
from bct.models.model import open_model
from bct.old_model import OldModel
from bct.scenarios import set_name
from bct.stored.artefacts import write_artefact
from bct.stored.vector_set import Vectors
from bct.train import train
from bct.training.checkpoint import checkpoints
from bct.training.heads import PartialFC, SoftmaxHead
from bct.validation import Validation, highest_until, open_validation, validate
from methods.BT2.train import BT2

CPU = torch.device("cpu")
TRAINED = {"ann": (0, 4), "bob": (1, 5), "cleo": (2, 3), "dan": (3, 4), "eve": (4, 4),
           "fay": (7, 3), "gus": (8, 3)}  # fmt: skip
# another order, two strangers, of whom one has a single image
VALIDATED = {"cleo": (2, 3), "bob": (1, 2), "amy": (5, 3), "zoe": (6, 1), "eve": (4, 2)}
FIGURES = [f"val/{name}" for name in
           ("top1", "top5", "loo_top1", "loo_map", "cross_top1", "cross_map")]  # fmt: skip


def write_classes(folder, classes, first=0):
    for name, (identity, count) in classes.items():
        (folder / name).mkdir(parents=True)
        for k in range(first, first + count):
            (folder / name / f"{k}.jpg").write_bytes(jpeg(identity, k))
    return folder


def write_set(folder, name, pairs=8):
    images = [jpeg(i // 2 % 5, 20 + i % 3 + j) for i in range(pairs) for j in (0, 1)]
    images[3], images[7] = jpeg(6, 0), jpeg(5, 0)
    (folder / f"{name}.bin").write_bytes(pickle.dumps((images, [i % 2 == 0 for i in range(pairs)])))


def write_old(path, images, width=16, **manifest):
    """The old model's features: the class's own direction and noise."""
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((9, width))[images.labels] + rng.standard_normal(
        (len(images), width)
    )
    rows[: manifest.get("absent", 0)] = 0
    said = {"model": "m", "data": images.fingerprint, "data_path": str(images.path), **manifest}
    with write_artefact(path, rows.shape, "float32", kind="old_embedding", **said) as out:
        out[:] = rows
    return path


@pytest.fixture
def named(tmp_path):
    """A job whose training set and val_data have class names, with old features and a .bin."""
    write_classes(tmp_path / "faces", TRAINED)
    val = write_classes(tmp_path / "val", VALIDATED, first=10)
    write_set(tmp_path, "toy")
    write_old(tmp_path / "val_feature.npy", open_images(val))
    job = Job(tmp_path)
    job.path.write_text(
        job.path.read_text()
        + f"config.rec = {str(tmp_path / 'faces')!r}\nconfig.rec_val = {str(tmp_path)!r}\n"
        f"config.val_data = {str(val)!r}\n"
        f"config.val_old_features = {str(tmp_path / 'val_feature.npy')!r}\n"
    )
    return job


def entries(output):
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


# ---- the figures


def average_precision(scores, right):
    """Mean over the right ones of the share of right ones among all that score at least as high."""
    return np.mean([right[scores >= s].mean() for s in scores[right]])


def leave_one_out(query, gallery, labels):
    """(top-1, mAP) of queries that have anything to find, each without its own item."""
    query, gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery))
    first, ap = [], []
    for i, label in enumerate(labels):
        others = np.arange(len(labels)) != i
        scores, right = (query[i] @ gallery.T)[others], labels[others] == label
        if right.any():
            first.append(right[scores.argmax()])
            ap.append(average_precision(scores, right))
    return np.mean(first), np.mean(ap)


@torch.no_grad()
def derived(cfg, backbone, logits_of, absent=0):
    """All figures by plain loops over the folder's images."""
    images = open_images(cfg.val_data)
    trained = sorted(TRAINED)
    e = backbone.eval()(pixels(images)).float()
    logits, hits = logits_of(e), {1: [], 5: []}
    for i, label in enumerate(images.labels):
        name = images.class_names[label]
        if name in trained:
            order = logits[i].argsort(descending=True).tolist()
            for k, found in hits.items():
                found.append(trained.index(name) in order[:k])
    old = np.load(cfg.val_old_features)
    values = [
        *(np.mean(found) for found in hits.values()),
        *leave_one_out(e.numpy(), e.numpy(), images.labels),
        *leave_one_out(e.numpy()[absent:], old[absent:], images.labels[absent:]),
    ]
    return dict(zip(FIGURES, values, strict=True))


def parts(cfg):
    """A network and a head as they are before training."""
    torch.manual_seed(1)
    backbone = get_model(cfg.network, cfg.embedding_size)
    for module in backbone.modules():  # statistics that keep images apart
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        backbone.train()(pixels(open_images(cfg.rec)))
    if cfg.head == "softmax":
        return backbone, SoftmaxHead(cfg.embedding_size, 7, unit=cfg.head_unit)
    return backbone, PartialFC(cfg.embedding_size, 7, seed=4)


def pixels(images):
    """What a network gets of all images."""
    out = np.zeros((len(images), 112, 112, 3), np.uint8)
    for i in range(len(images)):
        images.load(i, out[i])
    return to_network(torch.from_numpy(out))


def opened(cfg):
    dataset = open_images(cfg.rec)
    return open_validation(cfg, dataset, OldModel(cfg, dataset), Method)


def figures_on_ranks(path, *overrides):
    """The figures that a network and head have on however many ranks there are."""
    cfg = load_config(path, [*TINY, "num_classes=7", *overrides])
    backbone, head = parts(cfg)
    validation = opened(cfg)
    method = Method(cfg, None)
    with RunLog(cfg, 1, 0, torch.amp.GradScaler("cpu", enabled=False)) as log:
        return validate(cfg, validation, backbone, method, head, CPU, 1, {}, log)


@pytest.mark.parametrize("head", ["margin", "softmax", "unit"])
def test_figures_of_images_on_any_number_of_ranks(named, head):
    more = {"margin": [], "softmax": ["head=softmax"], "unit": ["head=softmax", "head_unit=True"]}
    cfg = named(*more[head])
    named.output.mkdir()
    backbone, own = parts(cfg)

    def logits_of(e):
        if head == "margin":
            return F.normalize(e) @ F.normalize(own.weight).T
        return F.linear(F.normalize(e) if head == "unit" else e, own.weight, own.bias)

    want = derived(cfg, backbone, logits_of)
    assert 0 < want["val/top1"] < want["val/top5"] < 1  # all can be wrong
    runs = [run_on_ranks(size, figures_on_ranks, named.path, *more[head]) for size in (1, 2)]
    if head == "margin":  # 7 classes and 11 images over 4 ranks
        runs.append(run_on_ranks(4, figures_on_ranks, named.path))
    for found, rises in (result for run in runs for result in run):
        assert rises and found == pytest.approx(want, abs=1e-6)
    assert entries(named.output)[-1] == pytest.approx({"step": 1, **want}, abs=1e-6)


def test_classes_of_one_score_count_against_the_right_one(named):
    cfg = named("num_classes=7", "head=softmax")
    named.output.mkdir()
    backbone, head = parts(cfg)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    validation = opened(cfg)
    with RunLog(cfg, 1, 0, torch.amp.GradScaler("cpu", enabled=False)) as log:
        found, _ = validate(cfg, validation, backbone, Method(cfg, None), head, CPU, 1, {}, log)
    assert (found["val/top1"], found["val/top5"]) == (0, 0)


def test_a_whole_run_says_what_its_network_does(named):
    """Of the network that has been saved; old features of the first two images are gone."""
    images = open_images(named().val_data)
    write_old(named.output.parent / "val_feature.npy", images, absent=2)
    cfg = named("num_epoch=1", "val_targets=['toy']")
    train(cfg, Method, CPU)
    backbone = get_model("demo_w32", 16)
    backbone.load_state_dict(torch.load(named.output / "model.pt", weights_only=True))
    saved = torch.load(checkpoints(named.output)[0], weights_only=True)
    weight = F.normalize(saved["head"]["weight"])
    want = derived(cfg, backbone, lambda e: F.normalize(e) @ weight.T, absent=2)
    found = next(line for line in reversed(entries(named.output)) if "toy" in line)
    assert {name: found[name] for name in FIGURES} == pytest.approx(want, abs=1e-6)
    assert found["mean"] == found["toy"] and found["step"] == 3
    assert saved["progress"]["best_by"] == "mean"
    assert saved["progress"]["best"].keys() == {"toy", "mean", *FIGURES}
    log = (named.output / "training.log").read_text()
    for line in (
        r"\[toy\]\[3\]XNorm: \d+\.\d{6}",
        r"\[toy\]\[3\]Accuracy-Flip: \d\.\d{5}\+-\d\.\d{5}",
        r"\[toy\]\[3\]Accuracy-Highest: \d\.\d{5}",
        r"\[mean\]\[3\]Accuracy-Highest: \d\.\d{5}",
        r"\[val/cross_map\]\[3\]Now: \d\.\d{5}   Highest: \d\.\d{5}",
    ):
        assert re.search(f"-{line}$", log, re.MULTILINE), line


def test_images_are_seen_as_every_evaluation_sees_them(named):
    """Cut and standardised, as the model.json says."""
    view = ["network=conv4_w32", "image_size=28", "pixels=imagenet", "augment=resized_crop"]
    cfg = named("num_epoch=1", "val_old_features=none", *view)
    train(cfg, Method, CPU)
    images = open_images(cfg.val_data)
    e = embed_models({"new": open_model(named.output / "model.pt")}, images)["new"]
    want = leave_one_out(e, e, images.labels)
    found = next(line for line in reversed(entries(named.output)) if "val/top1" in line)
    assert (found["val/loo_top1"], found["val/loo_map"]) == pytest.approx(want, abs=1e-6)


def test_an_embedding_that_is_not_finite_finds_nothing(named, caplog):
    cfg = named("num_classes=7")
    named.output.mkdir()
    backbone, head = parts(cfg)
    backbone.features.weight.data.fill_(float("nan"))
    with RunLog(cfg, 1, 0, torch.amp.GradScaler("cpu", enabled=False)) as log:
        method = Method(cfg, None)
        found, _ = validate(cfg, opened(cfg), backbone, method, head, CPU, 1, {}, log)
    assert (found["val/top1"], found["val/top5"], found["val/loo_top1"]) == (0, 0, 0)
    assert "11 embeddings of val_data are not finite" in caplog.text


def test_a_map_of_the_gallery_is_not_validated(named):
    cfg = named("val_old_features=none")
    path = write_old(named.output.parent / "x_feature.npy", open_images(cfg.rec))
    write_old(named.output.parent / "x_label.npy", open_images(cfg.rec))
    vectors = Vectors(path)
    with pytest.raises(BctError, match="which sees no images"):
        open_validation(cfg, vectors, OldModel(cfg, vectors), Method)


def test_labels_mean_the_same_only_when_it_is_said(named, capsys):
    """Record files have no names."""
    plain = ["val_old_features=none", "num_epoch=1"]
    listed = write_faces(named.output.parent / "listed.rec", [2, 3, 1])
    cfg = named(*plain, f"val_data={listed}")
    validation = open_validation(
        cfg, open_images(cfg.rec), OldModel(cfg, open_images(cfg.rec)), Method
    )
    assert validation.val.classes is None and validation.best == "val/loo_map"
    assert "val_same_labels=True" in capsys.readouterr().out
    cfg = named(*plain, f"val_data={listed}", "val_same_labels=True", "num_classes=7")
    validation = open_validation(
        cfg, open_images(cfg.rec), OldModel(cfg, open_images(cfg.rec)), Method
    )
    assert validation.val.classes.tolist() == open_images(listed).labels.tolist()


def test_the_head_of_bt2_classifies_the_new_part():
    torch.manual_seed(0)
    network = BasisNetwork(torch.nn.Linear(6, 10), 4, 6, 3)
    features = network(torch.randn(2, 6))
    assert torch.equal(BT2.classified(features), features.new)
    assert Method.classified(features).shape == (2, 7)


# ---- best.pt


@pytest.mark.parametrize("best", [None, "toy", "val/top1", "val/loo_map", "val/cross_top1"])
def test_best_is_the_network_of_the_best_figure(named, best):
    write_set(named.output.parent, "other", 6)
    chosen = [] if best is None else [f"best={best}"]
    cfg = named("val_targets=['toy', 'other']", "verbose=1", "num_epoch=2", "lr=0.3", *chosen)
    train(cfg, Method, CPU)
    values = {line["step"]: line[best or "mean"] for line in entries(named.output) if "toy" in line}
    assert list(values) == [1, 2, 3, 4, 5, 6]
    about = json.loads((named.output / "best.json").read_text())
    assert about["step"] == max(values, key=values.get)  # the first of several


def test_resuming_keeps_the_best(named, tmp_path):
    settings = ["val_targets=['toy']", "verbose=1", "num_epoch=2", "lr=0.3", "best=val/loo_map"]
    whole = named(*settings, f"output={tmp_path / 'whole'}")
    train(whole, Method, CPU)
    cfg = named(*settings)
    assert train(cfg, stopping_at(Method, 4), CPU) == 128 + 15
    train(named(*settings, "resume=True"), Method, CPU)
    progress = [
        torch.load(checkpoints(folder)[0], weights_only=True)["progress"]
        for folder in (named.output, tmp_path / "whole")
    ]
    assert progress[0]["best"] == progress[1]["best"]
    lines = [
        re.findall(r"\](.*Highest: .*)", (folder / "training.log").read_text())
        for folder in (named.output, tmp_path / "whole")
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 6 * (2 + len(FIGURES))
    steps = [
        json.loads((folder / "best.json").read_text())["step"]
        for folder in (named.output, tmp_path / "whole")
    ]
    assert steps[0] == steps[1]


def test_what_older_checkpoints_know_of_the_best(capsys):
    by_mean = Validation([], None, "mean")
    assert highest_until({"best": 0.75}, by_mean) == {"mean": 0.75}
    assert highest_until({"best": 0.0}, by_mean) == {}  # nothing had been verified
    assert capsys.readouterr().out == ""
    kept = {"mean": 0.5, "lfw": 0.6}
    assert highest_until({"best": kept, "best_by": "mean"}, by_mean) == kept
    by_lfw = Validation([], None, "lfw")
    assert highest_until({"best": kept, "best_by": "mean"}, by_lfw) == {"mean": 0.5}
    assert "best.pt was chosen by mean" in capsys.readouterr().out


def test_a_resume_on_other_images_begins_their_best_anew(named, tmp_path, capsys):
    """The figures of two sets say nothing of each other; a start without any loses nothing."""
    own = ["val_old_features=none", "verbose=1000", "resume=True"]
    easy = write_classes(tmp_path / "easy", {"bob": (1, 2), "cleo": (2, 2)}, first=30)
    train(named(*own, f"val_data={easy}", "num_epoch=1"), Method, CPU)
    train(named(*own, "val_data=none", "num_epoch=2"), Method, CPU)
    first = json.loads((named.output / "best.json").read_text())["step"]
    assert saved_best(named)["best_by"] == "val/loo_map"
    capsys.readouterr()
    assert saved_best(named)["best"]["val/loo_map"] == 1.0
    train(named(*own, f"val_data={easy}", "num_epoch=3"), Method, CPU)
    assert "other images" not in capsys.readouterr().out
    assert json.loads((named.output / "best.json").read_text())["step"] == first
    train(named(*own, "num_epoch=4"), Method, CPU)
    assert "other images than before: val/loo_map" in capsys.readouterr().out
    assert saved_best(named)["best"]["val/loo_map"] < 1.0
    assert json.loads((named.output / "best.json").read_text())["step"] == 4 * first


def test_a_finished_run_keeps_the_best_that_it_chose(named, capsys):
    own = ["val_old_features=none", "num_epoch=1", "resume=True"]
    for best in ("val/top1", "val/loo_map"):
        train(named(*own, f"best={best}"), Method, CPU)
        assert json.loads((named.output / "best.json").read_text())["chosen_by"] == "val/top1"
    said = capsys.readouterr().out
    assert said.count("warning: its best.pt was chosen by val/top1, not by val/loo_map") == 1


def saved_best(job):
    return torch.load(checkpoints(job.output)[0], weights_only=True)["progress"]


# ---- what is not there, and what is refused


def test_missing_sets_are_named_once_and_skipped(named, capsys):
    plain = ["val_data=none", "val_old_features=none", "num_epoch=1", "verbose=1"]
    train(named(*plain, "val_targets=['lfw', 'toy', 'cfp_fp.bin']"), Method, CPU)
    said = capsys.readouterr().out
    assert said.count("lfw.bin, cfp_fp.bin") == 1 and "no best.pt" not in said
    assert (named.output / "best.pt").exists()
    assert "[lfw]" not in (named.output / "training.log").read_text()


def test_without_any_set_there_is_no_best(named, capsys):
    plain = ["val_data=none", "val_old_features=none", "num_epoch=1", "verbose=1"]
    train(named(*plain, "val_targets=['lfw']"), Method, CPU)
    assert "there will be no best.pt" in capsys.readouterr().out
    assert (named.output / "model.pt").exists() and not (named.output / "best.pt").exists()


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        ("val_targets=['toy','lfw'] strict_val=True", "lfw.bin does not exist"),
        ("val_targets=['lfw'] best=lfw", "best = 'lfw' is no figure"),
        ("best=mean", "choose from val/top1, val/top5"),
        ("best=val/top2", "choose from val/top1, val/top5"),
        ("val_data=none", "val_old_features is given without val_data"),
        ("val_data=nowhere", "no data set at"),
        ("val_data={faces} ", "not from val_data"),
        ("embedding_size=8", "new embeddings have 8 dimensions, old ones 16"),
        ("head=none best=val/top1", "'val/top1' is no figure"),
        ("val_targets=['mean']", "a verification set is called mean"),
    ],
)
def test_refused_before_the_training(named, overrides, word, tmp_path):
    write_set(tmp_path, "mean")
    given = overrides.format(faces=tmp_path / "thirteen").split()
    write_classes(tmp_path / "thirteen", {"a": (0, 7), "b": (1, 4)})
    with pytest.raises(BctError, match=re.escape(word)):
        train(named(*given), Method, CPU)
    assert not named.output.exists()


def test_features_of_another_old_model_are_refused(named):
    cfg, images = named(), open_images(named().rec)
    old = OldModel(cfg, images)
    old.manifests["old_embedding"] = {"model": "another", "dim": 16}
    with pytest.raises(BctError, match="of another old model"):
        open_validation(cfg, images, old, Method)


def test_features_in_the_old_models_folder(named, capsys, tmp_path):
    """As tools/extract_features.py --model FOLDER --rec VAL leaves them."""
    plain = ["val_old_features=none", f"old_model={tmp_path / 'old'}"]
    assert "val/cross_map" not in opened(named(*plain)).val.figures
    assert "tools/extract_features.py --model" in capsys.readouterr().out
    path = tmp_path / "old/features" / f"{set_name(tmp_path / 'val')}_feature.npy"
    path.parent.mkdir(parents=True)
    write_old(path, open_images(tmp_path / "val"))
    validation = opened(named(*plain))
    assert np.array_equal(validation.val.old, np.load(path))
    write_old(path, open_images(tmp_path / "faces"))
    with pytest.raises(BctError, match="not from val_data") as caught:
        opened(named(*plain))
    assert "make it with: python tools/extract_features.py --model" in caught.value.do


def test_features_without_a_manifest_are_taken_with_a_warning(named, capsys):
    path = named.output.parent / "val_feature.npy"
    path.with_suffix(".json").unlink()
    opened(named())
    assert "has no manifest" in capsys.readouterr().out
    np.save(path, np.load(path)[1:])
    with pytest.raises(BctError, match="10 rows for 11 images"):
        opened(named())
