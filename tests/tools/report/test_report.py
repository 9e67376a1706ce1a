"""report.html: well-formed, self-contained, safe with hostile text, and it shows the figures of metrics.json."""

from __future__ import annotations

import html.parser
import importlib.util
import json
import pathlib
import re

import pytest

from crs_jax.runtime.errors import InputError
from crs_jax.runtime.json_files import write_json, write_json_lines
from crs_jax.tools.report.charts import Chart, Line, moving_average, thinned, tick_label, ticks
from crs_jax.tools.report.figures import Figure, interval, name_of, number
from crs_jax.tools.report.html import tag
from crs_jax.tools.report.page import write_report

_spec = importlib.util.spec_from_file_location("report_run", pathlib.Path(__file__).with_name("report_run.py"))
assert _spec is not None
assert _spec.loader is not None
report_run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(report_run)
HOSTILE, STRENGTH, make_run, make_sft_run = (
    getattr(report_run, name) for name in ("HOSTILE", "STRENGTH", "make_run", "make_sft_run")
)

VOID = {"meta", "link", "br", "hr", "col"}


class Page(html.parser.HTMLParser):
    """Checks that tags are balanced; collects attributes, texts by section, and table rows."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.stack: list[tuple[str, dict]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.sections: dict[str, str] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.stack, f"left open: {[name for name, _ in self.stack]}"

    def section(self) -> str:
        return next((a["id"] for name, a in self.stack if name == "section"), "header")

    def handle_starttag(self, name, attrs):
        self.attributes += [(name, key, value or "") for key, value in attrs]
        if name not in VOID:
            self.stack.append((name, dict(attrs)))
        if name == "tr":
            self.rows.setdefault(self.section(), []).append([])
        if name in ("td", "th"):
            self.rows[self.section()][-1].append("")

    def handle_endtag(self, name):
        assert self.stack, f"</{name}> closes nothing"
        assert self.stack[-1][0] == name, f"</{name}> closes <{self.stack[-1][0]}>, line {self.getpos()}"
        self.stack.pop()

    def handle_data(self, data):
        names = [name for name, _ in self.stack]
        if "style" in names:
            return
        self.text += data
        self.sections[self.section()] = self.sections.get(self.section(), "") + data
        if {"td", "th"} & set(names) and "small" not in names:
            self.rows[self.section()][-1][-1] += data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    metrics = make_run(folder)
    path = write_report(folder)
    assert path == folder / "report.html"
    return metrics, path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(run):
    return Page(run[1])


def test_tags_are_balanced_and_every_section_is_there(page):
    expected = [
        "header",
        "standing",
        "comparison",
        "utility",
        "ranking",
        "text",
        "signals",
        "reward-model",
        "ppo",
        "liked",
        "curves",
        "samples",
        "data",
        "run",
    ]
    assert set(expected) <= set(page.sections)
    anchors = {value for _, key, value in page.attributes if key == "href" and value.startswith("#")}
    assert anchors == {f"#{name}" for name in expected[1:]}
    ids = [value for _, key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))


def test_nothing_is_fetched_and_nothing_runs(run, page):
    for name, key, value in page.attributes:
        assert not key.startswith("on"), (name, key)
        if key in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            assert value.startswith(("#", "data:,")), (name, key, value)
        assert name not in ("script", "iframe", "object", "embed", "img")
        if key == "style":
            assert "url(" not in value
    style = re.search(r"<style>(.*?)</style>", run[1], re.S)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_hostile_text_is_shown_as_text(run, page):
    assert HOSTILE in page.sections["samples"]
    assert "<script" not in run[1]
    assert "onerror=alert(1)>" not in run[1]


@pytest.mark.parametrize(
    "where",
    ["dialogue_id", "turn", "role", "text", "items", "top", "monitor", "device", "row", "config", "metric", "dataset"],
)
def test_every_place_that_shows_data_escapes_it(tmp_path, where):
    metrics = make_run(tmp_path, count=1)
    sample = json.loads((tmp_path / "samples.jsonl").read_text())
    config = json.loads((tmp_path / "config.json").read_text())
    if where in ("dialogue_id", "turn"):
        sample[where] = HOSTILE
    elif where == "role":
        sample["context"][0]["role"] = HOSTILE
    elif where == "text":
        sample["ppo"]["text"] = HOSTILE
    elif where == "monitor":
        metrics["monitors"] = {HOSTILE: {"measure": HOSTILE, "bound": HOSTILE, "before": 1.0, "bad": True}}
        metrics["health"] = {HOSTILE: HOSTILE}
    elif where in ("items", "top"):
        sample["ppo"][where] = [HOSTILE]
    elif where == "device":
        metrics["run"] |= {"device": HOSTILE, "commit": HOSTILE, "command": HOSTILE, "more": HOSTILE}
    elif where == "row":
        for table in ("ranking", "text", "reward_model", "published"):
            metrics[table][HOSTILE] = next(iter(metrics[table].values()))
        metrics["published"]["KBRD"]["source"] = HOSTILE
        metrics["ppo"][HOSTILE] = 1.0
        metrics["data"][HOSTILE] = HOSTILE
        metrics["run"]["seconds_by_stage"][HOSTILE] = 1.0
        metrics["elsewhere"] = {HOSTILE: HOSTILE}
    elif where == "config":
        config["model"]["init"] = HOSTILE
    elif where == "dataset":
        config["data"]["dataset"] = HOSTILE
    elif where == "metric":
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"stage": HOSTILE, "step": 1, HOSTILE: 2.0}) + "\n")
    write_json(tmp_path / "metrics.json", metrics)
    write_json(tmp_path / "config.json", config)
    (tmp_path / "samples.jsonl").write_text(json.dumps(sample))
    text = write_report(tmp_path).read_text()
    assert "&lt;script&gt;" in text
    parsed = Page(text)
    assert {name for name, _, _ in parsed.attributes} & {"script", "img"} == set()
    assert "<script" not in text.replace("&lt;", "")


def row(page: Page, section: str, first: str) -> list[list[str]]:
    return [cells for cells in page.rows[section] if cells and cells[0] == first]


def test_ranking_tables_hold_every_figure_of_every_row(run, page):
    metrics, text = run
    cells = {cell for cells in page.rows["ranking"] for cell in cells}
    for name in STRENGTH:
        assert row(page, "ranking", name_of(name))
        for target in ("all", "fresh"):
            for protocol in ("full", "sampled"):
                for figure in metrics["ranking"][name][target][protocol].values():
                    assert f"{figure['value']:.3f}" in cells
                    assert f"{figure['low']:.3f}–{figure['high']:.3f}" in text


def test_ranking_columns_stand_under_the_right_heading(run, page):
    """The row of PPO: HR at rising cutoffs, NDCG@10, MRR@10, in the full catalogue, then sampled."""
    metrics, _ = run
    names = ["hr@1", "hr@5", "hr@10", "hr@50", "ndcg@10", "mrr@10"]
    heads = [cells for cells in page.rows["ranking"] if cells == [name_of(name) for name in names] * 2]
    assert len(heads) == 2
    for target in ("fresh", "all"):
        expected = [
            f"{metrics['ranking']['ppo'][target][p][n]['value']:.3f}" for p in ("full", "sampled") for n in names
        ]
        assert ["PPO", *expected] in page.rows["ranking"]
    published = ["KBRD", "0.017", "–", "0.148", "0.300", "–", "–"] + ["–"] * 6
    assert published in page.rows["ranking"]


def test_ranking_by_length_holds_each_bucket(run, page):
    metrics, _ = run
    for bucket, shown in (
        ("1-3", "1–3 utterances"),
        ("11+", "11+ utterances"),
        ("beyond-window", "Beyond window of 8"),
    ):
        lines = row(page, "ranking", shown)
        for target, line in zip(("fresh", "all"), lines, strict=True):
            cells = metrics["by_length"][target][bucket]
            expected = []
            for name in ("hr@10", "ndcg@10"):
                expected += [f"{cells[policy][name]['value']:.3f}" for policy in ("sft", "ppo")]
                expected.append(number(cells["ppo-sft"][name]["value"], signed=True))
            assert line == [shown, *expected, f"{cells['n']:,}"]


def test_a_corpus_without_answers_says_so_of_its_classifier(tmp_path):
    metrics = make_run(tmp_path, count=1)
    metrics["sentiment_classifier"] = {"classifier": "vader", "answers": 7, "liked": "none: no answers " + HOSTILE}
    del metrics["signals"]
    write_json(tmp_path / "metrics.json", metrics)
    words = Page(write_report(tmp_path).read_text()).sections["signals"]
    assert "Against liked: none: no answers" in words
    assert HOSTILE in words


def test_comparison_holds_both_policies_and_the_paired_difference(run, page):
    metrics, text = run
    for protocol in ("full", "sampled"):
        for name in ("hr@5", "ndcg@5", "mrr@10"):
            sft, ppo = (metrics["ranking"][r]["fresh"][protocol][name]["value"] for r in ("sft", "ppo"))
            gain = metrics["paired"]["ppo-sft"]["fresh"][protocol][name]
            found = [cells[1:4] for cells in row(page, "comparison", name_of(name))]
            assert [f"{sft:.3f}", f"{ppo:.3f}", number(gain["value"], signed=True)] in found
            assert interval(Figure(gain["value"], gain["low"], gain["high"]), signed=True) in text
    assert row(page, "comparison", "BLEU-4")[0][1:4] == ["0.031", "0.029", "−0.002"]
    assert row(page, "comparison", "Perplexity")[0][1:4] == ["14.27", "15.92", "+1.650"]
    assert row(page, "comparison", "Mean reward")[0][1:] == ["0.034", "0.265", "+0.231", "", "<0.001"]
    assert row(page, "comparison", "Relevance")[0][1:4] == ["0.381", "0.427", "+0.046"]
    assert row(page, "comparison", "KL to the SFT policy")[0][1:3] == ["–", "2.913"]
    assert row(page, "utility", "True utility")[0][1:4] == ["0.552", "0.617", "+0.065"]
    assert "+0.051 to +0.079" in page.sections["utility"]


def test_the_difference_turns_round_where_only_sft_minus_ppo_is_recorded(tmp_path):
    metrics = make_run(tmp_path, count=1)
    metrics["paired"] = {"sft-ppo": {"text": {"bleu-4": {"value": 0.002, "low": -0.001, "high": 0.004, "p": 0.3}}}}
    write_json(tmp_path / "metrics.json", metrics)
    page = Page(write_report(tmp_path).read_text())
    assert row(page, "comparison", "BLEU-4")[0][3] == "−0.002"
    assert "−0.004 to +0.001" in page.sections["comparison"]


def test_the_other_tables_hold_their_figures(page):
    assert row(page, "reward-model", "Engagement")[0] == ["Engagement", "0.632", "0.604", "0.871", "2,113", "0.211"]
    assert row(page, "reward-model", "Engagement")[1] == ["Engagement", "0.934", "−0.023", "0.071", "0.042"]
    assert "0.910–0.960" in page.sections["reward-model"]
    assert "41,207 bytes" in page.sections["text"]
    assert "engagement: upper bound: drawn anew; relevance: exact." in page.sections["reward-model"]
    expected = ["Liked", "0.731", "0.882", "0.614", "0.913", "0.237", "7,211", "8,425", "–"]
    assert row(page, "signals", "Liked")[0] == expected
    assert row(page, "signals", "Mood")[0][-2:] == ["9,001", "0.896"]
    assert row(page, "signals", "Uptake")[0] == ["Uptake", "0.201", "0.210", "0.672", "8,425"]
    assert "0.650–0.690" in page.sections["signals"]
    assert "How far PPO went" in page.sections["ppo"]
    assert row(page, "ppo", "Share")[0][:1] == ["Share"]
    assert "0.601–0.661" in page.sections["reward-model"]
    assert row(page, "reward-model", "Available · Uptake")[0] == ["Available · Uptake", "1,711"]
    assert row(page, "liked", "PPO over SFT")[0] == ["PPO over SFT", "0.541", "640", "812"]
    assert row(page, "ppo", "KL to the SFT policy, nats a reply")[0][1:] == ["in bounds", "0.120", "2.871", "above 10"]
    assert row(page, "ppo", "Reply length, tokens")[0][1:4] == ["warning", "11.00", "7.000"]
    test = row(page, "ppo", "Test replies that recommend, share")[0]
    assert test[1:] == ["warning", "0.407", "0.913", "more than 0.15 from SFT's"]
    assert row(page, "ppo", "Test perplexity of people's replies")[0][1:4] == ["in bounds", "14.27", "15.92"]
    assert "2 warnings: replies went from 11 to 7 tokens" in page.sections["header"]
    assert "replies on test that recommend went from 41 to 91 %; people: 46 %" in page.sections["header"]
    assert "Published: Kostric & Balog." in page.sections["ranking"]
    for name, sft, ppo, human in (
        ("BLEU-4", "0.031", "0.029", "–"),
        ("Distinct-2", "0.172", "0.163", "0.431"),
        ("Perplexity", "14.27", "15.92", "–"),
    ):
        assert row(page, "text", name)[0] == [name, sft, ppo, human]
    assert row(page, "ranking", "UniCRS (published)")[0] == ["UniCRS (published)", "0.048", "0.030"]
    assert row(page, "data", "Targets")[0] == ["Targets", "4,975"]
    assert row(page, "run", "SFT")[0][1:] == ["1,803", "30:03 min", "45%"]
    assert row(page, "ppo", "Entropy, acts")[0] == ["Entropy, acts", "4.812", "4.107"]


def test_the_header_says_what_ran_and_how_to_run_it_again(page):
    header = page.sections["header"]
    for words in ("ReDial", "2 x cpu (AMD EPYC)", "1234abcd5678", "1:07 h", "sft, reward, ppo, evaluate"):
        assert words in header
    command = (
        "python -m crs_jax.main --config=configs/redial_ppo.py:scratch '--workdir=runs/redial one' --config.data.dir="
    )
    assert command in header
    assert '"kl_horizon": 10000' in page.sections["run"]


def test_samples_stand_side_by_side_with_hits_marked(run, page):
    words = page.sections["samples"]
    assert words.index("Human") < words.index("SFT", words.index("Human")) < words.index("Then try Nine Lanterns")
    assert '<li class="hit">Nine Lanterns (2004)</li>' in run[1]
    assert words.count("Dialogue 2000") == 6


def test_every_row_stands_at_a_glance_with_its_interval(run, page):
    metrics, text = run
    heads = next(cells for cells in page.rows["standing"] if "HR@10" in cells)
    ranking = ["", "HR@10", heads[2], "HR@1", "HR@50", "MRR@10"]
    assert heads == [*ranking, "BLEU-4", "Perplexity", "Recommends", "Mean reward", "True utility"]
    for name in STRENGTH:
        (cells,) = row(page, "standing", name_of(name))
        figures = [metrics["ranking"][name]["fresh"]["full"][m] for m in ("hr@10", "hr@1", "hr@50", "mrr@10")]
        assert [cells[1], *cells[3:6]] == [f"{figure['value']:.3f}" for figure in figures]
        for figure in figures:
            assert f"{figure['low']:.3f}–{figure['high']:.3f}" in page.sections["standing"]
    assert row(page, "standing", "SFT")[0][6:] == ["0.031", "14.27", "0.407", "0.034", "0.552"]
    assert row(page, "standing", "PPO")[0][6:] == ["0.029", "15.92", "0.913", "0.265", "0.617"]
    assert row(page, "standing", "Human") == [["Human", "–", "", "–", "–", "–", "–", "–", "0.463", "–", "0.481"]]
    assert row(page, "standing", "KBRD") == [["KBRD", "0.148", "", "0.017", "0.300", *["–"] * 6]]
    assert text.index('id="standing"') < text.index('id="comparison"')


def test_the_best_of_a_column_is_bold(run):
    """Of perplexity the lowest; of the share that recommends none."""
    bold = re.findall(r'<td class="n best">([^<]*)', re.search('<section id="standing">.*?</section>', run[1], re.S)[0])
    assert {"14.27", "0.031", "0.265", "0.617"} <= set(bold)
    assert not {"15.92", "0.407", "0.463", "0.913"} & set(bold)


def test_the_headline_says_what_ppo_did_to_replies(run, page, tmp_path):
    """Beside the ranking figures: who recommends how often, BLEU-4, perplexity; and without PPO what is left of it."""
    told = "Test replies that recommend: 0.407 under SFT, 0.913 under PPO, 0.463 by people; BLEU-4: 0.031 under SFT, "
    told += "0.029 under PPO; perplexity of people's replies: 14.27 under SFT, 15.92 under PPO."
    assert told in page.sections["header"]
    (cells,) = row(page, "comparison", "Replies that recommend, share")
    assert cells[1:4] == ["0.407", "0.913", "+0.506"]
    assert "people: 0.463" in page.sections["comparison"]
    assert "+0.451 to +0.559" in page.sections["comparison"]
    make_sft_run(tmp_path)
    alone = Page(write_report(tmp_path).read_text())
    assert (
        "that recommend: 0.407 under SFT, 0.463 by people; BLEU-4: 0.031 under SFT; perplexity"
        in alone.sections["header"]
    )


def test_samples_show_chances_and_the_parts_of_each_reward(run, page):
    words = page.sections["samples"]
    for chance in ("31.4%", "12.1%", "5.0%", "3.3%", "1.0%"):
        assert words.count(chance) == 12  # of two policies in six samples
    assert len(row(page, "samples", "Engagement")) == len(row(page, "samples", "Reward")) == 12
    assert row(page, "samples", "Relevance")[0] == ["Relevance", "–"]  # of a reply without an item


@pytest.mark.parametrize(
    ("chances", "shown"), [("high", 0), ([0.5], 1), ([None, 0.5], 1), ([True, "x", 0.25] * 9, 1), (None, 0)]
)
def test_odd_chances_do_not_break_the_page(tmp_path, chances, shown):
    make_run(tmp_path, count=1)
    sample = {"sft": {"text": "x", "top": list("ABCDE"), "chances": chances}}
    write_json_lines(tmp_path / "samples.jsonl", [sample])
    assert Page(write_report(tmp_path).read_text()).sections["samples"].count("%") == shown


def test_the_budget_of_kl_is_drawn(tmp_path):
    """As dashed lines at the controllers' targets; without these where the monitors' bound is near."""
    make_run(tmp_path, count=1)
    config = json.loads((tmp_path / "config.json").read_text())
    lines = (tmp_path / "metrics.jsonl").read_text()

    def guides() -> list[str]:
        text = write_report(tmp_path).read_text()
        assert "Reward by KL spent" in text
        return re.findall(r"<span>dashed: ([^<]*) <b>([^<]*)</b>", text)

    assert guides() == []
    config["ppo"] |= {"act_kl_target": 1.5, "word_kl_target": 0.5}
    write_json(tmp_path / "config.json", config)
    assert guides() == [("target of acts", "1.500"), ("target of words", "0.500")]
    config["ppo"] |= {"act_kl_target": 0.0, "word_kl_target": 0.0}
    write_json(tmp_path / "config.json", config)
    (tmp_path / "metrics.jsonl").write_text(lines + '{"stage": "ppo", "step": 100, "kl": 7.5}\n')
    assert guides() == [("warned of", "10.00")]


def test_a_guide_is_where_its_height_says():
    """y from 0 to 10 and air over 152 units, 8 from the top: a guide at 10 above the line's 5."""
    chart = Chart("KL", "nats", "iteration", [Line("kl", [(0, 0.0), (1, 5.0)])], [("budget", 10.0)]).figure()
    (y,) = re.findall(r'y1="([\d.]+)" y2="\1" class="guide"', chart)
    assert float(y) == pytest.approx(8 + 152 * (1 - 10 / 10.5), abs=0.06)


