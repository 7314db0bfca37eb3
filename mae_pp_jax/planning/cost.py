"""What one execution of a compiled program costs: the compiler's cycles of every operation times how often it runs.

The compiler writes an estimate of cycles beside most operations, for one execution. Its own totals
(`compiled.cost_analysis()`) count the body of a loop once and are no use for a scanned model; here trip counts are read
from the loops. Operations without an estimate (custom kernels, gather, scatter, sort) are charged, not forgotten.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping

from mae_pp_jax.core.hardware import Chip
from mae_pp_jax.planning import hlo
from mae_pp_jax.planning.kernels import Shapes

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Bookkeeping, and transfers between HBM and on-chip memory that run beside the arithmetic.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "add-dependency"),
    *("partition-id", "replica-id", "get-dimension-size", "domain"),
    *("copy-start", "copy-done", "slice-start", "slice-done", "dynamic-slice-start", "dynamic-slice-done"),
    *("async-done", "async-update", "send", "send-done", "recv", "recv-done"),
}
FREE_CALLS = {"AllocateBuffer", "ConcatBitcast", "AsyncCollectiveStart", "AsyncCollectiveDone", "Sharding"}
KERNEL = "tpu_custom_call"  # target of a Pallas kernel
WITHOUT_ESTIMATE_FACTOR = 2.0
MODEL_CODE = "/mae_pp_jax/"
# Code that says nothing about which part of a model an operation belongs to.
BESIDE_MODEL = tuple(
    f"/mae_pp_jax/{p}" for p in ("core/functional.py", "core/program.py", "models/matmul.py", "planning/")
)


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation of the program with all its executions.

    Attributes:
      name: of the instruction.
      opcode: such as "fusion"; of a custom call its target.
      where: the functions that it was traced in, and whether it belongs to the backward pass.
      count: executions in one step.
      seconds: of all executions.
      estimated: whether the compiler gave cycles; if not, it was charged 2 · max(FLOPs/peak, bytes/bandwidth).
      flops: of all executions, where it was charged so; None where nobody knows them (a kernel that says nothing).
      bytes: of all executions, where it was charged so.
    """

    name: str
    opcode: str
    where: str
    count: int
    seconds: float
    estimated: bool
    flops: float | None = None
    bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Collective:
    """A transfer between devices with all its executions; `bytes` is what one device holds of it at its larger end."""

    kind: str
    where: str
    count: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """All of a program.

    Attributes:
      operations: what was charged.
      collectives: transfers between devices; they are not charged.
      unread_loops: loops whose trip count could not be read, charged as if they ran once.
    """

    operations: list[Operation]
    collectives: list[Collective]
    unread_loops: list[str]

    @property
    def seconds(self) -> float:
        return sum(operation.seconds for operation in self.operations)


def measure(module: hlo.Module, chip: Chip | None, kernel_flops: Mapping[Shapes, float] | None = None) -> Cost:
    """The cost of one execution of a program on one chip.

    Args:
      module: the compiled program.
      chip: what it is compiled for; None: operations are not charged, collectives alone are listed.
      kernel_flops: FLOPs of one call of a custom kernel, counted from its source, by what `kernels.Shapes` says.
    """
    walk = _Walk(module, chip, kernel_flops or {})
    walk.visit(module.computations[module.entry], 1)
    return Cost(walk.operations, walk.collectives, walk.unread_loops)


