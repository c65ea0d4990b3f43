"""Whose config a file is: its defaults, its learning rates, and its keys in our words."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.insightface_configs import NO_EFFECT, TABLE, as_published, learning_rate, values
from support.pictures import write_faces
from support.script import run_script
from support.tiny import TINY

from bct.config import load_config
from bct.errors import BctError
from bct.files import ROOT
from bct.method import load_method
from bct.training import optimizer
from bct.training.optimizer import loss_share

STEPS = 60  # per epoch: divisible by all micro-batches


def written(file: Path, values: dict) -> Path:
    lines = ["from easydict import EasyDict as edict", "config = edict()"]
    lines += [f"config.{key} = {value!r}" for key, value in values.items()]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")
    return file


def same_as_theirs(cfg, name):
    expected = values(name)
    folder = expected.pop("rec")
    assert {key: cfg[key] for key in expected} == expected
    assert (cfg.convention, cfg.lr_power, cfg.lr_policy, cfg.head) == (
        "insightface", 1.0, "poly", "margin",
    )  # fmt: skip
    assert Path(cfg.rec).name == folder and cfg.shard is None and cfg.decay_epoch is None
    assert (cfg.scale, cfg.clip_norm, cfg.parity) == (64.0, 5.0, "corrected")
    assert cfg.output == str(ROOT / "work_dirs" / name)


def test_the_table_has_all_42():
    assert len(TABLE) == 42


@pytest.mark.parametrize("name", TABLE)
def test_insightface_config(name, tmp_path, capsys):
    """As they write it and as we ship it: the same run, whose rates are theirs."""
    theirs = load_config(written(tmp_path / f"{name}.py", as_published(name) | NO_EFFECT))
    ours = load_config(ROOT / "configs" / name)
    said = capsys.readouterr().out
    assert said.count(f"{name}.py: convention insightface: it sets no key but insightface's") == 2
    for cfg in (theirs, ours):
        same_as_theirs(cfg, name)
    assert {k: v for k, v in theirs.items() if k != "rec"} == {
        k: v for k, v in ours.items() if k != "rec"
    }

    total, warmup = STEPS * ours.num_epoch, STEPS * max(ours.warmup_epoch, 0)
    ends = {0, 1, warmup // 2, warmup, warmup + 1, total // 2, total * 3 // 4, total - 1}
    for step in sorted(ends):
        linear = step / warmup if step < warmup else (total - step) / (total - warmup)
        assert optimizer.learning_rate(ours, step, STEPS) == pytest.approx(ours.lr * linear)
    # the reference's own arithmetic: its count is of micro-batches
    ours.parity, parts = "published", ours.gradient_acc
    for step in sorted(ends):
        last = step * parts + parts - 1
        expected = learning_rate(name, last, total * parts, warmup * parts)
        assert optimizer.learning_rate(ours, step, STEPS) == pytest.approx(expected)
    assert loss_share(ours) == 1 and loss_share(theirs) == 1 / parts


def test_rates_of_insightface_and_mixbct_at_three_quarters(tmp_path):
    ours = {"network": "r50", "num_epoch": 20, "lr": 0.1}
    rates = {}
    for convention in ("bct", "mixbct", "insightface"):
        cfg = load_config(written(tmp_path / "x.py", ours), [f"convention={convention}"])
        rates[convention] = optimizer.learning_rate(cfg, 15 * STEPS, STEPS)
    assert rates == pytest.approx({"bct": 0.00625, "mixbct": 0.00625, "insightface": 0.025})


def test_the_first_step_of_a_warm_up():
    """It is 0 in the schedule and the full rate in insightface's code: only parity copies that."""
    cfg = load_config(ROOT / "configs" / "wf42m_pfc02_r100_16gpus", ["num_epoch=4"])
    cfg.warmup_epoch, cfg.lr = 1, 0.1
    assert [optimizer.learning_rate(cfg, k, 5) for k in range(7)] == pytest.approx(
        [0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.1 * 14 / 15]
    )
    cfg.parity = "published"
    assert [optimizer.learning_rate(cfg, k, 5) for k in (0, 1, 5, 6, 19)] == pytest.approx(
        [0.1, 0.02, 0.1, 0.1 * 14 / 15, 0.1 / 15]
    )


FACES = {"rec": "x", "network": "r18", "num_epoch": 3}


