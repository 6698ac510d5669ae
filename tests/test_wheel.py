from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from weightpkg.errors import FetchError
from weightpkg.sources import PIECE_SIZE, Pieces
from weightpkg.sources.local import open_file
from weightpkg.sources.wheel import MissingMemberError, open_member

PATH = "pkg/model.gguf"
CONTENT = bytes(range(256)) * 3000


def wheel(*, method: int = zipfile.ZIP_DEFLATED, comment: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("pkg/__init__.py", "")
        archive.writestr(PATH, CONTENT)
        archive.writestr("pkg-1.dist-info/RECORD", "")
        archive.comment = comment
    return buffer.getvalue()


class Counted:
    """Ranges in memory that count what is asked for."""

    name = "a.whl"
    validator: str | None = None
    has_ranges = True
    n_busy = 0

    def __init__(self, content: bytes, piece_size: int = 1000) -> None:
        self.size: int | None = len(content)
        self._content = content
        self._piece_size = piece_size
        self.asked: list[tuple[int, int]] = []

    def stream(self, start: int, end: int | None = None) -> Pieces:
        stop = len(self._content) if end is None else end
        self.asked.append((start, stop))
        found = self._content[start:stop]
        size = self._piece_size
        yield from [found[i : i + size] for i in range(0, len(found), size)]


def read(content: bytes, path: str = PATH) -> bytes:
    member = open_member(Counted(content), path)
    found = b"".join(member.stream(0))
    assert member.size == len(found)
    return found


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("piece_size", [1, 29, 1000, 10**7])
def test_reads_a_member_however_its_bytes_arrive(method: int, piece_size: int) -> None:
    ranges = Counted(wheel(method=method), piece_size)
    pieces = list(open_member(ranges, PATH).stream(0))
    assert b"".join(pieces) == CONTENT
    assert max(map(len, pieces)) <= max(piece_size, 256 * 1024)


@pytest.mark.parametrize("more", range(0, 300, 25))
def test_gives_all_that_the_inflater_still_holds_at_the_end(more: int) -> None:
    content = bytes(PIECE_SIZE + more)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(PATH, content)
    assert read(buffer.getvalue()) == content


def test_reads_an_empty_member() -> None:
    assert read(wheel(), "pkg/__init__.py") == b""


def test_asks_for_the_end_and_for_the_member_alone() -> None:
    content = wheel(method=zipfile.ZIP_STORED)
    ranges = Counted(content)
    assert b"".join(open_member(ranges, PATH).stream(0)) == CONTENT
    tail, (header_start, header_end), (start, end) = ranges.asked
    assert tail == (len(content) - 64 * 1024, len(content))
    assert header_end - header_start == 1024
    assert end - start == len(CONTENT)


def test_reads_a_directory_that_is_longer_than_the_end_it_guessed() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(PATH, CONTENT)
        for i in range(1500):
            archive.writestr(f"pkg/{i:0100}", "")
    ranges = Counted(buffer.getvalue())
    assert b"".join(open_member(ranges, PATH).stream(0)) == CONTENT
    assert len(ranges.asked) == 4


def test_reads_a_member_written_as_a_stream() -> None:
    class Unseekable(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: object) -> int:
            raise io.UnsupportedOperation

        def tell(self) -> int:
            raise io.UnsupportedOperation

    buffer = Unseekable()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(PATH, CONTENT)
    assert read(buffer.getvalue()) == CONTENT


def test_reads_a_file_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "a.whl"
    path.write_bytes(wheel())
    with open_file(path) as file:
        assert b"".join(open_member(file, PATH).stream(0)) == CONTENT


def test_names_the_nearest_members_of_one_that_is_missing() -> None:
    with pytest.raises(MissingMemberError, match=r"no member `pkg/model2\.gguf`") as caught:
        read(wheel(), "pkg/model2.gguf")
    assert caught.value.hint is not None
    assert f"`{PATH}`" in caught.value.hint


def offsets(content: bytes) -> tuple[int, int]:
    """Where the member's own header and its entry in the directory begin."""
    local = content.index(PATH.encode()) - 30
    central = content.rindex(PATH.encode()) - 46
    return local, central


def patched(content: bytes, place: int, new: bytes) -> bytes:
    return content[:place] + new + content[place + len(new) :]


def in_both(at_local: int, at_central: int, new: bytes) -> Callable[[bytes], bytes]:
    def break_it(content: bytes) -> bytes:
        local, central = offsets(content)
        return patched(patched(content, local + at_local, new), central + at_central, new)

    return break_it


def in_directory(at: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda content: patched(content, offsets(content)[1] + at, new)


def in_header(at: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda content: patched(content, offsets(content)[0] + at, new)


def with_two_of_one_name(_: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(PATH, b"one")
        archive.writestr("pkg/model.xxxx", b"two")
    return buffer.getvalue().replace(b"pkg/model.xxxx", PATH.encode())


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        pytest.param(with_two_of_one_name, "two members have one name", id="duplicate name"),
        pytest.param(in_both(6, 8, b"\1\0"), "encrypted", id="encrypted"),
        pytest.param(in_both(8, 10, b"\x0c\0"), "method 12", id="bzip2"),
        pytest.param(in_both(8, 10, b"\0\0"), "two sizes", id="stored in another size"),
        pytest.param(in_header(0, b"XX"), "disagree", id="header is none"),
        pytest.param(in_header(8, b"\0\0"), "disagree", id="header has another method"),
        pytest.param(in_header(14, b"\1\1\1\1"), "disagree", id="header has another crc"),
        pytest.param(in_header(18, b"\1\0\0\0"), "disagree", id="header has another size"),
        pytest.param(in_header(30, b"q"), "disagree", id="header has another name"),
        pytest.param(in_header(26, b"\xff\xff"), "overlaps", id="header never ends"),
        pytest.param(in_directory(20, b"\xff\xff\xff\x7f"), "overlaps", id="overlap"),
        pytest.param(in_directory(42, b"\xff\xff\xff\x7f"), "a.whl", id="header past the end"),
        pytest.param(in_both(22, 24, b"\xff\0\0\0"), "larger than the wheel says", id="bomb"),
        pytest.param(in_both(22, 24, b"\xff\xff\xff\x7f"), "another size", id="too short"),
        pytest.param(in_both(14, 16, b"\1\2\3\4"), "CRC-32", id="wrong crc"),
        pytest.param(in_header(50, b"\xff" * 50), "pkg/model.gguf", id="not deflated"),
        pytest.param(lambda content: content + b"x", "not a zip file", id="something after it"),
        pytest.param(lambda content: b"x" + content, "a.whl", id="something in front"),
        pytest.param(lambda content: content[:-1], "not a zip file", id="truncated"),
        pytest.param(lambda _: b"", "not a zip file", id="empty"),
        pytest.param(lambda _: b"<!DOCTYPE html>" * 99, "not a zip file", id="a web page"),
        pytest.param(lambda _: wheel(comment=b"c"), "not a zip file", id="a comment"),
    ],
)
def test_refuses_a_hostile_wheel(break_it: Callable[[bytes], bytes], reason: str) -> None:
    with pytest.raises(FetchError, match=reason):
        read(break_it(wheel()))


def test_refuses_a_directory_that_is_absurdly_large() -> None:
    content = bytes(20 * 1024 * 1024)
    end = b"PK\5\6\0\0\0\0\1\0\1\0" + len(content).to_bytes(4, "little") + bytes(6)
    with pytest.raises(FetchError, match="absurdly large"):
        read(content + end)


def test_never_ends_in_anything_but_our_error_when_a_byte_changes() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(PATH, b"content " * 9)
    content = buffer.getvalue()
    for place in range(len(content)):
        for bit in (0x01, 0x80):
            try:
                found = read(patched(content, place, bytes([content[place] ^ bit])))
            except FetchError:
                continue
            assert found == b"content " * 9
