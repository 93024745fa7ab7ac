"""The time of a compiled program: cycles × trips, and a roofline for what has none. Without libtpu, on written text."""

from types import SimpleNamespace

import pytest

from gpt_jax.analysis.chips import CHIPS, chip_of
from gpt_jax.analysis.estimate import estimate
from gpt_jax.analysis.hlo import parse
from gpt_jax.analysis.links import replica_groups
from gpt_jax.analysis.live import origin, peak

V5E = CHIPS[1]
# A loop of 8 with a loop of 12 inside: one bound is the compiler's, the other only in the condition. The attributes of
# the kernel have line breaks, and one of their lines starts with a brace, as those of splash attention do.
PROGRAM = """HloModule jit_step, is_scheduled=true

FileNames
1 "/x/gpt_jax/training/optimizer.py"
2 "/x/gpt_jax/training/step.py"

FunctionNames
1 "update"

FileLocations
1 {file_name_id=2 function_name_id=1 line=60 end_line=60 column=1 end_column=2}
2 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%fused (p.0: bf16[8,128]) -> bf16[8,128] {
  %p.0 = bf16[8,128]{1,0} parameter(0)
  ROOT %n = bf16[8,128]{1,0} negate(%p.0)
}

%inner_body (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %p = (s32[]{:T(128)}, /*index=1*/bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %f.1 = bf16[8,128]{1,0} fusion(%x), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/mlp/up/dot_general"}, \
backend_config={"window_config":{"estimated_cycles":"1000"}}
  %splash_mha_fwd.1 = bf16[1,2,512,64]{3,2,1,0} custom-call(%q, %k, %v), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"a":"b"
}}, metadata={op_name="jit(step)/attention/pallas_call"}, backend_config={"custom_call_config":{}}
  %q = bf16[1,2,512,64]{3,2,1,0} get-tuple-element(%p), index=1
  %k = bf16[1,1,512,64]{3,2,1,0} get-tuple-element(%p), index=1
  %v = bf16[1,1,512,64]{3,2,1,0} get-tuple-element(%p), index=1
  %f.2 = bf16[8,128]{1,0} fusion(%f.1), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/add" stack_frame_id=2}, \
backend_config={"window_config":{"estimated_cycles":"500"}}
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %t = (s32[], bf16[8,128]{1,0}) tuple(%i, %f.2)
}

%inner_condition (p.1: (s32[], bf16[8,128])) -> pred[] {
  %c = s32[]{:T(128)} constant(12)
  %p.1 = (s32[]{:T(128)}, bf16[8,128]{1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %c), direction=LT
}

%outer_body (p.2: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %p.2 = (s32[], bf16[8,128]{1,0}) parameter(0)
  %start = s32[] constant(2)
  %x.2 = bf16[8,128]{1,0} get-tuple-element(%p.2), index=1
  %t.2 = (s32[], bf16[8,128]{1,0}) tuple(%start, %x.2)
  ROOT %while.1 = (s32[], bf16[8,128]{1,0}) while(%t.2), condition=%inner_condition, body=%inner_body
}

ENTRY %main (a: bf16[8,128]) -> bf16[8,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %t.3 = (s32[], bf16[8,128]{1,0}) tuple(%zero, %a)
  %while.2 = (s32[], bf16[8,128]{1,0}) while(%t.3), condition=%unseen, body=%outer_body, \
backend_config={"known_trip_count":{"n":"8"}}
  %g = f32[450,1000,1000]{2,1,0} get-tuple-element(%while.2), index=1
  %all-reduce-start.1 = f32[450,1000,1000]{2,1,0} all-reduce-start(%g), replica_groups=[2,2]<=[4], to_apply=%add
  %f.3 = bf16[8,128]{1,0} fusion(%a), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"1502990723"}
  ROOT %all-reduce-done.1 = f32[450,1000,1000]{2,1,0} all-reduce-done(%all-reduce-start.1)
}
"""


