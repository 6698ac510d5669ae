"""`weightpkg audit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weightpkg.audit import LEVELS, Report, Signed, Subject, audit, installed, locked
from weightpkg.cli.console import format_size, make_progress, print_json, print_table
from weightpkg.cli.publisher_key import make_check, publisher_key_option
from weightpkg.manifest import Manifest
from weightpkg.project import Indexes, find_project, load_lockfile, require_project
from weightpkg.reference import is_reference, matching
from weightpkg.settings import Settings
from weightpkg.vouching import IndexSignatures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from weightpkg.provenance import ConversionRecord
    from weightpkg.store import Installed


@click.command("audit")
@click.argument("targets", nargs=-1, metavar="[LOCK | NAME...]")
@click.option("--installed", "is_installed", is_flag=True, help="All that is installed.")
@click.option("--strict", is_flag=True, help="Exit with 1 for warnings, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@publisher_key_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["cyclonedx", "spdx"]),
    help="Print a bill of materials: CycloneDX 1.6 or SPDX 2.3, as JSON.",
)
@click.option(
    "--timestamp",
    metavar="TIME",
    help="The bill's time, else SOURCE_DATE_EPOCH, else the newest release's day.",
)
@click.pass_context
def command(
    ctx: click.Context,
    targets: tuple[str, ...],
    is_installed: bool,
    strict: bool,
    publisher_key: Path | None,
    as_json: bool,
    form: str | None,
    timestamp: str | None,
) -> None:
    """Say where models come from, who vouches for them, and what is wrong.

    LOCK is a lockfile, without which it is the project's; NAME is as `weightpkg list` prints it.
    Exits with 1 if there is an error: installed bytes that are damaged or others than the locked
    ones, a release that was yanked, a license that the project does not allow. Warnings and notes
    are printed, and fail nothing; docs/audit.md lists all of them.
    """
    if form and as_json:
        raise click.UsageError("a bill of materials is JSON: leave out --json, or --format")
    settings, progress = Settings.from_environment(), make_progress(quiet=ctx.obj)
    store = settings.store()
    lock = None if is_installed else _lockfile_of(targets)
    project = find_project(lock.parent if lock else Path.cwd())
    manifest = project.manifest if project else Manifest()
    indexes = Indexes(project.root if project else Path.cwd(), manifest, settings)
    subjects = (
        locked(load_lockfile(lock, progress.note), indexes, store)
        if lock
        else installed(_records(targets, store.installed()), indexes)
    )
    check = make_check(publisher_key, store, progress) if publisher_key else None
    reports = audit(
        subjects,
        indexes,
        store,
        progress,
        policy=manifest.policy,
        check=check,
        signatures=IndexSignatures(indexes),
        parts_of=(lambda _: None) if form else None,  # a bill does not have them
    )
    if form:
        _note_findings(reports, progress.note)
        time = timestamp or settings.environ.get("SOURCE_DATE_EPOCH")
        click.echo(_bill(form, subjects, time), nl=False)
    else:
        _print(reports, progress.note, as_json=as_json)
    levels = {finding.level for report in reports for finding in report.findings}
    if levels & ({"error", "warning"} if strict else {"error"}):
        ctx.exit(1)


def _lockfile_of(targets: Sequence[str]) -> Path | None:
    """The lockfile that is meant: the one that is named, or the project's; None where names are."""
    paths = [Path(target) for target in targets if _is_lockfile(target)]
    if not paths and not targets:
        return require_project(Path.cwd()).lockfile_path
    if paths and len(targets) > 1:
        raise click.UsageError("name one lockfile, or installed models")
    return paths[0] if paths else None


def _records(names: Sequence[str], records: Sequence[Installed]) -> list[Installed]:
    if not names:
        return list(records)
    return list(dict.fromkeys(r for name in names for r in matching(name, records)))


def _is_lockfile(target: str) -> bool:
    return target.endswith(".lock") or (not is_reference(target) and Path(target).is_file())


def _bill(form: str, subjects: Sequence[Subject], time: str | None) -> str:
    from weightpkg.bill.materials import make_bill, parse_timestamp

    bill = make_bill(subjects, parse_timestamp(time) if time else None)
    if form == "cyclonedx":
        from weightpkg.bill.cyclonedx import write_cyclonedx

        return write_cyclonedx(bill)
    from weightpkg.bill.spdx import write_spdx

    return write_spdx(bill)


