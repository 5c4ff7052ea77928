"""Texts of files reach pages, Markdown and copied commands as text."""

from __future__ import annotations

import html
import json
import re
import shlex
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pytest
import synthetic
import synthetic_controls
import yaml
from matplotlib.text import Text

from drift import claims as claims_door
from drift.dataset.files import write
from drift.dataset.opening import open_sweep
from drift.reading import claims, figures, summary
from drift.reading.report import rendering
from drift.reading.report.cleaning import POLICY, cleaned
from drift.reading.report.pages import page_body, whole_page
from drift.reading.wording.tables import bullets, code, fenced, marked

SCRIPT = "<script>alert(1)</script>"
NAMES = (
    SCRIPT,
    "[x](javascript:alert(1))",
    "![x](https://evil.example/x.png)",
    "<https://evil.example>",
    "https://evil.example/x",
    "www.evil.example",
    "```\n<script>alert(1)</script>\n```",
    "a `b` [c](d:e) `",
    "``<img src=x onerror=alert(1)>``",
    "x\n\n# heading\n\n- item",
    "# heading",
    "- item",
    "1. item",
    "> quoted",
    "a\\*b*c_d_ _e_ ~~f~~ $g$ | h",
    "&lt;b&gt; &amp; <b>",
    "<!-- x --> <svg onload=alert(1)>",
    "[x]: javascript:alert(1)",
)


# ---------------------------------------------------------------------------------------------- cleaning
@pytest.mark.parametrize(
    ("given", "left"),
    [
        (f"<p>a{SCRIPT}</p>", "<p>a</p>"),
        ("<p onclick='x()' style='position:fixed'>a</p>", "<p>a</p>"),
        ('<a href="javascript:alert(1)">a</a>', "<a>a</a>"),
        ('<a href=" java&#10;script:alert(1)">a</a>', "<a>a</a>"),
        ('<a href="data:text/html,x">a</a>', "<a>a</a>"),
        ('<a href="//evil.example/x">a</a>', "<a>a</a>"),
        ('<a href="/etc/passwd">a</a>', "<a>a</a>"),
        ('<a href="../../x.html">a</a>', "<a>a</a>"),
        ('<a href="https://arxiv.org/abs/2605.12471">a</a>', '<a href="https://arxiv.org/abs/2605.12471">a</a>'),
        ('<a href="claims.html#C1">a</a>', '<a href="claims.html#C1">a</a>'),
        ('<a class="anchor-link" href="#a-b">¶</a>', '<a class="anchor-link" href="#a-b">¶</a>'),
        ('<img src="https://evil.example/x.png" alt="a">', '<img alt="a">'),
        ('<img src="file:///etc/x.png" alt="a">', '<img alt="a">'),
        ('<img src="data:image/svg+xml;base64,AA==" alt="a">', '<img alt="a">'),
        ('<img src="data:image/png;base64,iVBO+/==" alt="a">', '<img src="data:image/png;base64,iVBO+/==" alt="a">'),
        ('<a href="my own.html">a</a>', '<a href="my own.html">a</a>'),
        ('<img src="figures/a.png" alt="a">', '<img src="figures/a.png" alt="a">'),
        ("<iframe src=x></iframe><object data=x></object><embed src=x><form action=x><input></form>", ""),
        ("<svg><script>x</script></svg><math><mi>x</mi></math><style>*{}</style><link href=x>", ""),
        ("<base href=x><meta http-equiv=refresh content=0><!-- a -->b", "b"),
    ],
)
def test_what_has_no_place_in_a_page_goes(given: str, left: str) -> None:
    assert cleaned(given) == left


def test_what_our_pages_are_made_of_stays() -> None:
    for piece in (
        '<aside class="controls failed" role="alert">a</aside>',
        '<details class="fold" open=""><summary id="a"><h2>b</h2></summary><p class="soft">c</p></details>',
        '<div class="claims"><table><thead><tr><th scope="row" id="C1" rowspan="2">a</th></tr></thead>'
        '<tbody><tr><td class="verdict" colspan="3"><span class="supported">✓</span></td></tr></tbody></table></div>',
        '<figure class="main"><img src="figures/front.png" alt="a" width="3" height="4"></figure>',
        '<ul class="contents" aria-label="contents"><li><a href="#x" title="why">a</a></li></ul>',
        "<pre><code>a &lt;b&gt; &amp; c</code></pre><p><strong>a</strong> <em>b</em> <del>c</del><br></p>",
        '<ol start="3"><li value="4">a</li></ol><blockquote>b</blockquote><hr>',
    ):
        assert cleaned(piece) == piece


