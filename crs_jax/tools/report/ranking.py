"""Ranking: every row, both sets of targets, both protocols."""

from __future__ import annotations

from collections.abc import Sequence

from crs_jax.tools.report.figures import PROTOCOLS, TARGETS, Figure, name_of, number, p_value
from crs_jax.tools.report.html import Html, folded, join, missing, note, section, tag
from crs_jax.tools.report.overview import Comparison, comparison_table, measure_near, ranking_comparison
from crs_jax.tools.report.tables import figure_cell, group_row, head, row_head, table, whisker
from crs_jax.tools.report.workdir import Run, is_figure

ORDER = ("init", "sft", "ppo", "optimum", "rerank", "popularity", "copy", "similarity", "cooccurrence", "mix")
MEASURES = ("hr", "ndcg", "mrr")
MARKS = {"sft": "sft", "ppo": "ppo"}


def rows_of(run: Run) -> list[str]:
    """Rows that the run measured: the policies first, then the baselines."""
    found = list(run.table("ranking"))
    return sorted(found, key=lambda row: (ORDER.index(row) if row in ORDER else len(ORDER), found.index(row)))


def _order(name: str) -> tuple[int, int]:
    measure, _, k = name.partition("@")
    return (MEASURES.index(measure) if measure in MEASURES else len(MEASURES), int(k) if k.isdigit() else 0)


def measures_of(run: Run, target: str, protocol: str) -> list[str]:
    """Names of the measures that any row has, HR first, by rising cutoff."""
    found: set[str] = set()
    for top, rows in (("ranking", rows_of(run)), ("published", list(run.table("published")))):
        for row in rows:
            cells = run.table(top, row, target, protocol)
            found |= {name for name, value in cells.items() if is_figure(value)}
    return sorted((name for name in found if name.partition("@")[0] in MEASURES), key=_order)


def _highest(figures: Sequence[Figure | None]) -> float | None:
    real = [figure.value for figure in figures if figure]
    return max(real) if len(real) > 1 else None


def _grid(run: Run, target: str, columns: Sequence[tuple[str, str]], heads: Sequence[Sequence[Html]], label: str):
    """A table with a column for each (protocol, measure), the run's rows, then the published ones."""
    measured = rows_of(run)
    best = {c: _highest([run.figure("ranking", row, target, *c) for row in measured]) for c in columns}
    starts = {i for i, column in enumerate(columns) if i == 0 or columns[i - 1][0] != column[0]}
    rows: list[Html] = []
    sources: dict[str, list[str]] = {}
    for top, names in (("ranking", measured), ("published", list(run.table("published")))):
        shown = []
        for row in names:
            figures = [run.figure(top, row, target, *column) for column in columns]
            if not any(figures):
                continue
            cells = [
                figure_cell(f, best=bool(f and top == "ranking" and f.value == best[c]), split=i in starts)
                for i, (f, c) in enumerate(zip(figures, columns, strict=True))
            ]
            if top == "published" and (source := run.table(top, row).get("source")):
                sources.setdefault(str(source), []).append(name_of(row))
            shown.append(tag("tr", row_head(name_of(row), "", MARKS.get(row, "")), *cells, class_=MARKS.get(row)))
        if shown:
            title = "This run" if top == "ranking" else "Published, not measured here"
            rows += [group_row(title, len(columns) + 1), *shown]
    if not rows:
        return missing(f"No row has {label}.")
    said = [
        note(", ".join(names) if len(sources) > 1 else "Published", f": {text}.") for text, names in sources.items()
    ]
    return join([table(heads, rows, label, "dense"), *said])


def _side_by_side(run: Run, target: str) -> Html:
    columns, groups = [], []
    for protocol in PROTOCOLS:
        names = measures_of(run, target, protocol)
        near = [n for n in (measure_near(run, "ndcg", 10), measure_near(run, "mrr", 10)) if n in names]
        chosen = [name for name in names if name.startswith("hr@")] + near
        columns += [(protocol, name) for name in chosen]
        if chosen:
            groups.append(head(PROTOCOLS[protocol], span=len(chosen)))
    second = [head(name_of(name)) for _, name in columns]
    heads = [[head("", numeric=False, down=2), *groups], second]
    return _grid(run, target, columns, heads, TARGETS[target].lower())


