"""`config.json`, read so that nothing which changes the mathematics is passed over.

As `Weights` does with tensors, `HFConfig` remembers what was asked for. A key that nobody read, that
is not switched off, and that is not known to be without influence, is an error.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/configuration_utils.py
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

from weightpkg.convert.rope import Llama3Scaling
from weightpkg.errors import CheckpointError, UnsupportedArchitectureError, shown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from weightpkg.formats.json_text import JSON

T = TypeVar("T")

# Of the library, of training, of labels, and of choosing tokens; not of the forward pass.
_WITHOUT_INFLUENCE = """
architectures attention_dropout attention_probs_dropout_prob bad_words_ids begin_suppress_tokens
bos_token_id chunk_size_feed_forward classifier_dropout decoder_start_token_id diversity_penalty
do_sample dropout dtype early_stopping embd_pdrop encoder_no_repeat_ngram_size eos_token_id
exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
gradient_checkpointing hidden_dropout hidden_dropout_prob id2label initializer_factor
initializer_range is_llama_config label2id length_penalty max_length max_new_tokens min_length
model_type no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
output_hidden_states output_scores pad_token_id prefix pretraining_tp problem_type
remove_invalid_values repetition_penalty resid_pdrop return_dict return_dict_in_generate
sep_token_id suppress_tokens task_specific_params temperature tie_encoder_decoder tokenizer_class
top_k top_p torch_dtype torchscript transformers.js_config transformers_version typical_p
unsloth_fixed unsloth_version use_bfloat16 use_cache
"""
_NAMES: dict[type, str] = {bool: "true or false", int: "a whole number", str: "a string"}

_LIMITS = {
    "vocab_size": 2**24,
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "num_hidden_layers": 1024,
    "num_attention_heads": 1024,
    "max_position_embeddings": 2**20,
    "type_vocab_size": 2**20,
}


class HFConfig:
    """The keys of one object; null is as good as not there."""

    def __init__(self, name: str, keys: dict[str, JSON], *, path: str = "") -> None:
        """Take all keys.

        Args:
            name: what to call the file in errors.
            keys: of the object, with their values.
            path: where in the file it lies, such as `rope_scaling.`.
        """
        self.name = name
        self._fields = {key: value for key, value in keys.items() if value is not None}
        self._path = path
        self._keys = set(keys)
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._fields

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Return a bool, an int or a str; without a default the key must be there.

        Raises:
            CheckpointError: the key is missing or has a value of another kind.
        """
        value = self._value(key, default, _NAMES[kind])
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self._misread(key, _NAMES[kind])
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number, which may be written without a fraction; otherwise as `get`."""
        value = self._value(key, default, "a number")
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._misread(key, "a number")
        return float(value)

    def group(self, key: str) -> HFConfig | None:
        """Return an object within this one, to be finished by itself; None if it is not there.

        Raises:
            CheckpointError: there is something else.
        """
        value = self._value(key, {}, "an object")
        if not isinstance(value, dict):
            raise self._misread(key, "an object")
        return HFConfig(self.name, value, path=f"{self._path}{key}.") if value else None

    def groups(self, key: str) -> list[HFConfig]:
        """Return the objects within an object, in the order of their keys; errors as `group`."""
        group = self.group(key)
        found = [group.group(name) for name in sorted(group._fields)] if group else []
        return [each for each in found if each is not None]

    def ignore(self, *keys: str) -> None:
        """Say that keys do not change the mathematics."""
        self._read.update(keys)

    def require(self, *keys: str) -> None:
        """Refuse keys that are not there, not even as null.

        Raises:
            CheckpointError: names the first of them.
        """
        for key in keys:
            if key not in self._keys:
                raise CheckpointError(self.name, f"key `{self._path}{key}`", "is missing")

    def expect(self, key: str, *handled: JSON) -> None:
        """Refuse a key that is there and has another value than the ones that are handled.

        Raises:
            UnsupportedArchitectureError: it does.
        """
        self._read.add(key)
        if key in self._fields and self._fields[key] not in handled:
            found = shown(str(self._fields[key]))
            raise self.unsupported(f"`{self._path}{key}` is {found}, which is not handled")

    def finish(self) -> None:
        """Refuse keys that nobody read; those that begin with _ are the library's own.

        Raises:
            UnsupportedArchitectureError: names the first of them.
        """
        if "auto_map" in self._fields:
            raise self.unsupported("`auto_map` says that code of its own computes the model")
        rest = self._fields.keys() - self._read - set(_WITHOUT_INFLUENCE.split())
        unknown = sorted(key for key in rest if not self._is_off(key) and key[:1] != "_")
        if unknown:
            key = shown(f"{self._path}{unknown[0]}")
            reason = f"`{key}` may change what the model computes, and is not handled"
            raise self.unsupported(reason)

    def _is_off(self, key: str) -> bool:
        """Whether a value is false or empty; 0 is a number like others."""
        value = self._fields[key]
        return isinstance(value, bool | str | list | dict) and not value

    def unsupported(self, reason: str) -> UnsupportedArchitectureError:
        """An error to be raised by the caller."""
        return UnsupportedArchitectureError(f"`{self.name}`: {reason}")

    def _value(self, key: str, default: object, wanted: str) -> object:
        self._read.add(key)
        value: object = self._fields.get(key, default)
        if value is None:
            raise CheckpointError(self.name, f"key `{self._path}{key}`", f"is missing ({wanted})")
        return value

    def _misread(self, key: str, wanted: str) -> CheckpointError:
        return CheckpointError(self.name, f"key `{self._path}{key}`", f"must be {wanted}")


def check_sizes(found: DataclassInstance, config: HFConfig) -> None:
    """Refuse numbers that no model has, before anything is computed from them.

    Args:
        found: an architecture's `Config`; every number with a fraction in it must be positive.
        config: where it was read.

    Raises:
        UnsupportedArchitectureError: names the field.
    """
    for field in fields(found):
        value, limit = getattr(found, field.name), _LIMITS.get(field.name)
        if limit is not None and not 1 <= value <= limit:
            raise config.unsupported(f"{field.name} is {value}, not 1 to {limit}")
        if isinstance(value, float) and not (math.isfinite(value) and value > 0):
            raise config.unsupported(f"{field.name} is {value}, which is not a positive number")


def read_rope(config: HFConfig) -> tuple[float, float, Llama3Scaling | None]:
    """Return the base of the rotary frequencies, what positions are divided by, and llama3 scaling.

    Raises:
        CheckpointError: a key is missing or has a value of another kind.
        UnsupportedArchitectureError: the frequencies are scaled in another way.
    """
    theta = config.number("rope_theta", 10000.0)
    # transformers 5 writes `rope_parameters`, with the base in it, where 4 writes `rope_scaling`
    group = config.group("rope_parameters") or config.group("rope_scaling")
    if group is None:
        return theta, 1.0, None
    theta = group.number("rope_theta", theta)
    kind = group.get("rope_type" if "rope_type" in group else "type", str, "default")
    group.expect("type", kind)
    group.expect("partial_rotary_factor", 1)
    factor, llama3 = 1.0, None
    if kind == "linear":
        factor = group.number("factor")
    elif kind == "llama3":
        llama3 = Llama3Scaling(
            factor=group.number("factor"),
            low_freq_factor=group.number("low_freq_factor"),
            high_freq_factor=group.number("high_freq_factor"),
            original_context=group.number("original_max_position_embeddings"),
        )
        if not llama3.is_sound():
            raise config.unsupported("the rope scaling's numbers are not positive and in order")
    elif kind != "default":
        raise config.unsupported(f"rope scaling `{shown(kind)}` is not handled")
    group.finish()
    return theta, factor, llama3
