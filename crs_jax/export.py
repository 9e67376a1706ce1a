"""Writes a policy of a finished run as a Hugging Face folder, to keep, to pass on or to put on the hub.

  python -m crs_jax.export --workdir=runs/quickstart --out=shared/quickstart
  python -m crs_jax.chat --workdir=shared/quickstart
  hf upload OWNER/NAME shared/quickstart                # puts it on the hub; not done by this program

  --workdir    a run that has ended
  --out        the folder to make: safetensors, config, tokenizer, item table, model card
  --model      ppo, or sft, the policy before it. Default: ppo
  --licence    of weights and item table, as the hub names it (cc-by-4.0). Default: that of the corpus
  --data_dir   where the run's corpus is, if not where it was
  --trust-code runs the Python file that the run's config names as its reward (`reward.function`)
  --overwrite  replaces a folder that this program made before

`crs_jax.load(OUT)` gives the policy back, equal in every bit, without the run and its corpus. transformers loads its
GPT-2 part: AutoModelForCausalLM.from_pretrained(OUT).
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from crs_jax.program import Parser, leave, run_program, show_help


def main(argv: Sequence[str]) -> None:
    """Reads the flags and does it."""
    parser = Parser(prog="python -m crs_jax.export", description=__doc__, usage=argparse.SUPPRESS,
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    for name in ("workdir", "out"):
        parser.add_argument(f"--{name}", required=True, help=argparse.SUPPRESS)
    for name, default in (("model", "ppo"), ("licence", ""), ("data_dir", "")):
        parser.add_argument(f"--{name}", default=default, help=argparse.SUPPRESS)
    for name in ("trust-code", "overwrite"):
        parser.add_argument(f"--{name}", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    workdir, out = (pathlib.Path(path).expanduser() for path in (given.workdir, given.out))
    from crs_jax.api import load
    from crs_jax.sharing.folder import check_place
    from crs_jax.storage import writing

    check_place(out, given.overwrite)
    run = load(workdir, given.model, given.data_dir, given.trust_code)
    with writing(out.parent):
        run.export(out, given.licence, given.overwrite)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {given.model} of {workdir}, {len(run.catalogue):,} items, {size / 1e6:,.1f} MB")
    print(f"to the hub: hf upload OWNER/NAME {out}")


if __name__ == "__main__":
    show_help(__name__, __doc__)
    leave(run_program(main))
