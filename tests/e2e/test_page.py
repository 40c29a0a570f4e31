"""The page in a real browser: its frame, Playground, Contract and Recent requests, on the model that is shipped."""

import contextlib
import csv
import io
import itertools
import json
import socket
import subprocess
import sys

import httpx
import numpy as np
import pytest
from PIL import Image

from foreframe_engines import builtin_bundle
from foreframe_engines.episodes import load_clips
from foreframe_engines.testing import ToyRolloutEngine
from foreframe_server.cli.serving import running_server
from foreframe_server.codec.video import encode_mp4
from foreframe_server.key_file import write_key_file
from foreframe_server.keys import Scope, mint_key
from foreframe_server.opening import given
from foreframe_server.settings import KeySettings, Settings

DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
PICTURE = "document.querySelector('.pane:nth-child(2) canvas').toDataURL()"
DROP = """(place, text) => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([text], "states.csv", { type: "text/csv" }));
  place.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
}"""
REFUSED = "Failed to load resource: the server responded with a status of 4"
LOST = "net::ERR_"
REFUSALS = (("Members", "99", "32"), ("Steps", "5000", "1000"), ("Deadline, ms", "3", "5"), ("Seed", "-1", "0"))


@pytest.fixture(scope="module")
def address():
    with running_server(Settings(http={"port": 0})) as address:
        yield address


@pytest.fixture(scope="module")
def clip():
    return load_clips(builtin_bundle() / "clips.npz")[0]


def predict(page):
    """Press the button and wait for the whole answer."""
    page.get_by_role("button", name="Predict", exact=True).click()
    page.wait_for_selector(".summary dl")


def picture_of(page):
    """What the prediction's pane shows."""
    return page.evaluate(PICTURE)


def png_of(frame):
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def files_of(frames):
    return [
        {"name": f"{index}.png", "mimeType": "image/png", "buffer": png_of(frame)} for index, frame in enumerate(frames)
    ]


def text_of(rows, names=None):
    buffer = io.StringIO()
    csv.writer(buffer).writerows([*([names] if names else []), *np.asarray(rows).tolist()])
    return buffer.getvalue()


