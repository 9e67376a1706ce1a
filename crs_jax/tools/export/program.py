"""Writes a policy of a finished run as a Hugging Face folder, to keep, to pass on or to put on the hub."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from crs_jax.runtime.program import Parser


def main(argv: Sequence[str]) -> None:
    """Reads the flags and does it."""
    parser = Parser(prog="python -m crs_jax.export", usage=argparse.SUPPRESS,
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    for name in ("workdir", "out"):
        parser.add_argument(f"--{name}", required=True, help=argparse.SUPPRESS)
    for name, default in (("model", "ppo"), ("licence", ""), ("data_dir", "")):
        parser.add_argument(f"--{name}", default=default, help=argparse.SUPPRESS)
    for name in ("trust-code", "overwrite"):
        parser.add_argument(f"--{name}", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    workdir, out = (pathlib.Path(path).expanduser() for path in (given.workdir, given.out))
    from crs_jax.runtime.storage import writing
    from crs_jax.tools.api.run import load
    from crs_jax.tools.export.folder import check_place

    check_place(out, given.overwrite)
    run = load(workdir, given.model, given.data_dir, given.trust_code)
    with writing(out.parent):
        run.export(out, given.licence, given.overwrite)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {given.model} of {workdir}, {len(run.catalogue):,} items, {size / 1e6:,.1f} MB")
    print(f"to the hub: hf upload OWNER/NAME {out}")
