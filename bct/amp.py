"""Mixed precision: which type the network's body runs in, and loss scaling that ranks agree on."""

import torch
import torch.distributed as dist
from torch.amp import GradScaler

from bct.distributed import say, world_size

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}


def amp_dtype(
    amp: str | None, device: torch.device, fp16: bool | None = None
) -> torch.dtype | None:
    """The autocast type on a device, None for fp32, from a config's `amp` and `fp16`.

    `amp` decides: "bf16", "fp16" or "off". Without it fp16=True asks for fp16 (on a GPU; a CPU has
    no use for it), fp16=False for fp32, and neither for bf16 where the hardware has it, else fp16
    on a GPU, fp32 on a CPU.
    """
    name = amp or {None: None, True: "fp16", False: "off"}[fp16]
    if name == "fp16" and device.type == "cpu" and not amp:
        say("fp16=True is meant for a GPU; on this CPU the default precision is used")
        name = None
    if name is None:
        half_on_gpu = "fp16" if device.type == "cuda" else "off"
        name = "bf16" if has_bf16(device) else half_on_gpu
    return _TYPES[name]


def dtype_name(dtype: torch.dtype | None) -> str:
    """ "bfloat16", "float16", or "float32" for None: what manifests and cache keys say."""
    return str(dtype or torch.float32).removeprefix("torch.")


def has_bf16(device: torch.device) -> bool:
    """Whether it has instructions for bfloat16: without them, products take far longer."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # AVX512 without the bf16 instructions emulates them, slower than fp32
    return torch.cpu._is_avx512_bf16_supported()


def allow_fast_matmul(dtype: torch.dtype | None, device: torch.device) -> None:
    """With mixed precision, lets the head's fp32 matrix products round their inputs, to TF32 (GPU)
    or bf16 (CPU); they still accumulate and return fp32. For training only: scores stay exact."""
    if dtype is not None:
        torch.set_float32_matmul_precision("high" if device.type == "cuda" else "medium")


def make_scaler(dtype: torch.dtype | None, device: torch.device) -> GradScaler:
    """A gradient scaler, at work only for fp16.

    Heads are sharded, so one rank alone can overflow. With several ranks the scaler reduces the
    verdict over all of them: if any rank finds an overflow, all skip the step and lower the scale.
    """
    enabled = dtype == torch.float16
    if world_size() > 1:
        # most of a second, which a process of its own need not wait for
        from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

        return ShardedGradScaler(device.type, enabled=enabled, process_group=dist.group.WORLD)
    return GradScaler(device.type, enabled=enabled)
