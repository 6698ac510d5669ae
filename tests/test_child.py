"""Conversions in a process of their own: as in this one, and whatever it does ends in one error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from factories import tiny_llama
from weightpkg import errors
from weightpkg.convert import Job, SourceFile, child, pipeline
from weightpkg.convert.directory import Conversion
from weightpkg.convert.limits import Limits
from weightpkg.convert.messages import dump_error, load_error
from weightpkg.digest import Digest, hash_file
from weightpkg.errors import (
    ConvertError,
    DigestMismatchError,
    DocumentError,
    GGUFError,
    StoreError,
    TensorMismatchError,
    WeightpkgError,
)
from weightpkg.files import new_directory
from weightpkg.formats.ggml import GGML_TYPES
from weightpkg.progress import Advance, Silence
from weightpkg.tensor import BlockLayout

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux has all of the limits")

LIMITS = Limits(memory=2**30, cpu_s=20, wall_s=20, file_size=2**24, open_files=30)


@dataclass
class Record:
    """Progress that keeps what it is told."""

    said: list[object] = field(default_factory=list)

    def note(self, message: str) -> None:
        self.said.append(message)

    @contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Advance]:
        self.said.append((description, total))
        try:
            yield self.said.append
        except WeightpkgError:
            self.said.append("failed")
            raise
        self.said.append("done")

    @property
    def pid(self) -> int:
        """Of the process that said so."""
        return next(
            int(each[4:]) for each in self.said if isinstance(each, str) and each[:4] == "pid "
        )


def hostile(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    word: str,
    limits: Limits = LIMITS,
    progress: Record | None = None,
) -> Conversion:
    """Convert a file whose converter does what `word` says; check that nothing is left of it."""
    source = tmp_path / "evil.gguf"
    source.write_text(word)
    monkeypatch.setattr(child, "_WORKER", Path(__file__).with_name("hostile_worker.py"))
    file = SourceFile(source, Digest("sha256", 64 * "0"), "evil.gguf")
    progress = progress or Record()
    before = threading.active_count()
    try:
        with new_directory(tmp_path / "out") as directory:
            return child.convert(
                Job("gguf", file.name, (file,)), directory, progress, limits=limits
            )
    except WeightpkgError:
        assert [path.name for path in tmp_path.iterdir()] == ["evil.gguf"]
        raise
    finally:
        assert not is_alive(progress.pid)
        assert threading.active_count() <= before


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("word", "limits", "reason"),
    [
        ("take_memory", LIMITS, "takes more than 1.1 GB of memory"),
        ("take_memory_bit_by_bit", LIMITS, "takes more than 1.1 GB of memory"),
        ("never_end", replace(LIMITS, cpu_s=1), "takes more than 1 s of processor time"),
        ("never_end", replace(LIMITS, wall_s=2), "takes more than 2 s, and"),
        ("sleep", replace(LIMITS, wall_s=2), "takes more than 2 s, and"),
        ("fill_the_disk", LIMITS, "takes more than 0.0 GB for a file"),
        ("open_files", LIMITS, "takes more than 30 open files"),
    ],
)
def test_a_limit_ends_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, word: str, limits: Limits, reason: str
) -> None:
    start = time.monotonic()
    with pytest.raises(ConvertError, match=reason) as caught:
        hostile(monkeypatch, tmp_path, word, limits)
    assert caught.value.message.startswith("`evil.gguf`: ")
    assert caught.value.hint
    assert caught.value.exit_code == 8
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("kill_itself", "its conversion was killed"),
        ("crash", "its conversion ended by signal 11"),
        ("leave", "its conversion ended with exit code 7"),
        ("close_the_pipe", "its conversion ended without an answer"),
        ("talk_nonsense", "its conversion ended"),
        ("have_a_bug", "its conversion ended with exit code 1"),
        ("forge_an_answer", "its conversion ended with exit code 0"),
        ("connect", "asked for the network"),
        ("look_up_a_name", "asked for the network"),
        ("run_a_program", "asked for another program"),
        ("run_a_shell", "asked for another program"),
        ("fork", "asked for another process"),
    ],
)
def test_whatever_it_does_is_one_error(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    word: str,
    reason: str,
) -> None:
    monkeypatch.setattr(child, "_END_TIMEOUT_S", 0.5)
    with pytest.raises(ConvertError, match=reason):
        hostile(monkeypatch, tmp_path, word)
    assert ("Traceback" in capfd.readouterr().err) == (word == "have_a_bug")


def test_it_has_no_network_device_but_an_idle_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True).returncode:  # noqa: S607
        pytest.skip("this system gives no namespaces")
    record = Record()
    hostile(monkeypatch, tmp_path, "count_interfaces", progress=record)
    assert record.said[1] in {"1", "2", "3"}  # `lo`, and what some kernels give to all
    assert int(str(record.said[1])) <= len(Path("/proc/net/dev").read_text().splitlines()) - 2


def test_it_does_not_know_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    record = Record()
    hostile(monkeypatch, tmp_path, "show_the_environment", progress=record)
    known = set(str(record.said[1]).split())
    ours = {"OPENBLAS_NUM_THREADS", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}
    ours |= {"ORT_DISABLE_TELEMETRY"}  # set in it, as in all that imports weightpkg
    assert known <= {"PYTHONPATH", "LD_LIBRARY_PATH", "LC_CTYPE", *ours}


@pytest.mark.parametrize(
    ("word", "error"),
    [
        ("raise_a_gguf_error", GGUFError("a.gguf", "header", "x", hint="y")),
        ("raise_a_tensor_mismatch_error", TensorMismatchError("ünï")),
        ("raise_a_digest_mismatch_error", DigestMismatchError("a", expected="b", found="c")),
        ("raise_a_document_error", DocumentError("a", where="b", source="c")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_error_arrives_as_it_was_raised(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, word: str, error: WeightpkgError
) -> None:
    with pytest.raises(WeightpkgError) as caught:
        hostile(monkeypatch, tmp_path, word)
    assert type(caught.value) is type(error)
    assert vars(caught.value) == vars(error)
    assert str(caught.value) == str(error)
    assert caught.value.exit_code == error.exit_code


def test_an_error_of_no_class_of_ours_is_one_of_conversion() -> None:
    assert type(load_error("SystemExit", {"message": "a", "hint": None})) is ConvertError
    assert type(load_error("annotations", {"message": "a", "hint": None})) is ConvertError


def test_an_error_keeps_its_tuples() -> None:
    error = errors.ModelNotFoundError("a", ["b", "c"])
    again = load_error(*dump_error(error))
    assert isinstance(again, errors.ModelNotFoundError)
    assert again.nearest == ("b", "c")


def test_a_full_disk_is_an_error_of_the_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="no space left on the disk"):
        hostile(monkeypatch, tmp_path, "fill_up")


def test_what_it_tells_arrives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record = Record()
    hostile(monkeypatch, tmp_path, "tell", progress=record)
    steps = [each for each in record.said[3:-3] if isinstance(each, int)]
    assert record.said[1:3] == ["begun", ("large", 5_000_000)]
    assert sum(steps) == 5_000_000
    assert len(steps) < 5
    assert record.said[-4:] == ["done", ("of no known size", None), 7, "done"]


def test_a_task_that_fails_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record = Record()
    with pytest.raises(TensorMismatchError):
        hostile(monkeypatch, tmp_path, "fail_in_a_task", progress=record)
    assert record.said[-2:] == [("failing", 10), "failed"]


class Interrupt(Record):
    """The user presses Ctrl-C when the conversion has begun."""

    def note(self, message: str) -> None:
        super().note(message)
        raise KeyboardInterrupt


def test_an_interrupt_ends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        hostile(monkeypatch, tmp_path, "sleep", progress=Interrupt())
    assert time.monotonic() - start < 10
    assert [path.name for path in tmp_path.iterdir()] == ["evil.gguf"]


def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "evil.gguf").write_text("sleep")
    program = f"""
