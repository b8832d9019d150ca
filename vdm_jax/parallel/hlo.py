"""What a compiled program sends between devices, read from its optimised HLO.

`collectives` takes the text of `compiled.as_text()` and follows it from the entry: a collective
inside a loop counts as often as the loop runs. Beside the plain operations, five forms that XLA
writes for TPUs and GPUs are understood:

- `-start`/`-done` pairs and wrapped computations (`async-start`, `call-start`), counted at the
  start;
- a TPU's asynchronous chain: one collective cut over several fusions (`AsyncCollectiveStart`, any
  number of fusions that carry it on beside their own work, `AsyncCollectiveDone`), each of which
  repeats the operation with the same `chain_id`. It is counted once;
- a TPU's reduce-scatter written as a fusion of an all-reduce and the slice of it that is kept,
  counted as a reduce-scatter. An all-reduce whose slice is taken by another instruction is an
  all-reduce, as is the one of a padded array by which v5p and TPU7x gather over a whole torus;
- loops without `known_trip_count` (all those of TPUs): their counter is followed instead;
- the transfers between slices (`send` to the megascale runtime), which are network "dcn".

Bytes are those of the elements of the arrays that go in (a TPU's all-reduce may convert what comes
out), without the padding of tiled layouts. Bytes on the wire are what each device sends by the ring
algorithms, the least that is possible without help from the network (Patarasu and Yuan 2009,
Bandwidth optimal all-reduce algorithms). How long that takes depends on how many links the
compiler's algorithm uses at once.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

# Bytes that a device sends, over the bytes of the full array, in a group of n.
_WIRE = {
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}
_MEGASCALE = {
    "ALL_GATHER": "all-gather",
    "ALL_REDUCE": "all-reduce",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}
# Instructions that run the computations that they name; reducers hold no collectives.
_CALLERS = ("fusion", "call", "async-start", "call-start", "custom-call")
_MOST_TRIPS = 100_000  # beyond which a loop's counter is not followed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """All collectives of one kind over groups of one size, in one run of the program.

    Attributes:
      kind: one of `KINDS`.
      group_size: devices that take part in each; of a collective-permute, the longest chain.
      network: "dcn" between slices of TPUs, "ici" otherwise: also between hosts of GPUs, whose
        programs do not tell.
      count: how often one is executed.
      bytes: of the full (gathered, reduced, exchanged) array, per device, over all executions.
      wire_bytes: that a device sends by the ring algorithm, over all executions.
    """

    kind: str
    group_size: int
    network: str
    count: int
    bytes: int
    wire_bytes: int


def collectives(text: str, num_devices: int) -> list[Collective]:
    """What the program of `text`, optimised HLO, sends; the most bytes on the wire first.

    `num_devices` is the size of a group that is written as empty, "all devices", in a text that
    does not say how many partitions there are. Of a conditional, the branch that sends most is
    counted. Groups of one device send nothing and are left out. A loop whose trip count is unknown
    counts once: see `unknown_loops`.
    """
    total = _Traffic()
    for module in _modules(text, num_devices):
        total.add(module.traffic(module.entry))
    rows = [
        Collective(
            kind=kind,
            group_size=group_size,
            network=network,
            count=count,
            bytes=size,
            wire_bytes=round(wire),
        )
        for (kind, group_size, network), (count, size, wire) in total.rows.items()
    ]
    return sorted(rows, key=lambda row: (-row.wire_bytes, row.kind, row.group_size))


def unknown_loops(text: str) -> int:
    """How many loops that hold collectives have a trip count that the text does not tell.

    Where it is not zero, the figures of `collectives` are lower bounds.
    """
    return sum(module.traffic(module.entry).unknown_loops for module in _modules(text, 1))


class _Traffic:
    """Count, bytes and bytes on the wire by (kind, group size, network); loops not understood."""

    def __init__(self):
        self.rows = collections.defaultdict(lambda: (0, 0, 0.0))
        self.unknown_loops = 0

    def add(self, other: "_Traffic", times: int = 1) -> None:
        self.unknown_loops += other.unknown_loops
        for key, row in other.rows.items():
            self.rows[key] = tuple(a + times * b for a, b in zip(self.rows[key], row, strict=True))

    @property
    def wire(self) -> float:
        return sum(wire for _, _, wire in self.rows.values())


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """`name = shape opcode(operands), attributes`; the operands by name, or the constant's text."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    arguments: str
    attributes: str

    def called(self, *keys: str) -> list[str]:
        """The computations that the attributes `keys` name, one each or a list in braces."""
        attribute = rf"\b(?:{'|'.join(keys)})=(?:\{{([^}}]*)\}}|%?([\w.\-]+))"
        found = (one or listed for listed, one in re.findall(attribute, self.attributes))
        return [name for names in found for name in re.findall(r"[\w.\-]+", names)]


