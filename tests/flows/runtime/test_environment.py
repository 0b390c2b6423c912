"""Whoever has a Prefect profile of their own keeps it: its server is used, and none is started beside it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT, without_prefect

SCRIPT = """
import json
import psutil
from flows.runtime.environment import prepare_flows
prepare_flows()
from prefect.settings import get_current_settings
children = [" ".join(child.cmdline()) for child in psutil.Process().children()]
print(json.dumps([get_current_settings().api.url, [child for child in children if "prefect_server" in child]]))
"""


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/api", None], ids=["with a server", "without"])
def test_the_server_of_the_users_profile_is_used(tmp_path: Path, url: str | None) -> None:
    theirs = tmp_path / "prefect"
    theirs.mkdir()
    line = f'PREFECT_API_URL = "{url}"' if url else 'PREFECT_LOGGING_LEVEL = "ERROR"'
    (theirs / "profiles.toml").write_text(f'active = "theirs"\n[profiles.theirs]\n{line}\n')
    own = {"PREFECT_HOME": str(theirs), "PREFECT_PROFILE": "theirs", "NINEFOLD_HOME": str(tmp_path / "home")}
    environment = {name: value for name, value in without_prefect().items() if name != "PREFECT_HOME"} | own
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, servers = json.loads(done.stdout.splitlines()[-1])
    if url:
        assert (found, servers) == (url, [])
    else:
        assert len(servers) == 1
        assert str(theirs) in servers[0], "it keeps its database where the user's profile says"
