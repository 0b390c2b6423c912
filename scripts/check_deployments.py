"""Check deployments/ without a Docker engine: compose.yaml and Caddyfile by their own programs, the Dockerfile step by step.

    python scripts/check_deployments.py --target cpu [--bind FOLDER …]    # as root

It needs Debian's debootstrap, docker-compose and caddy.

The Dockerfile's steps run as its users in a new Debian of the image's release, whose Python takes the place of the image's.
It has this machine's configuration of pip, and sees of its folders those that --bind names. Ends with 1 if anything is wrong
or was not checked.
"""

import argparse
import fnmatch
import json
import os
import re
import shlex
import shutil
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "deployments" / "docker"
SMOKE = (
    "ninefold plan /opt/ninefold/deployments/experiments/quickstart.yaml",
    "prefect version",
    "mlflow --version",
    # the command itself asks for a GPU, whatever it is told
    'test -z "$NINEFOLD_VLLM" || "$(dirname "$NINEFOLD_VLLM")"/python -c "import vllm; print(vllm.__version__)"',
)
PIP = ("/etc/pip.conf", "/etc/xdg/pip", "/etc/ssl/certs/ca-certificates.crt", "/etc/resolv.conf", "/etc/hosts")


def compose() -> str:
    """Return by what compose.yaml was read; raise LookupError if nothing can, and CalledProcessError if it is wrong."""
    text = (DOCKER / "compose.yaml").read_text()
    secrets = dict.fromkeys(re.findall(r"\$\{(\w+):\?", text), "x")
    if shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        program = ["docker", "compose"]
    elif shutil.which("docker-compose"):
        program = ["docker-compose"]
        text = re.sub(r"^name:.*$", "", text, flags=re.M)  # version 1 does not know the line
    else:
        raise LookupError("neither docker compose nor docker-compose is here")
    read = [*program, "--file", "-", "--project-directory", str(DOCKER), "config", "--quiet"]
    subprocess.run(read, input=text, env=os.environ | secrets, text=True, check=True)
    return f"read by {' '.join(program)}"


def caddy() -> str:
    """Return by what the Caddyfile was read, as `compose`."""
    if not shutil.which("caddy"):
        raise LookupError("caddy is not here")
    hashed = subprocess.run(["caddy", "hash-password", "--plaintext", "x"], capture_output=True, text=True, check=True)
    given = {"PREFECT_HOST": "prefect.localhost", "MLFLOW_HOST": "mlflow.localhost", "PAGES_USER": "x"}
    given |= {"PAGES_PASSWORD_HASH": hashed.stdout.strip()}
    with tempfile.TemporaryDirectory() as home:
        validate = ["caddy", "validate", "--adapter", "caddyfile", "--config", str(DOCKER / "Caddyfile")]
        subprocess.run(validate, env=os.environ | given | {"HOME": home}, capture_output=True, check=True)
    return "read by caddy"


