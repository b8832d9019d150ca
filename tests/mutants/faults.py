"""Small faults that can be put into a module: one is put in at a time."""

import ast
import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path

SWAPPED = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
BY_ANNOTATION = {"float": "0.0", "int": "0", "bool": "False", "str": "''"}
# Kinds by which a value does not reach what it is for.
WIRING = ("argument dropped", "argument neutral", "field neutral", "entry dropped")
WIRING += ("arguments swapped", "argument returned", "statement dropped")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change of one file.

    Attributes:
      path: of the file, relative to the repository's root.
      function: the function or the CLASS.method; "CLASS." and "": executed at import.
      kind: of change.
      lines: the first and the last line that it changes, and those of the statement around it.
      start, end: bytes of the file in whose place `new` is put.
    """

    path: str
    function: str
    kind: str
    lines: tuple[tuple[int, int], tuple[int, int]]
    start: int
    end: int
    new: str

    def applied(self, source: bytes) -> bytes:
        """The file with the change."""
        return source[: self.start] + self.new.encode() + source[self.end :]

    def text(self, source: bytes) -> str:
        """The change in words: what was there → what is there instead."""
        old = source[self.start : self.end].decode()
        try:
            old = ast.unparse(ast.parse(old.strip()))
        except SyntaxError:
            old = " ".join(old.split())
        new = self.new[1:-1] if self.new.startswith("(") else self.new
        same = 0
        while same < min(len(old), len(new)) and old[same] == new[same]:
            same += 1
        same = max(same - 30, 0)
        return " → ".join(("…" if same else "") + part[same : same + 70] for part in (old, new))


def neutral_values(paths: list[Path]) -> dict[str, str | None]:
    """For the name of a field, an argument or an entry of a configuration its neutral value: its
    default where it is a constant, else zero, False, "", () or None by its annotation; None where
    neither says."""
    values: dict[str, str | None] = {}
    for path in paths:
        for name, value in _declared(ast.parse(path.read_text())).items():
            values[name] = values.get(name) or value
    return values


def _declared(tree: ast.AST) -> dict[str, str | None]:
    values: dict[str, str | None] = {}

    def declare(name: str, annotation: ast.expr | None, default: ast.expr | None) -> None:
        value = None if annotation is None else _neutral(ast.unparse(annotation))
        with contextlib.suppress(ValueError, TypeError):
            if not isinstance(ast.literal_eval(default), dict | list):
                value = ast.unparse(default)
        values[name] = values.get(name) or value

    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            declare(node.target.id, node.annotation, node.value)
        elif isinstance(node, ast.FunctionDef):
            plain = node.args.args
            defaults = [None] * (len(plain) - len(node.args.defaults)) + node.args.defaults
            pairs = [*zip(plain, defaults, strict=True)]
            pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            for arg, default in pairs:
                declare(arg.arg, arg.annotation, default)
            if "default" in node.name or "section" in node.name:  # of a configuration
                for part in ast.walk(node):
                    if isinstance(part, ast.Dict):
                        for key, value in zip(part.keys, part.values, strict=True):
                            if isinstance(key, ast.Constant):
                                declare(key.value, None, value)
    return values


def _neutral(annotation: str) -> str | None:
    if "| None" in annotation:
        return "None"
    return "()" if annotation.startswith("tuple[") else BY_ANNOTATION.get(annotation)


def list_mutants(path: str, source: bytes, neutral: dict[str, str | None]) -> list[Mutant]:
    """Every change of the file. neutral: `neutral_values` of the package."""
    neutral = neutral | _declared(ast.parse(source))  # its own names mean what it declares
    starts = [0]
    for line in source.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    found = {}

    def visit(node: ast.AST, function: str, around: ast.AST, params: dict[str, str]) -> None:
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Assert):
            return
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn":
            return
        if isinstance(node, ast.ClassDef):
            if any("Protocol" in ast.unparse(base) for base in node.bases):
                return
            function = f"{node.name}."
        if isinstance(node, ast.FunctionDef):
            function = function if params else f"{function}{node.name}"
            args = [*node.args.args, *node.args.kwonlyargs]
            params = params | {a.arg: ast.unparse(a.annotation or ast.Name("")) for a in args}
            params["return"] = ast.unparse(node.returns or ast.Name(""))
        around = node if isinstance(node, ast.stmt) else around
        for kind, place, new in _changes(node, neutral, params):
            start = starts[place.lineno - 1] + place.col_offset
            end = starts[place.end_lineno - 1] + place.end_col_offset
            last = around.lineno if hasattr(around, "body") else around.end_lineno
            lines = ((place.lineno, place.end_lineno), (around.lineno, last))
            change = {"path": path, "function": function, "kind": kind, "lines": lines}
            mutant = Mutant(**change, start=start, end=end, new=new)
            found.setdefault((start, end, new), mutant)
        for child in _children(node):
            visit(child, function, around, params)

    visit(ast.parse(source), "", ast.Pass(), {})
    return list(found.values())


def _children(node: ast.AST) -> list[ast.AST]:
    """The parts of a node that are changed too: no annotations, decorators or docstrings."""
    if isinstance(node, ast.FunctionDef):
        defaults = [value for value in node.args.kw_defaults if value is not None]
        return [*node.args.defaults, *defaults, *node.body]
    if isinstance(node, ast.ClassDef):
        return node.body
    if isinstance(node, ast.AnnAssign):
        return [] if node.value is None else [node.value]
    if isinstance(node, ast.Call):
        # The name of a method is no field.
        of = [node.func.value] if isinstance(node.func, ast.Attribute) else [node.func]
        return [*of, *node.args, *(keyword.value for keyword in node.keywords)]
    return list(ast.iter_child_nodes(node))


Change = tuple[str, ast.AST, str]  # its kind, the node that is replaced, and by what


def _changed(node: ast.AST, **fields) -> str:
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return f"({ast.unparse(ast.fix_missing_locations(other))})"


def _changes(
    node: ast.AST, neutral: dict[str, str | None], params: dict[str, str]
) -> Iterator[Change]:
    if isinstance(node, ast.Call):
        yield from _changes_of_call(node, neutral)
    elif isinstance(node, ast.Dict):
        for at in range(len(node.keys)):
            keys, values = (items[:at] + items[at + 1 :] for items in (node.keys, node.values))
            yield "entry dropped", node, _changed(node, keys=keys, values=values)
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        if value := neutral.get(node.attr):
            yield "field neutral", node, f"({value})"
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        if value := _neutral(params.get(node.id, "")):
            yield "field neutral", node, f"({value})"
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        yield "condition", node.test, f"(not ({ast.unparse(node.test)}))"
    elif isinstance(node, ast.comprehension):
        for test in node.ifs:
            yield "condition", test, f"(not ({ast.unparse(test)}))"
    elif isinstance(node, ast.BoolOp):
        yield "condition", node, _changed(node, op=SWAPPED[type(node.op)]())
    elif isinstance(node, ast.Compare):
        ops = [SWAPPED[type(node.ops[0])](), *node.ops[1:]]
        yield "comparison", node, _changed(node, ops=ops)
    elif isinstance(node, ast.BinOp) and type(node.op) in SWAPPED:
        yield "operator", node, _changed(node, op=SWAPPED[type(node.op)]())
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield "entry dropped", node, f"({ast.unparse(node.left)})"
        yield "entry dropped", node, f"({ast.unparse(node.right)})"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        yield "sign", node, f"({ast.unparse(node.operand)})"
    elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
        if isinstance(node.slice, ast.Constant) and type(node.slice.value) is int:
            other = ast.Constant(0 if node.slice.value else 1)
            yield "index", node, _changed(node, slice=other)
        elif isinstance(node.slice, ast.Slice):
            for bound in ("lower", "upper", "step"):
                if getattr(node.slice, bound) is not None:
                    part = copy.copy(node.slice)
                    setattr(part, bound, None)
                    yield "index", node, _changed(node, slice=part)
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float) and not params:
        yield "constant", node, f"({node.value * 2 or 1})"
    elif isinstance(node, ast.Return) and node.value is not None:
        alike = [name for name, text in params.items() if text == params["return"]]
        for name in alike:
            if name != "return" and ast.unparse(node.value) != name:
                yield "argument returned", node, f"return {name}"
    elif isinstance(node, ast.AugAssign) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield "statement dropped", node, "pass"


def _changes_of_call(node: ast.Call, neutral: dict[str, str | None]) -> Iterator[Change]:
    name, args, keywords = ast.unparse(node.func), node.args, node.keywords
    if name in ("isinstance", "len", "getattr", "zip"):
        return
    for at, keyword in enumerate(keywords):
        before, after = keywords[:at], keywords[at + 1 :]
        yield "argument dropped", node, _changed(node, keywords=before + after)
        value = neutral.get(keyword.arg)
        if value and value != ast.unparse(keyword.value):
            yield "argument neutral", keyword.value, f"({value})"
        if isinstance(keyword.value, ast.Constant) and type(keyword.value.value) in (int, float):
            yield "constant", keyword.value, f"({keyword.value.value * 2 or 1})"
    for at in range(len(args) - 1):
        one, two = args[at : at + 2]
        if all(isinstance(arg, ast.Name | ast.Attribute) for arg in (one, two)):
            yield (
                "arguments swapped",
                node,
                _changed(node, args=[*args[:at], two, one, *args[at + 2 :]]),
            )
    if name in ("range", "np.arange", "jnp.arange"):
        fewer = ast.BinOp(args[-1], ast.Sub(), ast.Constant(1))
        yield "bound", node, _changed(node, args=[*args[:-1], fewer])
    elif args and isinstance(args[0], ast.Name | ast.Attribute | ast.Call):
        yield "call removed", node, f"({ast.unparse(args[0])})"
