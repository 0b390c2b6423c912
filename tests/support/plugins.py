"""Install a package of plugins beside Ninefold's packages, into a folder that goes on PYTHONPATH."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "plugin"


def install(package: Path, site: Path) -> Path:
    """Build and install a package, its metadata with it, and return the folder."""
    uv = Path(sys.executable).with_name("uv")
    pip = [str(uv), "pip"] if uv.exists() else [sys.executable, "-m", "pip"]
    with TemporaryDirectory() as scratch:
        copy = shutil.copytree(package, Path(scratch) / package.name)  # a build leaves files in it
        command = [*pip, "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(site), str(copy)]
        subprocess.run(command, check=True, env=os.environ | {"VIRTUAL_ENV": sys.prefix})
    return site
