"""Checkpoints of mixtures of experts: packed, in place, stacked, quantised here, and refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import safetensors.numpy

from decoder import Decoder
from test_checkpoints import TOLERANCE, convert, feed, golden, load
from test_packed import (
    Matrix,
    Tensors,
    awq,
    awq_config,
    compressed,
    compressed_config,
    gptq,
    gptq_config,
)
from tiny_checkpoint import TinyCheckpoint
from weightpkg.convert import weights
from weightpkg.errors import (
    CheckpointError,
    TensorMismatchError,
    UnsupportedArchitectureError,
    WeightpkgError,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXPERT = "model.layers.1.block_sparse_moe.experts.2"


def nodes(directory: Path, op_type: str) -> list[onnx.NodeProto]:
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    return [node for node in model.graph.node if node.op_type == op_type]


def logits_of(directory: Path, page: str) -> NDArray[np.float32]:
    return feed(load(directory), golden(page)[0], {})[0]


def packed_experts(method: Callable[[Matrix], Tensors], **settings: Any) -> tuple[Tensors, Tensors]:
    """Mixtral with experts packed, every third symmetrically, and the same with dense ones."""
    packed: Tensors = {}
    dense: Tensors = {}
    for seed, (name, values) in enumerate(TinyCheckpoint.read("mixtral").tensors().items()):
        packed[name] = dense[name] = values
        if ".experts." in name:
            is_symmetric = seed % 3 == 0
            matrix = Matrix.draw(values.shape, 32, seed=seed, is_symmetric=is_symmetric, **settings)
            dense[name] = matrix.weights()
            del packed[name]
            stem = name.removesuffix("weight")
            packed |= {f"{stem}{part}": value for part, value in method(matrix).items()}
    return packed, dense


METHODS: dict[str, tuple[Callable[[Matrix], Tensors], dict[str, Any], dict[str, Any]]] = {
    "gptq, act-order": (gptq, gptq_config(desc_act=True), {"is_ordered": False}),
    "awq": (awq, awq_config(), {}),
    "compressed-tensors": (compressed, compressed_config(), {}),
}


@pytest.mark.parametrize("name", METHODS)
def test_packed_experts_have_the_logits_of_the_same_weights(tmp_path: Path, name: str) -> None:
    method, config, settings = METHODS[name]
    page = TinyCheckpoint.read("mixtral")
    found = []
    for kind, tensors in zip(("packed", "dense"), packed_experts(method, **settings), strict=True):
        keys = {"quantization_config": config} if kind == "packed" else {}
        source = page.changed(**keys).write(tmp_path / f"{kind}-source")
        safetensors.numpy.save_file(tensors, source / "model.safetensors")
        convert(source, tmp_path / kind)
        found.append(Decoder.exact(tmp_path / kind).run(golden("mixtral")[0])[0])
    bar = 1e-4 * np.abs(found[1]).max()
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=bar)
    assert nodes(tmp_path / "packed", "MatMulNBits")


def test_experts_in_float32_are_not_copied(tmp_path: Path) -> None:
    source = TinyCheckpoint.read("qwen3-moe").write(tmp_path / "source")
    convert(source, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").samefile(source / "model.safetensors")
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    places = {
        tensor.name: entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location" and "experts" in tensor.name
    }
    assert set(places.values()) == {"model.safetensors"}
    assert len(places) == 2 * 6 * 2  # gate and up follow each other in the file


def test_experts_of_other_types_are_converted_once(tmp_path: Path) -> None:
    found = []
    for name, dtype in {"BF16": "BF16", "F32": "BF16"}.items():
        page = TinyCheckpoint.read("qwen3-moe")
        source = page.write(tmp_path / f"{name}-source", dtype)  # type: ignore[arg-type]
        if name == "F32":
            tensors = safetensors_float32(page)
            safetensors.numpy.save_file(tensors, source / "model.safetensors")
        convert(source, tmp_path / name)
        found.append(logits_of(tmp_path / name, "qwen3-moe"))
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=TOLERANCE * np.abs(found[1]).max())


def safetensors_float32(page: TinyCheckpoint) -> Tensors:
    """A page's weights, cut off to bfloat16, in float32."""
    mask = np.uint32(0xFFFF0000)
    return {name: (v.view(np.uint32) & mask).view("f4") for name, v in page.tensors().items()}


