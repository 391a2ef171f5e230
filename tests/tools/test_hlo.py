"""The reading of compiled programs."""

import pytest

from benchmarks import hlo_traffic
from flax_mnv2.tools.tpu_compile import hlo

PROGRAM = """\
HloModule jit_step, is_scheduled=true

%inner (p: bf16[8,32]) -> bf16[8,32] {
  %p = bf16[8,32]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %c = bf16[8,32]{1,0:T(8,128)(2,1)} convolution(%p, %p), window={}
}

%body (s: (s32[], f32[1024])) -> (s32[], f32[1024]) {
  %s = (s32[]{:T(128)}, f32[1024]{0:T(1024)}) parameter(0)
  %i = f32[1024]{0:T(1024)} get-tuple-element(%s), index=1
  %n = f32[1024]{0:T(1024)} negate(%i)
  ROOT %t = (s32[]{:T(128)}, f32[1024]{0:T(1024)}) tuple(%i, %n)
}

ENTRY %main (x: bf16[8,32], w: f32[10,3]) -> (bf16[8,32], f32[10]) {
  %x = bf16[8,32]{1,0:T(8,128)(2,1)} parameter(0)
  %w = f32[10,3]{0,1:T(8,128)} parameter(1)
  %copy-start.1 = (f32[10,3]{0,1:T(8,128)S(1)}, f32[10,3]{0,1:T(8,128)}, u32[]{:S(2)}) copy-start(%w)
  %copy-done.1 = f32[10,3]{0,1:T(8,128)S(1)} copy-done(%copy-start.1)
  %fusion.1 = (bf16[8,32]{1,0:T(8,128)(2,1)}, f32[10]{0:T(128)S(1)}, /*index=2*/f32[])\
 fusion(%x, %copy-done.1), kind=kOutput, calls=%inner, metadata={op_name="jit(step)/transpose(jvp(Net))/mobilenet_v2/\
layer_01/conv_3x3/convolution/dot_general" id=1}, backend_config={"estimated_cycles":"150"}
  %all-reduce.1 = (f32[10]{0:T(128)}, bf16[4,2]{1,0:T(8,128)}) all-reduce(%g, %h), to_apply=%add
  %all-reduce-start.1 = f32[100]{0:T(128)} all-reduce-start(%g), to_apply=%add
  %all-reduce-done.1 = f32[100]{0:T(128)} all-reduce-done(%all-reduce-start.1)
  %ag = (f32[4]{0}, f32[64]{0}) all-gather-start(%g), dimensions={0}
  %agd = f32[64]{0} all-gather-done(%ag)
  %cp = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%g)
  %while.1 = (s32[]{:T(128)}, f32[1024]{0:T(1024)}) while(%t), condition=%cond, body=%body,\
 backend_config={"known_trip_count":{"n":"5"}}
  %part = f32[1,3]{0,1:T(8,128)} slice(%w), slice={[0:1], [0:3]}
  %dus = f32[10,3]{0,1:T(8,128)} dynamic-update-slice(%w, %part, %i)
  ROOT %out = (bf16[8,32]{1,0:T(8,128)(2,1)}, f32[10]{0:T(128)}) tuple(%y, %z)
}
"""


@pytest.mark.parametrize(
    ("shape", "logical", "padded", "space"),
    [
        ("f32[]", 4, 4, 0),
        ("f32[10]{0:T(128)}", 40, 512, 0),
        ("bf16[8,112,112,32]{3,0,2,1:T(8,128)(2,1)}", 8 * 112 * 112 * 32 * 2, 8 * 112 * 112 * 128 * 2, 0),
        ("bf16[128,112,112,32]{0,3,2,1:T(8,128)(2,1)S(1)}", 128 * 112 * 112 * 32 * 2, 128 * 112 * 112 * 32 * 2, 1),
        ("u8[3,5]{1,0}", 15, 15, 0),
        ("pred[4]{0:T(4,128)}", 4, 512, 0),
    ],
)
def test_shapes(shape, logical, padded, space):
    (array,) = hlo.parse_shape(shape)
    assert (array.logical_bytes, array.bytes, array.space) == (logical, padded, space)


