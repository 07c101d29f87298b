"""Style sheet and the one small script of the report page (the light/dark button)."""

from __future__ import annotations

__all__ = ["SCRIPT", "STYLE"]

_LIGHT = """--paper:#fefefe;--card:#f6f7f9;--ink:#1c2127;--muted:#5e6772;--line:#dfe3e8;--accent:#0067a3;--good:#007355;
--warn:#8f5a00;--bad:#b3261e;--mark:#eaf3fa;--plot-paper:#fefefe;--plot-muted:#5e6772;--plot-grid:#dfe3e8;
--plot-track:#eff1f4;--plot-rest:#9aa3ad;--plot-1:#0072b2;--plot-2:#d55e00;--plot-3:#009e73;--plot-4:#b05a93;
--plot-5:#e69f00;--plot-6:#56b4e9"""
_DARK = """--paper:#14171b;--card:#1c2025;--ink:#e6e9ed;--muted:#9ba5b0;--line:#2e343b;--accent:#6db8ee;--good:#4ccba4;
--warn:#efb75a;--bad:#ff8a80;--mark:#1b2a36;--plot-paper:#14171b;--plot-muted:#9ba5b0;--plot-grid:#2b3138;
--plot-track:#22272d;--plot-rest:#7c8691;--plot-1:#4fa3e0;--plot-2:#f0783c;--plot-3:#2fbf95;--plot-4:#d78fbd;
--plot-5:#f2b53f;--plot-6:#8ccbf2"""

