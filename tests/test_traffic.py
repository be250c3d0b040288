"""What `benchmarks.traffic` reads from a program of which we know what it moves."""

from benchmarks.traffic import Kernel, kernels

TEXT = """\
HloModule step, is_scheduled=true

%summed (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add = f32[] add(%x, %y)
}

%reduced (whole: f32[64,32]) -> f32[64] {
  %whole = f32[64,32]{1,0} parameter(0)
  %zero = f32[] constant(0)
  ROOT %reduce = f32[64]{0} reduce(%whole, %zero), dimensions={1}, to_apply=%summed
}

%sliced_and_put (stack: f32[5,64], index: s32[], row: f32[64], table: bf16[100,64]) -> (f32[5,64], f32[64]) {
  %stack = f32[5,64]{1,0} parameter(0)
  %index = s32[] parameter(1)
  %row = f32[64]{0} parameter(2)
  %table = bf16[100,64]{1,0} parameter(3)
  %again = bf16[100,64]{1,0} bitcast(%table)
  %zero.1 = s32[] constant(0)
  %part = bf16[2,64]{1,0} dynamic-slice(%again, %index, %zero.1), dynamic_slice_sizes={2,64}
  %first = f32[64]{0} reduce(%part, %zero.1), dimensions={0}, to_apply=%summed
  %one_row = f32[1,64]{1,0} bitcast(%row)
  %put = f32[5,64]{1,0} dynamic-update-slice(%stack, %one_row, %index, %zero.1)
  ROOT %both = (f32[5,64]{1,0}, f32[64]{0}) tuple(%put, %first)
}

%round (carry: (s32[], f32[64,32], f32[5,64], bf16[100,64])) -> (s32[], f32[64,32], f32[5,64], bf16[100,64]) {
  %carry = (s32[], f32[64,32]{1,0}, f32[5,64]{1,0}, bf16[100,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %m = f32[64,32]{1,0} get-tuple-element(%carry), index=1
  %s = f32[5,64]{1,0} get-tuple-element(%carry), index=2
  %t = bf16[100,64]{1,0} get-tuple-element(%carry), index=3
  %rows = f32[64]{0} fusion(%m), kind=kInput, calls=%reduced, metadata={op_name="jit(step)/while/body/reduce_sum"}
  %fused = (f32[5,64]{1,0}, f32[64]{0}) fusion(%s, %i, %rows, %t), kind=kLoop, calls=%sliced_and_put
  %dot = (f32[64,64]{1,0}, s8[4096]{0}) custom-call(%m, %m), custom_call_target="__cublas$lt$matmul"
  ROOT %next = (s32[], f32[64,32]{1,0}, f32[5,64]{1,0}, bf16[100,64]{1,0}) tuple(%i, %m, %s, %t)
}

%observed (m.1: f32[64,32]) -> f32[64] {
  %m.1 = f32[64,32]{1,0} parameter(0)
  ROOT %seen = f32[64]{0} fusion(%m.1), kind=kInput, calls=%reduced
}

%quiet (m.2: f32[64,32]) -> f32[64] {
  %m.2 = f32[64,32]{1,0} parameter(0)
  ROOT %nothing = f32[64]{0} broadcast(%m.2), dimensions={}
}

ENTRY %main (start: (s32[], f32[64,32], f32[5,64], bf16[100,64]), observe: pred[]) -> f32[64] {
  %start = (s32[], f32[64,32]{1,0}, f32[5,64]{1,0}, bf16[100,64]{1,0}) parameter(0)
  %observe = pred[] parameter(1)
  %loop = (s32[], f32[64,32]{1,0}, f32[5,64]{1,0}, bf16[100,64]{1,0}) while(%start), condition=%less, body=%round, \
backend_config={"known_trip_count":{"n":"5"}}
  %matrix = f32[64,32]{1,0} get-tuple-element(%loop), index=1
  %copied = f32[64,32]{1,0} copy(%matrix)
  ROOT %branch = f32[64]{0} conditional(%observe, %copied, %copied), true_computation=%observed, \
false_computation=%quiet
}
"""


def test_kernels_move_what_they_read_and_write_as_often_as_loops_go_round() -> None:
    assert kernels(TEXT) == [
        Kernel("rows", 5, 4 * 64 * 32, 4 * 64, False, "jit(step)/while/body/reduce_sum"),
        # of the table a slice; the stack in place
        Kernel("fused", 5, 4 + 4 * 64 + 2 * 2 * 64, 4 * 64 + 4 * 64, False),
        Kernel("dot", 5, 2 * 4 * 64 * 32, 4 * 64 * 64, True),
        Kernel("copied", 1, 4 * 64 * 32, 4 * 64 * 32, False),
    ]


def test_what_is_moved_counts_every_time() -> None:
    assert Kernel("k", 3, 10, 4, False).moved == 42
