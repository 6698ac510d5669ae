"""An architecture's numbers, read out of a GGUF file's metadata.

As `Weights` does with tensors, `Hyperparameters` remembers what was asked for: a key that nobody
read may change what the model computes, so it is as much an error as one that is missing.

Keys: https://github.com/ggml-org/llama.cpp/blob/0c1e57098bba43ac29e6e3b677cdceebdd22334f/src/llama-arch.cpp
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from weightpkg.convert import rope
from weightpkg.errors import TensorMismatchError, UnsupportedArchitectureError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from weightpkg.formats.gguf import GGUFFile

T = TypeVar("T")

# What no model exceeds, by the names of config.json.
_LIMITS = {
    "vocab_size": 2**24,
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "num_hidden_layers": 1024,
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "head_dim": 1024,
    "max_position_embeddings": 2**20,
    "sliding_window": 2**30,
    "query_pre_attn_scalar": 2**17,
    "num_local_experts": 4096,
    "num_experts": 4096,
    "n_routed_experts": 4096,
    "n_shared_experts": 4096,
    "q_lora_rank": 2**17,
    "kv_lora_rank": 2**17,
    "moe_intermediate_size": 2**20,
}


class Hyperparameters:
    """The keys `<architecture>.*` of one file."""

    def __init__(self, file: GGUFFile, architecture: str) -> None:
        self._file = file
        self._architecture = architecture
        self._read = {"vocab_size", "rope.scaling.finetuned"}  # without influence

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Return a value; without a default the key must be there.

        Raises:
            GGUFError: the key is missing or has a value of another kind.
        """
        self._read.add(key)
        return self._file.get(f"{self._architecture}.{key}", kind, default)

    def array(self, key: str, kind: type[T], default: list[T] | None = None) -> list[T]:
        """Return an array, all of whose elements are of one kind.

        Raises:
            GGUFError: as `get`, and where the elements are of another kind.
        """
        self._read.add(key)
        return self._file.array(f"{self._architecture}.{key}", kind, default)

    def ignore(self, *keys: str) -> None:
        """Say that keys do not change the mathematics."""
        self._read.update(keys)

    def finish(self) -> None:
        """Refuse keys that nobody read.

        Raises:
            UnsupportedArchitectureError: names the first of them.
        """
        prefix = f"{self._architecture}."
        keys = {key.removeprefix(prefix) for key in self._file.metadata if key.startswith(prefix)}
        if unknown := sorted(keys - self._read):
            raise self.unsupported(
                f"`{prefix}{unknown[0]}` may change what the model computes, and is not handled"
            )

    def unsupported(self, reason: str) -> UnsupportedArchitectureError:
        """An error to be raised by the caller."""
        return unsupported(self._file.name, reason)

    def layers(self) -> int:
        """Return how many layers there are.

        Raises:
            UnsupportedArchitectureError: no model has so many, or none.
        """
        count = self.get("block_count", int)
        check_limit(self._file.name, "num_hidden_layers", count)
        return count

    def chosen_experts(self, n_experts: int) -> int:
        """Return how many of a layer's experts a token goes to.

        Raises:
            UnsupportedArchitectureError: none, or more than there are.
        """
        count = self.get("expert_used_count", int)
        if not 1 <= count <= n_experts:
            raise self.unsupported(f"{count} of {n_experts} experts are used for a token")
        return count

    def head_size(self, default: int) -> int:
        """Return the size of a head, which is the same for queries, keys and values.

        Raises:
            UnsupportedArchitectureError: it is not, or no model has it.
        """
        size = self.get("attention.key_length", int, default)
        check_limit(self._file.name, "head_dim", size)
        self._must_be_head_size("attention.value_length", size)
        return size

    def must_see_everything(self) -> None:
        """Refuse an encoder whose tokens see those before them only.

        Raises:
            UnsupportedArchitectureError: that is what the file says.
        """
        if self.get("attention.causal", bool, default=False):
            raise self.unsupported(f"`{self._architecture}.attention.causal` is true")

    def check_whole_heads_rotate(self, head_size: int) -> None:
        """Refuse a rotation of a part of each head.

        Raises:
            UnsupportedArchitectureError: that is what the file says.
        """
        self._must_be_head_size("rope.dimension_count", head_size)

    def _must_be_head_size(self, key: str, size: int) -> None:
        if self.get(key, int, size) != size:
            raise self.unsupported(
                f"`{self._architecture}.{key}` is not the size of a head, {size}"
            )

    def rope_scaling(self) -> rope.Scaling:
        """Return how rotary frequencies are scaled: not at all, linearly or by YaRN.

        Raises:
            GGUFError: a key that YaRN needs is missing.
            UnsupportedArchitectureError: they are scaled in another way, or by an absurd number.
        """
        if self.get("rope.scaling.type", str, "linear") != "yarn":
            return rope.Scaling(factor=self.linear_rope_factor())
        factor = self.get("rope.scaling.factor", float)
        original = self.get("rope.scaling.original_context_length", int)
        check_limit(self._file.name, "max_position_embeddings", original)
        numbers = {
            "factor": factor,
            "beta_fast": self.get("rope.scaling.yarn_beta_fast", float, 32.0),
            "beta_slow": self.get("rope.scaling.yarn_beta_slow", float, 1.0),
        }
        for name, value in numbers.items():
            _check_positive(self._file.name, name, value)
        default = rope.yarn_attention_factor(factor)
        attention = self.get("rope.scaling.yarn_attn_factor", float, default)
        _check_positive(self._file.name, "attention_factor", attention)
        return rope.Scaling(
            factor=factor,
            original_max_position_embeddings=original,
            beta_fast=numbers["beta_fast"],
            beta_slow=numbers["beta_slow"],
            attention_factor=attention,
        )

    def linear_rope_factor(self) -> float:
        """Return what positions are divided by.

        Raises:
            UnsupportedArchitectureError: they are scaled in another way.
        """
        self.ignore("rope.scaling.original_context_length")  # of a longer training, not used here
        kind = self.get("rope.scaling.type", str, "linear")
        factor = self.get("rope.scaling.factor", float, 1.0)
        if kind == "none":
            return 1.0
        if kind != "linear":
            raise self.unsupported(f"rope scaling `{kind}` is not handled")
        _check_positive(self._file.name, "rope_factor", factor)
        return factor


