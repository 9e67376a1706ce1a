"""The commit of the source tree that runs."""

from __future__ import annotations

import pathlib
import subprocess


def commit() -> str:
    """Commit of the source tree, `+` where it is changed; empty where it is none."""
    here = pathlib.Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], cwd=here, capture_output=True, text=True,
            timeout=10, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return head + ("+" if changed else "")
