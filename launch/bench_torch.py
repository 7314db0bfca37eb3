#!/usr/bin/env python
"""Compares the speed of training here with PyTorch's: the same model, batch and optimizer, both sides in turn.

  python launch/bench_torch.py                  # MAE ViT-S/16, batch 8, float32, on two CPU threads
  python launch/bench_torch.py --device=gpu     # supervised and MAE ViT-L/16 and ViT-H/14 in bfloat16
  python launch/bench_torch.py --device=gpu --cases=mae-L/16 --batch=64

Each side is a process of its own, so that neither meets the other's threads, allocator or leftovers; both are pinned
to the same CPUs. Only one works at a time: they take turns of a few steps, so that whatever else slows the machine
slows both, and each round gives one ratio of images/s. A step is forward, backward and AdamW on a batch that is
already there; the first of each turn is not timed. Here it is the step that `train` runs; in PyTorch, Hugging Face's
ViTMAEForPreTraining or timm's ViT, with scaled-dot-product attention and fused AdamW and, on a GPU, autocast and
torch.compile.

The last line is `ratio MEDIAN MIN MAX`, images/s here over PyTorch's, over all rounds of all cases. Needs the extra
[torch]; timm only for the supervised cases.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import multiprocessing
import os
import statistics
import sys
import time

import tqdm

from mae_pp_jax.core import allocator

WARM_UP_STEPS = 3
MATMUL_SIDE, MATMUL_REPEATS = 8192, 50
LR, BETAS, WEIGHT_DECAY = 1.5e-4, (0.9, 0.95), 0.05
SIZES = {"S/16": (384, 12, 6), "L/16": (1024, 24, 16), "H/14": (1280, 32, 16)}  # width, depth, heads


@dataclasses.dataclass(frozen=True)
class Case:
    """One model on one device.

    Attributes:
      kind: "mae" (decoder 512 wide, 8 blocks; 75% masked; normalised targets) or "supervised" (1000 classes).
      size: as in `config.model.size`.
      batch: images per step.
      device: "cpu" or "gpu".
      threads: CPU threads of each side.
    """

    kind: str
    size: str
    batch: int
    device: str
    threads: int


CASES = {
    "cpu": {"mae-S/16": 8},
    "gpu": {"supervised-L/16": 128, "supervised-H/14": 64, "mae-L/16": 256, "mae-H/14": 128},
}


def ours(case: Case):
    """(function that runs some steps, function that runs large matmuls, model FLOPs of a step)."""
    os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[case.device]
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # leaves memory to the other side
    import jax
    import jax.numpy as jnp

    from mae_pp_jax.benchmarking import train_step
    from mae_pp_jax.core import partition
    from mae_pp_jax.core import program as program_lib
    from mae_pp_jax.stages import registry

    # On a CPU computing again is faster than keeping; PyTorch's side keeps everything everywhere.
    remat = {"cpu": "dots", "gpu": "none"}[case.device]
    positions = "sincos" if case.kind == "mae" else "learned"
    model = dict(size=case.size, positions=positions, pool="cls", remat=remat)
    mapping = dict(
        stage="mae" if case.kind == "mae" else "classify",
        train_for="1000 steps",
        global_batch=case.batch,
        declared=dict(records=1_281_167, classes=1000),
        model=model if case.kind == "mae" else model | dict(drop_path=0.0),
        optim=dict(lr=LR, lr_batch=0, b1=BETAS[0], b2=BETAS[1], weight_decay=WEIGHT_DECAY),
    )
    if case.kind == "supervised":
        mapping |= dict(layer_decay=1.0, label_smoothing=0.0)
    stage = registry.create(registry.resolve(mapping))
    mesh = partition.make_mesh(stage.config.mesh, jax.devices()[:1])
    step = train_step.TrainStep(program_lib.make(stage, mesh))
    square = jnp.ones((MATMUL_SIDE, MATMUL_SIDE), jnp.bfloat16)
    product = jax.jit(lambda x: jax.lax.fori_loop(0, MATMUL_REPEATS, lambda _, y: x @ y, x))
    return step.run, lambda: jax.block_until_ready(product(square)), stage.train_flops_per_example() * case.batch


def theirs(case: Case):
    """As `ours`, in PyTorch; it leaves the FLOPs to the other side."""
    os.environ["OMP_NUM_THREADS"] = str(case.threads)
    import torch

    torch.set_num_threads(case.threads)
    device = torch.device("cuda" if case.device == "gpu" else "cpu")
    images = torch.randn(case.batch, 3, 224, 224, device=device)
    labels = torch.randint(0, 1000, (case.batch,), device=device)
    model = _hugging_face_mae(case) if case.kind == "mae" else _timm_vit(case)
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)
    forward = torch.compile(model) if case.device == "gpu" else model

    def loss():
        if case.kind == "mae":
            return forward(images).loss
        return torch.nn.functional.cross_entropy(forward(images).float(), labels)

    def run(steps: int) -> None:
        for _ in range(steps):
            with torch.autocast("cuda", torch.bfloat16, enabled=case.device == "gpu"):
                value = loss()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        value.item()  # waits for the device

    def matmuls() -> None:
        x = torch.ones(MATMUL_SIDE, MATMUL_SIDE, dtype=torch.bfloat16, device=device)
        y = x
        for _ in range(MATMUL_REPEATS):
            y = x @ y
        torch.cuda.synchronize()

    return run, matmuls, None


def _hugging_face_mae(case: Case):
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    width, depth, heads = SIZES[case.size]
    config = ViTMAEConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        image_size=224,
        patch_size=int(case.size.split("/")[1]),
        decoder_hidden_size=512,
        decoder_num_hidden_layers=8,
        decoder_num_attention_heads=16,
        decoder_intermediate_size=2048,
        mask_ratio=0.75,
        norm_pix_loss=True,
        attn_implementation="sdpa",
    )
    return ViTMAEForPreTraining(config)


def _timm_vit(case: Case):
    import timm  # needs torchvision, which not every build of PyTorch has beside it

    names = {"L/16": "vit_large_patch16_224", "H/14": "vit_huge_patch14_224"}
    return timm.create_model(names[case.size], num_classes=1000)


def _side(pipe, make, case: Case) -> None:
    """One side's process: gets ready, then answers each request (what, steps) with the seconds it took."""
    if hasattr(os, "sched_setaffinity") and case.device == "cpu":
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: case.threads])
    run, matmuls, flops = make(case)
    run(WARM_UP_STEPS)
    pipe.send(flops)
    while (request := pipe.recv()) is not None:
        what, steps = request
        matmuls() if what == "matmuls" else run(1)  # the first after a pause gets caches and memory back, untimed
        began = time.perf_counter()
        matmuls() if what == "matmuls" else run(steps)
        pipe.send(time.perf_counter() - began)