class _Walk:
    """Follows the calls of a program from its entry."""

    def __init__(self, module: hlo.Module, chip: Chip | None, kernel_flops: Mapping[Shapes, float]):
        self._module, self._chip, self._kernel_flops = module, chip, kernel_flops
        self.operations: list[Operation] = []
        self.collectives: list[Collective] = []
        self.unread_loops: list[str] = []

    def visit(self, computation: hlo.Computation, times: int) -> None:
        """Charges every instruction of a computation that runs `times` times."""
        chains: set[str] = set()
        for instruction in computation.instructions.values():
            if instruction.opcode == "while":
                self._loop(computation, instruction, times)
            elif instruction.opcode in ("call", "async-start"):
                for name in _called(instruction):
                    self.visit(self._module.computations[name], times)
            elif instruction.opcode == "conditional":
                self._dearest_branch(instruction, times)
            elif kind := _collective_kind(instruction.opcode):
                self._transfer(computation, instruction, kind, times)
            else:
                transfers = self._transfers_inside(instruction, times, chains)
                if instruction.cycles is not None or not transfers:
                    self._charge(computation, instruction, times)
                self._kernels_inside(instruction, times)

    def _loop(self, computation, loop, times) -> None:
        trips = self._module.trips(computation, loop)
        if trips is None:
            self.unread_loops.append(loop.name)
            trips = 1
        self.visit(self._module.computations[loop.called["body"][0]], times * trips)
        self.visit(self._module.computations[loop.called["condition"][0]], times * (trips + 1))

    def _dearest_branch(self, instruction, times) -> None:
        branches = []
        for name in _called(instruction):
            branch = _Walk(self._module, self._chip, self._kernel_flops)
            branch.visit(self._module.computations[name], times)
            branches.append(branch)
        dearest = max(branches, key=lambda branch: sum(o.seconds for o in branch.operations))
        self.operations += dearest.operations
        self.collectives += dearest.collectives
        self.unread_loops += dearest.unread_loops

    def _transfers_inside(self, instruction, times, chains: set[str]) -> bool:
        """Whether collectives are fused into an operation; one that is spread over several (a chain) counts once."""
        found = False
        for name in _called(instruction) if instruction.opcode == "fusion" else ():
            inner = self._module.computations[name]
            for hidden in inner.instructions.values():
                if not (kind := _collective_kind(hidden.opcode)):
                    continue
                found = True
                chain = re.search(r'chain_id="(\d+)"', hidden.attributes)
                if chain is not None and chain[1] in chains:
                    continue
                chains |= {chain[1]} if chain is not None else set()
                # An all-reduce of which every device keeps a part is fused with that cut on TPUs.
                kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else kind
                self._transfer(inner, hidden, kind, times)
        return found

    def _kernels_inside(self, instruction, times) -> None:
        """Custom kernels that something else was fused into: charged beside the estimate, which may leave them out."""
        for name in _called(instruction) if instruction.opcode == "fusion" else ():
            inner = self._module.computations[name]
            for hidden in inner.instructions.values():
                if hidden.custom_call == KERNEL:
                    self._charge(inner, hidden, times)

    def _transfer(self, computation, instruction, kind, times) -> None:
        operands = sum(map(hlo.size, computation.operand_types(instruction)))
        result = hlo.size(instruction.type)
        if instruction.opcode.endswith("-start") and kind != "all-reduce":
            result -= operands  # the result of a started transfer holds its operands too
        self.collectives.append(
            Collective(kind, where(self._module, instruction), times, times * max(operands, result))
        )

    def _charge(self, computation, instruction, times) -> None:
        if self._chip is None or instruction.opcode in FREE or instruction.custom_call in FREE_CALLS:
            return
        opcode = instruction.custom_call or instruction.opcode
        place = where(self._module, instruction)
        if instruction.cycles is not None and instruction.opcode != "custom-call":
            seconds = instruction.cycles / self._chip.clock
            self.operations.append(Operation(instruction.name, opcode, place, times, times * seconds, True))
            return
        flops, moved = self._work(computation, instruction)
        seconds = WITHOUT_ESTIMATE_FACTOR * max((flops or 0.0) / self._chip.flops, moved / self._chip.bandwidth)
        self.operations.append(
            Operation(
                *(instruction.name, opcode, place, times, times * seconds, False),
                flops=None if flops is None else times * flops,
                bytes=times * moved,
            )
        )

    def _work(self, computation, instruction) -> tuple[float | None, int]:
        """(FLOPs or None, bytes) of one execution of an operation without an estimate."""
        read = [hlo.size(kind) for kind in computation.operand_types(instruction)]
        moved = hlo.size(instruction.type) + sum(read)
        if instruction.opcode == "dynamic-update-slice":  # in place: the rest of the buffer is not touched
            moved = 2 * read[1]
        elif instruction.opcode in ("dynamic-slice", "slice", "gather"):
            moved = 2 * hlo.size(instruction.type) + sum(read[1:])
        if instruction.opcode == "custom-call":
            said = re.search(r'"cost_estimate":\{"flops":"?(\d+)"?,.*?"bytes_accessed":"?(\d+)', instruction.attributes)
            types = (*computation.operand_types(instruction), instruction.type)
            counted = self._kernel_flops.get(tuple(shape for kind in types for _, shape in hlo.arrays(kind)))
            known = [float(f) for f in (said[1] if said else None, counted) if f is not None]
            return max(known, default=None), max(moved, int(said[2]) if said else 0)
        if instruction.opcode in ("dot", "convolution"):
            return hlo.contraction_flops(computation, instruction), moved
        inner = [self._module.computations[name] for name in _called(instruction)]
        return sum(hlo.matmul_flops(c, self._module) for c in inner), moved


def where(module: hlo.Module, instruction: hlo.Instruction) -> str:
    """Which of our functions an operation was traced in, such as `Encoder/Block/Attention backward`."""
    if not instruction.op_name:
        instruction = _named_inside(module, instruction)
    stack = [
        function.removesuffix(".__call__").replace(".<locals>", "")
        for file, function in module.stack(instruction)
        if MODEL_CODE in file and not function.startswith("_") and not any(beside in file for beside in BESIDE_MODEL)
    ]
    path = instruction.op_name
    # A method says its class, an inner function the outer one.
    inner = [*stack[1:], ""]
    stack = [f for i, f in enumerate(stack) if f != inner[i] and not inner[i].startswith(f + ".")]
    place = "/".join(stack[-3:]) or path.rsplit("/", 1)[-1] or instruction.opcode
    if "rematted_computation" in path:
        return place + " recomputed"
    return place + (" backward" if "transpose(" in path else "")


def _named_inside(module: hlo.Module, instruction: hlo.Instruction) -> hlo.Instruction:
    """Of an operation without a path, one fused into it that has one: its matrix product, if there is one."""
    inner = [i for name in _called(instruction) for i in module.computations[name].instructions.values() if i.op_name]
    products = [i for i in inner if i.opcode in ("dot", "convolution")]
    return (products or inner[::-1] or [instruction])[0]


def _called(instruction: hlo.Instruction) -> Iterator[str]:
    for names in instruction.called.values():
        yield from names


def _collective_kind(opcode: str) -> str | None:
    if opcode.endswith(("-done", "-update")):
        return None
    kind = opcode.removesuffix("-start")
    return kind if kind in COLLECTIVES else None
