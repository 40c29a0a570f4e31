"""Drive in a real browser: a session under keys, sliders and a gamepad; rewound, branched and lost."""

import json
from itertools import pairwise

import httpx
import numpy as np
import pytest

from foreframe_server.cli.serving import running_server
from foreframe_server.settings import Settings

REFUSED = "Failed to load resource: the server responded with a status of 4"
LOST = "net::ERR_"
FRAME = "(canvas) => canvas.toDataURL()"
PAD = """() => {
  window.pad = { id: "Pad", index: 0, connected: true, axes: [0, 0, 0, 0],
    buttons: Array.from({ length: 17 }, () => ({ pressed: false, value: 0 })) };
  navigator.getGamepads = () => [window.pad];
}"""


@pytest.fixture(scope="module")
def address():
    with running_server(Settings(http={"port": 0})) as address:
        yield address


@pytest.fixture(scope="module")
def schema(address):
    return httpx.get(f"{address}/v1/state-schemas/eve-25").json()


class Driver:
    """Somebody at the drive."""

    def __init__(self, visit):
        self.visit = visit
        self.steps = []
        self.asked = []
        visit.page.on("request", self._note)
        self.page = visit.open("drive")
        self.page.wait_for_selector("#drive .pane canvas[data-filled]")

    def _note(self, request):
        self.asked.append((request.method, request.url))
        if request.url.endswith("/steps"):
            self.steps.append(json.loads(request.post_data))

    @property
    def rows(self):
        """The last row of every step: what the frame that it shows was made for."""
        return np.array([step["future"]["values"][-1] for step in self.steps])

    @property
    def length(self):
        return int(self.page.locator("#drive-scrub").get_attribute("max"))

    def drive_to(self, frames):
        """Drive until there are so many frames, and pause."""
        self.page.locator("#drive .actions .first").click()
        self.page.wait_for_function(
            "(least) => Number(document.querySelector('#drive-scrub').max) >= least", arg=frames
        )
        self.pause()

    def pause(self):
        self.page.keyboard.press("Space")
        self.page.wait_for_selector("#drive[data-running=false]")

    def look(self, at):
        self.page.locator("#drive-scrub").fill(str(at))

    def press(self, name):
        self.page.get_by_role("button", name=name).click()

    def frame(self, pane, at):
        self.look(at)
        return self.page.locator(f"#drive .pane:nth-child({pane}) canvas").evaluate(FRAME)


@pytest.fixture
def driver(visiting, address):
    with visiting(address) as visit:
        yield Driver(visit)


