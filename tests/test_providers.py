"""Which execution provider runs a graph: table-driven, without any of them installed."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from weightpkg.errors import RunError
from weightpkg.hardware import Device
from weightpkg.run.providers import BY_NAME, CPU, TABLE, Needs, decide, landed_on_cpu

NVIDIA = Device(kind="gpu", vendor="NVIDIA", name="H200")
INTEL_NPU = Device(kind="npu", vendor="Intel")
CUDA = "CUDAExecutionProvider"
DECODER = Needs({"*": 5, "int4-blocks": 2, "int8-blocks": 1, "gather-blocks": 1, "attention": 2})


def test_auto_takes_the_processor_where_there_is_nothing_else() -> None:
    decision = decide("auto", [CPU], [], DECODER)
    assert decision.chosen.name == CPU
    assert decision.better is None
    assert decision.lines() == [f"{CPU}: the one provider of this onnxruntime for `auto`"]


def test_auto_takes_a_gpu_that_has_every_kernel() -> None:
    decision = decide("auto", [CUDA, CPU], [NVIDIA], DECODER)
    assert decision.chosen.name == CUDA
    assert "best of 2" in decision.reason


def test_auto_says_which_package_would_bring_more() -> None:
    decision = decide("auto", [CPU], [NVIDIA], DECODER)
    assert decision.chosen.name == CPU
    assert decision.better is not None
    assert "`onnxruntime-gpu`" in decision.better
    assert any("better" in line for line in decision.lines())


def test_auto_does_not_take_a_provider_that_leaves_nodes_to_the_processor() -> None:
    openvino = "OpenVINOExecutionProvider"
    decision = decide("auto", [openvino, CPU], [INTEL_NPU], DECODER)
    assert decision.chosen.name == CPU
    (verdict,) = [each for each in decision.verdicts if each.provider.name == openvino]
    assert verdict.is_present
    assert verdict.has_device
    assert "GatherBlockQuantized (1 nodes)" in verdict.reason
    assert any(openvino in line for line in decision.lines())


@pytest.mark.parametrize("request_", ["cuda", "CUDA", "CUDAExecutionProvider", "gpu"])
def test_a_request_that_cannot_run_is_an_error(request_: str) -> None:
    with pytest.raises(RunError, match="cannot run this model here") as caught:
        decide(request_, [CPU], [], DECODER)
    assert caught.value.hint


def test_a_request_for_a_missing_package_names_it() -> None:
    with pytest.raises(RunError) as caught:
        decide("cuda", [CPU], [NVIDIA], DECODER)
    assert caught.value.hint is not None
    assert "pip install onnxruntime-gpu" in caught.value.hint


def test_a_provider_without_its_device_is_an_error() -> None:
    with pytest.raises(RunError, match="no device"):
        decide("cuda", [CUDA, CPU], [], DECODER)


def test_a_provider_without_the_kernels_is_an_error_that_counts_nodes() -> None:
    with pytest.raises(RunError, match=r"lands? on the processor \(5 nodes\)"):
        decide("tensorrt", ["TensorrtExecutionProvider", CPU], [NVIDIA], DECODER)


def test_a_plain_graph_runs_where_a_quantised_one_does_not() -> None:
    decision = decide("tensorrt", ["TensorrtExecutionProvider", CPU], [NVIDIA], Needs())
    assert decision.chosen.short == "tensorrt"


@pytest.mark.parametrize("request_", ["", "tpu", "cpu0", "../cpu"])
def test_an_unknown_device_lists_those_that_are_known(request_: str) -> None:
    with pytest.raises(RunError, match="no device and no execution provider") as caught:
        decide(request_, [CPU], [], DECODER)
    assert caught.value.hint is not None
    assert "cuda" in caught.value.hint


def test_a_package_for_another_system_is_not_recommended() -> None:
    amd = Device(kind="gpu", vendor="AMD")
    on_linux = decide("auto", [CPU], [amd], Needs(), system="linux")
    assert on_linux.better is None or "directml" not in on_linux.better
    on_windows = decide("auto", [CPU], [amd], Needs(), system="windows")
    assert on_windows.better is not None
    assert "directml" in on_windows.better


def test_every_row_has_a_source_and_its_own_name() -> None:
    assert all(provider.source.startswith("https://github.com/") for provider in TABLE)
    assert len({provider.short for provider in TABLE}) == len(TABLE) == len(BY_NAME)


def test_nodes_that_landed_on_the_processor_unasked_are_counted() -> None:
    placed = [(CUDA, "MatMulNBits"), (CPU, "Gather"), (CPU, "Gather"), (CPU, "Cast")]
    assert landed_on_cpu(BY_NAME[CUDA], placed) == ["1 Cast", "2 Gather"]
    assert landed_on_cpu(BY_NAME[CPU], placed) == []


def test_needs_are_counted_in_branches_too() -> None:
    block = helper.make_node(
        "MatMulNBits", ["x", "q", "s"], ["y"], domain="com.microsoft", bits=8, block_size=16
    )
    inner = helper.make_graph([block], "inner", [], [])
    choice = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    local = helper.make_node(
        "GroupQueryAttention", ["q"], ["o"], domain="com.microsoft", local_window_size=512
    )
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([choice, local], "outer", [value], [])
    needs = Needs.of(helper.make_model(graph))
    assert needs.counts == {
        "*": 3, "int8-blocks": 2, "blocks-of-16": 2, "attention": 1, "sliding-window": 1,
    }  # fmt: skip
