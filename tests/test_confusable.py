"""Names that look like another name: told apart by a program where people cannot."""

from __future__ import annotations

import pytest

from weightpkg.confusable import check_distinct, lookalike, skeleton, strange_letters
from weightpkg.errors import NamespaceNotFoundError, RequirementError, TrustError
from weightpkg.requirement import NormalizedName, Requirement, is_name
from weightpkg.resolve import resolve

PLAIN = {
    "acrne": "acme", "acm3": None, "paypa1": "paypal", "paypai": "paypal", "rnistral": "mistral",
    "mistra1": "mistral", "mlstral": "mistral", "g00gle": "google", "goog1e": "google", "gooqle": None,
    "micr0soft": "microsoft", "rnicrosoft": "microsoft", "microsoftt": None, "vveights": "weights",
    "we1ghts": "weights", "nv1dia": "nvidia", "nvldia": "nvidia", "n-vidia": "nvidia", "0penai": "openai",
    "opena1": "openai", "openal": "openai", "huggingface": "hugging-face", "hugg1ngface": "hugging-face",
    "5tability": "stability", "stabi1ity": "stability", "clata": "data", "cleepseek": "deepseek",
}  # fmt: skip
STRANGE = {
    "\u0430cme": "acme", "ac\u043ce": "acme", "acm\u0435": "acme", "\u0430\u0441m\u0435": "acme", "a\u03f2me": "acme",
    "\uff41\uff43\uff4d\uff45": "acme", "acm\u00e9": "acme", "acm\u212e": "acme", "a\u0441me": "acme", "\u0251cme": "acme",
    "g\u043e\u043egle": "google", "go\u03bfgle": "google", "goo\u0261le": "google", "g\u0585\u0585gle": "google",
    "\u0440aypal": "paypal", "pa\u0443pal": "paypal", "p\u0430ypal": "paypal", "paypa\u04cf": "paypal",
    "\u03bdidia": "vidia", "\u0475idia": "vidia", "v\u0456dia": "vidia", "v\u0131dia": "vidia", "vid\u0456a": "vidia",
    "q\u0435n": "qen", "\u051ben": "qen", "q\u0454n": "qen", "mi\u0455tral": "mistral", "m\u0456stral": "mistral",
    "mis\u0442ral": "mistral", "mist\u0433al": "mistral", "\u0445ai": "xai", "\u03c7ai": "xai", "x\u0430i": "xai",
    "p\u04bb\u0456": "phi", "\u03c1hi": "phi", "acme\u200b": "acme", "ac\u00adme": "acme", "a\u2010cme": "acme",
}  # fmt: skip


def test_there_are_fifty() -> None:
    assert len([name for name in PLAIN if PLAIN[name]]) + len(STRANGE) >= 50


@pytest.mark.parametrize("name", PLAIN)
def test_plain_letters_that_look_alike(name: str) -> None:
    known = [other for other in PLAIN.values() if other]
    assert lookalike(name, known) == PLAIN[name]


@pytest.mark.parametrize("name", STRANGE, ids=range(len(STRANGE)))
def test_letters_of_other_scripts_are_no_name_and_known_for_what_they_imitate(name: str) -> None:
    assert not is_name(name)
    assert lookalike(name, [STRANGE[name]]) == STRANGE[name]
    with pytest.raises(RequirementError) as caught:
        Requirement.parse(f"{name}/tiny")
    assert strange_letters(name) in caught.value.message
    assert "U+" in caught.value.message


@pytest.mark.parametrize("name", [name for name in PLAIN if PLAIN[name]])
def test_a_lookalike_is_not_taken_for_the_namespace(name: str) -> None:
    owned = NormalizedName(str(PLAIN[name]))
    with pytest.raises(NamespaceNotFoundError) as caught:
        resolve(Requirement.parse(f"{name}/tiny"), {}, namespaces={owned: {}})  # type: ignore[arg-type,dict-item]
    assert f"it looks like `{owned}`, and is not" in caught.value.message
    with pytest.raises(TrustError, match=f"could be taken for `{owned}`"):
        check_distinct([owned, name])


def test_a_name_is_not_taken_for_itself() -> None:
    assert lookalike("acme", ["acme"]) is None
    assert skeleton("acme") != skeleton("acne")
    check_distinct(["default", "acme", "bigco"])
