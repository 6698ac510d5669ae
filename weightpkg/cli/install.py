"""`weightpkg install`."""

from __future__ import annotations

import click

from weightpkg.cli.console import format_size, make_progress, print_json
from weightpkg.install import Plan, install, plan_install
from weightpkg.requirement import Requirement
from weightpkg.resolve import resolve
from weightpkg.settings import Settings


@click.command("install")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--no-convert", is_flag=True, help="Keep the verified files; convert nothing.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@click.pass_obj
def command(
    quiet: bool, names: tuple[str, ...], no_convert: bool, dry_run: bool, as_json: bool
) -> None:
    """Fetch, verify, store and convert models.

    NAME is a model's name, with or without a variant and a version: smollm2-135m,
    smollm2-135m-q4, "smollm2-135m-q4>=1.0".
    """
    settings = Settings.from_environment()
    store, index = settings.store(), settings.index()
    progress = make_progress(quiet=quiet)
    resolved = [resolve(Requirement.parse(name), index) for name in names]
    plans = [plan_install(each, store, allow_conversion=not no_convert) for each in resolved]
    if as_json:
        print_json([_as_json(plan) for plan in plans])
    for plan in plans:
        progress.note(_describe(plan))
    if dry_run:
        return
    with settings.sources(store) as open_source:
        for plan in plans:
            done = install(plan, store, open_source, progress)
            progress.note(f"installed {done}")


def _describe(plan: Plan) -> str:
    model = plan.resolved.model
    yanked = plan.resolved.release.yanked
    steps = []
    if plan.missing:
        steps.append(f"fetch {format_size(plan.download_size)}")
    if plan.conversion and not plan.is_converted:
        steps.append("convert to ONNX")
    todo = " and ".join(steps) or "everything is there"
    warning = f"; this release was yanked: {yanked}" if yanked else ""
    return f"{plan.resolved} ({model.license}): {todo}{warning}"


def _as_json(plan: Plan) -> dict[str, object]:
    return {
        "name": plan.resolved.full_name,
        "version": str(plan.resolved.release.version),
        "license": plan.resolved.model.license,
        "fetch": [
            {"path": str(f.path), "size": f.size, "sha256": f.sha256.hex} for f in plan.missing
        ],
        "conversion": plan.conversion,
        "converted": plan.is_converted,
    }
