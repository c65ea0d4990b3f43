"""Artefacts of the old model: the tools that make them, their manifests, and what is refused."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from support.pictures import write_faces
from support.script import run_script

from backbones import get_model
from bct.config import load_config
from bct.data.images import decode, to_network
from bct.data.sets import RecordSet
from bct.errors import BctError
from bct.method import Method
from bct.old_model import OldModel
from bct.stored.artefacts import artefact_path, open_artefact, write_artefact
from bct.stored.class_statistics import class_means, credible_mask

NEEDS = ("old_embedding", "credible_old_feature")
SD = "old_class70"


def run(tool, *arguments, ranks=1):
    return run_script(f"tools/{tool}", *arguments, ranks=ranks)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A folder with shards, an old model (random weights), configs and all artefacts."""
    folder = tmp_path_factory.mktemp("house")
    write_faces(folder / "train_part_30_class.rec", [3, 3])
    write_faces(folder / "train_part_70_class.rec", [4, 3, 5, 12])
    torch.manual_seed(0)
    (folder / "old").mkdir()
    model = get_model("demo_w16", 16)
    model.train()(torch.randn(8, 3, 112, 112))  # batch statistics that are not the defaults
    torch.save(model.state_dict(), folder / "old" / "model.pt")
    common = (
        "from easydict import EasyDict\nconfig = EasyDict()\nconfig.embedding_size = 16\n"
        f"config.rec = {str(folder)!r}\nconfig.network = 'demo_w16'\nconfig.amp = 'off'\n"
        f"config.feature_save = {str(folder / 'features')!r}\n"
    )
    (folder / "old_class30.py").write_text(common + f"config.output = {str(folder / 'old')!r}\n")
    (folder / "new.py").write_text(
        common + "config.scenario = 'OPclass'\nconfig.old_config = 'old_class30'\n"
        f"config.num_epoch = 1\nconfig.output = {str(folder / 'new')!r}\n"
    )
    done = run("extract_features.py", folder / "old_class30.py", "--SD", SD, "--batch-size", 5)
    assert done.returncode == 0, done.stderr
    for tool in ("denoise.py", "average_features.py"):
        done = run(tool, "--SD", SD, "--feature-save", folder / "features")
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def own(house, tmp_path):
    """A private copy, for tests that do damage."""
    shutil.copytree(house, tmp_path / "house")
    for name in ("old_class30.py", "new.py"):
        path = tmp_path / "house" / name
        path.write_text(path.read_text().replace(str(house), str(tmp_path / "house")))
    for path in (tmp_path / "house" / "features" / "OPclass").glob("*.json"):
        path.write_text(path.read_text().replace(str(house), str(tmp_path / "house")))
    return tmp_path / "house"


def path_of(folder, kind):
    return artefact_path(kind, folder / "features", "OPclass", SD)


def old_model(folder, *overrides, needs=NEEDS):
    cfg = load_config(folder / "new.py", overrides)
    return OldModel(cfg, RecordSet(cfg.rec), needs)


def direct(folder):
    """Embeddings of the new shard, one image at a time."""
    model = get_model("demo_w16", 16).eval()
    model.load_state_dict(torch.load(folder / "old/model.pt", weights_only=True))
    faces = RecordSet(folder / "train_part_70_class.rec")
    images = np.stack([decode(faces.payload(i)[0]) for i in range(len(faces))])
    with torch.inference_mode():
        plain = model(to_network(torch.from_numpy(images)))
        mirrored = model(
            to_network(torch.from_numpy(images), torch.ones(len(images), dtype=torch.bool))
        )
    return plain.numpy(), mirrored.numpy(), faces.labels


def test_names_and_contents(house):
    plain, _, labels = direct(house)
    names = {p.name for p in (house / "features/OPclass").iterdir()}
    assert names == {
        f"{SD}_{kind}.{suffix}"
        for kind in ("feature", "label", "avg_feature", "credible_ratio_90_feature")
        for suffix in ("npy", "json")
    }
    features, manifest = open_artefact(path_of(house, "old_embedding"))
    np.testing.assert_allclose(features, plain, atol=1e-4)
    assert features.dtype == np.float32 and manifest["rows"] == 24 and manifest["dim"] == 16
    stored, _ = open_artefact(path_of(house, "old_embedding_label"))
    assert stored.dtype == np.int64 and stored.tolist() == labels.tolist()
    mask, _ = open_artefact(path_of(house, "credible_old_feature"))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, credible_mask(features, labels, 0.9))
    assert not mask.all()  # the class of 12 loses one
    np.testing.assert_allclose(
        open_artefact(path_of(house, "old_prototype"))[0], class_means(features, labels), atol=1e-6
    )
    assert {"model", "data", "date", "dtype", "weights", "parity"} <= manifest.keys()


