# ruff: noqa: E501  XLA prints long lines

import jax
import jax.numpy as jnp
import pytest

from benchmarks import trace

# As XLA prints a program for an NVIDIA GPU, shortened.
HLO = """
HloModule jit_train_step

%fused_computation.1 (param_0: bf16[4,8]) -> bf16[4,8] {
  %param_0 = bf16[4,8]{1,0} parameter(0)
  ROOT %add.1 = bf16[4,8]{1,0} add(%param_0, %param_0)
}

%fused_computation.2 (p: f32[4,8]) -> f32[8,4] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %transpose.9 = f32[8,4]{1,0} transpose(%p), dimensions={1,0}
}

%gemm_fusion_dot.3_computation (a: bf16[4,8], b: bf16[8,4]) -> bf16[4,4] {
  %a = bf16[4,8]{1,0} parameter(0)
  %b = bf16[8,4]{1,0} parameter(1)
  ROOT %dot.4 = bf16[4,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main.7 (x: bf16[4,8]) -> bf16[4,8] {
  %x = bf16[4,8]{1,0} parameter(0)
  %cudnn-conv.1 = (bf16[4,8]{1,0}, u8[0]{0}) custom-call(%x), custom_call_target="__cudnn$convForward", metadata={op_name="jit(f)/jvp(UNet3D)/conv_in/conv"}
  %cudnn-conv-bw-filter.2 = (bf16[4,8]{1,0}, u8[0]{0}) custom-call(%x), custom_call_target="__cudnn$convBackwardFilter"
  %cudnn-conv-bw-input.3 = (bf16[4,8]{1,0}, u8[0]{0}) custom-call(%x), custom_call_target="__cudnn$convBackwardInput"
  %cublas-gemm.1 = (bf16[4,8]{1,0}, s8[4]{0}) custom-call(%x), custom_call_target="__cublas$gemm", metadata={op_name="jit(f)/jvp(UNet3D)/scale_shift/dot_general"}
  %cublas-gemm.2 = (bf16[4,8]{1,0}, s8[4]{0}) custom-call(%x), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(f)/temporal/BTNH,BSNH->BNTS/dot_general"}
  %gemm_fusion_dot.3 = bf16[4,4]{1,0} fusion(%x, %x), kind=kCustom, calls=%gemm_fusion_dot.3_computation, backend_config={"fusion_backend_config":{"kind":"__triton_gemm"}}
  %loop_add_fusion = bf16[4,8]{1,0} fusion(%x), kind=kLoop, calls=%fused_computation.1, metadata={op_name="jit(f)/jvp(UNet3D)/add"}
  %loop_norm_fusion = bf16[4,8]{1,0} fusion(%x), kind=kLoop, calls=%fused_computation.1, metadata={op_name="jit(f)/jvp(UNet3D)/norm_in/mul"}
  %input_transpose_fusion = f32[8,4]{1,0} fusion(%x), kind=kInput, calls=%fused_computation.2
  %copy.5 = bf16[4,8]{0,1} copy(%x)
  %cudnn-fmha.1 = (bf16[4,8]{1,0}, u8[0]{0}) custom-call(%x), custom_call_target="__cudnn$fmhaScaleBiasSoftmax"
  ROOT %all-reduce.1 = bf16[4,8]{1,0} all-reduce(%x), to_apply=%add
}
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cudnn-conv.1", "convolution forward"),
        ("cudnn-conv-bw-filter.2", "convolution, weight gradient"),
        ("cudnn-conv-bw-input.3", "convolution, input gradient"),
        ("cublas-gemm.1", "matrix product"),
        ("cublas-gemm.2", "attention"),
        ("gemm_fusion_dot.3", "matrix product"),
        ("loop_add_fusion", "elementwise"),
        ("loop_norm_fusion", "normalisation"),
        ("input_transpose_fusion", "copy, transpose"),
        ("copy.5", "copy, transpose"),
        ("cudnn-fmha.1", "attention"),
        ("all-reduce.1", "collective"),
    ],
)
def test_instructions_of_a_gpu_have_their_kind(name, expected):
    assert trace.kind("some_kernel", trace.instructions(HLO)[name]) == expected


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc", "convolution forward"),
        ("sm80_xmma_dgrad_implicit_gemm_indexed_bf16", "convolution, input gradient"),
        (
            "cutlass__5x_cudnn::Kernel<cutlass_tensorop_s1688wgrad_optimized>",
            "convolution, weight gradient",
        ),
        ("void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16>", "copy, transpose"),
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NNT", "matrix product"),
        ("loop_multiply_fusion_12", "elementwise"),
        ("input_reduce_fusion", "elementwise"),
        ("MemcpyD2D", "copy, transpose"),
        ("ncclDevKernel_AllReduce_Sum_f32", "collective"),
        ("flash_fprop_f16_knob_7_sm90", "attention"),
        ("__unheard_of__", "other"),
    ],
)
def test_kernels_without_instruction_have_their_kind_by_name(kernel, expected):
    assert trace.kind(kernel, None) == expected


def test_a_convolution_that_a_library_runs_has_its_direction_from_the_kernel():
    fused = trace.Instruction(
        opcode="fusion", inside=frozenset({"convolution"}), target="__cudnn$fusion"
    )
    assert trace.kind("sm90_xmma_wgrad_implicit_gemm", fused) == "convolution, weight gradient"
    assert trace.kind("unknown", fused) == "convolution forward"


def test_a_profile_of_this_machine_adds_up(tmp_path):
    def step(x, w):
        # The sum keeps the product from being all there is.
        return jnp.sin(x @ w).sum()

    x, w = jnp.ones((64, 256)), jnp.ones((256, 256))
    compiled = jax.jit(step).lower(x, w).compile()
    compiled(x, w)
    with jax.profiler.trace(str(tmp_path)):
        for _ in range(3):
            compiled(x, w).block_until_ready()
    rows = trace.table(tmp_path, compiled.as_text(), 3)
    shares = {row.kind: row.share for row in rows}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["matrix product"] > 0
    text = trace.markdown(rows)
    assert text.count("\n") == len(rows) + 2
    with pytest.raises(FileNotFoundError, match="no .xplane.pb"):
        trace.table(tmp_path / "nothing", "", 1)


def test_what_rematerialisation_runs_again_is_forward():
    again = "jit(step)/transpose(jvp(UNet3D))/block/checkpoint/rematted_computation/conv"
    for op_name, expected in (
        (again, "convolution forward"),
        ("jit(step)/transpose(jvp(UNet3D))/block/conv", "convolution"),
    ):
        instruction = trace.Instruction(
            opcode="custom-call", target="__cudnn$convForward", op_name=op_name
        )
        assert trace.kind("sm90_xmma_fprop_implicit_gemm", instruction) == expected
