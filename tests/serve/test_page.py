"""The page in a real browser: what people do, in their languages, and that nothing leaves this machine."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from contextlib import ExitStack, contextmanager
from pathlib import Path

import PIL.Image
import pytest

import mmembed
from mmembed.demo import DATA
from mmembed.search.index import Index
from mmembed.serve import files
from mmembed.serve.app import build_app

from .served import served

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
needs_browser = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]
WORDS = Path(files.__file__).with_name("page")
SHOWN = ("all", "image", "text")
SPOKEN = ("en", "zh", "es", "ar", "hi", "fr", "ja", "de")
EVIL = "<img src=x onerror=window.hurt=1><script>window.hurt=1</script>\"'><svg onload=window.hurt=1>"
ASKED = {  # what is asked, and a pictograph that answers it
    "cat": "cat", "Katze": "cat", "猫": "cat", "gato": "cat", "bicycle": "bicycle", "自行车": "bicycle", "banane": "banana",
    "ゾウ": "elephant",
}  # fmt: skip


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    pico = mmembed.load()
    index = Index.create(tmp_path_factory.mktemp("page") / "index", pico)
    index.add_folder(DATA / "pictographs")
    texts = json.loads((DATA / "texts.json").read_text(encoding="utf-8"))
    index.add([EVIL, *(row["text"] for row in texts)])
    with served(build_app(pico, index=index)) as base:
        yield base


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def _watched(browser, url: str, **settings):
    """A page whose every request and error is watched: at the end there was none beyond this server, and none.

    What a browser itself tells of an answer that a test provokes arrives when it likes, so it is named in `expected`.
    """
    context = browser.new_context(**{"locale": "en-US", "viewport": {"width": 1100, "height": 900}, **settings})
    opened = context.new_page()
    opened.expected = []
    wrong = []
    opened.on("console", lambda line: wrong.append(line.text) if line.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda sent: None if _here(sent.url, url) else wrong.append(f"asked {sent.url}"))
    yield opened
    context.close()
    assert [line for line in wrong if not any(each in line for each in opened.expected)] == []


@pytest.fixture
def page(browser, url):
    with _watched(browser, url) as opened:
        opened.goto(url)
        _until(opened, "document.querySelector('#model').textContent !== ''")
        yield opened


def _until(page, truth: str, given: object = None) -> None:
    """Wait for an expression, or function of `given`, to hold. Playwright's own way evaluates text, which the policy bars."""
    for _ in range(500):
        if page.evaluate(truth, given):
            return
        page.wait_for_timeout(20)
    pytest.fail(f"never true: {truth}")


def _here(address: str, base: str) -> bool:
    return address.startswith((base, "blob:" + base, "data:"))


def _ask(page, text: str) -> list[str]:
    page.fill("#text", text)
    page.press("#text", "Enter")
    _until(page, "t => new URLSearchParams(location.search).get('q') === t", text)
    page.wait_for_selector(".card")
    _until(page, "document.querySelector('#message').textContent !== 'Searching …'")
    return page.locator(".card .label").all_text_contents()


def _turn(page, tab: str) -> None:
    page.click(f"[data-tab={tab}]")
    _until(page, "document.querySelector('#message').textContent !== 'Searching …'")


def test_every_language_of_the_page_has_every_word():
    spoken = {name: json.loads((WORDS / f"words.{name}.json").read_text(encoding="utf-8")) for name in SPOKEN}
    assert {path.name for path in WORDS.glob("words.*.json")} == {f"words.{name}.json" for name in SPOKEN}
    for words in spoken.values():
        assert list(words) == list(spoken["en"])
        assert all(words.values())
    html, script = (WORDS / "index.html").read_text(encoding="utf-8"), (WORDS / "page.js").read_text(encoding="utf-8")
    used = {
        word for word in spoken["en"] if f'"{word}"' in html or f"words.{word}" in script or word.startswith("kind_")
    }
    assert used == set(spoken["en"])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_stand_out_from_what_is_behind_them(scheme):
    css = (WORDS / "page.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--(\w+): (#\w+);", line)) for line in css.splitlines()[:2])
    colours = {name: _luminance(value) for name, value in (light if scheme == "light" else dark).items()}
    pairs = [(a, b) for a in ("ink", "soft", "mark", "other") for b in ("ground", "card")]
    for front, back in pairs:
        low, high = sorted((colours[front], colours[back]))
        assert (high + 0.05) / (low + 0.05) >= 4.5, f"{front} on {back}"  # WCAG 2.2, AA


