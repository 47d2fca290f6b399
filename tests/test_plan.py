"""What is read of compiled programs, and what is made of it, against numbers by hand."""

import json
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT, load_script

from disguide_jax.core import backend
from disguide_jax.core.types import Stage
from disguide_jax.errors import UserError
from disguide_jax.run import program
from disguide_jax.study import flops, gpus, hlo, plan

# Compiled for an H100: rounds that take two images of a ring of 100, convolve them 500 times in
# an inner loop, and put them back.
LOOP = (ROOT / "tests/data/loop.hlo").read_text()
IMAGES, KERNEL = 2 * 8 * 8 * 16, 3 * 3 * 16 * 16
BF16, F32, S32 = 2, 4, 4
MOVED = {
    "loop_convert_fusion": (
        501,
        500 * KERNEL * (F32 + BF16) + IMAGES * (F32 + BF16) + 2 * S32 + S32,  # gathers 2 of 100
    ),
    "__cudnn$convBiasActivationForward": (500, 500 * BF16 * (2 * IMAGES + KERNEL + 16)),
    "copy": (501, 500 * 2 * IMAGES * BF16 + 2 * S32),
    "loop_broadcast_fusion": (500, 500 * 16 * BF16),
    "input_scatter_fusion": (1, IMAGES * (BF16 + F32) + S32),  # in place: not the ring
    "loop_add_fusion": (501, 501 * 2 * S32),
}


def test_bytes_of_a_recorded_loop_are_those_counted_by_hand():
    traffic = hlo.Loop(LOOP).traffic()
    assert traffic == MOVED
    moved = [m.num_bytes for m in traffic.values()]
    assert moved == sorted(moved, reverse=True)


def test_convolutions_are_counted_with_their_type_and_layout():
    assert hlo.Loop(LOOP).convolutions() == {"bf16 NHWC": 500}
    turned = LOOP.replace("dim_labels=b01f_", "dim_labels=bf01_")
    assert hlo.Loop(turned).convolutions() == {"bf16 NCHW": 500}


def test_a_ring_that_is_not_sliced_is_read_whole():
    """What feeds a scatter beside it, or anything else, is not free."""
    text = LOOP.replace(
        "gather(%param_0.11, %bitcast.1.3)", "custom-call(%param_0.11, %bitcast.1.3)"
    )
    ring = 100 * 8 * 8 * 16 * F32
    more = ring - IMAGES * F32
    found = hlo.Loop(text).traffic()["loop_convert_fusion"].num_bytes
    assert found == MOVED["loop_convert_fusion"][1] + more


def test_of_branches_the_costlier_is_counted():
    text = """
%small (p.0: f32[8]) -> f32[8] {
  %p.0 = f32[8]{0} parameter(0)
  ROOT %n.0 = f32[8]{0} negate(%p.0)
}

%large (p.1: f32[8]) -> f32[8] {
  %p.1 = f32[8]{0} parameter(0)
  %n.1 = f32[8]{0} negate(%p.1)
  ROOT %n.2 = f32[8]{0} negate(%n.1)
}

%body (p.2: (f32[8], s32[])) -> (f32[8], s32[]) {
  %p.2 = (f32[8]{0}, s32[]) parameter(0)
  %x = f32[8]{0} get-tuple-element(%p.2), index=0
  %i = s32[] get-tuple-element(%p.2), index=1
  %y = f32[8]{0} conditional(%i, %x, %x), branch_computations={%small, %large}
  %z = f32[2]{0} dynamic-slice(%y, %i), dynamic_slice_sizes={2}
  %w = f32[8]{0} dynamic-update-slice(%y, %z, %i)
  ROOT %t = (f32[8]{0}, s32[]) tuple(%w, %i)
}

ENTRY %main (a: (f32[8], s32[])) -> (f32[8], s32[]) {
  %a = (f32[8]{0}, s32[]) parameter(0)
  ROOT %while.1 = (f32[8]{0}, s32[]) while(%a), condition=%c, body=%body
}
"""
    assert hlo.Loop(text).traffic() == {
        "negate": (2, 2 * (32 + 32)),
        "dynamic-slice": (1, 8 + 4 + 8),
        "dynamic-update-slice": (1, 8 + 4 + 8),
    }


def test_sizes_of_shapes():
    assert hlo.size("bf16[256,32,32,64]{3,2,1,0}") == 2 * 256 * 32 * 32 * 64
    assert hlo.size("(f32[], pred[8]{0}, /*index=2*/u8[0]{0}, s32[3]{0:S(5)})") == 4 + 8 + 12


def compiled(*, arguments: int, temporaries: int) -> types.SimpleNamespace:
    stats = types.SimpleNamespace(
        argument_size_in_bytes=arguments,
        output_size_in_bytes=arguments,
        alias_size_in_bytes=arguments - 10,
        temp_size_in_bytes=temporaries,
        generated_code_size_in_bytes=0,
    )
    return types.SimpleNamespace(as_text=lambda: LOOP, memory_analysis=lambda: stats)


