"""What the resampled order of a very large dataset costs: time to build, memory, time of one index, resume.

  python launch/bench_resampling.py --records=1e8

Simulates the statistics that `data/resampling.py` keeps of a dataset, the rarest hashtag of every image (2 bytes an
image, in a file that is mapped into memory), with counts that fall off by Zipf's law. Nothing is read or decoded.
"""

import argparse
import pathlib
import tempfile
import time

import numpy as np

from mae_pp_jax.data import orders, resampling

CHUNK = 2**22


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=float, default=1e8, help="simulated images (1e8)")
    parser.add_argument("--hashtags", type=int, default=28_000, help="hashtags (28,000)")
    parser.add_argument("--batch", type=int, default=4096, help="images per step (4,096)")
    parser.add_argument("--threshold", type=float, default=1e-4, help="share under which a hashtag is rare (1e-4)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        statistics = simulate(pathlib.Path(folder), int(args.records), args.hashtags)
        measure(statistics, args)


def simulate(folder: pathlib.Path, records: int, hashtags: int) -> resampling.TagStatistics:
    """The rarest hashtags of images that carry one each, hashtag k with chance proportional to 1 / (k + 10)."""
    chances = np.cumsum(1 / np.arange(10, hashtags + 10))
    rng = np.random.default_rng(0)
    rarest = np.lib.format.open_memmap(folder / "rarest.npy", "w+", np.min_scalar_type(hashtags), (records,))
    counts = np.zeros(hashtags, np.int64)
    for start in range(0, records, CHUNK):
        draws = rng.random(min(CHUNK, records - start), np.float32) * chances[-1]
        rarest[start : start + CHUNK] = np.minimum(np.searchsorted(chances, draws), hashtags - 1)
        counts += np.bincount(rarest[start : start + CHUNK], minlength=hashtags)
    rarest.flush()
    return resampling.TagStatistics(counts, np.load(folder / "rarest.npy", mmap_mode="r"))


def measure(statistics: resampling.TagStatistics, args) -> None:
    records = len(statistics.rarest)
    before = memory()
    began = time.perf_counter()
    factors = resampling.repeat_factors(statistics, "sqrt", args.threshold, 1.0)
    order = orders.Resampled(statistics.rarest, factors, seed=0)
    print(f"{records:,} images, {order.length:,} positions per pass ({order.length / records:.3f} per image)")
    print(f"built in {time.perf_counter() - began:.2f} s")
    private, mapped = (after - earlier for after, earlier in zip(memory(), before))
    print(f"memory: {private:.1f} MB of its own, {mapped:.1f} MB of the file of {2 * records / 1e6:.0f} MB mapped")

    rng = np.random.default_rng(1)
    steps = rng.integers(0, 3 * order.length // args.batch, 20).tolist()
    began = time.perf_counter()
    batches = [order.at(np.arange(step * args.batch, (step + 1) * args.batch)) for step in steps]
    print(f"one index: {(time.perf_counter() - began) / 20 / args.batch * 1e6:.1f} µs, in batches at random steps")

    again = orders.Resampled(statistics.rarest, factors, seed=0)
    began = time.perf_counter()
    for step, batch in zip(steps, batches):
        assert np.array_equal(again.at(np.arange(step * args.batch, (step + 1) * args.batch)), batch)
    print(f"a new process would resume at each of these steps with the same records, in {_each(began):.1f} ms")

    seen = np.bincount(statistics.rarest[np.concatenate(batches)], minlength=len(factors))
    drawn = seen / seen.sum()
    expected = np.append(statistics.counts, 0) * factors / order.length
    error = np.abs(drawn - expected).sum() / 2
    noise = np.sqrt(expected / seen.sum()).sum() / np.sqrt(2 * np.pi)
    print(f"share of each hashtag among {seen.sum():,} positions: {error:.4f} off in all, by chance {noise:.4f}")


def _each(began: float) -> float:
    return (time.perf_counter() - began) / 20 * 1e3


def memory() -> tuple[float, float]:
    """(memory of this process alone, mapped files in memory) in MB."""
    status = pathlib.Path("/proc/self/status").read_text()
    found = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith("Rss")}
    return int(found["RssAnon"]) / 1e3, int(found["RssFile"]) / 1e3


if __name__ == "__main__":
    main()
