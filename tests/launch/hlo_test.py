"""Collectives are counted as often as they run, with the bytes that arrive."""

from launch.fit import hlo
from launch.fit.hlo import Traffic

# In the form that libtpu prints, shortened.
PROGRAM = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%all-reduce-scatter.3 (g: f32[64,8]) -> f32[16,8] {
  %g = f32[64,8]{1,0:T(8,128)} parameter(0)
  %all-reduce.7 = f32[64,8]{1,0:T(8,128)} all-reduce(%g), to_apply=%add
  ROOT %slice = f32[16,8]{1,0:T(8,128)} slice(%all-reduce.7), slice={[0:16], [0:8]}
}

%inner_body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[], bf16[4,8]) parameter(0)
  %v = bf16[4,8]{1,0} get-tuple-element(%p), index=1
  %moved = (bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[], u32[]) collective-permute-start(%v)
  ROOT %t = (s32[], bf16[4,8]) tuple(%p, %v)
}

%inner_condition (p.1: (s32[], bf16[4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  ROOT %less = pred[] compare(%p.1, %limit), direction=LT
}

%body.2_spmd.clone (q: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %q = (s32[], bf16[4,8]) parameter(0)
  %w = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%q), index=1
  %all-gather.1 = bf16[16,8]{1,0} all-gather(%w), dimensions={0}, backend_config={}
  %loop = (s32[], bf16[4,8]) while(%q), condition=%inner_condition, body=%inner_body
  %r = f32[16,8]{1,0} fusion(%w), kind=kCustom, calls=%all-reduce-scatter.3
  ROOT %u = (s32[], bf16[4,8]) tuple(%q, %w)
}

%cond.9 (q.1: (s32[], bf16[4,8])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(24)
  ROOT %lt = pred[]{:T(512)} compare(%q.1, %constant.1), direction=LT
}

ENTRY %main.5_spmd (a: bf16[4,8]) -> f32[] {
  %a = bf16[4,8]{1,0} parameter(0)
  %all-gather.9 = bf16[16,8]{1,0} all-gather(%a), dimensions={0}
  %while.1 = (s32[], bf16[4,8]) while(%a), condition=%cond.9, body=%body.2_spmd.clone
  ROOT %all-reduce.1 = (f32[], f32[2,3]) all-reduce(%a, %a), to_apply=%add
}
"""


def test_counts_loops_fusions_and_tuples():
  gathered, moved, scattered = 16 * 8 * 2, 4 * 8 * 2, 64 * 8 * 4
  assert hlo.collectives(PROGRAM) == {
    "all-gather": Traffic(25, 25 * gathered),
    "all-reduce": Traffic(1, 4 + 6 * 4),
    "reduce-scatter": Traffic(24, 24 * scattered),
    "collective-permute": Traffic(3 * 24, 3 * 24 * moved),
  }


def test_a_program_without_collectives_has_none():
  text = PROGRAM[: PROGRAM.index("%all-reduce-scatter")]
  text += "ENTRY %e () -> s32[] {\n  ROOT %c = s32[] x()\n}"
  assert hlo.collectives(text) == {}
