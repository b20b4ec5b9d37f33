"""The page in a real browser: Debian's Chromium, driven by Playwright, with axe-core for accessibility.

`.ci/run` installs Chromium. Where it is missing, these tests are skipped and say so.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Workspace, tiny_params

from experiments.config.params import load_params
from experiments.reporting import pictures

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (390, 820, 1440)

in_browser = pytest.mark.skipif(
    CHROMIUM is None or util.find_spec("playwright") is None,
    reason="needs Chromium ('apt-get install chromium') and playwright ('pip install -r requirements.txt')",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a report of a paper's model and baseline, of three seeds, and a reference."""
    workspace = Workspace(tmp_path_factory.mktemp("page"))
    plain = tiny_params()["experiments"]["gun-small"]
    options = {"backbone": "drn_d_14_narrow"}
    workspace.params["seeds"] = [0, 1, 2]
    workspace.params["experiments"] = {
        "gun-multi-shared": plain | {"row": "bilinear", "options": options | {"guidance": "none"}},
        "gun-fusion": plain | {"row": "fusion", "options": options | {"guidance": "fusion"}},
    }
    workspace.params["claims"] = {
        key: {
            "paper": "gun",
            "says": f"a claim about {metric}",
            "source": "question",
            "better": "gun-fusion",
            "worse": "gun-multi-shared",
            "metric": metric,
        }
        for key, metric in (
            ("gun-guided", "miou"),
            ("gun-guided-boundaries", "boundary_iou@3"),
            ("gun-little", "macs_ratio"),
        )
    }
    workspace.profile["datasets"]["scenes"]["val"] = 12
    workspace.profile["recipe"]["steps"] = 2
    workspace.write()
    shutil.copytree(ROOT / "results/published", workspace.folder / "results/published")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.folder)
        for stage in ("prepare", "train", "evaluate", "complexity", "claims", "tables"):
            assert not workspace.call(stage), stage
        assert not workspace.call("claims", "--keep", "first")
        for stage in ("tables", "report"):
            assert not workspace.call(stage), stage
    return workspace.folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Without a sandbox of its own: a container's root has none to give, and the page is ours.
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def said() -> list[str]:
    """What the page says on the console, and what it asks for beyond itself."""
    return []


@pytest.fixture
def page(browser: Any, folder: Path, said: list[str]) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1440, "height": 900})
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: said.append(request.url) if ":" in request.url[:6] else None)
    opened.goto((folder / "reports/index.html").as_uri())
    yield opened
    opened.close()


def outside(said: list[str], folder: Path) -> list[str]:
    """What is neither the page itself nor a picture inside it."""
    own = (folder / "reports/index.html").as_uri()
    return [text for text in said if text != own and not text.startswith("data:image/")]


@in_browser
class TestInTheBrowser:
    def test_it_loads_without_an_error_or_a_request(self, page: Any, said: list[str], folder: Path) -> None:
        assert page.title() == "Scene parsing: four papers measured"
        assert outside(said, folder) == []

    def test_every_link_of_the_page_leads_somewhere(self, page: Any, folder: Path) -> None:
        links = page.eval_on_selector_all("a[href]", "found => found.map(a => a.getAttribute('href'))")
        assert {"#claims", "#gun", "#across", "#costs", "#check"} <= set(links)
        for link in links:
            if link.startswith("#"):
                assert page.locator(f"[id='{link[1:]}']").count() == 1, link
            else:
                assert (folder / "reports" / link).is_file(), link

    def test_a_head_sorts_its_column(self, page: Any) -> None:
        head = page.locator("#claims-table .sort").nth(3)
        effects = "rows => rows.map(row => parseFloat(row.cells[3].textContent))"
        for turn in ("ascending", "descending"):
            head.click()
            found = [x for x in page.eval_on_selector_all("#claims-table tbody tr", effects) if x == x]
            assert found == sorted(found, reverse=turn == "descending")
            assert page.locator(f"#claims-table th[aria-sort={turn}]").count() == 1

    def test_claims_are_filtered_by_paper_verdict_and_text(self, page: Any) -> None:
        shown = page.locator("#claims-table tbody tr:visible")
        assert shown.count() == 3
        page.locator(".filters input").fill("boundary_iou")
        assert shown.count() == 1
        assert page.locator(".filters output").text_content() == "1 of 3 claims"
        page.locator(".filters input").fill("")
        page.locator("select[name=verdict]").select_option(index=1)
        assert shown.count() < 3
        page.locator("select[name=verdict]").select_option(index=0)
        page.locator("select[name=paper]").select_option("gun")
        assert shown.count() == 3

    def test_the_slider_moves_between_baseline_and_model_by_keyboard(self, page: Any) -> None:
        slider = page.locator(".slider input").first
        slider.focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        cut = slider.evaluate("field => field.parentElement.style.getPropertyValue('--cut')")
        assert cut == "53%"

    def test_pictures_are_large_enough_to_see(self, page: Any) -> None:
        widths = page.eval_on_selector_all(".pictures img", "all => all.map(one => one.clientWidth)")
        assert len(widths) >= 12
        assert min(widths) >= 320

    def test_the_keyboard_reaches_everything_that_can_be_used(self, page: Any) -> None:
        wanted = (
            "[...document.querySelectorAll('a[href], button, input, select, summary, [tabindex=\"0\"]')]"
            ".filter(one => one.checkVisibility({visibilityProperty: true}))"
        )
        count = page.evaluate(f"{wanted}.length")
        reached = page.evaluate(f"window.left = new Set({wanted}); window.left.size")
        for _ in range(count + 20):
            page.keyboard.press("Tab")
            reached = page.evaluate("window.left.delete(document.activeElement); window.left.size")
            if not reached:
                break
        assert page.evaluate("[...window.left].map(one => one.outerHTML.slice(0, 80))") == []

    def test_a_word_explains_itself_where_it_first_stands(self, page: Any) -> None:
        word = page.locator("button.term").first
        meaning = page.locator(f"#{word.get_attribute('popovertarget')}")
        assert not meaning.is_visible()
        word.focus()
        page.keyboard.press("Enter")
        assert meaning.is_visible()

    def test_a_link_to_what_is_folded_unfolds_it(self, page: Any) -> None:
        assert not page.locator("#check details").evaluate("one => one.open")
        page.locator("nav a[href='#check']").click()
        page.wait_for_function("document.querySelector('#check details').open")

    @pytest.mark.parametrize("width", WIDTHS)
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_nothing_overflows(self, page: Any, width: int, scheme: str) -> None:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 844})
        page.reload()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    def test_nothing_overflows_on_paper(self, page: Any) -> None:
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 794, "height": 1123})  # A4 at 96 dots an inch
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_an_accessibility_check_finds_nothing_serious(self, page: Any, scheme: str) -> None:
        axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
        page.emulate_media(color_scheme=scheme)
        page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
        # The policy of the page lets no script in, which is why axe-core comes in by evaluation.
        found = axe.run(page).response["violations"]
        serious = {
            rule["id"]: [node["html"][:120] for node in rule["nodes"][:3]]
            for rule in found
            if rule["impact"] in ("serious", "critical")
        }
        assert serious == {}


