"""Embeddings, masks, means and centres of other systems: which row is whose, what is written, what
is refused, and that methods train on them."""

import json
import os
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from support.old_models import CPU, TRAINING, tool
from support.pictures import jpeg, write_faces
from support.script import run_script

from bct.config import load_config
from bct.data.same_images import same_keys
from bct.data.sets import open_images
from bct.errors import BctError
from bct.files import sha256_file, write_json
from bct.method import Method, load_method
from bct.old_model import OldModel
from bct.rows import unit_rows
from bct.stored.artefacts import open_artefact
from bct.stored.class_statistics import class_means, class_statistics, credible_mask
from bct.stored.foreign_files import read_centres, read_files
from bct.stored.names import write_names
from bct.train import train
from tools.import_features import main

COUNTS, D = [4, 6, 4, 5, 4], 16
N = sum(COUNTS)
LABELS = np.repeat(np.arange(5), COUNTS)
RNG = np.random.default_rng(0)
ROWS = (RNG.standard_normal((5, D))[LABELS] + 0.4 * RNG.standard_normal((N, D))).astype("f4")


@pytest.fixture
def house(tmp_path):
    """A set of 5 classes, and another system's features of it."""
    write_faces(tmp_path / "train.rec", COUNTS)
    save(tmp_path, "x_feature", ROWS)
    save(tmp_path, "x_label", LABELS)
    return tmp_path


def save(folder, name, array):
    np.save(folder / f"{name}.npy", array)
    return folder / f"{name}.npy"


def bring(house, *words, names=("x_feature.npy", "x_label.npy"), out="old"):
    files = [house / name for name in names]
    given = ["--rec", house / "train.rec", "-o", house / out, *words]
    before, sys.argv = sys.argv, ["import_features", *map(str, files), *map(str, given)]
    try:
        main()
    finally:
        sys.argv = before


def place(house, end="feature", out="old"):
    return house / out / "features" / f"{house.name}_train_{end}.npy"


def refused(house, word, *words, **more):
    with pytest.raises(BctError, match=word) as info:
        bring(house, *words, **more)
    assert len(str(info.value).splitlines()) == 2
    assert not (house / "old" / "features").exists()


# ---- which row is whose


def test_all_rows_in_order(house, capsys):
    """The manifest says where they come from, and OldModel takes them without any model."""
    bring(house)
    rows, said = open_artefact(place(house))
    np.testing.assert_array_equal(rows, ROWS)
    assert rows.dtype == np.float32 and "absent" not in said and said["weights"] is None
    assert said["imported"] is True and said["kind"] == "old_embedding"
    assert said["data"] == open_images(house / "train.rec").fingerprint
    files = {source["path"]: source["sha256"] for source in said["sources"]}
    assert files == {str(p): sha256_file(p) for p in house.glob("x_*.npy")}
    labels, of_labels = open_artefact(place(house, "label"))
    assert labels.tolist() == LABELS.tolist() and of_labels["model"] == said["model"]
    assert str(place(house)) in capsys.readouterr().out
    (house / "x_label.npy").unlink()  # what was brought does not need its source
    old = OldModel(config(house, "MixBCT"), open_images(house / "train.rec"), ("old_embedding",))
    assert old.dim == D and old.absent == 0


@pytest.mark.parametrize("kind", ["f2", "f8", "npz", "pt", "dict", "float labels"])
def test_forms_of_one_thing(house, kind):
    """Half and double precision, .npz, torch.save; AdvBCT's labels are floats."""
    names = ["y_feature.npy", "x_label.npy"]
    if kind in ("f2", "f8"):
        save(house, "y_feature", ROWS.astype(kind))
    elif kind == "npz":
        np.savez(house / "y.npz", embeddings=ROWS, labels=LABELS)
        names = ["y.npz"]
    elif kind == "float labels":
        names = [save(house, "y_feature", ROWS).name, save(house, "z", LABELS.astype("f4")).name]
    else:
        rows, labels = torch.from_numpy(ROWS), torch.from_numpy(LABELS)
        torch.save(rows if kind == "pt" else {"feats": rows, "targets": labels}, house / "y.pt")
        names = ["y.pt", "x_label.npy"][: 2 if kind == "pt" else 1]
    bring(house, names=names)
    want = ROWS.astype("f2").astype("f4") if kind == "f2" else ROWS
    np.testing.assert_array_equal(open_artefact(place(house))[0], want)


