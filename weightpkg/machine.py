"""A machine, as far as it decides which variant is chosen: a description that can be kept.

`hardware` makes one of this machine, `weightpkg doctor --json` writes it, and `--for` reads it; the
same description gives the same choice anywhere. `docs/resolution.md` has its JSON.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from weightpkg.errors import MachineError, shown

HEADROOM = 0.1
"""The share of a machine's memory that is left to everything else that runs on it."""

DEVICES = ("cpu", "cuda", "directml", "coreml", "openvino", "qnn", "rocm")

_UNITS: dict[str, int] = {"": 1} | {
    f"{letter}{unit}": int(base ** (power + 1))
    for unit, base in (("b", 1000), ("ib", 1024))
    for power, letter in enumerate("kmgt")
}
_SIZE = re.compile(
    r"(?P<number>[0-9]{1,15}(?:\.[0-9]{1,6})?)\s*(?P<unit>[kmgt]i?b)?\Z", re.IGNORECASE
)
_MAX_MEMORY = 1 << 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What a model would run on.

    device: what computes, one of `DEVICES`.
    memory: bytes that the device can use in all, with limits on this process, or None if not known.
    system: as Python has it: `linux`, `darwin`, `windows`, or None for any.
    """

    device: str = "cpu"
    memory: int | None = None
    system: str | None = None

    @property
    def room(self) -> int | None:
        """Bytes that a model may take."""
        return None if self.memory is None else int(self.memory * (1 - HEADROOM))

    @classmethod
    def parse(cls, text: str) -> Machine:
        """Read a description as people write it, in any order: `cpu,16GiB`, `linux,cpu,8GB`.

        Raises:
            MachineError: a word is none of a device, a system or a size.

        >>> Machine.parse("cpu,16GiB").memory == 16 * 2**30
        True
        """
        found: dict[str, str | int] = {}
        for word in (word.strip().lower() for word in text.split(",")):
            key, value = _read_word(text, word)
            if key in found:
                raise MachineError(text, f"it says {key} twice")
            found[key] = value
        return cls(**found)  # type: ignore[arg-type]  # `_read_word` gives each key its type

    @classmethod
    def from_json(cls, content: bytes, source: str) -> Machine:
        """Read what `as_json` made, by itself or inside what `weightpkg doctor --json` printed.

        Raises:
            MachineError: it is something else.
        """
        import json  # noqa: PLC0415  only a saved description needs it

        try:
            document = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise MachineError(source, f"it is not JSON: {error}") from error
        if isinstance(document, dict) and isinstance(document.get("machine"), dict):
            document = document["machine"]
        if not isinstance(document, dict) or not set(document) <= {"device", "memory", "system"}:
            raise MachineError(source, "it is not a machine as `weightpkg doctor --json` writes it")
        return cls._checked(document, source)

    @classmethod
    def _checked(cls, keys: Mapping[str, object], source: str) -> Machine:
        device, memory, system = keys.get("device"), keys.get("memory"), keys.get("system")
        if not isinstance(device, str) or device not in DEVICES:
            raise MachineError(source, f"`device` must be one of {', '.join(DEVICES)}")
        is_size = isinstance(memory, int) and not isinstance(memory, bool)
        if memory is not None and (not is_size or not 0 <= memory <= _MAX_MEMORY):  # type: ignore[operator]  # is_size says that it is int
            raise MachineError(source, "`memory` must be bytes, or null")
        if system is not None and not isinstance(system, str):
            raise MachineError(source, "`system` must be a string, or null")
        return cls(device=device, memory=memory, system=system)  # type: ignore[arg-type]  # the same

    def as_json(self) -> dict[str, object]:
        """The description for programs; `from_json` reads it."""
        return {"device": self.device, "memory": self.memory, "system": self.system}

    def __str__(self) -> str:
        memory = None if self.memory is None else f"{self.memory / 2**30:.1f} GiB"
        return ", ".join(filter(None, (self.system, self.device, memory)))


SYSTEMS = ("linux", "darwin", "windows")


def _read_word(text: str, word: str) -> tuple[str, str | int]:
    if word in DEVICES:
        return "device", word
    if word in SYSTEMS:
        return "system", word
    return "memory", parse_size(text, word)


def parse_size(text: str, word: str) -> int:
    """Return bytes; kB, MB, GB, TB are decimal and KiB, MiB, GiB, TiB binary.

    Args:
        text: what all was read, for the error.
        word: the size in it.

    Raises:
        MachineError: it is none.
    """
    match = _SIZE.match(word)
    if match is None:
        words = ", ".join((*DEVICES, *SYSTEMS))
        raise MachineError(text, f"`{shown(word)}` is none of {words}, nor a size such as `16GiB`")
    size = float(match["number"]) * _UNITS[(match["unit"] or "").lower()]
    if size > _MAX_MEMORY:
        raise MachineError(text, f"`{shown(word)}` is more than any machine has")
    return math.floor(size)
