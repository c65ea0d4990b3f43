"""tools/train_chain.py makes what each method needs before it, and refuses what can't work."""

import shlex
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from easydict import EasyDict
from support.pictures import write_faces
from support.script import run_script

from bct.config import load_config
from bct.errors import BctError
from bct.method import Method, load_method, method_names
from bct.old_model import OldModel
from bct.stored.artefacts import artefact_path
from tools.train_chain import check, commands

COMMON = {"network": "demo_w16", "embedding_size": 16, "num_epoch": 4, "T": 0.7}
# settings with which a method needs something else than by default
CASES = [(name, {}) for name in method_names() if name != "FCT"]
CASES += [("BT2", {"parity": "published"}), ("NCCL", {"credible": True})]
CASES += [("OpenBCT", {"terms": {"cls": 1.0, "l2": 1.0}})]
OF_METHOD = {"BT2": {"extra_dim": 8, "alone": True}, "UniBCT": {"refresh_epochs": [0]}}


def chain(*versions, **common):
    shared = {key: value for key, value in COMMON.items() if key != "T"} | common
    return EasyDict(data="x/train.rec", test="x/test", common=shared, versions=list(versions))


def second(name, settings):
    method = load_method(name)
    known = {"T": 0.7} if "T" in method.defaults else {}
    return {"method": name, **OF_METHOD.get(name, {}), **known, **settings}


def steps_of(given, output):
    return [command[1:] for command in commands(given, output, [], [sys.executable])]


def made_by(tool, words, saved):
    """The files that a tool's command leaves, from its command line alone."""
    options = dict(pairwise(words))
    sd, T = options["--SD"], float(options.get("--T", 0.9))
    entropy = options.get("--by") == "entropy"
    kinds = {
        "extract_features": ["old_embedding", "old_embedding_label"],
        "average_features": ["old_prototype"],
        "denoise": ["credible_by_entropy" if entropy else "credible_old_feature"],
        "class_statistics": ["class_statistics"],
    }[tool]
    assert any(str(saved) in word for word in words)
    return [artefact_path(kind, saved, f"EX{sd.rsplit('_', 1)[1][:-3]}", sd, T) for kind in kinds]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_a_chain_makes_exactly_what_a_method_needs(tmp_path, name, settings):
    given = chain({"shard": "class50"}, second(name, settings))
    *steps, training, evaluation = steps_of(given, tmp_path)
    assert Path(training[0]) == Path(f"methods/{name}/train.py") and evaluation[1] == "--matrix"
    method = load_method(name)
    cfg = load_config(training[1], [], method.defaults)
    made, trained, sources = [], set(), []
    for script, *words in steps:
        if script == "train_old.py":
            trained.add(words[0])
            continue
        tool = Path(script).stem
        if tool == "extract_features":
            assert words[0] in trained  # the model is there
        else:
            assert made  # and so are its embeddings
        files = made_by(tool, words, tmp_path / "feature_save")
        made += files
        sources.append((tool, files))
    needed = {OldModel.locate(cfg, kind)[0] for kind in method.needs(cfg)}
    assert needed <= set(made) and len(made) == len(set(made))
    for tool, files in sources:
        assert tool == "extract_features" or needed & set(files)  # nothing in vain


REFUSED = [
    ("FCT", {}, "version 2: FCT maps the stored gallery"),
    ("BT2", {"alone": False}, "version 2: BT2 learns from the same network trained alone"),
    ("BT2", {"extra_dim": 16}, "16 extra coordinates"),
    ("L2", {"embedding_size": 8}, "new embeddings have 8 dimensions, old ones 16"),
    ("OpenBCT", {"terms": {"l3": 1.0}}, "terms can't be"),
    ("OpenBTC", {}, "there is no method OpenBTC"),
]


@pytest.mark.parametrize(("name", "settings", "word"), REFUSED)
def test_what_can_not_work_is_refused_before_the_first_step(tmp_path, name, settings, word):
    version = {"method": name, **OF_METHOD.get(name, {}), **settings}
    with pytest.raises(BctError, match=word) as error:
        steps_of(chain({}, version), tmp_path)
    assert len(str(error.value).splitlines()) == 2


def test_an_artefact_without_a_tool_is_refused(tmp_path, monkeypatch):
    L2 = load_method("L2")
    monkeypatch.setattr(L2, "needs", classmethod(lambda cls, cfg: ("old_attention",)))
    with pytest.raises(BctError, match="no tool makes artefacts of the kind 'old_attention'"):
        steps_of(chain({}, {"method": "L2"}), tmp_path)


def test_widths_that_grow_and_shrink_have_no_common_rule(tmp_path):
    padded = {"method": "OpenBCT", "dimensions": "zero_pad", "embedding_size": 8}
    steps = steps_of(chain({}, padded), tmp_path)
    assert steps[-1][steps[-1].index("--dimensions") + 1] == "zero_pad"
    wide = {"method": "OpenBCT", "dimensions": "leading", "embedding_size": 32}
    with pytest.raises(BctError, match="the versions are 16, 8, 32 wide"):
        steps_of(chain({}, padded, wide), tmp_path)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"versions": [{}]}, "at least two versions"),
        ({"versions": [{}, {}]}, "version 2 names no method"),
        ({"versions": [{"method": "L2"}, {"method": "L2"}]}, "version 1 has no predecessor"),
        ({"train": "x"}, "unknown key train"),
    ],
)
def test_no_chain(changes, word):
    with pytest.raises(BctError, match=word):
        check(EasyDict({**chain({}, {"method": "L2"}), **changes}), Path("x.py"))


@pytest.mark.slow
def test_advbct_and_bt2_as_published_in_one_chain(tmp_path):
    """Both failed when only embeddings, means and the credible ones were made."""
    write_faces(tmp_path / "train.rec", [4, 6, 4, 4, 5, 4, 7, 4])
    (tmp_path / "test").mkdir()
    write_faces(tmp_path / "test" / "train.rec", [4] * 4)
    small = {"num_epoch": 1, "num_workers": 0, "batch_size": 8, "amp": "off", "head": "softmax"}
    versions = [{}, {"method": "AdvBCT"}, second("BT2", {"parity": "published"})]
    given = chain(*versions, **small)
    given.data, given.test = (str(tmp_path / name) for name in ("train.rec", "test/train.rec"))
    config = tmp_path / "three_chain.py"
    lines = [f"config.{key} = {plain(value)!r}" for key, value in given.items()]
    head = "from easydict import EasyDict\nconfig = EasyDict()\n"
    config.write_text(head + "\n".join(lines) + "\n")
    done = run_script("tools/train_chain.py", config, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for name in ("v1_class100", "v2_class100", "v3_class100", "alone3_class100"):
        assert torch.load(tmp_path / "out" / name / "model.pt", weights_only=True)
    assert list((tmp_path / "out" / "retrieval").glob("*.json"))
    dry = run_script("tools/train_chain.py", config, "--output", tmp_path / "out", "--dry")
    shown = [shlex.split(line[2:]) for line in dry.stdout.splitlines() if line.startswith("$ ")]
    assert [command[1:] for command in shown] == steps_of(given, tmp_path / "out")


def plain(value):
    """EasyDicts as dicts, so that their repr is Python."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def test_every_method_is_in_some_case():
    assert {name for name, _ in CASES} | {"FCT"} == set(method_names())
    assert Method.maps_gallery is False and load_method("FCT").maps_gallery
