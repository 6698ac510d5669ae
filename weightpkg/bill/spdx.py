"""A bill as SPDX 2.3, in JSON: a package for each model, and one for each of its files.

https://spdx.github.io/spdx-spec/v2.3/. The standard's files must have a SHA-1, which nobody needs or
publishes of weights; so what a model consists of are packages that were not looked into.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from weightpkg import __version__
from weightpkg.bill.materials import (
    Bill,
    BillError,
    card_of,
    conversion_notes,
    downloads_of,
    license_of,
    missing_library,
    properties_of,
    purl_of,
    purl_of_file,
    serial_of,
)
from weightpkg.license_policy import identifiers

if TYPE_CHECKING:
    from spdx_tools.spdx.model import Checksum, Document, ExternalPackageRef, Package, Relationship

    from weightpkg.audit import Subject
    from weightpkg.lockfile import LockedPackage
    from weightpkg.package import File

_NAMESPACE = "https://spdx.org/spdxdocs/weightpkg-"


def write_spdx(bill: Bill) -> str:
    """Return the bill as JSON.

    Raises:
        BillError: the library is not installed, or does not take what was made.
    """
    if not bill.subjects:
        raise _not_spdx("there is no model, and the standard wants something to describe")
    try:
        document = _document(bill)
        content = _as_json(document)
        serial = serial_of(json.dumps(content, sort_keys=True))
        document.creation_info.document_namespace = f"{_NAMESPACE}{serial}"
        _validate(document)
    except ImportError as error:
        raise missing_library(error) from error
    return json.dumps(_as_json(document), indent=2, ensure_ascii=False) + "\n"


def _as_json(document: Document) -> dict[str, Any]:
    from spdx_tools.spdx.jsonschema.document_converter import DocumentConverter  # noqa: PLC0415

    converted: dict[str, Any] = DocumentConverter().convert(document)  # type: ignore[no-untyped-call]
    return converted


def _validate(document: Document) -> None:
    from spdx_tools.spdx.validation.document_validator import (  # noqa: PLC0415
        validate_full_spdx_document,
    )

    if faults := validate_full_spdx_document(document):
        raise _not_spdx(faults[0].validation_message)


def _not_spdx(reason: str) -> BillError:
    return BillError(
        f"no SPDX document can be made of it: {reason}", hint="`--format cyclonedx` may say it"
    )


def _document(bill: Bill) -> Document:
    from spdx_tools.spdx.model import (  # noqa: PLC0415
        Actor,
        ActorType,
        CreationInfo,
        Document,
        Relationship,
        RelationshipType,
    )

    document = Document(
        CreationInfo(
            spdx_version="SPDX-2.3",
            spdx_id="SPDXRef-DOCUMENT",
            name="models",
            document_namespace=f"{_NAMESPACE}0",
            creators=[Actor(ActorType.TOOL, f"weightpkg-{__version__}")],
            created=bill.timestamp.replace(tzinfo=None),
        )
    )
    for subject in bill.subjects:
        model = _model(subject)
        described = Relationship("SPDXRef-DOCUMENT", RelationshipType.DESCRIBES, model.spdx_id)
        document.packages.append(model)
        document.relationships.append(described)
        for package, relationship in _parts(subject, model):
            document.packages.append(package)
            document.relationships.append(relationship)
    refs = _license_refs(subject.package for subject in bill.subjects)
    document.extracted_licensing_info = [_license_text(*row) for row in refs.items()]
    return document


def _model(subject: Subject) -> Package:
    from spdx_tools.spdx.model import Package, PackagePurpose, SpdxNoAssertion  # noqa: PLC0415

    package, model = subject.package, subject.model
    facts = properties_of(subject) | (
        {key: str(value) for key, value in card_of(model).items()} if model else {}
    )
    single = package.files[0] if len(package.files) == 1 else None
    return Package(
        spdx_id=_id(package.key),
        name=package.full_name,
        version=str(package.version),
        download_location=_download(package.files[0]) if single else SpdxNoAssertion(),
        files_analyzed=False,
        checksums=_checksums(single) if single else [],
        homepage=model.homepage if model else None,
        license_concluded=SpdxNoAssertion(),
        license_declared=_license(package),
        copyright_text=SpdxNoAssertion(),
        summary=model.summary if model else None,
        comment="; ".join(f"{key}={value}" for key, value in facts.items()),
        external_references=[_purl(purl_of(package))],
        primary_package_purpose=PackagePurpose.OTHER,
    )


def _parts(subject: Subject, model: Package) -> Iterator[tuple[Package, Relationship]]:
    """Yield the model's files, and what it was converted to, each with how it belongs to it."""
    from spdx_tools.spdx.model import Relationship, RelationshipType  # noqa: PLC0415

    package = subject.package
    for file in package.files:
        part = _file(file, package)
        yield part, Relationship(model.spdx_id, RelationshipType.CONTAINS, part.spdx_id)
    if package.conversion:
        made = _converted(package)
        yield made, Relationship(made.spdx_id, RelationshipType.GENERATED_FROM, model.spdx_id)