def partial_of(house, chosen, shuffled):
    """Files of some rows in another order, and old labels that are numbered in another way."""
    rows = RNG.permutation(chosen) if shuffled else chosen
    renumbered = np.array([7, 3, 9, 0, 2])
    save(house, "x_feature", ROWS[rows])
    save(house, "x_label", renumbered[LABELS[rows]])
    return rows, renumbered


def test_some_rows_by_their_numbers(house, capsys):
    """The others are absent: zeros, in no mask and no mean; labels are matched one to one."""
    chosen = np.flatnonzero((np.arange(N) % 3 > 0) & (LABELS != 3))
    rows, renumbered = partial_of(house, chosen, shuffled=True)
    save(house, "rows", rows)
    means = np.zeros((10, D), "f4")
    means[renumbered] = RNG.standard_normal((5, D))
    means[[1, 4, 5, 6, 8]] = 1.0  # classes that the new set has not
    save(house, "x_avg_feature", means)
    save(house, "x_credible_ratio_90_feature", rows % 2 == 0)
    names = ["x_feature.npy", "x_label.npy", "x_avg_feature.npy"]
    names.append("x_credible_ratio_90_feature.npy")
    bring(house, "--rows", house / "rows.npy", names=names)
    found, said = open_artefact(place(house))
    want = np.where(np.isin(np.arange(N), chosen)[:, None], ROWS, 0)
    np.testing.assert_array_equal(found, want)
    assert said["absent"] == N - len(chosen)
    assert open_artefact(place(house, "label"))[0].tolist() == LABELS.tolist()
    mask, of_mask = open_artefact(place(house, "credible_ratio_90_feature"))
    assert np.flatnonzero(mask).tolist() == [i for i in chosen if i % 2 == 0]
    assert of_mask["absent"] == said["absent"] and of_mask["T"] == 0.9
    prototypes, of_means = open_artefact(place(house, "avg_feature"))
    known = [0, 1, 2, 4]  # nothing is known of class 3: no row says what the old one calls it
    np.testing.assert_allclose(prototypes[known], unit_rows(means[renumbered[known]]), atol=1e-6)
    assert not prototypes[3].any() and of_means["absent"] == 5
    out = capsys.readouterr().out
    assert "numbers the classes otherwise" in out
    assert f"{N - len(chosen)} of {N} images have no embedding" in out


def test_some_rows_by_the_set_they_are_of(house, capsys):
    """Images are found by their bytes, whatever their order and key, also those of another class
    number; one that is in the new set twice has its row twice; one that is not is left out."""
    numbers = [2, 4, 0]  # identities of the old set, classes 0, 1, 2 there
    old = house / "elsewhere"
    for label, identity in enumerate(numbers):
        (old / f"{label}").mkdir(parents=True)
        for variant in range(3):
            (old / f"{label}" / f"{variant}.jpg").write_bytes(jpeg(identity, variant))
    (old / "0" / "9.jpg").write_bytes(jpeg(77, 0))
    images = open_images(old)
    rows = RNG.standard_normal((len(images), D)).astype("f4")
    save(house, "y", rows)
    bring(house, "--of", old, names=["y.npy"])
    found, said = open_artefact(place(house))
    first = np.cumsum([0, *COUNTS])
    want = np.zeros_like(found)
    for k in range(len(images)):
        identity, variant = numbers[images.labels[k]], int(images.describe(k)[-5])
        if variant != 9:
            want[first[identity] + variant] = rows[k]
    np.testing.assert_array_equal(found, want)
    assert said["absent"] == N - 9
    assert "9 of 23 images have a row, 1 rows are of none" in capsys.readouterr().out
    # rows of other classes than the set's are noticed
    (old / "1" / "0.jpg").write_bytes(jpeg(2, 3))
    with pytest.raises(BctError, match="are of the classes"):
        bring(house, "--of", old, names=["y.npy"], out="other")


def test_of_and_rec_in_each_others_place(house):
    write_faces(house / "other.rec", COUNTS[:3])
    word = "has 14 images\n--of is the set that the rows are of, --rec"
    refused(house, word, "--of", house / "other.rec")


