"""Makes the pages of index/ whose models lie on the hub, of facts and rules; invents no digest.

Usage: python scripts/refresh_index.py [FACTS] [--check]

FACTS has one file of the hub a line, as JSON: `repo`, `revision`, `path`, `sha256`, and `size` and
`license` where somebody published them. The lines that are used are kept in
scripts/index_facts.jsonl, which is what is read where no FACTS are named. What a model is called,
and what the facts do not say of it, is in scripts/index_rules.toml.

Pages that do not begin with the line that this program writes are written by hand, and left alone.
`--check` writes nothing and fails where index/ is not what would be written.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

import tomli

from weightpkg.document import parse_document
from weightpkg.page import read_model
from weightpkg.requirement import normalize_name

HERE: Final = Path(__file__).resolve().parent
INDEX: Final = HERE.parent / "index"
RULES: Final = HERE / "index_rules.toml"
FACTS: Final = HERE / "index_facts.jsonl"
MARK: Final = "# made by scripts/refresh_index.py; edit scripts/index_rules.toml\n"

# what is in a repository beside language models: projectors, drafts
NOT_A_MODEL: Final = re.compile(r"mmproj|mtp|dflash|vision", re.IGNORECASE)
PART: Final = re.compile(r"-(\d{5})-of-(\d{5})$")
QUANTIZATION: Final = re.compile(
    r"[-._]((?:UD-)?(?:I?Q\d(?:_[A-Z0-9]+)*|MXFP4|NVFP4|BF16|F16|F32))(?=$|[-.])", re.IGNORECASE
)
# of two builds that would be called alike the first of these is taken: `Q4_K_M` before `Q4_0`
PREFERRED: Final = ("K_M", "K_XL", "K_L", "K_S", "K", "0", "1")
SPELLINGS: Final = ((r"\bit\b", "Instruct"), (r"\bqat\b", "QAT"), (r"^Gpt oss", "gpt-oss"))
DEFAULTS: Final = ("q4", "mxfp4", "iq4", "q5", "q6", "q8", "q3", "q2", "bf16", "f16", "f32")


@dataclass(frozen=True)
class Fact:
    """A file of the hub."""

    repo: str
    revision: str
    path: str
    sha256: str
    size: int | None
    license: str | None
    line: str

    @classmethod
    def read(cls, line: str) -> Fact:
        """Read one line."""
        row = json.loads(line)
        return cls(
            row["repo"],
            row["revision"],
            row["path"],
            row["sha256"],
            row.get("size"),
            row.get("license"),
            json.dumps(row, sort_keys=True),
        )

    @property
    def stem(self) -> str:
        """The file's name without its ending and the number of its part."""
        return PART.sub("", self.path.rpartition("/")[2].rpartition(".")[0])

    @property
    def quantization(self) -> str | None:
        """What the name says it is: `Q4_K_M`."""
        found = QUANTIZATION.findall(self.stem)
        return found[-1].upper() if found else None

    @property
    def part(self) -> tuple[int, int]:
        """Which of how many parts the file is, from 1."""
        match = PART.search(self.path.rpartition(".")[0])
        return (int(match[1]), int(match[2])) if match else (1, 1)


@dataclass(frozen=True)
class Build:
    """The files of one variant."""

    variant: str
    quantization: str
    files: Sequence[Fact]


def read_facts(path: Path) -> list[Fact]:
    """Read facts, each once, in the order of their names."""
    facts = {(fact.repo, fact.path): fact for fact in map(Fact.read, path.read_text().splitlines())}
    return [facts[key] for key in sorted(facts)]


