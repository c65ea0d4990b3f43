"""tools/transform_gallery.py: equal to h of the whole, refusals; FastFill's order on a backfill."""

import numpy as np
import pytest
import torch
from support.networks import randomly
from support.old_models import tool
from support.searches import leave_one_out
from support.stored_vectors import VectorJob

from backbones.fct import Transformation
from bct.files import sha256_file
from bct.metrics import backfill
from bct.search import orders
from bct.stored.artefacts import open_artefact, write_artefact

D_OLD, D_NEW, D_SIDE, N = 6, 5, 4, 41


@pytest.fixture
def files(tmp_path):
    """old.npy, side.npy, and transformations with and without side information."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "old.npy", np.float32(rng.standard_normal((N, D_OLD))))
    np.save(tmp_path / "side.npy", np.float64(rng.standard_normal((N, D_SIDE))))
    for name, d_side in (("alone", 0), ("both", D_SIDE)):
        model = randomly(Transformation(D_OLD, D_NEW, d_side, 7, uncertainty=True))
        torch.save(model.state_dict(), tmp_path / f"{name}.pt")
    torch.save(Transformation(D_OLD, D_NEW, 0, 7).state_dict(), tmp_path / "certain.pt")
    torch.save({"fc.weight": torch.ones(2, 2)}, tmp_path / "other.pt")
    return tmp_path


def run(folder, model="alone.pt", *more, old="old.npy", out="out.npy"):
    more = [folder / word if str(word).endswith(".npy") else word for word in more]
    tool("transform_gallery", folder / old, folder / out, "-m", folder / model, *more)


def refused(capsys, word, *args, **kwargs):
    with pytest.raises(SystemExit) as info:
        run(*args, **kwargs)
    said = capsys.readouterr().err
    assert info.value.code == 1 and word in said and len(said.splitlines()) == 2, said


def whole(folder, model, d_side=0):
    """h and s of all rows at once, by the network as it was trained."""
    h = Transformation(D_OLD, D_NEW, d_side, 7, uncertainty=True).eval()
    h.load_state_dict(torch.load(folder / model, weights_only=True))
    x = np.load(folder / "old.npy")
    if d_side:
        x = np.concatenate([x, np.load(folder / "side.npy")], 1)
    with torch.no_grad():
        return [part.numpy() for part in h(torch.from_numpy(x))]


@pytest.mark.parametrize("batch_size", [1, 8, 41, 8192])
def test_blocks_give_what_the_whole_gives(files, batch_size):
    run(files, "both.pt", "--side", "side.npy", "--uncertainty", "s.npy",
        "--batch-size", batch_size)  # fmt: skip
    h, s = whole(files, "both.pt", D_SIDE)
    mapped, _ = open_artefact(files / "out.npy")
    variance, about = open_artefact(files / "s.npy")
    np.testing.assert_allclose(mapped, h, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variance, s, rtol=1e-4, atol=1e-5)
    assert mapped.dtype == variance.dtype == np.float32
    assert about["side"] == sha256_file(files / "side.npy")


def test_rows_of_zeros_stay_zeros_and_come_first(files, capsys):
    old = np.load(files / "old.npy")
    old[[2, 9]] = 0
    np.save(files / "old.npy", old)
    run(files, "alone.pt", "--uncertainty", "s.npy", "--batch-size", 4)
    said = capsys.readouterr().out
    assert f"2 of {N} rows are zeros, so no embeddings; they stay zeros (row 2, 9)" in said
    mapped, variance = (open_artefact(files / name)[0] for name in ("out.npy", "s.npy"))
    assert np.flatnonzero(~mapped.any(axis=1)).tolist() == [2, 9]
    assert (variance[[2, 9]] == variance.max()).all()
    np.testing.assert_allclose(
        np.delete(mapped, [2, 9], 0), np.delete(whole(files, "alone.pt")[0], [2, 9], 0), atol=1e-5
    )


def test_what_holds_no_embeddings_is_refused_and_nothing_is_written(files, capsys):
    old = np.load(files / "old.npy")
    for rows, words in (
        (old * 0, f"old.npy: all {N} rows are zeros"),
        (np.where(np.arange(N)[:, None] == 30, np.nan, old), "old.npy: row 30 is not finite"),
        (old.astype("f8") * 1e300, "old.npy: row 0 has numbers too large for float32"),
    ):
        np.save(files / "old.npy", rows)
        before = sorted(files.iterdir())
        refused(capsys, words, files, "alone.pt", "--batch-size", "8")
        assert sorted(files.iterdir()) == before


def test_names_and_advice(files, capsys):
    refused(capsys, "name that ends in .npy", files, out="out.txt")
    refused(capsys, "leave --uncertainty out", files, "certain.pt", "--uncertainty", "s.npy")
    (files / "model.json").write_text('{"network": "r18"}')
    refused(capsys, "model.json is no manifest of ours", files, out="model.npy")
    assert (files / "model.json").read_text() == '{"network": "r18"}'


def test_the_manifest_goes_with_it(files, capsys):
    old = np.load(files / "old.npy")
    made_from = {"kind": "old_embedding", "data": "these images", "model": "old model's", "T": 1}
    with write_artefact(files / "old.npy", old.shape, "float32", **made_from) as out:
        out[:] = old
    run(files)
    _, about = open_artefact(files / "out.npy")
    assert about["data"] == "these images" and about["kind"] == "mapped_embedding"
    assert about["model"] == sha256_file(files / "alone.pt") and about["old_model"] == "old model's"
    assert (about["rows"], about["dim"]) == (N, D_NEW)
    written = (files / "out.npy").stat().st_mtime_ns
    run(files)
    assert "reusing" in capsys.readouterr().out
    assert (files / "out.npy").stat().st_mtime_ns == written


def test_nothing_else_is_replaced(files, capsys):
    run(files)
    refused(capsys, "something else", files, "certain.pt")
    np.save(files / "mine.npy", np.ones(3))
    refused(capsys, "something else", files, out="mine.npy")
    refused(capsys, "something else", files, "alone.pt", "--uncertainty", "mine.npy")
    refused(capsys, "name of an input", files, out="old.npy")
    refused(capsys, "name of an input", files, "alone.pt", "--overwrite", out="old.npy")
    refused(
        capsys, "name of an input", files, "alone.pt", "--uncertainty", "new.npy", out="new.npy"
    )
    run(files, "certain.pt", "--overwrite")
    assert open_artefact(files / "out.npy")[1]["model"] == sha256_file(files / "certain.pt")


def test_what_does_not_fit_is_refused(files, capsys):
    refused(capsys, "4-d embeddings", files, old="side.npy")
    refused(capsys, "takes 4 dimensions of side information", files, "both.pt")
    refused(capsys, "takes no dimensions", files, "alone.pt", "--side", "side.npy")
    refused(capsys, "there are 6", files, "both.pt", "--side", "old.npy")
    refused(capsys, "no transformation of FCT", files, "other.pt")
    refused(capsys, "does not exist", files, "nothing.pt")
    refused(capsys, "do not exist", files, old="nothing.npy")
    refused(capsys, "no uncertainty", files, "certain.pt", "--uncertainty", "s.npy")
    old = np.load(files / "old.npy")
    old[33, 1] = np.inf
    np.save(files / "broken.npy", old)
    refused(capsys, "row 33", files, "alone.pt", "--batch-size", 10, old="broken.npy")
    np.save(files / "short.npy", np.load(files / "side.npy")[1:])
    refused(capsys, "40 rows", files, "both.pt", "--side", "short.npy")
    assert not (files / "out.npy").exists()


def test_the_predicted_order_is_the_better_one(tmp_path):
    """Some old embeddings say little of their image, and look like it. The head learns that they
    do; on a gallery of other images, refreshing those first lifts the curve."""
    house, rng = VectorJob(tmp_path), np.random.default_rng(5)
    labels, old, new = house.sample(rng)
    for features in (old, house.old):
        blurred = rng.random(len(features)) < 0.4
        features[blurred] *= 0.1
        features[blurred] += rng.normal(0, 0.1, features[blurred].shape)
    house.write("old", house.old)
    house.train("uncertainty=True", "hidden_size=64", "batch_size=8", "num_epoch=12", "lr=0.01")
    np.save(tmp_path / "old.npy", old)
    run(tmp_path, "run/model.pt", "--uncertainty", "s.npy")
    mapped, s = np.load(tmp_path / "out.npy"), np.load(tmp_path / "s.npy")

    def quality(refreshed):
        gallery = np.where(refreshed[:, None], new, mapped)
        return leave_one_out(new, labels, gallery, metric="l2").mean_ap

    def curve(order):
        return backfill.curve(order, np.linspace(0, 1, 9), quality)

    predicted = curve(orders.order_by_distance(s))
    assert predicted.values[0] == leave_one_out(new, labels, mapped, metric="l2").mean_ap
    assert predicted.values[-1] == leave_one_out(new, labels, metric="l2").mean_ap
    by_chance = [backfill.area(curve(orders.order_random(len(s), seed))) for seed in range(5)]
    assert backfill.area(predicted) > max(by_chance)
