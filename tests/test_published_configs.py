"""The configs of the MixBCT benchmark, against the published matrix typed out below."""

import runpy
from functools import cache
from pathlib import Path

import pytest

from bct.config import load_config
from bct.files import ROOT
from bct.method import load_method
from bct.scenarios import artefact_name

CLASS70, DATA70, WHOLE = "train_part_70_class.rec", "train_part_70_data.rec", "train.rec"
COUNTS = {  # classes, images
    CLASS70: "65,402 | 3,598,269", DATA70: "93,431 | 3,625,372", WHOLE: "93,431 | 5,179,510",
}  # fmt: skip
# key: scenario, loss of the old model, D, old config, record file, SD of the artefacts, alone
ROWS = {
    "c1": ("EXclass", "arc", 512, "f512_r18_arc_class30", WHOLE,
           "f512_r18_arc_class100", "f512_r50_arc_data100"),
    "c2": ("EXclass", "softmax", 128, "f128_r18_softmax_class30", WHOLE,
           "f128_r18_softmax_class100", "f128_r50_arc_data100"),
    "d1": ("EXdata", "arc", 512, "f512_r18_arc_data30", WHOLE,
           "f512_r18_arc_data100", "f512_r50_arc_data100"),
    "d2": ("EXdata", "softmax", 512, "f512_r18_softmax_data30", WHOLE,
           "f512_r18_softmax_data100", "f512_r50_arc_data100"),
    "o1": ("OPclass", "arc", 512, "f512_r18_arc_class30", CLASS70,
           "f512_r18_arc_class70", "f512_r50_arc_class70"),
    "o2": ("OPclass", "softmax", 128, "f128_r18_softmax_class30", CLASS70,
           "f128_r18_softmax_class70", "f128_r50_arc_class70"),
    "o3": ("OPclass", "softmax", 256, "f256_r18_softmax_class30", CLASS70,
           "f256_r18_softmax_class70", "f256_r50_arc_class70"),
    "p1": ("OPdata", "arc", 512, "f512_r18_arc_data30", DATA70,
           "f512_r18_arc_data70", "f512_r50_arc_data70"),
    "p2": ("OPdata", "softmax", 512, "f512_r18_softmax_data30", DATA70,
           "f512_r18_softmax_data70", "f512_r50_arc_data70"),
}  # fmt: skip
# name in the file name: directory of the method, published settings
METHODS = {
    "MixBCT": ("MixBCT", {"mix_ratio": 0.3, "T": 0.9}),
    "BCT": ("BCT", {}),
    "UniBCT": ("UniBCT", {"refresh_epochs": [10, 20]}),
    "NCCL": ("NCCL", {"alpha": 1, "beta": 0.01, "queue_size": 8192}),
    "AdvBCT": ("AdvBCT", {"reading": "mixbct", "boundary": "elastic"}),
    "L2": ("L2", {"loss_weight": [1, 10], "threshold": 0}),
    "weakenedL2": ("L2", {"loss_weight": [1, 10], "threshold": 0.2}),
}
# name: network, head, D, record file
ALONE = {
    "f128_r18_softmax_class30": ("r18", "softmax", 128, "train_part_30_class.rec"),
    "f128_r18_softmax_data30": ("r18", "softmax", 128, "train_part_30_data.rec"),
    "f256_r18_softmax_class30": ("r18", "softmax", 256, "train_part_30_class.rec"),
    "f512_r18_arc_class30": ("r18", "margin", 512, "train_part_30_class.rec"),
    "f512_r18_arc_data30": ("r18", "margin", 512, "train_part_30_data.rec"),
    "f512_r18_softmax_data30": ("r18", "softmax", 512, "train_part_30_data.rec"),
    "f128_r50_arc_data100": ("r50", "margin", 128, WHOLE),
    "f256_r50_arc_data100": ("r50", "margin", 256, WHOLE),
    "f512_r50_arc_data100": ("r50", "margin", 512, WHOLE),
    "f128_r50_arc_class70": ("r50", "margin", 128, CLASS70),
    "f256_r50_arc_class70": ("r50", "margin", 256, CLASS70),
    "f512_r50_arc_class70": ("r50", "margin", 512, CLASS70),
    "f512_r50_arc_data70": ("r50", "margin", 512, DATA70),
}
NEW = [(method, row) for method in METHODS for row in ROWS]
REC = "rec=ms1m/train.rec"  # so that the record file's name does not depend on the data being there


@cache
def defaults(directory):
    return load_method(directory).defaults


def new_file(method, row):
    scenario, old, dim = ROWS[row][:3]
    name = f"{scenario}_ms1mv3_r18_to_r50_{method}_{old}_to_arc_f{dim}.py"
    return ROOT / "methods" / METHODS[method][0] / "configs" / name


def states_only_what_differs(file, known):
    assert len(file.read_text().splitlines()) <= 15
    stated = runpy.run_path(str(file))["config"]
    assert stated["rec"] == "dataset/ms1m-retinaface-t1" and stated["num_epoch"] == 35
    assert [key for key, value in stated.items() if value == known[key]] == []


@pytest.fixture(scope="module")
def base():
    return dict(runpy.run_path(str(ROOT / "configs" / "base.py"))["config"])


def test_there_are_these_files_and_no_others():
    new = set(ROOT.glob("methods/*/configs/*_ms1mv3_*.py"))
    assert new == {new_file(*both) for both in NEW} and len(new) == 63
    assert {path.stem for path in ROOT.glob("configs/f[0-9]*.py")} == set(ALONE)


@pytest.mark.parametrize(("method", "row"), NEW)
def test_new_model(method, row, base):
    scenario, _, dim, old_config, record_file, sd, alone_config = ROWS[row]
    directory, settings = METHODS[method]
    file, known = new_file(method, row), defaults(directory)
    cfg = load_config(file, [], known)
    assert (cfg.scenario, cfg.old_config, cfg.network) == (scenario, old_config, "r50")
    assert (cfg.head, cfg.embedding_size) == ("margin", dim)
    assert artefact_name(cfg.old_config, cfg.shard) == sd
    assert {key: cfg[key] for key in settings} == settings
    assert Path(load_config(file, [REC], known).rec).name == record_file
    # the same shard, D, network and schedule as the one alone: only the method makes the difference
    alone = load_config(ROOT / "configs" / alone_config)
    same = base.keys() - {"scenario", "old_config", "shard", "output"}
    assert {key: alone[key] for key in same} == {key: cfg[key] for key in same}
    assert load_config(ROOT / "configs" / old_config).embedding_size == dim
    states_only_what_differs(file, base | known)


@pytest.mark.parametrize("name", ALONE)
def test_model_trained_alone(name, base):
    file = ROOT / "configs" / f"{name}.py"
    cfg = load_config(file, [REC])
    assert (cfg.network, cfg.head, cfg.embedding_size, Path(cfg.rec).name) == ALONE[name]
    assert cfg.scenario is None and cfg.old_config is None
    states_only_what_differs(file, base)


def test_the_document_has_the_same_matrix():
    lines = (ROOT / "docs" / "published_configs.md").read_text().splitlines()
    cells = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}
    for row, (scenario, _, dim, old_config, record_file, sd, alone_config) in ROWS.items():
        shard, counts = f"`{record_file[:-4]}`", COUNTS[record_file]
        want = f"| {row} | {scenario} | `{old_config}` | {dim} | {shard} | {counts} | `{sd}`"
        assert cells[row] == f"{want} | `{alone_config}` |"