def choose_builds(facts: Iterable[Fact], repos: Sequence[str]) -> list[Build]:
    """The builds that a model's repositories have, one for each variant's name."""
    groups: dict[tuple[int, int, str], list[Fact]] = {}
    for fact in facts:
        if fact.repo in repos and fact.path.endswith(".gguf") and not NOT_A_MODEL.search(fact.path):
            quantization = fact.quantization
            if quantization is not None:
                ending = quantization.partition("_")[2]
                rank = PREFERRED.index(ending) if ending in PREFERRED else len(PREFERRED)
                groups.setdefault((repos.index(fact.repo), rank, fact.stem), []).append(fact)
    builds: dict[str, Build] = {}
    for _, files in sorted(groups.items()):
        ordered = sorted(files, key=lambda fact: fact.part)
        count = ordered[0].part[1]
        quantization = ordered[0].quantization or ""
        variant = quantization.removeprefix("UD-").partition("_")[0].lower()
        if [fact.part for fact in ordered] == [(i + 1, count) for i in range(count)]:
            builds.setdefault(variant, Build(variant, quantization, ordered))
    return sorted(builds.values(), key=lambda build: DEFAULTS.index(build.variant))


def parameters_of(name: str) -> int | None:
    """What a model's name says of its size, rounded as it is there.

    >>> parameters_of("qwen3-30b-a3b"), parameters_of("gemma3-270m"), parameters_of("gemma4-e2b")
    (30000000000, 270000000, None)
    """
    match = re.search(r"-(\d+(?:\.\d+)?)([bm])(?=-|$)", name)
    return round(float(match[1]) * {"b": 1e9, "m": 1e6}[match[2]]) if match else None


def title_of(base: str) -> str:
    """What the makers call a model, in words.

    >>> title_of("nvidia/Llama-3_3-Nemotron-Super-49B-v1")
    'Llama 3.3 Nemotron Super 49B v1'
    """
    name = base.rpartition("/")[2].replace("-q4_0-unquantized", "").replace("-q4_0-gguf", "")
    name = re.sub(r"(?<=\d)_(?=\d)", ".", name.replace("-q8_0-unquantized", ""))
    words = re.sub(r"[-_]", " ", name.removesuffix("-hf"))
    words = re.sub(r"\b\d+(?:\.\d+)?[bm]\b", lambda match: match[0].upper(), words)
    words = words[0].upper() + words[1:]
    for pattern, word in SPELLINGS:
        words = re.sub(pattern, word, words)
    return words


def page_of(name: str, rule: dict[str, Any], builds: Sequence[Build]) -> str:
    """Write a model's page."""
    parameters = rule.get("parameters", parameters_of(name))
    keys: dict[str, str | int | None] = {
        "name": name,
        "summary": f"{title_of(rule['base'])}: {rule['summary']}",
        "task": rule.get("task", "text-generation"),
        "architecture": rule["architecture"],
        "parameters": parameters,
        "context-length": rule.get("context-length"),
        "license": rule["license"],
        "license-url": rule["license-url"],
        "homepage": f"https://huggingface.co/{rule['base']}",
        "base-model": rule["base"],
    }
    lines = [f"{key} = {_value(value)}" for key, value in keys.items() if value is not None]
    small = ["small"] if parameters is not None and parameters < 4e9 else []
    tags = ", ".join(map(_value, [*rule["tags"], *small]))
    head = "\n".join(["schema = 1", *lines, f"tags = [{tags}]"])
    release: date = rule["date"]
    return (
        f"{MARK}{head}\ndefault-variant = {_value(builds[0].variant)}\n\n"
        f'[[releases]]\nversion = "1.0.0"\ndate = {release}\nchanges = "first release"\n'
        + "".join(map(_variant, builds))
    )


def _variant(build: Build) -> str:
    key = f"releases.variants.{build.variant}"
    text = f'\n[{key}]\nformat = "gguf"\nquantization = {_value(build.quantization)}\n'
    for fact in build.files:
        text += f"\n[[{key}.files]]\npath = {_value(fact.path.rpartition('/')[2])}\n"
        if fact.size is not None:
            text += f"size = {_value(fact.size)}\n"
        source = f"hf:{fact.repo}@{fact.revision}/{fact.path}"
        text += f"sha256 = {_value(fact.sha256)}\nsources = [{_value(source)}]\n"
    return text