def _luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb, by WCAG."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    linear = [
        v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
        for v in (int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4))
    ]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


class TestInABrowser:
    pytestmark = needs_browser

    @pytest.mark.parametrize(("text", "name"), ASKED.items())
    def test_a_question_in_many_languages_finds_its_picture(self, page, text, name):
        _ask(page, text)
        _turn(page, "image")
        assert name in page.locator(".card .label").first.text_content()

    def test_a_tab_shows_the_best_of_its_own_and_counts_them(self, page, url):
        _ask(page, "cat")
        shown = {}
        for tab, kind in (("image", "picture"), ("text", "text"), ("all", None)):
            _turn(page, tab)
            told = page.locator(".card .told span:first-child").all_text_contents()
            assert kind is None or set(told) == {kind}
            assert page.locator("#tabs b").all_text_contents() == ["60" if at == tab else "" for at in SHOWN]
            shown[tab] = page.locator(".card .label").all_text_contents()
        assert len(shown["all"]) == len(shown["image"]) == len(shown["text"]) == 60
        page.uncheck("#balanced")
        _until(page, "new URLSearchParams(location.search).has('raw')")
        _turn(page, "image")
        assert page.locator(".card .label").all_text_contents() == shown["image"]

    def test_raw_and_balanced_differ(self, page):
        balanced = _ask(page, "a cat")
        page.uncheck("#balanced")
        _until(page, "new URLSearchParams(location.search).has('raw')")
        _until(page, "document.querySelector('#message').textContent !== 'Searching …'")
        _until(
            page,
            "b => [...document.querySelectorAll('.card .label')].map(c => c.textContent).join() !== b.join()",
            balanced,
        )

    def test_a_picture_is_picked_dropped_with_words_and_taken_away(self, page):
        page.set_input_files("#file", DATA / "pictographs" / "cat.png")
        page.wait_for_selector(".card")
        page.wait_for_selector("#picked:not([hidden])")
        assert "cat" in page.locator(".card .label").first.text_content()
        page.click("#unpick")
        _until(page, "document.querySelectorAll('.card').length === 0")
        data = base64.b64encode((DATA / "pictographs" / "dog.png").read_bytes()).decode()
        page.evaluate(
            """data => { const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
            const moved = new DataTransfer(); moved.items.add(new File([bytes], 'dog.png', { type: 'image/png' }));
            dispatchEvent(new DragEvent('drop', { dataTransfer: moved, cancelable: true })); }""",
            data,
        )
        page.wait_for_selector(".card")
        assert "dog" in page.locator(".card .label").first.text_content()

    def test_more_like_this_begins_with_itself_and_back_goes_back(self, page):
        before = _ask(page, "bicycle")
        page.locator(".card .acts button").first.click()
        _until(page, "new URLSearchParams(location.search).has('like')")
        _until(page, "document.querySelector('.card .told span:last-child').textContent === '1.000'")
        page.go_back()
        _until(page, "document.querySelector('#text').value === 'bicycle'")
        _until(page, "t => document.querySelector('.card .label')?.textContent === t", before[0])

    def test_the_address_holds_the_question(self, page, url):
        page.goto(f"{url}/?q=banana&tab=image&raw=1")
        page.wait_for_selector(".card")
        assert page.input_value("#text") == "banana"
        assert not page.is_checked("#balanced")
        assert page.get_attribute("[data-tab=image]", "aria-selected") == "true"

    def test_why_shows_a_heat_and_says_it_in_words(self, page):
        _ask(page, "cat")
        _turn(page, "image")
        page.locator(".card .acts button", has_text="Why?").first.click()
        page.wait_for_selector("#why[open]")
        assert page.locator("#why-picture canvas").count() == 1
        assert "Strongest" in page.text_content("#why-said")
        page.keyboard.press("Escape")
        assert page.locator("#why[open]").count() == 0
        _turn(page, "text")
        page.locator(".card .acts button", has_text="Why?").first.click()
        page.wait_for_selector("#why[open] #why-text span")

    def test_the_map_shows_and_finds(self, page):
        _ask(page, "cat")
        page.click("#show-map")
        page.wait_for_selector("#map:not([hidden])")
        _until(
            page,
            """() => { const shown = document.querySelector('#map canvas');
            const copy = Object.assign(document.createElement('canvas'), { width: shown.width, height: shown.height });
            const pen = copy.getContext('2d', { willReadFrequently: true });
            pen.drawImage(shown, 0, 0);
            return pen.getImageData(0, 0, copy.width, copy.height).data.some(v => v > 0); }""",
        )
        canvas = page.locator("#map canvas")
        box = canvas.bounding_box()
        legend = page.text_content("#spot")
        assert "squares" in legend
        for step in range(1, 40):
            canvas.hover(position={"x": box["width"] * step / 40, "y": box["height"] / 2})
            if page.text_content("#spot") != legend:
                break
        assert page.text_content("#spot") != legend

    @pytest.mark.parametrize("language", SPOKEN)
    def test_it_speaks(self, page, language):
        page.select_option("#language", language)
        words = json.loads((WORDS / f"words.{language}.json").read_text(encoding="utf-8"))
        _until(page, "l => document.documentElement.lang === l", language)
        assert page.text_content("#ask [type=submit]") == words["search"]
        assert page.evaluate("document.documentElement.dir") == ("rtl" if language == "ar" else "ltr")

    def test_arabic_is_laid_out_from_the_right(self, page):
        page.select_option("#language", "ar")
        _until(page, "document.documentElement.dir === 'rtl'")
        button, text = page.locator("#ask [type=submit]").bounding_box(), page.locator("#text").bounding_box()
        assert button["x"] < text["x"]

    def test_what_a_stranger_wrote_is_shown_and_never_run(self, page):
        labels = _ask(page, EVIL)
        assert EVIL in labels
        page.wait_for_timeout(200)
        assert page.evaluate("window.hurt") is None

    def test_a_file_that_is_no_picture_or_too_large_is_refused_here(self, page):
        page.set_input_files("#file", {"name": "a.svg", "mimeType": "image/svg+xml", "buffer": b"<svg/>"})
        assert page.text_content("#message") == "a.svg · This file is no picture that can be read."
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"x" * (12 * 2**20 + 1)})
        assert page.text_content("#message") == "a.png · This picture is larger than 12 MiB."
        assert not page.is_visible("#picked")

    @pytest.mark.parametrize("language", SPOKEN)
    def test_a_file_that_the_server_cannot_read_is_named_and_dropped(self, page, language):
        page.expected += ["400 (Bad Request)", "ERR_INVALID"]
        page.select_option("#language", language)
        _until(page, "l => document.documentElement.lang === l", language)
        words = json.loads((WORDS / f"words.{language}.json").read_text(encoding="utf-8"))
        page.set_input_files("#file", {"name": "نص notes.png", "mimeType": "image/png", "buffer": b"no picture at all"})
        _until(page, "document.querySelector('#message').classList.contains('bad')")
        assert page.text_content("#message") == f"نص notes.png · {words['not_a_picture']}"
        assert not any(page.is_visible(part) for part in ("#picked", "#named", "#unpick"))
        assert page.is_visible("#examples")
        page.fill("#text", "cat")
        page.press("#text", "Enter")
        page.wait_for_selector(".card")
        assert page.text_content("#message") == words["found"].replace("{}", "60")
        page.go_back()
        _until(page, "document.querySelectorAll('.card').length === 0")
        assert page.text_content("#message") == ""

    def test_a_picture_that_only_the_server_can_read_stands_by_its_name(self, page):
        data = io.BytesIO()
        PIL.Image.open(DATA / "pictographs" / "cat.png").save(data, "TIFF")
        file = {"name": "a very long name of a cat.tiff", "mimeType": "image/tiff", "buffer": data.getvalue()}
        page.expected += ["ERR_INVALID"]
        page.set_input_files("#file", file)
        page.wait_for_selector(".card")
        page.wait_for_selector("#named:not([hidden])")
        assert "cat" in page.locator(".card .label").first.text_content()
        assert page.text_content("#named") == file["name"]
        assert not page.is_visible("#picked")
        page.set_input_files("#file", DATA / "pictographs" / "dog.png")
        page.wait_for_selector("#picked:not([hidden])")
        assert not page.is_visible("#named")
        assert page.get_attribute("#picked", "alt") == "dog.png"

    def test_only_the_keyboard(self, page):
        page.keyboard.press("/")
        page.keyboard.type("elephant")
        page.keyboard.press("Enter")
        page.wait_for_selector(".card")
        _until(page, "document.querySelector('#message').textContent !== 'Searching …'")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        second = page.locator(".card").nth(1)
        assert page.evaluate("document.activeElement.dataset.id") == second.get_attribute("data-id")
        page.keyboard.press("Enter")
        _until(page, "new URLSearchParams(location.search).has('like')")

    def test_skip_goes_to_the_results_takes_none_away_and_their_number_is_told(self, page):
        labels = _ask(page, "cat")
        assert page.text_content("#message") == "Hits: 60"
        page.focus(".skip")
        page.keyboard.press("Enter")
        page.wait_for_timeout(100)
        assert page.evaluate("document.activeElement.id") == "results"
        assert page.locator(".card .label").all_text_contents() == labels
        assert page.input_value("#text") == "cat"

    def test_keys_of_the_browser_and_of_who_composes_move_nothing(self, page):
        _ask(page, "cat")
        press = """([where, key, more]) => { const it = document.querySelector(where); it.focus();
            it.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true, ...more }));
            return document.activeElement === it; }"""
        for where, key, more in (
            ("#text", "ArrowDown", {"isComposing": True}),
            (".card:nth-child(2)", "ArrowLeft", {"altKey": True}),
            (".card:nth-child(2)", "ArrowRight", {"metaKey": True}),
        ):
            assert page.evaluate(press, [where, key, more])
            assert not page.evaluate(press, [where, key, {}])

    def test_what_is_clicked_is_not_undone_by_what_was_typed_a_moment_before(self, page):
        _ask(page, "bicycle")
        page.press("#text", "s")
        page.locator(".card .acts button").first.click()
        _until(page, "new URLSearchParams(location.search).has('like')")
        page.wait_for_timeout(500)
        assert "like=" in page.url
        assert page.locator(".card").count() == 60

    def test_what_was_typed_a_moment_before_a_click_is_asked_with_it(self, page):
        _ask(page, "bicycle")
        page.press("#text", "s")
        page.locator("[role=tab][data-tab=image]").click()
        _until(page, "new URLSearchParams(location.search).has('tab')")
        asked = page.evaluate(
            "new URLSearchParams(location.search).get('q') + ' ' + document.querySelector('#text').value"
        )
        assert asked == "bicycles bicycles"

    def test_a_picture_is_that_of_the_item_that_has_its_id_now(self, browser, tiny, tmp_path):
        index = Index.create(tmp_path / "index", tiny)
        with served(build_app(tiny, index=index)) as base, _watched(browser, base) as page:
            page.goto(base)
            for width in (30, 50):
                index.add([PIL.Image.new("RGB", (width, 40), (200, width, 0))], ids=["it"])
                _ask(page, f"now {width}")
                _until(page, "w => document.querySelector('.card img')?.naturalWidth === w", width)

    def test_no_search_in_the_middle_of_composing(self, page):
        asked: list[str] = []
        page.on("request", lambda sent: asked.append(sent.url) if sent.url.endswith("/search") else None)
        page.evaluate(
            """() => { const box = document.querySelector('#text'); box.value = 'ねk';
            box.dispatchEvent(new InputEvent('input', { isComposing: true })); }"""
        )
        page.wait_for_timeout(600)
        assert asked == []
        page.evaluate(
            "() => { document.querySelector('#text').dispatchEvent(new CompositionEvent('compositionend')); }"
        )
        page.wait_for_timeout(800)
        assert len(asked) == 1

    def test_a_phone_shows_all_without_scrolling_sideways(self, browser, url):
        with _watched(browser, url, viewport={"width": 360, "height": 740}, locale="de-DE") as page:
            page.goto(f"{url}/?q=cat")
            page.wait_for_selector(".card")
            assert page.evaluate("document.documentElement.lang") == "de"
            for language in SPOKEN:
                page.select_option("#language", language)
                _until(page, "l => document.documentElement.lang === l", language)
                assert page.evaluate("document.documentElement.scrollWidth") <= 360, language
            page.click("#show-map")
            page.wait_for_selector("#map:not([hidden])")
            assert page.evaluate("document.documentElement.scrollWidth") <= 360

    @pytest.mark.parametrize("width", [320, 360, 400, 480])
    def test_a_phone_keeps_what_is_asked_in_one_line(self, browser, url, width):
        with _watched(browser, url, viewport={"width": width, "height": 740}) as page:
            page.goto(url)
            _until(page, "document.querySelector('#model').textContent !== ''")
            page.set_input_files("#file", DATA / "pictographs" / "cat.png")
            page.wait_for_selector("#picked:not([hidden])")
            for language in SPOKEN:
                page.select_option("#language", language)
                _until(page, "l => document.documentElement.lang === l", language)
                boxes = page.evaluate(
                    "[...document.querySelectorAll('#box > *')].map(e => e.getBoundingClientRect().toJSON())"
                )
                middles = [box["top"] + box["height"] / 2 for box in boxes if box["width"]]
                assert max(middles) - min(middles) < 2, language
                assert page.evaluate("document.documentElement.scrollWidth") <= width, language
                assert page.locator("#text").bounding_box()["width"] >= 60, language

    def test_dark_is_dark(self, browser, url):
        with _watched(browser, url, color_scheme="dark") as page:
            page.goto(url)
            _until(page, "document.querySelector('#model').textContent !== ''")
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"

    def test_words_of_why_read_as_the_text_does(self, page):
        labels = _ask(page, "猫")
        _turn(page, "text")
        page.locator(".card .acts button", has_text="Why?").first.click()
        page.wait_for_selector("#why[open] #why-text span")
        shown = page.text_content("#why-text")
        assert shown in labels
        assert page.locator("#why-text span").count() > 1
        assert "".join(page.locator("#why-text span").all_text_contents()) == shown

    def test_arrows_go_along_rows_and_down_columns(self, page):
        _ask(page, "cat")
        page.focus("#text")
        page.keyboard.press("ArrowDown")
        where = "(() => { const b = document.activeElement.getBoundingClientRect(); return [b.left, b.top]; })()"
        first = page.evaluate(where)
        page.keyboard.press("ArrowDown")
        below = page.evaluate(where)
        assert below[0] == first[0]
        assert below[1] > first[1]
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowUp")
        assert page.evaluate("document.activeElement.id") == "text"

    def test_a_server_that_is_gone_is_told_and_a_key_is_asked_for(self, browser, tiny, tmp_path):
        index = Index.create(tmp_path / "index", tiny)
        index.add(["one", "two"])
        app = build_app(tiny, index=index, key="secret")
        with ExitStack() as stack, ExitStack() as running:
            base = running.enter_context(served(app))
            page = stack.enter_context(_watched(browser, base))
            page.expected += ["401 (Unauthorized)", "ERR_CONNECTION_REFUSED"]
            page.goto(base)
            page.wait_for_selector("#key:not([hidden])")
            page.fill("#key-text", "secret")
            page.press("#key-text", "Enter")
            _until(page, "document.querySelector('#model').textContent !== ''")
            _ask(page, "one")
            running.close()
            page.fill("#text", "two")
            page.press("#text", "Enter")
            _until(page, "document.querySelector('#message').textContent === 'The server cannot be reached.'")
