"""The pages of a namespace of a signed index, fetched when they are asked for.

What is held of the index lies in its state, beside what `client` has there:

    first.root.json             the root that is trusted from the start
    pages/models/NAME.toml ...  verified when they are fetched, and again when they are read
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from weightpkg import files
from weightpkg.config import IndexConfig
from weightpkg.document import MAX_DOCUMENT_SIZE
from weightpkg.errors import DocumentError, FetchError, TrustError
from weightpkg.listing import Listing, read_listing
from weightpkg.progress import Progress, Silence
from weightpkg.trust.origin import AbsentError, Origin

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile

    from weightpkg.catalog import Made, Stamp
    from weightpkg.trust.client import Client, Session

T = TypeVar("T")

FIRST_ROOT = "first.root.json"
MAX_ROOT = 512_000
SUFFIXES = {"models": ".toml", "aliases": ".toml", "licenses": ".txt"}
_ONE_BY_ONE = 16  # so many bins are not worth a line of progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What a signed index is given of the world.

    state: its directory, `indexes/NAMESPACE` of the home.
    cache: where searches keep what they need; None keeps none.
    progress: told what takes long.
    now: the clock.
    """

    state: Path
    cache: Path | None = None
    progress: Progress = field(default_factory=Silence)
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


class SignedPages:
    """The pages of one namespace of a signed index, as `index.Pages`."""

    def __init__(self, config: IndexConfig, origin: Origin, given: Surroundings) -> None:
        """Prepare; nothing is read before it is asked for.

        Args:
            config: which index it is, and whose signatures count.
            origin: where it comes from.
            given: the rest of the world.
        """
        if config.root_sha256 is None:
            raise ValueError(f"no root is configured for {config.name}")
        self.config = config
        self.root = str(config.root_sha256)
        self.directory = given.state / "pages"
        self.origin = origin
        self._given = given
        self._session: Session | None = None
        self.prefix = ""
        self._infos: dict[tuple[str, str], TargetFile | None] = {}
        self._is_new = False
        self._index_page = b""
        self.namespace = config.name

    @property
    def name(self) -> str:
        """What messages call the index: its namespace."""
        return self.config.name or self.config.url

    @cached_property
    def client(self) -> Client:
        """What verifies; `TrustError` where the first root is not the one that is configured."""
        from weightpkg.trust.client import Client, Terms  # noqa: PLC0415  slow to import

        terms = Terms(
            staleness=timedelta(days=self.config.max_staleness_days),
            now=self._given.now,
            on_wait=lambda: self._given.progress.note(f"waiting for another update of {self.name}"),
        )
        return Client(self.name, self._given.state, self.origin, self._first_root(), terms)

    def _first_root(self) -> bytes:
        """Return the root that is trusted from the start, fetched by its digest if it is not here."""
        path = self._given.state / FIRST_ROOT
        with files.mapped(path):
            content = path.read_bytes() if path.is_file() else b""
        if not self._is_first(content):
            try:
                content = self.origin.read("metadata/1.root.json", MAX_ROOT)
            except AbsentError as error:
                raise self._other_root("is not there") from error
            if not self._is_first(content):
                raise self._other_root("has another digest than `root-sha256` in config.toml")
            files.write_file(path, content, temporary=self._given.state / "tmp")
        return content

    def _is_first(self, content: bytes) -> bool:
        wanted = self.config.root_sha256
        return wanted is not None and hashlib.sha256(content).hexdigest() == wanted.hex

    def _other_root(self, reason: str) -> TrustError:
        return TrustError(
            self.name,
            "1.root.json",
            reason,
            hint=f"`weightpkg index add {self.config.url} --name {self.name} --root FILE` with the "
            "file that the index's maintainers gave you",
        )

    def session(self) -> Session:
        """What is held; where nothing is, or it has expired, what can be fetched now.

        Raises:
            TrustError: it is refused.
            FetchError: nothing is held, and nothing can be had.
        """
        if self._session is None:
            if not self.client.has_held():
                return self.refresh()
            try:
                self._accept(self.client.open())
            except TrustError as error:
                try:
                    return self.refresh()
                except FetchError as offline:
                    reason = f"{error.reason}, and what is new cannot be had: {offline.message}"
                    raise TrustError(self.name, error.what, reason, hint=error.hint) from offline
        assert self._session is not None  # noqa: S101  it was accepted
        return self._session

    def refresh(self) -> Session:
        """Fetch what is new, and use that from now on.

        Raises:
            TrustError: it is refused; what was held stays in use.
            FetchError: it cannot be had.
        """
        self.client.refresh(self._check_new)
        session = self.client.open()
        self._accept(session)
        self._is_new = True
        self.roles()  # from now on, it is held
        return session

    def _accept(self, session: Session) -> None:
        prefix = self._check(session)
        self._session, self.prefix, self._infos = session, prefix, {}
        page = self.directory / "index.toml"
        with files.mapped(page):
            if not page.is_file() or page.read_bytes() != self._index_page:
                files.write_file(page, self._index_page, temporary=self._given.state / "tmp")

    def _check_new(self, session: Session) -> None:
        """Look at all that is new of what is held, so that it counts only if it is right."""
        from weightpkg.trust import rules  # noqa: PLC0415  as the client

        prefix = self._check(session)
        if not rules.has_role(session.targets, self.namespace):
            return
        role = session.role(self.namespace, "targets")
        bins = rules.bins_of(self.name, self.namespace, role)
        if not bins:
            list(rules.pages_of(self.name, self.namespace, role, prefix))
        held, versions = self.client.memory().roles, session.versions()
        changed = [name for name in bins if name in held and held[name] != versions.get(name)]
        session.roles(changed, self.namespace)

    def _check(self, session: Session) -> str:
        """Refuse an index that is not laid out as it must be; return what our paths begin with."""
        from weightpkg.trust import rules  # noqa: PLC0415  as the client

        info = session.targets.targets.get(rules.INDEX_PAGE)
        if info is None:
            raise TrustError(self.name, rules.INDEX_PAGE, "is not signed by anybody")
        content = self._index_page
        if not session.is_right(info, content):
            with files.mapped(self.directory), suppress(FileNotFoundError):
                content = (self.directory / rules.INDEX_PAGE).read_bytes()
        if not session.is_right(info, content):
            content = session.read(info)
        self._index_page = content
        namespace = rules.read_index_page(content, self.name)
        own = self.config.name or namespace  # while it is being added, the index may say it
        self.namespace = own
        if namespace != own and not rules.is_hosted(session.targets, own):
            raise TrustError(
                self.name,
                rules.INDEX_PAGE,
                f"says that this is the index of `{namespace}`, which does not have `{own}`",
                hint=f"`weightpkg index add {self.config.url} --name {namespace} --root FILE`",
            )
        rules.check_top(self.name, session.root, session.targets, namespace)
        return rules.prefix_of(own, namespace)

    def file(self, session: Session, info: TargetFile, path: Path) -> bytes:
        """Return a signed file: the one that is held if it is right, else fetched."""
        if info.length > MAX_DOCUMENT_SIZE:
            raise TrustError(self.name, info.path, f"is larger than {MAX_DOCUMENT_SIZE:,} bytes")
        with files.mapped(path):
            if path.is_file() and path.stat().st_size == info.length:
                content = path.read_bytes()
                if session.is_right(info, content):
                    return content
        content = session.read(info)
        files.write_file(path, content, temporary=self._given.state / "tmp")
        return content

    def _asked(self, ask: Callable[[Session], T]) -> T:
        """Ask; where the origin has moved on since, ask again of what is new."""
        from weightpkg.trust.client import GoneError  # noqa: PLC0415  as the client

        try:
            return ask(self.session())
        except GoneError:
            if self._is_new:
                raise
        return ask(self.refresh())

    def info(self, kind: str, name: str) -> TargetFile | None:
        """What is signed of a page or a license's text; None where there is none."""
        return self._asked(lambda session: self._signed(session, kind, name))

    def _signed(self, session: Session, kind: str, name: str) -> TargetFile | None:
        key = (kind, name)
        if key not in self._infos:
            self._infos[key] = session.target(self._path(kind, name))
        return self._infos[key]

    def _path(self, kind: str, name: str) -> str:
        return f"{self.prefix}{kind}/{name}{SUFFIXES[kind]}"

    def _held_path(self, kind: str, name: str) -> Path:
        return self.directory / kind / f"{name}{SUFFIXES[kind]}"

    def has(self, kind: str, name: str) -> bool:
        """Whether somebody who may signs such a page."""
        return self.info(kind, name) is not None

    def read(self, kind: str, name: str) -> bytes:
        """Return a page, verified; `DocumentError` where there is none."""

        def ask(session: Session) -> bytes:
            info = self._signed(session, kind, name)
            if info is None:
                raise DocumentError("is not part of the index", source=f"{kind}/{name}")
            return self.file(session, info, self._held_path(kind, name))

        return self._asked(ask)

    def listing(self, name: str) -> Listing:
        """What is signed beside the digest of a model's page."""
        info = self.info("models", name)
        return read_listing(name, info.unrecognized_fields.get("custom") if info else None)

    def names(self, kind: str) -> list[str]:
        """The names of all pages of a kind; fetches the roles that are not here."""
        return sorted({name for role in self.roles() for k, name in self.pages(role) if k == kind})

    def known(self, kind: str) -> list[str]:
        """The same, as far as it is held: where there are bins, names of pages that were read."""
        if len(self.roles()) <= 1:
            return self.names(kind)
        return self.held(kind)

    def held(self, kind: str) -> list[str]:
        """The names of the pages that were read before."""
        held = self.directory / kind
        return sorted(path.stem for path in held.glob("*.toml")) if held.is_dir() else []

    def roles(self) -> list[str]:
        """The roles that sign the namespace's pages: one, or its bins."""
        from weightpkg.trust import rules  # noqa: PLC0415  as the client

        if not rules.has_role(self.session().targets, self.namespace):
            return []  # an index that has no pages yet
        role = self._asked(lambda session: session.role(self.namespace, "targets"))
        return rules.bins_of(self.name, self.namespace, role) or [self.namespace]

    def role_of(self, kind: str, name: str) -> str:
        """The role that signs a page, if anybody does."""
        role = self._asked(lambda session: session.role(self.namespace, "targets"))
        succinct = role.delegations.succinct_roles if role.delegations else None
        return succinct.get_role_for_target(self._path(kind, name)) if succinct else self.namespace

    def load(self, roles: list[str]) -> None:
        """Fetch those of some roles that are not here, and verify them."""
        if roles == [self.namespace] or not roles:
            return
        if len(roles) <= _ONE_BY_ONE:
            self._asked(lambda session: session.roles(roles, self.namespace))
            return
        with self._given.progress.task(f"roles of the index {self.name}", None):
            self._asked(lambda session: session.roles(roles, self.namespace))

    def pages(self, role_name: str) -> Iterator[tuple[str, str]]:
        """Yield kind and name of each page that a role signs."""
        from weightpkg.trust import rules  # noqa: PLC0415  as the client

        parent = self._asked(lambda session: session.role(self.namespace, "targets"))
        role = parent
        if role_name != self.namespace:
            role = self._asked(lambda session: session.role(role_name, self.namespace))
        bins = parent if role is not parent else None
        for kind, name, info in rules.pages_of(self.name, role_name, role, self.prefix, bins):
            self._infos[kind, name] = info
            yield kind, name

    def catalog_source(self) -> SignedSource:
        """What a catalogue is made of."""
        return SignedSource(self)