def embedding_rows(file: GGUFFile) -> int:
    """Return the size of the vocabulary; there may be more rows than tokens, for alignment.

    Raises:
        TensorMismatchError: there is no embedding.
    """
    tensor = file.tensors.get("token_embd.weight")
    if tensor is None:
        raise TensorMismatchError(f"`{file.name}`: tensor `token_embd.weight` is missing")
    return tensor.shape[0]


def segment_rows(file: GGUFFile) -> int:
    """Return how many segments there are vectors for; 0 where the model knows none."""
    tensor = file.tensors.get("token_types.weight")
    return 0 if tensor is None else tensor.shape[0]


def check(config: DataclassInstance, source: str) -> None:
    """Refuse numbers that no decoder has, before anything is computed from them.

    Args:
        config: an architecture's `Config`; every number with a fraction in it must be positive.
        source: what to call the file.

    Raises:
        UnsupportedArchitectureError: names the field.
    """
    values = _check_numbers(config, source)
    _check_factors(values, source)
    heads, kv_heads = values["num_attention_heads"], values["num_key_value_heads"]
    if values["head_dim"] % 16 or heads % kv_heads:  # the attention operator takes no others
        text = f"{heads} heads, {kv_heads} for keys, of size {values['head_dim']}"
        raise unsupported(source, f"{text}: not evenly divided")


def check_encoder(config: DataclassInstance, source: str) -> None:
    """The same of an encoder, whose heads divide its width."""
    values = _check_numbers(config, source)
    width, heads = values["hidden_size"], values["num_attention_heads"]
    if width % heads:
        raise unsupported(source, f"{heads} heads, a width of {width}: not evenly divided")


def _check_numbers(config: DataclassInstance, source: str) -> dict[str, Any]:
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    for name, value in values.items():
        if name in _LIMITS and value is not None:
            check_limit(source, name, value)
        if isinstance(value, float):
            _check_positive(source, name, value)
    if values.get("rope_theta", math.inf) <= 1:
        raise unsupported(source, f"rope_theta is {values['rope_theta']}: no frequency is lower")
    return values


def _check_factors(values: dict[str, Any], source: str) -> None:
    scaling, size = values.get("rope_scaling"), values.get("rotary_dim", values["head_dim"])
    if isinstance(scaling, rope.LongScaling) and len(scaling.factors) != size // 2:
        text = f"{len(scaling.factors)} factors for {size // 2} frequencies"
        raise unsupported(source, f"rope scaling has {text}")


def check_limit(source: str, name: str, value: int) -> None:
    """Refuse a number that no model has.

    Raises:
        UnsupportedArchitectureError: names it.
    """
    if not 1 <= value <= _LIMITS[name]:
        raise unsupported(source, f"{name} is {value}, not 1 to {_LIMITS[name]}")


def _check_positive(source: str, name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise unsupported(source, f"{name} is {value}, which is not a positive number")


def unsupported(source: str, reason: str) -> UnsupportedArchitectureError:
    """An error that names the file, to be raised by the caller."""
    return UnsupportedArchitectureError(f"`{source}`: {reason}")
