"""The command line as a user meets it: real processes, their output and their exit codes."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import weightpkg as weightpkg_module
from factories import index_page, tiny_gemma3, tiny_llama
from weightpkg.fetch import DEFAULT_JOBS
from weightpkg.settings import Settings

Result = subprocess.CompletedProcess[str]
Weightpkg = Callable[..., Result]


@pytest.fixture
def environ(settings: Settings, tmp_path: Path) -> dict[str, str]:
    kept = {key: os.environ[key] for key in ("PATH", "VIRTUAL_ENV") if key in os.environ}
    return {**kept, **settings.environ, "HOME": str(tmp_path / "home"), "COLUMNS": "100"}


@pytest.fixture
def weightpkg(environ: dict[str, str]) -> Weightpkg:
    """Run the command line with the store and index of `settings`."""

    def run(*words: str, stdin: str = "", **changes: str) -> Result:
        return subprocess.run(
            [sys.executable, "-m", "weightpkg", *words],
            env={**environ, **changes},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_a_model_lives_and_goes(weightpkg: Weightpkg, settings: Settings) -> None:
    installed = weightpkg("install", "tiny")
    assert (installed.returncode, installed.stdout) == (0, "")
    assert "tiny-q4 1.0 (MIT): fetch" in installed.stderr
    assert "converted tiny-q4.gguf to ONNX in" in installed.stderr
    (row,) = json.loads(weightpkg("list", "--json").stdout)
    assert (row["name"], row["version"]) == ("tiny-q4", "1.0")
    assert Path(row["path"]).is_dir()
    assert "tiny-q4" in weightpkg("list").stdout
    assert weightpkg("verify").returncode == 0
    by_model = json.loads(weightpkg("cache", "size", "--by", "model", "--json").stdout)
    assert by_model["sizes"]["tiny-q4 1.0"] > 0
    assert "tiny-q4 1.0" in weightpkg("show", "tiny").stdout
    assert "would uninstall" in weightpkg("uninstall", "tiny", "--dry-run").stderr
    assert "freed" in weightpkg("uninstall", "tiny").stderr
    assert json.loads(weightpkg("list", "--json").stdout) == []
    assert list((settings.home / "models").iterdir()) == []


def test_run_answers_a_prompt_or_standard_input_the_same_each_time(weightpkg: Weightpkg) -> None:
    first = weightpkg("run", "tiny", "the sky", "--max-tokens", "8", "--raw")
    assert first.returncode == 0, first.stderr
    again = weightpkg("run", "tiny", "--max-tokens", "8", "--raw", stdin="the sky")
    assert again.stdout == first.stdout != "\n"
    assert again.stderr == ""  # installed by the first
    answer = json.loads(weightpkg("run", "tiny", "Hi", "--max-tokens", "3", "--json").stdout)
    assert len(answer["tokens"]) <= 3
    figures = weightpkg("run", "tiny", "Hi", "--max-tokens", "3", "-v").stderr
    for word in ("CPUExecutionProvider", "loaded in", "prefill", "decode"):
        assert word in figures


def test_run_has_answers_of_a_form_stops_samples_and_logprobs(
    weightpkg: Weightpkg, tmp_path: Path, settings: Settings
) -> None:
    words = ("run", "tiny", "Hi", "--json", "--max-tokens", "40")
    row = json.loads(weightpkg(*words, "--regex", "[0-9]{3}", "--logprobs", "2").stdout)
    assert len(row["text"]) == 3
    assert row["text"].isdigit()
    assert row["finish-reason"] == "stop"
    assert len(row["logprobs"]) == len(row["tokens"])
    assert len(row["logprobs"][0]["top"]) == 2
    (tmp_path / "schema.json").write_text('{"enum": ["yes", "no"]}')
    form = f"@{tmp_path / 'schema.json'}"
    assert json.loads(weightpkg(*words, "--json-schema", form).stdout)["text"] in {'"yes"', '"no"'}
    sampled = weightpkg(*words, "-n", "2", "--temperature", "2", "--seed", "1", "--lookup").stdout
    one, other = json.loads(sampled)
    assert one["tokens"] != other["tokens"]
    kept = list((settings.home / "cache" / "graphs").iterdir())
    assert len(kept) == 1  # for this machine, by the first of these runs


def test_run_and_bench_keep_keys_and_values_in_int8(
    weightpkg: Weightpkg, settings: Settings
) -> None:
    words = ("run", "tiny", "the sky", "--raw", "--max-tokens", "4", "--kv-cache", "int8")
    first = weightpkg(*words)
    assert first.returncode == 0, first.stderr
    assert weightpkg(*words).stdout == first.stdout
    kept = sorted(path.suffix for path in (settings.home / "cache" / "graphs").iterdir())
    # the graph that scales are measured with, the one that has them, and the scales
    assert kept == [".onnx", ".onnx", ".scales"]
    words = ("bench", "tiny", "--prompt", "9", "--answer", "3", "--rounds", "1")
    assert weightpkg(*words, "--kv-cache", "int8").returncode == 0


def test_bench_measures(weightpkg: Weightpkg) -> None:
    words = ("bench", "tiny", "--prompt", "20", "--answer", "4", "--rounds", "1")
    figures = json.loads(weightpkg(*words, "--json").stdout)
    assert figures["prompt-tokens"] == 20
    assert figures["decode-tokens-per-s"] > 0
    table = weightpkg(*words).stdout
    for word in ("provider", "load", "prefill", "first token", "decode", "peak memory"):
        assert word in table


def test_a_model_without_a_template_continues_text_and_says_so(
    weightpkg: Weightpkg, tmp_path: Path
) -> None:
    source = tiny_gemma3(tmp_path / "index" / "base-q4.gguf")
    page = index_page("base", {"q4": [source]}, architecture="gemma3")
    (tmp_path / "index" / "models" / "base.toml").write_text(page)
    assert weightpkg("run", "base", "--raw", "the sky", "--max-tokens", "4").returncode == 0
    refused = weightpkg("run", "base", "the sky")
    assert (refused.returncode, refused.stdout) == (9, "")
    assert "no chat template" in refused.stderr
    assert "hint: `--raw`" in refused.stderr


def test_install_can_be_looked_at_first(weightpkg: Weightpkg, settings: Settings) -> None:
    dry = weightpkg("install", "tiny", "--dry-run", "--json")
    (plan,) = json.loads(dry.stdout)
    assert plan["name"] == "tiny-q4"
    assert plan["fetch"][0]["path"] == "tiny-q4.gguf"
    assert not settings.home.exists()


def test_convert_makes_a_directory_and_never_replaces_one(
    weightpkg: Weightpkg, tmp_path: Path
) -> None:
    source = tiny_llama(tmp_path / "model.gguf")
    done = weightpkg("convert", str(source), "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.onnx").is_file()
    again = weightpkg("convert", str(source), "-o", str(tmp_path / "out"))
    assert again.returncode == 6
    assert "is there already" in again.stderr


def test_a_file_that_is_no_model_leaves_no_directory(weightpkg: Weightpkg, tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(b"<html>Please log in</html>")
    done = weightpkg("convert", str(source), "-o", str(tmp_path / "out"))
    assert done.returncode == 8
    assert "web page" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path != source) == ["index"]


MISTAKES = [
    (["show", "tinny"], 4, ["no model is called `tinny`", "did you mean `tiny`"]),
    (["install", "tiny-q9"], 4, ["no variant `q9`", "`tiny-q4`, `tiny-q8`"]),
    (["install", "tiny==9"], 4, ["matches `==9`", "there is 1.0"]),
    (["install", "../tiny"], 6, ["/tiny`: No such file"]),
    (["install", "hf:tiny"], 4, ["not a requirement", "hf:ORG/REPO"]),
    (["install", "tiny", "--include", "*.gguf"], 4, ["whole hf: repository"]),
    (["adopt", "none.gguf"], 6, ["no such file or folder"]),
    (["gc", "--max-size", "much"], 2, ["is not a size such as 20GB"]),
    (["gc", "--unused-for", "long"], 2, ["is not a time such as 30d"]),
    (["run", "tiny", "Hi", "--no-install"], 4, ["not installed", "weightpkg install tiny-q4"]),
    (["uninstall", "tiny"], 4, ["not installed"]),
    (["run", "tiny", "Hi", "--temperature", "-1"], 2, ["temperature must be between"]),
    (["run", "tiny", "Hi", "--stop", ""], 2, ["stops nothing"]),
    (["run", "tiny", "Hi", "--logprobs", "2"], 2, ["--logprobs goes with --json"]),
    (["run", "tiny", "Hi", "--regex", "a", "--json-schema", "{}"], 2, ["do not go together"]),
    (["run", "tiny", "Hi", "--json-schema", "@no such file"], 2, ["no such file"]),
    (["run", "tiny", "Hi", "--json-schema", "{"], 9, ["the JSON schema is not JSON"]),
    (["run", "tiny", "Hi", "--regex", "("], 9, ["the regex is not valid"]),
    (["run", "tiny", "Hi", "--device", "tpu"], 9, ["no device and no execution provider", "cuda"]),
    (["run", "tiny", "Hi", "--device", "qnn"], 9, ["`qnn` cannot run this model here"]),
    (["bench", "tiny", "--prompt", "4096"], 9, ["more than the model's context", "--prompt"]),
    (["run", "tiny", "Hi", "--kv-cache", "int4"], 2, ["'int4'", "int8"]),
    (["bench", "tinny"], 4, ["no model is called `tinny`"]),
    (["install"], 2, ["Missing argument"]),
    (["instal"], 2, ["No such command"]),
]


@pytest.mark.parametrize(("words", "code", "parts"), MISTAKES, ids=str)
def test_a_mistake_gets_one_clear_answer(
    weightpkg: Weightpkg, words: list[str], code: int, parts: list[str]
) -> None:
    done = weightpkg(*words)
    assert (done.returncode, done.stdout) == (code, "")
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


def test_a_broken_index_is_named(weightpkg: Weightpkg, settings: Settings) -> None:
    page = settings.index_dir / "models" / "tiny.toml"
    page.write_text(page.read_text().replace("size = ", "sizes = "))
    done = weightpkg("install", "tiny")
    assert done.returncode == 7
    assert "`releases[0].variants.q4.files[0].sizes`" in done.stderr
    lint = weightpkg("index", "lint", str(settings.index_dir))
    assert lint.returncode == 7
    assert "did you mean `size`?" in lint.stdout
    page.write_text("schema = [")
    assert weightpkg("search", "tiny").returncode == 7


def test_a_store_that_cannot_be_written_is_named(weightpkg: Weightpkg, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = weightpkg("install", "tiny", WEIGHTPKG_HOME=str(tmp_path / "file" / "store"))
    assert done.returncode == 6
    assert "WEIGHTPKG_HOME" in done.stderr


def test_damage_is_listed_with_what_to_do(weightpkg: Weightpkg, settings: Settings) -> None:
    weightpkg("install", "tiny")
    (path,) = settings.home.glob("models/*/tokenizer.json")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    path.chmod(0o444)
    done = weightpkg("verify")
    assert done.returncode == 1
    assert f"truncated: `{path}` (tiny-q4)" in done.stdout
    assert "weightpkg verify --repair" in done.stderr
    (problem,) = json.loads(weightpkg("verify", "--json").stdout)
    assert problem["models"] == ["tiny-q4"]
    (repaired,) = json.loads(weightpkg("verify", "--repair", "--json").stdout)
    assert (repaired["repaired"], repaired["error"]) == (True, None)
    assert weightpkg("verify", "tiny-q4").returncode == 0


def test_reading_commands_have_json(weightpkg: Weightpkg) -> None:
    assert json.loads(weightpkg("search", "tests", "--json").stdout)[0]["name"] == "tiny"
    shown = json.loads(weightpkg("show", "tiny-q8", "--json").stdout)
    assert shown["releases"][0]["variants"].keys() == {"q4", "q8"}
    assert weightpkg("search", "nothing-like-this").returncode == 1


def test_search_says_what_it_leaves_out(weightpkg: Weightpkg, settings: Settings) -> None:
    pages = settings.index_dir / "models"
    other = (pages / "tiny.toml").read_text().replace('name = "tiny"', 'name = "tiny2"')
    (pages / "tiny2.toml").write_text(other)
    (pages / "broken.toml").write_text("schema = [")
    done = weightpkg("search", "tiny", "--limit", "1")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["NAME", "tiny-q4"]
    assert "the 1 best are shown" in done.stderr
    assert "left out, as not valid: `broken`; `weightpkg index lint`" in done.stderr


def test_show_says_what_is_an_alias_and_what_was_not_understood(
    weightpkg: Weightpkg, settings: Settings
) -> None:
    aliases = settings.index_dir / "aliases"
    aliases.mkdir()
    (aliases / "small.toml").write_text('schema = 1\nmodel = "tiny"\n')
    done = weightpkg("show", "small-q8")
    assert done.stdout == weightpkg("show", "tiny").stdout
    assert "note: `small-q8` is an alias: the model is `tiny`" in done.stderr
    assert weightpkg("show", "tiny-q8").stderr == ""
    page = settings.index_dir / "models" / "tiny.toml"
    page.write_text(page.read_text().replace("schema = 1", 'schema = "1.9"\nnew = 1'))
    assert "of schema 1.9" in weightpkg("show", "tiny").stderr
    assert "of schema 1.9" in weightpkg("index", "lint", str(settings.index_dir)).stderr


def test_small_things(weightpkg: Weightpkg, settings: Settings) -> None:
    assert weightpkg("--version").stdout.startswith("weightpkg, version ")
    assert weightpkg("cache", "dir").stdout == f"{settings.home}\n"
    assert "_WEIGHTPKG_COMPLETE" in weightpkg("completion", "bash").stdout
    assert weightpkg("-q", "install", "tiny").stderr == ""
    assert weightpkg("index", "lint", str(settings.index_dir)).returncode == 0


def test_completion_offers_commands(weightpkg: Weightpkg) -> None:
    done = weightpkg(
        _WEIGHTPKG_COMPLETE="bash_complete", COMP_WORDS="weightpkg ins", COMP_CWORD="1"
    )
    assert "install" in done.stdout


def test_a_reader_that_goes_away_is_no_error(environ: dict[str, str]) -> None:
    line = f"{sys.executable} -m weightpkg show tiny | true"
    done = subprocess.run(
        ["/bin/sh", "-c", line], env=environ, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""


def converse(words: Sequence[str], environ: dict[str, str], lines: Sequence[bytes]) -> str:
    """Run on a terminal; send each line when the prompt is there; return all that was shown."""
    process, terminal = pty.fork()
    if process == 0:
        os.execve(sys.executable, [sys.executable, "-m", "weightpkg", *words], environ)  # noqa: S606  the child of a terminal
    shown = b""
    waiting = list(lines)
    prompts = 0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and select.select([terminal], [], [], 30)[0]:
        try:
            shown += os.read(terminal, 4096)
        except OSError:
            break
        if waiting and shown.count(b"\n> ") + shown.startswith(b"> ") > prompts:
            prompts += 1
            os.write(terminal, waiting.pop(0) + b"\n")
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return shown.decode(errors="replace")


def test_a_terminal_without_a_prompt_is_a_chat(
    weightpkg: Weightpkg, environ: dict[str, str]
) -> None:
    weightpkg("install", "tiny")
    words = ["run", "tiny", "--max-tokens", "5"]
    shown = converse(words, {**environ, "TERM": "dumb"}, [b"the sky", b"and then?", b"/exit"])
    assert "Ctrl-C stops an answer" in shown
    assert shown.count("> ") >= 3


def await_reading(pid: int) -> None:
    """Return when a process waits for its standard input."""
    call = Path(f"/proc/{pid}/syscall")
    deadline = time.monotonic() + 60
    # `read` of descriptor 0; other systems do not tell
    while call.exists() and not call.read_text().startswith("0 0x0 "):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if not call.exists():
        time.sleep(5.0)


@pytest.fixture
def ctrl_c_is_heeded() -> Iterator[None]:
    """Shells have what they start in the background ignore it, and that is inherited."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_is_heeded")
