"""Collectives counted in short programs written by hand, and in one that a TPU's compiler wrote."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vdm_jax.parallel import hlo

ROOT = Path(__file__).parents[2]
KIB = 1024


def program(body: str, *computations: str, header: str = "num_partitions=8") -> str:
    """A module with `body` as its entry, whose parameter %p is f32[16,16], 1 KiB."""
    lines = "\n".join(f"  {line.strip()}" for line in body.strip().splitlines())
    return (
        f"HloModule jit_step, is_scheduled=true, {header}\n\n"
        + "\n\n".join(computations)
        + "\n\nENTRY %main (p: f32[16,16]) -> f32[16,16] {\n"
        + "  %p = f32[16,16]{1,0:T(8,128)S(1)} parameter(0), sharding={replicated}\n"
        + f"{lines}\n}}\n"
    )


def computation(name: str, body: str, suffix: str = "") -> str:
    lines = "\n".join(f"  {line.strip()}" for line in body.strip().splitlines())
    return f"%{name} (q: f32[16,16]) -> f32[16,16] {{\n{lines}\n}}{suffix}"


def rows(text: str, num_devices: int = 8) -> list[tuple]:
    """(kind, group size, count, bytes, bytes on the wire) of each row; all of one network."""
    found = hlo.collectives(text, num_devices)
    assert {row.network for row in found} <= {"ici"}
    return [(r.kind, r.group_size, r.count, r.bytes, r.wire_bytes) for r in found]


ADD = computation(
    "add",
    """
    %x = f32[] parameter(0)
    %y = f32[] parameter(1)
    ROOT %z = f32[] add(%x, %y)
    """,
)
ALL = "replica_groups={{0,1,2,3,4,5,6,7}}"
REDUCE = f"%r = f32[16,16]{{1,0:T(8,128)}} all-reduce(%p), {ALL}, to_apply=%add"
INNER = f"ROOT %r = f32[16,16]{{1,0}} all-reduce(%q), {ALL}, to_apply=%add"
QUERY = "%q = f32[16,16]{1,0} parameter(0)"


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        # Ring algorithms in a group of 8 send 7/8 of the full array, an all-reduce twice that.
        (f"f32[128,16]{{1,0}} all-gather(%p), {ALL}, dimensions={{0}}",
         ("all-gather", 8, 1, 8 * KIB, 7 * KIB)),
        (f"f32[16,16]{{1,0}} all-reduce(%p), {ALL}, to_apply=%add",
         ("all-reduce", 8, 1, KIB, 2 * 7 * KIB // 8)),
        (f"f32[2,16]{{1,0}} reduce-scatter(%p), {ALL}, dimensions={{0}}, to_apply=%add",
         ("reduce-scatter", 8, 1, KIB, 7 * KIB // 8)),
        (f"f32[16,16]{{1,0}} all-to-all(%p), {ALL}, dimensions={{0}}",
         ("all-to-all", 8, 1, KIB, 7 * KIB // 8)),
        ("f32[16,16]{1,0} collective-permute(%p), channel_id=1, "
         "source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}",
         ("collective-permute", 4, 1, KIB, KIB)),
        # Asynchronous, as GPUs have them and as TPUs have permutes.
        (f"(f32[16,16]{{1,0}}, f32[128,16]{{1,0}}) all-gather-start(%p), {ALL}, dimensions={{0}}",
         ("all-gather", 8, 1, 8 * KIB, 7 * KIB)),
        (f"f32[16,16]{{1,0}} all-reduce-start(%p), {ALL}, to_apply=%add",
         ("all-reduce", 8, 1, KIB, 2 * 7 * KIB // 8)),
        (f"((f32[16,16]{{1,0}}), f32[2,16]{{1,0}}) reduce-scatter-start(%p), {ALL}, "
         "dimensions={0}, to_apply=%add", ("reduce-scatter", 8, 1, KIB, 7 * KIB // 8)),
        ("(f32[16,16]{1,0:T(8,128)S(1)}, f32[16,16]{1,0:T(8,128)}, u32[]{:S(2)}, u32[]{:S(2)}) "
         "collective-permute-start(%p), source_target_pairs={{0,1},{1,0}}",
         ("collective-permute", 2, 1, KIB, KIB)),
        # Several arrays at once.
        ("(f32[16,16]{1,0}, /*index=1*/f32[16,16]{1,0}) all-reduce(%p, /*index=1*/%p), "
         f"{ALL}, to_apply=%add", ("all-reduce", 8, 1, 2 * KIB, 2 * 2 * 7 * KIB // 8)),
    ],
)  # fmt: skip
def test_kinds(instruction, expected):
    assert rows(program(f"ROOT %r = {instruction}", ADD)) == [expected]


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", 2),
        ("{}", 8),
        ("[2,4]<=[8]", 4),
        ("[4,2]<=[2,2,2]T(2,0,1)", 2),
        ("mesh['axis_0'=8,'axis_1'=1] {'axis_0'}", 8),
        ("mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("mesh['a'=2,'b'=4] {'b':(1)2}", 2),  # half of an axis
    ],
)
def test_groups(groups, size):
    text = (
        f"ROOT %r = f32[16,16] all-reduce(%p), channel_id=1, replica_groups={groups}, to_apply=%add"
    )
    assert rows(program(text, ADD)) == [("all-reduce", size, 1, KIB, 2 * KIB * (size - 1) // size)]


def test_size_of_all_devices_is_given_where_the_text_does_not_tell():
    text = program("ROOT %r = f32[16,16] all-reduce(%p), replica_groups={}, to_apply=%add", ADD)
    assert rows(text, 2)[0][1] == 8
    assert rows(text.replace(", num_partitions=8", ""), 2)[0][1] == 2


def test_nothing_is_sent_within_one_device():
    text = """
    %a = f32[16,16] all-reduce(%p), replica_groups={{0},{1}}, to_apply=%add
    ROOT %b = f32[16,16] collective-permute(%a), source_target_pairs={{0,0},{1,1}}
    """
    assert rows(program(text, ADD)) == []


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("pred", 256), ("s8", 256), ("f8e4m3fn", 256), ("bf16", 512), ("u32", 1024), ("c64", 2048),
     ("s4", 128)],
)  # fmt: skip
def test_dtypes(dtype, size):
    text = f"""
    %c = {dtype}[16,16]{{1,0:T(8,128)(2,1)}} convert(%p)
    ROOT %r = {dtype}[16,16]{{1,0}} all-to-all(%c), {ALL}, dimensions={{0}}
    """
    assert rows(program(text))[0][3] == size


def test_calls_and_fusions_count_through_their_callers():
    bodies = [computation(f"f{i}", f"{QUERY}\n{INNER}") for i in range(4)]
    wrapper = computation("wrapped", f"{QUERY}\nROOT %w = f32[16,16] fusion(%q), calls=%f3")
    text = """
    %a = f32[16,16] fusion(%p), kind=kCustom, calls=%f0
    %b = f32[16,16] call(%a), to_apply=%f1
    %c = ((f32[16,16]), f32[16,16], s32[]) async-start(%b), calls=%f2
    %d = f32[16,16] async-done(%c)
    %e = ((f32[16,16], token[]), f32[16,16]) call-start(%d), to_apply=%wrapped
    ROOT %f = f32[16,16] call-done(%e)
    """
    unused = computation("unused", f"{QUERY}\n{INNER}")
    assert rows(program(text, ADD, *bodies, wrapper, unused)) == [
        ("all-reduce", 8, 4, 4 * KIB, 4 * 2 * 7 * KIB // 8)
    ]


def test_conditional_counts_the_branch_that_sends_most():
    small = computation("small", f"{QUERY}\n{INNER}")
    none = computation("none", f"{QUERY}\nROOT %n = f32[16,16] negate(%q)")
    twice = computation("twice", f"{QUERY}\n{INNER.replace('ROOT %r', '%s')}\n{INNER}")
    for branches in (
        "branch_computations={%none, %twice, %small}",
        "true_computation=%twice, false_computation=%none",
    ):
        text = f"""
        %i = s32[] constant(0)
        ROOT %r = f32[16,16] conditional(%i, %p, %p, %p), {branches}
        """
        assert rows(program(text, ADD, small, none, twice))[0][2] == 2


STATE = "(s32[]{:T(128)}, f32[16,16]{1,0:T(8,128)}, s32[])"


def loop(name: str, limit: str, inside: str = "", step: str = "%one") -> list[str]:
    """Condition and body of `for (i = …; i < limit; i += step)` around an all-reduce."""
    return [
        computation(
            f"{name}_condition",
            f"""
            %state = {STATE} parameter(0)
            %i = s32[] get-tuple-element(%state), index=0
            %n = s32[] get-tuple-element(%state), index=2
            %limit = s32[] {limit}
            ROOT %lt = pred[]{{:T(512)}} compare(%i, %limit), direction=LT
            """,
        ),
        computation(
            f"{name}_body",
            f"""
            %state = {STATE} parameter(0)
            %i = s32[] get-tuple-element(%state), index=0
            %n = s32[] get-tuple-element(%state), index=2
            %one = s32[] constant(1)
            %next = s32[] add(%i, {step})
            %p = f32[16,16] get-tuple-element(%state), index=1
            {inside or REDUCE}
            ROOT %out = {STATE} tuple(%next, %r, %n)
            """,
        ),
    ]


def start(name: str, config: str = "", first: str = "constant(0)") -> str:
    return f"""
    %c = s32[]{{:T(128)}} {first}
    %copy = s32[]{{:T(128)}} copy(%c)
    %two = s32[] constant(2)
    %init = {STATE} tuple(%copy, %p, %two)
    %while = {STATE} while(%init), condition=%{name}_condition, body=%{name}_body{config}
    %r = f32[16,16] get-tuple-element(%while), index=1
    """


@pytest.mark.parametrize(
    ("limit", "config", "step", "trips"),
    [
        # As the text says; what the condition is does not matter then.
        ("custom-call()", ', backend_config={"known_trip_count":{"n":"12"}}', "%one", 12),
        ("constant(6)", "", "%one", 6),
        ("constant(6)", "", "%n", 3),  # a step of 2, which the loop carries
        ("copy(%n)", "", "%one", 2),
        ("constant(0)", "", "%one", 0),
    ],
)
def test_loops(limit, config, step, trips):
    text = program(start("loop", config), ADD, *loop("loop", limit, step=step))
    assert hlo.unknown_loops(text) == 0
    assert sum(row[2] for row in rows(text)) == trips
    assert sum(row[3] for row in rows(text)) == trips * KIB


def test_nested_loops_multiply():
    inner = loop("inner", "constant(5)")
    outer = loop("outer", "constant(3)", inside=start("inner").strip())
    text = program(start("outer"), ADD, *inner, *outer)
    assert rows(text) == [("all-reduce", 8, 15, 15 * KIB, 15 * 2 * 7 * KIB // 8)]


@pytest.mark.parametrize(
    ("first", "limit", "step"),
    [
        ("custom-call()", "constant(6)", "%one"),
        ("constant(0)", "custom-call()", "%one"),
        ("constant(0)", "constant(6)", "%zero"),
    ],
)
def test_loops_of_unknown_length_count_once(first, limit, step):
    lines = [line.replace("%zero", "%i, %i, %i") for line in loop("loop", limit, step=step)]
    text = program(start("loop", first=first), ADD, *lines)
    if step == "%zero":  # for ever: 0 + 0
        text = text.replace("add(%i, %i, %i, %i)", "add(%i, %i)")
    assert hlo.unknown_loops(text) == 1
    assert rows(text)[0][2] == 1


def test_unknown_loops_that_send_nothing_do_not_matter():
    quiet = loop("loop", "custom-call()", inside="%r = f32[16,16] negate(%p)")
    assert hlo.unknown_loops(program(start("loop"), ADD, *quiet)) == 0


def chain_part(name: str, rest: str) -> str:
    gather = f'{ALL}, dimensions={{0}}, frontend_attributes={{chain_id="3"}}'
    return computation(
        name, f"{QUERY}\n%g = f32[128,16]{{1,0}} all-gather(%q), channel_id=4, {gather}\n{rest}"
    )


def test_asynchronous_chain_of_a_tpu_counts_once():
    parts = [
        chain_part(
            "begin", 'ROOT %s = () custom-call(%g), custom_call_target="AsyncCollectiveStart"'
        ),
        chain_part("carry.1", "%w = f32[16,16] dot(%q, %q)\nROOT %t = () tuple(%w, %q, %g)"),
        chain_part("carry.2", "%w = f32[16,16] dot(%q, %q)\nROOT %t = () tuple(%w, %q, %g)"),
        chain_part("end", 'ROOT %d = () custom-call(%g), custom_call_target="AsyncCollectiveDone"'),
    ]
    text = """
    %a = () fusion(%p), kind=kCustom, calls=%begin
    %b = () fusion(%p), kind=kOutput, calls=%carry.1
    %c = () fusion(%p), kind=kOutput, calls=%carry.2
    ROOT %d = f32[128,16] fusion(%p), kind=kCustom, calls=%end
    """
    once = [("all-gather", 8, 1, 8 * KIB, 7 * KIB)]
    assert rows(program(text, *parts)) == once
    # Should a later compiler give the beginning another name.
    assert rows(program(text, *parts).replace('"AsyncCollectiveStart"', '"Begin"')) == once


def test_fusion_of_all_reduce_and_slice_is_a_reduce_scatter():
    kept = "ROOT %k = f32[2,16]{1,0} dynamic-slice(%r, %i, %i), dynamic_slice_sizes={2,16}"
    body = f"{QUERY}\n{INNER.removeprefix('ROOT ')}\n%i = s32[] constant(0)\n{kept}"
    fused = computation("all-reduce-scatter", body)
    text = "ROOT %f = f32[2,16] fusion(%p), kind=kCustom, calls=%all-reduce-scatter"
    assert rows(program(text, ADD, fused)) == [("reduce-scatter", 8, 1, KIB, 7 * KIB // 8)]
    # Two instructions that follow each other are what they are.
    text = f"{REDUCE}\n%i = s32[] constant(0)\n{kept}"
    assert rows(program(text, ADD)) == [("all-reduce", 8, 1, KIB, 2 * 7 * KIB // 8)]


@pytest.mark.parametrize(
    ("transfer", "target", "kind", "size", "wire"),
    [
        ("ALL_REDUCE", '"{1,2,3,4}x{0:7}"', "all-reduce", KIB, 2 * 3 * KIB // 4),
        ("ALL_GATHER", "{{100000,200000,300000,400000},{100001,200001,300001,400001}}",
         "all-gather", 4 * KIB, 3 * KIB),
        ("REDUCE_SCATTER", '"{1,2,3,4}x{0:7}"', "reduce-scatter", KIB, 3 * KIB // 4),
        ("ALL_TO_ALL", '"{1,2,3,4}x{0:7}"', "all-to-all", KIB, 3 * KIB // 4),
        ("ONE_TO_ONE", "{{100000->200000},{200000->100000}}", "collective-permute", KIB, KIB),
    ],
)  # fmt: skip
def test_transfers_between_slices(transfer, target, kind, size, wire):
    attributes = (
        "channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="
        f'"xla_megascale_runtime",_xla_megascale_target={target},'
        f'_xla_megascale_transfer_type="{transfer}"}}'
    )
    text = f"""
    %t = token[] after-all()
    %s = (f32[16,16], u32[], token[]) send(%p, %t), {attributes}
    %r = (f32[16,16], u32[], token[]) recv(%t), {attributes}
    %d = token[] send-done(%s), channel_id=2, is_host_transfer=true
    """
    (row,) = hlo.collectives(program(text), 8)
    assert (row.kind, row.network, row.count) == (kind, "dcn", 1)
    assert row.group_size == (2 if kind == "collective-permute" else 4)
    assert (row.bytes, row.wire_bytes) == (size, wire)


def test_rows_are_by_kind_and_group_and_in_order():
    text = f"""
    {REDUCE}
    %s = f32[16,16] all-reduce(%p), replica_groups=[4,2]<=[8], to_apply=%add
    %t = f32[16,16] all-reduce(%s), replica_groups={{{{0,1}},{{2,3}},{{4,5}},{{6,7}}}}
    ROOT %g = f32[128,16] all-gather(%p), {ALL}, dimensions={{0}}
    """
    found = rows(program(text, ADD))
    assert [row[:3] for row in found] == [
        ("all-gather", 8, 1),
        ("all-reduce", 2, 2),
        ("all-reduce", 8, 1),
    ]


# Layers of two matrices, cut up over all devices: gathered before use, forwards and again
# backwards; their gradients are added up over all clips, each device keeping its part. They are
# stored in bfloat16, for the compiler chooses on which side of a gather it converts.
FSDP = """
import json, sys
from vdm_jax.parallel import hlo
from vdm_jax.parallel.topology import parse_topology, prepare_environment
machine = parse_topology(sys.argv[1])
prepare_environment(machine)
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
mesh = Mesh(np.array(machine.devices()), "fsdp")
layers, width, hidden, clips = 5, 512, 1024, 64 * machine.num_devices

