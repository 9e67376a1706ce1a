"""Adds logged talks to the dialogues that a run was trained on, as a folder to train on; or forgets a talk.

  python -m crs_jax.chat.collect --log=talks.jsonl --workdir=runs/redial --out=data/with_talks
  python -m crs_jax.main --config=configs/redial_ppo.py:scratch --config.data.dir=data/with_talks
  python -m crs_jax.chat.collect --log=talks.jsonl --forget=3f0c9a5e1d7b2468

  --log       what `python -m crs_jax.chat --log` wrote; several files with commas between them
  --workdir   the run that was talked with
  --out       the folder to make: ReDial's files, the talks behind the training dialogues
  --data_dir  where the run's corpus is, if not where it was
  --forget    takes the talk of this id, which the page shows to its person, out of the log, and does nothing else

The times of the messages come along, so that engagement's dwell knows how long people stayed with a reply.
"""

from __future__ import annotations

from crs_jax.runtime.program import leave, run_program, show_help

if __name__ == "__main__":
    show_help(__name__, __doc__)
    from crs_jax.tools.chat.collect import main

    leave(run_program(main))