def test_two_models_in_the_folder_are_one_too_many(house):
    (house / "old").mkdir()
    for name in ("model.pt", "model.onnx"):
        (house / "old" / name).write_bytes(b"")
    refused(house, "holds model.pt and model.onnx")


def test_some_rows_by_their_names(house):
    folder = house / "faces"
    for label, count in enumerate(COUNTS):
        (folder / f"p{label}").mkdir(parents=True)
        for variant in range(count):
            (folder / f"p{label}" / f"{variant}.jpg").write_bytes(jpeg(label, variant))
    images = open_images(folder)
    names = images.names.tolist()
    (house / "names.txt").write_bytes(b"\n".join([names[5], b"p9/0.jpg", names[2]]) + b"\n")
    save(house, "y", ROWS[:3])
    args = [house / "y.npy", "--rec", folder, "-o", house / "old"]
    answer = run_script("tools/import_features.py", *args, "--names", house / "names.txt")
    assert answer.returncode == 0, answer.stderr
    (file,) = (house / "old" / "features").glob("*_feature.npy")
    found = np.load(file)
    np.testing.assert_array_equal(found[[5, 2]], ROWS[[0, 2]])
    assert np.count_nonzero(found.any(axis=1)) == 2
    odd = [b"p1/a\\b.jpg", b"p1/c\nd.jpg"]  # as tools/embed.py writes them
    for name in odd:
        (folder / os.fsdecode(name)).write_bytes(jpeg(1, 9))
    write_names(house / "names.txt", [odd[0], names[5], odd[1]])
    bring(house, "--rec", folder, "--names", house / "names.txt", names=["y.npy"], out="odd")
    (file,) = (house / "odd" / "features").glob("*_feature.npy")
    where = open_images(folder).names.tolist()
    found = np.load(file)[[where.index(name) for name in (odd[0], names[5], odd[1])]]
    np.testing.assert_array_equal(found, ROWS[:3])
    (house / "names.txt").write_text("a\nb\nc\n")
    answer = run_script("tools/import_features.py", *args, "--names", house / "names.txt")
    assert answer.returncode == 1 and len(answer.stderr.splitlines()) == 2
    assert "'a', the set with 'p0/0.jpg'" in answer.stderr


def test_copies_share_a_row():
    """The first of several equal ones is the first's, further ones the last's."""
    match = same_keys(np.array([5, 1, 7, 1, 3]), np.array([1, 2, 1, 7, 1, 7]))
    assert match.index.tolist() == [0, 2, 3, 4, 5] and match.row.tolist() == [1, 3, 2, 3, 2]
    assert match.alone.tolist() == [False] * 5 and match.left == 2


def test_rows_of_zeros_are_absent(house, capsys):
    rows = ROWS.copy()
    rows[[3, 8]] = 0
    save(house, "x_feature", rows)
    bring(house)
    assert open_artefact(place(house))[1]["absent"] == 2
    assert "2 rows of" in capsys.readouterr().out


# ---- the model, where it is there


@pytest.fixture
def model(house):
    """A trained network, and its embeddings of the set."""
    text = "from easydict import EasyDict\nconfig = EasyDict()\nconfig.network = 'demo_w16'\n"
    text += f"config.embedding_size = {D}\nconfig.rec = {str(house / 'train.rec')!r}\n"
    (house / "a_class100.py").write_text(f"{text}config.output = {str(house / 'run')!r}\n")
    train(load_config(house / "a_class100.py", [*TRAINING, "num_epoch=1"]), Method, CPU)
    tool("extract_features", "--model", house / "run", "--rec", house / "train.rec",
         "num_workers=0", "amp=off")  # fmt: skip
    rows = np.array(open_artefact(place(house, out="run"))[0])
    return house / "run" / "model.pt", rows


