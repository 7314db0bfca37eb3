"""The suite `image`: linear classifiers, nearest neighbours and few labels on frozen features, robustness of classifiers.

Every task is kept in RUN/suites/TASK_STEP_HASH.json when it is done; the same task of the same checkpoint, data and
settings is not measured again, and a suite that was stopped goes on with the next task.
"""

import dataclasses
import functools
import hashlib
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import threadpoolctl

from mae_pp_jax.core import checkpoint, partition, run_folder, storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.partition import MeshConfig
from mae_pp_jax.data import evals, few_shot, fields
from mae_pp_jax.data.source import digest, few_shot_indices, open_source, split_seeds
from mae_pp_jax.evaluation.probes import holdout, knn, linear_grid, logistic, ridge, scoring
from mae_pp_jax.models.patches import height_width
from mae_pp_jax.stages import registry
from mae_pp_jax.stages.shared import feature_sets
from mae_pp_jax.stages.shared.feature_sets import FeatureSet
from mae_pp_jax.suites import config as suite_config
from mae_pp_jax.suites.config import LinearConfig, LowShotConfig, SuiteConfig

log = logging.getLogger(__name__)

VERSION = 1  # of how tasks are measured
_SMALL = 1e8  # multiplications of a step of logistic regression up to which one thread is fastest
Column = dict[
    str, Any
]  # task, over ("seeds", "splits" or None), values: measure → one number each, and what was chosen


@dataclasses.dataclass(frozen=True)
class Judged:
    """The images that classifiers are fitted on and measured on, as features."""

    train: FeatureSet
    test: FeatureSet
    train_source: fields.Source
    classes: int

    @property
    def mark(self) -> dict[str, str]:
        """What tells these features and labels from others."""
        labels = (np.ascontiguousarray(own.labels).tobytes() for own in (self.train, self.test))
        return dict(
            train=self.train.mark, test=self.test.mark, labels=hashlib.sha256(b"".join(labels)).hexdigest()[:16]
        )


def config_for(run: storage.Path, mapping: Mapping, overrides: dict[str, str] | None = None) -> SuiteConfig:
    """The suite's config for a run, see `config.for_run`.

    Raises:
      UserError: no run there, or a key or value that the suite does not have.
    """
    meta = checkpoint.meta(run, checkpoint.find(run, field="--workdir"))
    own = registry.stage_class(meta["config"]).Config.upgrade(meta["config"])
    return suite_config.for_run(own, bool(meta["dataset"]), str(run), mapping, overrides)


def judge(
    run: storage.Path,
    config: SuiteConfig,
    robustness: Callable[[dict], list[Column]] | None = None,
    *,
    place: storage.Path | None = None,
) -> dict:
    """Measures a run's newest checkpoint.

    Args:
      run: folder of the run.
      config: what is measured.
      robustness: measures a classifier on its evaluation sets and those of `config.robustness`; None: left out.
      place: folder in which features and results of tasks are kept; None: the run's.

    Returns:
      `run`, `step`, `stage`, `model`, `dataset`, `columns` (a list of `Column`), `seconds` of each task.

    Raises:
      UserError: no encoder, no labels, or settings that do not fit the data.
      RunStopped: too many unreadable images, or features that are not finite.
    """
    step = checkpoint.find(run, field="--workdir")
    meta = checkpoint.meta(run, step)
    if "model" not in meta["config"]:
        raise UserError(f"--workdir: {run} is a run of stage '{meta['config']['stage']}' and holds no image encoder")
    place = place or run
    storage.check_writable(place / "suites", "--workdir", folder=True)
    judged, tasks = None, {}
    if set(config.evals) & {"linear", "knn", "low_shot"}:
        judged = _judged(run, step, meta, config, place)
        tasks = _tasks(judged, config)
    columns, seconds = [], {}
    for name, (settings, measure) in tasks.items():
        key = dict(task=name, version=VERSION, features=judged.mark, seed=config.seed, settings=settings)
        columns += _once(place, step, key, measure, seconds)
    if "robustness" in config.evals and robustness is not None:
        if meta["config"]["stage"] == "classify":
            sets = dataclasses.asdict(config)["robustness"]
            columns += robustness(sets)
        else:
            log.info("robustness: left out, %s is no classifier (stage '%s')", run, meta["config"]["stage"])
    return dict(
        run=str(run),
        step=step,
        stage=meta["config"]["stage"],
        model=meta["config"]["model"]["size"],
        lineage=meta["lineage"],
        checkpoint_sha256=checkpoint.sha256(run, step),
        dataset=_facts(config, judged) if judged else {},
        columns=columns,
        seconds=seconds,
    )


