"""Human ratings in the run's report: shown in both languages, accessible, and the same numbers."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from captune.apps.rating.export import results_json
from captune.apps.rating.store import Store
from captune.apps.rating.study_results import compute_results
from captune.report import write_page


@pytest.mark.parametrize(("theme", "language"), [("light", "en"), ("dark", "zh")])
def test_the_section_of_people(
    browser: Any, rated_run: Path, answered: Store, tmp_path: Path, theme: str, language: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    run, results = tmp_path / "run", compute_results(answered)
    copytree(rated_run, run)
    (run / "rating.json").write_text(results_json(results))
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme=theme)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(write_page(run).as_uri())
    page.select_option("#language", language)
    text = page.inner_text("#ratings")
    assert text.startswith({"en": "Human ratings", "zh": "人工评价"}[language])
    for name, rate in results.win_rates.items():
        assert name in text
        assert f"{rate.value:.3f}" in text
    for row in results.correlations:
        if row.target in ("overall", "preference"):
            assert f"{row.kendall.value:.3f}" in text
    assert "rating_" not in text, "every word is translated"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    options = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
    problems = [
        (violation["id"], [node["html"][:120] for node in violation["nodes"][:3]])
        for violation in axe.Axe().run(page, context="#ratings", options=options).response["violations"]
    ]
    assert problems == []
    assert errors == []
    context.close()
