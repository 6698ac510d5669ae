"""What config.json says of a decoder: its sizes, which layers see a window, and rotary positions.

https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/modeling_rope_utils.py
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/modeling_rope_utils.py
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypedDict, cast

from weightpkg.convert import hyperparameters
from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.rope import (
    AnyScaling,
    Llama3Scaling,
    LongScaling,
    Scaling,
    long_attention_factor,
    yarn_attention_factor,
)
from weightpkg.errors import shown


class Sizes(TypedDict):
    """The fields that nearly every decoder has."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int


def read_sizes(config: HFConfig) -> Sizes:
    """Read the sizes of a decoder: as many heads for keys as for queries, if config.json does not say.

    Raises:
        CheckpointError: a key is missing or of the wrong type.
        UnsupportedArchitectureError: no model has such a size.
    """
    heads, hidden_size = config.get("num_attention_heads", int), config.get("hidden_size", int)
    sizes: Sizes = {
        "vocab_size": config.get("vocab_size", int),
        "hidden_size": hidden_size,
        "intermediate_size": config.get("intermediate_size", int),
        "num_hidden_layers": config.get("num_hidden_layers", int),
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("num_key_value_heads", int, heads),
        "head_dim": config.get("head_dim", int, hidden_size // max(1, heads)),
        "max_position_embeddings": config.get("max_position_embeddings", int),
    }
    for name, size in sizes.items():
        hyperparameters.check_limit(config.name, name, cast("int", size))
    return sizes


def read_layers(config: HFConfig, key: str = "num_hidden_layers") -> int:
    """Return how many layers there are.

    Raises:
        CheckpointError: the key is missing or of the wrong type.
        UnsupportedArchitectureError: no model has so many, or none.
    """
    count = config.get(key, int)
    hyperparameters.check_limit(config.name, "num_hidden_layers", count)
    return count


def read_experts(config: HFConfig, *keys: str) -> tuple[int, int]:
    """Return how many experts a layer has, and how many of them a token goes to.

    Args:
        config: of a mixture of experts.
        keys: that say how many there are; transformers knows one by several names.

    Raises:
        CheckpointError: a key is missing or of the wrong type.
        UnsupportedArchitectureError: keys disagree, or more experts are used than there are.
    """
    config.ignore("output_router_logits", "router_aux_loss_coef")  # of training
    count = config.get(next(filter(config.__contains__, keys), keys[0]), int)
    for key in keys:
        config.expect(key, count)
    chosen = config.get("num_experts_per_tok", int)
    if not 1 <= chosen <= count:
        raise config.unsupported(f"{chosen} of {count} experts are used for a token")
    return count, chosen


_SEES_WINDOW = {"full_attention": False, "sliding_attention": True}


def read_windowed(config: HFConfig, default: Sequence[bool]) -> tuple[bool, ...]:
    """Return for each layer whether its tokens see a window only.

    Args:
        config: where `layer_types` is.
        default: what is true where it is not; it has as many elements as there are layers.

    Raises:
        CheckpointError: it is not a list of strings.
        UnsupportedArchitectureError: it is not for so many layers, or has other types.
    """
    if "layer_types" not in config:
        return tuple(default)
    kinds = config.array("layer_types", str)
    if len(kinds) != len(default):
        raise config.unsupported(f"`layer_types` has {len(kinds)} layers, not {len(default)}")
    if unknown := [kind for kind in kinds if kind not in _SEES_WINDOW]:
        raise config.unsupported(f"`layer_types` has {shown(unknown[0])}, which is not handled")
    return tuple(_SEES_WINDOW[kind] for kind in kinds)


def read_optional_window(config: HFConfig) -> tuple[int | None, tuple[bool, ...]]:
    """Return the window of Qwen's models, None if there is none, and which layers have it.

    Raises:
        CheckpointError: a key is missing or of the wrong type.
        UnsupportedArchitectureError: there are types of layers that are not handled.
    """
    n_layers = read_layers(config)
    config.ignore("sliding_window", "max_window_layers")  # say nothing as long as there is none
    if not config.get("use_sliding_window", bool, False):
        if any(read_windowed(config, [False] * n_layers)):
            raise config.unsupported("`layer_types` has windows, `use_sliding_window` says no")
        return None, (False,) * n_layers
    first = config.get("max_window_layers", int)
    windowed = read_windowed(config, [i >= first for i in range(n_layers)])
    return config.get("sliding_window", int), windowed


def read_rope(config: HFConfig, theta: float = 10000.0) -> tuple[float, AnyScaling]:
    """Return the base of the rotary frequencies, and how they are scaled.

    Args:
        config: where the keys are.
        theta: the base, where it is not among them.

    Raises:
        CheckpointError: a key is missing or has a value of another kind.
        UnsupportedArchitectureError: the frequencies are scaled in another way, or a part of each
            head does not rotate.
    """
    theta, scaling, share = read_partial_rope(config, theta)
    if share != 1:
        raise config.unsupported(f"`partial_rotary_factor` is {share}, which is not handled")
    return theta, scaling


def read_partial_rope(
    config: HFConfig, theta: float = 10000.0, share: float = 1.0
) -> tuple[float, AnyScaling, float]:
    """Return the same, and the share of each head that rotates; arguments are for missing keys."""
    theta = config.number("rope_theta", theta)
    share = config.number("partial_rotary_factor", share)
    # transformers 5 writes `rope_parameters`, with the base in it, where 4 writes `rope_scaling`
    group = config.group("rope_parameters") or config.group("rope_scaling")
    scaling: AnyScaling = Scaling()
    if group is not None:
        theta = group.number("rope_theta", theta)
        share = group.number("partial_rotary_factor", share)
        scaling = _read_scaling(config, group)
    if not 0 < share <= 1:
        raise config.unsupported(f"`partial_rotary_factor` is {share}, not a part of a head")
    return theta, scaling, share


def read_two_ropes(
    config: HFConfig,
) -> tuple[tuple[float, AnyScaling], tuple[float, AnyScaling]] | None:
    """Return base and scaling of layers without a window, and of those with one.

    None where config.json does not have these two, as transformers 5 writes them.

    Raises:
        CheckpointError: a key is missing or has a value of another kind.
        UnsupportedArchitectureError: the frequencies are scaled in another way.
    """
    group = config.group("rope_parameters")
    if group is None or not any(kind in group for kind in _SEES_WINDOW):
        return None
    full, local = (_read_layer_rope(config, group, kind) for kind in _SEES_WINDOW)
    group.finish()
    return full, local


def _read_layer_rope(config: HFConfig, group: HFConfig, kind: str) -> tuple[float, AnyScaling]:
    group.require(kind)
    keys = group.group(kind) or HFConfig(config.name, {})
    keys.expect("partial_rotary_factor", 1)
    return keys.number("rope_theta"), _read_scaling(config, keys)


def _read_scaling(config: HFConfig, group: HFConfig) -> AnyScaling:
    kind = group.get("rope_type" if "rope_type" in group else "type", str, "default")
    group.expect("type", kind)
    if kind not in _SCALINGS:
        raise config.unsupported(f"rope scaling `{shown(kind)}` is not handled")
    scaling = _SCALINGS[kind](config, group)
    group.finish()
    return scaling


def _read_linear(_: HFConfig, group: HFConfig) -> Scaling:
    return Scaling(factor=group.positive("factor"))


def _read_llama3(config: HFConfig, group: HFConfig) -> Llama3Scaling:
    scaling = Llama3Scaling(
        factor=group.number("factor"),
        low_freq_factor=group.number("low_freq_factor"),
        high_freq_factor=group.number("high_freq_factor"),
        original_context=group.number("original_max_position_embeddings"),
    )
    if not scaling.is_sound():
        raise config.unsupported("the rope scaling's numbers are not positive and in order")
    return scaling


def _read_yarn(config: HFConfig, group: HFConfig) -> Scaling:
    group.ignore("finetuned")
    factor = group.positive("factor")
    attention = yarn_attention_factor(factor)
    if "mscale" in group and "mscale_all_dim" in group:
        both = (group.positive(key) for key in ("mscale", "mscale_all_dim"))
        above, below = (yarn_attention_factor(factor, scale) for scale in both)
        attention = above / below
    return Scaling(
        factor=factor,
        original_max_position_embeddings=_read_original_context(config, group),
        beta_fast=group.positive("beta_fast", 32.0),
        beta_slow=group.positive("beta_slow", 1.0),
        attention_factor=group.positive("attention_factor", attention),
        truncate=group.get("truncate", bool, True),
    )


def _read_longrope(config: HFConfig, group: HFConfig) -> LongScaling:
    context = config.get("max_position_embeddings", int)
    original = _read_original_context(config, group)
    group.expect("factor", context / original)
    long, short = group.numbers("long_factor"), group.numbers("short_factor")
    factors = long if context > original else short
    if not all(0 < factor < math.inf for factor in factors):
        raise config.unsupported("a factor of the rotary frequencies is not positive")
    attention = long_attention_factor(context / original, max(2, original))
    return LongScaling(
        factors=factors, attention_factor=group.positive("attention_factor", attention)
    )


def _read_original_context(config: HFConfig, group: HFConfig) -> int:
    """Return how long the context of the first training was; it may be said in either place."""
    key = "original_max_position_embeddings"
    context = config.get("max_position_embeddings", int)
    original = config.get(key, int, group.get(key, int, context))
    group.expect(key, original)
    for length in (context, original):
        hyperparameters.check_limit(config.name, "max_position_embeddings", length)
    return original


_SCALINGS: dict[str, Callable[[HFConfig, HFConfig], AnyScaling]] = {
    "default": lambda _, __: Scaling(),
    "linear": _read_linear,
    "llama3": _read_llama3,
    "longrope": _read_longrope,
    "su": _read_longrope,  # what it was called at first
    "yarn": _read_yarn,
}