def test_many_samples_fold_behind_the_first(tmp_path):
    make_run(tmp_path, count=14)
    assert "4 more dialogues" in Page(write_report(tmp_path).read_text()).sections["samples"]


def test_a_sample_without_a_reply_shows_its_ranking(tmp_path):
    make_run(tmp_path, count=1)
    sample = {
        "dialogue_id": "7",
        "turn": 1,
        "context": [],
        "human": {"text": "x", "items": ["A"]},
        "sft": {"top": ["A", "B"]},
    }
    write_json_lines(tmp_path / "samples.jsonl", [sample])
    text = write_report(tmp_path).read_text()
    words = Page(text).sections["samples"]
    assert "Ranking only." in words
    assert '<li class="hit">A</li><li>B</li>' in text
    assert "No reply in this run." in words


def test_curves_show_every_logged_metric(run, page):
    charts = re.findall(r'role="img" aria-label="([^"]*ends at[^"]*)"', run[1])
    logged = {"Act loss", "Word loss", "Validation HR@10", "Parts of the reward", "KL to the SFT policy",
              "Reply length", "Explained variance", "Validation BLEU-4", "Tokens per second",
              "Signals, engagement"}  # fmt: skip
    assert logged <= {label.split(":")[0] for label in charts}
    (parts,) = [label for label in charts if label.startswith("Parts of the reward")]
    assert [word for word in ("engagement", "relevance", "sentiment") if word in parts] == [
        "engagement",
        "relevance",
        "sentiment",
    ]