def test_a_model_confirms_or_refuses(house, model, capsys):
    weights, rows = model
    save(house, "x_feature", rows)
    bring(house, "-m", weights)
    said = open_artefact(place(house))[1]
    assert (said["model"], said["weights"]) == (sha256_file(weights), str(weights))
    assert said["parity"] == "corrected"
    assert "cosine to their own rows 1.0000 to 1.0000" in capsys.readouterr().out
    images = open_images(house / "train.rec")
    OldModel(config(house, "L2"), images, ("old_embedding",))  # which is not in its folder
    # a new model's folder is asked for the new model's embeddings
    save(house, "other", rows[:, ::-1])
    bring(house, names=["other.npy", "x_label.npy"], out="alone")
    models = [f"old_model={house / 'alone'}", f"new_model={house / 'run'}"]
    needs = ("old_embedding", "new_embedding")
    found = OldModel(config(house, "FCT", *models), images, needs)
    assert found.about("new_embedding")["network"] == "demo_w16"
    models = [f"old_model={house / 'run'}", f"new_model={house / 'alone'}"]
    OldModel(config(house, "FCT", *models), images, needs)
    swapped = rows[[N - 1, *range(1, N - 1), 0]]  # most rows are right
    for wrong in (np.roll(rows, 5, axis=0), RNG.standard_normal((N, D)), swapped):
        save(house, "x_feature", wrong)
        with pytest.raises(BctError, match=r"not the embeddings of this model.*cosine"):
            bring(house, "-m", weights, out="other")
    save(house, "x_feature", rows[:, :8])
    with pytest.raises(BctError, match=r"8 dimensions, .* makes 16"):
        bring(house, "-m", weights, out="other")
    # a folder's own model is asked without being named, and extracted features are not replaced
    save(house, "x_feature", np.roll(rows, 5, axis=0))
    with pytest.raises(BctError, match="not the embeddings of this model"):
        bring(house, out="run")
    save(house, "x_feature", rows)
    with pytest.raises(BctError, match="was not imported and would be replaced"):
        bring(house, "--overwrite", out="run")


def test_mirrored_images_are_known_as_such(house, model):
    """MixBCT's tool embeds a random half of the images mirrored."""
    weights, _ = model
    tool("extract_features", "--model", house / "run", "--rec", house / "train.rec",
         "num_workers=0", "amp=off", "parity=published")  # fmt: skip
    save(house, "x_feature", open_artefact(place(house, out="run"))[0])
    bring(house, "-m", weights)
    assert open_artefact(place(house))[1]["parity"] == "published"


# ---- AdvBCT's centres


def centres_file(house, statistics, labels):
    file = house / "x_meta_radius_centernorm_for_AdvBCT.npy"  # JSON, whatever it is called
    text = {}
    for label, row in zip(labels, statistics, strict=True):
        radii = np.linspace(row["smallest_radius"], row["radius"], int(row["kept"]))
        text[str(label)] = {"center": row["centre"].tolist(), "radius": radii.tolist()}
    file.write_text(json.dumps(text))
    return file


@pytest.mark.parametrize("piece", [3, 1 << 20])
def test_centres_are_read_class_by_class(house, piece, monkeypatch):
    monkeypatch.setattr("bct.stored.foreign_files._PIECE", piece)
    want = class_statistics(ROWS, LABELS)
    labels, found = read_centres(centres_file(house, want, [3, 0, 12, 1, 7]))
    assert labels.tolist() == [3, 0, 12, 1, 7] and np.isnan(found["angle"]).all()
    assert np.isnan(found["cosine"]).all() and not found["kept_angles"].any()
    for name in ("centre", "radius", "smallest_radius", "kept"):
        np.testing.assert_allclose(found[name], want[name], rtol=1e-6)


def test_centres_alone_give_statistics_and_prototypes(house):
    statistics = class_statistics(ROWS, LABELS)
    name = centres_file(house, statistics[::-1], range(4, -1, -1)).name
    bring(house, names=[name])
    found, said = open_artefact(place(house, "class_statistics"))
    np.testing.assert_allclose(found["centre"], statistics["centre"], rtol=1e-6)
    assert found["kept"].tolist() == statistics["kept"].tolist() and said["dim"] == D
    prototypes, _ = open_artefact(place(house, "avg_feature"))
    np.testing.assert_allclose(prototypes, unit_rows(statistics["centre"]), atol=1e-6)
    assert not place(house).exists()


def test_centres_by_a_map(house):
    """An old model of other classes: those of the new set that it has not get no prototype."""
    name = centres_file(house, class_statistics(ROWS, LABELS)[:3], [8, 5, 1]).name
    write_json(house / "map.json", [5, -1, 1, -1, 8])
    refused(house, "nothing says which is which", names=[name])
    bring(house, "--n2o-map", house / "map.json", names=[name])
    found, said = open_artefact(place(house, "class_statistics"))
    want = class_statistics(ROWS, LABELS)["kept"]
    assert found["kept"].tolist() == [want[1], 0, want[2], 0, want[0]]
    assert said["absent"] == COUNTS[1] + COUNTS[3]