def _value(value: str | int) -> str:
    if isinstance(value, int):
        return f"{value:_}" if value >= 10_000 else str(value)
    return json.dumps(value)


def read_rules(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each model's name and what the rules say of it, its family's keys included."""
    rules = tomli.loads(path.read_text())
    for family in rules["families"]:
        shared = {key: value for key, value in family.items() if key != "models"}
        for name, own in family["models"].items():
            rule = {"date": rules["date"], "aliases": [], **shared, **own}
            rule["license-url"] = rules["license-urls"].get(rule["license"])
            rule["licenses"] = rules["licenses"]
            yield name, rule


def alias_page(name: str) -> str:
    """Write the page of an alias of a model."""
    return f"{MARK}schema = 1\nmodel = {_value(name)}\n"


def make_pages(facts: Sequence[Fact]) -> tuple[dict[str, str], list[Fact]]:
    """Make every page by its path in the index, and say which facts are in them."""
    models: dict[str, str] = {}
    aliases: dict[str, str] = {}
    used: list[Fact] = []
    for name, rule in read_rules(RULES):
        builds = choose_builds(facts, rule["from"])
        if not builds:
            raise SystemExit(f"{name}: the facts know no build in {', '.join(rule['from'])}")
        files = [fact for build in builds for fact in build.files]
        _compare_licenses(name, rule, files)
        used += files
        page = page_of(name, rule, builds)
        model = read_model(parse_document(page.encode(), source=name))
        models[model.normalized_name] = page
        title = rule["base"].rpartition("/")[2]
        for alias in (title, *rule["aliases"]):
            aliases.setdefault(normalize_name(alias), alias_page(name))
    pages = {f"models/{name}.toml": page for name, page in models.items()}
    names = pages.keys() | {f"models/{path.name}" for path in _written_by_hand()}
    for name, page in aliases.items():
        if f"models/{name}.toml" not in names:
            pages[f"aliases/{name}.toml"] = page
    return pages, sorted(set(used), key=lambda fact: (fact.repo, fact.path))


def _written_by_hand() -> Iterator[Path]:
    for path in (INDEX / "models").iterdir():
        if not path.read_text().startswith(MARK):
            yield path


def _compare_licenses(name: str, rule: dict[str, Any], files: Sequence[Fact]) -> None:
    """Say where a page's license is not the one of the facts: catalogues err, and so do rules."""
    for tag in sorted({fact.license or "other" for fact in files} - {"other"}):
        if rule["licenses"].get(tag, tag) not in rule["license"]:
            print(f"note: {name}: {rule['license']}, where the facts say {tag}", file=sys.stderr)


def outdated(pages: dict[str, str]) -> Iterator[tuple[Path, str | None]]:
    """Yield each file of the index that is not as it should be, and its text: None is no file."""
    for name, page in sorted(pages.items()):
        path = INDEX / name
        if not path.is_file() or path.read_text() != page:
            yield path, page
    for path in sorted(INDEX.glob("*/*.toml")):
        made = path.read_text().startswith(MARK)
        if made and path.relative_to(INDEX).as_posix() not in pages:
            yield path, None


def main() -> int:
    """Write the pages, or check them; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("facts", nargs="?", type=Path, default=FACTS)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    pages, used = make_pages(read_facts(arguments.facts))
    kept = "".join(f"{fact.line}\n" for fact in used)
    changes = list(outdated(pages))
    if not FACTS.is_file() or FACTS.read_text() != kept:
        changes.append((FACTS, kept))
    for path, text in changes:
        print(f"{'differs' if arguments.check else 'written' if text else 'removed'}: {path.name}")
        if arguments.check:
            continue
        if text is None:
            path.unlink()
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    print(f"{len(pages)} pages of {len(used)} facts, {len(changes)} changes", file=sys.stderr)
    return 1 if arguments.check and changes else 0


if __name__ == "__main__":
    sys.exit(main())