def instructions(target: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the image that a target of the Dockerfile begins with, and its instructions, with those of earlier stages."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    stages: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    for line in filter(str.strip, text.splitlines()):
        what, rest = line.split(maxsplit=1)
        if what == "FROM":
            base, _, name = rest.split()
            begins, before = stages.get(base, (base, []))
            stages[name] = (begins, list(before))
        else:
            stages[name][1].append((what, rest))
    return stages[target]


class Image:
    """A folder that is built as an image is."""

    def __init__(self, root: Path, base: str, bound: list[str]) -> None:
        release = re.fullmatch(r"python:3\.11-slim-(\w+)", base)
        if release is None or release[1] != "bookworm":
            raise SystemExit(f"{base}: this script makes python:3.11-slim-bookworm only, whose Debian has that Python")
        self.root, self.bound, self.user, self.folder = root, bound, "root", "/"
        self.environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        print(f"FROM {base}: Debian {release[1]} by debootstrap, with its own Python 3.11", flush=True)
        packages = "--include=python3,python3-venv,ca-certificates"
        subprocess.run(
            ["debootstrap", "--variant=minbase", packages, release[1], str(root)], stdout=subprocess.DEVNULL, check=True
        )
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        (root / "usr/local/bin/python3").symlink_to("/usr/bin/python3")
        for name in PIP:
            if Path(name).is_dir():
                shutil.copytree(name, root / name[1:], dirs_exist_ok=True)
            elif Path(name).exists():
                shutil.copy(name, root / name[1:])

    def build(self, what: str, rest: str) -> None:
        """Do one instruction."""
        print(what, rest, flush=True)
        if what == "RUN":
            self.run(rest)
        elif what == "USER":
            self.user = rest
        elif what == "WORKDIR":
            self.folder = rest
            (self.root / rest[1:]).mkdir(parents=True, exist_ok=True)
        elif what == "ENV":
            for pair in shlex.split(rest):
                name, _, value = pair.partition("=")
                self.environment[name] = string.Template(value).substitute(self.environment)
        elif what == "COPY":
            self.copy(*shlex.split(rest))
        elif what == "CMD":
            self.command = shlex.join(json.loads(rest))
        else:
            raise SystemExit(f"{what} is not known to this script")

    def copy(self, owner: str, *names: str) -> None:
        """Copy what .dockerignore lets pass, and give it to its owner."""
        ignored = [line for line in (ROOT / ".dockerignore").read_text().split() if line[0] not in "!*" or "/" in line]
        place = self.root / self.folder[1:] / names[-1]

        def passes(path: Path) -> bool:
            named = path.relative_to(ROOT)
            return not any(fnmatch.fnmatch(str(part), rule) for part in (named, *named.parents) for rule in ignored)

        for name in names[:-1]:
            source = ROOT / name
            files = [f for f in source.rglob("*") if f.is_file()] if source.is_dir() else [source]
            for file in filter(passes, files):
                to = place / file.relative_to(source if source.is_dir() else ROOT)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, to)
        self.run(f"chown -R {owner.removeprefix('--chown=')} {shlex.join(names[-1:])}", user="root")

    def run(self, command: str, user: str | None = None) -> None:
        """Run a command as the image's user, in its folder; raise CalledProcessError if it fails."""
        user = user or self.user
        passwd = (line.split(":") for line in (self.root / "etc/passwd").read_text().splitlines())
        home = next(fields[5] for fields in passwd if fields[0] == user)
        passed = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        variables = [f"{name}={value}" for name, value in ({"HOME": home} | passed | self.environment).items()]
        mounts = [f"mount -t proc proc {self.root}/proc", f"mount --rbind /dev {self.root}/dev"]
        for folder in self.bound:
            (self.root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
            mounts.append(f"mount --bind --read-only {folder} {self.root}{folder}")
        inside = ["chroot", f"--userspec={user}", str(self.root), "env", "-i", *variables]
        inside += ["sh", "-ec", f"cd {self.folder}; {command}"]
        script = f"{' && '.join(mounts)} && exec {shlex.join(inside)}"
        subprocess.run(["unshare", "--mount", "--", "sh", "-ec", script], check=True)


def image(target: str, bound: list[str]) -> str:
    """Return how the build of a target's image went; raise LookupError if it cannot be tried."""
    if os.geteuid() or not shutil.which("debootstrap"):
        raise LookupError("it takes root and debootstrap")
    base, steps = instructions(target)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="image-") as scratch:
        built = Image(Path(scratch, "root"), base, bound)
        for what, rest in steps:
            built.build(what, rest)
        for command in (built.command, *SMOKE):
            print("$", command, flush=True)
            built.run(command)
        size = int(subprocess.check_output(["du", "-sm", str(built.root)]).split()[0])
    return f"{len(steps)} steps in {time.monotonic() - began:.0f} s, {size:,} MB"


def main() -> int:
    """Check everything, and return 1 if anything is wrong or could not be checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=["cpu", "cuda"], default="cpu", help="of the Dockerfile")
    parser.add_argument("--bind", action="append", default=[], metavar="FOLDER", help="that pip looks into")
    given = parser.parse_args()
    checks: dict[str, Callable[[], str]] = {
        "compose.yaml": compose,
        "Caddyfile": caddy,
        f"Dockerfile, {given.target}": lambda: image(given.target, given.bind),
    }
    said, failed = [], False
    for name, check in checks.items():
        try:
            said.append(f"{name}: {check()}")
        except LookupError as missing:
            failed = True
            said.append(f"{name}: NOT checked: {missing}")
        except subprocess.CalledProcessError as error:
            failed = True
            said.append(f"{name}: WRONG: {error.stderr or error}")
    print("\n".join(said))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
