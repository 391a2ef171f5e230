"""The page's style sheet: one column on a phone, light or dark as the reader's system is."""

from __future__ import annotations

CSS = """
:root{color-scheme:light dark;--ink:#1d2129;--soft:#5b6472;--paper:#fff;--box:#f4f6f8;--line:#d9dee5;--bar:#cfe2f7;
--mark:#fff1c2;--c0:#1f6fb4;--c1:#d1561a;--c2:#2a8a4a;--c3:#8a4fb5;--c4:#b3323f;--c5:#7a6a1a}
@media(prefers-color-scheme:dark){:root{--ink:#e4e7ec;--soft:#9aa4b2;--paper:#14171c;--box:#1d2229;--line:#353c47;
--bar:#24425f;--mark:#4a3f12;--c0:#6ab0f3;--c1:#f39a5e;--c2:#6fcf8d;--c3:#c79bea;--c4:#f08a94;--c5:#d6c463}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:68rem;padding:1rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.25;margin:.3rem 0}h2{font-size:1.25rem;margin:2.2rem 0 .6rem;
border-bottom:1px solid var(--line)}h3{font-size:1.05rem;margin:1.3rem 0 .4rem}
p{margin:.5rem 0}.soft,figcaption,summary small{color:var(--soft)}
nav a{display:inline-block;margin:.1rem .9rem .1rem 0}a{color:var(--c0)}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(9rem,1fr));gap:.6rem;margin:1rem 0}
.card{background:var(--box);border-radius:.5rem;padding:.6rem .8rem}.card b{display:block;font-size:1.35rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(20rem,100%),1fr));gap:.8rem}
figure{margin:0 0 1rem}.chart{background:var(--box);border-radius:.5rem;padding:.6rem}
.chart figcaption{color:var(--ink);font-weight:600}
.key{font-weight:400;margin-left:.8rem;white-space:nowrap}.key i{display:inline-block;width:.8rem;height:.2rem;
vertical-align:middle;margin-right:.3rem;background:currentColor}
svg{display:block;width:100%;height:auto;font-size:12px}svg text{fill:var(--soft)}
svg .grid{stroke:var(--line);stroke-width:1}svg polyline{fill:none;stroke:currentColor;stroke-width:2;
stroke-linejoin:round}svg circle{fill:currentColor}
.c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}.c4{color:var(--c4)}.c5{color:var(--c5)}
.scroll{overflow-x:auto;max-width:100%}table{border-collapse:collapse;font-size:.92rem;margin:.4rem 0}
th,td{text-align:left;padding:.22rem .7rem .22rem 0;border-bottom:1px solid var(--line);vertical-align:top}
thead th{color:var(--soft);font-weight:600}tbody th{font-weight:500}th,td{overflow-wrap:break-word}
.wraps td:nth-child(n+2){overflow-wrap:anywhere;min-width:5.5rem}
.number{font-variant-numeric:tabular-nums;white-space:nowrap;padding-left:.4rem}
.bar{background:linear-gradient(90deg,var(--bar) var(--part),transparent 0) no-repeat;min-width:5rem}
tr.changed,.changed{background:var(--mark)}tr.changed th{font-weight:700}
code,pre{font:.88em/1.45 ui-monospace,Consolas,monospace}pre{overflow-x:auto;background:var(--box);padding:.7rem;
border-radius:.5rem}code{background:var(--box);padding:.05rem .3rem;border-radius:.25rem}
details{margin:.5rem 0}summary{cursor:pointer;padding:.25rem 0}
.picture img{display:block;max-width:100%;height:auto;border-radius:.4rem;background:#fff}
.picture figcaption{margin-bottom:.3rem}.pair i{display:block;height:.5rem;margin:.15rem 0;border-radius:.15rem;
background:currentColor;width:var(--part);min-width:1px}
.pair{width:45%;min-width:9rem}
.hint{background:var(--box);border-left:.25rem solid var(--c1);padding:.5rem .8rem;border-radius:.25rem}
"""
