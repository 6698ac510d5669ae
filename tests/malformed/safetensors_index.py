"""Indexes of sharded checkpoints that must be refused: one function an attack, named after it."""

from __future__ import annotations

import json
from collections.abc import Callable

from malformed.gguf import Attack

_SHARD = "model-00001-of-00002.safetensors"


def attacks() -> list[Callable[[], Attack]]:
    """Every attack of this module."""
    return [
        function
        for name, function in globals().items()
        if getattr(function, "__annotations__", {}).get("return") == "Attack"
        and not name.startswith("_")
    ]


def _index(weight_map: object, **fields: object) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": weight_map} | fields).encode()


def _shard(name: str) -> Attack:
    return Attack(_index({"a": name}), f"`weight_map`: tensor `a`: {name!r} is not a plain file")


def index_not_json() -> Attack:
    return Attack(b"weight_map", "index: is not JSON at character 0")


def index_not_utf8() -> Attack:
    return Attack(b'{"weight_map": {"\xff": ""}}', "index: is not UTF-8 at byte 17")


def index_that_is_an_array() -> Attack:
    return Attack(b"[]", "index: is not an object of metadata and weight_map alone")


def index_without_weight_map() -> Attack:
    return Attack(b'{"metadata": {}}', "index: is not an object of metadata and weight_map alone")


def index_with_an_unknown_field() -> Attack:
    content = _index({"a": _SHARD}, files=[])
    return Attack(content, "index: is not an object of metadata and weight_map alone")


def index_nested_deep() -> Attack:
    return Attack(b'{"metadata": ' + 200_000 * b"[", "index: is nested too deep")


def metadata_that_is_an_array() -> Attack:
    return Attack(_index({"a": _SHARD}, metadata=[]), "`metadata`: is not an object")


def metadata_key_twice() -> Attack:
    content = b'{"metadata": {"total_size": 1, "total_size": 2}, "weight_map": {}}'
    return Attack(content, "index: the key 'total_size' is there twice")


def weight_map_twice() -> Attack:
    content = b'{"weight_map": {"a": "a.safetensors"}, "weight_map": {"a": "b.safetensors"}}'
    return Attack(content, "index: the key 'weight_map' is there twice")


def weight_map_that_is_an_array() -> Attack:
    return Attack(_index([["a", _SHARD]]), "`weight_map`: is not an object, or is empty")


def weight_map_empty() -> Attack:
    return Attack(_index({}), "`weight_map`: is not an object, or is empty")


def tensor_twice() -> Attack:
    content = b'{"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}}'
    return Attack(content, "index: the key 'a' is there twice")


def tensor_climbs_up() -> Attack:
    content = _index({"../a": _SHARD})
    return Attack(content, "`weight_map`: the tensor name '../a' is empty, not printable")


def tensor_called_as_the_metadata() -> Attack:
    content = _index({"__metadata__": _SHARD})
    return Attack(content, "`weight_map`: the tensor name '__metadata__' is empty, not printable")


def shard_that_is_a_number() -> Attack:
    return Attack(_index({"a": 1}), "`weight_map`: tensor `a`: its file is not a string")


def shard_that_is_null() -> Attack:
    return Attack(_index({"a": None}), "`weight_map`: tensor `a`: its file is not a string")


def shard_empty() -> Attack:
    return _shard("")


def shard_above() -> Attack:
    return _shard("../model.safetensors")


def shard_above_on_windows() -> Attack:
    return _shard("..\\model.safetensors")


def shard_from_the_root() -> Attack:
    return _shard("/etc/passwd")


def shard_of_a_drive() -> Attack:
    return _shard("C:model.safetensors")


def shard_of_a_stream() -> Attack:
    return _shard("model.safetensors:stream")


def shard_that_is_a_device() -> Attack:
    return _shard("NUL.safetensors")


def shard_that_is_the_directory() -> Attack:
    return _shard(".")


def shard_that_is_the_directory_above() -> Attack:
    return _shard("..")


def shard_with_nul() -> Attack:
    return _shard("model.safetensors\0.txt")


def shard_with_a_trailing_space() -> Attack:
    return _shard("model.safetensors ")


def shard_that_is_a_url() -> Attack:
    return _shard("https://example.com/model.safetensors")


def shard_in_a_directory_below() -> Attack:
    content = _index({"a": "unet/model.safetensors"})
    return Attack(content, "tensor `a`: `unet/model.safetensors` is not in the index's own direct")
