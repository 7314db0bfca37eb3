"""Reads the text of a compiled program (`compiled.as_text()`, XLA's HLO) into computations and instructions.

Only what the cost of a program depends on is kept: opcodes, shapes, who calls whom, loop bounds, the compiler's cycle
estimates, and which lines of which functions an instruction was made from.
"""

import dataclasses
import functools
import math
import re

BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"\b(pred|token|opaque|bf16|[csu]\d+|f\d+(?:e\d+m\d+\w*)?)\[([\d,<=]*)\]")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .+ \{")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(calls|to_apply|condition|body|true_computation|false_computation|branch_computations)=\{?((?:%[\w.\-]+,? ?)+)"
)
_TABLE_ROW = re.compile(r'(\d+) (?:"(.*)"|\{(.*)\})')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: its name, unique in the module.
      type: text of the result's type, a tuple in parentheses.
      opcode: such as "fusion" or "all-gather".
      arguments: text between the parentheses.
      attributes: the rest of the line.
    """

    name: str
    type: str
    opcode: str
    arguments: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        """Names of the instructions that this one reads."""
        return _NAME.findall(self.arguments)

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate for one execution, clock cycles of one chip; None where it makes none."""
        match = re.search(r'"estimated_cycles":"?(\d+)', self.attributes)
        return int(match[1]) if match else None

    @property
    def custom_call(self) -> str:
        """Target of a custom call, "" for anything else."""
        match = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return match[1] if match else ""

    @property
    def op_name(self) -> str:
        """JAX's path of the operation, such as `jit(step)/jvp()/while/body/dot_general`."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""

    @functools.cached_property
    def called(self) -> dict[str, list[str]]:
        """Role ("calls", "body", "condition", …) → names of the computations it calls."""
        return {role: _NAME.findall(names) for role, names in _CALLED.findall(self.attributes)}


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named list of instructions, in the order they run; the last named ROOT is the result."""

    name: str
    instructions: dict[str, Instruction]
    root: str

    def operand_types(self, instruction: Instruction) -> list[str]:
        """Types of what an instruction reads."""
        return [self.instructions[name].type for name in instruction.operands if name in self.instructions]


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
      computations: by name.
      entry: name of the one that runs.
      frames: stack frame → (file, function, frame that called it or 0).
    """

    computations: dict[str, Computation]
    entry: str
    frames: dict[int, tuple[str, str, int]]

    def stack(self, instruction: Instruction) -> list[tuple[str, str]]:
        """(file, function) of the calls that an instruction was traced under, outermost first."""
        match = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        out, frame = [], int(match[1]) if match else 0
        while frame in self.frames:
            file, function, frame = self.frames[frame]
            out.append((file, function))
        return out[::-1]

    def trips(self, computation: Computation, loop: Instruction) -> int | None:
        """How often the body of a `while` runs, or None where the text does not tell.

        Counted loops alone (`lax.scan`, `fori_loop`): the condition compares one element of the carry with a constant,
        the body adds a constant to it.
        """
        if match := re.search(r'"known_trip_count":\{"n":"?(\d+)', loop.attributes):
            return int(match[1])
        condition = self.computations[loop.called["condition"][0]]
        body = self.computations[loop.called["body"][0]]
        start = self._carried(computation, loop)
        inner, test, bind = self._through_calls(condition, condition.root)
        if test is None or test.opcode != "compare":
            return None
        sides = [self._side(inner, name, bind, condition) for name in test.operands]
        direction = re.search(r"direction=(\w+)", test.attributes)[1]
        strides = [None if side is None or side[0] == "constant" else self._stride(body, side[1]) for side in sides]
        if [stride is None for stride in strides] == [True, False]:  # the bound stands on the left: turn it around
            sides, strides = sides[::-1], strides[::-1]
            direction = {"GT": "LT", "GE": "LE", "LT": "GT", "LE": "GE"}.get(direction, direction)
        if len(sides) != 2 or None in sides or not strides[0] or strides[1] is not None or direction == "EQ":
            return None
        first = start.get(sides[0][1])
        bound = sides[1][1] if sides[1][0] == "constant" else start.get(sides[1][1])
        if first is None or bound is None:
            return None
        bound += {"LE": 1, "GE": -1}.get(direction, 0)
        return max(0, math.ceil((bound - first) / strides[0]))

    def _carried(self, computation: Computation, loop: Instruction) -> dict[int, int]:
        """Elements of a loop's first carry that are known constants, by index."""
        init = computation.instructions.get(loop.operands[0])
        if init is None or init.opcode != "tuple":
            return {}
        values = {i: _constant(computation, name) for i, name in enumerate(init.operands)}
        return {i: value for i, value in values.items() if value is not None}

    def _through_calls(self, computation: Computation, name: str):
        """(computation, instruction, its parameters → names outside) behind fusions, calls, copies and bitcasts."""
        bind: dict[str, str] = {}
        instruction = _source(computation, name)
        while instruction is not None and instruction.opcode in ("fusion", "call"):
            inner = self.computations[next(iter(instruction.called.values()))[0]]
            parameters = [i for i in inner.instructions.values() if i.opcode == "parameter"]
            bind = {p.name: instruction.operands[int(p.arguments)] for p in parameters}
            computation, instruction = inner, _source(inner, inner.root)
        return computation, instruction, bind

    def _side(self, inner: Computation, name: str, bind: dict, condition: Computation) -> tuple[str, int] | None:
        """One side of a comparison: ("constant", value) or ("element", index in the carry)."""
        instruction = _source(inner, name)
        if instruction is not None and instruction.name in bind:
            instruction = _source(condition, bind[instruction.name])
        if instruction is None:
            return None
        if instruction.opcode == "get-tuple-element":
            return "element", int(re.search(r"index=(\d+)", instruction.attributes)[1])
        value = _value(instruction)
        return None if value is None else ("constant", value)

    def _stride(self, body: Computation, index: int) -> int | None:
        """What the body adds to element `index` of the carry; None if it does anything else."""
        root = body.instructions[body.root]
        if root.opcode != "tuple":
            return None
        inner, add, bind = self._through_calls(body, root.operands[index])
        if add is None or add.opcode != "add":
            return None
        for name in add.operands:
            where, outer = (body, bind[name]) if name in bind else (inner, name)
            if (value := _constant(where, outer)) is not None:
                return value
        return None


