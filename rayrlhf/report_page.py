"""Pages of HTML: the one template engine, hostile text made harmless, and the reports' style sheet, light and dark."""

from __future__ import annotations

import jinja2
from markupsafe import Markup, escape

from rayrlhf.files import printable


def environment(loader: jinja2.BaseLoader | None = None) -> jinja2.Environment:
    """Where all templates are filled in: whatever they write is escaped, what HTML cannot hold made visible."""
    return jinja2.Environment(
        loader=loader,
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page(title: str, body: str) -> str:
    """A whole page. title: text; body: HTML."""
    return environment().from_string(_PAGE).render(title=title, style=Markup(_STYLE), body=Markup(body))


def text(shown: str) -> Markup:
    """Hostile text as HTML text: escaped, what HTML cannot hold made visible."""
    return escape(printable(shown))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
{{ body }}
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #fff; --text: #1d1f23; --muted: #63676f; --grid: #dedfe2;
  --series-1: #2563c9; --series-2: #c2570c; --series-3: #0f8a5f; --series-4: #a8328f; --series-5: #8a6d00;
  --series-6: #56606e; }
@media (prefers-color-scheme: dark) { :root { --page: #15171a; --card: #1d2024; --text: #e6e7e9; --muted: #9ba0a8;
  --grid: #363a40; --series-1: #72a5ff; --series-2: #f39455; --series-3: #4cc99a; --series-4: #e07fcb;
  --series-5: #d9b93d; --series-6: #a7b0bd; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.2rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.5rem; } h2 { margin: 2rem 0 .6rem; font-size: 1.15rem; }
h3 { margin: 0 0 .4rem; font-size: .95rem; color: var(--muted); }
.verdict { margin: .4rem 0 1.2rem; font-size: 1.1rem; max-width: 60rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .6rem; }
.tiles div, figure, article { background: var(--card); border: 1px solid var(--grid); border-radius: .5rem; }
.tiles div { padding: .5rem .8rem; color: var(--muted); font-size: .8rem; }
.tiles b { display: block; color: var(--text); font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.charts, .small, .samples { display: grid; gap: .8rem; margin-bottom: .8rem; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); }
.samples { grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); }
figure { margin: 0; padding: .7rem .8rem .4rem; } figcaption { font-size: .85rem; margin-bottom: .2rem; }
svg { display: block; width: 100%; height: auto; } svg text { font-family: inherit !important; }
.legend { display: flex; flex-wrap: wrap; gap: 0 1rem; color: var(--muted); font-size: .8rem; }
.legend i { display: inline-block; width: 1rem; height: .2rem; margin-right: .35rem; vertical-align: middle; }
.legend i.dashed { height: 0; border-top: 2px dashed currentColor; }
article { padding: .6rem .8rem; margin-bottom: .6rem; }
article p { margin: 0 0 .3rem; color: var(--muted); font-size: .8rem; } article p b { color: var(--text); }
.text { white-space: pre-wrap; unicode-bidi: isolate; font-family: Georgia, serif; max-height: 24rem; overflow: auto; }
.text span, .text i { color: var(--muted); }
.game { font-family: ui-monospace, monospace; font-size: .8rem; } .won { color: var(--series-3); }
.wide { overflow-x: auto; } .evaluation th, .evaluation td { text-align: right; vertical-align: top; white-space: nowrap; }
.evaluation th:first-child, .evaluation td:first-child { text-align: left; } .evaluation th { color: var(--muted);
  white-space: normal; }
.evaluation small { display: block; color: var(--muted); }
.notes p { margin: .2rem 0; color: var(--muted); font-size: .85rem; }
table { border-collapse: collapse; width: 100%; max-width: 44rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; font-weight: normal; } td { text-align: right; }
.inner { color: var(--muted); font-size: .85rem; } .inner th { padding-left: 1rem; }
td.bar { width: 50%; text-align: left; } td.bar i { display: block; height: .7rem; min-width: 1px;
  border-radius: .2rem; background: var(--series-1); }
details { margin-top: 1rem; } summary { cursor: pointer; font-weight: 600; margin-bottom: .5rem; }
pre { background: var(--card); border: 1px solid var(--grid); border-radius: .5rem; padding: .8rem; overflow: auto;
  font-size: .8rem; white-space: pre-wrap; }
"""
