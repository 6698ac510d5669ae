"""The page for chatting, used in Debian's Chromium against servers of this machine."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from chromium import launched
from factories import tiny_llama
from test_network import command
from test_serve import Server, serving
from weightpkg.convert.pipeline import convert
from weightpkg.digest import Digest
from weightpkg.progress import Silence

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Route, ViewportSize

pytestmark = [pytest.mark.network, pytest.mark.timeout(600)]

ASKED = "**/v1/chat/completions"
MARKUP = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
PHONE: ViewportSize = {"width": 360, "height": 640}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all processes of the tests share."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    path = shared / "browser"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture(scope="module")
def browser(cache: Path) -> Iterator[Browser]:
    with launched(cache) as running:
        yield running


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models: `long` answers at length, `short` has hardly any room."""
    base = tmp_path_factory.mktemp("models")
    for name, length in (("long", 8192), ("short", 64)):
        source = tiny_llama(base / f"{name}.gguf", context_length=length)
        (base / name).mkdir()
        convert(source, Digest("sha256", 64 * "0"), base / name, Silence())
    return base


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    names = [str(models / name) for name in ("long", "short")]
    with serving(tmp_path_factory.mktemp("home"), *names, "--rows", "1") as running:
        yield running


class Seen:
    """A page, and all that it said and asked for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", self._note_error)
        page.on("console", self._note)

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)

    def _note_error(self, error: Error) -> None:
        self.complaints.append(error.message)

    def ask(self, text: str) -> None:
        """Say something, by the keyboard alone."""
        prompt = self.page.locator("#prompt")
        expect(prompt).to_be_focused(
            timeout=30_000
        )  # a browser that has just begun may take a while
        self.page.keyboard.type(text)
        expect(prompt).to_have_value(re.compile(re.escape(text) + "$"))
        with self.page.expect_request(ASKED):
            self.page.keyboard.press("Enter")

    def count(self, kind: str) -> int:
        return self.page.locator(f".message.{kind}").count()

    @property
    def answer(self) -> Any:
        return self.page.locator(".message.assistant").last

    def until_answered(self) -> None:
        expect(self.page.locator("#send")).to_have_text("Send", timeout=60_000)


@pytest.fixture
def seen(browser: Browser, server: Server) -> Iterator[Seen]:
    context = browser.new_context()
    found = Seen(context.new_page())
    found.page.goto(server.url)
    expect(found.page.locator("#model option")).to_have_count(2)
    yield found
    context.close()


def changed(page: Page, **named: Any) -> list[dict[str, Any]]:
    """Have what the page asks said otherwise to the server; return what it asked."""
    asked: list[dict[str, Any]] = []

    def change(route: Route) -> None:
        body = json.loads(route.request.post_data or "")
        asked.append(body)
        route.continue_(post_data=json.dumps({**body, **named}))

    page.route(ASKED, change)
    return asked


def stand_in(page: Page, *texts: str, is_ended: bool = True) -> None:
    """Have pieces of an answer given that no model here can be made to say."""
    deltas = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    lines = [f"data: {json.dumps(delta)}\n\n" for delta in deltas] + ["data: [DONE]\n\n"] * is_ended
    headers = {"Content-Type": "text/event-stream"}
    page.route(ASKED, lambda route: route.fulfill(headers=headers, body="".join(lines)))


def test_it_asks_this_server_alone_and_complains_of_nothing(seen: Seen, server: Server) -> None:
    changed(seen.page, max_tokens=5)
    seen.ask("Hello")
    seen.until_answered()
    assert {url.removeprefix(server.url) for url in seen.requests if not url.startswith("data:")} == {
        "/",
        "/v1/models",
        "/v1/chat/completions",
    }  # fmt: skip
    assert seen.complaints == []
    assert seen.page.title() == "weightpkg"


def test_its_policy_lets_no_other_script_run_and_no_other_site_be_asked(seen: Seen) -> None:
    script = "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))"
    seen.page.evaluate(script)
    assert seen.page.evaluate("window.ran") is None
    asked = "fetch('https://example.org').then(() => 'answered', () => 'refused')"
    assert seen.page.evaluate(asked) == "refused"
    assert sum("Content Security Policy" in text for text in seen.complaints) >= 2


def test_an_answer_grows_and_can_be_stopped(seen: Seen, server: Server) -> None:
    asked = changed(seen.page, logit_bias={"2": -100})
    seen.ask("Hello")
    expect(seen.answer).not_to_be_empty()
    first = len(seen.answer.inner_text())
    seen.page.wait_for_function(f"document.querySelector('.assistant').innerText.length > {first}")
    expect(seen.page.locator("#send")).to_have_text("Stop")
    seen.page.locator("#send").click()
    seen.until_answered()
    text = seen.answer.inner_text()
    # the only row is free again
    answer = server.openai.chat.completions.create(model="long", messages=[{"role": "user", "content": "x"}], max_tokens=3, timeout=10)  # fmt: skip
    assert answer.usage is not None
    assert seen.answer.inner_text() == text
    assert seen.page.locator(".note").inner_text() == "Stopped."
    assert asked[0]["stream"] is True


def test_escape_stops_and_enter_does_not(seen: Seen) -> None:
    changed(seen.page, logit_bias={"2": -100})
    seen.ask("Hello")
    expect(seen.answer).not_to_be_empty()
    seen.page.keyboard.type("meanwhile")
    seen.page.keyboard.press("Enter")
    expect(seen.page.locator("#send")).to_have_text("Stop")
    expect(seen.page.locator("#prompt")).to_have_value("meanwhile")
    seen.page.keyboard.press("Escape")
    seen.until_answered()


def test_a_second_turn_says_all_that_was_said(seen: Seen) -> None:
    asked = changed(seen.page, max_tokens=4, logit_bias={"2": -100})
    seen.ask("First")
    seen.until_answered()
    seen.page.keyboard.type("two")
    seen.page.keyboard.press("Shift+Enter")
    seen.ask("lines")
    seen.until_answered()
    roles = [(message["role"], message["content"]) for message in asked[1]["messages"]]
    assert roles[0] == ("user", "First")
    assert roles[1][0] == "assistant"
    assert roles[1][1]
    assert roles[2:] == [("user", "two\nlines")]
    assert "no room left" in seen.page.locator(".note").last.inner_text()
    assert "4 tokens" in seen.page.locator("#speed").inner_text()


def test_a_new_chat_has_no_history_even_while_an_answer_comes(seen: Seen) -> None:
    asked = changed(seen.page, logit_bias={"2": -100})
    seen.ask("First")
    expect(seen.answer).not_to_be_empty()
    seen.page.locator("#new").click()
    seen.until_answered()
    assert seen.page.locator(".message").count() == 0
    seen.ask("Again")
    expect(seen.answer).not_to_be_empty()
    assert asked[1]["messages"] == [{"role": "user", "content": "Again"}]


def test_the_model_that_was_picked_is_asked_and_its_error_is_shown(seen: Seen) -> None:
    asked = changed(seen.page)
    seen.page.locator("#model").select_option("short")
    seen.page.locator("#prompt").focus()
    seen.ask("word " * 40)
    seen.until_answered()
    assert asked[0]["model"] == "short"
    error = seen.page.locator(".message.error").inner_text()
    assert "tokens, and the model's context 64. Say less" in error
    assert (seen.count("user"), seen.count("assistant")) == (0, 0)
    expect(seen.page.locator("#prompt")).to_have_value(("word " * 40).strip())


def test_an_answer_is_text_and_never_markup(seen: Seen) -> None:
    stand_in(seen.page, "Look: ", MARKUP, f"\n```html\n{MARKUP}\n``", f"`\n**{MARKUP}** `{MARKUP}`")
    seen.ask(MARKUP)
    seen.until_answered()
    assert seen.page.locator(".message.user").inner_text() == MARKUP
    assert seen.answer.inner_text().count(MARKUP) == 4
    assert seen.answer.locator("pre code").inner_text() == MARKUP
    assert seen.answer.locator("strong").inner_text() == MARKUP
    assert seen.page.locator("#log img, #log script").count() == 0
    assert seen.page.title() == "weightpkg"
    assert seen.complaints == []


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"status": 500, "body": "<h1>no</h1>"}, "HTTP 500"),
        ({"status": 429, "json": {"error": {"message": "too many requests are waiting"}}}, "too many"),
        ({"body": 'data: {"error": {"message": "the model is tired"}}\n\n'}, "the model is tired"),
        ({"body": ""}, "cut off"),
    ],
    ids=["no JSON", "too many", "in the stream", "no end"],
)  # fmt: skip
def test_errors_are_told_in_words(seen: Seen, answer: dict[str, Any], words: str) -> None:
    seen.page.route(ASKED, lambda route: route.fulfill(**answer))
    seen.ask("Hello")
    expect(seen.page.locator(".message.error")).to_contain_text(words)
    seen.until_answered()


def test_a_server_that_ends_is_told_of_and_what_it_said_stays(seen: Seen) -> None:
    stand_in(seen.page, "Half of", is_ended=False)
    seen.ask("Hello")
    expect(seen.page.locator(".message.error")).to_contain_text("cut off")
    assert seen.answer.inner_text() == "Half of"
    seen.page.unroute(ASKED)
    seen.page.route(ASKED, lambda route: route.abort("connectionrefused"))
    seen.ask("Again")
    expect(seen.page.locator(".message.error").last).to_contain_text("cannot be reached")


def test_without_a_model_to_chat_with_it_says_so(browser: Browser, server: Server) -> None:
    page = browser.new_page()
    vectors = {"id": "vectors", "task": "feature-extraction"}
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": [vectors]}))
    page.goto(server.url)
    log = page.locator("#log")
    expect(log).to_have_attribute("data-empty", "There is no model to chat with: weightpkg install NAME")  # fmt: skip
    expect(page.locator("#model option")).to_have_count(0)
    page.close()


def test_a_key_is_asked_for_and_used(browser: Browser, models: Path, tmp_path: Path) -> None:
    key = "k" * 20
    with serving(tmp_path, str(models / "long"), WEIGHTPKG_API_KEY=key) as server:
        page = browser.new_page()
        page.goto(server.url)
        field = page.get_by_label("API key")
        expect(field).to_be_focused()
        expect(page.locator(".error")).to_contain_text("key is missing")
        page.keyboard.type("wrong key, surely")
        page.keyboard.press("Enter")
        expect(page.locator(".error")).to_have_count(1)
        field.fill(key)
        page.keyboard.press("Enter")
        expect(page.locator("#model option")).to_have_text(["long"])
        expect(field).to_be_hidden()
        expect(page.locator(".error")).to_have_count(0)
        seen = Seen(page)
        changed(page, max_tokens=3, logit_bias={"2": -100})
        seen.ask("Hello")
        seen.until_answered()
        assert seen.answer.inner_text()
        assert key not in page.content()
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(
    browser: Browser, server: Server, scheme: Any, tmp_path: Path
) -> None:
    context = browser.new_context(viewport=PHONE, color_scheme=scheme)
    seen = Seen(context.new_page())
    seen.page.goto(server.url)
    code = "x" * 300
    stand_in(seen.page, f"{code}\n```\n{code}\n```\n" + "many words " * 200)
    seen.ask("y" * 200)
    seen.until_answered()
    wide = "document.documentElement.scrollWidth"
    assert seen.page.evaluate(wide) == PHONE["width"]
    for part in ("#model", "#new", "#prompt", "#send"):
        box = seen.page.locator(part).bounding_box()
        assert box is not None
        assert 0 <= box["x"] < box["x"] + box["width"] <= PHONE["width"]
        assert 0 <= box["y"] < box["y"] + box["height"] <= PHONE["height"]
    assert contrast(seen.page, ".message.assistant") >= 7
    assert contrast(seen.page, ".message.user") >= 7
    context.close()


def contrast(page: Page, selector: str) -> float:
    """The ratio of a text's brightness and its ground's: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio."""
    script = """box => {
      const pixel = color => {
        const brush = new OffscreenCanvas(1, 1).getContext("2d");
        brush.fillStyle = color;
        brush.fillRect(0, 0, 1, 1);
        return [...brush.getImageData(0, 0, 1, 1).data];
      };
      const own = pixel(getComputedStyle(box).backgroundColor);
      const ground = own[3] ? own : pixel(getComputedStyle(document.body).backgroundColor);
      return [pixel(getComputedStyle(box).color), ground];
    }"""
    text, ground = page.locator(selector).first.evaluate(script)
    light, dark = sorted((brightness(text), brightness(ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def brightness(pixel: Sequence[int]) -> float:
    parts = [value / 255 for value in pixel[:3]]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_a_real_model_answers(browser: Browser, tmp_path: Path) -> None:
    done = command(tmp_path, "install", "smollm2-135m-q4")
    assert done.returncode == 0, done.stderr
    with serving(tmp_path) as server:
        page = browser.new_page()
        page.goto(server.url)
        expect(page.locator("#model option")).to_have_text(["smollm2-135m-q4"])
        seen = Seen(page)
        asked = changed(page, max_tokens=24, temperature=0)
        seen.ask("Why is the sky blue?")
        seen.until_answered()
        assert "sky" in seen.answer.inner_text()
        seen.ask("Say it in one word.")
        seen.until_answered()
        assert len(asked[1]["messages"]) == 3
        assert seen.complaints == []
        page.close()
