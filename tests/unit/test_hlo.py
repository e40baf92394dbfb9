import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from planet_jax.preflight.cost import uncached_bytes
from planet_jax.preflight.hlo import arrays
from planet_jax.preflight.program import Kernel, Program

# A chip of 4 KiB is read in two slices, which are joined in fast memory without a transfer; one row
# of %table is read; the result is written into a slice of %sums. Sizes in bytes: see the test.
TPU_PROGRAM = """
%gather_row (p0: f32[9,64], p1: s32[]) -> f32[1,64] {
  %p0 = f32[9,64]{1,0} parameter(0)
  %p1 = s32[]{:S(6)} parameter(1)
  %c = s32[] constant(0)
  ROOT %s = f32[1,64]{1,0:T(1,128)S(1)} dynamic-slice(%p0, %p1, %c), dynamic_slice_sizes={1,64}
}

%update (q0: f32[8,16,64], q1: f32[16,64]) -> f32[8,16,64] {
  %q1 = f32[16,64]{1,0} parameter(1)
  %b = f32[1,16,64]{2,1,0} bitcast(%q1)
  %q0 = f32[8,16,64]{2,1,0} parameter(0)
  %z = s32[] constant(0)
  ROOT %u = f32[8,16,64]{2,1,0:T(8,128)} dynamic-update-slice(%q0, %b, %z, %z, %z)
}

ENTRY %main (chip: f32[16,64], table: f32[9,64], sums: f32[8,16,64], i: s32[]) -> f32[8,16,64] {
  %chip = f32[16,64]{1,0:T(8,128)} parameter(0)
  %table = f32[9,64]{1,0:T(8,128)} parameter(1)
  %sums = f32[8,16,64]{2,1,0:T(8,128)} parameter(2)
  %i = s32[]{:S(6)} parameter(3)
  %slice-start.0 = ((f32[16,64]{1,0:T(8,128)}), f32[8,64]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%chip), slice={[0:8], [0:64]}
  %slice-start.1 = ((f32[16,64]{1,0:T(8,128)}), f32[8,64]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%chip), slice={[8:16], [0:64]}
  %row = f32[1,64]{1,0:T(1,128)S(1)} fusion(%table, %i), kind=kLoop, calls=%gather_row, backend_config={"window_config":{"estimated_cycles":"40"}}
  %slice-done.0 = f32[8,64]{1,0:T(8,128)S(1)} slice-done(%slice-start.0)
  %slice-done.1 = f32[8,64]{1,0:T(8,128)S(1)} slice-done(%slice-start.1)
  %whole = f32[16,64]{1,0:T(8,128)S(1)} custom-call(%slice-done.0, %slice-done.1), custom_call_target="ConcatBitcast"
  %square = f32[16,64]{1,0:T(8,128)S(1)} multiply(%whole, %whole), backend_config={"window_config":{"estimated_cycles":"2"}}
  %copy-start = (f32[16,64]{1,0:T(8,128)}, f32[16,64]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) copy-start(%square)
  %copy-done = f32[16,64]{1,0:T(8,128)} copy-done(%copy-start)
  ROOT %result = f32[8,16,64]{2,1,0:T(8,128)} fusion(%sums, %copy-done), kind=kLoop, calls=%update
}
"""  # noqa: E501


def test_arrays_are_read_with_their_memory():
    text = "(f32[64]{0:T(128)S(1)}, (bf16[2,3]{1,0}), pred[], u8[5]{0:S(6)})"
    assert [(a.bytes, a.space) for a in arrays(text)] == [(256, 1), (12, 0), (1, 0), (5, 6)]
    assert [a.main_bytes for a in arrays(text)] == [0, 12, 1, 0]


def test_only_main_memory_counts_as_traffic_and_each_transfer_once():
    program = Program(TPU_PROGRAM)
    traffic = [(kernel.read, kernel.written) for kernel in program.kernels()]
    chip, half, row = 4096, 2048, 256
    assert traffic == [
        (half, 0),  # each slice, into fast memory
        (half, 0),
        (row, 0),  # not the whole table
        (0, 0),  # the square, within fast memory
        (0, chip),  # out of fast memory
        (chip, chip),  # not the whole of %sums
    ]
    assert [kernel.cycles for kernel in program.kernels()] == [0, 0, 40, 2, 0, 0]
    # Most are held when %square is made: the two halves of %whole, and %square.
    assert program.fast_memory_peak() == 2 * chip


convolutions = st.fixed_dictionaries(
    {
        "stride": st.integers(1, 3),
        "pad": st.integers(0, 3),
        "spread": st.integers(1, 2),
        "dilation": st.integers(1, 2),
        "groups": st.sampled_from([1, 2, 4]),
        "kernel": st.integers(1, 3),
    }
)


