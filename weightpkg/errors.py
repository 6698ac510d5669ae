"""Every error weightpkg raises on purpose, under one root.

Each class carries its data as attributes, builds its message itself, and knows the exit code
of the command that it ends. Messages say what and where; `hint` says what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


def shown(text: str) -> str:
    """Shorten a name that came from outside, for a message."""
    return text if len(text) <= 64 else f"{text[:61]}..."


class WeightpkgError(Exception):
    """The root: whatever weightpkg refuses or fails to do, and why."""

    exit_code: ClassVar[int] = 1
    kind: ClassVar[str] = "the command found something wrong, as its output says"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class IntegrityError(WeightpkgError):
    """Bytes are not what they were said to be. Never retried, never a warning."""

    exit_code = 3
    kind = "bytes do not match the size or digest they were promised with"


class DigestMismatchError(IntegrityError):
    """A whole file was read and its digest is another one."""

    def __init__(self, where: str, *, expected: str, found: str, hint: str | None = None) -> None:
        super().__init__(f"`{where}`: expected {expected}, found {found}", hint=hint)
        self.where = where
        self.expected = expected
        self.found = found


class SignatureError(IntegrityError):
    """Files are not what their publisher signed, or the key is none that could have signed them."""


class SizeMismatchError(IntegrityError):
    """More or fewer bytes came than the index promised."""

    def __init__(self, where: str, *, expected: int, found: int, hint: str | None = None) -> None:
        more = "at least " if found > expected else ""
        message = f"`{where}`: expected {expected:,} bytes, found {more}{found:,}"
        super().__init__(message, hint=hint)
        self.where = where
        self.expected = expected
        self.found = found


class ResolutionError(WeightpkgError):
    """What was asked for is not to be had."""

    exit_code = 4
    kind = "no such model, variant or release, or a name that is none"


class RequirementError(ResolutionError):
    """A requirement cannot be read."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(
            f"`{text}` is not a requirement: {reason}",
            hint="write a name such as `smollm2-135m-q4`, or `smollm2-135m-q4==1.0.0`",
        )
        self.text = text


class ModelNotFoundError(ResolutionError):
    """No index has a model of that name."""

    def __init__(self, name: str, nearest: Sequence[str]) -> None:
        near = ", ".join(f"`{other}`" for other in nearest)
        hint = f"did you mean {near}?" if near else "`weightpkg search WORDS` finds names"
        super().__init__(f"no model is called `{name}`", hint=hint)
        self.name = name
        self.nearest = tuple(nearest)


class VariantNotFoundError(ResolutionError):
    """The model exists, the variant does not."""

    def __init__(self, model: str, variant: str, available: Sequence[str]) -> None:
        have = ", ".join(f"`{model}-{other}`" for other in available)
        super().__init__(f"`{model}` has no variant `{variant}`", hint=f"there is {have}")
        self.model = model
        self.variant = variant
        self.available = tuple(available)


class NoMatchingReleaseError(ResolutionError):
    """No release satisfies the version asked for."""

    def __init__(self, model: str, specifier: str, available: Sequence[str]) -> None:
        super().__init__(
            f"no release of `{model}` matches `{specifier}`"
            if specifier
            else f"every release of `{model}` was yanked",
            hint=f"there is {', '.join(available)}",
        )
        self.model = model
        self.specifier = specifier
        self.available = tuple(available)


class NamespaceNotFoundError(ResolutionError):
    """No index owns the namespace that was asked for."""

    def __init__(
        self, namespace: str, name: str, known: Sequence[str], *, alike: str | None = None
    ) -> None:
        have = f"there is {', '.join(f'`{other}`' for other in known)}; " if known else ""
        meant = f"; it looks like `{alike}`, and is not" if alike else ""
        super().__init__(
            f"no index owns the namespace `{namespace}`{meant}",
            hint=f"{have}the default index has no prefix: `{name}`; `weightpkg index add` adds one",
        )
        self.namespace = namespace
        self.known = tuple(known)


class NothingFitsError(ResolutionError):
    """Releases and variants match, and a rule forbids each of them; `reasons` has one a candidate."""

    def __init__(self, requirement: str, reasons: Sequence[str]) -> None:
        more = f"; and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        super().__init__(
            f"nothing of `{requirement}` can be used: {reasons[0]}{more}",
            hint=f"`weightpkg resolve {requirement} --explain` says what was considered",
        )
        self.requirement = requirement
        self.reasons = tuple(reasons)