def test_a_run_of_sft_alone_says_what_is_missing(tmp_path):
    make_sft_run(tmp_path)
    page = Page(write_report(tmp_path).read_text())
    assert "no PPO stage" in page.sections["comparison"]
    assert "No simulator" in page.sections["utility"]
    assert "No reward model" in page.sections["reward-model"]
    assert "No answers about proposals" in page.sections["liked"]
    assert "No table of signals" in page.sections["signals"]
    assert "No PPO stage" in page.sections["ppo"]
    assert "Nothing logged by: Reward model, PPO." in page.sections["curves"]
    assert "No samples" in page.sections["samples"]
    assert row(page, "comparison", "BLEU-4")[0] == ["BLEU-4", "0.031"]


def test_a_run_with_nothing_but_a_config_makes_a_page(tmp_path):
    write_json(tmp_path / "config.json", {})
    write_json(tmp_path / "metrics.json", {})
    page = Page(write_report(tmp_path).read_text())
    for section in ("standing", "comparison", "ranking", "text", "curves", "samples", "data"):
        assert re.search("No |Neither", page.sections[section])


@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
def test_a_missing_file_is_an_input_error(tmp_path, name):
    make_run(tmp_path, count=1)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=re.escape(name)):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("metrics.jsonl", "{", r"metrics\.jsonl:{n}: not JSON"),
        ("metrics.jsonl", '{"step": 1, "loss": 2}', r"metrics\.jsonl:{n}: lacks a stage"),
        ("metrics.jsonl", '{"stage": "sft", "step": 1, "loss": "high"}', r"metrics\.jsonl:{n}: loss is 'high'"),
        ("samples.jsonl", "[]", r"samples\.jsonl:{n}: holds a list"),
        ("samples.jsonl", '{"context": ["hi"]}', r"samples\.jsonl:{n}: context"),
        ("samples.jsonl", '{"ppo": "hello"}', r"samples\.jsonl:{n}: ppo is 'hello'"),
        ("samples.jsonl", '{"ppo": {"top": 3}}', r"samples\.jsonl:{n}: ppo\.top"),
    ],
)
def test_a_bad_line_is_named(tmp_path, name, line, message):
    make_run(tmp_path, count=1)
    with open(tmp_path / name, "a") as file:
        file.write(line + "\n")
    n = len((tmp_path / name).read_text().splitlines())
    with pytest.raises(InputError, match=message.replace("{n}", str(n))) as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("ranking", "sft", "all", "full", "hr@5"), "high", "ranking.sft.all.full.hr@5 is 'high'"),
        (("ranking", "sft", "all"), [1], r"ranking.sft.all is '\[1\]', expected an object"),
        (("run", "seconds_by_stage"), 3, "run.seconds_by_stage is '3'"),
        (("text", "ppo", "bleu-4"), {"value": "x"}, "text.ppo.bleu-4"),
    ],
)
def test_a_bad_field_of_metrics_is_named(tmp_path, path, value, message):
    metrics = make_run(tmp_path, count=1)
    at = metrics
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    write_json(tmp_path / "metrics.json", metrics)
    with pytest.raises(InputError, match=message):
        write_report(tmp_path)