def test_every_page_carries_a_policy_that_runs_and_loads_nothing() -> None:
    page = whole_page("t", f"<p>a</p>{SCRIPT}", [("index.html", "Overview")], "x.html", f"<aside>{SCRIPT}b</aside>")
    head = page.split("</head>")[0]
    assert f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">' in head
    assert head.index("Content-Security-Policy") < head.index("<style")
    rules = dict(rule.strip().split(" ", 1) for rule in POLICY.split(";"))
    assert rules["default-src"] == "'none'"
    assert not {"script-src", "connect-src", "frame-src", "object-src"} & rules.keys()
    assert "http" not in POLICY
    assert "<script" not in page


# ---------------------------------------------------------------------------------------------- Markdown
def _shown(markdown: str) -> str:
    """The page's HTML of a piece of Markdown, not cleaned: the first wall is tried alone."""
    v4 = nbformat.v4
    return page_body(v4.new_notebook(cells=[v4.new_markdown_cell(markdown)]))


def _text(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page))


def _tags(page: str) -> set[str]:
    return set(re.findall(r"<([a-z0-9]+)", page))


@pytest.mark.parametrize("name", NAMES)
def test_names_in_sentences_are_text(name: str) -> None:
    page = _shown(bullets([f"{name}: drift is small", f"of {name}, and of `{name}`"]))
    assert _tags(page) <= {"div", "ul", "li", "strong", "p", "code"}, page
    plain = re.sub(r"`|\*\*", "", name.replace("\n", "\\n"))
    assert re.sub(r"`|\*\*", "", _text(page)).count(plain) == 3, page


@pytest.mark.parametrize("name", NAMES)
def test_names_as_code_and_in_blocks_are_text(name: str) -> None:
    page = _shown(f"**{code(name)}**")
    assert _tags(page) <= {"div", "p", "strong", "code"}, page
    assert name.replace("\n", "\\n") in _text(page)
    page = _shown(fenced(f"one {name}", "two"))
    assert _tags(page) <= {"div", "pre", "code", "span"}, page
    assert f"one {name}\n\ntwo" in _text(page)


def test_our_own_markup_is_kept() -> None:
    page = _shown(bullets(["claim: **supported**, see `hidden_rel_l2` and hidden_rel_l2 (a < b, 5 %)"]))
    assert "<strong>claim:</strong> <strong>supported</strong>, see <code>hidden_rel_l2</code>" in page
    assert "and hidden_rel_l2 (a &lt; b, 5 %)" in page
    assert marked("hidden_rel_l2 of 1.5, a-b") == "hidden_rel_l2 of 1.5, a-b"


# ---------------------------------------------------------------------------------------------- sweeps
EVIL = "al`pha[x](javascript:alert(1))<b>"


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evil")
    synthetic.sweep(folder, [EVIL], ["bf16", "fp32"], ["append"], [16], layers=1, tokens=64)
    plan = json.loads((folder / "sweep.json").read_text()) if (folder / "sweep.json").exists() else {}
    name = f"x\n```\n{SCRIPT}\nEND\ntouch /tmp/pwned"
    config = {"name": name, "description": name, f"END\n{SCRIPT}": 1, "grids": [{"model": [name, EVIL]}]}
    plan |= {"name": name, "description": name, "config": config}
    plan["failures"] = [{"file": "a.nc", "cell": name, "reason": SCRIPT}]
    plan.pop("cells", None)
    (folder / "sweep.json").write_text(json.dumps(plan))
    (folder / "bad.nc").write_text("no cell")
    return folder


