"""Asks pip-audit for known vulnerabilities of what is installed: exit code 1 if there are any.

Where the advisories can't be reached, or a mirror of PyPI stands in their place and has none, it
says what was not checked and ends with 0. One package is asked for first: a mirror that knows
nothing of it is not asked for a hundred others.
"""

import json
import subprocess
import sys
from importlib.metadata import version


def main() -> int:
    one = ask("--no-deps", "--disable-pip", "-r", "/dev/stdin", given=f"pip=={version('pip')}\n")
    if isinstance(one, str) or all("skip_reason" in package for package in one):
        reason = one if isinstance(one, str) else one[0]["skip_reason"]
        print(f"audit: NOT CHECKED, there are no advisories to be had here ({reason[:200]})")
        return 0
    packages = ask("--skip-editable")
    if isinstance(packages, str):
        print(f"audit: NOT CHECKED, the advisories could not be had ({packages[:200]})")
        return 0
    return report(packages)


def ask(*arguments: str, given: str = "") -> list[dict] | str:
    """pip-audit's answer, an entry per package, or the last line of its complaint."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(  # noqa: S603  (our own command, no input from elsewhere)
        [*command, *arguments], input=given, capture_output=True, text=True, check=False
    )
    try:
        return json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return (done.stderr.strip().splitlines() or ["no answer"])[-1]


def report(packages: list[dict]) -> int:
    """Prints what was found and returns the exit code."""
    skipped = [package for package in packages if "skip_reason" in package]
    found = [package for package in packages if package.get("vulns")]
    for package in found:
        for advisory in package["vulns"]:
            mended = ", ".join(advisory["fix_versions"]) or "no version yet"
            name = f"{package['name']} {package['version']}"
            print(f"audit: {name}: {advisory['id']}, mended by {mended}")
    checked = len(packages) - len(skipped)
    print(f"audit: {checked} packages checked, {len(found)} with known vulnerabilities")
    for package in skipped:
        print(f"audit: NOT CHECKED: {package['name']} ({package['skip_reason'][:200]})")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
