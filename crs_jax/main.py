"""Aligns a conversational recommender with implicit user feedback: SFT, reward model, PPO and evaluation.

Usage
  python -m crs_jax.main --config=FILE[:VARIANT] [--workdir=FOLDER] [--config.NAME=VALUE ...]

Examples
  python -m crs_jax.main --config=configs/quickstart.py
  python -m crs_jax.main --config=configs/redial_ppo.py:scratch --config.data.dir=FOLDER
  python -m crs_jax.main --config=configs/redial_ppo.py --config.reward.alpha=0 --config.data.window=4
  python -m crs_jax.main --config=configs/quickstart.py --config.stages=sft,evaluate --workdir=runs/sft_only

A run leaves config.json, checkpoints, metrics.json, metrics.jsonl, samples.jsonl and report.html in its folder. The
same command again continues: what the folder already holds is skipped. Ctrl-C and SIGTERM save and end; again after 2
seconds, they end at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags

from crs_jax.runtime.errors import InputError, InterruptedRunError, LostProcessError, StorageError, TrainingHaltedError
from crs_jax.runtime.host_memory import keep_and_advise


def main(argv: Sequence[str] | None = None, values: flags.FlagValues | None = None) -> int:
    """Parses the command line and runs the pipeline.

    Args:
      argv: the program's name and its arguments; `sys.argv` when left out.
      values: where the flags are defined; absl's `FLAGS` when left out.

    Returns:
      The exit status: 0. One line on stderr says what and what to do for 1, training that met a NaN; 2, input that
      cannot be used, or does not fit the memory; 74, a disk that is full or closed; 75, another process of the run is
      gone. 130 or 143 where SIGINT or SIGTERM ended the run, which has saved what it did.
    """
    from crs_jax import flags as command_line

    argv = sys.argv if argv is None else argv
    values = flags.FLAGS if values is None else values
    workdir = None
    try:
        if command_line.asks_for_help(argv):
            print(command_line.help_text(argv, values, __doc__ or ""))
            return 0
        keep_and_advise()  # before XLA's threads have heaps of their own
        command = command_line.parse(argv, values)
        workdir = command.workdir
        if command.distributed is not None:
            from crs_jax.runtime.processes import join

            join(command.distributed)
        from crs_jax import pipeline
        from crs_jax.runtime.interruption import listening
        from crs_jax.tools.report.page import write_report

        with listening(workdir):
            pipeline.run(command.config, workdir, write_report)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except StorageError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return StorageError.status
    except (LostProcessError, TrainingHaltedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    except (InterruptedRunError, KeyboardInterrupt) as stop:
        kept = f"what was done is saved in {workdir}; " if workdir else ""
        print(f"\n{stop or 'interrupted'}: {kept}the same command continues", file=sys.stderr)
        return stop.status if isinstance(stop, InterruptedRunError) else 130
    return 0


if __name__ == "__main__":
    from crs_jax.runtime.program import in_utf8, leave

    in_utf8()
    leave(main())
