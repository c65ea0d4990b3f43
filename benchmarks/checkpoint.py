"""How long training stands still for a checkpoint: r50 with 93,431 classes, as on MS1MV3.

Ours against writing as many bytes to the same disk (the limit), then reading it back with every
checksum verified. At the default interval of save_every steps a stall of at most 5 % follows for
steps that are not shorter than the last line says; the step of this machine is timed beside it.
"""

import os
import tempfile
import time
from pathlib import Path

import torch

from backbones import get_model
from bct.amp import amp_dtype, make_scaler
from bct.config import load_config
from bct.data.loader import Batch
from bct.method import Method
from bct.train import make_head, train_step
from bct.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from bct.training.optimizer import make_optimizer
from bct.training.run_record import RunRecord
from benchmarks.common import Row, interleaved, median, peak_gib, publish, spread, start

SHARE = 0.05


def main() -> None:
    args = start(__doc__)
    network, classes, batch = ("demo_w16", 1000, 8) if args.small else ("r50", 93_431, 4)
    device = torch.device("cpu")
    cfg = load_config("configs/base.py", [f"network={network}", f"num_classes={classes}"])
    dtype = amp_dtype(cfg.amp, device, cfg.fp16)
    backbone, head = get_model(network, cfg.embedding_size, dtype), make_head(cfg)
    method, scaler = Method(cfg, None), make_scaler(dtype, device)
    optimizer = make_optimizer(cfg, backbone, method, head)
    images, labels = torch.rand(batch, 3, 112, 112), torch.arange(batch)
    steps = []
    for step in range(2):  # they also give the optimiser its momentum
        batches = iter([Batch(images, labels, labels, {})])
        began = time.perf_counter()
        train_step(cfg, batches, [backbone, method, head], optimizer, scaler, 0.01, step)
        steps.append(time.perf_counter() - began)

    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        whole, turn = (backbone, method, head, optimizer, scaler), iter(range(99))
        record = RunRecord(Path(folder), {}, 1)
        save_checkpoint(record, {"step": next(turn)}, *whole)
        size = checkpoints(folder)[0].stat().st_size
        content = memoryview(bytes(1 << 20))

        def bare() -> None:
            with open(Path(folder) / "bare", "wb") as file:
                for _ in range(size >> 20):
                    file.write(content)
                os.fsync(file.fileno())

        times = interleaved(
            {
                "save": lambda: save_checkpoint(record, {"step": next(turn)}, *whole),
                "bare": bare,
                "load": lambda: load_checkpoint(record, *whole),
            },
            repeats=3,
        )
    stall, loading = median(times["save"]), spread(times["load"])
    row = Row(
        f"a checkpoint, {network}, {classes:,} classes, {size / 1e6:,.0f} MB",
        times["save"],
        limit=times["bare"],
        limit_name="bare write",
        gib=peak_gib(),
    )
    details = (
        f"Loading it and verifying every checksum takes {loading} s. At save_every = "
        f"{cfg.save_every} the training stands still for at most {SHARE:.0%} when a step takes at "
        f"least {1000 * stall / SHARE / cfg.save_every:.0f} ms; here one of {batch} images takes "
        f"{1000 * steps[-1]:.0f} ms: {stall / (cfg.save_every * steps[-1]):.2%}."
    )
    publish(args, [row], details)


if __name__ == "__main__":
    main()
