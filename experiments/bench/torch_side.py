"""The PyTorch side of the benchmark: the same networks, losses, optimizer and samplers, written as one would write them.

This file runs in a process of its own, under an interpreter that may have PyTorch and nothing of ours: run.py sends one
JSON request a line and reads one JSON answer a line. Modules are named as in our networks, so that our parameters can
be loaded and both sides held against each other before anything is timed.

What is done for speed: no synchronisation inside a loop, the fused Adam, `torch._foreach_lerp_` for the average, fused
attention, a fused clip, inference mode for samplers; `compile` and `channels_last` where a request asks for them.
"""

import math

import torch
from torch import nn
from torch.nn import functional

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def waves(t, size, time_scale=1000.0):
    """Cosines and sines of t at frequencies from time_scale down to time_scale / 10^4."""
    half = size // 2
    index = torch.arange(half, device=t.device, dtype=torch.float32)
    angles = t[:, None] * (time_scale * torch.exp(-math.log(10_000.0) * index / half))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class MLP(nn.Module):
    """models/mlp.py."""

    def __init__(self, size, width, depth, octaves=8):
        super().__init__()
        self.depth = depth
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(octaves, dtype=torch.float32), False)
        for index in range(depth):
            self.add_module(f"layer_{index}", nn.Linear(size + 1 + 2 * octaves if index == 0 else width, width))
        self.output = nn.Linear(width, size)

    def forward(self, x, t, label=None):
        angles = t[:, None] * self.frequencies
        hidden = torch.cat([x, t[:, None], angles.cos(), angles.sin()], dim=-1)
        for index in range(self.depth):
            hidden = functional.silu(getattr(self, f"layer_{index}")(hidden))
        return self.output(hidden)


class Embedding(nn.Module):
    """Time and label, as ConditionEmbedding of models/embeddings.py."""

    def __init__(self, features, classes):
        super().__init__()
        self.time = nn.Module()
        self.time.Dense_0, self.time.Dense_1 = nn.Linear(256, features), nn.Linear(features, features)
        self.label = nn.Module()
        self.label.table = nn.Embedding(classes + 1, features)

    def forward(self, t, label):
        hidden = functional.silu(self.time.Dense_0(waves(t, 256)))
        return self.time.Dense_1(hidden) + self.label.table(label)


class Attention(nn.Module):
    """Multi-head self-attention through the fused scaled_dot_product_attention."""

    def __init__(self, size, heads):
        super().__init__()
        self.heads, self.qkv, self.output = heads, nn.Linear(size, 3 * size), nn.Linear(size, size)

    def forward(self, x):
        batch, tokens, size = x.shape
        queries, keys, values = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(queries, keys, values)
        return self.output(mixed.transpose(1, 2).reshape(batch, tokens, size))


class Modulation(nn.Module):
    """`count` vectors from silu(embedding)."""

    def __init__(self, count, size):
        super().__init__()
        self.count, self.linear = count, nn.Linear(size, count * size)

    def forward(self, embedding):
        return self.linear(functional.silu(embedding))[:, None].chunk(self.count, dim=-1)


class Block(nn.Module):
    """A DiT block with adaLN."""

    def __init__(self, size, heads):
        super().__init__()
        self.size, self.modulation, self.attention = size, Modulation(6, size), Attention(size, heads)
        self.mlp_in, self.mlp_out = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)

    def forward(self, x, embedding):
        norm = lambda h: functional.layer_norm(h, (self.size,), eps=1e-6)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(embedding)
        x = x + gate_1 * self.attention(norm(x) * (1 + scale_1) + shift_1)
        hidden = functional.gelu(self.mlp_in(norm(x) * (1 + scale_2) + shift_2), approximate="tanh")
        return x + gate_2 * self.mlp_out(hidden)


class DiT(nn.Module):
    """models/dit.py; x is [batch, height, width, channels] as there."""

    def __init__(self, side, channels, patch, width, depth, heads, classes, positions):
        super().__init__()
        self.patch, self.depth, self.width = patch, depth, width
        self.patch_embedding = nn.Linear(patch * patch * channels, width)
        self.embedding = Embedding(width, classes)
        self.register_buffer("positions", torch.tensor(positions), False)
        for index in range(depth):
            self.add_module(f"block_{index}", Block(width, heads))
        self.final_modulation = Modulation(2, width)
        self.output = nn.Linear(width, patch * patch * channels)

    def forward(self, x, t, label):
        batch, side, _, channels = x.shape
        cells, p = side // self.patch, self.patch
        patches = x.view(batch, cells, p, cells, p, channels).transpose(2, 3).reshape(batch, cells * cells, -1)
        tokens = self.patch_embedding(patches) + self.positions
        embedding = self.embedding(t, label)
        for index in range(self.depth):
            tokens = getattr(self, f"block_{index}")(tokens, embedding)
        shift, scale = self.final_modulation(embedding)
        tokens = self.output(functional.layer_norm(tokens, (self.width,), eps=1e-6) * (1 + scale) + shift)
        return tokens.view(batch, cells, cells, p, p, channels).transpose(2, 3).reshape(x.shape)


