"""The style sheet of report.html: system fonts, one accent colour, light and dark by the reader's setting."""

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --card: #f6f7f9; --ink: #1c2330; --quiet: #677084; --line: #e3e6ec;
  --accent: #3f7fd6; --floor: #b4bccb; --soft: #dbe4f3; }
@media (prefers-color-scheme: dark) { :root { --page: #171b22; --card: #1f242d; --ink: #e8ebf1; --quiet: #98a1b3;
  --line: #2c323d; --accent: #5b96e6; --floor: #4d5666; --soft: #2b3647; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.55; font-size: 16px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
  "Liberation Sans", "DejaVu Sans", sans-serif; }
header, main { max-width: 1060px; margin: 0 auto; padding: 0 28px; }
header { padding-top: 56px; }
.kicker { margin: 0; color: var(--accent); font-size: 13px; font-weight: 600; letter-spacing: .04em; }
h1 { margin: 2px 0 6px; font-size: 38px; line-height: 1.15; letter-spacing: -.02em; font-weight: 680;
  overflow-wrap: anywhere; }
h2 { margin: 0 0 18px; font-size: 22px; letter-spacing: -.01em; font-weight: 640; }
h3 { margin: 30px 0 12px; font-size: 17px; font-weight: 600; }
.facts { margin: 0 0 22px; max-width: none; color: var(--quiet); }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 12px 0; font-size: 14px;
  border-block: 1px solid var(--line); }
nav a { color: var(--quiet); text-decoration: none; } nav a:hover { color: var(--accent); }
section { padding: 44px 0 6px; }
main { padding-bottom: 90px; }
p { max-width: 74ch; margin: 0 0 14px; }
.note, figcaption { color: var(--quiet); font-size: 14px; max-width: 84ch; }
.quiet { color: var(--quiet); font-weight: 400; }
.tiles { display: flex; flex-wrap: wrap; gap: 14px; margin: 0 0 26px; }
.tile { flex: 1 1 190px; padding: 16px 20px 18px; border-radius: 12px; background: var(--card); }
.tile b { display: block; font-size: 34px; line-height: 1.2; letter-spacing: -.02em; font-weight: 640;
  font-variant-numeric: tabular-nums; color: var(--quiet); }
.tile span { display: block; color: var(--quiet); font-size: 14px; line-height: 1.4; }
.tile.lead { background: var(--soft); } .tile.lead b, .tile.lead span { color: var(--ink); }
.scroll { overflow-x: auto; margin: 0 0 14px; }
table { border-collapse: collapse; width: 100%; font-size: 15px; }
th { text-align: left; font-weight: 500; color: var(--quiet); font-size: 13px; padding: 6px 14px 6px 0;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
td { padding: 9px 14px 9px 0; border-bottom: 1px solid var(--line); vertical-align: middle; }
td b { font-weight: 560; white-space: nowrap; }
.under { display: block; font-size: 13px; line-height: 1.35; white-space: nowrap; }
.results tr:not(.lead, .floor) .bar span { opacity: .55; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.n { text-align: right; }
td.top { font-weight: 600; } tr.lead td.top { color: var(--accent); }
tr.floor td, tr.floor b { color: var(--quiet); font-weight: 400; }
td.bars { width: 26%; min-width: 130px; }
.bar { position: relative; height: 10px; min-width: 110px; border-radius: 5px; background: var(--line); }
.bar span { position: absolute; inset: 0 auto 0 0; border-radius: 5px; background: var(--accent); }
tr.floor .bar span { background: var(--floor); }
.bar i { position: absolute; top: 4px; height: 2px; background: var(--ink); opacity: .75; }
figure { margin: 0 0 26px; } figcaption { margin-top: 8px; }
img, video { display: block; max-width: 100%; height: auto; }
img.sheet, video { border-radius: 10px; background: #14171d; }
dl { display: grid; grid-template-columns: minmax(150px, max-content) 1fr; gap: 5px 26px; margin: 0 0 16px;
  font-size: 15px; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
details { margin: 0 0 12px; border-top: 1px solid var(--line); padding-top: 10px; }
summary { cursor: pointer; font-weight: 540; margin-bottom: 8px; }
pre { overflow-x: auto; padding: 16px 18px; border-radius: 10px; background: var(--card); font-size: 13px;
  line-height: 1.5; }
@media (max-width: 640px) { header, main { padding-inline: 18px; } h1 { font-size: 30px; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 8px; } }
@media print { nav { display: none; } section { break-inside: avoid; } }
"""