@pytest.mark.parametrize("size", [64, 64 * 192, 2**20])
def test_stacked_experts_do_not_depend_on_the_slices_they_are_read_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(weights, "SLICE_WEIGHTS", size)
    source = TinyCheckpoint.read("gpt-oss").write(tmp_path / "source")
    convert(source, tmp_path / "out")
    _, columns, expected, bar = golden("gpt-oss")
    found = logits_of(tmp_path / "out", "gpt-oss")[0][:, columns]
    np.testing.assert_allclose(found, expected, rtol=0, atol=bar)


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss", "deepseek-v3"])
def test_experts_are_quantised_and_what_chooses_them_is_not(tmp_path: Path, name: str) -> None:
    source = TinyCheckpoint.read(name).write(tmp_path / "source")
    convert(source, tmp_path / "out", quantization="q8")
    products = [node.input[1] for node in nodes(tmp_path / "out", "MatMulNBits")]
    assert any(".experts." in name for name in products)
    assert not any(name.endswith(("gate.weight", "router.weight")) for name in products)
    _, columns, expected, _ = golden(name)
    found = logits_of(tmp_path / "out", name)[0][:, columns]
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.97


# What is not handled is refused


def changed(page: TinyCheckpoint, **shapes: tuple[int, ...] | None) -> TinyCheckpoint:
    """The same with tensors of other shapes; None leaves one out."""
    kept = {name: shape for name, shape in {**page.shapes, **shapes}.items() if shape is not None}
    return replace(page, shapes=kept)


