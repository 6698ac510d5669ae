"""`weightpkg serve`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from weightpkg.api import ensure
from weightpkg.cli.console import make_progress
from weightpkg.cli.kv_cache import USED, kv_cache_option
from weightpkg.errors import RunError
from weightpkg.memory import KvCache
from weightpkg.settings import Settings

_UNKNOWN = 4 * 1024**3  # where a system does not say what memory it has


@click.command("serve")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, metavar="N", help="Where to listen; 0 for any free port.")  # fmt: skip
@click.option("--address", metavar="HOST", help="Where to listen; without it, this machine alone.")
@click.option("--url", metavar="URL", help="How clients reach it, if by another name: a proxy's.")
@click.option("--key-file", type=click.Path(path_type=Path), help="A file with the API key that clients must have; or WEIGHTPKG_API_KEY.")  # fmt: skip
@click.option("--public", is_flag=True, help="Everybody who reaches it may ask.")
@click.option("--allow-origin", "origins", multiple=True, metavar="URL", help="Another site whose pages may ask; repeat for more.")  # fmt: skip
@click.option("--rows", type=click.IntRange(1, 256), default=8, show_default=True, help="Answers of a model at once.")  # fmt: skip
@click.option("--queue", type=click.IntRange(0, 10_000), default=32, show_default=True, help="Requests that may wait.")  # fmt: skip
@kv_cache_option(USED)
@click.option("--threads", type=click.IntRange(0), default=0, help="0 for each physical core.")
@click.option("--memory", type=click.FloatRange(min=0, min_open=True), metavar="GIB", help="For all loaded models; most of what there is if not given.")  # fmt: skip
@click.option("--keep", type=click.IntRange(0), default=600, show_default=True, metavar="SECONDS", help="When a model that nobody asks leaves; 0 for never.")  # fmt: skip
@click.option(
    "--ray", "on_ray", is_flag=True, help="Answer by replicas on a cluster, by Ray Serve."
)
@click.option("--replicas", type=click.IntRange(1, 1000), metavar="N", help="How many, with --ray; 1 if not given.")  # fmt: skip
@click.option("--ray-address", metavar="HOST:PORT", help="A running cluster, with --ray; or RAY_ADDRESS. Without either, one is started on this machine, and ends with the command.")  # fmt: skip
@click.pass_obj
def command(
    quiet: bool,
    /,
    names: tuple[str, ...],
    port: int,
    address: str | None,
    url: str | None,
    key_file: Path | None,
    public: bool,
    origins: tuple[str, ...],
    rows: int,
    queue: int,
    kv_cache: KvCache,
    threads: int,
    memory: float | None,
    keep: int,
    on_ray: bool,
    replicas: int | None,
    ray_address: str | None,
) -> None:
    """Serve models by OpenAI's API, and a page to chat with them.

    Without NAMEs, all that is installed can be asked for; a NAME is installed if it is not, and may be
    a model directory that `weightpkg convert` made. Models are loaded when they are asked for. Where it
    listens is printed; each request is a line of the log, without what it says. Ends on SIGTERM or
    Ctrl-C, when what is being answered is answered.
    """
    if not on_ray and (replicas or ray_address):
        raise click.UsageError("--replicas and --ray-address are for --ray")
    try:
        from weightpkg.listening.process import Listening, read_key
        from weightpkg.server.models import Options
        from weightpkg.server.serving import ModelServer
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"fastapi", "starlette", "uvicorn", "h11"}:
            raise
        hint = '`pip install "weightpkg[serve]"`'
        raise RunError(f"serving needs the library `{error.name}`", hint=hint) from error
    settings = Settings.from_environment()
    options = Options(
        rows=rows,
        waiting=queue,
        threads=threads,
        kv_cache=kv_cache,
        memory=0 if on_ray and memory is None else _budget(memory),
        keep_s=keep or None,
    )
    listening = Listening(
        address=address,
        port=port,
        url=url,
        key=read_key(key_file, settings.environ.get("WEIGHTPKG_API_KEY")),
        is_public=public,
        origins=frozenset(origins),
    )
    chosen = {_name(name): _directory(name, settings, quiet=quiet) for name in names} or None
    if on_ray:
        from weightpkg.cli.on_ray import serve_on_ray

        serve_on_ray(
            settings.store(),
            chosen,
            options,
            listening,
            _log(quiet=quiet),
            n_replicas=replicas or 1,
            ray_address=ray_address or settings.environ.get("RAY_ADDRESS") or None,
        )
        return
    server = ModelServer(settings.store(), chosen, options, listening, _log(quiet=quiet))
    for each in server.urls:
        click.echo(each)
    server.run()


def _budget(memory: float | None) -> int:
    if memory is not None:
        return int(memory * 1024**3)
    from weightpkg.survey import this_machine

    return this_machine().room or _UNKNOWN


def _name(name: str) -> str:
    return Path(name).resolve().name if Path(name).is_dir() else name


def _directory(name: str, settings: Settings, *, quiet: bool) -> Path:
    if Path(name).is_dir():
        return Path(name).resolve()
    return ensure(name, settings=settings, progress=make_progress(quiet=quiet))


def _log(*, quiet: bool) -> Callable[[str], None]:
    return lambda line: None if quiet else click.echo(line, err=True)