def _complete(run: Run, target: str, protocol: str) -> Html:
    names = measures_of(run, target, protocol)
    heads = [[head("", numeric=False), *(head(name_of(name)) for name in names)]]
    label = f"{TARGETS[target].lower()}, {PROTOCOLS[protocol].lower()}"
    return tag("div", tag("h4", label.capitalize()), _grid(run, target, [(protocol, n) for n in names], heads, label))


def _forest(run: Run, name: str) -> Html:
    """One measure of every row, a column for each set of targets and protocol, intervals drawn."""
    panels = [(target, protocol) for target in TARGETS for protocol in PROTOCOLS]
    entries = [("ranking", row) for row in rows_of(run)] + [("published", row) for row in run.table("published")]
    found = {(e, p): run.figure(*e, *p, name) for e in entries for p in panels}
    top = {}
    for panel in panels:
        real = [f for e in entries if (f := found[e, panel])]
        top[panel] = 1.08 * max([f.high if f.high is not None else f.value for f in real], default=0.0)
    shown_panels = [panel for panel in panels if top[panel] > 0]
    rows = []
    for entry in entries:
        figures = [found[entry, panel] for panel in shown_panels]
        if not any(figures):
            continue
        colour = MARKS.get(entry[1], "other")
        cells = [
            tag("td", whisker(f, 0.0, top[p], colour, hollow=entry[0] == "published"), class_="plot wide")
            for f, p in zip(figures, shown_panels, strict=True)
        ]
        rows.append(tag("tr", row_head(name_of(entry[1]), "published" if entry[0] == "published" else ""), *cells))
    heads = [head(name_of(name), numeric=False)]
    for target, protocol in shown_panels:
        scale = tag("small", f"0 to {number(top[target, protocol])}")
        heads.append(tag("th", f"{TARGETS[target]}, {PROTOCOLS[protocol].lower()}", scale, scope="col"))
    return table([heads], rows, f"{name_of(name)} with intervals", "forest") if rows else Html("")


def _dialogue_table(run: Run) -> Html:
    """SR and RDL: figures of whole dialogues, under `success.<row>` or beside a row's `all` and `fresh`."""
    cells: dict[str, dict[str, Figure]] = {}
    for top in ("success", "ranking", "published"):
        for row in run.table(top):
            for name, value in run.table(top, row).items():
                if "@" not in name and is_figure(value) and (figure := run.figure(top, row, name)):
                    label = name_of(row) + (" (published)" if top == "published" else "")
                    cells.setdefault(label, {})[name] = figure
    found = {name for row in cells.values() for name in row if name != "n"}
    names = sorted(found, key=lambda name: ("sr", "rdl").index(name) if name in ("sr", "rdl") else 2)
    if not names:
        return Html("")
    rows = [tag("tr", row_head(label), *(figure_cell(row.get(n)) for n in names)) for label, row in cells.items()]
    heads = [[head("", numeric=False), *(head(name_of(name)) for name in names)]]
    words = note(
        "SR: share of dialogues with an item ranked first that the seeker liked or had seen. RDL: 1 for a liked item, "
        "0.5 for a seen one, summed and divided by the dialogue's messages, averaged; by round: divided by its ranking "
        "instances instead."
    )
    return tag("div", tag("h3", "Whole dialogues"), table(heads, rows, "Whole dialogues"), words)


def _length_name(bucket: str, window: str) -> str:
    if bucket in ("within-window", "beyond-window"):
        return f"{name_of(bucket)}{window}"
    return bucket.replace("-", "–") + " utterances"