class _Computation:
    """A computation's lines, parsed when asked for: most of them never are."""

    def __init__(self, name: str):
        self.name = name
        self.root = ""
        self.lines: dict[str, str] = {}
        self._parsed: dict[str, _Instruction] = {}

    def __getitem__(self, name: str) -> _Instruction:
        if name not in self._parsed:
            self._parsed[name] = _parse(name, self.lines[name])
        return self._parsed[name]

    def matching(self, pattern: re.Pattern) -> Iterator[_Instruction]:
        """Those instructions whose line `pattern` is found in."""
        return (self[name] for name, line in self.lines.items() if pattern.search(line))

    def operand_bytes(self, instruction: _Instruction) -> int:
        """Of all arrays that `instruction` is given."""
        return sum(
            _bytes(_split_shape(self.lines[operand])[0])
            for operand in instruction.operands
            if operand in self.lines
        )


_COLLECTIVE = re.compile(rf" ({'|'.join(KINDS)})(-start)?\(")
_RELEVANT = re.compile(
    rf" ((({'|'.join(KINDS)})(-start)?)|while|conditional|send|{'|'.join(_CALLERS)})\("
)


class _Module:
    """One HLO module: its computations, and what each of them sends when it is run once."""

    def __init__(self, header: str, num_devices: int):
        # Of several slices, the program of one of them is printed: it knows its own size.
        told = re.findall(r"\b(?:replica_count|num_partitions)=(\d+)", header)
        self.num_devices = math.prod(map(int, told)) if told else num_devices
        self.entry = ""
        self.computations: dict[str, _Computation] = {}

    @functools.cached_property
    def repeated(self) -> set[tuple[str, str]]:
        """The parts of asynchronous chains that are not their beginning: computation, name."""
        chains = collections.defaultdict(list)
        begun = set()
        for computation in self.computations.values():
            for instruction in computation.matching(_COLLECTIVE):
                if chain := re.search(r'\bchain_id="([^"]*)"', instruction.attributes):
                    key = (chain[1], instruction.opcode)
                    chains[key].append((computation.name, instruction.name))
            for start in computation.matching(re.compile('"AsyncCollectiveStart"')):
                begun.update((computation.name, operand) for operand in start.operands)
        # Written in a way that is not known here, a chain counts at its first part.
        starts = {key: begun.intersection(parts) or parts[:1] for key, parts in chains.items()}
        return {part for key, parts in chains.items() for part in parts if part not in starts[key]}

    @functools.cached_property
    def fused(self) -> set[str]:
        """The computations that fusions run."""
        fusion = re.compile(r" fusion\(")
        found = (i for c in self.computations.values() for i in c.matching(fusion))
        return {name for instruction in found for name in instruction.called("calls")}

    @functools.cache  # noqa: B019 - a module lives as long as the call that reads it
    def traffic(self, name: str) -> _Traffic:
        computation = self.computations[name]
        total = _Traffic()
        for instruction in computation.matching(_RELEVANT):
            opcode = instruction.opcode.removesuffix("-start")
            if opcode in KINDS:
                if (name, instruction.name) not in self.repeated:
                    self._add_collective(total, computation, instruction, opcode)
            elif opcode == "send":
                self._add_send(total, computation, instruction)
            elif opcode == "while":
                (body,) = instruction.called("body")
                inside = self.traffic(body)
                trips = self._trips(computation, instruction)
                total.add(inside, 1 if trips is None else trips)
                total.unknown_loops += trips is None and bool(inside.rows)
            elif opcode == "conditional":
                branches = instruction.called(
                    "branch_computations", "true_computation", "false_computation"
                )
                most = max(map(self.traffic, branches), key=lambda branch: branch.wire)
                total.add(most)
            else:
                for callee in instruction.called("calls", "to_apply", "called_computations"):
                    if callee in self.computations:
                        total.add(self.traffic(callee))
        return total

    def _add_collective(
        self, total: _Traffic, computation: _Computation, instruction: _Instruction, kind: str
    ) -> None:
        size = computation.operand_bytes(instruction)
        if kind == "collective-permute":
            group = _longest_chain(instruction.attributes)
            if "slice_sizes=" in instruction.attributes:  # into a buffer that is an operand too
                size = _bytes(_split_shape(computation.lines[instruction.operands[0]])[0])
        else:
            group = _group_size(instruction.attributes, self.num_devices)
        if kind == "all-gather":
            size *= group
        if kind == "all-reduce" and computation.name in self.fused:
            kept = re.compile(rf" dynamic-slice\((?:[^%()]*)%?{re.escape(instruction.name)}[,)]")
            if any(computation.matching(kept)):
                kind = "reduce-scatter"
        _count(total, kind, group, "ici", size)

    def _add_send(
        self, total: _Traffic, computation: _Computation, instruction: _Instruction
    ) -> None:
        transfer = re.search(r'_xla_megascale_transfer_type="?(\w+)', instruction.attributes)
        if transfer is None or transfer[1] not in _MEGASCALE:
            return
        kind = _MEGASCALE[transfer[1]]
        # Either "{1,2}x{0:15}", slices times devices, or groups of slice * 100000 + device.
        target = re.search(r"_xla_megascale_target=\"?\{+([^{}]*)\}", instruction.attributes)
        group = len(re.split(r",|->", target[1])) if target else 1
        size = computation.operand_bytes(instruction)
        _count(total, kind, group, "dcn", size * group if kind == "all-gather" else size)

    def _trips(self, computation: _Computation, loop: _Instruction) -> int | None:
        """How often `loop` runs: as it says, or by following its counter."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        (condition,), (body,) = loop.called("condition"), loop.called("body")
        condition, body = self.computations[condition], self.computations[body]
        state = self._value(computation, loop.operands[0], None)
        for trips in range(_MOST_TRIPS):
            goes_on = self._value(condition, condition.root, [state])
            if not goes_on:
                return None if goes_on is None else trips
            before, state = state, self._value(body, body.root, [state])
            if state == before:
                return None
        return None

    def _value(
        self, computation: _Computation, name: str, arguments: list | None
    ) -> int | list | None:
        """The integer of a scalar, a list of a tuple, or None where it is not known."""
        instruction = computation[name] if name in computation.lines else None
        if instruction is None or not re.match(r"\(|(s|u)\d+\[\]|pred\[\]", instruction.shape):
            return None
        opcode = instruction.opcode
        if opcode == "parameter":
            return arguments[int(instruction.arguments)] if arguments else None
        if opcode == "constant":
            word = {"true": "1", "false": "0"}.get(instruction.arguments, instruction.arguments)
            return int(word) if word.removeprefix("-").isdigit() else None
        if opcode not in _EVALUATED:
            return None
        values = [self._value(computation, operand, arguments) for operand in instruction.operands]
        if opcode == "tuple":
            return values
        if opcode == "get-tuple-element":
            index = int(re.search(r"\bindex=(\d+)", instruction.attributes)[1])
            return values[0][index] if isinstance(values[0], list) else None
        if opcode in ("fusion", "call"):
            (callee,) = instruction.called("calls", "to_apply")
            callee = self.computations[callee]
            return self._value(callee, callee.root, values)
        if opcode == "compare":
            opcode = re.search(r"\bdirection=(\w+)", instruction.attributes)[1]
        if any(value is None or isinstance(value, list) for value in values):
            return values[0] if opcode in _COPIES else None
        return _ARITHMETIC[opcode](*values)


_COPIES = ("copy", "copy-start", "copy-done", "bitcast", "convert", "reshape", "opt-barrier")
_ARITHMETIC = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "minimum": min,
    "maximum": max,
    "negate": lambda a: -a,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "select": lambda p, a, b: a if p else b,
    "LT": lambda a, b: int(a < b),
    "LE": lambda a, b: int(a <= b),
    "GT": lambda a, b: int(a > b),
    "GE": lambda a, b: int(a >= b),
    "EQ": lambda a, b: int(a == b),
    "NE": lambda a, b: int(a != b),
    **{copy: lambda a: a for copy in _COPIES},
}
_EVALUATED = {*_ARITHMETIC, "compare", "tuple", "get-tuple-element", "fusion", "call"}


def _modules(text: str, num_devices: int) -> list[_Module]:
    """The modules of `text`, their lines sorted into computations."""
    modules = []
    computation = None
    for line in text.splitlines():
        if line.startswith("HloModule "):
            modules.append(_Module(line, num_devices))
        elif computation is None:
            header = re.match(r"(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$", line)
            if header is None:
                continue
            if not modules:  # a part of a module's text
                modules.append(_Module("", num_devices))
            computation = _Computation(header[2])
            modules[-1].computations[header[2]] = computation
            if header[1] or not modules[-1].entry:
                modules[-1].entry = header[2]
        elif line.startswith("}"):
            computation = None
        elif found := re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line):
            computation.lines[found[2]] = line[found.end() :]
            if found[1]:
                computation.root = found[2]
    return modules


def _parse(name: str, line: str) -> _Instruction:
    shape, rest = _split_shape(line)
    opcode, _, rest = rest.partition("(")
    end = _closing(f"({rest}")
    arguments, attributes = rest[: end - 1], rest[end:]
    return _Instruction(
        name=name,
        shape=shape,
        opcode=opcode.strip(),
        operands=tuple(re.findall(r"%([\w.\-]+)", arguments)),
        arguments=arguments,
        attributes=attributes,
    )


def _split_shape(line: str) -> tuple[str, str]:
    """`line` cut behind the shape that it begins with."""
    if line.startswith("("):
        end = _closing(line) + 1
    else:
        end = line.index(" ")
    return line[:end], line[end:]


def _closing(text: str) -> int:
    """Where the parenthesis that `text` begins with is closed."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"HLO with a parenthesis that is not closed: {text[:200]}")


