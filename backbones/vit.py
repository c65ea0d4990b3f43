"""ViT for faces: the vision transformer (Dosovitskiy et al., ICLR 2021), as insightface has it.

No class token: the head reads all tokens. In training, random tokens are left out (He et al., CVPR
2022) and residual branches dropped (Huang et al., ECCV 2016). Keys are those of insightface.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Attention(nn.Module):
    """Multi-head self-attention: linear layers as autocast has them, the core in fp32."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1))  # (B, N, 3, H, D / H)
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = qkv.float().permute(2, 0, 3, 1, 4)  # (B, H, N, D / H) each
            x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))  # (B, N, D)


class Block(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)); `drop` is how often a sample skips a branch."""

    def __init__(self, dim: int, heads: int, drop: float):
        super().__init__()
        self.drop = drop
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        layers = {"fc1": nn.Linear(dim, 4 * dim), "act": nn.ReLU6(), "fc2": nn.Linear(4 * dim, dim)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def drop_path(self, branch: torch.Tensor) -> torch.Tensor:
        """Zeroes the branch of random samples, and scales the others to keep the expectation."""
        if not self.training or self.drop == 0:
            return branch
        return branch * F.dropout(branch.new_ones(len(branch), 1, 1), self.drop)


class ViT(nn.Module):
    """9 x 9 patches, `depth` blocks, LN, then flatten - linear - BN - linear - BN.

    Args:
        dim: D, dimension of a token.
        depth: number of blocks.
        drop_path: how often the last block skips a branch; grows linearly from 0 in the first.
        mask: share of the N = 144 tokens left out of the blocks, in training only: each sample
            keeps int(N * (1 - mask)). A learned token stands for the others in the head.
            (insightface leaves out 0.1 whatever a network above 0 is called.)
        heads: attention heads.
        checkpointing: keep only the inputs of the blocks for backward and compute the rest again.
        embedding_size: dimension of the embedding.
        amp_dtype: autocast type of the patches' projection and the linear layers of the blocks,
            None for fp32. Attention, sums, layer norms and the head always run in fp32.

    Input (B, 3, 112, 112) float in [-1, 1], of which the patches cover the first 108 rows and
    columns; output (B, embedding_size) float32, not normalised.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        drop_path: float = 0.1,
        mask: float = 0.1,
        heads: int = 8,
        checkpointing: bool = False,
        embedding_size: int = 512,
        amp_dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.amp_dtype, self.embedding_size = amp_dtype, embedding_size
        self.mask, self.checkpointing = mask, checkpointing
        tokens = 12 * 12
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, dim))
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim), requires_grad=mask > 0)
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(3, dim, 9, stride=9)))
        drops = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(dim, heads, drop) for drop in drops)
        self.norm = nn.LayerNorm(dim)
        self.feature = nn.Sequential(
            nn.Linear(tokens * dim, dim, bias=False),
            nn.BatchNorm1d(dim, eps=2e-5),
            nn.Linear(dim, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size, eps=2e-5),
        )
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        masked = self.training and self.mask > 0
        with torch.autocast(x.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            # fp32 plus whatever autocast returns is fp32: so is x from here on
            x = self.pos_embed + self.patch_embed(x).flatten(2).transpose(1, 2)  # (B, N, D)
            shape = x.shape
            if masked:
                kept = self.kept_tokens(x)
                x = x.gather(1, kept)  # (B, kept, D)
            for block in self.blocks:
                if self.checkpointing and self.training and torch.is_grad_enabled():
                    x = checkpoint(block, x, use_reentrant=False)
                else:
                    x = block(x)
        with torch.autocast(x.device.type, enabled=False):
            x = self.norm(x)
            if masked:
                x = self.mask_token.expand(shape).scatter(1, kept, x)  # (B, N, D)
            return self.feature(x.flatten(1))

    def kept_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """Positions of the tokens that stay, drawn per sample: (B, kept, D), for gather."""
        batch, tokens, dim = x.shape
        order = torch.rand(batch, tokens, device=x.device).argsort(1)
        return order[:, : int(tokens * (1 - self.mask)), None].expand(-1, -1, dim)
