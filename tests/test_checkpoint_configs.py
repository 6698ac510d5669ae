"""Each decoder's config.json: published ones are read, what is not handled is refused by its name.

tests/configs/ has config.json of published models, without what only their makers use; the long lists
of factors of Phi's frequencies are other numbers. transformers-5/ has the same in its spelling.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import safetensors.numpy

from decoder import Decoder
from test_checkpoints import convert, feed, golden, load, mutate
from test_quantize import as_blocks
from tiny_checkpoint import TinyCheckpoint
from weightpkg.convert import DECODERS, rope
from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.packings import read_packing
from weightpkg.convert.weights import Weight, transposed
from weightpkg.errors import (
    CheckpointError,
    TensorMismatchError,
    UnsupportedArchitectureError,
    UnsupportedQuantizationError,
    WeightpkgError,
)
from weightpkg.tensor import BlockLayout

if TYPE_CHECKING:
    from numpy.typing import NDArray

PUBLISHED = sorted((Path(__file__).parent / "configs").glob("*.json"))


def read(name: str, keys: dict[str, Any]) -> Any:
    """The `Config` of a config.json, as the conversion reads it."""
    config = HFConfig(name, keys)
    module = importlib.import_module(
        f"weightpkg.convert.archs.{DECODERS[config.get('model_type', str)]}"
    )
    config.get("tie_word_embeddings", bool, module.TIED_BY_DEFAULT)
    read_packing(config)
    return module.Config.from_hf(config)


def published(name: str, folder: str = "configs") -> Any:
    return read(name, json.loads((Path(__file__).parent / folder / f"{name}.json").read_bytes()))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_reads_a_published_configuration(path: Path) -> None:
    config = published(path.stem)
    assert config.head_dim in {64, 96, 128, 160, 192, 256}
    assert 1024 <= config.max_position_embeddings <= 163840


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_reads_the_same_as_transformers_5_writes_it(path: Path) -> None:
    assert published(path.stem, "configs/transformers-5") == published(path.stem)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_reads_or_refuses_any_mutation_of_a_published_configuration(path: Path) -> None:
    content = path.read_bytes()
    for seed in range(60):
        random = np.random.default_rng(seed)
        keys = mutate(mutate(json.loads(content), random), random)
        try:
            config = read("odd", {**keys, "model_type": json.loads(content)["model_type"]})
            if hasattr(config, "rope_scaling"):
                size = getattr(config, "rotary_dim", config.head_dim)
                rope.scaled_frequencies(config.rope_theta, size, config.rope_scaling)
        except WeightpkgError as error:
            assert len(str(error)) < 500  # noqa: PT017


def test_there_is_a_published_configuration_of_every_model_type() -> None:
    found = {json.loads(path.read_bytes())["model_type"] for path in PUBLISHED}
    assert found == DECODERS.keys()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Llama-2-7b-hf", {"rope_theta": 10000.0, "rope_scaling": rope.Scaling()}),
        ("Yarn-Llama-2-7b-64k", {"rope_scaling": rope.Scaling(factor=16.0, original_max_position_embeddings=4096, attention_factor=1.2772588722239782)}),
        ("Mistral-7B-v0.1", {"sliding_window": 4096}),
        ("Mistral-7B-Instruct-v0.3", {"sliding_window": None}),
        ("Qwen2.5-7B-Instruct", {"sliding_window": None, "windowed": (False,) * 28}),
        ("Qwen3-0.6B", {"head_dim": 128, "rope_theta": 1e6}),
        ("gemma-2-27b", {"query_pre_attn_scalar": 144.0, "windowed": (True, False) * 23}),
        ("gemma-3-270m", {"windowed": (*(True,) * 5, False) * 3, "scaling": 1 / 16, "rope_local_base_freq": 10000.0}),
        ("gemma-3-4b-it", {"num_attention_heads": 8, "vocab_size": 262208, "rope_theta": 1e6, "rope_scaling": rope.Scaling(factor=8.0)}),
        ("gemma-3-27b-it", {"scaling": 168**-0.5, "sliding_window": 1024}),
        ("Phi-3-mini-4k-instruct", {"sliding_window": 2047, "rotary_dim": 96}),
        ("Phi-4-mini-instruct", {"rotary_dim": 96, "head_dim": 128}),
        ("granite-3.3-2b-instruct", {"attention_multiplier": 1 / 64}),
        ("SmolLM3-3B", {"rotated": (True, True, True, False) * 9}),
        ("stablelm-2-12b", {"rotary_dim": 40, "qk_layernorm": True, "use_parallel_residual": True}),
        ("gpt2", {"intermediate_size": 3072, "head_dim": 64}),
        ("falcon-7b", {"num_key_value_heads": 1, "intermediate_size": 18176, "max_position_embeddings": 2048}),
        ("falcon-40b", {"num_key_value_heads": 8, "num_ln_in_parallel_attn": 2}),
        ("falcon-11B", {"num_key_value_heads": 8, "num_ln_in_parallel_attn": 1}),
    ],
)  # fmt: skip
def test_what_a_published_configuration_says(name: str, expected: dict[str, Any]) -> None:
    config = published(name)
    found = {key: getattr(config, key) for key in expected}
    assert found == {
        k: pytest.approx(v) if isinstance(v, float) else v for k, v in expected.items()
    }


def test_phi_divides_by_the_factors_of_its_whole_context() -> None:
    scaling = published("Phi-3.5-mini-instruct").rope_scaling
    assert scaling.factors[:2] == (1.0, 2.3)
    assert scaling.attention_factor == pytest.approx((1 + np.log(32) / np.log(4096)) ** 0.5)


@pytest.mark.parametrize(
    ("name", "changes", "error", "reason"),
    [
        ("qwen2", {"use_sliding_window": True, "sliding_window": None}, CheckpointError, "`sliding_window`: is missing"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": None}, CheckpointError, "`max_window_layers`"),
        ("qwen2", {"layer_types": ["full_attention"]}, UnsupportedArchitectureError, "1 layers, not 2"),
        ("qwen2", {"layer_types": ["full_attention", "chunked_attention"]}, UnsupportedArchitectureError, "chunked_attention"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, UnsupportedArchitectureError, "`use_sliding_window` says no"),
        ("qwen2", {"layer_types": "full_attention"}, CheckpointError, "`layer_types`: must be a list"),
        ("qwen2", {"num_key_value_heads": None}, CheckpointError, "`num_key_value_heads`: is missing"),
        ("qwen2", {"use_mrope": True}, UnsupportedArchitectureError, "`use_mrope`"),
        ("qwen3", {"attention_bias": True}, UnsupportedArchitectureError, "`attention_bias`"),
        ("qwen3", {"head_dim": None}, CheckpointError, "`head_dim`: is missing"),
        ("gemma2", {"attn_logit_softcapping": None}, CheckpointError, "`attn_logit_softcapping`: is missing"),
        ("gemma2", {"query_pre_attn_scalar": 0}, UnsupportedArchitectureError, "`query_pre_attn_scalar` is 0"),
        ("gemma2", {"hidden_activation": "gelu"}, UnsupportedArchitectureError, "`hidden_activation` is gelu"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, UnsupportedArchitectureError, "`attn_logit_softcapping`"),
        ("gemma3", {"use_bidirectional_attention": True}, UnsupportedArchitectureError, "`use_bidirectional_attention`"),
        ("gemma3", {"sliding_window_pattern": 0}, UnsupportedArchitectureError, "`sliding_window_pattern` is 0"),
        ("gemma3", {"rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, UnsupportedArchitectureError, "such rope scaling"),
        ("gemma3", {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}, UnsupportedArchitectureError, "`head_dim` may change"),
        ("gemma3-5", {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, CheckpointError, "`rope_parameters.sliding_attention`: is missing"),
        ("gemma3-5", {"rope_theta": 1e6}, UnsupportedArchitectureError, "`rope_theta` may change"),
        ("phi3", {"partial_rotary_factor": 0.5}, UnsupportedArchitectureError, "8 of a head's 16 values rotate"),
        ("phi3-long", {"original_max_position_embeddings": None}, CheckpointError, "`original_max_position_embeddings`: is missing"),
        ("phi3-long", {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, UnsupportedArchitectureError, "1 factors for 8"),
        ("phi3-long", {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [0.0]}}, UnsupportedArchitectureError, "not positive"),
        ("phi3-long", {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": 1.0}}, CheckpointError, "must be a list of numbers"),
        ("phi3-long", {"rope_scaling": {"type": "longrope", "factor": 2.0, "short_factor": [1.0], "long_factor": [1.0]}}, UnsupportedArchitectureError, "`rope_scaling.factor` is 2.0"),
        ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, UnsupportedArchitectureError, "not `longrope`"),
        ("phi3", {"auto_map": {"AutoConfig": "configuration_phi3small.Phi3SmallConfig"}}, UnsupportedArchitectureError, "code of its own"),
        ("granite", {"mlp_bias": True}, UnsupportedArchitectureError, "`mlp_bias`"),
        ("granite", {"logits_scaling": 0}, UnsupportedArchitectureError, "logits_scaling is 0"),
        ("olmo3", {"rope_theta": 10000}, UnsupportedArchitectureError, "`rope_theta` is 10000"),
        ("olmo3-5", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e5}}}, UnsupportedArchitectureError, "rope of their own"),
        ("smollm3", {"no_rope_layers": [1]}, UnsupportedArchitectureError, "`no_rope_layers` has 1"),
        ("smollm3", {"no_rope_layer_interval": 0}, UnsupportedArchitectureError, "`no_rope_layer_interval` is 0"),
        ("smollm3", {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]}, UnsupportedArchitectureError, "layers with a window"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, UnsupportedArchitectureError, "`scale_attn_by_inverse_layer_idx`"),
        ("gpt2", {"scale_attn_weights": False}, UnsupportedArchitectureError, "`scale_attn_weights`"),
        ("gpt2", {"activation_function": "gelu"}, UnsupportedArchitectureError, "`activation_function` is gelu"),
        ("gpt2", {"n_layer": 3}, TensorMismatchError, r"transformer\.h\.2.* is missing"),
        ("gpt2", {"n_inner": 64}, TensorMismatchError, r"c_fc.*has shape"),
        ("stablelm", {"use_qkv_bias": False}, TensorMismatchError, r"no use for .*k_proj\.bias"),
        ("stablelm", {"qk_layernorm": True}, TensorMismatchError, r"q_layernorm\.norms\.0\.weight` is missing"),
        ("stablelm", {"use_parallel_residual": True}, TensorMismatchError, "no use for .*post_attention_layernorm"),
        ("stablelm", {"partial_rotary_factor": 1.5}, UnsupportedArchitectureError, "`partial_rotary_factor` is 1.5"),
        ("starcoder2", {"use_bias": False}, UnsupportedArchitectureError, "`use_bias`"),
        ("starcoder2", {"norm_type": "rms_norm"}, UnsupportedArchitectureError, "`norm_type`"),
        ("falcon", {"alibi": True}, UnsupportedArchitectureError, "`alibi`"),
        ("falcon", {"bias": True}, UnsupportedArchitectureError, "`bias`"),
        ("falcon", {"parallel_attn": False}, UnsupportedArchitectureError, "`parallel_attn`"),
        ("falcon", {"num_ln_in_parallel_attn": 2}, UnsupportedArchitectureError, "`num_ln_in_parallel_attn`"),
        ("falcon-two-norms", {"num_ln_in_parallel_attn": 1}, TensorMismatchError, r"no use for .*ln_attn"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)  # fmt: skip
def test_refuses_a_configuration(
    tmp_path: Path, name: str, changes: dict[str, Any], error: type[WeightpkgError], reason: str
) -> None:
    source = TinyCheckpoint.read(name).changed(**changes).write(tmp_path / "source")
    with pytest.raises(error, match=reason):
        convert(source, tmp_path / "out")


# Tensors


def save(source: Path, tensors: dict[str, NDArray[np.float32]]) -> None:
    contiguous = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    safetensors.numpy.save_file(contiguous, source / "model.safetensors")


def check_golden(directory: Path, name: str) -> None:
    tokens, columns, expected, bar = golden(name)
    logits, _ = feed(load(directory), tokens, {})
    np.testing.assert_allclose(logits[0][:, columns], expected, rtol=0, atol=bar)


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_the_text_part_of_a_gemma_with_images_is_converted(tmp_path: Path, prefix: str) -> None:
    page = TinyCheckpoint.read("gemma3")
    text = {key: value for key, value in page.config.items() if key != "architectures"}
    whole = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": text,
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 32},
        "mm_tokens_per_image": 4,
        "image_token_index": 301,
        "eos_token_id": [2],
    }
    source = page.write(tmp_path / "source")
    (source / "config.json").write_text(json.dumps(whole))
    tensors = {name.replace("model.", prefix, 1): values for name, values in page.tensors().items()}
    images = prefix.removesuffix("language_model.").removeprefix("language_model.model.")
    tensors[f"{images}vision_tower.vision_model.post_layernorm.weight"] = np.ones(32, np.float32)
    tensors[f"{images}multi_modal_projector.mm_soft_emb_norm.weight"] = np.ones(32, np.float32)
    save(source, tensors)
    convert(source, tmp_path / "out")
    check_golden(tmp_path / "out", "gemma3")


def test_buffers_of_older_checkpoints_are_left_out(tmp_path: Path) -> None:
    page = TinyCheckpoint.read("gpt2")
    source = page.write(tmp_path / "source")
    masks = {
        f"h.{i}.attn.{name}": np.ones((1, 1, 64, 64), np.float32)
        for i in range(2)
        for name in ("bias", "masked_bias")
    }
    save(source, {**page.tensors(), **masks})
    convert(source, tmp_path / "out")
    check_golden(tmp_path / "out", "gpt2")
    page = TinyCheckpoint.read("falcon")
    source = page.write(tmp_path / "falcon")
    buffer = {"transformer.h.0.self_attention.rotary_emb.inv_freq": np.ones(8, np.float32)}
    save(source, {**page.tensors(), **buffer})
    convert(source, tmp_path / "falcon-out")
    check_golden(tmp_path / "falcon-out", "falcon")


def test_refuses_to_turn_a_matrix_of_blocks_round() -> None:
    layout = BlockLayout(4, 32, has_offset=False)
    weight = Weight("a", (64, 32), layout, lambda _, __: np.zeros((64, 32), np.float32))
    with pytest.raises(UnsupportedQuantizationError, match="`a` is stored columns first"):
        transposed(weight)


@pytest.mark.parametrize("quantization", ["q4", "q8"])
@pytest.mark.parametrize("name", ["falcon-two-norms", "gemma2", "gpt2-head", "smollm3", "stablelm"])
def test_logits_of_blocks_are_those_of_the_same_weights_as_dense_ones(
    tmp_path: Path, name: str, quantization: Literal["q4", "q8"]
) -> None:
    page = TinyCheckpoint.read(name)
    convert(page.write(tmp_path / "source"), tmp_path / "out", quantization=quantization)
    again = page.write(tmp_path / "again")
    tensors = {}
    for key, values in page.tensors().items():
        is_turned = name.startswith("gpt2") and ".c_" in key and values.ndim == 2
        turned = values.T.copy() if is_turned else values
        made = as_blocks(key, turned, quantization)
        tensors[key] = made.T if is_turned else made
    save(again, tensors)
    convert(again, tmp_path / "dense")
    tokens = golden(name)[0]
    expected, _ = feed(load(tmp_path / "dense"), tokens, {})
    logits = Decoder.exact(tmp_path / "out").run(tokens)[0]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
