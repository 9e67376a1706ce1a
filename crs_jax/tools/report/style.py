"""The page's style sheet: one set of variables for light, one for dark; no font or picture from elsewhere."""

COLOURS = """
:root {
  color-scheme: light dark;
  --page: #fbfbf9; --sheet: #ffffff; --ink: #1c1f23; --muted: #5d646d; --rule: #dcdfe3; --faint: #eceef0;
  --sft: #2b6cb0; --ppo: #c2521b; --human: #3d7a57; --other: #7a828c; --hit: #e3f1e7; --warn: #a33a1c;
  --c1: #2b6cb0; --c2: #c2521b; --c3: #3d7a57; --c4: #7b57a8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15171a; --sheet: #1b1e22; --ink: #e6e8ea; --muted: #9aa2ac; --rule: #363b42; --faint: #272b30;
    --sft: #6cabec; --ppo: #f0935c; --human: #7cc096; --other: #9aa2ac; --hit: #23382b; --warn: #f0935c;
    --c1: #6cabec; --c2: #f0935c; --c3: #7cc096; --c4: #b79be0;
  }
}
"""

CHART = """
.chart text { fill: var(--muted); font-size: 10.5px; }
.chart .grid { stroke: var(--rule); stroke-width: .8; }
.chart .zero { stroke: var(--muted); stroke-width: .8; }
.chart .line, .chart .pale { fill: none; stroke-width: 1.7; stroke-linejoin: round; stroke-linecap: round; }
.chart .pale { stroke-width: 1; opacity: .3; }
.chart .spread { stroke-width: 1.2; opacity: .6; }
"""