def references(house, shared, keys=("radius", "theta")):
    """AdvBCT's two files as its own tool writes them, and what they hold."""
    path = shared / "golden/landmarks_reid/losses/reference_artefacts.json"
    both = json.loads(path.read_text())
    names = {"radius": "g_70_meta_radius_centernorm.json"}
    names["theta"] = "g_70_meta_theta_centernorm_after1.5iqr.json"
    for key in keys:
        (house / names[key]).write_text(json.dumps(both[key]))
    return [names[key] for key in keys], both


@pytest.fixture
def ten(tmp_path):
    """A set of the ten classes that the golden files number, of which they have eight."""
    write_faces(tmp_path / "train.rec", [2] * 10)
    write_json(tmp_path / "map.json", list(range(10)))
    return tmp_path


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("keys", [("radius", "theta"), ("radius",), ("theta",)])
def test_both_files_of_advbct(ten, shared, keys, turned):
    names, both = references(ten, shared, keys)
    if turned:  # another order of files and classes changes nothing
        text = json.loads((ten / names[-1]).read_text())
        (ten / names[-1]).write_text(json.dumps(dict(reversed(text.items()))))
        names = names[::-1]
    bring(ten, "--n2o-map", ten / "map.json", names=names)
    table, said = open_artefact(place(ten, "class_statistics"))
    with np.load(shared / "golden/landmarks_reid/losses/inputs_and_grads.npz") as file:
        golden = {name: np.nan_to_num(file[name]) for name in file.files if "art_" in name}
    assert said["absent"] == 4 and said["rows"] == 10 and said["dim"] == 24
    np.testing.assert_allclose(table["centre"], golden["art_center"], rtol=1e-6)
    columns = {"radius": ("radius", "art_rmax"), "smallest_radius": ("radius", "art_rmin"),
               "kept": ("radius", "art_kept_radius"), "angle": ("theta", "art_theta_max"),
               "kept_angles": ("theta", "art_kept_theta")}  # fmt: skip
    absent = [4, 9]
    for column, (key, name) in columns.items():
        if key in keys:
            np.testing.assert_allclose(table[column], golden[name], rtol=1e-6)
        else:
            unknown = np.delete(table[column], absent)
            assert (np.isnan(unknown) | (unknown == 0)).all()
    assert [label for label in range(10) if str(label) not in both[keys[0]]] == absent
    assert not table[absent].tobytes().strip(b"\0")


@pytest.mark.parametrize(
    ("name", "keys", "word"),
    [
        ("AdvBCT", ("theta",), "radii"),
        ("LCE", ("radius",), "angles of none"),
        ("LCE reading=lce", ("radius", "theta"), "smallest cosines of none"),
        ("LCE", ("theta",), None),
        ("AdvBCT", ("radius",), None),
        ("AdvBCT boundary=fixed parity=published", ("radius",), None),
        ("UniBCT reading=advbct parity=published", ("theta",), None),
        ("LCE parity=published", ("radius", "theta"), None),
    ],
)
def test_methods_train_with_advbcts_files(ten, shared, name, keys, word):
    names, _ = references(ten, shared, keys)
    bring(ten, "--n2o-map", ten / "map.json", names=names)
    name, *more = name.split()
    if name == "AdvBCT":
        more.append("adversarial=False")
    cfg = config(ten, name, "num_epoch=1", "embedding_size=24", *more)
    if word:
        with pytest.raises(BctError, match=word) as info:
            train(cfg, load_method(name), CPU)
        assert len(str(info.value).splitlines()) == 2
    else:
        assert train(cfg, load_method(name), CPU) == 0


def test_two_files_of_other_centres(ten, shared):
    names, both = references(ten, shared)
    both["theta"]["3"]["center"][0] += 0.1
    (ten / names[1]).write_text(json.dumps(both["theta"]))
    refused(ten, "other classes or other centres", "--n2o-map", ten / "map.json", names=names)
    del both["theta"]["3"]
    (ten / names[1]).write_text(json.dumps(both["theta"]))
    refused(ten, "other classes or other centres", "--n2o-map", ten / "map.json", names=names)