def _by_length(run: Run) -> Html:
    """HR and NDCG of each policy by the utterances before the message, and PPO minus SFT."""
    tables, window = [], run.table("by_length").get("window")
    for target in TARGETS:
        buckets = run.table("by_length", target)
        rows = list(dict.fromkeys(row for bucket in buckets for row in run.table("by_length", target, bucket)))
        rows = [row for row in rows if row != "n"]
        near = (measure_near(run, "hr", 10), measure_near(run, "ndcg", 10))
        columns = [(name, row) for name in near if name for row in rows]
        body = []
        for bucket in buckets:
            cells = [
                figure_cell(run.figure("by_length", target, bucket, row, name), signed=row == "ppo-sft")
                for name, row in columns
            ]
            count = run.figure("by_length", target, bucket, "n")
            label = _length_name(bucket, f" of {window}" if window else "")
            body.append(tag("tr", row_head(label), *cells, figure_cell(count)))
        if body:
            heads = [head("Before the message", numeric=False)]
            heads += [head(f"{name_of(name)}, {name_of(row)}") for name, row in columns]
            label = f"By length, {TARGETS[target].lower()}, full catalogue"
            tables.append(tag("div", tag("h4", label), table([[*heads, head("n")]], body, label, "dense")))
    words = note(
        "By what was said before the message that is ranked: whether a policy loses its way in long dialogues, past "
        "the window it reads. Late targets are harder or easier in themselves; the paired difference is free of that."
    )
    return folded("By length of the dialogue", words, *tables) if tables else Html("")


def _paired_all(run: Run) -> Html:
    groups: list[tuple[str, list[Comparison]]] = []
    for target in TARGETS:
        for protocol in PROTOCOLS:
            names = measures_of(run, target, protocol)
            found = [ranking_comparison(run, target, protocol, name) for name in names]
            both = [row for row in found if row and row.sft and row.ppo]
            if both:
                groups.append((f"{TARGETS[target]}, {PROTOCOLS[protocol].lower()}", both))
    return folded("PPO − SFT, every measure", comparison_table(groups)) if groups else Html("")


def _against(run: Run) -> Html:
    """Each policy minus each other row, paired, HR with full catalogue: whether a row's lead is more than chance."""
    tables = []
    for target in TARGETS:
        names = [name for name in measures_of(run, target, "full") if name.startswith("hr@")]
        rows = []
        for pair in run.table("paired"):
            found = [run.figure("paired", pair, target, "full", name) for name in names]
            if not any(found):
                continue
            a, _, b = pair.partition("-")
            cells = [
                join([figure_cell(f, signed=True), tag("td", p_value(f.p) if f else "", class_="n")]) for f in found
            ]
            rows.append(tag("tr", row_head(f"{name_of(a)} − {name_of(b)}", "", MARKS.get(a, "")), *cells))
        if rows:
            heads = [[head("", numeric=False), *(h for name in names for h in (head(name_of(name)), head("p")))]]
            label = f"{TARGETS[target]}, full catalogue"
            tables.append(tag("div", tag("h4", label), table(heads, rows, label, "dense")))
    words = note(
        "Both rows answer the same instances. Small print: 95% interval by bootstrap over dialogues; p: two-sided, "
        "from the same resamples."
    )
    return folded("Row against row", words, *tables) if tables else Html("")


def ranking(run: Run) -> Html:
    """The section with all ranking tables."""
    title = "Ranking"
    if not rows_of(run):
        return section("ranking", title, missing("No ranking figures: the stage evaluate has not been run."))
    negatives = run.setting("evaluation.negatives", 99)
    words = note(
        "Fresh targets were not named earlier in their dialogue. Full catalogue: the target's rank among all items. "
        f"Sampled: its rank among itself and {negatives} items drawn uniformly; much easier, so the two "
        "are not to be compared. Small print: 95% interval by bootstrap over dialogues. Bold: the highest of this "
        "run's rows. At cutoff 1, HR, NDCG and MRR are the same number."
    )
    name = measure_near(run, "hr", 10)
    first, *others = TARGETS
    tables = [tag("h3", TARGETS[first]), _side_by_side(run, first)]
    tables += [folded(TARGETS[target], _side_by_side(run, target)) for target in others]
    complete = [_complete(run, target, protocol) for target in TARGETS for protocol in PROTOCOLS]
    return section(
        "ranking",
        title,
        words,
        _forest(run, name) if name else "",
        *tables,
        _dialogue_table(run),
        _by_length(run),
        _against(run),
        _paired_all(run),
        folded("Every row, every measure", *complete),
    )
