"""Chat templates: what publishers write works, what an attacker writes ends in one clear error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from weightpkg.errors import TemplateError
from weightpkg.run import template as template_module
from weightpkg.run.template import MAX_TEMPLATE_SIZE, ChatTemplate

Render = Callable[[str], str]
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def render() -> Iterator[Render]:
    """Render one template for one user message."""
    started: list[ChatTemplate] = []

    def render_once(source: str) -> str:
        started.append(ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}))
        return started[-1].render(MESSAGES)

    yield render_once
    for template in started:
        template.close()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param("{{ messages[0]['content'] }}", "hi", id="message"),
        pytest.param("{{ bos_token }}{{ messages[0].role }}", "<s>user", id="special-token"),
        pytest.param("{% if add_generation_prompt %}A:{% endif %}", "A:", id="generation-prompt"),
        pytest.param(
            "{% for m in messages %}\n  x\n{% endfor %}", "  x\n", id="blocks-are-trimmed"
        ),
        pytest.param("{{ {'é': 1} | tojson }}", '{"é": 1}', id="tojson-keeps-characters"),
        pytest.param("{% generation %}a{% endgeneration %}", "a", id="generation-tag"),
        pytest.param("{% for i in [1, 2] %}{% break %}{% endfor %}b", "b", id="loop-controls"),
        pytest.param("{{ '<b>' }}", "<b>", id="no-html-escaping"),
    ],
)
def test_renders_what_publishers_write(render: Render, source: str, expected: str) -> None:
    assert render(source) == expected


ENDLESS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        pytest.param(ENDLESS, "more than", id="nested-loops"),
        pytest.param("{{ 'a' * 10 ** 10 }}", "MemoryError", id="long-string"),
        pytest.param("{{ '%1000000000d' | format(1) }}", "MemoryError", id="wide-format"),
        pytest.param("{% for i in range(99999) %}{{ 'a' * 99 }}{% endfor %}", "longer", id="flood"),
        pytest.param("{{ ''.__class__.__mro__ }}", "unsafe", id="class-of-a-string"),
        pytest.param("{{ messages.append(1) }}", "unsafe", id="changing-the-messages"),
        pytest.param("{{ cycler.__init__.__globals__ }}", "unsafe", id="globals"),
        pytest.param("{% include 'secret' %}", "no loader", id="files"),
        pytest.param("{% if %}", "expression", id="syntax"),
        pytest.param("{{ 1 / 0 }}", "division", id="division-by-zero"),
        pytest.param("{{ raise_exception('no system role') }}", "no system role", id="refusal"),
    ],
)  # fmt: skip
def test_refuses_what_does_harm(
    render: Render, monkeypatch: pytest.MonkeyPatch, source: str, reason: str
) -> None:
    monkeypatch.setattr(template_module, "RENDER_TIMEOUT_S", 1.0)
    with pytest.raises(TemplateError, match=reason) as caught:
        render(source)
    assert "--raw" in (caught.value.hint or "")


def test_renders_again_after_a_template_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "RENDER_TIMEOUT_S", 0.5)
    source = "{% if messages[0].content == 'loop' %}" + ENDLESS + "{% else %}fine{% endif %}"
    template = ChatTemplate(source, {})
    with pytest.raises(TemplateError):
        template.render([{"role": "user", "content": "loop"}])
    assert template.render(MESSAGES) == "fine"
    template.close()


def test_does_not_import_from_the_current_directory(
    render: Render, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "jinja2.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    assert render("safe") == "safe"


def test_refuses_a_template_that_is_too_long() -> None:
    with pytest.raises(TemplateError, match="longer than"):
        ChatTemplate("a" * (MAX_TEMPLATE_SIZE + 1), {})


def test_special_characters_survive_the_way_to_the_process_and_back() -> None:
    text = "line\nbreak \x00 \u2028 \U0001f600 " + json.dumps("quotes")
    template = ChatTemplate("{{ messages[0].content }}", {})
    assert template.render([{"role": "user", "content": text}]) == text
    template.close()
