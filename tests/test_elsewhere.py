"""An artefact that is not where it is looked for: what is near is named, with the option for it."""

import re

import numpy as np
import pytest
from support.script import run_script

from bct.config import load_config
from bct.data.sets import SyntheticSet
from bct.errors import BctError
from bct.method import load_method
from bct.old_model import OldModel
from bct.stored.artefacts import artefact_path, place_of_model, write_artefact
from bct.stored.elsewhere import elsewhere

SD = "f8_r18_softmax_class70"


def features(save, sd=SD, scenario="OPclass"):
    """Features and labels of 12 images of 3 classes."""
    made = {"model": "m", "data": "synthetic", "data_path": "-", "weights": None}
    made |= {"parity": "corrected", "amp": None}
    rng = np.random.default_rng(0)
    for kind, array in (
        ("old_embedding", rng.standard_normal((12, 8)).astype("f4")),
        ("old_embedding_label", np.arange(12) % 3),
    ):
        path = artefact_path(kind, save, scenario, sd)
        with write_artefact(path, array.shape, array.dtype, kind=kind, **made) as out:
            out[:] = array
    return save


def denoise(save, *words, sd=SD):
    return run_script("tools/denoise.py", "--SD", sd, "--feature-save", save, *words)


def test_the_answer_names_the_folder_and_following_it_works(tmp_path):
    """After an extraction into another feature_save."""
    features(tmp_path / "mine")
    answer = denoise(tmp_path / "feature_save")
    assert answer.returncode == 1 and len(answer.stderr.splitlines()) == 2
    option = f"--feature-save {tmp_path / 'mine'}"
    assert f"it is in {tmp_path / 'mine' / 'OPclass'}: add {option}" in answer.stderr
    assert denoise(*option.split()[1:]).returncode == 0
    cfg = config(tmp_path)
    with pytest.raises(BctError, match=f"feature_save={tmp_path / 'mine'}") as info:
        OldModel(cfg, SyntheticSet(12, 3), ("old_embedding", "credible_old_feature"))
    cfg.feature_save = re.search(r" feature_save=(\S+);", info.value.do)[1]
    OldModel(cfg, SyntheticSet(12, 3), ("old_embedding", "credible_old_feature"))


def config(tmp_path):
    (tmp_path / "job.py").write_text("config = {}\n")
    words = ["scenario=OPclass", "old_config=f8_r18_softmax_class30", "rec=synthetic"]
    words.append(f"feature_save={tmp_path / 'feature_save'}")
    return load_config(tmp_path / "job.py", words, load_method("MixBCT").defaults)


@pytest.mark.parametrize(
    ("sd", "scenario", "asked", "word"),
    [
        (SD, "EXclass", SD, r"it is in \S+/EXclass: move it and its .json to \S+/OPclass"),
        ("f8_r18_softmax_class100", "EXclass", SD, "there is f8_r18_softmax_class100: .*scenario"),
        (SD, "OPclass", "f9_class70", f"there is {SD}: name one with --SD"),
    ],
)
def test_what_is_near_is_named(tmp_path, sd, scenario, asked, word):
    features(tmp_path / "feature_save", sd, scenario)
    answer = denoise(tmp_path / "feature_save", sd=asked)
    assert answer.returncode == 1 and len(answer.stderr.splitlines()) == 2
    assert re.search(word, answer.stderr.splitlines()[1])
    assert "or make it with: python tools/extract_features.py" in answer.stderr


def test_a_mask_of_another_share(tmp_path):
    save = features(tmp_path / "feature_save")
    assert denoise(save, "--T", "0.8").returncode == 0
    with pytest.raises(BctError, match=r"mask of T = 0.8: set T=0.8"):
        OldModel(config(tmp_path), SyntheticSet(12, 3), ("credible_old_feature",))


def test_a_models_folder_has_another_set(tmp_path):
    features(tmp_path, "faces_train", "features")
    path = place_of_model(tmp_path, tmp_path / "others" / "train.rec").path("old_embedding")
    assert "of the set faces_train: name that set" in elsewhere(path)


def test_nothing_is_near(tmp_path):
    path = artefact_path("old_embedding", tmp_path / "a" / "b", "OPclass", SD)
    assert elsewhere(path) is None and elsewhere(tmp_path / "x.npy") is None
    answer = run_script("tools/denoise.py", "--SD", SD, cwd=tmp_path)
    assert answer.returncode == 1 and len(answer.stderr.splitlines()) == 2
    assert "if it is made, name its folder: --feature-save" in answer.stderr
