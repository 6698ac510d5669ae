"""A bill as CycloneDX 1.6, with models as machine-learning-model components.

https://cyclonedx.org/docs/1.6/json/. Components, hashes, licenses and pedigree are written by the
standard's own library; model cards, which it does not know yet, are put in behind it and stand in the
schema that it validates against.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from weightpkg import __version__
from weightpkg.bill.materials import (
    Bill,
    card_of,
    conversion_notes,
    downloads_of,
    license_of,
    missing_library,
    properties_of,
    purl_of,
    purl_of_file,
    purl_of_repository,
    serial_of,
)
from weightpkg.package import UNKNOWN

if TYPE_CHECKING:
    from cyclonedx.model import ExternalReference, HashType, Property
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import LicenseExpression

    from weightpkg.audit import Subject
    from weightpkg.digest import Digest
    from weightpkg.lockfile import LockedPackage
    from weightpkg.package import File, Model


def write_cyclonedx(bill: Bill) -> str:
    """Return the bill as JSON.

    Raises:
        BillError: the library is not installed.
    """
    try:
        document = _document(bill)
    except ImportError as error:
        raise missing_library(error) from error
    cards = {one.package.key: _card(one.model) for one in bill.subjects if one.model}
    for component in document.get("components", ()):
        if card := cards.get(component["bom-ref"].removesuffix("#onnx")):
            component["modelCard"] = card
    del document["serialNumber"]
    serial = serial_of(json.dumps(document, sort_keys=True))
    head = {key: document.pop(key) for key in ("$schema", "bomFormat", "specVersion")}
    document = {**head, "serialNumber": serial.urn, **document}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _document(bill: Bill) -> dict[str, Any]:
    from cyclonedx.model.bom import Bom, BomMetaData  # noqa: PLC0415  of an extra
    from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415
    from cyclonedx.model.tool import ToolRepository  # noqa: PLC0415
    from cyclonedx.output.json import JsonV1Dot6  # noqa: PLC0415

    tool = Component(name="weightpkg", version=__version__, type=ComponentType.APPLICATION)
    metadata = BomMetaData(tools=ToolRepository(components=[tool]), timestamp=bill.timestamp)
    bom = Bom(metadata=metadata)
    for subject in bill.subjects:
        published = _published(subject)
        bom.components.add(published)
        if subject.package.conversion:
            converted = _converted(subject)
            bom.components.add(converted)
            bom.register_dependency(converted, [published])
    document: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    return document


def _published(subject: Subject) -> Component:
    from cyclonedx.model.component import Component, ComponentType, Pedigree  # noqa: PLC0415
    from packageurl import PackageURL  # noqa: PLC0415

    package, model = subject.package, subject.model
    base = model.base_model if model else None
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=package.key,
        name=package.full_name,
        version=str(package.version),
        description=model.summary if model else None,
        purl=PackageURL.from_string(purl_of(package)),
        licenses=_licenses(package),
        hashes=_hashes(package.files[0]) if len(package.files) == 1 else None,
        external_references=_references(subject),
        properties=_properties(properties_of(subject)),
        components=[_file(file, package) for file in package.files],
        pedigree=Pedigree(ancestors=[_base(base, package)]) if base else None,
        tags=model.tags if model else None,
    )


def _base(repository: str, package: LockedPackage) -> Component:
    from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415
    from packageurl import PackageURL  # noqa: PLC0415

    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"{package.key}#base",
        name=repository,
        purl=PackageURL.from_string(purl_of_repository(repository)),
    )


def _converted(subject: Subject) -> Component:
    """The ONNX model that is made of the published files."""
    from cyclonedx.model import HashAlgorithm, HashType  # noqa: PLC0415
    from cyclonedx.model.component import Component, ComponentType, Pedigree  # noqa: PLC0415
    from packageurl import PackageURL  # noqa: PLC0415

    package = subject.package
    tree = package.tree
    manifest = Component(
        type=ComponentType.FILE,
        bom_ref=f"{package.key}#onnx/weightpkg.toml",
        name="weightpkg.toml",
        description="the manifest, which has the digests of all other files",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=tree.hex)] if tree else None,
    )
    ancestor = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"{package.key}#ancestor",
        name=package.full_name,
        version=str(package.version),
        purl=PackageURL.from_string(purl_of(package)),
        hashes=_hashes(package.files[0]) if len(package.files) == 1 else None,
    )
    notes = f"converted to ONNX by weightpkg, version {package.converter} of its converter"
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"{package.key}#onnx",
        name=f"{package.full_name}-onnx",
        version=str(package.version),
        licenses=_licenses(package),
        components=[manifest] if tree else None,
        properties=_properties(conversion_notes(package)),
        pedigree=Pedigree(ancestors=[ancestor], notes=notes),
    )


def _file(file: File, package: LockedPackage) -> Component:
    from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415
    from packageurl import PackageURL  # noqa: PLC0415

    purl = purl_of_file(file)
    size = {} if file.size is None else {"weightpkg:size": str(file.size)}
    return Component(
        type=ComponentType.FILE,
        bom_ref=f"{package.key}/{file.path}",
        name=file.path.text,
        hashes=_hashes(file),
        purl=PackageURL.from_string(purl) if purl else None,
        properties=_properties(size),
    )


def _hashes(file: File) -> list[HashType]:
    from cyclonedx.model import HashAlgorithm, HashType  # noqa: PLC0415

    names = {"sha256": HashAlgorithm.SHA_256, "blake3": HashAlgorithm.BLAKE3}
    digests: list[Digest] = [digest for digest in (file.sha256, file.blake3) if digest]
    return [HashType(alg=names[digest.algorithm], content=digest.hex) for digest in digests]


def _licenses(package: LockedPackage) -> list[LicenseExpression]:
    from cyclonedx.model.license import LicenseExpression  # noqa: PLC0415

    license_id = license_of(package)
    return [LicenseExpression(license_id)] if license_id else []


def _references(subject: Subject) -> Iterator[ExternalReference]:
    from cyclonedx.model import ExternalReference, ExternalReferenceType, XsUri  # noqa: PLC0415

    package, model = subject.package, subject.model
    found = [(ExternalReferenceType.LICENSE, package.license_url)]
    found += [(ExternalReferenceType.WEBSITE, model.homepage if model else None)]
    found += [
        (ExternalReferenceType.DISTRIBUTION, url)
        for file in package.files
        for url in downloads_of(file)
    ]
    for kind, url in found:
        if url:
            yield ExternalReference(type=kind, url=XsUri(url))


def _properties(values: Mapping[str, str]) -> list[Property]:
    from cyclonedx.model import Property  # noqa: PLC0415

    return [Property(name=name, value=value) for name, value in values.items()]


def _card(model: Model) -> dict[str, Any]:
    known = {"task": model.task, "modelArchitecture": model.architecture}
    said = {key: value for key, value in known.items() if value != UNKNOWN}
    numbers = [{"name": name, "value": str(value)} for name, value in card_of(model).items()]
    return {"modelParameters": said} | ({"properties": numbers} if numbers else {})