@pytest.mark.parametrize(
    ("name", "tensor", "shape", "reason"),
    [
        ("mixtral", f"{EXPERT}.w1.weight", None, r"`model\.layers\.1\.mlp\.experts\.2\.gate_proj\.weight` is missing"),
        ("mixtral", f"{EXPERT}.w3.weight", (96, 32), r"experts\.2\.up_proj\.weight` has shape \(96, 32\), not \(96, 64\)"),
        ("mixtral", "model.layers.1.block_sparse_moe.experts.4.w1.weight", (96, 64), r"no use for .*experts\.4\.gate_proj"),
        ("mixtral", f"{EXPERT}.w4.weight", (96, 64), r"no use for .*block_sparse_moe\.experts\.2\.w4"),
        ("mixtral", "model.layers.0.block_sparse_moe.gate.weight", None, r"mlp\.gate\.weight` is missing"),
        ("qwen3-moe", "model.layers.0.mlp.shared_expert.gate_proj.weight", (48, 64), "no use for .*shared_expert"),
        ("qwen3-moe", "model.layers.0.mlp.experts.0.gate_proj.bias", (48,), r"no use for .*gate_proj\.bias"),
        ("gpt-oss", "model.layers.0.mlp.experts.gate_up_proj", (4, 64, 96), r"gate_proj\.weight` has shape \(48, 64\), not \(96, 64\)"),
        ("gpt-oss", "model.layers.0.mlp.experts.gate_up_proj", (5, 64, 192), r"no use for .*experts\.4\.gate_proj"),
        ("gpt-oss", "model.layers.0.mlp.experts.gate_up_proj", (3, 64, 192), r"experts\.3\.gate_proj\.weight` is missing"),
        ("gpt-oss", "model.layers.0.mlp.experts.gate_up_proj", (64, 192), r"experts\.0\.gate_proj\.weight` is missing"),
        ("gpt-oss", "model.layers.0.mlp.experts.gate_up_proj_bias", (4, 190), r"gate_proj\.bias` has shape \(4, 95\)"),
        ("gpt-oss", "model.layers.1.mlp.experts.down_proj_bias", None, r"down_proj\.bias` is missing"),
        ("gpt-oss", "model.layers.1.self_attn.sinks", None, r"sinks\.weight` is missing"),
        ("deepseek-v2", "model.layers.1.mlp.gate.e_score_correction_bias", (6,), "no use for .*e_score_correction"),
        ("deepseek-v3", "model.layers.1.mlp.gate.e_score_correction_bias", None, r"e_score_correction\.bias` is missing"),
        ("deepseek-v3", "model.layers.3.enorm.weight", (64,), "no use for .*enorm"),
        ("deepseek-v3", "model.layers.1.self_attn.indexer.wk.weight", (64, 64), "no use for .*indexer"),
        ("deepseek-v2", "model.layers.0.self_attn.kv_b_proj.weight", (96, 32), "kv_b_proj.weight` has shape"),
    ],
)  # fmt: skip
def test_refuses_tensors(
    tmp_path: Path, name: str, tensor: str, shape: tuple[int, ...] | None, reason: str
) -> None:
    source = changed(TinyCheckpoint.read(name), **{tensor: shape}).write(tmp_path / "source")
    with pytest.raises(TensorMismatchError, match=reason):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "changes", "error", "reason"),
    [
        ("mixtral", {"num_experts_per_tok": 5}, UnsupportedArchitectureError, "5 of 4 experts"),
        ("mixtral", {"num_experts_per_tok": 0}, UnsupportedArchitectureError, "0 of 4 experts"),
        ("mixtral", {"num_local_experts": None}, CheckpointError, "`num_local_experts`: is missing"),
        ("mixtral", {"num_experts": 8}, UnsupportedArchitectureError, "`num_experts` is 8"),
        ("mixtral", {"num_local_experts": 10**6}, UnsupportedArchitectureError, "num_local_experts is 1000000"),
        ("mixtral", {"hidden_act": "gelu"}, UnsupportedArchitectureError, "`hidden_act` is gelu"),
        ("qwen3-moe", {"mlp_only_layers": [0]}, UnsupportedArchitectureError, "`mlp_only_layers` may change"),
        ("qwen3-moe", {"decoder_sparse_step": 2}, UnsupportedArchitectureError, "`decoder_sparse_step` is 2"),
        ("qwen3-moe", {"use_sliding_window": True}, UnsupportedArchitectureError, "`use_sliding_window`"),
        ("qwen3-moe", {"attention_bias": True}, UnsupportedArchitectureError, "`attention_bias`"),
        ("qwen3-moe", {"moe_intermediate_size": None}, CheckpointError, "`moe_intermediate_size`: is missing"),
        ("gpt-oss", {"rope_scaling": None}, CheckpointError, "`rope_scaling`: is missing"),
        ("gpt-oss", {"attention_bias": False}, UnsupportedArchitectureError, "`attention_bias` is False"),
        ("gpt-oss", {"experts_per_token": 3}, UnsupportedArchitectureError, "`experts_per_token` is 3"),
        ("gpt-oss", {"swiglu_limit": -1}, UnsupportedArchitectureError, "swiglu_limit is -1"),
        ("gpt-oss", {"layer_types": ["full_attention"]}, UnsupportedArchitectureError, "has 1 layers, not 2"),
        ("deepseek-v2", {"topk_method": "noaux_tc"}, UnsupportedArchitectureError, "`topk_method` is noaux_tc"),
        ("deepseek-v2", {"scoring_func": "sigmoid"}, UnsupportedArchitectureError, "`scoring_func` is sigmoid"),
        ("deepseek-v2", {"norm_topk_prob": True}, UnsupportedArchitectureError, "`norm_topk_prob` is True"),
        ("deepseek-v2", {"moe_layer_freq": 2}, UnsupportedArchitectureError, "`moe_layer_freq` is 2"),
        ("deepseek-v2", {"num_key_value_heads": 2}, UnsupportedArchitectureError, "`num_key_value_heads` is 2"),
        ("deepseek-v2", {"v_head_dim": 48}, UnsupportedArchitectureError, "not the size of a head"),
        ("deepseek-v2", {"qk_rope_head_dim": 8}, UnsupportedArchitectureError, "rotate|not evenly"),
        ("deepseek-v2", {"auto_map": {"AutoModel": "evil.Model"}}, UnsupportedArchitectureError, "code of its own"),
        ("deepseek-v2-groups", {"n_group": 3}, UnsupportedArchitectureError, "2 of 3 groups of 8 experts"),
        ("deepseek-v2-groups", {"topk_group": 5}, UnsupportedArchitectureError, "5 of 4 groups"),
        ("deepseek-v3", {"topk_method": "greedy"}, UnsupportedArchitectureError, "`topk_method` is greedy"),
        ("deepseek-v3", {"num_nextn_predict_layers": 10**9}, UnsupportedArchitectureError, "`num_nextn_predict_layers`"),
        ("deepseek-v3", {"rope_interleave": False}, UnsupportedArchitectureError, "`rope_interleave`"),
        ("deepseek-v3", {"index_topk": 2048}, UnsupportedArchitectureError, "`index_topk` may change"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)  # fmt: skip
def test_refuses_a_configuration(
    tmp_path: Path, name: str, changes: dict[str, Any], error: type[WeightpkgError], reason: str
) -> None:
    source = TinyCheckpoint.read(name).changed(**changes).write(tmp_path / "source")
    with pytest.raises(error, match=reason):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mixtral", {"num_experts_per_tok": 1}),
        ("mixtral", {"sliding_window": None}),
        ("qwen3-moe", {"norm_topk_prob": False}),
        ("gpt-oss", {"swiglu_limit": 7.0}),
        ("gpt-oss", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("deepseek-v2", {"routed_scaling_factor": 2.0}),
        ("deepseek-v2", {"rope_scaling": None}),
        ("deepseek-v2-groups", {"topk_method": "greedy"}),
        ("deepseek-v3", {"norm_topk_prob": False}),
        ("deepseek-v3", {"n_group": 1, "topk_group": 1}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_golden_numbers_tell_one_configuration_from_another(
    tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    source = TinyCheckpoint.read(name).changed(**changes).write(tmp_path / "source")
    convert(source, tmp_path / "out")
    _, columns, expected, bar = golden(name)
    assert np.abs(logits_of(tmp_path / "out", name)[0][:, columns] - expected).max() > 20 * bar
