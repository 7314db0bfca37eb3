"""Generator of reference cases: random models of timm, transformers and torchvision, their weights and answers.

  python tests/parity/references.py            writes the stored cases again (needs the extra [torch])

A case is a folder: the weights as the reference saves them, `case.json` (arguments of `convert`), and `arrays.npz` with
`images` float32 [batch, height, width, 3] and the reference's answers to them. `checks.check` compares ours with it.
"""

import json
import pathlib

import numpy as np
import torch
from safetensors.torch import save_file

STORED = pathlib.Path(__file__).parent / "stored"


def define_torchvision_operators() -> None:
    """Lets torchvision's Python code be imported where its compiled part does not fit this build of PyTorch.

    timm imports torchvision. Its wheels outside PyTorch's own index are built for CUDA and cannot load their operators
    into a CPU build; naming the two that its Python code expects is enough, as no test uses them.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
    define_torchvision_operators.kept = library  # a library withdraws its definitions when it is collected


def randomize(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Draws all weights away from their zeros and ones; large enough that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = "norm" in name and name.endswith("weight") or "ln" in name and name.endswith("weight")
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
            parameter.copy_(noise * min(1.5 * fan_in**-0.5, 0.3) + float(scale))
    return model.eval()


def images_of(seed: int, side: int, batch: int = 2) -> torch.Tensor:
    """Random images [batch, 3, height, width] with structure larger than a patch, normalised."""
    generator = torch.Generator().manual_seed(1000 + seed)
    coarse = torch.randn(batch, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
    return smooth + 0.3 * torch.randn(batch, 3, side, side, generator=generator)


def write(folder: pathlib.Path, weights, arrays: dict, case: dict, suffix: str = "safetensors") -> None:
    """Writes a case; `images` among the arrays become [batch, height, width, 3]."""
    folder.mkdir(parents=True, exist_ok=True)
    if suffix == "safetensors":
        save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors")
    elif suffix == "npz":
        np.savez(folder / "weights.npz", **weights)
    else:
        torch.save(weights, folder / f"weights.{suffix}")
    out = {k: np.asarray(v.detach() if isinstance(v, torch.Tensor) else v, np.float32) for k, v in arrays.items()}
    out["images"] = out["images"].transpose(0, 2, 3, 1)
    np.savez_compressed(folder / "arrays.npz", **out)
    (folder / "case.json").write_text(json.dumps(case, indent=1) + "\n")


def timm_model(seed, *, pool="token", image=32, patch=8, width=48, depth=2, heads=3, classes=5, mlp_ratio=4.0, **more):
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=image,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        num_classes=classes,
        global_pool=pool,
        mlp_ratio=mlp_ratio,
        **more,
    )
    return randomize(model, seed)


def timm(folder: pathlib.Path, seed: int, *, resized: int = 0, suffix: str = "safetensors", **sizes) -> None:
    """timm's VisionTransformer: logits, and features where it has no head; after resizing its positions if asked."""
    model = timm_model(seed, **sizes)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    if resized:
        model.set_input_size(img_size=resized)
    images = images_of(seed, resized or sizes.get("image", 32))
    arrays = dict(images=images)
    with torch.no_grad():
        if sizes.get("classes", 5):
            arrays["logits"] = model(images)
        tokens = model.forward_features(images)
        if sizes.get("pool", "token") == "token":
            arrays |= dict(cls=tokens[:, 0], mean=tokens[:, 1:].mean(1))
        else:
            arrays["mean"] = model.fc_norm(tokens[:, 1:].mean(1))
    write(folder, weights, arrays, dict(heads=sizes.get("heads", 3), image_size=resized), suffix)


