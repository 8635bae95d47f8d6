"""The gallery in Chromium: its script sorts, filters, turns pages and shows maps, and the page's policy lets it."""

import os
import shutil

import pytest
from PIL import Image

from inference.gallery import page
from inference.gallery.cards import WordMaps
from inference.gallery.comparison import Comparison
from inference.gallery.page import Gallery, write_gallery
from inference.results.result import Result

webdriver = pytest.importorskip("selenium.webdriver", reason="needs the package selenium")
PROGRAMS = [shutil.which(name) for name in ("chromium", "chromedriver")]
pytestmark = pytest.mark.skipif(None in PROGRAMS, reason="needs the programs chromium and chromedriver")
COUNT = 12
HALF = bytes([255] * 8 + [0] * 8)  # lit above, dark below


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = PROGRAMS[0]
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1000,900",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(PROGRAMS[1]))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two galleries of the same photos: one.html in one file, many.html with pages of five and B's captions."""
    root = tmp_path_factory.mktemp("galleries")
    (root / "in").mkdir()
    results, maps = [], {}
    for n in range(1, COUNT + 1):
        Image.new("RGB", (64, 48), (n * 20, 200, 90)).save(root / "in" / f"p{n}.png")
        words = ["a", "dog", *["runs"] * (n % 4), ".", "<end>"]
        result = Result(f"p{n}.png", [(f"A dog {'runs ' * (n % 4)}.", -1.0 * n)], str(root / "in" / f"p{n}.png"))
        result.references = ["Seen & <b>."] if n % 2 else []
        result.confidences = [n / COUNT]
        maps[result.image_id] = WordMaps(words, (4, 4), HALF * len(words))
        results.append(result)
    results[2].captions = [("كلب يجري.", -9.0)]
    scores = {f"p{n}.png": (n * 7 % 12) / 4 for n in range(1, COUNT + 1, 2)}
    write_gallery(root / "one.html", results, Gallery("One", "a", ["CIDEr 0.5"], "CIDEr", scores, maps))
    other = Comparison("x.model", "b.json", {f"p{n}.png": ["A dog ."] for n in range(1, 10)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "EMBEDDED", 10)
        patch.setattr(page, "PAGE", 5)
        write_gallery(root / "many.html", results, Gallery("Many", "a", (), "", {}, {}, other))
    return root


class Page:
    """A gallery in the browser, and what stands in it."""

    def __init__(self, browser, path):
        self.browser = browser
        browser.get_log("browser")
        browser.get(os.fspath(path.as_uri()))

    def run(self, script: str, *arguments):
        return self.browser.execute_script(f"return {script}", *arguments)

    def set(self, selector: str, value: str) -> None:
        self.run(
            "(e => { e.value = arguments[1]; e.dispatchEvent(new Event('input', {bubbles: true})); })"
            "(document.querySelector(arguments[0]))",
            selector,
            value,
        )

    def shown(self) -> list[int]:
        """The numbers of the photos that stand there, in their order."""
        names = self.run("[...document.querySelectorAll('main figure small bdi:first-child')].map(e => e.textContent)")
        return [int(name[1:-4]) for name in names]

    def told(self) -> str:
        return self.run("document.querySelector('output').textContent")


@pytest.fixture
def open_page(browser, folder):
    def opened(name: str) -> Page:
        return Page(browser, folder / name)

    yield opened
    log = [entry for entry in browser.get_log("browser") if entry["source"] != "rendering"]  # of reading canvases here
    assert log == []  # no error, nothing that the policy forbids


def test_sorting_and_filters(open_page):
    gallery, every = open_page("one.html"), list(range(1, COUNT + 1))
    assert gallery.shown() == every and gallery.told() == "12 photos"
    gallery.set("#sort", "sure -1")
    assert gallery.shown() == every[::-1]
    gallery.set("#sort", "score -1")  # photos without a score come last
    scored = sorted(every[::2], key=lambda n: -(n * 7 % 12))
    assert gallery.shown() == scored + every[1::2]
    gallery.set("#sort", "name 1")
    assert gallery.shown() == every  # p2 before p10
    gallery.set("#filter", "references")
    assert gallery.shown() == every[::2] and gallery.told() == "6 of 12 photos"
    gallery.set("#least", "0.5")
    gallery.set("#most", "0.8")
    assert gallery.shown() == [7, 9]
    gallery.set("input[type=search]", "SEEN & <B>")
    assert gallery.shown() == [7, 9]
    gallery.set("input[type=search]", "nothing like it")
    assert gallery.shown() == [] and "No photo fits" in gallery.run("document.querySelector('main').textContent")
    for control in ("#sort", "#filter", "#least", "#most", "input[type=search]"):
        gallery.set(control, "")
    assert gallery.shown() == every


def test_what_a_card_looks_like(open_page):
    gallery = open_page("one.html")
    assert gallery.run("[...document.images].every(image => image.complete && image.naturalWidth === 64)")
    assert gallery.run("document.querySelectorAll('.unsure').length") == 3
    assert gallery.run("getComputedStyle(document.querySelectorAll('.caption')[2]).direction") == "rtl"
    assert gallery.run("getComputedStyle(document.querySelector('h1')).fontWeight") == "600"  # the style applies
    assert gallery.run("document.querySelector('a.photo').getAttribute('href')") == "in/p1.png"
    assert gallery.run("least.offsetTop === most.offsetTop")  # the bounds of confidence stand in one line


def test_maps_by_mouse_and_by_keys(open_page, browser):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    gallery = open_page("one.html")
    on = "[...document.querySelectorAll('span.on')].map(word => word.textContent)"
    drawn = "document.querySelector('canvas').getContext('2d')"
    alpha = f"[5, 43].map(y => {drawn}.getImageData(32, y, 1, 1).data[3])"
    words = browser.find_elements(By.CSS_SELECTOR, "figure:nth-of-type(2) [data-word]")
    ActionChains(browser).move_to_element(words[1]).perform()
    assert gallery.run(on) == ["dog"]
    above, below = gallery.run(alpha)
    assert above < 40 and below > 190  # the photo is dark where the model did not look
    ActionChains(browser).move_to_element(browser.find_element(By.TAG_NAME, "h1")).perform()
    assert gallery.run(on) == [] and gallery.run("document.querySelector('canvas')") is None
    words[0].click()  # a tap holds it
    ActionChains(browser).move_to_element(browser.find_element(By.TAG_NAME, "h1")).perform()
    assert gallery.run(on) == ["A"]
    words[0].click()
    assert gallery.run(on) == []

    browser.find_element(By.CSS_SELECTOR, "#most").send_keys(Keys.TAB, Keys.TAB)  # the first photo's link, its caption
    assert gallery.run(on) == ["A"]
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert gallery.run(on) == ["dog"]
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert gallery.run(on) == []


def test_pages_of_many_photos(open_page):
    gallery, every = open_page("many.html"), list(range(1, COUNT + 1))
    assert gallery.shown() == every[:5] and gallery.told() == "12 photos, page 1 of 3"
    assert gallery.run("document.images.length") == 5
    gallery.run("document.querySelectorAll('nav button')[1].click()")
    assert gallery.shown() == every[5:10] and gallery.told() == "12 photos, page 2 of 3"
    gallery.set("#sort", "sure -1")  # sorts all pages, and begins with the first
    assert gallery.shown() == every[:-6:-1]
    gallery.set("input[type=search]", "p12.png")
    assert gallery.shown() == [12] and gallery.run("document.querySelector('nav').hidden")
    picture = "document.images[0]"
    assert gallery.run(f"{picture}.decode().then(() => {picture}.naturalWidth)") == 64  # the policy allows the folder


def test_two_results_files_side_by_side(open_page):
    gallery = open_page("many.html")
    assert gallery.run("document.querySelectorAll('main.pairs .both').length") == 5
    assert gallery.run("[...document.querySelectorAll('figure:first-child mark')].map(e => e.textContent)") == ["runs"]
    gallery.set("#filter", "same")
    assert gallery.shown() == [4, 8]
    gallery.set("#filter", "differ")
    gallery.set("#sort", "difference -1")
    assert gallery.shown()[:4] == [3, 10, 11, 12]  # the Arabic one, and those without a caption B
    assert "no caption" in gallery.run("document.querySelectorAll('.both')[1].textContent")
