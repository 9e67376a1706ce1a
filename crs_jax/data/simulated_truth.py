"""What seekers of the embedded corpus truly think of each item: a file beside it that no stage of training reads."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np

from crs_jax.data.catalogue import Catalogue
from crs_jax.runtime.errors import InputError

TRUTH_FILE = "truth.npz"


@dataclasses.dataclass(frozen=True)
class Truth:
    """True utility of every item for the seeker of every dialogue.

    Attributes:
      dialogue_ids: ReDial's `conversationId`, of train and test.
      item_ids: column of `utility_DN` for each item.
      utility_DN: float32 in [0, 1].
    """

    dialogue_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    utility_DN: np.ndarray

    @classmethod
    def load(cls, folder: pathlib.Path) -> Truth:
        """Reads what `generate` left in the folder; `InputError` where it is not there."""
        path = pathlib.Path(folder) / TRUTH_FILE
        if not path.exists():
            raise InputError(f"{path}: not found; only a folder that the simulator wrote holds the true utilities")
        with np.load(path) as arrays:
            return cls(
                tuple(arrays["dialogue_ids"].tolist()),
                tuple(arrays["item_ids"].tolist()),
                arrays["utility_DN"].astype(np.float32),
            )

    def aligned(self, catalogue: Catalogue) -> Truth:
        """The same truth with its columns in the catalogue's order; `InputError` names an item it does not know."""
        column = {item: n for n, item in enumerate(self.item_ids)}
        ids = tuple(item.item_id for item in catalogue.items)
        unknown = next((item for item in ids if item not in column), None)
        if unknown is not None:
            raise InputError(f"{TRUTH_FILE}: no true utility of item {unknown!r}; generate corpus and truth together")
        return Truth(self.dialogue_ids, ids, self.utility_DN[:, [column[item] for item in ids]])

    def utility(self, dialogue_id: str) -> np.ndarray:
        """float32 [N], one for each of `item_ids`; `InputError` for a dialogue the simulator did not write."""
        row = self._rows.get(str(dialogue_id))
        if row is None:
            raise InputError(f"{TRUTH_FILE}: no dialogue {dialogue_id!r}; generate corpus and truth together")
        return self.utility_DN[row]

    @property
    def _rows(self) -> Mapping[str, int]:
        if "rows" not in self.__dict__:
            self.__dict__["rows"] = {dialogue: d for d, dialogue in enumerate(self.dialogue_ids)}
        return self.__dict__["rows"]