@pytest.mark.parametrize(
    ("name", "given", "convention", "why"),
    [
        ("f256_r18_softmax_class30", FACES, "mixbct", "file name"),
        ("f512_r50_arc_data100", FACES, "mixbct", "file name"),
        ("EXdata_ms1mv3_r18_to_r50_NCCL_arc_to_arc_f512", FACES, "mixbct", "file name"),
        ("mine", FACES | {"old_embedding": "a.npy"}, "mixbct", "old_embedding"),
        ("mine", FACES | {"credible_old_feature": "a.npy", "rec_val": "x"}, "mixbct", "credible"),
        ("mine", FACES | {"old_embedding": "a.npy", "augment": "none"}, "bct", "augment"),
        ("mine", FACES | {"lr_power": 1.0}, "bct", "lr_power"),
        ("mine", FACES | {"scenario": "OPclass"}, "bct", "scenario"),
        ("mine", FACES | {"mix_ratio": 0.3}, "bct", "mix_ratio"),
        ("f256_r18_softmax_class30_mine", FACES, "insightface", "insightface's"),
        ("mine", FACES | {"dali": True, "loss": "arcface"}, "insightface", "insightface's"),
        ("mine", FACES | {"convention": "mixbct", "lr_power": 3.0}, "mixbct", "the file"),
    ],
)  # fmt: skip
def test_whose_config_it_is(tmp_path, name, given, convention, why):
    file = written(tmp_path / f"{name}.py", given)
    cfg = load_config(file, [], load_method("MixBCT").defaults)
    assert cfg.convention == convention and why in cfg.convention_why
    power = given.get("lr_power", {"bct": 2.0, "mixbct": 2.0, "insightface": 1.0}[convention])
    seed, every = {"insightface": (2048, 10)}.get(convention, (666, 20))
    assert (cfg.lr_power, cfg.seed, cfg.frequent) == (power, seed, every)
    assert cfg.fp16 is (False if convention == "insightface" else None)
    for other in ("bct", "mixbct", "insightface"):
        again = load_config(file, [f"convention={other}"], load_method("MixBCT").defaults)
        assert again.convention == other and "command line" in again.convention_why
    if "convention" not in given:
        assert load_config(file, ["convention=None"], load_method("MixBCT").defaults) == cfg


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("f128_r18_softmax_class30", "softmax"),
        ("f512_r18_arc_class30", "margin"),
        ("f512_r18_arc_data30", "margin"),
        ("OPclass_ms1mv3_r18_to_r50_BCT_softmax_to_arc_f128", "margin"),
    ],
)
def test_mixbct_says_the_loss_by_name(tmp_path, name, head):
    file = written(tmp_path / f"{name}.py", FACES)
    assert load_config(file).head == head
    assert load_config(file, ["head=none"]).head == "none"
    assert load_config(file, ["convention=bct"]).head == "margin"


def test_a_methods_own_defaults_stay(tmp_path):
    """A convention is in place of configs/base.py, not of what a method needs."""
    file = written(tmp_path / "x.py", FACES)
    assert load_config(file, [], {"lr_power": 3.0}).lr_power == 3.0


SAVED = "../../feature_save/OPclass/f512_r18_arc_class70"
UPGRADES = {  # method: what its published config sets of the old side, what that is here
    "MixBCT": (
        {"mix_ratio": 0.3, "old_embedding": f"{SAVED}_feature.npy",
         "credible_old_feature": f"{SAVED}_credible_ratio_90_feature.npy"},
        {"old_embedding": "feature", "credible_old_feature": "credible_ratio_90_feature"},
    ),
    "BCT": ({"old_prototype": f"{SAVED}_avg_feature.npy"}, {"old_prototype": "avg_feature"}),
    "UniBCT": (
        {"old_model_path": "../../work_dirs/f512_r18_arc_class30/model.pt",
         "old_prototype": f"{SAVED}_avg_feature.npy", "decay_epoch": [20, 26, 32]},
        {},
    ),
    "NCCL": (
        {"alpha": 1, "beta": 0.01, "queue_size": 8192, "old_embedding": f"{SAVED}_feature.npy"},
        {"old_embedding": "feature"},
    ),
    "AdvBCT": (
        {"threshold": 0.4, "old_embedding": f"{SAVED}_feature.npy",
         "old_embedding_label": f"{SAVED}_label.npy",
         "center_radius": f"{SAVED}_meta_radius_centernorm_for_AdvBCT.npy"},
        {"old_embedding": "feature", "class_statistics": "class_statistics"},
    ),
    "L2": (
        {"loss_weight": [1, 10], "threshold": 0, "old_embedding": f"{SAVED}_feature.npy"},
        {"old_embedding": "feature"},
    ),
}  # fmt: skip
SHARED = {
    "loss": "arcface", "network": "r50", "resume": False, "output": None, "embedding_size": 512,
    "sample_rate": 1.0, "fp16": True, "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 128,
    "lr": 0.1, "rec_val": "../../dataset/ms1m-retinaface-t1",
    "rec": "../../dataset/ms1m-retinaface-t1/train_part_70_class", "num_classes": 65402,
    "num_image": 3598269, "num_epoch": 35, "warmup_epoch": 0, "val_targets": [],
}  # fmt: skip


