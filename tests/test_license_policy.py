"""License policies: expressions that can be satisfied, and those that cannot."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpkg.license_policy import LicensePolicy, identifiers, is_satisfied


@pytest.mark.parametrize(
    ("expression", "allowed", "denied", "refusal"),
    [
        ("MIT", None, (), None),
        ("MIT", ("mit",), (), None),
        ("MIT", ("Apache-2.0",), (), "`MIT` is not allowed"),
        ("MIT", None, ("Mit",), "`MIT` is denied"),
        ("MIT", ("MIT",), ("MIT",), "`MIT` is denied"),
        ("MIT", (), (), "`MIT` is not allowed"),
        ("MIT OR GPL-3.0-only", ("GPL-3.0-only",), (), None),
        ("MIT AND GPL-3.0-only", ("MIT",), (), "`GPL-3.0-only` is not allowed"),
        ("MIT AND (A OR B)", ("MIT", "B"), (), None),
        ("MIT AND A OR B", ("B",), (), None),  # AND binds closer
        ("B OR MIT AND A", ("A",), (), "`B` is not allowed and `MIT` is not allowed"),
        ("GPL-2.0-only WITH Classpath-exception-2.0", ("GPL-2.0-only",), (), None),
        (
            "GPL-2.0-only WITH Classpath-exception-2.0",
            ("GPL-2.0-only WITH Classpath-exception-2.0",),
            (),
            None,
        ),
        (
            "GPL-2.0-only WITH Classpath-exception-2.0",
            None,
            ("GPL-2.0-only",),
            "`GPL-2.0-only WITH Classpath-exception-2.0` is denied",
        ),
        ("LicenseRef-llama3", ("LicenseRef-llama3",), (), None),
        ("unknown", ("MIT",), (), "`unknown` is not allowed"),
    ],
)
def test_policies(
    expression: str, allowed: tuple[str, ...] | None, denied: tuple[str, ...], refusal: str | None
) -> None:
    assert LicensePolicy(allowed, denied).refusal(expression) == refusal


@pytest.mark.parametrize(
    "text", ["", "(", "()", "MIT OR", "AND MIT", "MIT MIT", "(MIT", "MIT)", "MIT WITH", "WITH x"]
)
def test_what_is_no_expression_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        is_satisfied(text, lambda _: True)


expressions = st.recursive(
    st.sampled_from("WXYZ"),
    lambda sides: st.builds("({} {} {})".format, sides, st.sampled_from(["AND", "OR"]), sides),
    max_leaves=6,
)


@given(expressions)
def test_satisfied_as_python_has_and_and_or(expression: str) -> None:
    python = expression.replace("AND", "and").replace("OR", "or")
    for values in itertools.product([True, False], repeat=4):
        given_ = dict(zip("WXYZ", values, strict=True))
        assert is_satisfied(expression, given_.__getitem__) == eval(python, {}, given_)  # noqa: S307
    assert set(identifiers(expression)) == set(expression) & set("WXYZ")