STYLE = (
    COLOURS
    + """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .6em; font-weight: 650; letter-spacing: -.01em;
  text-wrap: balance; }
h2 { font-size: 1.25rem; margin: 0 0 .5em; font-weight: 650; }
h3 { font-size: 1rem; margin: 1.6em 0 .5em; font-weight: 650; }
h4 { font-size: .875rem; margin: 1.2em 0 .4em; font-weight: 650; }
p { margin: .5em 0; overflow-wrap: anywhere; }
a { color: var(--sft); }
section { margin-top: 2.6rem; padding-top: 1.4rem; border-top: 1px solid var(--rule); scroll-margin-top: 1rem; }
.kicker, .label { color: var(--muted); font-size: .8125rem; margin: 0 0 .3em; }
.note { color: var(--muted); font-size: .875rem; max-width: 46rem; }
.warning, .warning b { color: var(--warn); }
td.state { white-space: nowrap; }
td.words { min-width: 11em; color: var(--muted); }
.missing { color: var(--muted); font-style: italic; }
.findings { margin: 0 0 1.2em; padding: 0; list-style: none; max-width: 52rem; }
.findings li { padding: .15em 0 .15em .9em; border-left: 3px solid var(--rule); margin: .35em 0; }
.findings b { font-weight: 650; }
nav { display: flex; flex-wrap: wrap; gap: .2em 1.1em; margin-top: 1.6rem; font-size: .875rem; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: .7em 1.5em; margin: 1.2em 0; }
dt { color: var(--muted); font-size: .8125rem; }
dd { margin: 0; overflow-wrap: anywhere; }
pre { font: .8125rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: var(--sheet);
  border: 1px solid var(--rule); border-radius: 6px; padding: .7em .9em; margin: .4em 0; overflow-x: auto; }
pre.command { white-space: pre-wrap; overflow-wrap: anywhere; user-select: all; -webkit-user-select: all; }
pre.command span { display: inline-block; max-width: 100%; }
.scroll { overflow-x: auto; margin: .6em 0; }
.scroll:focus-visible, pre:focus-visible, summary:focus-visible { outline: 2px solid var(--sft); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .875rem; line-height: 1.35; }
table.compare, table.forest, table.dense { min-width: 100%; }
table.dense { font-size: .8125rem; }
.dense th, .dense td { padding-left: .4em; padding-right: .4em; }
.dense td small { font-size: .6875rem; letter-spacing: -.01em; }
th, td { padding: .42em .7em; text-align: left; vertical-align: top; border-bottom: 1px solid var(--faint); }
th { font-weight: 500; }
tbody th { position: sticky; left: 0; background: var(--page); white-space: nowrap; z-index: 1; }
thead th { color: var(--muted); vertical-align: bottom; border-bottom: 1px solid var(--rule); white-space: nowrap; }
thead th.group { text-align: center; color: var(--ink); border-left: 1px solid var(--rule); }
th.n, td.n { text-align: right; white-space: nowrap; }
td.split { border-left: 1px solid var(--rule); }
th small, td small { display: block; color: var(--muted); font-size: .75rem; font-weight: 400; white-space: nowrap; }
td.best { font-weight: 700; }
tr.sft th, tr.ppo th, tr.total th, tr.total td { font-weight: 650; }
tr.group th { color: var(--muted); font-size: .8125rem; padding-top: 1.1em; border-bottom: 1px solid var(--rule); }
i.mark, .legend i { display: inline-block; width: .62em; height: .62em; border-radius: 50%; margin-right: .45em; }
td.plot { min-width: 150px; vertical-align: middle; }
td.wide { padding-left: .4em; padding-right: .4em; min-width: 165px; }
.whisker { position: relative; height: 14px; min-width: 110px; margin: 3px 6px; }
.whisker::before { content: ""; position: absolute; left: 0; right: 0; top: 6.5px; height: 1px;
  background: var(--rule); }
.whisker span { position: absolute; }
.whisker .nil { top: -4px; bottom: -4px; width: 1px; background: var(--muted); }
.whisker .bar { top: 5px; height: 4px; border-radius: 2px; opacity: .5; }
.whisker .dot { top: 2px; width: 10px; height: 10px; margin-left: -5px; border-radius: 50%; border: 2px solid;
  background: var(--page); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(310px, 100%), 1fr)); gap: 1.5em 1.6em; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr)); gap: 0 2em; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .875rem; line-height: 1.35; min-height: 2.7em; }
figcaption strong { font-weight: 600; }
figcaption .unit { color: var(--muted); margin-left: .5em; font-size: .8125rem; }
.legend { color: var(--muted); font-size: .8125rem; }
.legend span { margin-right: 1em; white-space: nowrap; }
.legend b { font-weight: 500; color: var(--ink); }
.chart svg { display: block; width: 100%; height: auto; margin-top: .3em; }
.chart svg svg { overflow: visible; }
details { border: 1px solid var(--rule); border-radius: 6px; background: var(--page); margin: .7em 0;
  padding: 0 .9em; }
details details { margin: .4em 0; }
details[open] { padding-bottom: .8em; }
summary { cursor: pointer; padding: .55em 0; font-size: .9375rem; font-weight: 500; }
.aside { color: var(--muted); font-weight: 400; font-size: .8125rem; margin-left: .9em; }
.context { display: flex; flex-direction: column; gap: .35em; max-width: 46rem; margin-bottom: 1em; }
.turn { margin: 0; padding: .4em .75em; border-radius: 8px; background: var(--faint); align-self: flex-start;
  max-width: 85%; font-size: .9375rem; overflow-wrap: anywhere; }
.turn.recommender { align-self: flex-end; background: var(--sheet); border: 1px solid var(--rule); }
.role { display: block; color: var(--muted); font-size: .75rem; }
.replies { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 0 1.6em;
  border-top: 1px solid var(--rule); }
.reply { font-size: .9375rem; overflow-wrap: anywhere; }
.titles { margin: .6em 0; font-size: .875rem; }
.titles .label { margin: 0; }
.titles ol, .titles ul { margin: .1em 0; padding-left: 1.4em; }
.titles .hit { background: var(--hit); font-weight: 600; }
.titles li span { color: var(--muted); margin-left: .5em; white-space: nowrap; }
.scores { margin: .7em 0 .2em; }
.scores td, .scores th { padding: .1em .8em .1em 0; border: 0; font-size: .8125rem; background: none; }
.scores th { color: var(--muted); font-weight: 400; min-width: 0; }
.scores tr.total th, .scores tr.total td { color: var(--ink); font-weight: 650; }
.chart .guide { stroke: var(--muted); stroke-width: 1.1; stroke-dasharray: 4 3; }
footer { margin-top: 3rem; color: var(--muted); font-size: .8125rem; }
@media (max-width: 640px) {
  main { padding: 20px 14px 48px; }
  h1 { font-size: 1.4rem; }
  dl { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .replies { grid-template-columns: 1fr; }
  tbody th { white-space: normal; min-width: 7.5em; max-width: 9.5em; }
  tbody th small { white-space: normal; }
  tr.group th { white-space: nowrap; max-width: none; }
  .turn { max-width: 94%; }
  .aside { display: block; margin-left: 0; }
}
@media print {
  section { break-inside: auto; }
  figure, tr, .reply { break-inside: avoid; }
  .scroll { overflow: visible; }
}
"""
    + CHART
)

FILE_STYLE = (
    COLOURS
    + CHART
    + """
.sheet { fill: var(--sheet); }
.chart { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
.chart .title { fill: var(--ink); font-size: 13px; font-weight: 600; }
"""
)
"""Of a chart in a file of its own."""
