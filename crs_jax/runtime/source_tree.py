"""The commit of the source tree that runs."""

from __future__ import annotations

import os
import pathlib
import subprocess


def commit() -> str:
    """Commit of the source tree, `+` where it is changed; where it is none, what CRS_JAX_COMMIT says (a container)."""
    here = pathlib.Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=here,
            capture_output=True,
            encoding="utf-8",
            timeout=10,
            check=True,
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], cwd=here, capture_output=True, encoding="utf-8",
            timeout=10, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("CRS_JAX_COMMIT", "")
    return head + ("+" if changed else "")