def huggingface_mae(
    folder: pathlib.Path, seed: int, *, saved: bool = True, normalize=True, image=24, patch=4, eps=1e-12, **sizes
):
    """transformers' ViTMAEForPreTraining: features, prediction and loss under given noise, gradients of all weights."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        image_size=image,
        patch_size=patch,
        norm_pix_loss=normalize,
        layer_norm_eps=eps,
        **{
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "decoder_hidden_size": 16,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 40,
            **sizes,
        },
    )
    tables = ("position_embeddings", "decoder_pos_embed")
    model = ViTMAEForPreTraining(config)
    kept = {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith(tables)}
    randomize(model, seed)
    with torch.no_grad():
        for name, value in kept.items():
            model.get_parameter(name).copy_(value)
    images = images_of(seed, image)
    noise = torch.rand(images.shape[0], (image // patch) ** 2, generator=torch.Generator().manual_seed(seed))
    out = model(images, noise=noise)
    out.loss.backward()
    gradients = {f"gradient/{n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        latent = model.vit(images, noise=noise).last_hidden_state
    arrays = dict(images=images, noise=noise, loss=out.loss[None], prediction=out.logits, latent=latent)
    if saved:
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder)
        weights = {}
    else:
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        (folder).mkdir(parents=True, exist_ok=True)
        config.save_pretrained(folder)
    save_file({n: g.contiguous() for n, g in gradients.items()}, folder / "gradients.safetensors")
    np_arrays = {k: v for k, v in arrays.items()}
    if weights:
        write(folder, weights, np_arrays, {}, "pth")
    else:
        write(folder, _load(folder / "model.safetensors"), np_arrays, {})


def _load(path: pathlib.Path) -> dict:
    from safetensors.torch import load_file

    return {name: value.clone() for name, value in load_file(path).items()}


def huggingface_vit(folder: pathlib.Path, seed: int, *, image=24, patch=8, labels=6) -> None:
    """transformers' ViTForImageClassification: logits."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=image,
        patch_size=patch,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=labels,
    )
    model = randomize(ViTForImageClassification(config), seed)
    images = images_of(seed, image)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    with torch.no_grad():
        arrays = dict(images=images, logits=model(images).logits)
    write(folder, _load(folder / "model.safetensors"), arrays, {})


def torchvision(folder: pathlib.Path, seed: int, *, swag: bool = False, resized: int = 0) -> None:
    """torchvision's VisionTransformer, SWAG's descendant; `swag` writes its weights under SWAG's names and shapes."""
    from torchvision.models import vision_transformer as tv

    sizes = dict(patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=5)
    model = randomize(tv.VisionTransformer(image_size=32, **sizes), seed)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    if resized:
        moved = tv.interpolate_embeddings(resized, 8, dict(weights))
        model = tv.VisionTransformer(image_size=resized, **sizes).eval()
        model.load_state_dict(moved)
    if swag:
        names = {"encoder_layer_": "layer_", "heads.head": "head.layers.head", "mlp.0": "mlp.linear_1"}
        names["mlp.3"] = "mlp.linear_2"
        for ours, theirs in names.items():
            weights = {key.replace(ours, theirs): value for key, value in weights.items()}
        weights["encoder.pos_embedding"] = weights["encoder.pos_embedding"].transpose(0, 1)
    images = images_of(seed, resized or 32)
    with torch.no_grad():
        arrays = dict(images=images, logits=model(images))
    write(folder, weights, arrays, dict(heads=4, image_size=resized), "pth" if swag else "safetensors")


