"""What commands that change a project's files have in common: lock first, then write both."""

from __future__ import annotations

from weightpkg.lockfile import Lockfile, dump_lockfile
from weightpkg.manifest import read_manifest
from weightpkg.progress import Progress
from weightpkg.project import Project, known_facts, lock
from weightpkg.report import compare, summary
from weightpkg.settings import Settings


def save(
    project: Project, text: str, settings: Settings, progress: Progress, *, dry_run: bool
) -> None:
    """Lock what an edited manifest wants, and write it and the lockfile; nothing where that fails."""
    manifest = read_manifest(text.encode(), source=project.manifest_path.name)
    told = None if dry_run else progress
    plan = lock(project, settings, progress.note, manifest=manifest, progress=told)
    new = known_facts(plan.lockfile, settings.store())
    for note in plan.notes:
        progress.note(note)
    if not dry_run:
        project.write(project.manifest_path, text.encode())
    write(project, new, progress, dry_run=dry_run)


def write(project: Project, new: Lockfile, progress: Progress, *, dry_run: bool) -> bool:
    """Say what changes in a lockfile, write it, and return whether anything did."""
    path = project.lockfile_path
    is_changed = not path.exists() or path.read_bytes() != dump_lockfile(new)
    old = project.old_lockfile(lambda _: None)
    for line in summary(compare(old, new)):
        progress.note(line)
    if not dry_run:
        project.write_lockfile(new)
    would = "would write" if dry_run else "wrote"
    progress.note(f"{would} {path.name}" if is_changed else f"{path.name} is up to date")
    return is_changed