def test_a_second_run_reuses_and_new_weights_do_not(own):
    arguments = (own / "old_class30.py", "--SD", SD)
    assert "reusing" in run("extract_features.py", *arguments).stdout
    assert "reusing" in run("denoise.py", "--SD", SD, "--feature-save", own / "features").stdout
    weights = torch.load(own / "old/model.pt", weights_only=True)
    torch.save(
        {k: v * 1.01 if v.is_floating_point() else v for k, v in weights.items()},
        own / "old/model.pt",
    )
    with pytest.raises(BctError, match="stale"):
        old_model(own)
    assert "images/s" in run("extract_features.py", *arguments).stdout
    with pytest.raises(BctError, match=r"stale|different old models"):
        old_model(own)  # the mask is still of the first model
    assert run("denoise.py", "--SD", SD, "--feature-save", own / "features").returncode == 0
    old_model(own)


def test_ranks_write_one_file(own):
    want = np.load(path_of(own, "old_embedding"))
    done = run("extract_features.py", own / "old_class30.py", "--SD", SD, "--force", ranks=2)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(path_of(own, "old_embedding")), want, atol=1e-4)
    assert not list((own / "features/OPclass").glob("*.tmp"))


def test_published_parity_mirrors_some_images(own):
    done = run("extract_features.py", own / "old_class30.py", "parity=published", "--SD", SD)
    assert done.returncode == 0, done.stderr
    plain, mirrored, _ = direct(own)
    features = np.load(path_of(own, "old_embedding"))
    as_is = np.isclose(features, plain, atol=1e-4).all(1)
    flipped = np.isclose(features, mirrored, atol=1e-4).all(1)
    assert (as_is ^ flipped).all() and as_is.any() and flipped.any()


def test_rows_come_from_the_file(house):
    old = old_model(house)
    index = torch.tensor([5, 0, 23])
    np.testing.assert_array_equal(
        old.rows("old_embedding", index), np.load(path_of(house, "old_embedding"))[[5, 0, 23]]
    )
    assert old.whole("credible_old_feature").dtype == torch.bool


def refused(word, folder, *overrides, **kwargs):
    with pytest.raises(BctError) as info:
        old_model(folder, *overrides, **kwargs)
    assert word in str(info.value), str(info.value)
    assert len(str(info.value).splitlines()) == 2


def test_missing_artefact_names_the_command(own):
    path_of(own, "credible_old_feature").unlink()
    refused(f"python tools/denoise.py --T 0.9 --SD {SD}", own)


def test_missing_manifest(own):
    path_of(own, "old_embedding").with_suffix(".json").unlink()
    refused("no manifest", own)


def test_another_data_set(own):
    write_faces(own / "train_part_70_class.rec", [4, 3, 5, 11])
    refused("which is not the data in", own)


def test_another_dimension(own):
    old = old_model(own, "embedding_size=32")
    with pytest.raises(BctError, match="32 dimensions, old ones 16"):
        Method.check_dimensions(old.cfg, old.dim)


def test_another_length(own):
    path = path_of(own, "old_embedding")
    np.save(path, np.load(path)[:-1])
    refused("holds float32 (23, 16)", own)
    manifest = json.loads(path.with_suffix(".json").read_text())
    del manifest["dtype"]
    with write_artefact(path, (23, 16), "float32", **manifest) as out:
        out[:] = np.load(path)
    refused("23 rows, the data set 24 images", own)


def test_damaged_file(own):
    path = path_of(own, "old_embedding")
    path.write_bytes(path.read_bytes()[:100])
    refused("is damaged", own)


def test_an_array_of_the_same_shape_that_the_manifest_was_not_written_for(own):
    path = path_of(own, "old_embedding")
    np.save(path, np.load(path) + 1)
    refused("is not the array its manifest was written for", own)
    arguments = (own / "old_class30.py", "--SD", SD)
    assert "images/s" in run("extract_features.py", *arguments).stdout  # not reused
    old_model(own)


def test_a_manifest_from_before_digests_is_believed(own):
    path = path_of(own, "old_embedding").with_suffix(".json")
    manifest = json.loads(path.read_text())
    del manifest["digest"]
    path.write_text(json.dumps(manifest))
    old_model(own)


@pytest.mark.parametrize("text", ["[]", "{}", '{"rows": 24, "dim": 16, "dtype": "float32"}'])
def test_a_manifest_without_the_entries_of_one(own, text):
    path_of(own, "old_embedding").with_suffix(".json").write_text(text)
    refused("has no entry", own)


def test_no_scenario(own):
    refused("does not set scenario", own, "scenario=none", "shard=class70")


def test_a_name_that_does_not_belong(own):
    done = run("extract_features.py", own / "old_class30.py", "--SD", "other_class70")
    assert done.returncode == 1 and "call it old_class70" in done.stderr
    done = run("denoise.py", "--SD", SD, "--T", "1.5", "--feature-save", own / "features")
    assert done.returncode == 2 and "above 0, up to" in done.stderr
    done = run("denoise.py", "--SD", "old_class99", "--feature-save", own / "features")
    assert done.returncode == 1 and "extract_features.py" in done.stderr


# ---- of a model's folder