def group_norm(channels):
    """As many groups of at least four channels as divide them, at most 32."""
    groups = next(n for n in range(max(1, min(32, channels // 4)), 0, -1) if channels % n == 0)
    return nn.GroupNorm(groups, channels, eps=1e-5)


class ResidualBlock(nn.Module):
    """A residual block of models/unet.py; x is [batch, channels, height, width]."""

    def __init__(self, inputs, outputs, embedding, resample=None):
        super().__init__()
        self.resample, self.norm_in, self.norm_out = resample, group_norm(inputs), group_norm(outputs)
        self.conv_in, self.conv_out = (nn.Conv2d(n, outputs, 3, padding=1) for n in (inputs, outputs))
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x, embedding):
        hidden = functional.silu(self.norm_in(x))
        if self.resample == "halve":
            hidden, x = functional.avg_pool2d(hidden, 2), functional.avg_pool2d(x, 2)
        elif self.resample == "double":
            hidden, x = (functional.interpolate(h, scale_factor=2, mode="nearest") for h in (hidden, x))
        hidden = self.conv_in(hidden)
        scale, shift = self.modulation(functional.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        hidden = functional.silu(self.norm_out(hidden) * (1 + scale) + shift)
        return self.skip(x) + self.conv_out(hidden)


class AttentionBlock(nn.Module):
    """Attention between the cells of an image."""

    def __init__(self, channels, head_channels=32):
        super().__init__()
        self.norm, self.attention = group_norm(channels), Attention(channels, max(1, channels // head_channels))

    def forward(self, x):
        mixed = self.attention(self.norm(x).flatten(2).transpose(1, 2))
        return x + mixed.transpose(1, 2).reshape(x.shape)


class UNet(nn.Module):
    """models/unet.py with block resampling; x is [batch, height, width, channels] as there."""

    def __init__(self, side, image_channels, channels, multipliers, blocks, attention, classes):
        super().__init__()
        self.blocks, self.levels, self.channels_last = blocks, len(multipliers), False
        self.embedding = Embedding(4 * channels, classes)
        widths = [channels * multiplier for multiplier in multipliers]
        self.input = nn.Conv2d(image_channels, channels, 3, padding=1)
        sizes, now = [channels], channels

        def add(name, inputs, outputs, height, resample=None):
            self.add_module(name, ResidualBlock(inputs, outputs, 4 * channels, resample))
            if resample is None and height in attention and not name.startswith("middle"):
                self.add_module(f"{name}_attention", AttentionBlock(outputs))
            return outputs

        for level, width in enumerate(widths):
            for index in range(blocks):
                now = add(f"down_{level}_{index}", now, width, side >> level)
                sizes.append(now)
            if level + 1 < len(widths):
                now = add(f"halve_{level}", now, width, side >> level, "halve")
                sizes.append(now)
        add("middle_0", now, now, 0)
        if attention:
            self.middle_attention = AttentionBlock(now)
        add("middle_1", now, now, 0)
        for level in reversed(range(len(widths))):
            for index in range(blocks + 1):
                now = add(f"up_{level}_{index}", now + sizes.pop(), widths[level], side >> level)
            if level:
                now = add(f"double_{level}", now, now, side >> level, "double")
        self.norm, self.output = group_norm(now), nn.Conv2d(now, image_channels, 3, padding=1)

    def forward(self, x, t, label):
        embedding = self.embedding(t, label)

        def block(name, h):
            h = getattr(self, name)(h, embedding)
            return getattr(self, f"{name}_attention")(h) if hasattr(self, f"{name}_attention") else h

        # Channels-last images are read as they are: the permuted view is a channels-last tensor.
        h = x.permute(0, 3, 1, 2)
        h = self.input(h if self.channels_last else h.contiguous())
        skips = [h]
        for level in range(self.levels):
            for index in range(self.blocks):
                h = block(f"down_{level}_{index}", h)
                skips.append(h)
            if level + 1 < self.levels:
                h = block(f"halve_{level}", h)
                skips.append(h)
        h = block("middle_0", h)
        h = block("middle_1", self.middle_attention(h) if hasattr(self, "middle_attention") else h)
        for level in reversed(range(self.levels)):
            for index in range(self.blocks + 1):
                h = block(f"up_{level}_{index}", torch.cat([h, skips.pop()], dim=1))
            if level:
                h = block(f"double_{level}", h)
        return self.output(functional.silu(self.norm(h))).permute(0, 2, 3, 1)


NETWORKS = {"mlp": MLP, "dit": DiT, "unet": UNet}


def load(model, parameters):
    """Our parameters 'a/b/kernel' into the module of the same names; every one must find its place."""
    names = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
    own = dict(model.named_parameters())
    for path, value in parameters.items():
        *place, last = path.split("/")
        target, value = own.pop(".".join([*place, names[last]])), torch.from_numpy(value)
        if last == "kernel":
            value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T
            value = value[..., None, None] if target.ndim == 4 and value.ndim == 2 else value
        if target.shape != value.shape:
            raise ValueError(f"{path}: {tuple(value.shape)} here, {tuple(target.shape)} in PyTorch.")
        with torch.no_grad():
            target.copy_(value)
    if own:
        raise ValueError(f"Parameters of PyTorch that we do not have: {', '.join(own)}.")
