"""A vision transformer of Dosovitskiy et al. (2021), at the size "Tiny" of Touvron et al. (2021), for small images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Multi-head self-attention of (n, tokens, width), one linear layer for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(x).view(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (n, heads, tokens, width / heads)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(n, tokens, width))


class EncoderBlock(nn.Module):
    """LayerNorm before attention and before a GELU perceptron four times as wide; both are added to their input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches by a strided convolution, a class token, learned positions, pre-norm blocks, no dropout."""

    def __init__(
        self,
        num_classes: int,
        *,
        image_size: tuple[int, int],
        patch: int,
        width: int,
        depth: int,
        heads: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        height, breadth = image_size
        self.patches = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + (height // patch) * (breadth // patch), width))
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, num_classes)
        for weight in (self.class_token, self.positions):
            nn.init.trunc_normal_(weight, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)  # (n, patches, width)
        x = torch.cat((self.class_token.expand(len(x), -1, -1), tokens), 1) + self.positions
        return self.linear(self.norm(self.blocks(x))[:, 0])


def vit_tiny(num_classes: int, in_channels: int = 3, image_size: tuple[int, int] = (32, 32)) -> VisionTransformer:
    """ViT-Tiny with 4x4 patches: 5,362,762 parameters for 10 classes of 32x32 images.

    Width 192, 12 blocks, 3 heads. The sides of an image must be multiples of 4.
    """
    return VisionTransformer(
        num_classes, image_size=image_size, patch=4, width=192, depth=12, heads=3, in_channels=in_channels
    )
