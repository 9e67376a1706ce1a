"""Aligns conversational recommenders with implicit user feedback (README.md).

  load(workdir)           a finished run, or an exported folder, as a `Run`
  train(config, workdir)  runs a config's stages and loads what came out
  Run                     `recommend`, `reply` and `score` for a dialogue; `export`, `using`, `message`, `warm_up`
  Recommendation, Reply, Score   what these give
  InputError              all that is wrong with what was given, in one sentence

  >>> import crs_jax
  >>> run = crs_jax.load(workdir)
  >>> talk = [("user", "Hi! Something light and funny, please.")]
  >>> reply = run.reply(talk, temperature=0.7, seed=1)
  >>> [item.name for item in run.recommend(talk)] == [item.name for item in reply.top]
  True

Each is imported when it is first used, so that `import crs_jax` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crs_jax.runtime.errors import InputError
    from crs_jax.tools.api.proposals import Recommendation, Reply, Score
    from crs_jax.tools.api.run import Run, load
    from crs_jax.tools.api.train import train

_HOME = {
    **dict.fromkeys(("Run", "load"), "crs_jax.tools.api.run"),
    "train": "crs_jax.tools.api.train",
    **dict.fromkeys(("Recommendation", "Reply", "Score"), "crs_jax.tools.api.proposals"),
    "InputError": "crs_jax.runtime.errors",
}
__all__ = ["InputError", "Recommendation", "Reply", "Run", "Score", "load", "train"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        metadata = import_module("importlib.metadata")
        try:
            return metadata.version("crs-jax")
        except metadata.PackageNotFoundError:
            raise AttributeError("crs_jax is not installed, so it has no version; pip install -e .") from None
    if name not in _HOME:
        raise AttributeError(f"module 'crs_jax' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__", *(name for name in globals() if name.startswith("__"))]
