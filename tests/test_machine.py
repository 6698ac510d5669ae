"""Descriptions of machines: as people write them, and as `doctor --json` does."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpkg.errors import MachineError
from weightpkg.machine import DEVICES, SYSTEMS, Machine


@pytest.mark.parametrize(
    ("text", "device", "memory", "system"),
    [
        ("cpu,16GiB", "cpu", 16 * 2**30, None),
        ("16GB", "cpu", 16 * 10**9, None),
        ("Linux, CUDA , 1.5 TiB", "cuda", 3 * 2**39, "linux"),
        ("windows", "cpu", None, "windows"),
        ("512mb", "cpu", 512 * 10**6, None),
        ("1024", "cpu", 1024, None),
    ],
)
def test_reads_what_people_write(
    text: str, device: str, memory: int | None, system: str | None
) -> None:
    assert Machine.parse(text) == Machine(device=device, memory=memory, system=system)


@pytest.mark.parametrize(
    "text",
    ["", ",", "cpu,", "cpu,cpu", "8GiB,9GiB", "toaster", "-1GiB", "16 gigs", "1e9", "9999999TiB", "cpu;8GiB", "٣GiB", "1.GiB", "nanGiB"],
)  # fmt: skip
def test_refuses_what_is_no_machine(text: str) -> None:
    with pytest.raises(MachineError) as caught:
        Machine.parse(text)
    assert "doctor" in (caught.value.hint or "")


machines = st.builds(
    Machine,
    device=st.sampled_from(DEVICES),
    memory=st.none() | st.integers(0, 2**50),
    system=st.none() | st.sampled_from(SYSTEMS),
)


@given(machines)
def test_a_saved_machine_is_the_same_again(machine: Machine) -> None:
    alone = json.dumps(machine.as_json()).encode()
    inside = json.dumps({"schema": 1, "machine": machine.as_json(), "cpu": {}}).encode()
    assert Machine.from_json(alone, "m.json") == machine
    assert Machine.from_json(inside, "m.json") == machine


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"1", b"{}", b'{"device": "toaster"}', b'{"device": 1}', b"\xff",
        b'{"device": "cpu", "memory": -1}', b'{"device": "cpu", "memory": "16GiB"}',
        b'{"device": "cpu", "memory": true}', b'{"device": "cpu", "memory": 1.5}',
        b'{"device": "cpu", "memory": 1e400}', b'{"device": "cpu", "system": 3}',
        b'{"device": "cpu", "memori": 3}', b"[" * 100_000, b'{"machine": []}',
        b'{"device": "cpu", "memory": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda content: content[:24],
)  # fmt: skip
def test_refuses_a_file_that_is_something_else(content: bytes) -> None:
    with pytest.raises(MachineError, match=r"m\.json"):
        Machine.from_json(content, "m.json")


def test_some_memory_is_left_to_others() -> None:
    assert Machine(memory=10 * 10**9).room == 9 * 10**9
    assert Machine().room is None
