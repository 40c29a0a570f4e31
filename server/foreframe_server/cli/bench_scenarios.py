"""`foreframe bench http single-stream`, `server` and `offline`: the reference's answers, and then the load."""

from foreframe_server.cli.bench_http import Target, run_preset
from foreframe_server.cli.bench_sheets import write_sheets
from foreframe_server.load.findings import Findings
from foreframe_server.load.scenarios import ScenarioPlan, measure_scenario


def run_scenario(target: Target, plan: ScenarioPlan) -> Findings:
    """Compute what is right with the bundle's weights in a plain loop here, and measure a server against it.

    Raises BundleError, DatasetError or Fault.
    """
    sheets = write_sheets(target.bundle, plan.ask, plan.exam.clips)
    return run_preset(target, lambda bench: measure_scenario(bench, plan, sheets))