def _judged(run: storage.Path, step: int, meta: dict, config: SuiteConfig, place: storage.Path) -> Judged:
    """Opens the data and gets the features of both parts of it."""
    data = config.data.opened()
    train_source = open_source(data, data.train_split)
    names = evals.names_of(train_source)
    if not names["label"]:
        raise UserError(f"--data: {data.name} has no labels; name a labelled dataset, as in --data=cifar10")
    test_source = evals.open_eval_source(data, config.test, evals.Known(names, needed=("label",)))
    own = height_width(meta["config"]["data"]["image_size"])
    how = feature_sets.How(
        image_size=config.data.size or own,
        pool=None if config.data.pool == "auto" else config.data.pool,
        dtype=config.data.dtype,
        batch=config.data.batch,
        threads=config.data.threads,
        max_unreadable=config.data.max_unreadable,
    )
    mesh = partition.make_mesh(MeshConfig(rules="replicate"))
    of = functools.partial(feature_sets.of, run, step, config=config.test, how=how, mesh=mesh, place=place)
    train, test = of(source=train_source, name="train"), of(source=test_source, name="test")
    for name, found in (("train", train), ("test", test)):
        if found.unreadable or found.unlabelled:
            counts = f"{found.unreadable:,} that cannot be read, {found.unlabelled:,} without a label"
            log.warning("%s: images left out: %s", name, counts)
    return Judged(train, test, train_source, len(names["label"]))


def _tasks(judged: Judged, config: SuiteConfig) -> dict[str, tuple[dict, Callable[[], list[Column]]]]:
    """Name of a task → (its settings, what measures it), in the order of the table."""
    tasks = {}
    if "linear" in config.evals:
        measure = functools.partial(_linear, judged, config.linear, config.seed)
        tasks["linear"] = dataclasses.asdict(config.linear), measure
    if "knn" in config.evals:
        many, most = config.knn.neighbours, len(judged.train.labels)
        if few := [k for k in many if k > most]:
            log.info("knn: %s neighbours left out: there are %d training images", ", ".join(map(str, few)), most)
        ks = tuple(k for k in many if k <= most)
        settings = dict(dataclasses.asdict(config.knn), neighbours=ks)
        if ks:
            tasks["knn"] = settings, functools.partial(_knn, judged, ks, config.knn.temperature)
    if "low_shot" in config.evals:
        _check_shots(judged, config.low_shot)
        for shots in config.low_shot.shots:
            settings = {**dataclasses.asdict(config.low_shot), "shots": shots, **_listed(config.low_shot, shots)}
            measure = functools.partial(_low_shot, judged, config.low_shot, shots, config.seed)
            tasks[f"{shots}-shot"] = settings, measure
    return tasks


def _listed(config: LowShotConfig, shots: int) -> dict[str, str]:
    """What tells the content of split files from others."""
    if not config.splits_from:
        return {}
    files = [few_shot.split_file(config.splits_from, shots, split, config.splits) for split in range(config.splits)]
    return dict(splits_from=digest(*map(storage.read_bytes, files)))


def _check_shots(judged: Judged, config: LowShotConfig) -> None:
    counts = np.bincount(judged.train.labels, minlength=judged.classes)
    for shots in config.shots:
        if shots > counts.max():
            raise UserError(
                f"config.low_shot.shots: {shots} images per class, but the largest class has {counts.max()}; use fewer"
            )
        few_shot.tell_small_classes(judged.train.labels, shots, fields.names(judged.train_source, "label"))


def _once(
    place: storage.Path, step: int, key: dict, measure: Callable[[], list[Column]], seconds: dict[str, float]
) -> list[Column]:
    """What a task found, measured now unless it has been before; `seconds` gets how long it took."""
    task, mark = key["task"], hashlib.sha256(storage.json_text(key).encode()).hexdigest()[:8]
    file = place / "suites" / f"{task}_{step}_{mark}.json"
    if storage.is_file(file):
        found = storage.read_json(file)
    else:
        began = time.monotonic()
        columns = measure()
        found = dict(key, columns=columns, seconds=time.monotonic() - began, revision=run_folder.code_revision())
        storage.make_folder(file.parent)
        storage.write_json(file, found)
        log.info("%s: %s", place, "; ".join(f"{c['task']} {np.mean(c['values']['accuracy']):.4f}" for c in columns))
    seconds[task] = found["seconds"]
    return found["columns"]


def _column(task: str, over: str | None, found: Sequence[Mapping[str, float]], **chosen) -> Column:
    """A column of the table from measures of each seed or split."""
    values = {name: [float(own[name]) for own in found] for name in found[0]}
    return dict(task=task, over=over, values=values, chosen=chosen)


