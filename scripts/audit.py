"""Ask PyPI's advisories about every installed package: 1 if a weakness is known, 0 if none is, or if nobody answers."""

import json
import subprocess
import sys


def main() -> int:
    """Run pip-audit, whose path is the first argument, on the packages of the folder that is the second."""
    auditor, packages = sys.argv[1:]
    command = [auditor, "--path", packages, "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout:
        print(f"audit: NOT audited: {done.stderr.strip().splitlines()[-1:]}")
        return 0
    found = json.loads(done.stdout)["dependencies"]
    asked = [package for package in found if "skip_reason" not in package]
    weak = [package for package in asked if package["vulns"]]
    for package in weak:
        for vulnerability in package["vulns"]:
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
            print(f"audit: {package['name']} {package['version']}: {vulnerability['id']}, fixed in {fixed}")
    unknown = f" ({len(found) - len(asked)} others are unknown to PyPI's advisories)" if len(found) > len(asked) else ""
    print(
        f"audit: {len(weak)} of {len(asked)} packages have known weaknesses{unknown}"
        if asked
        else "audit: NOT audited: no advisories here"
    )
    return 1 if weak else 0


if __name__ == "__main__":
    sys.exit(main())
