"""A person in a real browser: what they drop, click and type, and what the page says to them."""

import base64
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tubelet.video.write import write_video

sync_api = pytest.importorskip("playwright.sync_api", reason="the page is tested in a browser by `make test-browser`")
CHROMIUM = (
    os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
if CHROMIUM is None:
    pytest.skip("no Chromium here: `make test-browser` installs it", allow_module_level=True)

pytestmark = pytest.mark.browser
Page, expect = sync_api.Page, sync_api.expect


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def address(serve: Callable[..., tuple[str, object]], indexed: tuple[Path, Path, Path], model_folders: dict[str, Path]) -> str:
    """Of a server with a library and a second autoencoder that takes files of 1 MB."""
    return serve(f"other={model_folders['autoencoder']}", "--megabytes", "1", "--library", str(indexed[2]))[0]


@pytest.fixture
def page(browser, address: str) -> Iterator[Page]:
    """The page; whatever the browser complains about fails the test."""
    made = browser.new_page(viewport={"width": 1440, "height": 900})
    complaints: list[str] = []
    made.on("pageerror", lambda error: complaints.append(str(error)))
    made.on(
        "request",
        lambda request: complaints.append(request.url) if not request.url.startswith((address, "blob:", "data:")) else None,
    )
    made.on("console", lambda message: complaints.append(message.text) if "Content Security Policy" in message.text else None)
    made.goto(address)
    expect(made.locator("#serving")).to_contain_text("classifier")
    yield made
    made.close()
    assert not complaints


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "forty frames.mp4"
    write_video(path, torch.randint(256, (40, 3, 64, 64), dtype=torch.uint8), fps=10)
    return path


def test_a_dropped_video_is_answered_by_every_model_with_the_frames(page: Page, video: Path):
    page.set_input_files("#file", video)
    expect(page.locator("#upload-state")).to_have_text("forty frames.mp4 is here")
    expect(page.locator(".answer")).to_have_count(2)
    expect(page.locator(".answer h3").first).to_have_text("classifier")
    expect(page.locator(".answer").first.locator(".bars li")).to_have_count(3)
    clip = page.locator(".answer").first.locator("button.clip").nth(4)
    picture = clip.locator("img")
    picture.scroll_into_view_if_needed()
    page.wait_for_function("e => e.complete && e.naturalWidth > 0", arg=picture.element_handle())
    clip.click()
    assert page.evaluate("document.querySelector('#player').currentTime") == pytest.approx(3.2, abs=0.11)


def test_a_file_is_dropped_and_of_two_the_later_wins(page: Page, video: Path):
    drop = """([name, text]) => {
        const files = new DataTransfer();
        files.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
        document.dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(drop, ["first.txt", base64.b64encode(b"no video").decode()])
    page.evaluate(drop, ["second.mp4", base64.b64encode(video.read_bytes()).decode()])
    expect(page.locator("#upload-state")).to_have_text("second.mp4 is here")
    expect(page.locator(".answer")).to_have_count(2)


def test_a_picture_is_shown_as_one(page: Page, tmp_path: Path):
    from tubelet.show._sheet import to_png

    path = tmp_path / "one.png"
    path.write_bytes(to_png(torch.randint(256, (3, 48, 64), dtype=torch.uint8)))
    page.set_input_files("#file", path)
    expect(page.locator(".answer")).to_have_count(2)
    expect(page.locator("#picture")).to_be_visible()
    expect(page.locator("#player")).to_be_hidden()
    expect(page.locator("#timeline")).not_to_contain_text("Infinity")


def test_sliders_change_the_reconstruction(page: Page, video: Path):
    page.set_input_files("#file", video)
    picture = page.locator("#rebuilt img")
    expect(picture).to_be_visible()
    before = picture.get_attribute("src")
    assert before and "90 %" in page.locator("#ratio-shown").inner_text()
    page.locator("#ratio").fill("50")
    expect(page.locator("#ratio-shown")).to_have_text("50 %")
    expect(picture).to_have_attribute(
        "alt", "The clip, the 50 % of it that autoencoder was shown (tube mask), and what it made of that"
    )
    page.locator("#mask").select_option("frame")
    expect(picture).to_have_attribute(
        "alt", "The clip, the 50 % of it that autoencoder was shown (frame mask), and what it made of that"
    )
    assert picture.get_attribute("src") != before
    expect(page.locator("#attended img")).to_be_visible()


def test_what_rebuilds_and_what_looks_can_be_chosen(page: Page, video: Path):
    page.set_input_files("#file", video)
    assert page.locator("#rebuild-model option").all_inner_texts() == ["autoencoder", "other"]
    assert page.locator("#looks-model option").all_inner_texts() == ["classifier", "autoencoder", "other"]
    page.locator("#rebuild-model").select_option("other")
    expect(page.locator("#rebuilt img")).to_have_attribute("alt", re.compile("other was shown"))
    page.locator("#looks-model").select_option("autoencoder")
    expect(page.locator("#attended img")).to_have_attribute("alt", "The clip, and where autoencoder looks")


def test_long_work_shows_how_far_it_is(page: Page, video: Path):
    """The bar of each answer takes the values that the server tells; a full house is asked again."""
    page.evaluate("""() => {
        window.bars = new Set();
        new MutationObserver(() => document.querySelectorAll("progress").forEach((bar) => {
            if (bar.id !== "sent" && bar.position > 0) window.bars.add(bar.getAttribute("aria-label"));
        })).observe(document.body, { subtree: true, childList: true, attributes: true });
    }""")
    full = iter([True])

    def once(route) -> None:
        if next(full, False):
            route.fulfill(status=429, headers={"Retry-After": "1"}, json={"error": "full"})
        else:
            route.continue_()

    page.route("**/timeline/events*", once)
    longer = video.read_bytes() + b"\0\0\0\x0cfreemore"  # other bytes, the same pictures: nothing is kept of it
    page.set_input_files("#file", {"name": "longer.mp4", "mimeType": "video/mp4", "buffer": longer})
    expect(page.locator("#timeline svg")).to_have_count(3)
    expect(page.locator(".answer")).to_have_count(2)
    page.locator("#like-this").click()
    expect(page.locator("#search-state")).to_contain_text("moments, in")
    assert page.evaluate("[...window.bars].sort()") == [
        "classifier is looking ...", "classifier is watching ...", "frames is looking ...", "looking at the video ...",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("notes.txt", b"not a video at all\n" * 50, "notes.txt: this cannot be read as a video or a picture"),
        ("nothing.mp4", b"", "nothing.mp4: the file is empty (0 bytes): choose a video, or a picture"),
        ("large.mp4", bytes(1_200_000), "large.mp4: the file has 1.2 MB, at most 1 MB are taken"),
    ],
)
def test_what_is_no_video_is_told_on_the_page(page: Page, name: str, data: bytes, why: str):
    page.set_input_files("#file", {"name": name, "mimeType": "application/octet-stream", "buffer": data})
    state = page.locator("#upload-state")
    expect(state).to_contain_text(why)
    expect(state).to_have_class("state bad")
    expect(page.locator("#player")).to_be_hidden()


def test_the_keyboard_is_enough(page: Page, video: Path):
    page.set_input_files("#file", video)
    expect(page.locator(".answer")).to_have_count(2)
    seen = []
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("(e => e.id || e.className.baseVal || e.className || e.tagName)(document.activeElement)"))
        if seen[-1] == "clip":
            break
    assert seen[0] == "skip" and "file" in seen and seen[-1] == "clip", seen
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "player"
    page.locator("#ratio").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#ratio-shown")).to_have_text("85 %")


def test_a_moment_found_is_played_at_its_second(page: Page, video: Path):
    page.locator("#words").fill("a thing moves left")
    page.keyboard.press("Enter")
    hits = page.locator("#hits li")
    expect(page.locator("#search-state")).to_contain_text("moments, in")
    hit = next(hits.nth(n) for n in range(hits.count()) if not hits.nth(n).inner_text().count("0:00.0 to"))
    start = float(re.search(r"0:(\d\d\.\d) to", hit.inner_text())[1])
    assert start > 0
    hit.locator("button.clip").click()
    expect(page.locator("#moment")).to_be_visible()
    page.wait_for_function("start => Math.abs(document.querySelector('#moment').currentTime - start) < 0.5", arg=start)
    page.set_input_files("#file", video)
    expect(page.locator("#like-this")).to_be_enabled()
    page.locator("#like-this").click()
    expect(hits.first).to_contain_text("similarity")


def test_tags_teach_a_classifier(page: Page):
    page.locator("#words").fill("left")
    page.locator("#search button[type=submit]").click()
    boxes = page.locator("#hits .tag input")
    expect(boxes.nth(3)).to_be_visible()
    expect(page.locator("#teach")).to_be_disabled()
    for place, tag in enumerate(["this", "that", "this"]):
        boxes.nth(place).fill(tag)
        boxes.nth(place).blur()
    expect(page.locator("#tag-state")).to_have_text("3 moments tagged, this, that")
    page.locator("#teach").click()
    expect(page.locator("#tag-state")).to_contain_text("learned that, this from 3 moments")
    expect(page.locator("#taught li").first).to_be_visible()


def test_a_click_on_the_timeline_jumps_the_player(page: Page, video: Path):
    page.set_input_files("#file", video)
    lines = page.locator("#timeline svg")
    expect(lines).to_have_count(3)
    box = lines.first.bounding_box()
    assert box is not None
    lines.first.click(position={"x": box["width"] * 0.75, "y": 10})
    assert page.evaluate("document.querySelector('#player').currentTime") == pytest.approx(3.0, abs=0.1)
    lines.first.press("ArrowLeft")
    assert page.evaluate("document.querySelector('#player').currentTime") == pytest.approx(2.9, abs=0.1)


def test_every_part_says_what_will_be_there(page: Page):
    for place in ("#answers", "#timeline", "#rebuilt", "#attended"):
        expect(page.locator(f"{place} .empty")).to_be_visible()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1440, "light")])
def test_nothing_is_wider_than_the_screen(page: Page, video: Path, width: int, scheme: str):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 844})
    page.set_input_files("#file", video)
    expect(page.locator(".answer")).to_have_count(2)
    expect(page.locator("#rebuilt img")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