@settings(max_examples=5, deadline=None)
@given(convolutions)
def test_flops_of_a_convolution_are_those_of_xla(options):
    groups, size = options["groups"], options["kernel"]

    def convolve(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (options["stride"],) * 2, [(options["pad"],) * 2] * 2,
            (options["spread"],) * 2, (options["dilation"],) * 2, ("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )  # fmt: skip

    def flops(function):
        compiled = jax.jit(function).lower(x, kernel).compile()
        own = sum(kernel.flops for kernel in Program(compiled.as_text()).kernels())
        return own, compiled.cost_analysis().get("flops", 0)

    x = jax.ShapeDtypeStruct((3, 9, 9, 8), "float32")
    kernel = jax.ShapeDtypeStruct((size, size, 8 // groups, 12), "float32")
    forward, xla = flops(convolve)
    assert forward == xla
    # Each of the two gradients needs the same products as the convolution itself.
    gradients, _ = flops(jax.grad(lambda x, kernel: (convolve(x, kernel) ** 2).sum(), (0, 1)))
    assert gradients == 3 * forward


@pytest.mark.parametrize(
    ("equation", "shapes", "products"),
    [("ik,kj->ij", [(50, 70), (70, 30)], 50 * 70 * 30),
     ("bik,bjk->bij", [(5, 50, 70), (5, 30, 70)], 5 * 50 * 70 * 30)],
)  # fmt: skip
def test_flops_of_a_matrix_product(equation, shapes, products):
    operands = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    compiled = jax.jit(lambda *x: jax.numpy.einsum(equation, *x)).lower(*operands).compile()
    program = Program(compiled.as_text())
    assert sum(kernel.flops for kernel in program.kernels()) == 2 * products


def test_flops_of_cudnn_and_cublas():
    """A kernel of cuDNN names the forward convolution, whichever of its parts it computes."""
    window = "window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f"
    program = Program(
        f"""
ENTRY %main (x: bf16[2,9,9,8], w: bf16[16,3,3,8], y: bf16[2,5,5,16]) -> bf16[2,5,5,16] {{
  %x = bf16[2,9,9,8]{{3,2,1,0}} parameter(0)
  %w = bf16[16,3,3,8]{{3,2,1,0}} parameter(1)
  %y = bf16[2,5,5,16]{{3,2,1,0}} parameter(2)
  %f = (bf16[2,5,5,16]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%x, %w), {window}, custom_call_target="__cudnn$convForward"
  %i = (bf16[2,9,9,8]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%y, %w), {window}, custom_call_target="__cudnn$convBackwardInput"
  %k = (bf16[16,3,3,8]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%x, %y), {window}, custom_call_target="__cudnn$convBackwardFilter"
  %a = f32[50,70]{{1,0}} parameter(3)
  %b = f32[70,30]{{1,0}} parameter(4)
  ROOT %g = (f32[50,30]{{1,0}}, s8[64]{{0}}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", backend_config={{"gemm_backend_config":{{"dot_dimension_numbers":{{"lhs_contracting_dimensions":["1"]}}}}}}
}}
"""  # noqa: E501
    )
    # Along each axis 13 of the 5 x 3 products are with values, not with padding.
    convolution = 2 * 2 * 13**2 * 8 * 16
    flops = [kernel.flops for kernel in program.kernels()]
    assert flops == [convolution] * 3 + [2 * 50 * 70 * 30]


def test_a_gpu_moves_what_its_cache_cannot_hold():
    kernels = [Kernel(100, 30, 0, 0), Kernel(30, 70, 0, 0), Kernel(70, 10, 0, 0)]
    assert uncached_bytes(kernels, cache=0) == 310
    assert uncached_bytes(kernels, cache=40) == (60 + 0) + (0 + 30) + (30 + 0)
    assert uncached_bytes(kernels, cache=100) == 0


@pytest.mark.parametrize("known", [True, False], ids=["as on a GPU", "as on a TPU"])
def test_a_loop_counts_as_often_as_it_runs(known):
    """The parts of a batch (optim.accumulate) are a loop; the TPU's compiler writes no count."""
    config = ', backend_config={"known_trip_count":{"n":"4"}}' if known else ""
    limit = "%get" if known else "%limit"  # a GPU's condition is a fusion without a constant
    program = Program(f"""
%body (p: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {{
  %p = (s32[], f32[8,8]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,8]{{1,0}} get-tuple-element(%p), index=1
  %dot = f32[8,8]{{1,0}} dot(%x, %x), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  %sum = f32[8,8]{{1,0}} all-reduce(%dot), replica_groups={{}}, to_apply=%add
  ROOT %t = (s32[], f32[8,8]{{1,0}}) tuple(%i, %sum)
}}

%add (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %ab = f32[] add(%a, %b)
}}

%condition (p: (s32[], f32[8,8])) -> pred[] {{
  {"" if known else "%limit = s32[] constant(4)"}
  %q = (s32[], f32[8,8]{{1,0}}) parameter(0)
  %get = s32[] get-tuple-element(%q), index=0
  ROOT %less = pred[] compare(%get, {limit}), direction=LT
}}

ENTRY %main (p: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {{
  %start = (s32[], f32[8,8]{{1,0}}) parameter(0)
  ROOT %loop = (s32[], f32[8,8]{{1,0}}) while(%start), condition=%condition, body=%body{config}
}}
""")
    kernels = list(program.kernels())
    assert sum(kernel.flops for kernel in kernels) == 4 * 2 * 8**3
    assert [kernel.read for kernel in kernels] == 8 * [256]
    assert list(program.all_reduces()) == 4 * [256]
