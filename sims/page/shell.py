"""One HTML document that loads nothing and runs nothing: style, colours, light and dark."""

from __future__ import annotations

from html import escape

from sims.page.drawing import DARK, LIGHT

_LIGHT = (
    "--ink:#1b1f24;--soft:#57606a;--line:#d8dee4;--page:#ffffff;--card:#f6f8fa;"
    "--yes:#1a7f37;--no:#b42318;--none:#6e7781;--accent:#0072b2;"
)
_DARK = (
    "--ink:#e6edf3;--soft:#9aa4af;--line:#30363d;--page:#0f1318;--card:#171c23;"
    "--yes:#56d364;--no:#ff8f85;--none:#8b949e;--accent:#56b4e9;"
)
_STYLE = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:28px 24px 64px}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .4rem}
h2{font-size:1.35rem;margin:3rem 0 .5rem;padding-top:1.2rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.4rem 0 .4rem}
p{margin:.4rem 0;max-width:76ch}
.soft{color:var(--soft);font-size:.9rem}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;margin:1rem 0}
a{color:inherit;text-underline-offset:3px}
.verdict{font-weight:600;white-space:nowrap}
.yes{color:var(--yes)}.no{color:var(--no)}.none{color:var(--none)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(320px,100%),1fr));
gap:14px;margin:1rem 0}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;
padding:10px 10px 8px;max-width:560px}
figure svg{display:block;width:100%;height:auto;font-family:inherit}
figcaption{color:var(--soft);font-size:.83rem;line-height:1.4;margin-top:.3rem}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums;
margin:.3rem 0 1rem}
caption{caption-side:top;text-align:left;color:var(--soft);font-size:.88rem;padding:.9rem 0 .5rem;
max-width:90ch}
th{font-weight:600;text-align:left;border-bottom:1px solid var(--ink);padding:.3rem .7rem .3rem 0;
vertical-align:bottom}
td{border-bottom:1px solid var(--line);padding:.32rem .7rem .32rem 0;vertical-align:top}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;font-size:.9rem;margin:.5rem 0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
details{margin:.8rem 0}summary{cursor:pointer;color:var(--soft)}
li{max-width:84ch}
@media (max-width:640px){
main{padding:18px 14px 48px}
dl{grid-template-columns:1fr}dd{margin-bottom:.3rem}
}
"""


def document(title: str, body: str, *, style: str = "") -> str:
    """Return the page: `body` is HTML inside ``<main>``, `style` is added to the shared one.

    Light and dark follow the reader's system; a page with radio buttons ``theme-light`` and
    ``theme-dark`` lets the reader choose.
    """
    light = _LIGHT + "".join(f"--c{i}:{color};" for i, color in enumerate(LIGHT))
    dark = _DARK + "".join(f"--c{i}:{color};" for i, color in enumerate(DARK))
    colors = (
        f":root{{color-scheme:light dark;{light}}}\n"
        f"@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
        f":root:has(#theme-light:checked){{color-scheme:light;{light}}}\n"
        f":root:has(#theme-dark:checked){{color-scheme:dark;{dark}}}\n"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{colors}{_STYLE}{style}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )
