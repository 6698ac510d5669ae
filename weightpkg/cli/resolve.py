"""`weightpkg resolve`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from weightpkg import convert
from weightpkg.cli.console import format_size, print_json, print_table
from weightpkg.cli.kv_cache import ESTIMATED, kv_cache_option
from weightpkg.cli.project_rules import project_rules
from weightpkg.footprint import installed_needs
from weightpkg.index import Index
from weightpkg.license_policy import LicensePolicy
from weightpkg.machine import Machine
from weightpkg.memory import KvCache, Need
from weightpkg.reference import is_reference, resolve_reference
from weightpkg.requirement import NormalizedName, Requirement
from weightpkg.resolve import Candidate, Exclusion, Explanation, Rules, consider, explain
from weightpkg.settings import Settings


@click.command("resolve")
@click.argument("name")
@click.option("--explain", "is_explained", is_flag=True, help="Print what was considered, and why.")
@click.option(
    "--for",
    "machine",
    metavar="MACHINE",
    help="Choose for another machine: `cpu,16GiB`, or a file that `doctor --json` wrote.",
)
@kv_cache_option(ESTIMATED)
@click.option("--context", type=click.IntRange(1), help="Tokens for which there must be memory.")
@click.option(
    "--allow-license", "allowed", metavar="ID", multiple=True, help="Only these licenses."
)
@click.option("--deny-license", "denied", metavar="ID", multiple=True, help="Not these licenses.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: all of it.")
def command(
    name: str,
    is_explained: bool,
    machine: str | None,
    kv_cache: KvCache,
    context: int | None,
    allowed: tuple[str, ...],
    denied: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say which variant of which release a name means here, without fetching anything.

    Without a variant in NAME it is the model's default if that fits this machine's memory, else the
    largest that does. In a project, its license policy and its namespaces hold, too.
    """
    settings = Settings.from_environment()
    policy, namespaces = project_rules(settings)
    rules = Rules(
        machine=_machine(machine),
        context=context,
        kv_cache=kv_cache,
        licenses=_policy(policy, allowed, denied),
        convertible=convert.CONVERTIBLE,
        needs=installed_needs(settings.store(), context, kv_cache),
    )
    explanation = _explain(name, rules, settings, namespaces)
    if as_json:
        print_json(_as_json(explanation, rules))
    elif is_explained:
        _print_all(explanation, rules)
    chosen = explanation.result()
    if not as_json and not is_explained:
        _print_chosen(explanation)
        namespace = explanation.requirement.namespace
        prefix = f"{namespace}/" if namespace else ""
        click.echo(f"{prefix}{chosen.full_name}=={chosen.release.version}")


def _machine(text: str | None) -> Machine:
    if text is None:
        from weightpkg.survey import this_machine

        return this_machine()
    path = Path(text)
    if path.is_file():
        return Machine.from_json(path.read_bytes(), text)
    return Machine.parse(text)


def _policy(
    project: LicensePolicy | None, allowed: tuple[str, ...], denied: tuple[str, ...]
) -> LicensePolicy:
    """The options' allowed licenses, else the project's; and what either denies."""
    if project is None:
        return LicensePolicy(allowed or None, denied)
    return LicensePolicy(allowed or project.allowed, (*project.denied, *denied))


def _explain(
    name: str, rules: Rules, settings: Settings, namespaces: Mapping[NormalizedName, Index]
) -> Explanation:
    """Explain a name of the index, or what is found at a reference."""
    index = settings.index()
    if not is_reference(name):
        return explain(Requirement.parse(name), index, rules, namespaces=namespaces)
    with settings.sources(settings.store()) as sources:
        resolved = resolve_reference(name, sources.list_repository)
    return Explanation(
        requirement=Requirement(name, resolved.model.normalized_name),
        model=resolved.model,
        wanted=resolved.variant.name,
        candidates=(consider(resolved, rules),),
    )


def _print_chosen(explanation: Explanation) -> None:
    assert explanation.chosen is not None  # noqa: S101  `result` has raised otherwise
    for note in explanation.chosen.notes:
        click.echo(f"note: {note.reason}", err=True)


def _print_all(explanation: Explanation, rules: Rules) -> None:
    if explanation.alias:
        click.echo(f"`{explanation.alias}` is another name of `{explanation.model.name}`")
    click.echo(f"for {rules.machine}; license {explanation.model.license}")
    rows = [
        (
            each.resolved.full_name,
            str(each.resolved.release.version),
            _size(each.need),
            _verdict(each, is_chosen=each is explanation.chosen),
        )
        for each in explanation.candidates
    ]
    print_table([("NAME", "VERSION", "MEMORY", ""), *rows])


def _verdict(candidate: Candidate, *, is_chosen: bool) -> str:
    reasons = [exclusion.reason for exclusion in candidate.exclusions]
    noted = [f"although {note.reason}" for note in candidate.notes]
    first = ["chosen"] if is_chosen else [] if reasons else ["would do"]
    return "; ".join(first + reasons + noted)


def _size(need: Need | None) -> str:
    return "unknown" if need is None else format_size(need.total)


def _as_json(explanation: Explanation, rules: Rules) -> dict[str, object]:
    return {
        "schema": 1,
        "requirement": explanation.requirement.text,
        "alias": explanation.alias,
        "model": explanation.model.name,
        "license": explanation.model.license,
        "machine": rules.machine.as_json() if rules.machine else None,
        "candidates": [
            {
                "name": each.resolved.full_name,
                "version": str(each.resolved.release.version),
                "is-chosen": each is explanation.chosen,
                "exclusions": [_reason_json(exclusion) for exclusion in each.exclusions],
                "notes": [_reason_json(note) for note in each.notes],
                "memory": each.need.as_json() if each.need else None,
            }
            for each in explanation.candidates
        ],
    }


def _reason_json(exclusion: Exclusion) -> dict[str, str]:
    return {"rule": exclusion.rule, "reason": exclusion.reason}