class TestPlayground:
    def test_a_clip_is_predicted_beside_the_truth_with_spread_and_bits(self, visiting, address):
        with visiting(address) as visit:
            page = visit.open()
            page.wait_for_selector(".clips label")
            assert visit.is_painted(".pane:nth-child(1) canvas")

            predict(page)
            page.wait_for_selector(".chart .bar")

            assert all(visit.is_painted(f".pane:nth-child({place}) canvas") for place in (1, 2, 3))
            assert page.locator(".chart .bar").count() == 8
            assert page.locator(".chart circle.line").count() == 8
            assert page.locator(".chart rect.band").count() == 1
            assert "8 of 8" in page.locator(".summary").inner_text()
            assert "dB PSNR" in page.locator(".pane:nth-child(2)").inner_text()

    def test_a_prediction_is_seen_before_anything_is_pressed(self, visiting, address):
        with visiting(address) as visit:
            page = visit.open()
            page.get_by_text("One pass: the mean of all futures").wait_for()
            assert all(visit.is_painted(f".pane:nth-child({place}) canvas") for place in (1, 2, 3))
            assert page.get_by_label("Variance overlay").is_disabled()
            first = picture_of(page)

            page.locator(".clips label").nth(3).click()
            page.wait_for_function(f"(before) => {PICTURE} !== before", arg=first)
            page.get_by_text("One pass: the mean of all futures").wait_for()
            assert visit.is_painted(".pane:nth-child(2) canvas")

    def test_files_may_be_dropped_on_the_pictures(self, visiting, address, clip):
        with visiting(address) as visit:
            page = visit.open()
            page.locator(".panes").evaluate(DROP, text_of(clip.states[:, :2]))
            page.wait_for_selector("details.own[open]")
            dropped = page.get_by_label("States, CSV or JSON").input_value()
            assert dropped.split() == text_of(clip.states[:, :2]).split()
            assert "need their video or pictures" in page.locator(".own .refused:visible").inner_text()

    def test_members_medoid_and_variance_change_the_picture(self, visiting, address):
        with visiting(address) as visit:
            page = visit.open()
            page.get_by_label("Members", exact=True).fill("4")
            predict(page)
            mean = picture_of(page)
            for choice in ("member 1", "medoid"):
                page.get_by_label("Show").select_option(choice)
                page.wait_for_function(f"(before) => {PICTURE} !== before", arg=mean)
                page.get_by_label("Show").select_option("mean")
                page.wait_for_function(f"(before) => {PICTURE} === before", arg=mean)
            page.get_by_label("Variance overlay").fill("80")
            assert picture_of(page) != mean

    def test_members_are_told_as_they_arrive(self, visiting, address):
        with visiting(address) as visit:
            page = visit.open()
            page.evaluate("""() => {
              window.heard = [];
              new MutationObserver(() => window.heard.push(document.querySelector(".running .hint").textContent))
                .observe(document.querySelector(".running .hint"), { childList: true });
            }""")
            page.get_by_label("Results").select_option("bypass")
            predict(page)

            counts = [
                int(words.split(" of 8 members")[0]) for words in page.evaluate("window.heard") if "of 8" in words
            ]
            assert counts == sorted(counts)
            assert counts[0] == 0
            assert set(counts) & {2, 4, 6}

    def test_own_pictures_and_states_predict_what_the_clip_does(self, visiting, address, clip):
        names = httpx.get(f"{address}/v1/state-schemas/eve-25").json()["names"]
        shuffled = np.random.default_rng(0).permutation(25)
        with visiting(address) as visit:
            page = visit.open()
            page.get_by_label("Seed").fill("7")
            predict(page)
            before = picture_of(page)

            page.get_by_text("Your own recording").click()
            page.get_by_label("Video or pictures").set_input_files(files_of(clip.frames))
            page.get_by_label("States, CSV or JSON").fill(
                text_of(clip.states[:, shuffled], [names[at] for at in shuffled])
            )
            page.get_by_label("States, CSV or JSON").blur()
            page.wait_for_function("() => !document.querySelector('.clips :checked')")
            page.wait_for_function("() => !document.querySelector('.summary dl')")
            predict(page)
            page.locator("#scrub").fill("8")

            assert picture_of(page) == before

    def test_a_video_is_taken_at_the_models_rate(self, visiting, address, clip):
        twice = np.repeat(np.kron(clip.frames, np.ones((1, 3, 3, 1), np.uint8)), 2, axis=0)
        with visiting(address) as visit:
            page = visit.open()
            page.get_by_text("Your own recording").click()
            video = {"name": "seen.mp4", "mimeType": "video/mp4", "buffer": encode_mp4(twice, 30.0)}
            page.get_by_label("States, CSV or JSON").fill(text_of(clip.states))
            page.get_by_label("Video or pictures").set_input_files([video])
            page.wait_for_function("() => document.querySelector('.running .hint').textContent.includes('192×192')")
            assert "12 frames taken at 15 a second" in page.locator(".running").inner_text()
            predict(page)

            assert all(visit.is_painted(f".pane:nth-child({place}) canvas") for place in (1, 2, 3))

    def test_a_refusal_stands_beside_the_field_that_caused_it(self, visiting, address):
        with visiting(address) as visit:
            page = visit.open()
            for label, value, words in REFUSALS:
                control = page.get_by_label(label, exact=True)
                control.fill(value)
                page.get_by_role("button", name="Predict", exact=True).click()
                page.wait_for_selector(f"#{control.get_attribute('id')}-refused:not([hidden])")

                assert words in page.locator(f"#{control.get_attribute('id')}-refused").inner_text()
                assert page.locator("[aria-invalid]").count() == 1
                assert control.evaluate("(one) => one === document.activeElement")
                assert control.input_value() == value
                control.fill("")
            visit.forgive(REFUSED)

    def test_a_refused_upload_shows_its_reason(self, visiting, address, clip):
        with visiting(address) as visit:
            page = visit.open()
            page.get_by_text("Your own recording").click()
            states = page.get_by_label("States, CSV or JSON")
            page.get_by_label("Video or pictures").set_input_files(files_of(clip.frames))
            states.fill(text_of(clip.states[:, :24]))
            states.blur()
            page.wait_for_function("() => !document.querySelector('.clips :checked')")
            page.get_by_role("button", name="Predict", exact=True).click()
            page.wait_for_selector(".alert:not([hidden])")
            refused = page.locator(f"#{states.get_attribute('id')}-refused")
            assert "25" in refused.inner_text()
            assert "24" in refused.inner_text()

            states.fill("0.1, zero")
            states.blur()
            assert 'Row 1, column 2: "zero" is not a number' in refused.inner_text()
            page.get_by_role("button", name="Predict", exact=True).click()
            assert 'Row 1, column 2: "zero" is not a number' in refused.inner_text()
            visit.forgive(REFUSED)

    def test_what_was_typed_outlives_the_page(self, visiting, address):
        with visiting(address) as visit:
            page = visit.open()
            page.get_by_label("Seed").fill("1234")
            page.reload()
            page.wait_for_selector(".clips label")

            assert page.get_by_label("Seed").input_value() == "1234"

    def test_a_keyboard_is_enough(self, visiting, address):
        with visiting(address) as visit:
            page = visit.open()
            page.locator("#tab-playground").focus()
            page.keyboard.press("End")
            assert page.evaluate("document.activeElement.id") == "tab-recent"
            page.keyboard.press("ArrowRight")
            page.get_by_label("Seed").focus()
            page.keyboard.press("Enter")
            page.wait_for_selector(".summary dl")
            page.locator("#scrub").focus()
            page.keyboard.press("ArrowLeft")
            assert page.locator("#scrub").get_attribute("aria-valuetext").startswith("predicted frame 7")