def sharded(*axes):
    return NamedSharding(mesh, PartitionSpec(*axes))

def layer(x, weights):
    w1, w2 = (jax.lax.with_sharding_constraint(w, sharded(None, None)) for w in weights)
    x = x + jax.nn.gelu(x @ w1) @ w2
    return jax.lax.with_sharding_constraint(x, sharded("fsdp", None)), None

def loss(weights, x):
    x, _ = jax.lax.scan(jax.checkpoint(layer), x, weights)
    return jnp.mean(x.astype(jnp.float32) ** 2)

cut = sharded(None, "fsdp", None)
weights = tuple(
    jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=cut)
    for shape in [(layers, width, hidden), (layers, hidden, width)]
)
x = jax.ShapeDtypeStruct((clips, width), jnp.bfloat16, sharding=sharded("fsdp", None))
step = jax.jit(jax.grad(loss), out_shardings=(cut, cut))
text = step.lower(weights, x).compile().as_text()
rows = hlo.collectives(text, machine.num_devices)
print(json.dumps([hlo.unknown_loops(text), [[r.kind, r.group_size, r.bytes] for r in rows]]))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='needs libtpu: pip install "jax[tpu]"'
)
@pytest.mark.parametrize(("machine", "devices"), [("v5e:4x4", 16), ("v5p:4x4x4", 64)])
def test_bytes_of_a_sharded_program_compiled_for_a_tpu(machine, devices):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TPU_", "JAX_", "XLA_"))}
    done = subprocess.run(
        [sys.executable, "-c", FSDP, machine],
        env={**kept, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    unknown, found = json.loads(done.stdout)
    assert unknown == 0
    assert {size for _, size, _ in found} == {devices}
    weights = 5 * 2 * 512 * 1024 * 2  # layers, matrices, elements, bytes
    # Over the whole torus of a v5p, gathers are all-reduces of padded arrays: the sum is the same.
    assert sum(size for _, _, size in found) == pytest.approx(3 * weights, rel=0.02)
    if machine == "v5e:4x4":
        gathered = sum(size for kind, _, size in found if kind == "all-gather")
        assert gathered == pytest.approx(2 * weights, rel=0.02)