def test_a_list_in_the_place_of_an_object_is_named_or_left_out(tmp_path):
    metrics = make_run(tmp_path, count=1)
    places = [(metrics, name) for name in metrics]
    places += [(table, name) for table in metrics.values() if isinstance(table, dict) for name in table]
    refused = 0
    for table, name in places:
        kept, table[name] = table[name], [1]
        write_json(tmp_path / "metrics.json", metrics)
        try:
            write_report(tmp_path)
        except InputError as error:
            assert f"{name} is '[1]', expected" in str(error)  # noqa: PT017  the others are pages
            refused += 1
        table[name] = kept
    assert refused > len(metrics)


def test_nan_and_odd_characters_do_not_break_the_page(tmp_path):
    make_run(tmp_path, count=1)
    context = '[{"role": "seeker", "text": "a\\ud800\\u0000b"}]'
    sample = f'{{"dialogue_id": 1, "context": {context}, "sft": {{"text": "c\\u2028d", "reward": NaN}}}}'
    (tmp_path / "samples.jsonl").write_text(sample)
    (tmp_path / "metrics.jsonl").write_text(
        '{"stage": "sft", "step": 1, "loss": NaN}\n{"stage": "sft", "step": 2, "loss": 1}\n'
    )
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "a\ufffd\ufffdb" in page.sections["samples"]


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [(0.12345, False, "0.123"), (0.12345, True, "+0.123"), (-0.5, True, "−0.500"), (0.0, True, "0.000"),
     (4198, False, "4,198"), (14.267, False, "14.27"), (1803.4, False, "1,803"), (123.46, False, "123.5"),
     (0.00021, False, "0.0002"), (6.7e-06, False, "6.7e−6"), (None, False, "–"), (float("nan"), False, "–")],
)  # fmt: skip
def test_number(value, signed, text):
    assert number(value, signed) == text


