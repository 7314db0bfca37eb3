"""open_clip's contrastive losses and their gradients, and the generator of what is stored of them.

  python tests/parity/contrastive.py            writes contrastive.npz again (needs the extra [torch])

`contrastive.npz` holds of each loss what it is given, `NAME/arguments/…` (`images` and `texts` float32 [batch, width]
of unit length, `log_scale`, `bias`), its mean over the batch `NAME/loss`, and in `NAME/images`, `NAME/texts`,
`NAME/log_scale` and `NAME/bias` the gradients of that mean, all computed by open_clip in float64.
"""

import pathlib

import jax
import numpy as np

from mae_pp_jax.ops import contrastive

STORED = pathlib.Path(__file__).parent / "contrastive.npz"
ARGUMENTS = ("images", "texts", "log_scale", "bias")
SETTINGS = {"softmax": (np.log(1 / 0.07), 0.0), "sigmoid": (np.log(10.0), -10.0)}  # as training begins


def ours(name: str):
    """The loss of this name with the same arguments: images, texts, log_scale, bias, mask, block."""
    if name == "sigmoid":
        return contrastive.sigmoid_loss
    return lambda images, texts, log_scale, bias, *more: contrastive.softmax_loss(images, texts, log_scale, *more)


def inputs(name: str, batch: int, width: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(batch, width))
    texts = images + 1.5 * rng.normal(size=(batch, width))
    images, texts = ((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (images, texts))
    log_scale, bias = map(np.float32, SETTINGS[name])
    return dict(zip(ARGUMENTS, (images, texts, log_scale, bias), strict=True))


def open_clip_answers(name: str, arguments: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The mean loss and its gradients, float64."""
    import torch
    from open_clip.loss import ClipLoss, SigLipLoss

    given = {key: torch.tensor(arguments[key], dtype=torch.float64, requires_grad=True) for key in ARGUMENTS}
    loss = {"softmax": ClipLoss, "sigmoid": SigLipLoss}[name]()
    mean = loss(given["images"], given["texts"], given["log_scale"].exp(), given["bias"])
    mean.backward()
    return {f"{name}/loss": mean.detach().numpy()} | {f"{name}/{key}": x.grad.numpy() for key, x in given.items()}


def differences(name: str, arrays: dict[str, np.ndarray], block: int = 7) -> dict[str, float]:
    """max |ours - theirs| / max |theirs| of the loss and of every gradient.

    That of the scale is Σ images · gradient of images, a sum in which most cancels: it is held against the sum of its
    terms without their signs. The softmax does not depend on the bias: its gradient is left out.
    """

    def mean(*arguments):
        (total, weight), _ = ours(name)(*arguments, None, block)
        return total / weight

    arguments = [arrays[f"{name}/arguments/{key}"] for key in ARGUMENTS]
    loss, gradients = jax.jit(jax.value_and_grad(mean, (0, 1, 2, 3)))(*arguments)
    found = {"loss": loss, **dict(zip(ARGUMENTS, gradients, strict=True))}
    if name == "softmax":
        del found["bias"]
    theirs = {key: arrays[f"{name}/{key}"] for key in found}
    sizes = {key: np.max(np.abs(x)) for key, x in theirs.items()}
    sizes["log_scale"] = np.sum(np.abs(np.sum(arguments[0] * theirs["images"], axis=1)))
    return {key: float(np.max(np.abs(found[key] - x)) / max(sizes[key], 1e-9)) for key, x in theirs.items()}


def case(name: str, batch: int = 23, width: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
    arguments = inputs(name, batch, width, seed)
    given = {f"{name}/arguments/{key}": value for key, value in arguments.items()}
    return given | open_clip_answers(name, arguments)


def main() -> None:
    from tests.parity import references

    references.define_torchvision_operators()
    np.savez_compressed(STORED, **case("softmax"), **case("sigmoid"))


if __name__ == "__main__":
    main()