def _bytes(shape: str) -> int:
    """Of all arrays in `shape`. Elements of less than a byte are counted packed."""
    bits = 0
    for dtype, sizes in re.findall(r"\b([a-z]\w*)\[([\d,<=]*)\]", shape):
        width = re.search(r"\d+", dtype)  # as in bf16, s32, f8e4m3fn, c64
        bits_each = 8 if dtype == "pred" else int(width[0]) if width else 0
        dims = [int(size) for size in re.findall(r"\d+", sizes)]
        bits += bits_each * math.prod(dims)
    return -(-bits // 8)


def _group_size(attributes: str, num_devices: int) -> int:
    """Devices in a group of `replica_groups`, in any of the ways in which it is written."""
    found = re.search(r"\breplica_groups=(.*)", attributes)
    if found is None:
        return num_devices
    groups = found[1]
    if iota := re.match(r"\[([\d,]+)\]<=", groups):  # [groups, devices of each]<=[all]T(transpose)
        return int(iota[1].split(",")[-1])
    if mesh := re.match(r"mesh\[([^\]]*)\][^{]*\{([^}]*)\}", groups):  # axes of a mesh, by name
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']*)'=(\d+)", mesh[1])}
        axes = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", mesh[2])  # 'x':(2)4 is a part of x
        return math.prod(int(part) if part else sizes[axis] for axis, part in axes)
    listed = re.match(r"\{((?:\{[\d,]*\},?)*)\}", groups)
    members = re.findall(r"\{([\d,]*)\}", listed[1]) if listed else []
    return max((len(group.split(",")) for group in members), default=num_devices)


def _longest_chain(attributes: str) -> int:
    """The most devices that `source_target_pairs` join, 1 where each sends only to itself."""
    found = re.search(r"\bsource_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    group: dict[str, set[str]] = {}
    for source, target in re.findall(r"\{(\d+),(\d+)\}", found[1] if found else ""):
        joined = group.get(source, {source}) | group.get(target, {target})
        group.update(dict.fromkeys(joined, joined))
    return max(map(len, group.values()), default=1)


def _count(total: _Traffic, kind: str, group: int, network: str, size: int) -> None:
    if group > 1:
        count, before, wire = total.rows[kind, group, network]
        wire += size * _WIRE[kind](group)
        total.rows[kind, group, network] = (count + 1, before + size, wire)