import sys
from pathlib import Path
from weightpkg.convert import Job, SourceFile, child
from weightpkg.digest import Digest
from weightpkg.progress import Silence
class Say(Silence):
    def note(self, message):
        print(message, flush=True)
child._WORKER = Path({str(Path(__file__).with_name("hostile_worker.py"))!r})
file = SourceFile(Path({str(tmp_path / "evil.gguf")!r}), Digest("sha256", 64 * "0"), "a")
child.convert(Job("gguf", "a", (file,)), Path({str(tmp_path)!r}), Say())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline().split()[1])
        assert is_alive(pid)
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    """Whether it is more than a name that nobody has waited for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_result_is_that_of_a_conversion_in_this_process(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "tiny.gguf", weights="Q4_1")
    digest = hash_file(source, "sha256")
    with new_directory(tmp_path / "own") as directory:
        here = pipeline.convert(source, digest, directory, Silence(), name="tiny")
    with new_directory(tmp_path / "child") as directory:
        file = SourceFile(source, digest, "tiny")
        there = child.convert(Job("gguf", file.name, (file,)), directory, Silence())
    assert here == there
    for path in (tmp_path / "own").iterdir():
        assert path.read_bytes() == (tmp_path / "child" / path.name).read_bytes()


def test_limits_grow_with_the_source() -> None:
    small, large = Limits.for_size(10**6), Limits.for_size(40 * 10**9)
    assert small.memory > 2e9
    assert large.memory > 42e9
    assert large.file_size > 8 * 40e9
    assert 3600 < large.cpu_s < large.wall_s


def test_no_block_type_needs_more_output_than_may_be_written() -> None:
    for kind in GGML_TYPES.values():
        if isinstance(kind.layout, BlockLayout):
            numbers = 2 if kind.layout.has_offset else 1
            bits = kind.layout.bits + 32 * numbers / kind.layout.block_size
            assert 2 * bits < 12 * 8 * kind.type_size / kind.block_size


def test_nothing_is_imported_from_the_current_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = tiny_llama(tmp_path / "tiny.gguf", weights="Q4_1")
    (tmp_path / "numpy.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with new_directory(tmp_path / "out") as directory:
        file = SourceFile(source, Digest("sha256", 64 * "0"), "tiny")
        assert (
            child.convert(Job("gguf", file.name, (file,)), directory, Silence()).architecture
            == "llama"
        )