def test_instruction():
    line = next(line for line in PROGRAM.splitlines() if "%fusion.1" in line)
    instruction = hlo.parse_instruction(line)
    assert (instruction.name, instruction.opcode) == ("fusion.1", "fusion")
    assert instruction.operands == ("x", "copy-done.1")
    assert [(array.dtype, array.dims) for array in instruction.results] == [
        ("bf16", (8, 32)),
        ("f32", (10,)),
        ("f32", ()),
    ]


def test_layers():
    (fusion,) = (each for each in hlo_traffic.traffic_of(hlo.Module(PROGRAM)) if each.instruction.name == "fusion.1")
    assert fusion.cycles == 150
    assert hlo_traffic.layer_of(fusion.op_name) == "layer_01/conv_3x3 backward"
    assert hlo_traffic.layer_of("jit(step)/add") == "update, loss and input"
    assert hlo_traffic.layer_of("jit(step)/jvp(Net)/classifier/dot_general") == "classifier forward"


def test_module():
    module = hlo.Module(PROGRAM)
    assert module.entry == "main"
    assert hlo_traffic.count(module, "convolution") == 1
    moved = {each.instruction.name: each for each in hlo_traffic.traffic_of(module)}
    runs = {run.instruction.name: [sum(array.bytes for array in way) for way in run.moved()] for run in module.runs()}
    # The fusion reads and writes an array that is padded to 128 lanes; the other two stay on the chip or are scalars.
    assert runs["fusion.1"] == [8 * 128 * 2, 8 * 128 * 2 + 4]
    assert runs["copy-start.1"] == [8 * 128 * 4, 0]
    assert runs["c"] == [0, 0]  # inside of the fusion, which moves the data
    assert moved["n"].bytes == 5 * 2 * 4096  # a loop of five turns
    assert (moved["part"].bytes, moved["dus"].bytes) == (2 * 8 * 128 * 4,) * 2  # no more than the slice
    assert not {"copy-done.1", "x", "out", "all-reduce-done.1"} & moved.keys()
    assert module.hbm_bytes() == sum(each.bytes for each in moved.values())


def test_collectives():
    found = hlo.Module(PROGRAM).collectives()
    assert found == {"all-reduce": [40 + 16, 400], "all-gather": [256], "collective-permute": [32]}


LOOPS = """\
HloModule jit_step

%part (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %sum = f32[8]{0:T(128)} all-reduce(%x), to_apply=%add
  ROOT %t = (s32[], f32[8]) tuple(%i, %sum)
}

%more (s: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(6)
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%left (x: f32[4]) -> f32[4] {
  ROOT %permuted = f32[4]{0} collective-permute(%x), source_target_pairs={{0,1}}
}

%right (x: f32[4]) -> f32[4] {
  ROOT %negated = f32[4]{0} negate(%x)
}

%later (x: f32[2]) -> f32[4] {
  ROOT %gathered = f32[4]{0} all-gather(%x), dimensions={0}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %a = (s32[], f32[8]) while(%s), condition=%more, body=%part
  %b = (s32[], f32[8]) while(%s), condition=%more, body=%part, backend_config={"known_trip_count":{"n":"2"}}
  %c = (s32[], f32[8]) while(%s), condition=%absent, body=%part
  %d = f32[4]{0} conditional(%i, %x, %x), branch_computations={%left, %right}
  %e = ((f32[2]), f32[4], s32[]) async-start(%x), calls=%later
  %f = f32[4]{0} async-done(%e), calls=%later
  ROOT %out = f32[8]{0} get-tuple-element(%a), index=1
}
"""


def test_loops_count_as_often_as_they_turn():
    module = hlo.Module(LOOPS)
    assert module.loops() == [6, 2, 1]  # by its condition, by the compiler's note, unknown
    assert module.collectives() == {"all-reduce": [32] * 9, "collective-permute": [16], "all-gather": [16]}
