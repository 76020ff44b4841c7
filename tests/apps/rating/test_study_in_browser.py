"""A complete study in a real browser on a real server: three raters, a closed tab, a killed server."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from captune.apps.rating.store import Store
from captune.apps.rating.study_design import CRITERIA
from captune.apps.rating.study_results import compute_results

CLOSES_TAB, SEES_KILL = 1, 2

SECRETS = re.compile(r"pretrained|epoch|human|attention|repeat|img-\d|cider|bleu|scores\.json", re.IGNORECASE)


class Rater:
    """A person with opinions about texts, who notes down what was answered."""

    def __init__(self, browser: Any, number: int, link: str) -> None:
        self.browser, self.number, self.link = browser, number, link
        self.taste = random.Random(number)
        self.answers: dict[int, str] = {}
        self.complaints: list[str] = []
        self.seen: list[str] = []
        self.open_tab()

    def open_tab(self) -> None:
        phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "locale": "zh-CN"}
        self.context = self.browser.new_context(**(phone if self.number == 1 else {}))
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.seen.append(request.url))
        self.page.goto(self.link)
        with self.page.expect_navigation():
            self.page.click("#start")

    @property
    def done(self) -> bool:
        return bool(self.page.locator("#answer").count() == 0)

    def answer(self) -> None:
        """Judge the screen that is shown, by keys, clicks or touch."""
        self.seen.append(self.page.content())
        position = int(self.page.input_value("#answer [name=position]"))
        texts = self.page.locator("bdi").all_text_contents()
        if self.page.get_attribute("#answer", "data-part") == "pairwise":
            value = self.taste.choice(("first", "second", "tie"))
            assert len(texts) == 2
            key = {"first": "1", "second": "2", "tie": "0"}[value]
            if self.number == 0:
                self._and_wait(position, lambda: self.page.keyboard.press(key))
            else:
                self._and_wait(position, lambda: self.page.locator(f"button[data-key='{key}']").click())
        else:
            value = "".join(self.taste.choice("12345") for _ in CRITERIA)
            if self.number == 0:
                for key in value:
                    self.page.keyboard.press(key)
                self._and_wait(position, lambda: self.page.keyboard.press("Enter"))
            else:
                for criterion, point in zip(CRITERIA, value, strict=True):
                    self.page.locator(f"input[name={criterion}][value='{point}']").check()
                self._and_wait(position, lambda: self.page.locator("#answer .button").click())
        self.answers[position] = value

    def undo(self) -> None:
        position = int(self.page.input_value("#undo [name=position]"))
        with self.page.expect_navigation():
            self.page.keyboard.press("u")
        assert int(self.page.input_value("#answer [name=position]")) == position
        del self.answers[position]

    def _and_wait(self, position: int, act: Any) -> None:
        with self.page.expect_navigation():
            act()
        assert self.done or int(self.page.input_value("#answer [name=position]")) == position + 1


def test_three_raters_a_closed_tab_and_a_killed_server(
    browser: Any, start_server: Any, rated_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    arguments = ("rate", rated_run, "--study", folder, "--json")
    options = ("--pictures", rated_run / "pictures", "--images", 3, "--seed", 11)
    server, line = start_server(*arguments, *options, "--port", 0)
    made = json.loads(line)
    port = re.search(r":(\d+)/", made["results"])[1]  # type: ignore[index]
    raters = [Rater(browser, number, link) for number, link in enumerate(made["links"].values())]
    rounds = 0
    while not all(rater.done for rater in raters):
        for rater in raters:
            if not rater.done:
                rater.answer()
        rounds += 1
        if rounds == 3:
            raters[0].undo()
            raters[0].answer()
        if rounds == 5:
            # In mid-study, with a screen open and not answered.
            raters[CLOSES_TAB].page.close(run_before_unload=False)
            raters[CLOSES_TAB].context.close()
            raters[CLOSES_TAB].open_tab()
        if rounds == 7:
            server.kill()
            assert server.wait(10) == -9
            rater = raters[SEES_KILL]
            with rater.page.expect_event("requestfailed"):
                rater.page.locator("button[data-key='1']").click(no_wait_after=True)
            server, line = start_server(*arguments, "--port", port)
            assert json.loads(line)["links"] == made["links"], "links outlive the server"
            for each in raters:
                each.page.goto(each.link + "rate")
                assert int(each.page.input_value("#answer [name=position]")) == len(each.answers)
    assert rounds > 20
    store = Store(folder)
    kept: dict[int, dict[int, str]] = {rater.number: {} for rater in raters}
    answers = store.answers()
    for answer in answers:
        assert answer.position not in kept[answer.rater]
        kept[answer.rater][answer.position] = answer.value
    assert kept == {rater.number: rater.answers for rater in raters}
    for rater in raters:
        assert len(rater.answers) == len(store.trials(rater.number))
        assert rater.complaints == []
        leaks = [(match[0], text[:200]) for text in rater.seen if (match := SECRETS.search(text))]
        assert leaks == []
    # The results page shows the numbers of the file.
    page = browser.new_page()
    page.goto(made["results"])
    assert "key=" not in page.url
    results = compute_results(store)
    text = " ".join(page.inner_text("main").split())
    assert f"{results.counted} answers on 3 images" in text
    for rate in results.win_rates.values():
        assert f"{rate.value:.2f} [{rate.low:.2f}, {rate.high:.2f}]" in text
    page.close()
    store.close()


@pytest.mark.parametrize(("theme", "language"), [("light", "en"), ("dark", "zh")])
def test_everybody_can_read_and_reach_it(
    browser: Any, start_server: Any, rated_run: Path, tmp_path: Path, theme: str, language: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    options = ("--pictures", rated_run / "pictures", "--images", 1, "--attention", 0, "--port", 0, "--json")
    _, line = start_server("rate", rated_run, "--study", tmp_path / "study", *options)
    made = json.loads(line)
    link = next(iter(made["links"].values()))
    context = browser.new_context(viewport={"width": 320, "height": 700}, color_scheme=theme)
    page = context.new_page()
    checked = set()

    def check(what: str) -> None:
        if what in checked:
            return
        checked.add(what)
        report = axe.Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]})
        problems = [(v["id"], [node["html"][:120] for node in v["nodes"][:3]]) for v in report.response["violations"]]
        assert problems == [], what
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{what} is wider than a phone"

    page.goto(f"{link}?lang={language}")
    check("introduction")
    with page.expect_navigation():
        page.click("#start")
    while page.locator("#answer").count():
        check(page.get_attribute("#answer", "data-part"))
        for row in page.locator("fieldset").all():
            row.locator("input").nth(2).check()
        # Between two pages there is no #answer either.
        with page.expect_navigation():
            page.locator("#answer button").first.click()
    check("done")
    page.goto(made["results"])
    check("results")
    assert checked == {"introduction", "pairwise", "rubric", "done", "results"}
    context.close()
