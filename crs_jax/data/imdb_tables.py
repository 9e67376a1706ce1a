"""IMDb's public tables, read line by line: gzipped UTF-8, columns between tabs, a header, nothing quoted.

https://developer.imdb.com/non-commercial-datasets says what the columns hold.
"""

from __future__ import annotations

import gzip
import io
import pathlib
import zlib
from collections.abc import Collection, Iterator

from crs_jax.data.records import describe
from crs_jax.runtime.errors import InputError
from crs_jax.runtime.progress import Progress

BASICS, PRINCIPALS, NAMES = "title.basics.tsv.gz", "title.principals.tsv.gz", "name.basics.tsv.gz"
COLUMNS = {
    BASICS: (
        "tconst", "titleType", "primaryTitle", "originalTitle", "isAdult", "startYear", "endYear", "runtimeMinutes",
        "genres",
    ),
    PRINCIPALS: ("tconst", "ordering", "nconst", "category", "job", "characters"),
    NAMES: ("nconst", "primaryName", "birthYear", "deathYear", "primaryProfession", "knownForTitles"),
}  # fmt: skip
MISSING = "\\N"
_MEGABYTE = 2**20
_OFTEN = 2**14  # lines between two looks at the clock


class Tables:
    """The tables in a folder.

    Args:
      folder: where they are.
      skip: leaves out lines that cannot be read, and counts them in `skipped`, instead of stopping at the first.
    """

    def __init__(self, folder: pathlib.Path, skip: bool = False) -> None:
        for name in COLUMNS:
            if not (folder / name).is_file():
                raise InputError(f"--imdb={folder}: no file {name}: give the folder of IMDb's {', '.join(COLUMNS)}")
        self._folder, self._skip = folder, skip
        self.skipped: list[str] = []

    def rows(self, name: str, wanted: Collection[bytes] | None = None) -> Iterator[tuple[str, list[str]]]:
        """`file:line` and the columns of each line, or of those whose first column is `wanted`.

        A whole table takes minutes, nearly all of it for lines that nobody wants: these are only counted by columns.

        Raises:
          InputError: the file is not that table, breaks off, or has a line of another number of columns.
        """
        path, tabs = self._folder / name, len(COLUMNS[name]) - 1
        megabytes = -(-path.stat().st_size // _MEGABYTE)
        with path.open("rb") as raw, Progress(megabytes, name, "MB") as progress:
            file = io.BufferedReader(gzip.GzipFile(fileobj=raw), _MEGABYTE)  # type: ignore[type-var]
            try:
                header = tuple(file.readline().decode("utf-8", "replace").rstrip("\r\n").split("\t"))
                if header != COLUMNS[name]:
                    expected = ", ".join(COLUMNS[name])
                    raise InputError(f"{path}:1: found columns {', '.join(header)[:200]}, expected {expected}")
                for number, line in enumerate(file, 2):
                    if not number % _OFTEN:
                        progress.update(raw.tell() // _MEGABYTE - progress.done)
                    if (found := line.count(b"\t")) != tabs:
                        self.fault(f"{path}:{number}", f"found {found + 1} columns, expected {tabs + 1}")
                    elif wanted is None or line[: line.index(b"\t")] in wanted:
                        try:
                            columns = line.decode("utf-8").rstrip("\r\n").split("\t")
                        except UnicodeDecodeError as error:
                            self.fault(f"{path}:{number}", f"byte {line[error.start]:#04x} is not UTF-8")
                            continue
                        yield f"{path}:{number}", columns
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                reason = str(error).rstrip(".")
                raise InputError(f"{path}: breaks off or is no gzip file ({reason}): download it again") from None
            progress.update(megabytes - progress.done)

    def number(self, where: str, column: str, value: str, prefix: str = "") -> int | None:
        """The whole number behind a prefix; None where the line says nothing, or is left out."""
        if value == MISSING:
            return None
        digits = value.removeprefix(prefix)
        if value.startswith(prefix) and digits.isascii() and digits.isdigit():
            return int(digits)
        self.fault(where, f"column {column!r}: found {describe(value)}, expected {prefix or 'a'} number")
        return None

    def fault(self, where: str, said: str) -> None:
        """A line that cannot be read."""
        if not self._skip:
            raise InputError(f"{where}: {said}: download the table again, or give --on_error=skip")
        self.skipped.append(f"{where}: {said}")