def test_whose_classes_they_are_the_old_set_says(house, monkeypatch):
    """By the bytes of its images, or by the names of classes, with or without embeddings."""
    (house / "half").mkdir()
    tool("split_dataset", house / "train.rec", "--ratio", 40, "--out", house / "half")
    old = next((house / "half").glob("*_40_class.rec"))
    name = centres_file(house, class_statistics(ROWS, LABELS)[:2], [1, 0]).name
    bring(house, "--of", old, names=[name])
    found, said = open_artefact(place(house, "class_statistics"))
    want = class_statistics(ROWS, LABELS)
    known = np.flatnonzero(found["count"])
    assert len(known) == 2 and said["absent"] == N - sum(COUNTS[c] for c in known)
    np.testing.assert_allclose(found["centre"][known], want["centre"][[1, 0]], rtol=1e-6)
    name = centres_file(house, want[:2], [1, 5]).name
    with pytest.raises(BctError, match=r"has a class 5, .* the classes 0 to 1"):
        bring(house, "--of", old, names=[name], out="other")
    for folder, classes in (("a", "wolf dog cat"), ("b", "cat fox wolf")):
        for number, kind in enumerate(classes.split()):
            write_picture(house / folder / kind / "1.jpg", number)
    name = centres_file(house, want[:3], [0, 1, 2]).name
    before, sys.argv = sys.argv, ["import_features", str(house / name), "--of", str(house / "a")]
    sys.argv += ["--rec", str(house / "b"), "-o", str(house / "named")]
    try:
        main()
    finally:
        sys.argv = before
    (path,) = (house / "named/features").glob("*_class_statistics.npy")
    found = open_artefact(path)[0]  # sorted: cat dog wolf, and cat fox wolf
    assert (found["count"] > 0).tolist() == [True, False, True]
    np.testing.assert_allclose(found["centre"][[0, 2]], want["centre"][[0, 2]], rtol=1e-6)


def write_picture(file, number):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(jpeg(number, 0, 64))


@pytest.mark.parametrize("kind", ["feat", "label"])
def test_advbcts_pair_of_arrays(house, kind):
    """Labels are floats there; what LCE needs is made of the rows, of an absent class nothing."""
    chosen = LABELS < 3
    save(house, "g_15_feat", ROWS[chosen])
    save(house, "g_15_label", LABELS[chosen].astype(np.float32))
    save(house, "rows", np.flatnonzero(chosen))
    names = ["g_15_feat.npy", "g_15_label.npy"][:: 1 if kind == "feat" else -1]
    bring(house, "--rows", house / "rows.npy", names=names)
    tool("class_statistics", "--model", house / "old", "--rec", house / "train.rec")
    table = open_artefact(place(house, "class_statistics"))[0]
    want = class_statistics(ROWS[chosen], LABELS[chosen])
    for column in want.dtype.names:
        np.testing.assert_allclose(table[column][:3], want[column], rtol=1e-5, atol=1e-6)
    assert not table["count"][3:].any()
    assert train(config(house, "LCE", "num_epoch=1"), load_method("LCE"), CPU) == 0