STYLE = f"""
:root{{color-scheme:light dark;{_LIGHT}}}
@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{_DARK}}}}}
:root[data-theme=light]{{color-scheme:light}}
:root[data-theme=dark]{{color-scheme:dark;{_DARK}}}
@media print{{:root,:root[data-theme],:root:not([data-theme=light]){{color-scheme:light;{_LIGHT}}}}}
""" + """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0 auto;padding:2.2rem 1.25rem 5rem;max-width:66rem;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:clamp(1.55rem,1.1rem + 2vw,2.1rem);line-height:1.2;letter-spacing:-.015em;margin:0 5.5rem .5rem 0;
text-wrap:balance}
h2{font-size:1.3rem;line-height:1.3;letter-spacing:-.01em;margin:3rem 0 .9rem;padding-top:1rem;
border-top:1px solid var(--line)}
h3{font-size:1rem;margin:0 0 .7rem}
p{margin:.7rem 0;max-width:44rem}
a{color:var(--accent)}
code,pre{font:.88em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
code{background:var(--card);border-radius:4px;padding:.1em .3em}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.8rem 1rem;overflow-x:auto}
pre code{padding:0;background:none}
header{position:relative}
.lead{font-size:1.1rem;color:var(--muted);margin:.2rem 0 1rem;text-wrap:pretty}
.about{display:flex;flex-wrap:wrap;gap:.2rem 1.6rem;margin:0 0 1rem;font-size:.86rem}
.about div{display:flex;gap:.45rem}
.about dt{color:var(--muted)}
.about dd{margin:0}
nav ul{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;list-style:none;margin:0;padding:0;font-size:.9rem}
nav a{text-decoration:none}
nav a:hover{text-decoration:underline}
#theme{position:absolute;top:.2rem;right:0;font:inherit;font-size:.82rem;color:var(--muted);background:none;
border:1px solid var(--line);border-radius:99px;padding:.2rem .8rem;cursor:pointer}
#theme:hover{color:var(--ink);border-color:var(--muted)}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
.skip{position:absolute;left:-999rem}
.skip:focus{left:1rem;top:.4rem}
.decision{font-size:1.16rem;line-height:1.5;border-left:4px solid var(--accent);padding:.15rem 0 .15rem 1rem;
margin:1.1rem 0 1.4rem;text-wrap:pretty}
.unit{color:var(--muted);font-weight:400;font-size:.86em}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.2rem,1fr));gap:1rem 1.4rem;margin:1.1rem 0}
.facts div{border-top:2px solid var(--line);padding-top:.45rem}
.facts dt{font-size:.82rem;color:var(--muted)}
.facts dd{margin:0}
.value{font-size:1.4rem;line-height:1.3;font-weight:600;letter-spacing:-.01em;font-variant-numeric:tabular-nums}
.value .unit{font-size:.6em}
.note{font-size:.8rem;color:var(--muted);line-height:1.4}
.certificate{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:1.1rem 1.25rem .4rem;
margin:1.2rem 0;--state:var(--muted)}
.certificate.optimal{--state:var(--good)}
.certificate.feasible{--state:var(--warn)}
.pill{display:inline-block;border:1px solid;color:var(--state);border-radius:99px;padding:0 .65rem;font-size:.78rem;
font-weight:600;line-height:1.6;margin:0 .3rem}
.proof{height:5px;border-radius:3px;background:var(--line);overflow:hidden}
.proof i{display:block;height:100%;background:var(--state)}
.checks{--state:var(--good)}
.checks .pill{margin-left:0}
.checks.failed{--state:var(--bad)}
.scroll{overflow-x:auto;margin:1.3rem 0;
background:linear-gradient(90deg,var(--paper) 1.2rem,transparent) 0 0/2.4rem 100%,
linear-gradient(270deg,var(--paper) 1.2rem,transparent) 100% 0/2.4rem 100%,
linear-gradient(90deg,var(--line),transparent) 0 0/.7rem 100%,
linear-gradient(270deg,var(--line),transparent) 100% 0/.7rem 100%;background-repeat:no-repeat;
background-attachment:local,local,scroll,scroll}
table{border-collapse:collapse;min-width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:0 0 .45rem;position:sticky;left:0;max-width:calc(100vw - 2.5rem)}
th,td{text-align:left;padding:.42rem 1.3rem .42rem 0;border-bottom:1px solid var(--line);vertical-align:baseline;
font-weight:400}
th:last-child,td:last-child{padding-right:.3rem}
thead th{color:var(--muted);font-size:.84rem;line-height:1.35;border-bottom:1.5px solid var(--muted);
vertical-align:bottom}
.n{text-align:right}
tbody .n,tbody .short,thead .unit{white-space:nowrap}
.medium{min-width:9.5rem}
.long{min-width:15rem}
.marked>*{background:var(--mark);font-weight:600}
.marked>:first-child{box-shadow:-.5rem 0 var(--mark),inset 3px 0 var(--accent);padding-left:.6rem}
figure{margin:1.6rem 0}
figure svg{display:block;width:100%;height:auto;overflow:visible}
figcaption{font-size:.87rem;color:var(--muted);margin-top:.5rem;max-width:44rem}
.narrow{display:none}
.strip{display:flex;gap:2px;height:14px;border-radius:4px;overflow:hidden}
.strip i{flex-basis:0}
.sources ul{display:flex;flex-wrap:wrap;gap:.2rem 1.3rem;list-style:none;margin:.6rem 0 0;padding:0;font-size:.9rem}
.sources li{display:flex;align-items:center;gap:.4rem;font-variant-numeric:tabular-nums}
.sources li i{width:.7rem;height:.7rem;border-radius:2px}
.measured{background:var(--plot-3)}
.interpolated{background:var(--plot-1)}
.extrapolated{background:var(--plot-5)}
.analytic{background:var(--plot-rest)}
.notes{padding-left:1.15rem;max-width:44rem}
.notes li{margin:.3rem 0}
details{border:1px solid var(--line);border-radius:8px;padding:.1rem 1rem;margin:1.3rem 0}
summary{cursor:pointer;padding:.55rem 0;font-weight:600}
.manifest{table-layout:fixed;width:100%;margin:.3rem 0 1rem}
.manifest th{width:38%;color:var(--muted);font-size:.84rem;overflow-wrap:anywhere}
.manifest td{font:.84rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
@media (max-width:35rem){body{padding:1.4rem 1rem 3rem;font-size:15.5px}.wide{display:none}.narrow{display:block}
h2{margin-top:2.3rem}.facts{grid-template-columns:repeat(2,1fr)}.decision{font-size:1.08rem}}
@media print{body{max-width:none;padding:0;font-size:10.5pt}#theme,nav,.skip{display:none}.scroll{overflow:visible}
.wide{display:block}.narrow{display:none}figure,tr,.certificate,.facts div{break-inside:avoid}h2{break-after:avoid}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""

SCRIPT = """
(function(){var r=document.documentElement,b=document.getElementById("theme");
function dark(){var t=r.getAttribute("data-theme");
return t?t==="dark":matchMedia("(prefers-color-scheme: dark)").matches}
function show(){b.textContent=dark()?"Light":"Dark";
b.setAttribute("aria-label","Use the "+b.textContent.toLowerCase()+" theme")}
b.hidden=false;show();b.onclick=function(){r.setAttribute("data-theme",dark()?"light":"dark");show()}})();
"""
