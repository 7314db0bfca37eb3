"""Reference cases of text encoders: random models of transformers, and MAWS-CLIP's file from modules after torchtext's.

A case is a folder: the weights as the reference saves them, `case.json` (arguments of `convert`), `arrays.npz` with `ids`
[batch, length] and the reference's answers to them, and `gradients.safetensors` of sum(tokens · weight) over real tokens.
"""

import json
import math
import pathlib

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from tests.parity import references

STORED = pathlib.Path(__file__).parent / "stored_text"


def randomize(model: nn.Module, seed: int) -> nn.Module:
    """Draws all weights away from their zeros and ones, those of attention so that it is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 25
            scale = float("norm" in name.lower() and name.endswith("weight"))
            parameter.copy_(noise * min(1.5 * fan_in**-0.5, 0.5) + scale)
    return model.eval()


def texts_of(seed: int, vocabulary: int, pad: int, lengths=(7, 5, 2)) -> torch.Tensor:
    """Random tokens [batch, length], filled up with `pad`, which no text holds."""
    draw = np.random.default_rng(seed)
    ids = np.full((len(lengths), max(lengths)), pad)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = draw.choice([i for i in range(vocabulary) if i != pad], length)
    return torch.from_numpy(ids)


def write(folder: pathlib.Path, seed: int, model: nn.Module, ids, pad: int, tokens, **more) -> None:
    """Writes answers and gradients of a case whose weights stand there already."""
    kept = (ids != pad)[:, :, None]
    weight = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(seed))
    torch.sum(tokens * weight * kept).backward()
    gradients = {name: p.grad for name, p in model.named_parameters(remove_duplicate=False) if p.grad is not None}
    save_file(
        {f"gradient/{n}": g.clone(memory_format=torch.contiguous_format) for n, g in gradients.items()},
        folder / "gradients.safetensors",
    )
    mean = torch.sum(tokens * kept, 1) / torch.sum(kept, 1)
    arrays = dict(ids=ids.int(), weight=weight, tokens=tokens * kept, first=tokens[:, 0], mean=mean, **more)
    np.savez_compressed(folder / "arrays.npz", **{name: value.detach().numpy() for name, value in arrays.items()})
    (folder / "case.json").write_text(json.dumps(dict(tower="text")) + "\n")


def huggingface(folder: pathlib.Path, seed: int, kind: str, *, task: bool = False, lengths=(7, 5, 2), **sizes) -> None:
    """transformers' XLM-R or BERT: tokens, and gradients of all weights.

    Args:
      folder: of the case.
      seed: of weights and texts.
      kind: "XLMRoberta", "Roberta" or "Bert".
      task: whether the file is that of a model for masked words, of which the encoder is a part.
      lengths: of the texts.
      **sizes: of its config.
    """
    import transformers

    roberta = kind != "Bert"
    keys = dict(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=12,
        type_vocab_size=1 if roberta else 2,
        layer_norm_eps=1e-5 if roberta else 1e-12,
        pad_token_id=1 if roberta else 0,
    )
    config = getattr(transformers, f"{kind}Config")(**{**keys, **sizes})
    whole = getattr(transformers, f"{kind}{'ForMaskedLM' if task else 'Model'}")(config)
    randomize(whole, seed)
    folder.mkdir(parents=True, exist_ok=True)
    whole.save_pretrained(folder)
    model = whole.base_model
    ids = texts_of(seed, config.vocab_size, config.pad_token_id, lengths)
    tokens = model(ids, attention_mask=(ids != config.pad_token_id).long()).last_hidden_state
    write(folder, seed, whole, ids, config.pad_token_id, tokens)


class Attention(nn.Module):
    """torchtext's MultiheadSelfAttention, batch first."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.input_projection, self.output_projection = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x, padding):
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2) for part in self.input_projection(x).chunk(3, -1)
        )
        scores = q @ k.transpose(2, 3) / math.sqrt(width // self.heads)
        weights = scores.masked_fill(padding[:, None, None], float("-inf")).softmax(-1)
        return self.output_projection((weights @ v).transpose(1, 2).reshape(batch, length, width))


class ResidualMlp(nn.Module):
    """torchtext's ResidualMLP, whose dropout has a number in the names of its layers."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, width))

    def forward(self, x):
        return x + self.mlp(x)


class Layer(nn.Module):
    """torchtext's TransformerEncoderLayer with normalize_before=False."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.attention, self.residual_mlp = Attention(width, heads), ResidualMlp(width, hidden)
        self.attention_layer_norm, self.final_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x, padding):
        return self.final_layer_norm(self.residual_mlp(self.attention_layer_norm(x + self.attention(x, padding))))