@pytest.fixture
def folder(own):
    """The old model's folder with a model.json, and what names its artefacts."""
    view = {"size": 112, "crop": "none", "mirror": True, "pixels": "face"}
    about = {"network": "demo_w16", "embedding_size": 16, "num_classes": 2, "view": view}
    (own / "old" / "model.json").write_text(json.dumps(about))
    return own / "old", ("--model", own / "old", "--rec", own / "train_part_70_class.rec")


def test_a_folder_and_a_set_name_the_same_artefacts(own, folder):
    old, here = folder
    for tool, *more in (("extract_features.py", "amp=off"), ("denoise.py",)):
        done = run(tool, *here, *more)
        assert done.returncode == 0, done.stderr
    for kind, end in (
        ("old_embedding", "feature"),
        ("credible_old_feature", "credible_ratio_90_feature"),
    ):
        path = old / "features" / f"house_train_part_70_class_{end}.npy"
        np.testing.assert_array_equal(np.load(path), np.load(path_of(own, kind)))
    rec = f"rec={own / 'train_part_70_class.rec'}"
    for more in ([], ["shard=class70"]):  # the file itself, and given as its set's shard
        given = [f"old_model={old}", f"rec={own}" if more else rec, *more]
        cfg = load_config(own / "new.py", given)
        found = OldModel(cfg, RecordSet(cfg.rec), NEEDS)
        assert found.dim == 16 and cfg.rec == rec.removeprefix("rec=")
    assert "reusing" in run("extract_features.py", *here, "amp=off").stdout


def test_the_command_line_has_the_last_word_on_the_old_model(own, tmp_path):
    (tmp_path / "x.py").write_text((own / "new.py").read_text() + "config.old_model = 'there'\n")
    cfg = load_config(tmp_path / "x.py")
    assert cfg.old_model.endswith("there") and cfg.shard is None and cfg.rec == str(own)
    cfg = load_config(tmp_path / "x.py", ["old_config=old_class30"])
    assert cfg.old_model is None and cfg.shard == "class70"
    cfg = load_config(own / "new.py", [f"old_model={own / 'old'}"])
    with pytest.raises(BctError, match=r"extract_features.py --model .*old --rec "):
        OldModel(cfg, RecordSet(own / "train_part_70_class.rec"), NEEDS)


def test_places_that_are_named_halfway(own, folder):
    old, here = folder
    for words in ((), here[:2], here[2:], (*here, "--SD", SD)):
        for tool in ("extract_features.py", "denoise.py"):
            done = run(tool, *words)
            assert done.returncode == 2 and len(done.stderr.splitlines()) == 2, done.stderr
    for word in ("image_size=32", "network=r18", "output=x", "feature_save=x"):
        done = run("extract_features.py", *here, word)
        assert done.returncode == 1 and f"{word.split('=')[0]}= has no effect" in done.stderr
    (old / "model.onnx").write_bytes(b"")
    assert "holds model.pt and model.onnx" in run("extract_features.py", *here).stderr


def test_a_config_that_sees_images_in_another_way_than_the_model(own, folder):
    """Its features would be those of another view, and nothing would tell."""
    old, _ = folder
    about = json.loads((old / "model.json").read_text())
    about["view"] |= {"pixels": "imagenet"}
    (old / "model.json").write_text(json.dumps(about))
    before = np.load(path_of(own, "old_embedding"))
    done = run("extract_features.py", own / "old_class30.py", "--SD", SD, "--force")
    assert done.returncode == 1 and "was trained on imagenet images of 112" in done.stderr
    np.testing.assert_array_equal(np.load(path_of(own, "old_embedding")), before)
    done = run("extract_features.py", own / "old_class30.py", "--SD", SD, "pixels=imagenet")
    assert done.returncode == 0, done.stderr
    assert not np.allclose(np.load(path_of(own, "old_embedding")), before, atol=1e-3)


def test_an_extraction_never_replaces_what_was_imported(own, folder):
    old, here = folder
    path = old / "features" / "house_train_part_70_class_feature.npy"
    with write_artefact(path, (24, 16), "float32", kind="old_embedding", imported=True) as out:
        out[:] = 7
    for force in ([], ["--force"]):
        done = run("extract_features.py", *here, "amp=off", *force)
        assert done.returncode == 1 and "was imported and would be replaced" in done.stderr
        assert (np.load(path) == 7).all()


def test_a_failed_write_leaves_nothing(tmp_path):
    path = tmp_path / "a.npy"

    def broken():
        with write_artefact(path, (3, 2), "float32", kind="x") as out:
            out[:] = 1
            raise KeyError("stop")

    with pytest.raises(KeyError):
        broken()
    assert list(tmp_path.iterdir()) == []


def test_room_on_the_disk_is_taken_before_it_is_needed(tmp_path):
    """A mapped file that finds the disk full ends its process, with no word."""
    with write_artefact(tmp_path / "x.npy", (1 << 18, 4), "float32", kind="x") as out:
        assert os.stat(out.filename).st_blocks * 512 >= out.nbytes