def devices(count=4, hosts=1):
    return [
        SimpleNamespace(device_kind="TPU v5 lite", coords=(n % 2, n // 2, 0), process_index=n * hosts // count)
        for n in range(count)
    ]


def test_cycles_are_multiplied_by_the_trips_of_the_loops_around():
    found = estimate(parse(PROGRAM), V5E, devices())
    assert found.unknown == []
    runs = {item.name: item.runs for item in found.items}
    assert runs["f.1"] == runs["f.2"] == 8 * (12 - 2)
    assert found.cycles == pytest.approx(80 * 1500 + V5E.clock, rel=1e-6)
    kinds = found.by_kind()
    assert kinds["attention kernel"] > 0  # by its scope, which follows the line breaks
    assert kinds["mlp"] == pytest.approx(80 * 1000 / V5E.clock)
    assert kinds["optimizer"] == pytest.approx(80 * 500 / V5E.clock)  # by its source line
    assert sum(kinds.values()) == pytest.approx(found.seconds)


def test_a_kernel_without_cycles_gets_a_roofline_and_is_listed():
    assert estimate(parse(PROGRAM), V5E, devices(), visible=0.5).kernels() == {
        # Two products of 2 heads, with a width of 64 filled up to the 128 of the matrix unit.
        "splash_mha_fwd": pytest.approx(80 * 2 * 2 * (2 * 512 * 512 * 128) * 0.5 / V5E.flops)
    }


def test_what_runs_beside_a_collective_hides_it():
    found = estimate(parse(PROGRAM), V5E, devices())
    # 1.8 GB summed in pairs: each chip sends 2 × ½ of them over one link of 45 GB/s, and 1 s of it passes beside f.3.
    assert found.sent() == {"all-reduce": 1.8e9}
    assert found.traffic[0].seconds == pytest.approx(0.04)
    assert "collectives" not in found.by_kind()
    slow = parse(PROGRAM.replace("450,1000,1000", "22500,1000,1000"))
    assert estimate(slow, V5E, devices()).by_kind()["collectives"] == pytest.approx(1.0, abs=1e-6)


def test_bytes_between_hosts_are_counted_apart():
    assert estimate(parse(PROGRAM), V5E, devices(hosts=2)).sent_between_hosts() == {}  # pairs stay on a host
    assert estimate(parse(PROGRAM), V5E, devices(hosts=4)).sent_between_hosts() == {"all-reduce": 1.8e9}


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0','axis_1'}", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['axis_0'=4] {'axis_0':(1)2}", [[0, 2], [1, 3]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
        ("", [[0, 1, 2, 3]]),
    ],
)
def test_groups_of_chips_are_read_in_every_spelling(text, groups):
    assert replica_groups(f", channel_id=1, {text}, use_global_device_ids=true", 4) == groups


def test_an_unknown_kind_of_chip_is_refused():
    with pytest.raises(ValueError, match='no peaks are known for "TPU v99"'):
        chip_of(SimpleNamespace(device_kind="TPU v99"))
    assert chip_of(SimpleNamespace(device_kind="TPU v5")).name == "v5p"


# The TPU compiler writes a gather that goes on beside other work into three fusions: the first starts it, the second
# multiplies meanwhile, the third waits. Here each chip sends 3 × 30 MB over two lines of one link each: 1 ms.
BESIDE = """HloModule jit_step, is_scheduled=true

%first (p.0: bf16[15000000]) -> (bf16[15000000], bf16[60000000]) {
  %p.0 = bf16[15000000]{0} parameter(0)
  %all-gather.1 = bf16[60000000]{0} all-gather(%p.0), replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %start = (bf16[15000000]{0}, bf16[60000000]{0}) custom-call(%all-gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.2 (p.1: bf16[15000000]) -> (bf16[8,8], bf16[60000000]) {
  %p.1 = bf16[15000000]{0} parameter(0)
  %all-gather.2 = bf16[60000000]{0} all-gather(%p.1), replica_groups=[1,4]<=[4], dimensions={0}
  %product = bf16[8,8]{1,0} negate(%p.1)
  ROOT %t = (bf16[8,8]{1,0}, bf16[60000000]{0}) tuple(%product, %all-gather.2)
}

%last (p.2: bf16[15000000]) -> bf16[60000000] {
  %p.2 = bf16[15000000]{0} parameter(0)
  %all-gather.3 = bf16[60000000]{0} all-gather(%p.2), replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %done = bf16[60000000]{0} custom-call(%all-gather.3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (a: bf16[15000000]) -> bf16[60000000] {
  %a = bf16[15000000]{0} parameter(0)
  %async-start = (bf16[15000000]{0}, bf16[60000000]{0}) fusion(%a), kind=kCustom, calls=%first
  %g.1 = bf16[60000000]{0} get-tuple-element(%async-start), index=1
  %fusion.2 = (bf16[8,8]{1,0}, bf16[60000000]{0}) fusion(%g.1), kind=kOutput, calls=%async_collective_fusion.2, \
metadata={op_name="jit(step)/mlp/up/dot_general"}, backend_config={"estimated_cycles":"CYCLES"}
  %g.2 = bf16[60000000]{0} get-tuple-element(%fusion.2), index=1
  ROOT %async-done = bf16[60000000]{0} fusion(%g.2), kind=kCustom, calls=%last
}
"""


