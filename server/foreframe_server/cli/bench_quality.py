"""`foreframe bench ensemble` in this process, and `bench quality-latency` over HTTP."""

import asyncio
import time
from contextlib import closing
from functools import partial

from foreframe_engines import sample
from foreframe_server.cli.bench_http import Target, told
from foreframe_server.cli.clips import check_clips, shipped_clips
from foreframe_server.cli.console import print_note, track
from foreframe_server.cli.facts import ModelFacts, bundle_path, open_engine
from foreframe_server.cli.overrides import read_private
from foreframe_server.experiments.ensemble_costs import CostPlan, report_costs, sizes_of, time_sizes
from foreframe_server.experiments.noise import last_frame_query, measure_spent
from foreframe_server.load.door import open_door
from foreframe_server.load.quality import QualityPlan, measure_quality, report_quality
from foreframe_server.reports.report import Report
from foreframe_server.settings import Settings


def run_ensemble(settings: Settings, plan: CostPlan) -> Report:
    """Measure quality and time at every size. Raises BundleError, DatasetError or RuntimeUnavailable."""
    with closing(open_engine(settings)) as engine:
        contract, predict = engine.contract, partial(sample, engine)
        clips = shipped_clips(bundle_path(settings), plan.clips)
        check_clips(clips, ModelFacts.of(contract))
        spent = (measure_spent(predict, contract, clip, plan.scale) for clip in clips)
        measured = list(track(spent, "clips", len(clips)))
        query = last_frame_query(contract, clips[0])
        taken = time_sizes(predict, query, sizes_of(measured[0]), plan.rounds, time.perf_counter)
    return report_costs(contract, plan, [clip.seed for clip in clips], measured, taken)


def run_quality_latency(target: Target, plan: QualityPlan) -> Report:
    """Ask a server about the bundle's clips at every setting. Raises BundleError, DatasetError or Fault."""
    clips = shipped_clips(bundle_path(read_private(target.bundle)), plan.clips)

    async def measure(address: str) -> Report:
        async with open_door(address) as door:
            return report_quality(plan, clips, await measure_quality(door, plan, clips, print_note))

    with target.open() as address, told():
        return asyncio.run(measure(address))
