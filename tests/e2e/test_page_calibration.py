"""The spread chart in a real browser, under answers whose calibration is put into them on their way to the page."""

import json
import re

import pytest

from foreframe_server.cli.serving import running_server
from foreframe_server.settings import Settings

DONE = re.compile(r"^event: done\ndata: (.*)$", re.MULTILINE)
CHART = ".chart:has(polyline.line)"
NUM_FRAMES = 8
WIDE_LAST = [2.0] * 5 + [0.5] * 3
WIDE_HERE_AND_THERE = [2.0] * 5 + [0.5, 2.0, 0.5]
VERDICTS = {
    "usual": ([2.0] * 8, "all", "8 frames trusted", "no more than in 95\u202f% of held-out recordings"),
    "late": (WIDE_LAST, "some", "5 frames trusted", "Frames after 5 spread more than 95\u202f% of held-out recordings"),
    "between": (WIDE_HERE_AND_THERE, "some", "5 frames trusted", "Frames 6 and 8 spread more than"),
    "once": ([2.0] * 7 + [0.5], "some", "7 frames trusted", "Frame 8 spreads more than"),
    "early": ([0.5] + [2.0] * 7, "none", "no frame trusted", "at the first frame already"),
    "never": ([0.5] * 8, "none", "no frame trusted", "from the first frame on"),
}


@pytest.fixture(scope="module")
def address():
    with running_server(Settings(http={"port": 0})) as address:
        yield address


class Calibrator:
    """Puts a calibration into every prediction: lines at `shares` of the spread, or none at all."""

    def __init__(self, shares, *, knows_error=True):
        self.shares = shares
        self.knows_error = knows_error
        self.last = None

    def __call__(self, route):
        reply = route.fetch()
        route.fulfill(response=reply, body=DONE.sub(self._judged, reply.text()))

    def _judged(self, found):
        answer = json.loads(found[1])
        self.last = answer["uncertainty"]
        self.last.update(self._calibrated(self.last["spread_per_frame"]))
        return f"event: done\ndata: {json.dumps(answer)}"

    def _calibrated(self, spread):
        if self.shares is None:
            return {"calibration": None, "verdict": "uncalibrated", "trusted_horizon": None}
        line = [share * value for share, value in zip(self.shares, spread, strict=True)]
        error = [4 * value for value in spread] if self.knows_error else None
        usual = [value <= most for value, most in zip(spread, line, strict=True)]
        return {
            "calibration": {"coverage": 0.95, "line_per_frame": line, "error_per_frame": error},
            "verdict": "judged",
            "trusted_horizon": usual.index(False) if False in usual else len(usual),
        }


def predicted(visit, calibrator):
    """The page once it shows a prediction of several members, judged by a calibrator."""
    visit.page.route("**/v1/predictions", calibrator)
    page = visit.open()
    page.wait_for_selector(".clips label")
    page.get_by_role("button", name="Predict", exact=True).click()
    page.wait_for_selector(".summary dl")
    return page


def values_of(page, name):
    """A series of the spread chart as it is read out; none where it is not drawn."""
    told = re.search(rf"{re.escape(name)}: ([^a-z]+)\.", page.locator(f"{CHART} svg").get_attribute("aria-label") + ".")
    return [] if told is None else [float(value) for value in told[1].split(", ")]


def heights_of(page, selector):
    points = page.locator(f"{CHART} {selector}").get_attribute("points").split()
    return [float(point.split(",")[1]) for point in points]


@pytest.mark.parametrize("case", VERDICTS)
def test_a_verdict_is_told_under_the_chart_and_in_the_summary(visiting, address, case):
    shares, trust, trusted, words = VERDICTS[case]
    with visiting(address) as visit:
        page = predicted(visit, Calibrator(shares))
        mark = page.locator(".summary [data-trust]")

        assert words in page.locator(f"{CHART} > .hint").inner_text()
        assert mark.get_attribute("data-trust") == trust
        assert mark.inner_text() == f"judged, {trusted}"
        assert f"Verdict: judged, {trusted}." in page.locator("#live").inner_text()
        assert page.locator(f"{CHART} rect.untrusted").count() == (trust != "all")
        assert page.locator(f"{CHART} li.untrusted").count() == (trust != "all")


def test_lines_stand_where_the_calibration_has_them(visiting, address):
    with visiting(address) as visit:
        calibrator = Calibrator(WIDE_HERE_AND_THERE)
        page = predicted(visit, calibrator)
        calibration = calibrator.last["calibration"]

        assert values_of(page, "usual at most") == pytest.approx(calibration["line_per_frame"], rel=6e-3)
        assert values_of(page, "error at most (95\u202f%)") == pytest.approx(calibration["error_per_frame"], rel=6e-3)
        spread, usual = heights_of(page, "polyline.line"), heights_of(page, "polyline.usual")[1:-1]
        assert [own < other for own, other in zip(usual, spread, strict=True)] == [
            share > 1 for share in WIDE_HERE_AND_THERE
        ]
        assert max(heights_of(page, "polyline.bound")) < min(spread)


def test_one_member_is_not_held_to_the_error_of_the_mean(visiting, address):
    with visiting(address) as visit:
        page = predicted(visit, Calibrator([2.0] * NUM_FRAMES))
        counts = []
        for shown in ("mean", "member 1", "mean"):
            page.get_by_label("Show").select_option(shown)
            counts.append([page.locator(f"{CHART} {each}").count() for each in ("polygon.bound", "polyline.usual")])
        assert counts == [[1, 1], [0, 1], [1, 1]]


def test_an_error_that_is_not_known_is_not_drawn(visiting, address):
    with visiting(address) as visit:
        page = predicted(visit, Calibrator([2.0] * NUM_FRAMES, knows_error=False))
        assert page.locator(f"{CHART} polyline.usual").count() == 1
        assert page.locator(f"{CHART} .bound").count() == 0


def test_without_a_calibration_the_spread_stands_alone(visiting, address):
    with visiting(address) as visit:
        page = predicted(visit, Calibrator(None))
        assert page.locator(f"{CHART} :is(.usual, .bound, .untrusted)").count() == 0
        assert "The spread is uncalibrated" in page.locator(f"{CHART} > .hint").inner_text()
        assert page.locator(".summary [data-trust=unknown]").inner_text() == "uncalibrated"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("case", ["usual", "between", "never"])
def test_it_is_legible_on_a_phone(visiting, address, scheme, case):
    with visiting(address, width=360, height=740, scheme=scheme) as visit:
        page = predicted(visit, Calibrator(VERDICTS[case][0]))
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert visit.unlabelled() == []
        assert visit.faint() == []