def test_ctrl_c_ends_a_command_with_130(environ: dict[str, str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "weightpkg", "run", "tiny", "--raw"],
        env=environ, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    await_reading(process.pid)  # of standard input, which nobody closes
    process.send_signal(2)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip() == "interrupted"


def test_the_help_of_jobs_says_what_the_fetcher_takes(weightpkg: Weightpkg) -> None:
    assert f"[default: ({DEFAULT_JOBS});" in weightpkg("install", "--help").stdout


# what a command must not import where it has no use for it: each costs time before the first word
_DOWNLOADS = {"weightpkg.fetch", "weightpkg.sources.openers", "requests", "huggingface_hub"}
_SELDOM = _DOWNLOADS | {
    "concurrent.futures", "difflib", "email", "filelock", "http", "logging", "numpy", "onnx",
    "onnxruntime", "packaging.specifiers", "platformdirs", "rich", "ssl", "subprocess", "tempfile",
    "tomlkit", "weightpkg.hardware", "weightpkg.verify", "weightpkg.repair", "weightpkg.convert.pipeline",
}  # fmt: skip
_CHOICE = {"weightpkg.memory", "weightpkg.shapes", "weightpkg.machine"}
_PROJECT = {"weightpkg.lockfile", "weightpkg.manifest", "weightpkg.project"}


@pytest.mark.parametrize(
    ("words", "without"),
    [
        ("--help", _SELDOM | _CHOICE | _PROJECT | {"weightpkg.store", "weightpkg.index", "json"}),
        ("show tiny", _SELDOM | _PROJECT | {"sqlite3", "weightpkg.install", "weightpkg.convert"}),
        ("search tiny", _SELDOM | _CHOICE | _PROJECT | {"json", "weightpkg.resolve"}),
        ("resolve tiny", (_SELDOM | _PROJECT | {"sqlite3"}) - {"weightpkg.hardware"}),
        ("resolve --for cpu,16GiB tiny", _SELDOM | _PROJECT | {"sqlite3", "weightpkg.survey"}),
        ("install --dry-run tiny-q4", _SELDOM | _CHOICE | _PROJECT | {"sqlite3", "json"}),
        ("sync --frozen", _SELDOM | _CHOICE | {"sqlite3", "weightpkg.resolve"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_command_imports_what_it_needs_and_no_more(
    environ: dict[str, str], settings: Settings, tmp_path: Path, words: str, without: set[str]
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    environ["PYTHONPATH"] = str(Path(weightpkg_module.__file__).parents[1])  # from anywhere

    def run(*more: str) -> Result:
        return subprocess.run(
            [sys.executable, *more], env=environ, cwd=project, capture_output=True, text=True, check=True
        )  # fmt: skip

    if words.startswith("sync"):
        run("-m", "weightpkg", "add", "tiny")
        run("-m", "weightpkg", "sync")
    program = (
        "import sys\nfrom weightpkg.cli import main\n"
        "try: main()\nexcept SystemExit as done: assert not done.code, done\n"
        "print('\\n' + ' '.join(sys.modules))"
    )
    loaded = set(run("-c", program, *words.split()).stdout.splitlines()[-1].split())
    assert "weightpkg.cli" in loaded
    assert loaded & without == set()