def test_ticks_are_round_and_cover_the_range():
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(2.18, 2.31) == pytest.approx([2.18, 2.2, 2.22, 2.24, 2.26, 2.28, 2.3]) or len(ticks(2.18, 2.31)) >= 3
    assert ticks(5, 5) == [5]
    assert [tick_label(value, 2e-4, 1e-3) for value in (2e-4, 1e-3)] == ["0.2e−3", "1e−3"]
    assert [tick_label(value, 0.05, 0.1) for value in (0.05, 0.1)] == ["0.05", "0.10"]
    assert tick_label(1500, 500, 1500) == "1,500"


def test_moving_average_is_centred_and_leaves_gaps():
    assert moving_average([1.0, 2.0, None, 4.0, 9.0], 3) == [1.5, 1.5, None, 6.5, 6.5]


def test_thinning_keeps_peaks_and_order():
    points = [(float(x), 1.0 if x == 777 else 0.0 if x == 778 else 0.5) for x in range(5000)]
    kept = thinned(points, 100)
    assert len(kept) <= 110
    assert (777.0, 1.0) in kept
    assert (778.0, 0.0) in kept
    assert kept == sorted(kept)


def test_a_chart_draws_its_points_where_they_belong():
    """Two points, a gap, one point: x spans the plot's width (286), y its height (152), from zero."""
    text = Chart("Reward", "mean", "iteration", [Line("a", [(0, 0.0), (5, 1.0), (8, None), (10, 0.5)])]).figure()
    (path,) = re.findall(r'<path d="([^"]*)" class="line"', text)
    top = 152 * (1 - 1 / 1.05)
    assert path == f"M0.0 152.0 L143.0 {top:.1f} M286.0 {(152 + top) / 2:.1f}"
    Page(text)


def test_strings_given_to_a_tag_are_text():
    assert tag("b", "<i>", tag("i", "&"), title='"') == '<b title="&quot;">&lt;i&gt;<i>&amp;</i></b>'