@dataclass(frozen=True, slots=True)
class SignedSource:
    """The pages of a signed index for a catalogue; the stamp of each is its role's version, and size."""

    pages: SignedPages

    @property
    def key(self) -> str:
        """The index's state."""
        return str(self.pages.directory.absolute())

    def _stamps(self) -> dict[str, int]:
        versions = self.pages.session().versions()
        return {role: _number(f"{role} {versions.get(role)}") for role in self.pages.roles()}

    def changed(self) -> int:
        """A digest of the versions of all roles."""
        return _number(str(sorted(self._stamps().items())))

    def is_stale(self, made: Made, stamps: Callable[[], dict[str, Stamp]]) -> bool:  # noqa: ARG002  as `Source` has it
        """Whether a role has another version."""
        return made.changed != self.changed()

    def listed(self, old: Callable[[], Mapping[str, Stamp]]) -> Iterator[tuple[str, Stamp]]:
        """Yield the pages; of roles that are as they were, what the old catalogue has."""
        stamps, held = self._stamps(), old()
        before = {changed for changed, _ in held.values()}
        new = [role for role, stamp in stamps.items() if stamp not in before]
        same = set(stamps.values()) & before
        yield from ((page, stamp) for page, stamp in held.items() if stamp[0] in same)
        self.pages.load(new)
        for role in new:
            for kind, name in self.pages.pages(role):
                if kind == "models":
                    info = self.pages.info(kind, name)
                    yield name, (stamps[role], info.length if info else 0)


def _number(text: str) -> int:
    """A number below 2**63 that stands for a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1
