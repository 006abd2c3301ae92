"""The frame of a report: one file, no script, nothing from elsewhere, light and dark."""

from __future__ import annotations

from typing import Any

from fastmeta.report.markup import Markup, element, escaped, joined

# no script is allowed even if one should get in, and nothing is loaded
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1d232b;--soft:#5c6672;--line:#dde2e8;--card:#f6f8fa;--heat:0,114,178;
--c0:#0072b2;--c1:#c77700;--c2:#00845f;--c3:#b0508a;--right:#00734f;--wrong:#b8420a}
@media (prefers-color-scheme:dark){:root{--bg:#14181d;--fg:#e4e8ed;--soft:#9aa5b1;--line:#313a44;--card:#1d232a;
--heat:86,180,233;--c0:#56b4e9;--c1:#e69f00;--c2:#2fc497;--c3:#e08fc0;--right:#3fd0a1;--wrong:#ff9560}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1120px;padding:28px 24px 64px;background:var(--bg);color:var(--fg);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
h1{font-size:24px;margin:0 0 2px;overflow-wrap:anywhere}
h2{font-size:18px;margin:38px 0 10px}
p{margin:6px 0;max-width:80ch}
.soft,figcaption,th{color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(144px,1fr));gap:12px;margin:18px 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 14px;line-height:1.35}
.tile b{display:block;font-size:21px;font-weight:600;font-variant-numeric:tabular-nums}
.note{border-left:4px solid var(--c1);background:var(--card);padding:8px 14px;margin:12px 0;overflow-wrap:anywhere}
.note.bad{border-color:var(--wrong)}.note.good{border-color:var(--right)}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:4px 12px 4px 0;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:500}td:first-child,th:first-child{white-space:nowrap}.n{text-align:right;white-space:nowrap}
.rows{display:grid;grid-template-columns:repeat(auto-fill,minmax(128px,1fr));gap:10px}
.rows.texts{grid-template-columns:repeat(auto-fill,minmax(320px,1fr))}
.row{border:1px solid var(--line);border-radius:8px;padding:8px;font-size:13px;line-height:1.35;overflow-wrap:anywhere}
.row img{width:100%;max-width:112px;display:block;margin:0 auto 6px;image-rendering:pixelated;background:var(--card)}
.row .sample{white-space:pre-wrap;margin-bottom:6px}
.right{color:var(--right)}.wrong{color:var(--wrong)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr));gap:22px}
figure{margin:0}figcaption{font-weight:600;margin-bottom:2px}
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font-size:11.5px}
.grid{stroke:var(--line)}.line{fill:none;stroke-width:2;stroke-linejoin:round}.band{opacity:.18;stroke:none}
.look0{stroke:var(--c0);fill:var(--c0);background:var(--c0)}
.look1{stroke:var(--c1);fill:var(--c1);background:var(--c1);stroke-dasharray:7 4}
.look2{stroke:var(--c2);fill:var(--c2);background:var(--c2);stroke-dasharray:9 3 2 3}
.look3{stroke:var(--c3);fill:var(--c3);background:var(--c3);stroke-dasharray:2 3}
polyline.line{fill:none}
.keys{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px;padding-left:46px}
.key{display:inline-block;width:14px;height:4px;border-radius:2px;margin-right:6px;vertical-align:middle}
.matrix td,.matrix th{padding:3px 8px;text-align:right;border:1px solid var(--line);white-space:nowrap}
.matrix td.same{color:var(--soft)}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px;overflow-x:auto;font-size:13px}
summary{cursor:pointer}
@media (max-width:600px){body{padding:20px 16px 48px}.tile b{font-size:17px}}
"""


def page(title: str, *content: Any) -> bytes:
    """A whole document; texts in `content` are escaped."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(_STYLE)),
    )
    document = f'<!doctype html>\n<html lang="en">{head}{element("body", joined(content))}</html>\n'
    return document.encode("utf-8", "backslashreplace")


def section(title: str, *content: Any) -> Markup:
    return element("section", element("h2", title), *content)


def tile(value: object, what: str) -> Markup:
    return element("div", element("b", value), element("span", what, class_="soft"), class_="tile")


def note(text: object, kind: str = "") -> Markup:
    return element("div", escaped(text), class_=f"note {kind}".strip())
