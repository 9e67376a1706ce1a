"""The process that measures the cells of one size on one side, JAX or torch, and prints a JSON line for each.

A process of its own, so that the two never hold the device's memory at once, and that one killed takes nothing along.
It is started by `__main__.py` with one argument, an `Order` in JSON. Lines that begin with `MARK` are for it.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from crs_jax.runtime.host_memory import keep_and_advise
from crs_jax.runtime.program import show_help
from crs_jax.tools.benchmark.plan import Cell, parse
from crs_jax.tools.benchmark.record import described
from crs_jax.tools.benchmark.timing import Patience

MARK = "@benchmark "
LONGEST_ERROR = 400


@dataclasses.dataclass(frozen=True)
class Order:
    """What a worker is asked.

    Attributes:
      cells: as texts, of one side.
      config: config file whose variants are the sizes.
      overrides: `--config.NAME=VALUE` for all cells.
      deadline: seconds since the epoch after which no cell is begun.
      small: the short form.
      seconds, least: of `Patience`.
      peaks: measure the device's peaks first.
      half: whether cells run in bfloat16 (None: on an accelerator).
      threads: of the CPU; 0: all.
      same_memory: torch too has the C library keep its memory (`runtime/host_memory.py`), as torch by itself does not.
    """

    cells: tuple[str, ...]
    config: str
    overrides: tuple[str, ...] = ()
    deadline: float = float("inf")
    small: bool = False
    seconds: float = 3.0
    least: int = 3
    peaks: bool = False
    half: bool | None = None
    threads: int = 0
    same_memory: bool = False


def tell(**facts: Any) -> None:
    """One line to whoever started this process."""
    print(MARK + json.dumps(facts), flush=True)


def config_of(order: Order, cell: Cell, half: bool) -> ConfigDict:
    """The cell's config: the size's, then the command line's changes, then the cell's own."""
    from crs_jax import flags as command_line

    dtype = f"--config.model.dtype={'bfloat16' if half else 'float32'}"
    line = ["benchmark", f"--config={order.config}:{cell.size}", dtype, *order.overrides, *cell.flags]
    return command_line.parse(line, flags.FlagValues()).config


def go_through(order: Order, half: bool, run: Callable[[Cell, ConfigDict], dict[str, Any]]) -> None:
    """Measures cell after cell; one that fails is told as such and the others go on."""
    for text in order.cells:
        if time.time() > order.deadline:
            tell(cell=text, left_out="the time was up")
            continue
        tell(begins=text)
        try:
            cell = parse(text)
            config = config_of(order, cell, half)
            tell(cell=text, found=described(cell, config) | run(cell, config))
        except Exception as error:  # whatever it is, it is this cell's
            tell(cell=text, error=f"{type(error).__name__}: {error}"[:LONGEST_ERROR])
        gc.collect()


def jax_side(order: Order) -> None:
    """Cells of the program itself."""
    import flax
    import jax
    import jaxlib

    from crs_jax.tools.benchmark import cells
    from crs_jax.tools.benchmark.peaks import peaks
    from crs_jax.tools.benchmark.world import World

    device = jax.devices()[0]
    half = device.platform != "cpu" if order.half is None else order.half
    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "flax": flax.__version__}
    tell(device={"platform": device.platform, "kind": device.device_kind}, versions=versions)
    if order.peaks:
        tell(peaks=peaks("bfloat16" if half else "float32", order.small))
    patience = Patience(least=order.least, seconds=order.seconds)
    held: dict[tuple, World] = {}

    def run(cell: Cell, config: ConfigDict) -> dict[str, Any]:
        shape = cell.size, tuple((n, v) for n, v in cell.settings if n.startswith(("model.", "tokenizer.", "simul")))
        if shape not in held:
            held.clear()
            gc.collect()
            held[shape] = World.of(config)
        world = dataclasses.replace(held[shape], task=dataclasses.replace(held[shape].task, config=config))
        return cells.run(cell.part, world, patience)

    go_through(order, half, run)


def torch_side(order: Order) -> None:
    """The same work in torch and transformers."""
    import torch
    import transformers

    from crs_jax.tools.benchmark import torch_side as side

    if order.threads:
        torch.set_num_threads(order.threads)
    device = "cuda" if order.half is not False and torch.cuda.is_available() else "cpu"
    half = device == "cuda" if order.half is None else order.half
    tell(versions={"torch": torch.__version__, "transformers": transformers.__version__}, torch_device=device)

    def run(cell: Cell, config: ConfigDict) -> dict[str, Any]:
        return side.run(cell.work, config, device, half, Patience(order.least, seconds=order.seconds))

    go_through(order, half, run)


def main(argument: str) -> None:
    """Does what an `Order` in JSON says."""
    order = Order(**json.loads(argument))
    if order.threads and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: order.threads])
    torch = parse(order.cells[0]).torch
    if not torch or order.same_memory:
        keep_and_advise()  # before threads have heaps of their own
    (torch_side if torch else jax_side)(order)


if __name__ == "__main__":
    show_help(__name__, __doc__)
    main(sys.argv[1])
