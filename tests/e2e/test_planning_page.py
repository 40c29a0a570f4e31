"""The planning page's code block runs against a real server, and its plan gets better from round to round."""

import re
import subprocess
import sys
from pathlib import Path

from foreframe_server.cli.overrides import read_overridden
from foreframe_server.cli.serving import running_server

GETS_BETTER = "assert plan.best_costs[-1] < 0.95 * plan.best_costs[0]"
PAGE = (Path(__file__).parents[2] / "docs" / "planning.md").read_text(encoding="utf-8")


def test_the_python_block_plans(tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    with running_server(read_overridden(host="127.0.0.1", port=0, engine={"processes": 0})) as address:
        code = f"{block.replace('http://127.0.0.1:8000', address)}\n{GETS_BETTER}\n"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "(8, 25)" in done.stdout
