"""Adapters in PyTorch on timm's ViT, as the papers' public code defines them, in float64: the reference of `adapters`.

VPT: KMnP/vpt, vit_prompt/vit_mae.py. AdaptFormer: ShoufaChen/AdaptFormer, adapter.py and custom_modules.py. LoRA:
microsoft/LoRA, layers.py. Weights are random, also those that start at zero.
"""

import pathlib

import torch
from torch import nn

from tests.parity import references

SIZES = dict(image=12, patch=4, width=16, depth=3, heads=2, classes=0)
TOKENS, BOTTLENECK, SCALE, RANK, ALPHA = 3, 6, 0.1, 2, 5.0
TARGETS = ("q", "k", "v", "proj", "fc1", "fc2")


class Adapter(nn.Module):
    """AdaptFormer's: down, ReLU, up, a factor; without a norm and (in evaluation) without dropout."""

    def __init__(self, width: int):
        super().__init__()
        self.down, self.up = nn.Linear(width, BOTTLENECK), nn.Linear(BOTTLENECK, width)

    def forward(self, x):
        return SCALE * self.up(torch.relu(self.down(x)))


class LowRank(nn.Module):
    """A linear layer with LoRA on some of its rows: base(x) + alpha / rank · x Aᵀ Bᵀ."""

    def __init__(self, base: nn.Linear, parts: dict[str, slice]):
        super().__init__()
        self.base, self.parts = base, parts
        rows = {name: len(range(base.out_features)[where]) for name, where in parts.items()}
        self.a = nn.ParameterDict({name: torch.zeros(RANK, base.in_features) for name in parts})
        self.b = nn.ParameterDict({name: torch.zeros(n, RANK) for name, n in rows.items()})

    def forward(self, x):
        out = self.base(x).clone()
        for name, where in self.parts.items():
            out[..., where] += ALPHA / RANK * (x @ self.a[name].T @ self.b[name].T)
        return out


def tokens_of(vit: nn.Module, images, *, prompts=None, deep: bool = False, parallel=None):
    """All tokens after timm's last norm, prompts between class token and patches."""
    x = vit._pos_embed(vit.patch_embed(images))
    count = 0 if prompts is None else prompts.shape[-2]

    def inserted(x, own, replaced):
        return torch.cat([x[:, :1], own.expand(len(x), -1, -1), x[:, 1 + replaced :]], dim=1)

    if prompts is not None:
        x = inserted(x, prompts[0] if deep else prompts, 0)
    for i, block in enumerate(vit.blocks):
        if deep and i:
            x = inserted(x, prompts[i], count)
        x = x + block.attn(block.norm1(x))
        added = block.mlp(block.norm2(x))
        if parallel is not None:
            added = added + parallel[i](x)
        x = x + added
    x = vit.norm(x)
    return torch.cat([x[:, :1], x[:, 1 + count :]], dim=1)


def with_lora(vit: nn.Module) -> nn.Module:
    """Puts LoRA on all products of all blocks."""
    width = vit.embed_dim
    for block in vit.blocks:
        thirds = {name: slice(i * width, (i + 1) * width) for i, name in enumerate("qkv")}
        block.attn.qkv = LowRank(block.attn.qkv, thirds)
        block.attn.proj = LowRank(block.attn.proj, {"proj": slice(None)})
        block.mlp.fc1 = LowRank(block.mlp.fc1, {"fc1": slice(None)})
        block.mlp.fc2 = LowRank(block.mlp.fc2, {"fc2": slice(None)})
    return vit


def stacked(parameters: list) -> torch.Tensor:
    return torch.stack([p.detach() for p in parameters])


def adapters(folder: pathlib.Path, seed: int) -> None:
    """A case: tokens and gradients of Σ tokens · `weight` with each kind of adapters on one ViT.

    `KIND/NAME` is a parameter with a leading axis of layers, `KIND/gradient/NAME` its gradient, `KIND/tokens` the answer.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=0.5):
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).float().double()

    model = references.timm_model(seed, **SIZES)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    images, width, depth = references.images_of(seed, SIZES["image"]), SIZES["width"], SIZES["depth"]
    arrays = dict(images=images, weight=draw(images.shape[0], 10, width))
    model = model.double()
    pixels = images.double()

    def answer(kind: str, named: dict[str, list[nn.Parameter]], **how):
        tokens = tokens_of(model, pixels, **how)
        (tokens * arrays["weight"]).sum().backward()
        arrays[f"{kind}/tokens"] = tokens
        for name, parameters in named.items():
            one = len(parameters) == 1
            arrays[f"{kind}/{name}"] = parameters[0] if one else stacked(parameters)
            grads = [p.grad for p in parameters]
            arrays[f"{kind}/gradient/{name}"] = grads[0] if one else torch.stack(grads)

    for kind, shape in (("vpt_shallow", (TOKENS, width)), ("vpt_deep", (depth, TOKENS, width))):
        prompts = nn.Parameter(draw(*shape))
        answer(kind, {"prompts": [prompts]}, prompts=prompts, deep=kind == "vpt_deep")
    modules = [Adapter(width).double() for _ in range(depth)]
    for module in modules:
        for parameter in module.parameters():
            parameter.data = draw(*parameter.shape)
    names = [name for name, _ in modules[0].named_parameters()]
    answer("adaptformer", {name: [m.get_parameter(name) for m in modules] for name in names}, parallel=modules)
    named: dict[str, list] = {}
    for block in with_lora(model).double().blocks:
        for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            for letter, table in (("A", layer.a), ("B", layer.b)):
                for target in layer.parts:
                    table[target].data = draw(*table[target].shape, scale=0.3)
                    named.setdefault(f"{target}.{letter}", []).append(table[target])
    answer("lora", named)
    references.write(folder, weights, arrays, dict(heads=SIZES["heads"], image_size=0))
