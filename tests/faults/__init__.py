"""What can go wrong between a client and a server: a table of faults, and how each should end.

The outcome is that of a good client which has one source, and knows size and SHA-256 beforehand:

- `succeeds`: the right bytes can be had by trying again, from where it broke or from the beginning.
- `fails`: they cannot be had, or not in bounded time, or not without doing what no client should.
- `either`: they can be had, and giving up is as reasonable, as the server contradicts itself.

In no case do wrong bytes get a name, nor does the client wait or read without end.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from faults.breaks import BREAKING
from faults.contents import CONTENTS
from faults.fault import Fault, answers_right
from faults.heads import HEADS, WAITING
from faults.lengths import LENGTHS
from faults.ranges import RANGES

_ALL = (
    Fault("none", "succeeds", answers_right),
    *BREAKING, *LENGTHS, *RANGES, *CONTENTS, *WAITING, *HEADS,
)  # fmt: skip

FAULTS: Mapping[str, Fault] = MappingProxyType({fault.name: fault for fault in _ALL})