def big_vision(folder: pathlib.Path, seed: int, *, forerunner: bool = False) -> None:
    """An .npz under big_vision's names, or those of google-research/vision_transformer, as timm's loader reads it."""
    width, heads, mlp, patch, grid, classes = 48, 4, 96, 8, 4, 5
    sizes = dict(width=width, heads=heads, patch=patch, image=patch * grid, classes=classes, mlp_ratio=mlp / width)
    # big_vision's class token joins after the positions were added.
    model = timm_model(seed, no_embed_class=not forerunner, **sizes)
    rng = np.random.default_rng(seed)
    flat = {}
    prefix = "" if forerunner else "params/"

    def put(name, *shape):
        noise = rng.normal(size=shape) * min(1.5 * np.prod(shape[:-1]) ** -0.5 if len(shape) > 1 else 0.3, 0.3)
        flat[prefix + name] = (noise + name.endswith("scale")).astype(np.float32)

    put("embedding/kernel", patch, patch, 3, width)
    put("embedding/bias", width)
    put("cls", 1, 1, width)
    put("Transformer/posembed_input/pos_embedding" if forerunner else "pos_embedding", 1, grid**2 + forerunner, width)
    norms, attention, dense = ("LayerNorm_0", "LayerNorm_1"), "MultiHeadDotProductAttention_0", "MlpBlock_0"
    if forerunner:
        norms, attention, dense = ("LayerNorm_0", "LayerNorm_2"), "MultiHeadDotProductAttention_1", "MlpBlock_3"
    for i in range(2):
        block = f"Transformer/encoderblock_{i}"
        for norm in norms:
            put(f"{block}/{norm}/scale", width)
            put(f"{block}/{norm}/bias", width)
        for part in ("query", "key", "value"):
            put(f"{block}/{attention}/{part}/kernel", width, heads, width // heads)
            put(f"{block}/{attention}/{part}/bias", heads, width // heads)
        put(f"{block}/{attention}/out/kernel", heads, width // heads, width)
        put(f"{block}/{attention}/out/bias", width)
        put(f"{block}/{dense}/Dense_0/kernel", width, mlp)
        put(f"{block}/{dense}/Dense_0/bias", mlp)
        put(f"{block}/{dense}/Dense_1/kernel", mlp, width)
        put(f"{block}/{dense}/Dense_1/bias", width)
    put("Transformer/encoder_norm/scale", width)
    put("Transformer/encoder_norm/bias", width)
    put("head/kernel", width, classes)
    put("head/bias", classes)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "weights.npz", **flat)
    model.load_pretrained(str(folder / "weights.npz"))
    images = images_of(seed, patch * grid)
    with torch.no_grad():
        write(folder, flat, dict(images=images, logits=model(images)), {}, "npz")


def positions(folder: pathlib.Path, seed: int, *, old: int = 4, new: tuple[int, ...] = (3, 4, 7, 9), width: int = 4):
    """Tables [old², width] resized by the calls that each code base makes."""
    table = torch.randn(old * old, width, generator=torch.Generator().manual_seed(seed))
    grid = table.reshape(1, old, old, width).permute(0, 3, 1, 2)
    arrays = dict(table=table)
    for side in new:
        for method, kwargs in (
            ("mae", dict(align_corners=False)),
            ("timm", dict(antialias=True)),
            ("swag", dict(align_corners=True)),
        ):
            out = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic", **kwargs)
            arrays[f"{method}_{side}"] = out.permute(0, 2, 3, 1).reshape(-1, width)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "arrays.npz", **{name: value.numpy() for name, value in arrays.items()})


def adapters(folder: pathlib.Path, seed: int) -> None:
    """Adapters on timm's VisionTransformer; see `adapter_references`."""
    from tests.parity import adapter_references

    adapter_references.adapters(folder, seed)


CASES = {
    "timm_token": lambda folder: timm(folder, 0),
    "timm_mean": lambda folder: timm(folder, 1, pool="avg", patch=7, image=28, width=32, heads=2),
    "timm_resized": lambda folder: timm(folder, 2, width=32, heads=2, resized=56),
    "huggingface_mae": lambda folder: huggingface_mae(folder, 3),
    "huggingface_vit": lambda folder: huggingface_vit(folder, 4),
    "torchvision": lambda folder: torchvision(folder, 5, resized=48),
    "swag": lambda folder: torchvision(folder, 6, swag=True, resized=24),
    "big_vision": lambda folder: big_vision(folder, 7),
    "vision_transformer": lambda folder: big_vision(folder, 8, forerunner=True),
    "positions": lambda folder: positions(folder, 9),
    "adapters": lambda folder: adapters(folder, 10),
}


def main() -> None:
    define_torchvision_operators()
    for name, make in CASES.items():
        make(STORED / name)


if __name__ == "__main__":
    main()