@pytest.mark.usefixtures("notebooks_here")
def test_no_page_of_a_hostile_sweep_has_a_script_or_a_foreign_link(evil: Path, tmp_path: Path) -> None:
    rendering.render(evil, ["plateau"], tmp_path / "out", report=lambda line: None)
    for page in (tmp_path / "out").glob("*.html"):
        text = page.read_text()
        body = text.split("</head>")[1]
        assert "<script" not in text, page.name
        for link in re.findall(r'(?:href|src)="([^"]*)"', body):
            assert re.match(r"#|data:image/png|\w+\.html|figures/", link), link
        assert not re.search(r"<[^>]*\son\w+=", body)
    shown = _text((tmp_path / "out" / "plateau.html").read_text())
    assert SCRIPT in shown
    assert "al`pha[x](javascript:alert(1))<b>" in shown
    assert _text((tmp_path / "out" / "index.html").read_text()).count(SCRIPT) >= 1


@pytest.mark.usefixtures("notebooks_here")
def test_the_name_of_a_precision_is_no_link(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for place, (dtype, u) in enumerate({"bf16": 2.0**-8, "[x](https://evil.example)": 2.0**-24}.items()):
        drift = 4 * u * np.exp(0.02 * rng.standard_normal((4, 64)))
        cell = synthetic_controls.make(drift, chunk_size=8, dtype="bf16")
        cell = synthetic_controls.remake(cell, dtype=dtype, unit_roundoff=u)
        write(cell, tmp_path / "sweep" / f"{place}.nc")
    rendering.render(tmp_path / "sweep", ["precision"], tmp_path / "out", report=lambda line: None)
    page = (tmp_path / "out" / "precision.html").read_text()
    assert "in [x](https://evil.example)" in _text(page)  # of the sentence on unit roundoffs
    assert "evil.example" not in " ".join(re.findall(r'href="([^"]*)"', page))


def test_commands_to_be_copied_hold_no_commands_of_others(evil: Path, tmp_path: Path) -> None:
    sweep = open_sweep(evil)
    for ds in sweep.cells:
        ds.attrs["git_commit"] = f"\ntouch {ds['dtype'].item()[0]}"
    said = summary.reproduce(sweep)
    stub = 'python() { printf "%s\\n" "$*" >> ran; }\ngit() { :; }\n'
    subprocess.run(["bash", "-c", stub + said], cwd=tmp_path, check=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ran", "sweep.yaml"]
    ran = (tmp_path / "ran").read_text().splitlines()
    assert [line.split()[1] for line in ran] == ["drift.sweep", "drift.report"]
    written = yaml.safe_load((tmp_path / "sweep.yaml").read_text())
    assert written["grids"][0]["model"][1] == EVIL
    assert shlex.split(said.splitlines()[-1])[:3] == ["python", "-m", "drift.report"]


def test_names_with_dollars_are_no_formulas(tmp_path: Path) -> None:
    folder = synthetic.sweep(
        tmp_path, ["$\\frac{x$ and $y$", "beta"], ["bf16", "fp32"], ["append"], [16], layers=1, tokens=64
    )
    cells = open_sweep(folder)
    found = claims.audit(cells)
    drawn = [draw(cells) for draw in (figures.drift_per_step, figures.level_vs_roundoff, figures.heat_map)]
    drawn += [figures.plateau_fit(cells), figures.equivalence(found, "C1"), figures.equivalence(found, "C2")]
    named = 0
    for figure in drawn:
        if figure is None:
            continue
        assert figures.png(figure)[:4] == b"\x89PNG"
        texts = [text for text in figure.findobj(Text) if "$" in text.get_text()]
        named += sum("frac" in text.get_text() for text in texts)
        for text in texts:  # what matplotlib wrote itself is still drawn as a power of ten
            assert text.get_parse_math() is text.get_text().startswith("$\\mathdefault{")
    assert named >= 4


def test_the_claims_as_markdown_are_text(evil: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert claims_door.main([str(evil), "--markdown"]) == 0
    page = _shown(capsys.readouterr().out)
    assert _tags(page) <= {"div", "p", "table", "thead", "tbody", "tr", "th", "td", "strong", "em", "code"}, page
    assert "href" not in page