class TestTheFile:
    def test_it_is_one_file_of_at_most_8_mb(self, folder: Path) -> None:
        text = (folder / "reports/index.html").read_text()
        assert len(text) < 8e6
        assert not re.findall(r'<(?:img|script|link|iframe)[^>]+(?:src|href)="(?!data:image/)', text)

    def test_first_comes_what_may_be_concluded_and_from_what(self, folder: Path) -> None:
        text = (folder / "reports/index.html").read_text()
        opening = text[text.index("<main") : text.index('id="answers"')]
        assert "conclusions come from the" in opening
        assert "first" in opening

    def test_a_number_of_the_run_that_was_kept_is_shown_once(self, folder: Path) -> None:
        head = (folder / "reports/tables/gun-ablations.csv").read_text().splitlines()[0]
        assert "Difference, reference first" in head
        assert "this run" not in head


class TestPictures:
    @pytest.fixture
    def copy(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
        """Of the two experiments only the first seed is scored, so that neither has a mean."""
        workspace = Workspace(tmp_path / "copy")
        shutil.copytree(folder, workspace.folder)
        monkeypatch.chdir(workspace.folder)
        workspace.params = json.loads(json.dumps(load_params().model_dump(mode="json")))
        for key in ("gun-fusion", "gun-multi-shared"):
            scores = Path("results/tiny/evaluate") / f"{key}.json"
            scores.unlink()
            for seed in (1, 2):
                (scores.with_suffix("") / f"seed-{seed}.npz").unlink()
        return workspace

    def test_they_are_of_the_first_seed_and_wait_for_no_other(self, copy: Workspace) -> None:
        assert not copy.call("report")
        assert "wrong pixels, model: gun-fusion" in Path("reports/index.html").read_text()

    def test_those_of_other_settings_are_not_shown(self, copy: Workspace) -> None:
        copy.params["recipes"]["plain"]["momentum"] = 0.5
        copy.write()
        assert not copy.call("report")
        page = Path("reports/index.html").read_text()
        assert "wrong pixels" not in page
        assert "gun-fusion: not scored" in page

    def test_a_crop_is_where_two_differ_most_near_a_boundary(self) -> None:
        labels = np.zeros((80, 120), np.uint8)
        labels[:, 60:] = 1
        differs = np.zeros(labels.shape, bool)
        differs[30:36, 58:62] = True  # at the boundary
        differs[60:80, 100:120] = True  # many more pixels, far from it
        top, left, height, width = pictures.most_different(labels, differs)
        assert (height, width) == (20, 30)
        assert top <= 30 <= 36 <= top + height
        assert left <= 58 <= 62 <= left + width

    def test_next_to_ignored_pixels_there_is_no_boundary(self) -> None:
        labels = np.array([[0, 0, 255, 1, 1]], np.uint8).repeat(3, axis=0)
        assert not pictures.near_boundary(labels).any()


def test_an_answer_near_boundaries_names_the_comparison_if_it_is_another() -> None:
    page = (ROOT / "reports/index.html").read_text(encoding="utf-8")
    rows = re.finditer(r'<th scope="row"><a href="#(\w+)">.*?</tr>', page, re.DOTALL)
    said = {row[1]: "Of another comparison: " in row[0] for row in rows}
    # Near boundaries SPGNet's two stages are compared with one, by mIoU with two that are not guided.
    assert said == {"spgnet": True, "gun": False, "semask": False, "alignseg": False}
