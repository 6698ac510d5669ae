"""`weightpkg show`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import click

from weightpkg.cli.console import format_size, print_json
from weightpkg.cli.kv_cache import ESTIMATED, kv_cache_option
from weightpkg.errors import RunError
from weightpkg.footprint import needs_of
from weightpkg.memory import KvCache, Need
from weightpkg.package import Model, Release, Variant
from weightpkg.reference import notes_of
from weightpkg.requirement import Requirement
from weightpkg.resolve import resolve
from weightpkg.settings import Settings
from weightpkg.store import Installed, Store

if TYPE_CHECKING:
    from weightpkg.run.tasks.tensors import TensorSpec


@click.command("show")
@click.argument("name")
@kv_cache_option(ESTIMATED)
@click.option("--context", type=click.IntRange(1), help="Tokens for which memory is counted.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: str, kv_cache: KvCache, context: int | None, as_json: bool) -> None:
    """Show what the index says of a model, and what of it is installed."""
    settings = Settings.from_environment()
    requirement = Requirement.parse(name)
    index, namespaces = settings.index(), settings.namespaces()
    model = resolve(requirement, index, namespaces=namespaces).model
    for note in notes_of(name, model):
        click.echo(f"note: {note}", err=True)
    records = [r for r in settings.store().installed() if r.name == model.normalized_name]
    needs = needs_of(model, settings.store(), context, kv_cache)
    tensors = _tensors(model, records, settings.store())
    if as_json:
        about = {"memory": _needs_json(needs), "tensors": _tensors_json(tensors)}
        print_json(_as_json(model, records) | about)
    else:
        lines = (*_lines(model, records), *_need_lines(needs), *_tensor_lines(tensors))
        click.echo("\n".join(lines))


def _lines(model: Model, records: list[Installed]) -> Iterator[str]:
    yield f"{model.name}: {model.summary}"
    facts = {
        "task": model.task,
        "architecture": model.architecture,
        "parameters": f"{model.parameters:,}" if model.parameters else None,
        "context": f"{model.context_length:,} tokens" if model.context_length else None,
        "license": " ".join(filter(None, (model.license, model.license_url))),
        "homepage": model.homepage,
        "base model": model.base_model,
        "tags": ", ".join(model.tags),
        "installed": ", ".join(map(str, records)) or "nothing",
    }
    yield from (f"  {key + ':':14}{fact}" for key, fact in facts.items() if fact)
    for release in model.releases:
        yank = f", yanked: {release.yanked}" if release.yanked else ""
        yield f"release {release.version} ({release.date}): {release.changes}{yank}"
        for variant in release.variants:
            yield from _variant_lines(model, variant)


def _need_lines(needs: Mapping[str, Need]) -> Iterator[str]:
    if needs:
        yield "memory, while it runs:"
    for name, need in needs.items():
        context = f" with {need.context:,} tokens" if need.context else ""
        about = "" if need.basis == "installed" else "about "
        yield f"  {name}: {about}{format_size(need.total)}{context}"


def _tensors(
    model: Model, records: list[Installed], store: Store
) -> dict[str, tuple[Sequence[TensorSpec], Sequence[TensorSpec]]]:
    """What each installed variant takes and gives; of those that write text, which is not by arrays."""
    if model.task == "text-generation":
        return {}
    from weightpkg.run.tasks.tensors import signature

    found: dict[str, tuple[Sequence[TensorSpec], Sequence[TensorSpec]]] = {}
    for record in records:
        directory = store.model(record.conversion) if record.conversion else None
        if directory is not None:
            try:
                found[record.full_name] = signature(directory)
            except RunError as error:
                click.echo(f"note: {error.message}", err=True)
    return found


def _tensor_lines(
    tensors: Mapping[str, tuple[Sequence[TensorSpec], Sequence[TensorSpec]]],
) -> Iterator[str]:
    for name, (inputs, outputs) in tensors.items():
        yield f"{name} takes (`weightpkg run {name} --input NAME=VALUE`):"
        yield from (f"  {spec}" for spec in inputs)
        yield "and gives:"
        yield from (f"  {spec}" for spec in outputs)


def _tensors_json(
    tensors: Mapping[str, tuple[Sequence[TensorSpec], Sequence[TensorSpec]]],
) -> dict[str, object]:
    return {
        name: {
            "inputs": [spec.as_json() for spec in inputs],
            "outputs": [spec.as_json() for spec in outputs],
        }
        for name, (inputs, outputs) in tensors.items()
    }


def _needs_json(needs: Mapping[str, Need]) -> dict[str, object]:
    return {name: need.as_json() for name, need in needs.items()}


def _variant_lines(model: Model, variant: Variant) -> Iterator[str]:
    default = ", the default" if variant.name == model.default_variant else ""
    kind = " ".join(filter(None, (variant.format, variant.quantization)))
    yield f"  {model.name}-{variant.name}: {kind}, {format_size(variant.size)}{default}"
    for file in variant.files:
        yield f"    {file.path}  {format_size(file.size)}  {file.sha256}"
        for parts in file.sources:
            yield from (f"      {source.text}" for source in parts)


def _as_json(model: Model, records: list[Installed]) -> dict[str, object]:
    return {
        "name": model.name,
        "summary": model.summary,
        "task": model.task,
        "architecture": model.architecture,
        "parameters": model.parameters,
        "context-length": model.context_length,
        "license": model.license,
        "license-url": model.license_url,
        "homepage": model.homepage,
        "base-model": model.base_model,
        "tags": model.tags,
        "default-variant": model.default_variant,
        "installed": [f"{r.full_name}=={r.version}" for r in records],
        "releases": [_release_json(release) for release in model.releases],
    }


def _release_json(release: Release) -> dict[str, object]:
    return {
        "version": str(release.version),
        "date": release.date.isoformat(),
        "changes": release.changes,
        "yanked": release.yanked,
        "variants": {variant.name: _variant_json(variant) for variant in release.variants},
    }


def _variant_json(variant: Variant) -> dict[str, object]:
    files = [
        {
            "path": str(file.path),
            "size": file.size,
            "sha256": file.sha256.hex if file.sha256 else None,
            "blake3": file.blake3.hex if file.blake3 else None,
            "sources": [[source.text for source in parts] for parts in file.sources],
        }
        for file in variant.files
    ]
    return {"format": variant.format, "quantization": variant.quantization, "files": files}