STAGE = Stage("train", num_rounds=3_600, queries=250)


def test_times_are_those_of_bytes_and_products_whichever_take_longer():
    gpu = gpus.GPUS["h100"]._replace(bandwidth=1e9, tflops={"bfloat16": 2e-3, "float32": 1e-3})
    few = plan.make_row(gpu, STAGE, compiled(arguments=20, temporaries=5), {"bfloat16": 1})
    total = sum(num_bytes for _, num_bytes in MOVED.values())
    assert few["bytes_moved"] == total
    assert few["least_seconds_by_bytes"] == pytest.approx(total / 0.9e9)
    assert few["most_queries_per_second"] == pytest.approx(250 / (total / 0.9e9))
    assert few["least_hours"] == pytest.approx(total / 0.9e9)
    flop = {"bfloat16": 4 * 10**9, "float32": 10**9}
    many = plan.make_row(gpu, STAGE, compiled(arguments=20, temporaries=5), flop)
    assert many["least_seconds_by_products"] == pytest.approx((2 + 1) / 0.8)
    assert many["most_queries_per_second"] == pytest.approx(250 / (3 / 0.8))
    assert "3,600 rounds of 250 queries" in plan.format_row({"case": "h100", **many})


@pytest.mark.parametrize(
    ("temporaries", "said"),
    [
        (700 - 30, "  memory        fits: "),
        (760 - 30, "fits with XLA_PYTHON_CLIENT_MEM_FRACTION=0.9: "),
        (910 - 30, "does not fit: "),
    ],
)
def test_memory_fits_what_jax_takes_by_itself_or_can_be_told_to_take(temporaries, said):
    """20 arguments of which 10 are updated in place, and 10 new outputs."""
    gpu = gpus.GPUS["h100"]._replace(memory=1000)
    row = plan.make_row(gpu, STAGE, compiled(arguments=20, temporaries=temporaries), {})
    assert row["memory"]["needed"] == 20 + 10 + temporaries
    assert row["memory"]["preallocated"] == 750
    assert said in plan.format_row({"case": "h100", **row})


def test_products_are_told_apart_by_type():
    def products(a, b):
        half = a.astype(jnp.bfloat16) @ b.astype(jnp.bfloat16)
        with jax.default_matmul_precision("highest"):
            exact = a @ b
        return half + exact + a @ b + a @ (a @ b)

    square = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    one = 2 * 4**3
    found = flops.products_of(products, square, square)
    assert found == {"bfloat16": one, "float32": one, "tf32": 3 * one}
    assert flops.flops_of(products, square, square) == 5 * one


def test_what_is_pretended_ends_with_its_block():
    config = load_script(ROOT / "configs/digits_hard.py").get_config()
    with backend.pretended("gpu"):
        assert not backend.loops_are_slow()
        resolved = program.resolve(config)
        assert (resolved.precision, resolved.rounds_per_call) == ("bfloat16", 20)
    assert backend.name() == "cpu"
    assert program.resolve(config).precision == "float32"


def test_the_shapes_of_a_victim_are_those_of_its_file():
    config = load_script(ROOT / "configs/digits_hard.py").get_config()
    victim, task = plan.victim_shapes(config)
    leaves = jax.tree.leaves(victim)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert (task.size, task.channels, task.num_classes) == (32, 1, 10)
    assert victim.hard_labels


def test_what_cannot_be_planned_is_refused(monkeypatch):
    config = load_script(ROOT / "configs/digits_hard.py").get_config()
    monkeypatch.setattr(plan, "_is_installed", lambda module: False)
    with pytest.raises(UserError, match=r"pip install -e '.\[cuda12\]'"):
        list(plan.bench_plan(config, ["h100"], print))
    config = load_script(ROOT / "configs/endpoint_http.py").get_config()
    with pytest.raises(UserError, match=r"config.victim.endpoint is 'http://"):
        list(plan.bench_plan(config, ["h100"], print))


@pytest.mark.slow
def test_a_narrow_round_is_planned_where_there_is_no_gpu(tmp_path):
    if not any(plan._is_installed(plugin) for plugin in plan.PLUGINS):
        pytest.skip("needs the extra cuda12: what compiles for GPUs")
    path = tmp_path / "plan.json"
    command = [sys.executable, "scripts/bench.py", "--suite=plan", "--gpu=rtx4090"]
    command += ["--config=configs/digits_hard.py:smoke", f"--json={path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(path.read_text())["results"]
    assert row["gpu"] == "NVIDIA GeForce RTX 4090"
    assert row["memory"]["fits"]
    assert 0 < row["memory"]["aliased"] <= row["memory"]["arguments"]
    assert sum(row["convolutions"].values()) > 10
    assert 0 < row["bytes_moved"] < 1e9
    assert row["flops"].keys() == {"bfloat16", "float32"}  # the victim's are exact
    assert "times are lower bounds" in done.stdout