def test_a_large_file_is_read_in_pieces(tmp_path, monkeypatch):
    """Not more than a few classes of its text are in memory at once."""
    file, numbers = tmp_path / "meta_radius.json", [k / 7000 for k in range(256)]
    one = json.dumps({"center": numbers, "radius": numbers[1:40]})
    file.write_text("{" + ", ".join(f'"{c}": {one}' for c in range(2000)) + "}")
    monkeypatch.setattr("bct.stored.foreign_files._PIECE", 1 << 12)
    tracemalloc.start()
    labels, found = read_centres(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(labels) == len(found) == 2000 and (found["kept"] == 39).all()
    assert peak < found.nbytes * 3 + (1 << 20) < file.stat().st_size


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "it ends early"),
        ("{}", "is no class"),
        ('{"0": {"center": [0.6, 0.8], "radius": [1]}', "it ends early"),
        ('{"0": {"center": [0.6, 0.8], "radius": [1]}} 1', "something follows"),
        ('{"0": {"center": [0.6], "radius": [1]}, "0": {"center": [0.8], "radius": [1]}}', "twice"),
        ('{"0": {"center": [1, NaN], "radius": [1]}}', "'center'"),
        ('{"0": {"center": [0.6, 0.8], "radius": []}}', "not sorted"),
        ('{"0": {"center": [0.6, 0.8], "radius": [2, 1]}}', "not sorted"),
        ('{"0": {"center": [1, 2]}}', "'radius'"),
        ('{"0": {"center": [[1, 2]], "radius": [1]}}', "'center'"),
        ('{"x": {"center": [0.6, 0.8], "radius": [1]}}', "is no class"),
        ('{"0": {"center": [1], "radius": [1]}, "1": {"center": [0.6, 0.8], "radius": [1]}}',
         "2 numbers"),
        ('{"0": [1, 2]}', "is no class"),
        ('{"0": {"center": [0, 0], "radius": [1]}}', "of class 0 has the length 0"),
        ('{"0": {"center": [1, 2], "radius": [1]}}', "of class 0 has the length 2.24"),
        ('{"0": {"center": [1e-99, 0], "radius": [1]}}', "of class 0 has the length 0"),
        ('{"0": {"center": [0.6, 0.8], "radius": [1, 2.5]}}', "2.5, of class 0, is no distance"),
        ('{"0": {"center": [0.6, 0.8], "radius": [__import__("os")]}}', "is no class"),
    ],
)  # fmt: skip
def test_json_of_something_else(house, text, word):
    (house / "x.json").write_text(text)
    with pytest.raises(BctError, match=word) as info:
        read_centres(house / "x.json")
    assert len(str(info.value).splitlines()) == 2


# ---- what is refused


def test_rows_that_do_not_belong_to_the_set(house):
    refused(house, "nothing shows that the rows", names=["x_feature.npy"])
    refused(house, "does not exist", names=["no.npy"])
    save(house, "swapped", LABELS[RNG.permutation(N)])
    refused(house, "are of the classes", names=["x_feature.npy", "swapped.npy"])
    save(house, "merged", np.minimum(LABELS, 3))
    refused(house, "are of the classes", names=["x_feature.npy", "merged.npy"])
    save(house, "short", LABELS[:-1])
    refused(house, "22 labels", names=["x_feature.npy", "short.npy"])
    save(house, "part", ROWS[:9])
    refused(house, "9 rows of embeddings, and .* has 23 images", names=["part.npy", "x_label.npy"])
    save(house, "alike", np.ones((N, D), "f4"))
    refused(house, "all 23 rows are alike", names=["alike.npy", "x_label.npy"])
    rows = ROWS.copy()
    rows[4, 2] = np.nan
    save(house, "nan", rows)
    refused(house, "row 4 is not finite", names=["nan.npy", "x_label.npy"])
    save(house, "mask", LABELS > 2)
    refused(house, "does not say of what", names=["x_feature.npy", "x_label.npy", "mask.npy"])
    save(house, "credible_ratio_90", LABELS[:9] > 2)
    names = ["x_feature.npy", "x_label.npy", "credible_ratio_90.npy"]
    refused(house, "a mask of 9 rows", names=names)
    save(house, "y_avg_feature", ROWS[:5, :7])
    names = ["x_feature.npy", "x_label.npy", "y_avg_feature.npy"]
    refused(house, "7 and 16 dimensions", names=names)
    save(house, "cube", np.ones((2, 2, 2)))
    refused(house, "neither embeddings, labels", names=["cube.npy"])
    refused(house, "both hold embeddings", names=["x_feature.npy", "part.npy"])
    refused(house, "there are no embeddings", names=["x_label.npy"])


@pytest.mark.parametrize("rows", [[0, 1], [0, 0, 1], [0, 1, N], [-1, 0, 1], [0.0, 1.0, 2.0]])
def test_numbers_that_are_no_images(house, rows):
    save(house, "x_feature", ROWS[:3])
    save(house, "x_label", LABELS[:3])
    save(house, "rows", np.array(rows))
    refused(house, "rows.npy", "--rows", house / "rows.npy")


