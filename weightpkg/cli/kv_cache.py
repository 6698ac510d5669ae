"""The option that says what keys and values are kept as."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import click

from weightpkg.memory import KvCache

USED = "Keep keys and values so: int8 takes a quarter of the memory."
ESTIMATED = "What keys and values are kept as."


def kv_cache_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command `--kv-cache`: a parameter `kv_cache`."""
    kinds = click.Choice(get_args(KvCache))
    return click.option("--kv-cache", type=kinds, default="float", show_default=True, help=text)