def parse(text: str) -> Module:
    """Reads the text of a compiled program.

    Raises:
      ValueError: it holds no ENTRY computation.
    """
    computations, entry, tables = {}, None, {}
    table, current, root, instructions = None, None, "", {}
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = tables.setdefault(line, {})
        elif not line.startswith(" ") and (match := _COMPUTATION.fullmatch(line)):
            table, current, root, instructions = None, match[2], "", {}
            entry = current if match[1] else entry
        elif line == "}" and current is not None:
            computations[current] = Computation(current, instructions, root or next(reversed(instructions), ""))
            current = None
        elif current is not None:
            if instruction := _instruction(line):
                instructions[instruction.name] = instruction
                root = instruction.name if line.lstrip().startswith("ROOT ") else root
        elif table is not None and (row := _TABLE_ROW.fullmatch(line)):
            table[int(row[1])] = row[2] if row[2] is not None else _numbers(row[3])
    if entry is None:
        raise ValueError("no ENTRY computation")
    return Module(computations, entry, _frames(tables))


def arrays(type_text: str) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of every array in a type; the compiler's scratch elements of a tuple are among them."""
    return [
        (dtype, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d)) for dtype, dims in _SHAPE.findall(type_text)
    ]


def size(type_text: str) -> int:
    """Bytes of a type, without padding to tiles."""
    return sum(math.prod(shape) * _bits(dtype) // 8 for dtype, shape in arrays(type_text))


def matmul_flops(computation: Computation, module: Module) -> float:
    """FLOPs of the dots and convolutions in a computation and in what it calls, 2 per multiply-add."""
    total = 0.0
    for instruction in computation.instructions.values():
        if instruction.opcode in ("dot", "convolution"):
            total += contraction_flops(computation, instruction)
        for names in instruction.called.values():
            total += sum(matmul_flops(module.computations[name], module) for name in names)
    return total


def contraction_flops(computation: Computation, instruction: Instruction) -> float:
    """2 · elements of the result · multiply-adds for one of them."""
    result = math.prod(arrays(instruction.type)[0][1])
    left, right = (arrays(t)[0][1] for t in computation.operand_types(instruction)[:2])
    if instruction.opcode == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)[1]
        return 2.0 * result * math.prod(left[int(axis)] for axis in axes.split(",") if axis)
    # A convolution's kernel holds, for one output channel, all multiply-adds of one output element.
    kernel_axes = re.search(r"dim_labels=\w+_(\w+)->", instruction.attributes)[1]
    return 2.0 * result * math.prod(right) / right[kernel_axes.index("o")]


def _instruction(line: str) -> Instruction | None:
    left, equals, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    if not equals:
        return None
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    type_text, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    end = len(opcode) + _closing(rest[len(opcode) :])
    return Instruction(left.lstrip("%"), type_text, opcode, rest[len(opcode) + 1 : end - 1], rest[end:])


def _closing(text: str) -> int:
    """Index after the parenthesis that closes the one at the beginning of `text`."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    return len(text)


def _source(computation: Computation, name: str) -> Instruction | None:
    """The instruction behind copies and bitcasts."""
    instruction = computation.instructions.get(name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast", "convert"):
        instruction = computation.instructions.get(instruction.operands[0])
    return instruction


def _constant(computation: Computation, name: str) -> int | None:
    instruction = _source(computation, name)
    return None if instruction is None else _value(instruction)


def _value(instruction: Instruction) -> int | None:
    """The whole number that a constant is."""
    whole = instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.arguments)
    return int(instruction.arguments) if whole else None


def _bits(dtype: str) -> int:
    return BITS.get(dtype) or int((re.search(r"\d+", dtype) or [0])[0])


def _numbers(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", text)}


def _frames(tables: dict) -> dict[int, tuple[str, str, int]]:
    files, functions = tables.get("FileNames", {}), tables.get("FunctionNames", {})
    locations, frames, out = tables.get("FileLocations", {}), tables.get("StackFrames", {}), {}
    # A caller stands before what it calls; where a frame seems to call itself, callers are written one too high.
    shift = int(any(frame.get("parent_frame_id", 0) >= index for index, frame in frames.items()))
    for index, frame in frames.items():
        where = locations.get(frame.get("file_location_id"), {})
        file, function = files.get(where.get("file_name_id"), ""), functions.get(where.get("function_name_id"), "")
        out[index] = (file, function, frame.get("parent_frame_id", 0) - shift)
    return out