class TestDriving:
    def test_a_held_key_moves_its_joint_through_twenty_frames_that_differ(self, driver, schema):
        driver.page.keyboard.down("i")
        driver.drive_to(20)
        driver.page.keyboard.up("i")

        moved = np.ptp(driver.rows, axis=0)
        assert len({driver.frame(1, at) for at in range(21)}) == 21
        assert schema["names"][int(np.argmax(moved))] == "RIGHT_SHOULDER_PITCH"
        assert np.count_nonzero(moved) == 1

    def test_a_slider_says_where_a_joint_goes_and_the_joint_takes_its_time(self, driver, schema):
        index = schema["names"].index("NECK_PITCH")
        low, high = schema["low"][index], schema["high"][index]
        driver.page.get_by_label("Neck pitch").fill(str(low))
        driver.drive_to(20)

        assert driver.rows[-1, index] == pytest.approx(low, abs=1e-6)
        assert np.abs(np.diff(driver.rows[:, index])).max() <= (high - low) / 18 + 1e-9

    def test_a_gamepad_drives_the_base_and_its_button_pauses(self, visiting, address, schema):
        with visiting(address) as visit:
            visit.page.add_init_script(f"({PAD})()")
            driver = Driver(visit)
            driver.page.evaluate("""() => {
              const connected = new Event("gamepadconnected");
              connected.gamepad = window.pad;
              window.pad.axes[1] = -1;
              window.dispatchEvent(connected);
              window.pad.buttons[0].pressed = true;
            }""")
            driver.page.wait_for_function("() => Number(document.querySelector('#drive-scrub').max) >= 10")
            driver.page.evaluate("window.pad.buttons[0].pressed = false")
            driver.page.evaluate("() => new Promise(requestAnimationFrame)")
            driver.page.evaluate("() => new Promise(requestAnimationFrame)")
            driver.page.evaluate("window.pad.buttons[0].pressed = true")
            driver.page.wait_for_selector("#drive[data-running=false]")

            index = schema["names"].index("LINEAR_VELOCITY")
            assert driver.rows[9, index] == pytest.approx(schema["high"][index])

    def test_the_other_arm_is_moved_after_a_change_over(self, driver, schema):
        driver.page.keyboard.press("x")
        driver.page.keyboard.down("u")
        driver.drive_to(5)
        moved = np.ptp(driver.rows, axis=0)
        assert schema["names"][int(np.argmax(moved))] == "LEFT_ELBOW_PITCH"

    def test_eight_frames_rest_on_one_context_or_as_many_as_are_chosen(self, driver):
        driver.drive_to(9)
        assert [len(step["future"]["values"]) for step in driver.steps[:9]] == [1, 2, 3, 4, 5, 6, 7, 8, 1]
        driver.page.get_by_text("How frames are made").click()
        driver.page.get_by_label("From one context").select_option("1")
        driver.drive_to(driver.length + 10)
        assert all(len(step["future"]["values"]) == 1 for step in driver.steps[-2:])

    def test_another_view_pauses_it(self, driver):
        driver.page.keyboard.press("Space")
        driver.page.wait_for_selector("#drive[data-running=true]")
        driver.page.get_by_role("tab", name="Contract").click()
        driver.page.wait_for_selector("#drive[data-running=false]", state="attached")

    def test_what_is_told_of_speed_is_what_is_seen(self, driver):
        driver.page.keyboard.press("Space")
        driver.page.wait_for_function("() => Number(document.querySelector('#drive-scrub').max) >= 15")
        seen = driver.page.evaluate("""() => new Promise((resolve) => {
          const canvas = document.querySelector("#drive .pane canvas");
          const began = performance.now(), seen = new Set();
          const look = () => {
            seen.add(canvas.toDataURL());
            if (performance.now() - began < 2000) requestAnimationFrame(look);
            else resolve((seen.size - 1) / 2);
          };
          look();
        })""")
        told = float(driver.page.locator(".speed dd").first.inner_text())
        driver.pause()
        assert told == pytest.approx(seen, rel=0.35)
        assert told <= 15.5


class TestBranches:
    def test_a_rewind_takes_later_frames_back_and_the_drive_goes_on_from_there(self, driver):
        driver.drive_to(12)
        kept = driver.frame(1, 5)
        driver.press("Rewind to here")
        driver.page.wait_for_function("() => document.querySelector('#drive-scrub').max === '5'")
        assert any(url.endswith("/rollback") for _, url in driver.asked)

        driver.page.keyboard.down("k")
        driver.drive_to(10)
        driver.page.keyboard.up("k")
        assert driver.frame(1, 5) == kept
        assert np.abs(np.diff(driver.rows[-2:], axis=0)).max() > 0

    def test_a_branch_shares_the_past_and_goes_its_own_way_beside_the_other(self, driver):
        driver.drive_to(14)
        driver.look(6)
        driver.press("Branch here")
        driver.page.wait_for_selector("#drive .pane:nth-child(2):not([hidden])")
        driver.page.keyboard.down("i")
        driver.drive_to(driver.length + 1)
        driver.page.keyboard.up("i")

        assert sum(url.endswith("/forks") for _, url in driver.asked) == 1
        assert driver.frame(1, 6) == driver.frame(2, 6)
        assert "the same as A" in driver.page.locator("#drive .pane:nth-child(2)").inner_text()
        assert driver.frame(1, 14) != driver.frame(2, 14)
        assert "dB PSNR to A" in driver.page.locator("#drive .pane:nth-child(2)").inner_text()
        assert driver.page.locator("#drive .chart circle").count() >= 8

    def test_either_branch_can_be_driven_on(self, driver):
        driver.drive_to(4)
        driver.press("Branch here")
        driver.page.wait_for_selector("#drive .pane.chosen:nth-child(2)")
        driver.page.keyboard.press("1")
        driver.page.wait_for_selector("#drive .pane.chosen:nth-child(1)")
        driver.drive_to(9)
        driver.look(9)
        assert "ends at" in driver.page.locator("#drive .pane:nth-child(2)").inner_text()

    def test_the_same_seed_and_the_same_hands_give_the_same_frames(self, driver):
        driver.page.get_by_text("How frames are made").click()
        driver.page.get_by_label("A frame is").select_option("posterior_mean")
        driver.page.get_by_label("Seed").fill("3")
        seen = []
        for _ in range(2):
            driver.press("Start over")
            driver.page.wait_for_function("() => document.querySelector('#drive-scrub').max === '0'")
            driver.drive_to(3)
            seen.append([driver.frame(1, at) for at in range(4)])
        assert seen[0] == seen[1]


