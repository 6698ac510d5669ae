"""`weightpkg doctor`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from weightpkg import __version__, files
from weightpkg.cli.console import format_size, print_json, print_table
from weightpkg.diagnosis import Finding, StoreHealth, diagnose
from weightpkg.errors import RunError, StoreError
from weightpkg.hardware import Device
from weightpkg.retention import live_leases, partials
from weightpkg.run.providers import TYPICAL, Decision, decide
from weightpkg.settings import Settings
from weightpkg.store import LAYOUT, Store
from weightpkg.survey import Survey, look


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; `resolve --for` reads it.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Say what this machine has for models, and what is wrong; exits with 1 if something is."""
    survey, store = look(), _health(Settings.from_environment().store())
    findings, decision = diagnose(survey, store), _decision(survey)
    if as_json:
        print_json(_as_json(survey, store, findings, decision))
    else:
        print_table([*_machine_rows(survey), *_runtime_rows(survey), *_store_rows(store)])
        if decision is not None:
            click.echo("\n".join(decision.lines()))
        for finding in findings:
            click.echo(f"{finding.severity}: {finding.what}")
            if finding.remedy:
                click.echo(f"  {finding.remedy}")
    if any(finding.severity == "problem" for finding in findings):
        ctx.exit(1)


def _decision(survey: Survey) -> Decision | None:
    """Which provider runs a converted text model here; None where onnxruntime cannot."""
    try:
        runtime = survey.runtime
        return decide("auto", runtime.providers, survey.devices, TYPICAL, system=survey.system)
    except RunError:
        return None


def _decision_json(decision: Decision) -> dict[str, object]:
    return {
        "provider": decision.chosen.name,
        "reason": decision.reason,
        "better": decision.better,
        "candidates": [
            {
                "provider": verdict.provider.name,
                "package": verdict.provider.package,
                "source": verdict.provider.source,
                "is-present": verdict.is_present,
                "has-device": verdict.has_device,
                "is-usable": verdict.is_usable,
                "reason": verdict.reason,
            }
            for verdict in decision.verdicts
        ],
    }


def _health(store: Store) -> StoreHealth:
    """Look at the store, and change nothing in it."""
    root = store.root
    place = next((path for path in (root, *root.parents) if path.exists()), root)
    health = StoreHealth(
        path=str(root),
        error=_layout_error(root),
        is_writable=place.is_dir() and os.access(place, os.W_OK | os.X_OK),
        free=_free(place),
    )
    try:
        return _contents(store, health)
    except StoreError as error:
        return replace(health, error=health.error or error.message)


def _contents(store: Store, health: StoreHealth) -> StoreHealth:
    """Count what is in the store.

    Raises:
        StoreError: something of it cannot be read.
    """
    with files.mapped(store.root):
        unfinished = partials(store)
        return replace(
            health,
            size=files.tree_size(store.root) if store.root.is_dir() else 0,
            n_installed=len(store.installed()),
            n_partials=len(unfinished),
            partial_size=sum(partial.size for partial in unfinished),
            n_leases=len(list(live_leases(store))),
            n_quarantined=len(list((store.root / "quarantine").glob("*"))),
        )


def _free(place: Path) -> int | None:
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None


def _layout_error(root: Path) -> str | None:
    marker = root / "layout"
    try:
        found = marker.read_text(encoding="ascii", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return f"`{marker}` cannot be read: {error.strerror}"
    return None if found == str(LAYOUT) else f"`{root}` has layout `{found}`, not {LAYOUT}"


def _machine_rows(survey: Survey) -> Iterator[tuple[str, str]]:
    cpu, memory = survey.cpu, survey.memory
    yield "weightpkg", f"{__version__}, Python {survey.python}"
    yield "system", f"{survey.system} {survey.architecture}"
    yield "processor", f"{cpu.model or cpu.vendor or 'unknown'}, {_cores(survey)}"
    yield "features", " ".join(cpu.features) or "unknown"
    yield "memory", f"{format_size(memory.total)}, {format_size(memory.available)} available"
    if memory.limit is not None:
        yield "limit", f"{format_size(memory.limit)} by control group"
    for device in survey.devices:
        yield device.kind.upper(), _device(device)


def _cores(survey: Survey) -> str:
    cpu = survey.cpu
    physical = f"{cpu.physical} cores, " if cpu.physical else ""
    return f"{physical}{cpu.logical or 'unknown'} logical"


def _device(device: Device) -> str:
    memory = None if device.memory is None else format_size(device.memory)
    driver = f"driver {device.driver}" if device.driver else None
    providers = ", ".join(device.providers) or "no provider of this onnxruntime uses it"
    named = " ".join(filter(None, (device.vendor, device.name)))
    return ", ".join(filter(None, (named, memory, driver, providers)))


def _runtime_rows(survey: Survey) -> Iterator[tuple[str, str]]:
    runtime = survey.runtime
    packages = ", ".join(f"{name} {version}" for name, version in runtime.distributions)
    yield "onnxruntime", f"{runtime.version or 'cannot be imported'} ({packages or 'no package'})"
    yield "providers", ", ".join(runtime.providers) or "none"


def _store_rows(store: StoreHealth) -> Iterator[tuple[str, str]]:
    yield "store", store.path
    yield "", f"{format_size(store.size)}, {format_size(store.free)} free on its disk"
    yield (
        "",
        f"{store.n_installed} installed, {store.n_leases} in use, {store.n_partials} unfinished",
    )


def _as_json(
    survey: Survey, store: StoreHealth, findings: list[Finding], decision: Decision | None
) -> dict[str, object]:
    cpu, memory, runtime = survey.cpu, survey.memory, survey.runtime
    return {
        "schema": 1,
        "weightpkg": __version__,
        "python": survey.python,
        "system": survey.system,
        "architecture": survey.architecture,
        "machine": survey.machine.as_json(),
        "cpu": {
            "vendor": cpu.vendor,
            "model": cpu.model,
            "physical-cores": cpu.physical,
            "logical-cores": cpu.logical,
            "features": cpu.features,
        },
        "memory": {"total": memory.total, "available": memory.available, "limit": memory.limit},
        "devices": [_device_json(device) for device in survey.devices],
        "onnxruntime": {
            "version": runtime.version,
            "error": runtime.error,
            "distributions": dict(runtime.distributions),
            "providers": runtime.providers,
        },
        "execution": None if decision is None else _decision_json(decision),
        "store": {
            "path": store.path,
            "error": store.error,
            "is-writable": store.is_writable,
            "free": store.free,
            "size": store.size,
            "installed": store.n_installed,
            "in-use": store.n_leases,
            "partials": store.n_partials,
            "partial-size": store.partial_size,
            "quarantined": store.n_quarantined,
        },
        "findings": [
            {"severity": each.severity, "what": each.what, "remedy": each.remedy}
            for each in findings
        ],
    }


def _device_json(device: Device) -> dict[str, object]:
    return {
        "kind": device.kind,
        "vendor": device.vendor,
        "name": device.name,
        "memory": device.memory,
        "driver": device.driver,
        "providers": device.providers,
    }
