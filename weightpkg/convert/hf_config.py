"""`config.json`, read so that nothing which changes the mathematics is passed over.

As `Weights` does with tensors, `HFConfig` remembers what was asked for. A key that nobody read, that
is not switched off, and that is not known to be without influence, is an error.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/configuration_utils.py
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

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

    def optional(self, key: str, kind: type[T]) -> T | None:
        """Return a value as `get` does; None if the key is not there."""
        return self.get(key, kind) if key in self else None

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number, which may be written without a fraction; otherwise as `get`."""
        value = self._value(key, default, "a number")
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._misread(key, "a number")
        return _float(value)

    def positive(self, key: str, default: float | None = None) -> float:
        """Return a number as `number` does.

        Raises:
            UnsupportedArchitectureError: it is not positive.
        """
        value = self.number(key, default)
        if not (math.isfinite(value) and value > 0):
            raise self.unsupported(f"`{self._path}{key}` is {value}, which is not positive")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        """Return a list of numbers, with or without fractions; errors as `get`."""
        values = self._value(key, None, "a list of numbers")
        if not isinstance(values, list) or not all(type(n) in {int, float} for n in values):
            raise self._misread(key, "a list of numbers")
        return tuple(map(_float, values))

    def array(self, key: str, kind: type[T]) -> list[T]:
        """Return a list, all of whose elements are of one kind; errors as `get`."""
        values = self._value(key, None, "a list")
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise self._misread(key, f"a list, each of it {_NAMES[kind]}")
        return values

    def strings(self, key: str) -> list[str]:
        """Return a list of strings, empty if it is not there.

        Raises:
            CheckpointError: there is something else.
        """
        value = self._value(key, [], "a list of strings")
        found = [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
        if not isinstance(value, list) or len(found) != len(value):
            raise self._misread(key, "a list of strings")
        return found

    def table(self, key: str) -> dict[str, JSON]:
        """Return an object as it is, empty if it is not there; errors as `group`."""
        value = self._value(key, {}, "an object")
        if not isinstance(value, dict):
            raise self._misread(key, "an object")
        return value

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

    def assume(self, defaults: Mapping[str, bool | float | str]) -> None:
        """Take keys that are not there, not even as null, as said."""
        missing = {key: value for key, value in defaults.items() if key not in self._keys}
        self._fields.update(missing)
        self._keys.update(missing)

    def expect_own_code(self, name: str) -> None:
        """Allow `auto_map` where it names the code that the library's own was made from.

        Args:
            name: of its modules, behind `configuration_` and `modeling_`.

        Raises:
            CheckpointError: it is not an object.
            UnsupportedArchitectureError: it names another module.
        """
        group = self.group("auto_map")
        classes = group._fields.values() if group else ()
        own = re.compile(rf"(configuration|modeling)_{name}\.\w+")
        if not all(isinstance(each, str) and own.fullmatch(each) for each in classes):
            raise self.unsupported("`auto_map` says that code of its own computes the model")

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
        if "auto_map" in self._fields.keys() - self._read:
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


def _float(value: float) -> float:
    """A whole number of any length as a float."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


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
