"""Compares the input pipeline with tf.data, or with timm, on the same JPEGs: decode, random crop, resize, batch.

  python launch/bench_input.py --images=imagenet_samples_250.zip
  python launch/bench_input.py --images=imagenet_samples_250.zip --augment
  python launch/bench_input.py --images=/path/to/photos --rounds=9 --batch=128 --encode=keep

The images (a zip or a folder of JPEGs) are encoded as `data build --encode` does, and written once, repeated to a few
thousand records, as a TFDS dataset: as array_record, which the pipeline reads by index, and as tfrecord, which tf.data
reads in order. The default, `restarts`, adds restart markers without loss (it needs jpegtran, of Debian's
libjpeg-turbo-progs); `keep` leaves the files as they are. Both sides read the same files, and make
the same kind of crops (area 20 to 100%, aspect ratio 3/4 to 4/3, drawn by the same function) in turns, each in a
process of its own on the same cores: ours through `pipeline.train_batches`, tf.data through `decode_and_crop_jpeg`,
which decodes only the crop, and bilinear resizing, with `num_parallel_calls` and `prefetch` set to AUTOTUNE; its boxes
are drawn beforehand. The first batches of each turn, in which buffers fill, are not timed.

--augment compares what finetuning reads: crops of 8 to 100% of the area and RandAugment, with timm's
`create_transform(224, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25)` on Pillow, which it calls in
a plain loop; both on one core. timm flips, normalises and erases there too; here that is done on the device, in the step.
It needs the extra [torch].

The last line is `ratio MEDIAN MIN MAX`: our images a second over the other side's, over the rounds.
"""

import argparse
import contextlib
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile

from mae_pp_jax.core import allocator
from mae_pp_jax.core.errors import UserError

SIDE = 224
SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
WARM_UP = 4  # batches
FORMATS = {"ours": "array_record", "tf.data": "tfrecord"}
POLICY, AUGMENTED_SCALE = "rand-m9-mstd0.5-inc1", (0.08, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="zip or folder of JPEGs")
    parser.add_argument(
        "--encode", default="restarts", help="as of `data build`: restarts (default), keep, jpeg:QUALITY"
    )
    parser.add_argument("--records", type=int, default=3000, help="records of the dataset, by repetition (3000)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (5)")
    parser.add_argument("--batch", type=int, default=64, help="images per batch (64)")
    parser.add_argument("--batches", type=int, default=30, help="batches timed in a turn (30)")
    parser.add_argument("--threads", type=int, default=0, help="our reader threads (0: the config's default)")
    parser.add_argument("--workdir", help="where the dataset is kept (default: a temporary folder)")
    parser.add_argument("--augment", action="store_true", help="with RandAugment, against timm, on one core each")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    with contextlib.ExitStack() as cleanup:
        if not args.workdir:
            args.workdir = cleanup.enter_context(tempfile.TemporaryDirectory())
        if args.side:
            if args.augment and hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            SIDES[args.side](args)
        else:
            try:
                compare(args)
            except UserError as error:
                parser.exit(error.exit_code, f"error: {error}\n")


def compare(args) -> None:
    """Lets the sides take turns and prints what each did."""
    prepare(args)
    other = "timm" if args.augment else "tf.data"
    ratios, ratios_of_cpu = [], []
    for number in range(args.rounds):
        speeds, speeds_of_cpu = {}, {}
        for side in ["ours", other][:: 1 if number % 2 else -1]:
            command = [sys.executable, __file__, *sys.argv[1:], f"--workdir={args.workdir}", f"--side={side}"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment(side))
            speeds[side], speeds_of_cpu[side], memory = map(float, done.stdout.split()[-3:])
            print(
                f"round {number + 1} {side:8} {speeds[side]:6.0f} images/s, {speeds_of_cpu[side]:6.0f} a second of "
                f"one core, peak memory {memory:5.0f} MiB",
                flush=True,
            )
        ratios.append(speeds["ours"] / speeds[other])
        ratios_of_cpu.append(speeds_of_cpu["ours"] / speeds_of_cpu[other])
    print(f"for the same time of the processor: {statistics.median(ratios_of_cpu):.3f}")
    print(f"ratio {statistics.median(ratios):.3f} {min(ratios):.3f} {max(ratios):.3f}")


def environment(side: str = "") -> dict[str, str]:
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    # `train` starts with this; TensorFlow is left as it comes.
    return quiet | {allocator.VARIABLE: allocator.SETTING} if side == "ours" else quiet


