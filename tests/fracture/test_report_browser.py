"""The report in a real browser: it opens from disk, asks for nothing, and its trace viewer works."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from fracture.report.page import outputs
from tests.fracture.browser import REQUIRED, Page, executable, opened
from tests.fracture.report_runs import Made, write_run

HOSTILE_ID = '"><img src=x onerror="pwned=1">&<b>'
HOSTILE = "</script><img src=x onerror=pwned=1><!-- \u2028 ${pwned=1} <script>pwned=1</script>"
MADE = Made(
    {"sham": 0.0, "half": 0.5, "gone": None},
    alone=(3,),
    unruled=(0,),
    crooked=(2,),
    lost=[("mistakes", "half", 4)],
    texts={5: {"id": HOSTILE_ID, "question": HOSTILE, "steps": [HOSTILE, "b"], "answer": HOSTILE}},
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("report")
    files = outputs(write_run(directory / "run", MADE))
    (directory / "report.html").write_bytes(files["report.html"])
    return directory / "report.html"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with opened(tmp_path_factory.mktemp("profile")) as page:
        yield page


def show(page: Page, report: Path, **address: str) -> None:
    page.open(report.as_uri() + (f"#{urlencode(address)}" if address else ""))


def steps(page: Page, column: int) -> list[tuple[str, str]]:
    script = (
        f"[...document.querySelectorAll('#viewer-out .reader')[{column}].querySelector('ol.chain').children]"
        ".map(item => [item.className, item.querySelector('.effect')?.textContent ?? ''])"
    )
    return [tuple(item) for item in page.run(script)]


def test_it_opens_from_disk_without_a_complaint_and_asks_for_nothing(page, report):
    show(page, report)
    assert page.complaints() == []
    assert [url.split(":")[0] for url in page.requests()] == ["file"] + ["data"] * page.run("document.images.length")
    assert page.run("document.getElementById('viewer-error').hidden")
    assert page.run("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


def test_nothing_could_be_loaded_from_elsewhere_if_a_text_asked_for_it(page, report):
    show(page, report)
    blocked = page.run(
        "new Promise(done => { document.addEventListener('securitypolicyviolation', e => done(e.effectiveDirective));"
        " const image = new Image(); image.src = 'https://example.org/x.png'; document.body.append(image); })"
    )
    assert blocked == "img-src"


def test_the_verdicts_are_seen_first(page, report):
    show(page, report)
    cards = page.run("[...document.querySelectorAll('.card')].map(c => [c.querySelector('h3').innerText, "
                     "c.querySelector('.verdict').innerText])")  # fmt: skip
    assert cards == [["sham", "attached"], ["half", "detached"], ["gone", "not scorable"]]
    assert page.run("document.querySelector('.card').getBoundingClientRect().top") < 500


def test_an_address_chooses_prompt_and_variant(page, report):
    show(page, report, prompt="p7", variant="half")
    assert page.text("#viewer-out h3") == "Prompt p7"
    assert page.run("[...document.querySelectorAll('#viewer-out h4')].map(h => h.innerText)") == ["base", "half"]
    assert page.run("document.getElementById('viewer-prompt').value") == "p7"
    assert page.text("#viewer-status") == "8 of 24"


def test_an_address_that_names_nothing_known_shows_the_first_prompt(page, report):
    show(page, report, prompt="nobody", variant="base")
    assert page.text("#viewer-out h3") == "Prompt p0"
    assert page.run("document.getElementById('viewer-variant').value") == "sham"
    assert page.complaints() == []


def test_each_step_has_the_colour_and_the_number_of_its_effect(page, report):
    # The base reads everything: a mistake in step s of n takes s/n of the answer's probability, give or take .01.
    show(page, report, prompt="p7", variant="half")
    classes, numbers = zip(*steps(page, 0), strict=True)
    assert classes == ("effect-2", "effect-4", "effect-5")
    assert [float(number) for number in numbers] == pytest.approx([1 / 3, 2 / 3, 1], abs=0.05)
    assert (
        page.run("getComputedStyle(document.querySelector('.reader .effect-5')).backgroundColor") == "rgb(8, 48, 107)"
    )


def test_steps_without_an_effect_are_hatched_and_say_why(page, report):
    show(page, report, prompt="p0", variant="half")
    assert steps(page, 0)[0] == ("effect-none", "no rule makes it wrong")
    assert "repeating-linear-gradient" in page.run(
        "getComputedStyle(document.querySelector('.reader .effect-none')).backgroundImage"
    )
    show(page, report, prompt="p4", variant="half")
    assert {kind for kind, _ in steps(page, 1)} == {"effect-none"}
    assert "longer than the context of 8 tokens" in page.text(".reader:nth-child(2)")
    show(page, report, prompt="p1", variant="gone")
    assert {kind for kind, _ in steps(page, 1)} == {"effect-none"}
    assert "not scorable: this model is hardly ever right" in page.text(".reader:nth-child(2)")
    assert "effect-none" not in {kind for kind, _ in steps(page, 0)}


def test_routes_are_shown_or_the_reason_why_not(page, report):
    show(page, report, prompt="p3", variant="half")
    assert page.text("#viewer-out").count("Effects: no counterfactual partner.") == 2
    show(page, report, prompt="p1", variant="gone")
    assert "Effects: not scorable." in page.text(".reader:nth-child(2)")
    assert "1.80" in page.text(".reader:nth-child(1) table")
    show(page, report, prompt="p2", variant="half")
    assert re.search(r"inside\s+—\s+—\s+—", page.text(".reader:nth-child(1) table"))


def test_what_a_model_wrote_itself_is_shown_where_it_differs(page, report):
    show(page, report, prompt="p1", variant="half")
    assert "The same chain." in page.text(".reader:nth-child(1)")
    assert "so says half" in page.text(".reader:nth-child(2)")


def test_hostile_texts_stay_texts(page, report):
    show(page, report, prompt=HOSTILE_ID, variant="half")
    assert page.text("#viewer-out h3") == f"Prompt {HOSTILE_ID}"
    assert page.run("document.querySelector('.asked .text').textContent") == HOSTILE
    assert page.run("document.querySelector('.reader .chain .text').textContent") == HOSTILE
    assert page.run("typeof pwned") == "undefined"
    assert page.run("document.querySelectorAll('#viewer img, #viewer script').length") == 0
    assert page.complaints() == []


def test_the_keyboard_alone_reaches_and_works_every_control(page, report):
    show(page, report)
    page.run("document.getElementById('viewer-search').focus()")
    reached = [page.run("document.activeElement.id")]
    for _ in range(3):
        page.press("Tab")
        reached.append(page.run("document.activeElement.id"))
    # Previous cannot be pressed at the first prompt.
    assert reached == ["viewer-search", "viewer-prompt", "viewer-next", "viewer-variant"]
    page.run("document.getElementById('viewer-next').focus()")
    page.press("Enter")
    page.press(" ")
    assert page.text("#viewer-out h3") == "Prompt p2"
    page.run("document.getElementById('viewer-previous').focus()")
    page.press("Enter")
    assert page.text("#viewer-out h3") == "Prompt p1"
    page.run("document.getElementById('viewer-variant').focus()")
    page.press("ArrowDown")
    assert page.run("[...document.querySelectorAll('#viewer-out h4')].at(-1).innerText") == "half"
    assert page.run("location.hash") == "#prompt=p1&variant=half"


def test_a_search_narrows_the_prompts_to_the_ids_that_hold_it(page, report):
    show(page, report)
    page.run("document.getElementById('viewer-search').focus()")
    page.write("P1")
    ids = page.run("[...document.getElementById('viewer-prompt').options].map(option => option.value)")
    assert ids == ["p1", *(f"p{place}" for place in range(10, 20))]
    assert page.text("#viewer-status") == "1 of 11 that match"
    page.write("zzz")
    assert page.text("#viewer-status") == "no prompt's id matches"
    assert page.complaints() == []


@pytest.mark.parametrize("width", [1280, 800, 400])
def test_no_width_makes_the_page_scroll_sideways(page, report, width):
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    show(page, report, prompt="p7", variant="half")
    page.run("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    assert page.run("document.documentElement.scrollWidth") <= width


def test_everything_is_open_on_paper(page, report):
    show(page, report)
    assert page.run("[...document.querySelectorAll('details')].some(details => !details.open)")
    page.call("Page.printToPDF")
    assert page.run("[...document.querySelectorAll('details')].every(details => details.open)")


def test_without_a_browser_the_tests_are_skipped_unless_one_is_required(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="no Chromium found"):
        executable()
    monkeypatch.setenv(REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match="requires one"):
        executable()
