"""The report's HTML template and style sheet, self-contained: nothing is fetched over the network."""

from __future__ import annotations

from string import Template

STYLE = """
:root { color-scheme: light dark;
  --ink: #17212b; --soft: #55636f; --line: #d9e0e6; --back: #ffffff; --card: #f5f8fa; --blue: #0b5c94; --track: #dde5eb;
  --warn-ink: #6b3d00; --warn-back: #fff4e2; --warn-line: #e0a44c; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e6ebef; --soft: #9fadb9; --line: #303b45; --back: #12181d; --card: #1a2229; --blue: #6db8ea; --track: #35424d;
  --warn-ink: #ffd9a0; --warn-back: #33260f; --warn-line: #8a6421; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Helvetica, Arial,
  sans-serif; overflow-wrap: anywhere; }
main { max-width: 66rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .75rem; padding-bottom: .3rem; border-bottom: 2px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; }
.kind { color: var(--blue); font-weight: 600; margin: 0 0 .25rem; }
.soft, caption, figcaption { color: var(--soft); font-size: .875rem; }
.warning { background: var(--warn-back); color: var(--warn-ink); border-left: 4px solid var(--warn-line);
  border-radius: 4px; padding: .7rem 1rem; margin: 1rem 0; max-width: none; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; font-size: .9rem; margin: 1rem 0; }
a { color: var(--blue); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem .9rem; }
.card h3 { margin: 0; font-size: .875rem; font-weight: 600; color: var(--soft); }
.card p { margin: 0; font-size: .8125rem; color: var(--soft); }
.card .big { font-size: 1.9rem; line-height: 1.3; font-weight: 650; color: var(--ink);
  font-variant-numeric: tabular-nums; }
.strip { position: relative; height: 6px; margin: .35rem 0 .5rem; border-radius: 3px; background: var(--track); }
.strip i { position: absolute; top: 0; height: 6px; border-radius: 3px; background: var(--blue); opacity: .45; }
.strip b { position: absolute; top: -3px; width: 3px; height: 12px; margin-left: -1.5px; background: var(--blue); }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .35rem; }
th, td { padding: .32rem .9rem .32rem 0; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line);
  white-space: nowrap; overflow-wrap: normal; }
th { font-weight: 600; }
thead th { white-space: normal; max-width: 12.5rem; overflow-wrap: break-word; }
th:first-child, td:first-child, .pairs td { text-align: left; }
thead th { color: var(--soft); border-bottom-width: 2px; }
td small { color: var(--soft); margin-left: .35rem; }
td .why { display: block; max-width: 12.5rem; margin: 0 0 0 auto; white-space: normal; }
.pairs td, .pairs th { white-space: normal; overflow-wrap: anywhere; text-align: left; }
.pairs th { font-weight: 400; color: var(--soft); min-width: 9rem; }
.wide { overflow-x: auto; }
.wide img { min-width: 44rem; }
.side { display: flex; flex-wrap: wrap; gap: 0 2.5rem; }
.side > div { max-width: 100%; }
figure { margin: .75rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; }
.side h3 { margin-top: .5rem; }
.side figure { margin: 0; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: .9rem; margin: 1rem 0; }
.gallery figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  overflow: hidden; }
.gallery img, .gallery .missing { width: 100%; aspect-ratio: 1; object-fit: contain; background: #000; color: #ccc;
  border: 0; border-radius: 0; }
.gallery .missing { display: flex; padding: .8rem; font-size: .75rem; overflow: hidden; }
.gallery figcaption { padding: .5rem .65rem .65rem; line-height: 1.4; }
.gallery strong { color: var(--ink); display: block; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); }
@media (max-width: 40rem) {
  td small, td .why { display: block; margin: 0 0 0 auto; width: 6.5rem; white-space: normal; }
  td:first-child { min-width: 6rem; white-space: normal; }
  th, td { padding-right: .75rem; }
  .card .big { font-size: 1.6rem; } .cards { grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); } }
@media print { :root { --ink: #000; --soft: #444; --line: #bbb; --back: #fff; --card: #fff; --blue: #00507f;
  --track: #ddd; --warn-ink: #000; --warn-back: #fff; --warn-line: #000; color-scheme: light; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; } nav { display: none; }
  h2, h3 { break-after: avoid; } figure, .card, tr, .warning { break-inside: avoid; }
  .scroll, .wide { overflow: visible; } .wide img { min-width: 0; }
  table { font-size: 8.5pt; } th, td { padding-right: .5rem; } td:first-child { white-space: normal; max-width: 11rem; }
  td small, td .why { display: block; margin: 0 0 0 auto; max-width: 8.5rem; }
  .gallery img { print-color-adjust: exact; }
  .strip i, .strip b, .strip { print-color-adjust: exact; } .gallery { grid-template-columns: repeat(4, 1fr); } }
"""

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$run · retina-edge training report</title>
<link rel="icon" href="data:,">
<style>$style</style>
</head>
<body>
<main>
<header>
<p class="kind">retina-edge training report</p>
<h1>$run</h1>
<p class="soft">Best checkpoint: epoch $epoch of $epochs. Written $written.</p>
<p class="warning"><strong>For research and demonstration. Not for clinical use.</strong> This model is not a medical
device; its answers must not guide the care of a patient. This page shows photographs and their file names: pass it on
only as you would pass on those.</p>
$cautions
<nav>
<a href="#figures">Figures</a><a href="#data">Data</a><a href="#curves">Learning curves</a><a href="#roc">ROC</a>
$links<a href="#mistakes">Worst mistakes</a><a href="#reading">How to read this</a><a href="#settings">Settings</a>
</nav>
</header>

<section id="figures">
<h2>Figures on test</h2>
<p>$n photographs of $patients patients. In brackets: 95% interval over $resamples resamples of patients.</p>
<div class="cards">$cards</div>
$figures
$sources
</section>

<section id="data">
<h2>Data</h2>
$counts
$leaks
</section>

<section id="curves">
<h2>Learning curves</h2>
$curves
</section>

<section id="roc">
<h2>ROC curves</h2>
$roc
<p class="soft">The markers on each curve are the model's decision rules (square: referral for ME): $rules.</p>
</section>

$splits

<section id="mistakes">
<h2>Worst mistakes on test</h2>
<p>Farthest from the true grade first, then the most confident. The label may be wrong instead of the model.</p>
<h3>DR grade</h3>
$dr_mistakes
<h3>ME risk</h3>
$me_mistakes
</section>

<section id="reading">
<h2>How to read this</h2>
<p><strong>Quadratic kappa</strong> is agreement with the graders beyond chance; an error of two grades costs four times
as much as an error of one: 1 is perfect, 0 is chance. <strong>AUC</strong> is the probability that an affected eye
scores above an unaffected one: 0.5 is chance. <strong>Balanced accuracy</strong> is the mean recall over the classes,
so that a rare grade counts as much as a common one. <strong>Calibration error</strong> is the mean absolute difference
between confidence and accuracy, in $bins bins of confidence: 0 is perfect.</p>
<p><strong>Intervals</strong> show how far a figure would vary with other patients of the same kind. Resamples are drawn
by patient, because photographs of one patient resemble each other. They say nothing about other cameras, clinics or
populations.</p>
<p><strong>Train</strong> figures show how well the model fits what it has seen, <strong>valid</strong> was used to
choose the checkpoint, and only <strong>test</strong> was used for neither.</p>
</section>

<section id="settings">
<h2>Settings and provenance</h2>
$settings
</section>

<footer class="soft">Written by retina-edge $version. For research and demonstration, not for clinical use.</footer>
</main>
</body>
</html>
""")
