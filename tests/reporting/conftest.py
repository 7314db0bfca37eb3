"""A pipeline's folder as its runs leave it, without training: the report reads files, so files are all it needs."""

import json
import math

import cv2
import numpy as np
import pytest

INITS = {"random": (None, 0.80), "MAE": ("mae", 0.94), "WSP": ("wsp", 0.92), "MAE→WSP": ("mae_wsp", 0.96)}


def make_pipeline(folder, *, seeds=3, title="Demo", without=()):
    """Writes four initialisations × {finetune, linear, 5-shot}; runs named in `without` are planned but not run."""
    stages = [
        dict(name="mae", stage="mae", init_from=None, report=None),
        dict(name="wsp", stage="wsp", init_from=None, report=None),
        dict(name="mae_wsp", stage="wsp", init_from="mae", report=None),
    ]
    for init, (source, _) in INITS.items():
        for stage, task in (("classify", "finetune"), ("linear", "linear"), ("low_shot", "5-shot")):
            for seed in range(1 if stage == "low_shot" else seeds):
                report = dict(init=init, task=task)
                name = f"{stage}_{source or 'random'}_s{seed}"
                stages.append(dict(name=name, stage=stage, init_from=source, report=report))
    folder.mkdir(parents=True, exist_ok=True)
    config = "configs/pipelines/demo.py:data=digits"
    described = dict(name="demo", config=config, title=title, data="digits", stages=stages)
    (folder / "pipeline.json").write_text(json.dumps(described))
    for index, stage in enumerate(stages):
        if stage["name"] not in without:
            make_run(folder / stage["name"], stage, index)
    return folder


def make_run(folder, stage, index):
    """Writes one run: config, curves, result and, for MAE, a reconstruction grid."""
    folder.mkdir()
    rng = np.random.default_rng(index)
    goal = INITS[stage["report"]["init"]][1] if stage["report"] else 0.9
    goal = min(0.99, goal + {"classify": 0.02, "low_shot": -0.15}.get(stage["stage"], 0) + 0.01 * rng.standard_normal())
    quality = {"mae": None, "wsp": "test/tag_precision"}.get(stage["stage"], "test/accuracy")
    rows = []
    for step in [] if stage["stage"] == "low_shot" else range(50, 1001, 50):
        seen, done = step * 256, 1 - math.exp(-step / 200)
        loss = 1.5 - 1.2 * done + 0.03 * rng.standard_normal()
        rows.append({"step": step, "images_seen": seen, "train/loss": loss, "train/learning_rate": 1e-3})
        if step % 100 == 0:
            found = {"test/loss": loss + 0.05, **({quality: goal * done} if quality else {})}
            rows.append({"step": step, "images_seen": seen, **found})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.json").write_text(json.dumps(dict(stage=stage["stage"], seed=index, model=dict(size="Ti"))))
    metrics = {quality: goal} if quality else {"test/loss": 0.3}
    if stage["stage"] == "low_shot":
        metrics |= {"test/accuracy_std": 0.02, "test/splits": 10}
    lineage = [dict(run=f"runs/demo/{stage['init_from']}", stage="mae", step=1000)] if stage["init_from"] else []
    result = dict(
        stage=stage["stage"],
        step=1000,
        images_seen=256_000,
        metrics=metrics,
        images_per_second=9876.5,
        wall_seconds=31.5,
        parameters=446_890,
        lineage=lineage,
        params_sha256="0" * 64,
        dataset=dict(name="digits"),
    )
    (folder / "result.json").write_text(json.dumps(result))
    if stage["stage"] == "mae":
        (folder / "pictures").mkdir()
        for step in (900, 1000):
            grid = rng.integers(0, 255, (208, 548), np.uint8)
            cv2.imwrite(str(folder / "pictures" / f"reconstruction_{step}.png"), grid)


@pytest.fixture(scope="session")
def build_pipeline():
    """`make_pipeline`, for tests that choose the folder."""
    return make_pipeline


@pytest.fixture
def pipeline(tmp_path):
    """`make_pipeline` bound to a fresh folder."""
    return lambda **kwargs: make_pipeline(tmp_path / "run", **kwargs)
