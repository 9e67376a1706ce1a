"""What the page shows, as markup in which all that people and models say is escaped."""

from __future__ import annotations

from crs_jax.tools.chat.conversation import Answer, Conversation, Talker, signals, signed
from crs_jax.tools.report.html import Html, tag

NAMES = {"sft": "SFT, before alignment", "ppo": "PPO, aligned"}
CONSENT = "Say so before its first message. Taken back, no more of it is kept."
CSS = """
.gradio-container { max-width: 1200px !important; margin: 0 auto !important;
  --quiet: color-mix(in srgb, var(--body-text-color) 72%, transparent); }
.page { color: var(--body-text-color); line-height: 1.4; }
.dark .page { color-scheme: dark; }
.page h1, .page h2, .page p, .page ol, .page dl, .page dd { margin: 0; padding: 0; }
.page h1 { font-size: 1.35rem; font-weight: 650; }
.page h2 { font-size: 1rem; font-weight: 600; margin-bottom: .4rem; }
.page .note { color: var(--quiet); font-size: .9rem; max-width: 75ch; margin-top: .2rem; }
.page .kept { border-left: 3px solid #d97706; padding-left: .6rem; margin-top: .5rem; font-size: .9rem; }
.page .said { display: flex; flex-direction: column-reverse; height: clamp(15rem, 44vh, 30rem); overflow-y: auto;
  scrollbar-width: thin; padding: .75rem; border: 1px solid var(--border-color-primary); border-radius: .6rem;
  background: var(--background-fill-primary); }
.page .said > ol { list-style: none; margin-bottom: auto; display: grid; gap: .7rem; }
.page .said li { max-width: 88%; min-width: 0; }
.page .said li > p { display: block; width: fit-content; max-width: 100%; padding: .5rem .75rem; border-radius: .8rem;
  overflow-wrap: anywhere; white-space: pre-wrap; }
.page .seeker { justify-self: end; }
.page .seeker > p { background: #4f46e5; color: #fff; border-bottom-right-radius: .2rem; }
.page .recommender > p { background: var(--background-fill-secondary); border-bottom-left-radius: .2rem;
  border: 1px solid var(--border-color-primary); }
.page .empty, .page .unlinked { color: var(--quiet); }
.page .signals { display: flex; flex-wrap: wrap; gap: .1rem .9rem; margin: .3rem .2rem 0; font-size: .8rem; }
.page .signals div { display: flex; gap: .35rem; }
.page .signals dt { color: var(--quiet); }
.page .signals dd, .page .n { font-variant-numeric: tabular-nums; }
.page .signals .reward dd { font-weight: 650; }
.page table { width: 100%; border: 0; border-collapse: collapse; font-size: .875rem; }
.page caption { text-align: left; color: var(--quiet); padding-bottom: .3rem; font-size: .85rem; }
.page th, .page td { text-align: left; padding: .3rem .75rem .3rem 0; vertical-align: top; border: 0;
  border-bottom: 1px solid var(--border-color-primary); }
.page td.title, .page td.genres { overflow-wrap: anywhere; }
.page th { font-weight: 600; }
.page th.n, .page td.n { text-align: right; padding-right: 0; white-space: nowrap; }
.page td.genres { color: var(--quiet); }
"""


def head(talker: Talker) -> Html:
    """What this is, and whether it is kept."""
    run = talker.first
    about = (
        f"Trained by crs_jax, dataset {run.config.data.dataset}. Below each reply stands what the reward model "
        "foretells of your reaction, in standard deviations; 0 is the mean of replies before alignment."
    )
    kept: Html | str = ""
    if talker.log is not None:
        text = (
            "If you agree, below, what you say here, and when, is kept to train on: say nothing about yourself that "
            "should not be. You can talk all the same if you do not, and nothing is kept."
        )
        kept = tag("p", text, class_="kept")
    return tag(
        "div",
        tag("h1", f"A recommender of {len(run.catalogue):,} items"),
        tag("p", about, class_="note"),
        kept,
        class_="page",
    )  # fmt: skip


def column(talk: Conversation, model: str, waiting: bool = False) -> Html:
    """The talk with one model: the words, and predictions below each reply."""
    answers = talk.answers.get(model, [])
    lines = []
    for number, said in enumerate(talk.words):
        lines.append(tag("li", tag("p", said), class_="seeker"))
        if number < len(answers):
            unlinked = [tag("p", str(title)) for title in answers[number].reply.unlinked]
            lines += [tag("li", *unlinked, class_="unlinked")] if unlinked else []
            lines.append(_reply(answers[number]))
    if waiting and len(answers) < len(talk.user):
        lines.append(tag("li", tag("p", "…"), class_="recommender waiting"))
    empty = [] if lines else [tag("li", "Say what you would like to see, or name something you liked.", class_="empty")]
    said = tag("div", tag("ol", *lines, *empty), class_="said", role="log", aria_label=f"talk with {NAMES[model]}",
               tabindex="0")  # fmt: skip
    return tag("section", tag("h2", NAMES[model]), said, class_=f"page talk {model}")


def kept(talk: Conversation) -> Html:
    """What the talk is kept as, so that its person can have it forgotten."""
    if not talk.logged_as:
        return tag("p", class_="page id")
    text = "Kept. Whoever runs this page can forget it again, by its id: "
    return tag("p", text, tag("code", talk.logged_as), class_="page id")


def _reply(answer: Answer) -> Html:
    parts = [tag("p", answer.reply.text or "(says nothing)")]
    if answer.score is not None:
        shown = [
            tag("div", tag("dt", name), tag("dd", signed(value)), class_=name)
            for name, value in signals(answer.score).items()
        ]
        parts.append(tag("dl", *shown, class_="signals"))
    return tag("li", *parts, class_="recommender")


def items(talk: Conversation, model: str) -> Html:
    """The likeliest items where one model last replied, and how long that took; nothing before the first reply."""
    answers = talk.answers.get(model, [])
    if not answers:
        return tag("section", class_=f"page items {model}")
    answer = answers[-1]
    rows = [
        tag(
            "tr", tag("td", item.title, class_="title"), tag("td", item.year or ""),
            tag("td", ", ".join(item.genres), class_="genres"), tag("td", f"{item.probability:.1%}", class_="n"),
        )
        for item in answer.reply.top
    ]  # fmt: skip
    heads = [tag("th", name, scope="col", class_="n" if name == "score" else None)
             for name in ("title", "year", "genres", "score")]  # fmt: skip
    caption = f"{model.upper()}: likeliest of what is not named yet, by probability; replied in {answer.seconds:.2f} s"
    table = tag("table", tag("caption", caption), tag("thead", tag("tr", *heads)), tag("tbody", *rows))
    return tag("section", table, class_=f"page items {model}")
