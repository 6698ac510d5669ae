"""`weightpkg install`."""

from __future__ import annotations

from pathlib import Path

import click

from weightpkg.cli.agreement import agree
from weightpkg.cli.console import format_size, make_progress, print_json
from weightpkg.cli.mirroring import mirror_options, settings_with
from weightpkg.cli.project_rules import project_rules
from weightpkg.cli.publisher_key import make_check, publisher_key_option
from weightpkg.install import Plan, install, plan_install
from weightpkg.reference import index_of, notes_of, resolve_any


@click.command("install")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--no-convert", is_flag=True, help="Keep the verified files; convert nothing.")
@click.option("--include", multiple=True, metavar="PATTERN", help="Of a repository, only these.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Of a repository, not these.")
@click.option(
    "--find-links",
    multiple=True,
    metavar="DIR",
    type=click.Path(exists=True, path_type=Path),
    help="Look here for files before they are downloaded.",
)
@click.option(
    "--accept-license", multiple=True, metavar="ID", help="Agree to a license beforehand."
)
@mirror_options
@publisher_key_option
@click.option("--jobs", type=click.IntRange(1, 64), show_default="8")
@click.option("--timeout", type=click.FloatRange(0.1), help="Seconds that a file may take in all.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@click.pass_obj
def command(
    quiet: bool,
    /,
    names: tuple[str, ...],
    no_convert: bool,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    find_links: tuple[Path, ...],
    accept_license: tuple[str, ...],
    mirror: str | None,
    mirror_only: bool,
    publisher_key: Path | None,
    jobs: int | None,
    timeout: float | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Fetch, verify, store and convert models.

    NAME is a model's name, with or without a variant and a version: smollm2-135m,
    smollm2-135m-q4, "smollm2-135m-q4>=1.0"; or a source: hf:ORG/REPO@REVISION/FILE, hf:ORG/REPO,
    https://HOST/FILE, ./FILE. In a project, its license policy and its namespaces hold. Of a repository that has a checkpoint of safetensors, only that is
    fetched, unless --include says otherwise. A broken download goes on where it stopped.
    """
    settings = settings_with(mirror, is_only=mirror_only)
    store, index = settings.store(), settings.index()
    policy, namespaces = project_rules(settings)
    progress = make_progress(quiet=quiet)
    check = make_check(publisher_key, store, progress)
    with settings.sources(store) as sources:
        find = sources.list_repository
        resolved = [
            resolve_any(
                n,
                index,
                find,
                rules=settings.rules,
                namespaces=namespaces,
                include=include,
                exclude=exclude,
            )
            for n in names
        ]
        for name, each in zip(names, resolved, strict=True):
            if policy:
                from weightpkg.locking import check_license

                check_license(str(each), each.model.license, policy)
            for note in notes_of(name, each.model):
                progress.note(f"note: {note}")
        plans = [plan_install(each, store, allow_conversion=not no_convert) for each in resolved]
        if as_json:
            print_json([_as_json(plan) for plan in plans])
        for plan in plans:
            progress.note(_describe(plan))
        if dry_run:
            return
        places = [index_of(name, index, namespaces).directory for name in names]
        new = [(p.resolved, place) for p, place in zip(plans, places, strict=True) if p.missing]
        agree(new, store, accept_license)
        fetcher = settings.fetcher(
            sources, store, progress, jobs=jobs, timeout_s=timeout, find_links=find_links
        )
        for plan in plans:
            progress.note(f"installed {install(plan, store, fetcher, check=check)}")


def _describe(plan: Plan) -> str:
    model = plan.resolved.model
    yanked = plan.resolved.release.yanked
    steps = []
    if plan.missing:
        steps.append(f"fetch {format_size(plan.download_size)}")
    if plan.converts and not plan.is_converted:
        is_onnx = plan.resolved.variant.format == "onnx"
        steps.append("check" if is_onnx else "convert to ONNX")
    todo = " and ".join(steps) or "everything is there"
    warning = f"; this release was yanked: {yanked}" if yanked else ""
    return f"{plan.resolved} ({model.license}): {todo}{warning}"


def _as_json(plan: Plan) -> dict[str, object]:
    return {
        "name": plan.resolved.full_name,
        "version": str(plan.resolved.release.version),
        "license": plan.resolved.model.license,
        "fetch": [
            {"path": str(f.path), "size": f.size, "sha256": f.sha256.hex if f.sha256 else None}
            for f in plan.missing
        ],
        "conversion": plan.conversion,
        "converted": plan.is_converted,
    }