@pytest.mark.parametrize("named", [True, False], ids=["published", "renamed"])
@pytest.mark.parametrize("method", UPGRADES)
def test_mixbct_method_config(method, named, tmp_path):
    """Its paths start where its trainings run; keys that we lack become ours."""
    given, artefacts = UPGRADES[method]
    name = f"OPclass_ms1mv3_r18_to_r50_{method}_arc_to_arc_f512" if named else "mine"
    file = tmp_path / "methods" / method / "configs" / f"{name}.py"
    cfg = load_config(written(file, SHARED | given), [], load_method(method).defaults)
    assert cfg.convention == "mixbct" and cfg.scenario == "OPclass"
    if named or method == "UniBCT":
        assert cfg.old_config == "f512_r18_arc_class30" and cfg.shard == "class70"
    data = tmp_path / "dataset" / "ms1m-retinaface-t1"
    assert (cfg.rec, cfg.rec_val) == (str(data / "train_part_70_class"), str(data))
    saved = tmp_path / "feature_save" / "OPclass"
    for key, end in artefacts.items():
        assert cfg[key] == str(saved / f"f512_r18_arc_class70_{end}.npy")
    for key in given.keys() & cfg.keys() - {*artefacts, "old_prototype"}:
        assert cfg[key] == given[key]
    assert "old_model_path" not in cfg and "center_radius" not in cfg


@pytest.mark.parametrize(
    ("method", "key", "value", "replaced_by"),
    [
        ("UniBCT", "old_model_path", "old.pth", "old_config"),
        ("AdvBCT", "center_radius", "radii.npy", "class_statistics"),
    ],
)
def test_what_has_no_counterpart_names_the_key_in_its_place(
    tmp_path, method, key, value, replaced_by
):
    file = written(tmp_path / "configs" / "x.py", FACES | {key: value})
    with pytest.raises(BctError, match=f"{key} = '{value}'") as info:
        load_config(file, [], load_method(method).defaults)
    assert f"set {replaced_by} in its place" in info.value.do


@pytest.mark.parametrize("name", ["new_AdvBct.yml", "a.yaml", "config.json"])
def test_configs_of_other_kinds_are_refused(name):
    with pytest.raises(BctError, match=r"those are Python files, \.py"):
        load_config(name)


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    write_faces(folder / "train.rec", [4, 4])
    return folder


def test_a_run_begins_by_saying_it(faces, tmp_path):
    file = written(tmp_path / "job.py", {"rec": str(faces), "output": str(tmp_path / "run")})
    done = run_script("train_old.py", file, *TINY, "num_epoch=1")
    assert done.returncode == 0, done.stderr
    first = (tmp_path / "run" / "training.log").read_text().splitlines()[0]
    assert first.endswith("-convention insightface: it sets no key but insightface's")
    # goes on under another name for the same values
    again = run_script(
        "train_old.py", tmp_path / "run" / "config.py", "resume=True", "convention=mixbct"
    )
    assert again.returncode == 0 and "reusing it" in again.stdout, again.stderr


# ---- python -m torch.distributed.launch


@pytest.mark.parametrize("argument", ["--local-rank=0", "--local_rank=0"])
@pytest.mark.parametrize("environment", [{}, {"LOCAL_RANK": "0"}], ids=["unset", "set"])
def test_local_rank_is_taken(faces, tmp_path, argument, environment):
    words = [f"rec={faces}", f"output={tmp_path / 'run'}", *TINY, "num_epoch=1"]
    done = run_script("train_old.py", argument, "configs/base.py", *words, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "script", ["train_old.py", "eval/ijbc.py", "eval/verification.py", "tools/extract_features.py"]
)
@pytest.mark.parametrize("given", ["--local_rank=1", "--local-rank=x", "--local-rank=-1"])
def test_another_local_rank_is_refused(script, given):
    done = run_script(script, given, "configs/base.py", env={"LOCAL_RANK": "0"})
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 2, done.stderr
    assert "local-rank" in done.stderr


@pytest.mark.slow
def test_the_command_of_mixbcts_readme(faces, tmp_path):
    file = written(tmp_path / "job.py", {"rec": str(faces), "output": str(tmp_path / "run")})
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = f"--master_port={free.getsockname()[1]}"
    launch = [sys.executable, "-m", "torch.distributed.launch", "--nproc_per_node=2", port]
    words = [str(ROOT / "train_old.py"), str(file), *TINY, "num_epoch=1", "batch_size=2"]
    done = subprocess.run(
        [*launch, *words], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.pt").is_file()