class MachineError(ResolutionError):
    """The description of a machine cannot be read."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(
            f"`{shown(text)}` does not describe a machine: {reason}",
            hint="write `cpu,16GiB`, or give the file that `weightpkg doctor --json` wrote",
        )
        self.text = text
        self.reason = reason


class NotInstalledError(ResolutionError):
    """The model is known, but not on this machine."""

    def __init__(self, name: str) -> None:
        super().__init__(f"`{name}` is not installed", hint=f"weightpkg install {name}")
        self.name = name


class FetchError(WeightpkgError):
    """Bytes could not be had from a source, or from any."""

    exit_code = 5
    kind = "a source could not be reached or did not have the file"


class StoreError(WeightpkgError):
    """The store cannot be read or written: space, permission, a foreign directory."""

    exit_code = 6
    kind = "the store cannot be read or written (space, permission, a broken record)"


class DocumentError(WeightpkgError):
    """A TOML document is not what its schema says; `where` is the key."""

    exit_code = 7
    kind = "an index page or another TOML document is not valid"

    def __init__(
        self, message: str, *, where: str = "", source: str = "", hint: str | None = None
    ) -> None:
        place = ": ".join(part for part in (source, where and f"`{where}`") if part)
        super().__init__(f"{place}: {message}" if place else message, hint=hint)
        self.reason = message
        self.where = where
        self.source = source


class UnsupportedVersionError(DocumentError):
    """A document of a newer major version than this weightpkg can read."""


class SigningError(WeightpkgError):
    """An index cannot be signed or published as it is: a key, a threshold, a date, or what changed."""

    exit_code = 13
    kind = "an index cannot be signed or published as it is"


class FormatError(WeightpkgError):
    """A model file is malformed, or made to harm; names the file and the place."""

    exit_code = 8
    kind = "a model file is malformed, or cannot be converted"

    def __init__(self, file: str, place: str, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"`{file}`: {place}: {reason}", hint=hint)
        self.file = file
        self.place = place
        self.reason = reason


class GGUFError(FormatError):
    """A GGUF file breaks a rule of the format."""


class SafetensorsError(FormatError):
    """A safetensors file, or the index of several, breaks a rule of the format."""


class CheckpointError(FormatError):
    """A file beside the weights, such as config.json or tokenizer.json, is missing or breaks a rule."""


class OnnxError(FormatError):
    """A published ONNX model is none, or asks for what no model needs."""


class PickleError(FormatError):
    """A file holds a Python pickle, whatever it is called: loading it could run any code."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(
            file,
            "file",
            f"{reason}, which could run code and is never loaded",
            hint="use the model's safetensors or GGUF files",
        )


class ConvertError(WeightpkgError):
    """A well-formed model file that cannot become an ONNX model."""

    exit_code = 8
    kind = FormatError.kind


class UnsupportedFormatError(ConvertError):
    """The kind of file is not one that is converted."""


class UnsupportedArchitectureError(ConvertError):
    """An architecture, or a configuration of one, that is not known."""


class UnsupportedQuantizationError(ConvertError):
    """A block type that is not known."""


class TensorMismatchError(ConvertError):
    """A tensor is missing, left over, or has another shape than the configuration says."""


class RunError(WeightpkgError):
    """A model could not be loaded, or could not answer."""

    exit_code = 9
    kind = "a model could not be loaded or could not answer"


class TemplateError(RunError):
    """A chat template is broken, refuses the messages, or takes too long."""


class ProjectError(WeightpkgError):
    """A project's files do not fit: no manifest, no lockfile, or one that is out of date."""

    exit_code = 10
    kind = "a project has no lockfile, or one that does not fit its manifest, its index or its use"


class IncompleteError(WeightpkgError):
    """A mirror or a bundle lacks something that it should have; `gaps` has a line each."""

    def __init__(self, where: str, gaps: Sequence[str], *, hint: str) -> None:
        lines = "".join(f"\n  {gap}" for gap in gaps)
        super().__init__(f"`{where}` is not complete:{lines}", hint=hint)
        self.where = where
        self.gaps = tuple(gaps)


class LicenseError(WeightpkgError):
    """A license was not accepted, or the project's policy does not allow it."""

    exit_code = 11
    kind = "a license was not accepted, or is not allowed"


class TrustError(WeightpkgError):
    """An index's signatures, versions, dates or names are not what they must be. Never a warning."""

    exit_code = 12
    kind = "an index is not signed as it must be, is out of date, or is an older one"

    def __init__(self, index: str, what: str, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"index `{index}`: `{what}` {reason}", hint=hint)
        self.index = index
        self.what = what
        self.reason = reason