class TestTrouble:
    def test_a_session_that_the_server_forgot_is_started_anew_from_its_frames(self, driver, address):
        driver.drive_to(5)
        session = next(url.split("/")[-2] for _, url in driver.asked if url.endswith("/steps"))
        httpx.delete(f"{address}/v1/sessions/{session}").raise_for_status()

        driver.drive_to(driver.length + 5)
        driver.visit.forgive(REFUSED)
        assert driver.page.locator("#drive .alert").is_hidden()
        assert session not in next(url for _, url in reversed(driver.asked) if url.endswith("/steps"))

    def test_a_lost_server_is_told_and_the_drive_goes_on_when_it_is_back(self, driver):
        driver.page.keyboard.press("Space")
        driver.page.wait_for_function("() => Number(document.querySelector('#drive-scrub').max) >= 3")
        driver.page.context.set_offline(True)
        driver.page.wait_for_selector("#lost:not([hidden])")
        driver.page.get_by_text("Lost the server. The drive goes on").wait_for()
        before = driver.length
        driver.page.context.set_offline(False)
        driver.page.wait_for_function(
            "(least) => Number(document.querySelector('#drive-scrub').max) > least", arg=before + 2
        )
        driver.pause()
        driver.visit.forgive(LOST)

    def test_a_refusal_stands_beside_its_field_and_what_was_typed_stays(self, driver):
        driver.page.get_by_text("How frames are made").click()
        driver.page.get_by_label("Seed").fill("-4")
        driver.press("Start over")
        driver.page.wait_for_selector("#drive input[name=drive-seed][aria-invalid=true]")
        assert "greater than or equal to 0" in driver.page.locator("#drive .refused:visible").inner_text()
        assert driver.page.get_by_label("Seed").input_value() == "-4"
        driver.visit.forgive(REFUSED)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_is_labelled_and_legible_with_two_branches(visiting, address, scheme):
    with visiting(address, scheme=scheme) as visit:
        driver = Driver(visit)
        driver.drive_to(3)
        driver.press("Branch here")
        driver.page.wait_for_selector("#drive .pane.chosen:nth-child(2)")
        for group in driver.page.locator("#drive summary").all():
            group.click()
        assert visit.unlabelled() == []
        assert visit.faint() == []


def test_it_fits_a_phone(visiting, address):
    with visiting(address, width=390, height=844) as visit:
        driver = Driver(visit)
        driver.drive_to(2)
        assert driver.page.evaluate("document.documentElement.scrollWidth") == 390
        assert driver.page.get_by_role("button", name="Branch here").bounding_box()["y"] < 844


def test_effort_gives_way_to_time_and_comes_back(visiting, address):
    with visiting(address) as visit:
        page = visit.open("contract")
        steps = page.evaluate("""async () => {
          const { Effort } = await import(new URL("pace.js", document.querySelector("script[type=module]").src));
          const effort = new Effort({ steps: 4 });
          return [...Array(3).fill(150), ...Array(30).fill(30)].map((ms) => (effort.learn(ms), effort.steps));
        }""")
    assert steps[0] == 2
    assert min(steps) == 1
    assert steps[-1] == 4
    assert all(later in (earlier, earlier // 2, earlier * 2) for earlier, later in pairwise(steps))