@pytest.mark.parametrize(("cycles", "waits"), [(600_000, 1e-3 - 600_000 / V5E.clock), (3_000_000, 0.0)])
def test_a_collective_in_fusions_counts_once_and_where_it_is_waited_for(cycles, waits):
    found = estimate(parse(BESIDE.replace("CYCLES", str(cycles))), V5E, devices())
    assert found.sent() == {"all-gather": 90e6}
    kinds = found.by_kind()
    assert kinds["mlp"] == pytest.approx(cycles / V5E.clock)
    assert kinds.get("collectives", 0.0) == pytest.approx(waits)


# A loop that collects the results of its steps in an array which is made before it, without contents.
COLLECTED = """HloModule jit_step, is_scheduled=true

%body (p: (s32[], bf16[4,8,64], f32[8,100])) -> (s32[], bf16[4,8,64], f32[8,100]) {
  %p = (s32[], bf16[4,8,64]{2,1,0:T(8,128)(2,1)}, f32[8,100]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %all = bf16[4,8,64]{2,1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %x = f32[8,100]{1,0:T(8,128)} get-tuple-element(%p), index=2
  %made = bf16[8,64]{1,0:T(8,128)(2,1)} tanh(%x), metadata={op_name="jit(step)/blocks/mlp/tanh"}
  %update = bf16[4,8,64]{2,1,0:T(8,128)(2,1)} dynamic-update-slice(%all, %made, %i)
  %here = f32[8,100]{1,0:T(8,128)S(1)} exponential(%x)
  %next = f32[8,100]{1,0:T(8,128)} negate(%here)
  ROOT %t = (s32[], bf16[4,8,64]{2,1,0}, f32[8,100]{1,0}) tuple(%i, %update, %next)
}

ENTRY %main (a: f32[8,100]) -> bf16[4,8,64] {
  %a = f32[8,100]{1,0:T(8,128)} parameter(0)
  %zero = s32[] constant(0)
  %empty = bf16[4,8,64]{2,1,0:T(8,128)(2,1)} custom-call(), custom_call_target="AllocateBuffer"
  %x.1 = f32[8,100]{1,0:T(8,128)} negate(%a)
  %t.1 = (s32[], bf16[4,8,64]{2,1,0}, f32[8,100]{1,0}) tuple(%zero, %empty, %x.1)
  %while.1 = (s32[], bf16[4,8,64]{2,1,0}, f32[8,100]{1,0}) while(%t.1), condition=%unseen, body=%body
  ROOT %out = bf16[4,8,64]{2,1,0} get-tuple-element(%while.1), index=1
}
"""


def test_the_arrays_at_the_peak_are_named_by_what_fills_them():
    program = parse(COLLECTED)
    total, held = peak(program)
    # Tiles of 8 × 128 fill up the last axis; `here` is in the cache, and the next state takes the place of the old one.
    assert [(h.op.name, h.array.stored) for h in held] == [
        ("empty", 4 * 8 * 128 * 2),
        ("x.1", 8 * 128 * 4),
        ("made", 2048),
    ]
    assert total == sum(h.array.stored for h in held)
    assert origin(program, held[0]).scope == "jit(step)/blocks/mlp/tanh"


def test_a_fusion_that_the_compiler_named_is_of_the_kind_of_what_is_in_it():
    named = PROGRAM.replace('op_name="jit(step)/mlp/up/dot_general"', 'op_name="convert.1"')
    assert "mlp" not in estimate(parse(named), V5E, devices()).by_kind()
    inside = named.replace("negate(%p.0)", 'negate(%p.0), metadata={op_name="jit(step)/blocks/attention/rope/mul"}')
    assert estimate(parse(inside), V5E, devices()).by_kind()["attention"] >= 80 * 1000 / V5E.clock