def _note_findings(reports: Sequence[Report], note: Callable[[str], None]) -> None:
    """Say what is wrong, beside a bill that does not."""
    for report in reports:
        for finding in report.findings:
            if finding.level != "note":
                note(f"{finding.level}: {report.package}: {finding.message}")


def _print(reports: Sequence[Report], note: Callable[[str], None], *, as_json: bool) -> None:
    if as_json:
        print_json({"schema": 1, "models": [_as_json(report) for report in reports]})
        return
    for report in reports:
        click.echo(f"{report.package}{_roles(report)}")
        print_table([("", *row) for row in _rows(report)])
    findings = [finding.level for report in reports for finding in report.findings]
    counts = ", ".join(_count(findings.count(level), level) for level in LEVELS)
    note(f"{_count(len(reports), 'model')}: {counts}")


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _roles(report: Report) -> str:
    return f" ({', '.join(report.subject.roles)})" if report.subject.roles else ""


def _rows(report: Report) -> Iterator[tuple[str, str]]:
    package = report.package
    yield "from", package.reference or _index(package.index, report.signed)
    for file in package.files:
        yield "file", f"{file.path}, {format_size(file.size)}"
        yield from (("", str(digest)) for digest in (file.sha256, file.blake3) if digest)
        yield from (("", "+".join(part.text for part in parts)) for parts in file.sources)
    yield "verified", f"{report.verified:%Y-%m-%d %H:%M} UTC" if report.verified else "no"
    yield "license", f"{package.license}{_acceptance(report)}"
    if report.conversion:
        yield from _conversion(report.conversion)
    yield from ((finding.level, finding.message) for finding in report.findings)


def _index(name: str | None, signed: Signed | None) -> str:
    if name is None:
        return "no index that is known here"
    if signed is None:
        return f"the index {name}: unsigned, local"
    roles = "; ".join(
        f"{role.name} {role.version} by {', '.join(key[:12] for key in role.keys)}"
        for role in signed.roles
    )
    return f"the index {name}, root {signed.root}: {roles}"


def _acceptance(report: Report) -> str:
    texts = [f"{one.license} by {one.who}, {one.when:%Y-%m-%d}" for one in report.acceptances]
    return f", accepted: {'; '.join(texts)}" if texts else ""


def _conversion(conversion: ConversionRecord) -> Iterator[tuple[str, str]]:
    options = "".join(f", {option}" for option in conversion.options)
    yield (
        "conversion",
        f"by version {conversion.version} of {len(conversion.inputs)} files{options}",
    )
    yield "", f"key {conversion.key}"
    if conversion.tree:
        yield "", f"tree sha256:{conversion.tree}"
    for part in conversion.parts or ():
        yield "", f"{part.kind}: {part.n_tensors} tensors, as {part.becomes}, {part.exactness}"


def _as_json(report: Report) -> dict[str, object]:
    package, subject = report.package, report.subject
    return {
        "name": package.full_name,
        "version": str(package.version),
        "roles": list(subject.roles),
        "index": package.index,
        "reference": package.reference,
        "signatures": _signed_json(report.signed) if report.signed else None,
        "files": [
            {
                "path": file.path.text,
                "size": file.size,
                "sha256": file.sha256.hex if file.sha256 else None,
                "blake3": file.blake3.hex if file.blake3 else None,
                "sources": [[part.text for part in parts] for parts in file.sources],
            }
            for file in package.files
        ],
        "installed": subject.is_installed,
        "verified": report.verified.isoformat() if report.verified else None,
        "license": package.license,
        "license-url": package.license_url,
        "accepted": [
            {"license": a.license, "who": a.who, "when": a.when.isoformat(), "text": str(a.text)}
            for a in report.acceptances
        ],
        "conversion": asdict(report.conversion) if report.conversion else None,
        "findings": [asdict(finding) for finding in report.findings],
    }


def _signed_json(signed: Signed) -> dict[str, object]:
    return {
        "root": signed.root,
        "roles": [
            {
                "name": role.name,
                "version": role.version,
                "expires": role.expires.isoformat(),
                "keys": list(role.keys),
            }
            for role in signed.roles
        ],
    }
