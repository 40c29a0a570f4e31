"""Candidates in a real browser: plans, a goal picture, costs and frames, as the server itself gives them."""

import json

import httpx
import numpy as np
import pytest

from foreframe_server.cli.serving import running_server
from foreframe_server.settings import Settings

REFUSED = "Failed to load resource: the server responded with a status of 4"
PATIENCE_MS = 60_000
SAMPLE = """async (options) => {
  const { sample } = await import(new URL("plans.js", document.querySelector("script[type=module]").src));
  return sample(options.base, options);
}"""


@pytest.fixture(scope="module")
def address():
    with running_server(Settings(http={"port": 0})) as address:
        yield address


@pytest.fixture(scope="module")
def clip(address):
    return httpx.get(f"{address}/v1/models/eve-tabletop/clips/0").json()


class Planner:
    """Somebody who compares plans, few of them and quickly."""

    def __init__(self, visit):
        self.visit = visit
        self.asked = []
        visit.page.on(
            "request", lambda request: request.url.endswith("/v1/scores") and self.asked.append(request.post_data)
        )
        self.page = visit.open("candidates")
        self.page.wait_for_selector("#candidates .goal-frames canvas[data-filled]")
        if self.page.locator("#candidates details:not([open])").count():
            self.page.get_by_text("Cost", exact=True).click()
        for label, value in (("Plans", 6), ("Members", 2), ("Steps", 1), ("Show the best", 3)):
            self.page.get_by_label(label, exact=True).fill(str(value))

    def score(self):
        """Press the button, wait for the table and return what was asked for."""
        count = len(self.asked)
        self.page.get_by_role("button", name="Score").click()
        self.page.wait_for_selector("#candidates form:not([aria-busy=true]) button:enabled", timeout=PATIENCE_MS)
        self.page.wait_for_selector("#candidates .ranking", timeout=PATIENCE_MS)
        assert len(self.asked) == count + 1
        return json.loads(self.asked[-1])

    def column(self, number):
        return self.page.locator(f"#candidates .ranking tbody td:nth-child({number})").all_inner_texts()


@pytest.fixture
def planner(visiting, address):
    with visiting(address) as visit:
        yield Planner(visit)


class TestScoring:
    def test_the_table_has_the_costs_that_the_server_gives_for_the_same_request(self, planner, address):
        request = planner.score()
        answer = httpx.post(f"{address}/v1/scores", json=request, timeout=60).json()
        ranked = sorted(answer["candidates"], key=lambda one: one["rank"])

        assert [int(text.split(",")[0]) for text in planner.column(3)] == [one["index"] for one in ranked]
        assert [float(text) for text in planner.column(4)] == pytest.approx([one["cost"] for one in ranked], rel=6e-3)
        told = planner.page.locator("#candidates .summary").inner_text()
        assert f"{round(100 * answer['rank_stability'])}" in told
        assert "6 of 6" in told

    def test_the_best_plans_have_their_last_frames_and_a_plan_its_film(self, planner):
        planner.score()
        assert planner.page.locator("#candidates .thumbnail").count() == 3
        assert planner.visit.is_painted("#candidates .thumbnail")
        assert planner.page.locator("#candidates .chosen-plan canvas").count() == 9

        planner.page.locator("#candidates .ranking tbody tr").last.click()
        assert "were not asked for" in planner.page.locator("#candidates .chosen-plan").inner_text()

    def test_a_click_on_a_frame_makes_it_the_goal(self, planner, clip):
        first = planner.score()
        planner.page.locator("#candidates .goal-frames label").nth(5).click()
        second = planner.score()

        images = [request["objectives"][0]["params"]["image"]["data"] for request in (first, second)]
        assert images == [clip["frames"][11]["data"], clip["frames"][5]["data"]]
        assert first["candidates"] == second["candidates"]

    def test_columns_sort_both_ways_by_mouse_and_keyboard(self, planner):
        planner.score()
        planner.page.get_by_role("button", name="Jerkiness").click()
        rising = [float(text) for text in planner.column(6)]
        planner.page.keyboard.press("Enter")
        falling = [float(text) for text in planner.column(6)]

        assert rising == sorted(rising)
        assert falling == rising[::-1]
        assert planner.page.locator("#candidates th[aria-sort=descending]").inner_text().startswith("Jerkiness")

    def test_terms_without_weight_are_left_out_and_others_get_a_column(self, planner):
        planner.page.get_by_label("Weight of jerkiness").fill("0")
        planner.page.get_by_label("Weight of spread").fill("2")
        request = planner.score()
        assert [(each["kind"], each["weight"]) for each in request["objectives"]] == [("goal_image", 1), ("spread", 2)]
        heads = planner.page.locator("#candidates th").all_inner_texts()
        assert "Spread" in heads
        assert "Jerkiness" not in heads