class TestOtherViews:
    def test_the_contract_tells_units_and_checks_a_sample(self, visiting, address):
        with visiting(address) as visit:
            page = visit.open("contract")
            assert page.locator("tbody tr").count() == 25
            assert "64×64 RGB" in page.locator(".card").first.inner_text()
            page.get_by_role("button", name="Fill in the mean").click()
            page.get_by_role("button", name="Check my sample").click()
            page.wait_for_selector(".good")
            assert "1 row fits" in page.locator(".good").inner_text()

            page.get_by_label("Rows of states").fill("1, 2, 3")
            page.get_by_role("button", name="Check my sample").click()
            page.wait_for_selector(".card .refused:not([hidden])")
            assert "25" in page.locator(".card .refused").inner_text()
            visit.forgive(REFUSED)

    def test_recent_requests_show_stages_and_run_elsewhere(self, visiting, address, tmp_path):
        with visiting(address) as visit:
            page = visit.open()
            page.get_by_label("Seed").fill("11")
            predict(page)
            page.wait_for_selector(".chart .bar")
            page.locator("#tab-recent").click()
            asked = page.locator(".requests li", has_text="/v1/likelihoods")
            assert "read" in asked.locator(".stages").inner_text()

            asked.get_by_role("button", name="Copy as curl").click()
            by_curl = run(["bash", "-c", page.evaluate("navigator.clipboard.readText()")])
            asked.get_by_role("button", name="Copy as Python").click()
            by_python = run(
                [
                    sys.executable,
                    "-c",
                    page.evaluate("navigator.clipboard.readText()").replace("print(reply.json())", "print(reply.text)"),
                ]
            )
            assert json.loads(by_curl)["bits_total"] == json.loads(by_python)["bits_total"] > 0

    def test_the_status_strip_tells_of_the_server(self, visiting, address):
        with visiting(address) as visit:
            page = visit.open()
            predict(page)
            page.wait_for_function("() => /p50\\s*≈/.test(document.getElementById('status').innerText)")
            words = page.locator("#status").inner_text()
            assert "ready" in words
            assert "cache" in words

    def test_the_api_page_lists_every_call(self, visiting, address):
        with visiting(address) as visit:
            visit.page.goto(f"{address}/docs")
            visit.page.wait_for_selector("details")
            told = visit.page.locator("main").evaluate("(main) => main.textContent")
            assert "/v1/predictions" in told
            assert "`" not in told