def _linear(judged: Judged, config: LinearConfig, seed: int) -> list[Column]:
    """The setting that is best on a held-out part of train, fitted on all of train with several seeds."""
    train, test, classes = judged.train, judged.test, judged.classes
    settings = list(itertools.product(config.learning_rates, config.weight_decays))
    best, chosen = settings[0], {}
    length = dict(epochs=config.epochs, warmup=config.warmup, batch=config.batch)
    if len(settings) > 1:
        try:
            fit, held = holdout.stratified(train.labels, config.held_out, seed)
        except ValueError as error:
            raise UserError(f"config.linear: settings cannot be chosen by a part of train: {error}") from error
        part = holdout.Part(train.features, fit)
        heads = linear_grid.train(part, train.labels[fit], classes, settings, seed=seed, **length)
        found = linear_grid.measure(heads, holdout.Part(train.features, held), train.labels[held])
        # The lower loss decides between equals; NaN sorts last.
        at = int(np.lexsort((found["loss"], -found["accuracy"]))[0])
        best, chosen = settings[at], dict(held_out_accuracy=float(found["accuracy"][at]))
        if best[0] in (max(config.learning_rates), min(config.learning_rates)):
            log.info("linear: the best learning rate, %g, is at the edge of config.linear.learning_rates", best[0])
    finals = []
    for own in range(seed, seed + config.seeds):
        heads = linear_grid.train(train.features, train.labels, classes, [best], seed=own, **length)
        found = linear_grid.measure(heads, test.features, test.labels)
        finals.append({name: float(values[0]) for name, values in found.items()})
    return [_column("linear", "seeds", finals, learning_rate=best[0], weight_decay=best[1], **chosen)]


def _knn(judged: Judged, ks: Sequence[int], temperature: float) -> list[Column]:
    train, test = judged.train, judged.test
    found = knn.measure(
        *(train.features, train.labels, test.features, test.labels),
        classes=judged.classes,
        ks=ks,
        temperature=temperature,
    )
    return [_column(f"{k}-NN", None, [own]) for k, own in found.items()]


def _low_shot(judged: Judged, config: LowShotConfig, shots: int, seed: int) -> list[Column]:
    """Both classifiers on each split; penalties are chosen by training images that were not drawn, never by test."""
    found: dict[str, list] = {"logistic": [], "ridge": []}
    penalties = dict(logistic=config.logistic_l2, ridge=config.ridge_l2)
    chosen: dict[str, list] = {name: [] for name in found}
    # Threads that share a product of microseconds wait for one another a hundred times as long.
    small = shots * judged.classes**2 * judged.train.features.shape[1] < _SMALL
    with threadpoolctl.threadpool_limits(1 if small else None):
        for rows, others in _splits(judged, config, shots, seed):
            for name, (l2, measures) in _of_split(judged, rows, others, penalties).items():
                found[name].append(measures)
                chosen[name].append(l2)
    return [_column(f"{shots}-shot ({name})", "splits", own, l2=chosen[name]) for name, own in found.items()]


def _splits(judged: Judged, config: LowShotConfig, shots: int, seed: int):
    """(rows of the labelled images of a split, rows of others to choose by), of each split."""
    source, place = judged.train_source, np.full(len(judged.train_source), -1)
    place[judged.train.records] = np.arange(len(judged.train.records))
    labels = fields.labels(source)
    for number, own in enumerate(split_seeds(seed, config.splits)):
        if config.splits_from:
            file = few_shot.split_file(config.splits_from, shots, number, config.splits)
            drawn = few_shot.read_split(file, source, "config.low_shot.splits_from")
        else:
            drawn = few_shot_indices(labels, shots, seed=own)
        others = few_shot.rest(len(source), drawn, config.chosen_by, own)
        rows, others = (place[chosen][place[chosen] >= 0] for chosen in (drawn, others))  # those that can be read
        yield rows, others


def _of_split(judged: Judged, rows: np.ndarray, others: np.ndarray, penalties: Mapping[str, Sequence[float]]) -> dict:
    """Name of a classifier → (penalty, measures on test) for one split."""
    train, test, classes = judged.train, judged.test, judged.classes
    x, labels = np.asarray(train.features[rows]), train.labels[rows]
    standard, out = scoring.Standard(x), {}
    for name, fit, extended in (("logistic", logistic.fit, logistic.with_one), ("ridge", ridge.fit, ridge.with_bias)):
        weights = fit(standard(x), labels, classes, penalties[name])

        def accuracy(l2: float, features, labels, extended=extended, weights=weights) -> dict[str, float]:
            return scoring.accuracy(lambda x: extended(standard(x)) @ weights[l2], features, labels)

        best = max(weights)
        if len(weights) > 1:
            if not len(others):
                raise UserError(
                    f"config.low_shot.{name}_l2: every training image is drawn, so that none is left to choose a "
                    "penalty by; give one value, or fewer shots"
                )
            some, own = np.asarray(train.features[others]), train.labels[others]
            # Of equals the strongest penalty.
            best = max(sorted(weights, reverse=True), key=lambda l2: accuracy(l2, some, own)["accuracy"])
        out[name] = best, accuracy(best, test.features, test.labels)
    return out


def _facts(config: SuiteConfig, judged: Judged) -> dict:
    """What was measured on, for people and for the comparison of results."""

    def of(found: FeatureSet, split: str, name: str) -> dict:
        facts = dict(name=name, split=split, images=len(found.labels))
        return facts | dict(unreadable=found.unreadable, unlabelled=found.unlabelled)

    return dict(
        classes=judged.classes,
        train=of(judged.train, config.data.train_split, config.data.name),
        test=of(judged.test, config.test.split, config.test.data or config.data.name),
    )