class TestPlans:
    def test_the_first_is_the_base_and_the_seed_makes_the_rest(self, planner, clip):
        planner.page.get_by_label("Around").select_option("filmed")
        first, second = (planner.score()["candidates"]["values"] for _ in range(2))
        planner.page.locator("#candidates").get_by_label("Seed").fill("2")
        third = planner.score()["candidates"]["values"]

        assert first == second
        assert first[1:] != third[1:]
        assert np.array(first[0]) == pytest.approx(np.array(clip["states"][4:]))

    def test_only_what_is_to_move_moves(self, planner, address):
        names = httpx.get(f"{address}/v1/state-schemas/eve-25").json()["names"]
        planner.page.get_by_label("What moves").select_option("left")
        plans = np.array(planner.score()["candidates"]["values"])
        moved = np.ptp(plans, axis=0).max(axis=0) > 0
        assert {name for name, is_moved in zip(names, moved, strict=True) if is_moved} == {
            name for name in names if name.startswith("LEFT_")
        }

    def test_plans_are_gaussian_about_the_base_with_the_deviation_asked_for(self, planner):
        options = {"base": [[1.0, 5.0]] * 4, "count": 4001, "deviations": [2.0, 0.0], "smoothness": 0.6, "seed": 7}
        plans = np.array(planner.page.evaluate(SAMPLE, options))[1:]
        assert plans[:, -1, 0].mean() == pytest.approx(1.0, abs=0.15)
        assert (plans[:, :, 1] == 5.0).all()
        assert 0.5 < np.corrcoef(plans[:, 2, 0], plans[:, 3, 0])[0, 1] < 0.8
        spread = plans[:, :, 0].std(axis=0)
        assert (np.diff(spread) > 0).all()
        assert spread[-1] < 2.2

    def test_plans_stay_in_the_range_that_is_known(self, planner):
        options = {"base": [[0.0]] * 8, "count": 50, "deviations": [5.0], "smoothness": 0.0, "seed": 1}
        plans = np.array(planner.page.evaluate(SAMPLE, {**options, "low": [-1.0], "high": [1.0]}))
        free = np.array(planner.page.evaluate(SAMPLE, options))
        assert np.abs(plans).max() == 1
        assert np.abs(free).max() > 1


class TestTrouble:
    @pytest.mark.parametrize(
        ("label", "value"), [("Members", "99"), ("Plans", "300"), ("Goal at frame", "20"), ("Steps", "0")]
    )
    def test_a_refusal_stands_beside_its_field_and_what_was_typed_stays(self, planner, label, value):
        control = planner.page.get_by_label(label, exact=True)
        control.fill(value)
        planner.page.get_by_role("button", name="Score").click()
        planner.page.wait_for_selector("#candidates [aria-invalid=true]")
        planner.visit.forgive(REFUSED)

        assert control.get_attribute("aria-invalid") == "true"
        assert control.input_value() == value
        assert planner.page.locator("#candidates .ranking").count() == 0

    def test_what_no_plans_can_be_made_of_is_told_before_anything_is_asked(self, planner):
        planner.page.get_by_label("Smoothness").fill("1.5")
        planner.page.get_by_role("button", name="Score").click()
        assert "0 to 0.99" in planner.page.locator("#candidates .refused:visible").inner_text()
        assert planner.asked == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_is_labelled_and_legible(visiting, address, scheme):
    with visiting(address, scheme=scheme) as visit:
        planner = Planner(visit)
        planner.score()
        assert visit.unlabelled() == []
        assert visit.faint() == []


def test_it_fits_a_phone(visiting, address):
    with visiting(address, width=390, height=844) as visit:
        planner = Planner(visit)
        planner.score()
        assert planner.page.evaluate("document.documentElement.scrollWidth") == 390
