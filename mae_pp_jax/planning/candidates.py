"""Which meshes, microbatches and rematerialisation policies to compile, and which ones earlier results rule out."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from mae_pp_jax.planning import slices
from mae_pp_jax.planning.report import ADVISED_SHARE

MOST_MESHES = 4
MOST_MICROBATCHES = 32
LEAST_IMAGES = 8  # per device and microbatch; below that matrix units are not filled
LEAST_SHARD_BYTES = 8 * 2**20  # per device; smaller shards cost more cycles to gather than they save memory
STATE_SHARE = 0.5  # of HBM, for parameters, optimizer and gradients
CLOSE = 1.01  # op cycles within 1% count as equal; then fewer bytes between devices win


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What a search may change of a config."""

    data: int
    fsdp: int
    microbatches: int
    remat: str

    def overrides(self) -> dict[str, int | str]:
        """Dotted config key → value."""
        return {
            "mesh.data": self.data,
            "mesh.fsdp": self.fsdp,
            "microbatches": self.microbatches,
            "model.remat": self.remat,
        }


@dataclasses.dataclass(frozen=True)
class Space:
    """All candidates of a search, the most promising first.

    Attributes:
      candidates: meshes by rising `fsdp`; for each the fewest microbatches first, with recomputing a part before none
        and all.
      policies: recomputation policies, lightest first.
      images: per device and update.
      state_bytes: parameters, optimizer and average of the whole model.
      gradient_bytes: gradients of the whole model.
      limit: bytes of HBM that a candidate may take.
    """

    candidates: list[Candidate]
    policies: list[str]
    images: int
    state_bytes: int
    gradient_bytes: int
    limit: float

    def next(self, done: Mapping[Candidate, dict], running: Sequence[Candidate] = ()) -> Candidate | None:
        """The first candidate that is neither done, nor under way, nor ruled out."""
        return next(iter(self.open(done, running)), None)

    def open(self, done: Mapping[Candidate, dict], running: Sequence[Candidate] = ()) -> list[Candidate]:
        """Candidates that may still be worth compiling, in order."""
        out = [c for c in self.candidates if c not in done and c not in running]
        left = [c for c in out if not any(self._rules_out(r, report, c) for r, report in done.items())]
        return left if left or running else self._around_best(done, out)

    def _around_best(self, done: Mapping[Candidate, dict], others: Sequence[Candidate]) -> list[Candidate]:
        """What recomputes a little more or less than the best so far, or works on smaller microbatches."""
        best = self.best(done)
        if best is None:
            return []
        at = self.policies.index(best.remat)
        near = [dataclasses.replace(best, remat=policy) for policy in self.policies[max(0, at - 1) : at + 2]]
        near.append(dataclasses.replace(best, microbatches=2 * best.microbatches))
        return [c for c in others if c in near and not any(self._needs_more(r, done[r], c) for r in done)]

    def fits(self, report: dict) -> bool:
        return bool(report["fits"]) and report["hbm_bytes"]["total"] <= self.limit

    def best(self, done: Mapping[Candidate, dict]) -> Candidate | None:
        """The candidate that fits with the fewest op cycles; among equals the fewest bytes between devices."""
        timed = {c: r for c, r in done.items() if self.fits(r) and r["op_cycle_seconds"]}
        if not timed:
            return None
        fastest = min(report["op_cycle_seconds"] for report in timed.values())
        close = [c for c, report in timed.items() if report["op_cycle_seconds"] <= CLOSE * fastest]
        return min(close, key=lambda c: sum(row["bytes"] for row in timed[c]["collectives"]))

    def _rules_out(self, tried: Candidate, report: dict, other: Candidate) -> bool:
        """Whether what is known of `tried` makes `other` pointless (but see `_around_best`)."""
        if self._needs_more(tried, report, other):
            return True
        # On a mesh more microbatches cost more than saved activations gain: for WSP L/16 on 16 × 4 chips of v5e a
        # step took 0.533 s with all saved in 4 microbatches, 0.497 s with a part in 2, 0.506 s with none in 1.
        same_mesh = (tried.data, tried.fsdp) == (other.data, other.fsdp)
        as_heavy = tried.remat != self.policies[-1] or other.remat == tried.remat
        fits = report["fits"] is not None and self.fits(report)
        return fits and same_mesh and as_heavy and other.microbatches >= tried.microbatches

    def _needs_more(self, tried: Candidate, report: dict, other: Candidate) -> bool:
        """Whether `other` cannot fit, since `tried` does not."""
        if report["fits"] is None or self.fits(report):  # None: the compiler died
            return False
        lighter = self.policies.index(other.remat) <= self.policies.index(tried.remat)
        if lighter and other.microbatches <= tried.microbatches and other.fsdp <= tried.fsdp:
            return True  # needs at least as much
        # Activations shrink at most in proportion to the microbatch: a lower bound of what `other` needs.
        activations = report["hbm_bytes"]["total"] - (self.state_bytes + self.gradient_bytes) / tried.fsdp
        least = self.state_bytes / other.fsdp + activations * min(1.0, tried.microbatches / other.microbatches)
        return lighter and least > self.limit


def space(chosen: slices.Slice, outline: Mapping, policies: Sequence[str], tensor: int) -> Space:
    """The candidates for a config on a TPU slice.

    Args:
      chosen: the slice.
      outline: what `measure.outline` says of the config on the slice.
      policies: the recomputation policies that the config may choose.
      tensor: devices that share heads and MLPs, as the config says.

    Returns:
      The space; it has no candidates where no mesh holds the model or the batch does not split.
    """
    ordered = sorted(policies, key=lambda name: {"none": 0, "full": 2}.get(name, 1))
    shared = chosen.devices // tensor
    limit = ADVISED_SHARE * chosen.chip.memory
    images = outline["global_batch"] // shared if outline["global_batch"] % shared == 0 else 0
    counts = [m for m in _powers_of_two(MOST_MICROBATCHES) if images % m == 0]
    counts = [m for m in counts if m == 1 or images // m >= LEAST_IMAGES] if images else []
    meshes = fsdp_sizes(chosen, outline)
    parts_first = [*ordered[1:-1], ordered[0], *ordered[1:][-1:]]
    return Space(
        [
            Candidate(shared // fsdp, fsdp, m, remat)
            for fsdp, m, remat in itertools.product(meshes, counts, parts_first)
        ],
        *(ordered, images, outline["state_bytes"], outline["params_bytes"], limit),
    )


def fsdp_sizes(chosen: slices.Slice, outline: Mapping) -> list[int]:
    """Numbers of devices to spread parameters over: the smallest that hold the state, and a few larger ones.

    Not all three axes of a torus, unless the state needs them: gathers over those were compiled to broadcasts and sums.
    """
    held = outline["state_bytes"] + outline["params_bytes"]  # gradients are as large as parameters
    holding = [f for f in outline["fsdp_sizes"] if held / f <= STATE_SHARE * chosen.chip.memory]
    if not holding:
        return outline["fsdp_sizes"][-1:]
    whole_torus = sum(side > 1 for side in chosen.shape) == 3
    sane = [
        f
        for f in holding
        if f == holding[0]
        or (outline["params_bytes"] / f >= LEAST_SHARD_BYTES and not (whole_torus and f == chosen.devices))
    ]
    return sane[:MOST_MESHES]


def _powers_of_two(most: int) -> list[int]:
    return [2**i for i in range(most.bit_length()) if 2**i <= most]