def _file(file: File, package: LockedPackage) -> Package:
    from spdx_tools.spdx.model import Package, PackagePurpose, SpdxNoAssertion  # noqa: PLC0415

    purl = purl_of_file(file)
    return Package(
        spdx_id=_id(f"{package.key}/{file.path}"),
        name=file.path.text,
        file_name=file.path.text,
        download_location=_download(file),
        files_analyzed=False,
        checksums=_checksums(file),
        license_concluded=SpdxNoAssertion(),
        license_declared=_license(package),
        copyright_text=SpdxNoAssertion(),
        comment=_facts(file),
        external_references=[_purl(purl)] if purl else [],
        primary_package_purpose=PackagePurpose.FILE,
    )


def _converted(package: LockedPackage) -> Package:
    from spdx_tools.spdx.model import Package, PackagePurpose, SpdxNoAssertion  # noqa: PLC0415

    facts = conversion_notes(package)
    return Package(
        spdx_id=_id(f"{package.key}#onnx"),
        name=f"{package.full_name}-onnx",
        version=str(package.version),
        download_location=SpdxNoAssertion(),
        files_analyzed=False,
        license_concluded=SpdxNoAssertion(),
        license_declared=_license(package),
        copyright_text=SpdxNoAssertion(),
        comment="; ".join(f"{key}={value}" for key, value in facts.items()),
        primary_package_purpose=PackagePurpose.OTHER,
    )


def _checksums(file: File) -> list[Checksum]:
    from spdx_tools.spdx.model import Checksum, ChecksumAlgorithm  # noqa: PLC0415

    return [Checksum(ChecksumAlgorithm.SHA256, file.sha256.hex)] if file.sha256 else []


def _facts(file: File) -> str | None:
    """Size and BLAKE3: of the latter, the library wants 256 hexadecimal digits for its 256 bits."""
    facts = {"size": file.size, "blake3": file.blake3.hex if file.blake3 else None}
    found = [f"weightpkg:{key}={value}" for key, value in facts.items() if value is not None]
    return "; ".join(found) or None


def _purl(purl: str) -> ExternalPackageRef:
    from spdx_tools.spdx.model import (  # noqa: PLC0415
        ExternalPackageRef,
        ExternalPackageRefCategory,
    )

    return ExternalPackageRef(ExternalPackageRefCategory.PACKAGE_MANAGER, "purl", purl)


def _download(file: File) -> Any:
    from spdx_tools.spdx.model import SpdxNoAssertion  # noqa: PLC0415

    return next(iter(downloads_of(file)), None) or SpdxNoAssertion()


def _license(package: LockedPackage) -> Any:
    from license_expression import ExpressionError  # noqa: PLC0415  of an extra
    from spdx_tools.common.spdx_licensing import spdx_licensing  # noqa: PLC0415
    from spdx_tools.spdx.model import SpdxNoAssertion  # noqa: PLC0415

    expression = license_of(package)
    if expression is None:
        return SpdxNoAssertion()
    try:
        return spdx_licensing.parse(expression)
    except ExpressionError as error:
        raise _not_spdx(f"`{package}`: {error}") from error


def _license_refs(packages: Iterable[LockedPackage]) -> dict[str, str | None]:
    """Licenses that are not of SPDX's list, each with where its text is."""
    return {
        leaf: package.license_url
        for package in packages
        for leaf in identifiers(license_of(package) or "MIT")
        if leaf.startswith("LicenseRef-")
    }


def _license_text(license_id: str, url: str | None) -> Any:
    from spdx_tools.spdx.model import ExtractedLicensingInfo  # noqa: PLC0415

    return ExtractedLicensingInfo(
        license_id=license_id,
        extracted_text=url or "its text is at the publisher of the model",
        license_name=license_id.removeprefix("LicenseRef-"),
        cross_references=[url] if url else [],
    )


def _id(text: str) -> str:
    """Return an identifier: letters, digits, `.` and `-`; what else there is gets a code of its own."""
    return "SPDXRef-" + re.sub(r"[^A-Za-z0-9.-]", lambda match: f"-{ord(match[0]):x}-", text)