class Positions(nn.Module):
    """torchtext's PositionalEmbedding."""

    def __init__(self, rows: int, width: int, pad: int):
        super().__init__()
        self.embedding, self.pad = nn.Embedding(rows, width, pad), pad

    def forward(self, ids):
        kept = ids.ne(self.pad).long()
        return self.embedding(torch.cumsum(kept, 1) * kept + self.pad)


class Transformer(nn.Module):
    """torchtext's TransformerEncoder."""

    def __init__(self, vocabulary=40, rows=12, width=16, depth=2, heads=2, hidden=24, pad=1):
        super().__init__()
        self.pad = pad
        self.token_embedding = nn.Embedding(vocabulary, width, pad)
        self.positional_embedding = Positions(rows, width, pad)
        self.embedding_layer_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(Layer(width, heads, hidden) for _ in range(depth))

    def forward(self, ids):
        padding = ids.eq(self.pad)
        x = self.embedding_layer_norm(self.token_embedding(ids) + self.positional_embedding(ids))
        x = x * (1 - padding[:, :, None].type_as(x))
        for layer in self.layers:
            x = layer(x, padding)
        return x


def maws_clip(folder: pathlib.Path, seed: int, *, projection: int = 6, lengths=(7, 5, 2)) -> None:
    """MAWS-CLIP's file: timm's image tower, torchtext's text tower, projections and temperature; text features."""
    holder = nn.Module()
    holder.encoder = nn.Module()
    holder.encoder.transformer = Transformer()
    vision = references.timm_model(seed, image=8, patch=4, width=16, depth=1, heads=2, classes=0)
    model = nn.Module()
    model.vision_encoder, model.text_encoder = vision, holder
    model.vision_projection = nn.Parameter(torch.zeros(16, projection))
    model.text_projection = nn.Parameter(torch.zeros(16, projection))
    model.logit_scale = nn.Parameter(torch.zeros(()))
    randomize(model, seed)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({name: value.clone() for name, value in model.state_dict().items()}, folder / "weights.pt")
    ids = texts_of(seed, 40, 1, lengths)
    tokens = holder.encoder.transformer(ids)
    features = tokens[:, 0] @ model.text_projection
    write(folder, seed, model, ids, 1, tokens, projected=features)
    images = references.images_of(seed, 8)
    with torch.no_grad():
        cls = vision.forward_features(images)[:, 0]
        vision_features = dict(
            images=images.permute(0, 2, 3, 1), image_cls=cls, image_projected=cls @ model.vision_projection
        )
    arrays = dict(np.load(folder / "arrays.npz"))
    arrays |= {name: value.numpy() for name, value in vision_features.items()}
    np.savez_compressed(folder / "arrays.npz", **arrays)
    (folder / "case.json").write_text(json.dumps(dict(tower="text", heads=2)) + "\n")


def tokenizers_of(folder: pathlib.Path) -> None:
    """See `tokenizer_references`."""
    from tests.parity import tokenizer_references

    tokenizer_references.make(folder)


CASES = {
    "xlmr": lambda folder: huggingface(folder, 0, "XLMRoberta"),
    "bert": lambda folder: huggingface(folder, 1, "Bert"),
    "maws_clip": lambda folder: maws_clip(folder, 2),
    "tokenizers": tokenizers_of,
}


def main() -> None:
    references.define_torchvision_operators()
    for name, make in CASES.items():
        make(STORED / name)


if __name__ == "__main__":
    main()