class Side:
    """A side's process, started and warmed up.

    Args:
      make: `ours` or `theirs`.
      case: what to train.
    """

    def __init__(self, make, case: Case):
        context = multiprocessing.get_context("spawn")
        # As `train` and `bench` start; PyTorch's side is left as it comes.
        tuned = make is ours and allocator.VARIABLE not in os.environ
        if tuned:
            os.environ[allocator.VARIABLE] = allocator.SETTING
        self._pipe, child = context.Pipe()
        self._process = context.Process(target=_side, args=(child, make, case), daemon=True)
        self._process.start()
        if tuned:
            del os.environ[allocator.VARIABLE]
        child.close()
        self.flops = self._receive()

    def seconds(self, what: str, steps: int = 0) -> float:
        """How long `steps` steps take, or the large matmuls."""
        self._pipe.send((what, steps))
        return self._receive()

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join()

    def _receive(self):
        try:
            return self._pipe.recv()
        except EOFError:
            sys.exit("bench_torch: a side died, see above")


def compare(name: str, case: Case, rounds: int, steps: int) -> list[float]:
    """Runs one case and prints its line; returns the ratio of each round."""
    with tqdm.tqdm(total=rounds, desc=f"{name}: starting", dynamic_ncols=True, disable=None) as bar:
        here, there = Side(ours, case), Side(theirs, case)
        bar.set_description(name)
        fast, slow = [], []
        for index in range(rounds):
            for side, times in ((here, fast), (there, slow))[:: 1 if index % 2 else -1]:
                times.append(side.seconds("steps", steps) / steps)
            bar.update()
    ratios = [theirs_ / ours_ for ours_, theirs_ in zip(fast, slow, strict=True)]
    line = f"{name}, batch {case.batch}: {case.batch / statistics.median(fast):,.2f} images/s here, "
    line += f"{case.batch / statistics.median(slow):,.2f} in PyTorch, ratio {statistics.median(ratios):.3f}"
    if case.device == "gpu":
        rate = 2 * MATMUL_SIDE**3 * MATMUL_REPEATS / min(here.seconds("matmuls"), there.seconds("matmuls"))
        shares = (here.flops / statistics.median(times) / rate for times in (fast, slow))
        line += f"; matmuls {rate / 1e12:,.0f} TFLOP/s, of which {{:.1%}} here, {{:.1%}} in PyTorch".format(*shares)
    print(line, flush=True)
    here.close()
    there.close()
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=tuple(CASES), default="cpu")
    parser.add_argument("--cases", help="names, separated by commas; all of the device when not given")
    parser.add_argument("--batch", type=int, help="images per step, in place of each case's own")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side (7)")
    parser.add_argument("--steps", type=int, help="steps a turn (1 on a CPU, 20 on a GPU)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each side (2)")
    args = parser.parse_args()
    known = CASES[args.device]
    names = args.cases.split(",") if args.cases else list(known)
    for name in names:
        if name not in known:
            parser.error(f"--cases: {name} is none of {', '.join(known)}")
    today = datetime.datetime.now(datetime.UTC).date()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "torch", "transformers"))
    print(f"{today}, {args.device}, {args.threads} CPU threads, {versions}", flush=True)
    ratios = []
    for name in names:
        kind, size = name.split("-")
        case = Case(kind, size, args.batch or known[name], args.device, args.threads)
        ratios += compare(name, case, args.rounds, args.steps or {"cpu": 1, "gpu": 20}[args.device])
    print(f"ratio {statistics.median(ratios):.3f} {min(ratios):.3f} {max(ratios):.3f}")


if __name__ == "__main__":
    main()