class TestLook:
    def test_every_control_has_a_name_and_every_text_stands_out(self, visiting, address):
        with visiting(address) as visit:
            page = visit.open()
            predict(page)
            for scheme, size in itertools.product(("light", "dark"), (DESK, PHONE)):
                page.emulate_media(color_scheme=scheme)
                page.set_viewport_size(size)
                for view in ("playground", "contract", "recent"):
                    page.locator(f"#tab-{view}").click()
                    page.wait_for_selector(f"#{view}:not([aria-busy]) > *")
                    assert visit.unlabelled() == []
                    assert visit.faint() == []
                    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    def test_planted_faults_are_found(self, visiting, address):
        with visiting(address) as visit:
            page = visit.open()
            page.evaluate("""() => {
              const [field, words] = [document.createElement("input"), document.createElement("p")];
              words.textContent = "planted";
              words.style.color = "#aaa";
              document.querySelector("main").append(field, words);
              console.error("planted");
            }""")
            page.evaluate("fetch('https://planted.invalid/').catch(() => null)")
            assert len(visit.unlabelled()) == 1
            assert [each.split(" ")[1] for each in visit.faint()] == ["planted"]
            assert any("planted" in fault for fault in visit.faults)
            visit.faults.clear()
            visit.foreign.clear()

    def test_it_is_light_and_soon_there(self, visiting, address):
        with visiting(address) as visit:
            sizes = []
            visit.page.on(
                "response", lambda reply: "/assets/" in reply.url and sizes.append(int(reply.headers["content-length"]))
            )
            page = visit.open()
            page.wait_for_selector(".clips label")
            paint_ms = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
            assert 0 < sum(sizes) < 500_000
            assert paint_ms < 1000


class TestServer:
    def test_a_key_is_asked_for_and_kept_in_the_tab_alone(self, visiting, tmp_path):
        key = mint_key("robot", "acme", [Scope.PREDICT])
        write_key_file(tmp_path / "keys.json", [key.key])
        settings = Settings(http={"port": 0}, keys=KeySettings(file=tmp_path / "keys.json"))
        with running_server(settings, given(ToyRolloutEngine())) as address, visiting(address) as visit:
            page = visit.page
            page.goto(address)
            page.wait_for_selector("#key-form:not([hidden]) .refused:not([hidden])")
            page.get_by_label("Key, as id.secret").fill(key.token)
            page.get_by_role("button", name="Use").click()
            page.wait_for_selector("#playground .asking")

            assert page.evaluate("sessionStorage.getItem('foreframe.key')") == key.token
            assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
            visit.forgive(REFUSED)

    def test_a_lost_server_shows_and_is_asked_again_when_it_is_back(self, visiting):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        frames = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
        settings = Settings(http={"port": port})
        with contextlib.ExitStack() as held:
            server = held.enter_context(contextlib.ExitStack())
            server.enter_context(running_server(settings, given(ToyRolloutEngine())))
            visit = held.enter_context(visiting(f"http://127.0.0.1:{port}"))
            page = visit.open()
            page.get_by_label("Video or pictures").set_input_files(files_of(frames))
            page.get_by_label("States, CSV or JSON").fill(text_of(np.zeros((12, 3))))
            page.get_by_label("States, CSV or JSON").blur()
            server.close()
            page.get_by_role("button", name="Predict", exact=True).click()
            page.wait_for_selector("#lost:not([hidden])")
            assert "Lost the server" in page.locator(".running").inner_text()

            held.enter_context(running_server(settings, given(ToyRolloutEngine())))
            page.wait_for_selector(".summary dl", timeout=20_000)
            assert page.locator("#lost").is_hidden()
            assert page.get_by_label("States, CSV or JSON").input_value().startswith("0.0")
            visit.forgive(LOST)


def run(command):
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