def prepare(args) -> None:
    """Writes the dataset in both formats."""
    os.environ.update(environment())
    import tensorflow_datasets as tfds

    from mae_pp_jax.data.building import encoding

    how = encoding.Encoding.parse(args.encode, max_side=0, min_side=1)
    files = read_jpegs(pathlib.Path(args.images))
    jpegs = [encoding.prepare(file, how)[0] for file in files]

    class Photographs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """The JPEGs over and over."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(encoding_format="jpeg")}
            features["label"] = tfds.features.ClassLabel(num_classes=1)
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(args.records):
                yield i, {"image": jpegs[i % len(jpegs)], "label": 0}

    tfds.disable_progress_bar()
    for file_format in FORMATS.values():
        folder = pathlib.Path(args.workdir) / file_format
        with contextlib.redirect_stdout(sys.stderr):
            Photographs(data_dir=folder).download_and_prepare(file_format=file_format)
    size, before = sum(map(len, jpegs)) / len(jpegs), sum(map(len, files)) / len(files)
    print(
        f"{len(jpegs)} JPEGs of {size:,.0f} bytes on average ({before:,.0f} before --encode={args.encode}), "
        f"repeated to {args.records:,} records"
    )


def read_jpegs(path: pathlib.Path) -> list[bytes]:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
        return [file.read_bytes() for file in files]
    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if n.lower().endswith((".jpg", ".jpeg")))
        return [archive.read(name) for name in names]


def open_records(args):
    from mae_pp_jax.data import source

    folder = pathlib.Path(args.workdir) / FORMATS["ours"] / "photographs" / "1.0.0"
    return source.open_source(source.DataConfig(name=str(folder)), "train")


def run_ours(args) -> None:
    from mae_pp_jax.data import images, orders, pipeline, randaugment

    records, policy = open_records(args), randaugment.parse(POLICY) if args.augment else None
    scale = AUGMENTED_SCALE if args.augment else SCALE

    def load(record, draws):
        image = images.random_resized_crop(record["image"], (SIDE, SIDE), draws, scale, RATIO)
        return {"image": policy(image, draws[images.CROP_DRAWS :], (124, 116, 104)) if policy else image}

    batches = pipeline.train_batches(
        records,
        orders.Shuffled(len(records), seed=0),
        load,
        {"image": ((SIDE, SIDE, 3), "uint8")},
        global_batch=args.batch,
        seed=0,
        draws=images.CROP_DRAWS + (policy.draws if policy else 0),
        threads=args.threads or None,
    )
    time_batches(batches, args)


def run_timm(args) -> None:
    import io
    import itertools

    import torch
    from PIL import Image

    sys.path.append(str(pathlib.Path(__file__).parents[1]))
    from tests.parity.references import define_torchvision_operators

    define_torchvision_operators()
    from timm.data import create_transform

    torch.set_num_threads(1)
    transform = create_transform(SIDE, is_training=True, auto_augment=POLICY, re_prob=0.25, re_mode="pixel")
    records = open_records(args)

    def load(index):
        with Image.open(io.BytesIO(records[index]["image"])) as image:
            return transform(image.convert("RGB"))

    indices = itertools.cycle(torch.randperm(len(records)).tolist())
    # As images with their channels last, which costs nothing.
    batches = (
        {"image": torch.stack([load(next(indices)) for _ in range(args.batch)]).movedim(1, -1)} for _ in iter(int, 1)
    )
    time_batches(batches, args)


def run_tf_data(args) -> None:
    import numpy as np
    import tensorflow as tf

    from mae_pp_jax.data import decode, images

    def encoded(record):
        return tf.io.parse_single_example(record, {"image": tf.io.FixedLenFeature((), tf.string)})["image"]

    def crop(record, box):
        image = tf.image.decode_and_crop_jpeg(encoded(record), box, channels=3)
        return tf.cast(tf.image.resize(image, (SIDE, SIDE)), tf.uint8)

    files = sorted(map(str, (pathlib.Path(args.workdir) / FORMATS["tf.data"]).rglob("*.tfrecord*")))
    records = tf.data.TFRecordDataset(files)
    headers = [decode.read_jpeg(data) for data in records.map(encoded).as_numpy_iterator()]
    draws = np.random.default_rng(0).random((len(headers), images.CROP_DRAWS))
    boxes = [images.random_box(h.height, h.width, d, SCALE, RATIO) for h, d in zip(headers, draws)]
    batches = (
        tf.data.Dataset.zip(records, tf.data.Dataset.from_tensor_slices(np.array(boxes, np.int32)))
        .repeat()
        .map(crop, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
        .batch(args.batch)
        .prefetch(tf.data.AUTOTUNE)
    )
    time_batches(({"image": image} for image in batches.as_numpy_iterator()), args)


def time_batches(batches, args) -> None:
    """Prints images a second, images a second of processor time, and the peak memory of this process in MiB."""
    for _ in range(WARM_UP):
        next(batches)
    began, busy = time.perf_counter(), time.process_time()
    for _ in range(args.batches):
        assert next(batches)["image"].shape == (args.batch, SIDE, SIDE, 3)
    images = args.batches * args.batch
    speeds = images / (time.perf_counter() - began), images / (time.process_time() - busy)
    print(*speeds, peak_memory())
    sys.stdout.flush()
    os._exit(0)  # readers are in the middle of batches that nobody wants


def peak_memory() -> float:
    """Peak memory of this process in MiB (not `ru_maxrss`, which a process inherits from the one that started it)."""
    status = pathlib.Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else ()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), math.nan)


SIDES = {"ours": run_ours, "tf.data": run_tf_data, "timm": run_timm}

if __name__ == "__main__":
    main()