def test_nothing_is_replaced_unasked(house):
    bring(house)
    save(house, "x_credible_ratio_60_feature", credible_mask(ROWS, LABELS, 0.6))
    names = ["x_feature.npy", "x_label.npy", "x_credible_ratio_60_feature.npy"]
    with pytest.raises(BctError, match="was imported before"):
        bring(house, names=names)
    bring(house, "--overwrite", names=names)
    mask = place(house, "credible_ratio_60_feature")
    assert mask.exists()
    beside = mask.with_name(f"{mask.stem}_of_mine.npy")
    beside.write_bytes(b"mine")
    save(house, "x_feature", 2 * ROWS)
    bring(house, "--overwrite")  # without the mask, which was of other rows
    assert not mask.exists() and not mask.with_suffix(".json").exists() and beside.exists()
    # what our own tools have made of it is theirs to make again, never ours to replace
    tool("average_features", "--model", house / "old", "--rec", house / "train.rec")
    save(house, "x_avg_feature", class_means(ROWS, LABELS))
    names = ["x_feature.npy", "x_label.npy", "x_avg_feature.npy"]
    with pytest.raises(BctError, match=r"avg_feature.npy was not imported"):
        bring(house, "--overwrite", names=names)


# ---- used


def config(house, name, *overrides):
    given = [f"old_model={house / 'old'}", f"output={house / 'new'}", f"rec={house / 'train.rec'}"]
    (house / "job.py").write_text(
        "from easydict import EasyDict\nconfig = EasyDict()\nconfig.network = 'demo_w16'\n"
        f"config.embedding_size = {D}\n"
    )
    method = load_method(name)
    return load_config(house / "job.py", [*given, *TRAINING, *overrides], method.defaults)


@pytest.mark.parametrize(
    ("name", "needs", "more"),
    [
        ("MixBCT", ["denoise"], []),
        ("L2", [], []),
        ("NCCL", ["denoise"], ["queue_size=16", "credible=True", "T=1.0"]),
        ("BCT", ["average_features"], []),
        ("AdvBCT", ["class_statistics"], []),
        ("AdvBCT", ["class_statistics"], ["boundary=old_distance", "topk=3"]),
        ("LCE", ["class_statistics"], []),
        ("LCE", ["class_statistics"], ["reading=lce"]),
        ("UniBCT", ["class_statistics"], ["reading=advbct"]),
    ],
)
def test_methods_train_on_a_part(house, name, needs, more):
    """The old model is gone, a class is absent wholly; what they need is made of what is there."""
    chosen = np.flatnonzero((np.arange(N) % 4 > 0) & (LABELS != 3))
    rows, _ = partial_of(house, chosen, shuffled=True)
    save(house, "rows", rows)
    bring(house, "--rows", house / "rows.npy")
    for script in needs:
        by = ["--by", "entropy", "--T", "1"] if name == "NCCL" else []
        tool(script, *by, "--model", house / "old", "--rec", house / "train.rec")
    assert train(config(house, name, "num_epoch=1", *more), load_method(name), CPU) == 0
    lines = (house / "new" / "metrics.jsonl").read_text().splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    assert losses and np.isfinite(losses).all()


def test_what_is_made_of_it_belongs_to_it(house):
    """Other rows of the same file are other features: masks of the first are noticed."""
    save(house, "rows", np.arange(N))
    bring(house, "--rows", house / "rows.npy")
    where = ["--model", house / "old", "--rec", house / "train.rec"]
    tool("denoise", *where)
    needs = "old_embedding", "credible_old_feature"
    images = open_images(house / "train.rec")
    OldModel(config(house, "MixBCT"), images, needs)
    save(house, "x_feature", ROWS * 2)
    bring(house, "--overwrite")
    with pytest.raises(BctError, match="different old models"):
        OldModel(config(house, "MixBCT"), images, needs)
    tool("denoise", *where)
    OldModel(config(house, "MixBCT"), images, needs)


def test_a_method_that_needs_the_model_says_so(house):
    bring(house)
    tool("average_features", "--model", house / "old", "--rec", house / "train.rec")
    with pytest.raises(BctError, match="was imported without its model") as info:
        train(config(house, "BCT", "influence=old_classifier"), load_method("BCT"), CPU)
    assert len(str(info.value).splitlines()) == 2


def test_a_file_of_several_arrays_is_seen_by_what_they_hold(house):
    np.savez(house / "all.npz", a=ROWS, b=LABELS, c_avg_feature=ROWS[:5])
    found = read_files([house / "all.npz"])
    assert {kind for kind, _ in found} == {"embeddings", "labels", "means"}
