"""A blob on its way: what is hashed behind the bytes that come."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from weightpkg.digest import Hasher
from weightpkg.partial import Partial, Provenance

if TYPE_CHECKING:
    import pytest


def test_the_last_chunk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"weights" * 1000
    expected = Hasher()
    expected.update(content)
    add = Hasher._add

    def add_slowly(self: Hasher, data: memoryview) -> None:
        before = self.size
        self.size += data.nbytes
        time.sleep(0.2)  # as a digest is not computed at once, and lets other threads go on
        self.size = before
        add(self, data)

    monkeypatch.setattr(Hasher, "_add", add_slowly)
    with Partial(tmp_path / "partial", size=len(content)) as partial:
        partial.resume(lambda _: None)
        partial.begin(Provenance("here", None))
        partial.write(0, content)
        time.sleep(0.1)
        assert partial.finish() == expected.finish()
