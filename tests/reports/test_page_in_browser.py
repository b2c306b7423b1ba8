"""A page in a real browser: opened from the disk, it asks for nothing, and a click changes all that it should."""

import json
import shutil
import time

import numpy as np
import pages
import pytest

from reports import page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """Chromium, with the page open."""
    webdriver = pytest.importorskip("selenium.webdriver")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    service = shutil.which("chromedriver")
    if not browser or not service:
        pytest.skip("needs Chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(page.render(pages.make_page()))
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(service))
    try:
        found.get(file.as_uri())
        wait_for(found, "return document.body.dataset.ready === 'yes' && Bokeh.documents[0].is_idle")
        yield found
    finally:
        found.quit()


def wait_for(driver, code):
    """What this code returns once it is true; a failure after 30 seconds."""
    end = time.monotonic() + 30
    while not (found := driver.execute_script(code)):
        assert time.monotonic() < end, code
        time.sleep(0.05)
    return found


def text_of(driver, name):
    return driver.execute_script("return document.getElementById(arguments[0]).textContent", name)


def point_at(driver, name, x, y, click=False):
    """Move the mouse onto a place of a chart, by its axes, and maybe click there."""
    code = """
        const [name, x, y] = arguments;
        const view = [...Bokeh.index.roots].find((view) => view.model.name === name);
        view.el.scrollIntoView({ block: "center", behavior: "instant" });
        const box = view.canvas_view.el.getBoundingClientRect();
        return [box.left + view.frame.x_scale.compute(x), box.top + view.frame.y_scale.compute(y)];
    """
    left, top = driver.execute_script(code, name, x, y)
    for kind in ("mouseMoved", *(("mousePressed", "mouseReleased") if click else ())):
        event = {
            "type": kind,
            "x": left,
            "y": top,
            "button": "left" if kind != "mouseMoved" else "none",
            "clickCount": 1,
        }
        driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)


def place_of(driver, at, number=0):
    """Where an item lies on a map."""
    code = "const [at, n] = arguments, of = Bokeh.documents[0].get_model_by_name('items').data;"
    return driver.execute_script(f"{code} return [of[`x${{n}}`][at], of[`y${{n}}`][at]]", at, number)


def find_lonely(driver):
    """The two items whose nearest other one on the first map is farthest: no other point hides them."""
    read = "return [...Bokeh.documents[0].get_model_by_name('items').data.{}]"
    x, y = (np.array(driver.execute_script(read.format(name))) for name in ("x0", "y0"))
    apart = np.hypot(x[:, None] - x, y[:, None] - y) + np.eye(len(x)) * 9
    return np.argsort(-apart.min(1))[:2].tolist()


def test_names_are_text(driver):
    cells = driver.execute_script(
        "return [...document.querySelectorAll('#classes-table td:first-child')].map(c => c.textContent)"
    )
    assert pages.NASTY in cells
    assert driver.execute_script("return document.scripts.length") == 3
    assert not driver.execute_script("return document.querySelectorAll('main b b, td i, th b, h3 b').length")


def test_a_click_on_a_point_changes_its_neighbors_under_every_encoder(driver):
    seen = []
    for at in find_lonely(driver):
        point_at(driver, "map 0", *place_of(driver, at), click=True)
        chosen = "return Bokeh.documents[0].get_model_by_name('items').selected.indices[0]"
        wait_for(driver, f"{chosen} === {at}")
        seen.append([text_of(driver, f"neighbors-{e}") for e in range(2)])
        time.sleep(1)  # two clicks in a row would be a double click
    assert all(
        first != second and first.count("·") == second.count("·") == 5 for first, second in zip(*seen, strict=True)
    )


def test_the_pointer_shows_the_item(driver):
    point_at(driver, "map 1", *place_of(driver, 3, 1))
    wait_for(driver, "return !document.getElementById('hover').hidden")
    assert text_of(driver, "hover").startswith("image ")


def test_a_class_is_found_by_its_name_and_selected_in_all_maps(driver):
    box = driver.find_element("id", "search")
    box.clear()
    box.send_keys("<SCRIPT>", "\n")
    wait_for(driver, "return document.getElementById('selected').textContent === '6 selected'")
    assert text_of(driver, "query").count(pages.NASTY) == 2
    box.clear()
    box.send_keys("none such", "\n")
    wait_for(driver, "return document.getElementById('selected').textContent === 'no class of this name'")


def test_colors_follow_the_choice(driver):
    code = "const of = document.getElementById('color'); of.value = arguments[0]; of.onchange();"
    code += "return [...new Set(Bokeh.documents[0].get_model_by_name('items').data.color)].length"
    assert driver.execute_script(code, "class") == 10
    assert driver.execute_script(code, "superclass") == 2
    assert driver.execute_script(code, "rank") == 3
    assert text_of(driver, "legend") == "own classrelated classother class"


def test_a_pair_of_classes_is_named_and_shown_on_the_map(driver):
    point_at(driver, "matrix 0", 0.5, 1.5, click=True)
    wait_for(driver, "return document.getElementById('pair').textContent.includes('ranking 0.75')")
    wait_for(driver, "return document.getElementById('selected').textContent === '12 selected'")


def test_a_table_is_sorted_by_any_column(driver):
    column = "return [...document.querySelectorAll('#classes-table td.difference')].map(c => Number(c.textContent))"
    *_, button = driver.find_elements("css selector", "#classes-table th button")
    for sign in (-1, 1):
        driver.execute_script("arguments[0].click()", button)
        found = driver.execute_script(column)
        assert found == sorted(found, key=lambda value: sign * value) and len({*found}) > 5
    assert (
        driver.execute_script("return document.querySelector('#classes-table th:last-child').ariaSort") == "ascending"
    )


@pytest.mark.parametrize("width", [320, 400, 1600, 2560])
def test_a_page_is_as_wide_as_its_window(driver, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wait_for(driver, f"return innerWidth === {width}")
    of = driver.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert of <= 0


def test_nothing_is_asked_for_and_no_error_is_logged(driver):
    """The last one: of all that came before."""
    logged = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [of["params"]["request"]["url"] for of in logged if of["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [driver.current_url]
    assert [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
