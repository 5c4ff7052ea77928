"""Notebooks and pages: executed for real, on a kernel that is this interpreter, and readable without a network."""

from __future__ import annotations

import contextlib
import html
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import in_process
import nbformat
import pytest
import synthetic
from notebook_tools import own_notebook

import drift
from drift import dataset
from drift import report as drift_report
from drift._resources import resource
from drift.claims import main as claims_main
from drift.errors import DriftError, ReportError
from drift.plateau import main as judge
from drift.reading import controls, floor
from drift.reading.claims import auditing, model
from drift.reading.claims import page as claims_page
from drift.reading.report import rendering
from drift.reading.report.notebooks import DEFAULT_NOTEBOOKS
from drift.reading.report.pages import controls_banner, page_body

ROOT = Path(drift.__file__).parents[1]
NOTEBOOKS = ("claims", "why", "plateau", "precision", "readings", "layers")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("my sweep")
    synthetic.sweep(folder, ["alpha", "beta"], ["bf16", "fp32"], ["append", "restart"], [16, 32], layers=2, tokens=256)
    (folder / "broken.nc").write_text("not a cell")
    return folder


@pytest.fixture(scope="module")
def rendered(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out, said = tmp_path_factory.mktemp("out") / "pages", io.StringIO()
    with in_process.notebooks(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert drift_report.main([str(sweep), "--out", str(out)]) == 0, said.getvalue()
    return out, said.getvalue()


def test_pages_figures_and_index(rendered: tuple[Path, str]) -> None:
    out, said = rendered
    pages = {f"{name}.html" for name in ("index", *NOTEBOOKS)}
    assert {p.name for p in out.iterdir()} == {*pages, "figures", rendering.INPUTS}
    figures = {p.name for p in (out / "figures").iterdir()}
    assert {
        "front.png",
        "claims-plateau-append.png", "claims-plateau-restart.png", "claims-growth.png", "claims-precision.png",
        "plateau-drift-per-step-append.png",
        "plateau-drift-per-step-restart.png", "layers-heat-map-append.png",
        "plateau-logits-per-step.png", "plateau-level-vs-chunk-size.png",
        "layers-growth-through-depth.png", "layers-keys-and-values.png", "layers-worst-tokens-append.png",
    } <= figures  # fmt: skip
    assert all((out / "figures" / name).read_bytes()[:4] == b"\x89PNG" for name in figures)
    index = (out / "index.html").read_text()
    links = set(re.findall(r'(?:src|href)="([^"]+)"', index))
    assert {"figures/front.png", *pages - {"index.html"}} <= links
    for link in links:
        file, _, place = link.partition("#")
        assert (out / file).is_file(), link
        assert not place or re.search(f"id=.{place}.", (out / file).read_text()), link
    assert "append: rounding: drift is proportional to the unit roundoff, in all 2 models" in index
    assert "restart: structural: drift does not depend on the precision" in index
    assert "broken.nc is left out" in said
    assert "1 files could not be used" in index
    assert f"report: {out / 'index.html'}" in said


def test_pages_read_offline_and_show_no_code(rendered: tuple[Path, str]) -> None:
    out, _ = rendered
    for page in out.glob("*.html"):
        text = page.read_text()
        assert _network(text) == []
        assert "<script" not in text
        assert "import" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
        assert "open_sweep" not in text
        for tag in re.findall(r"<img[^>]*>", text):
            alt = re.search(r'alt="([^"]*)"', tag)
            assert alt, tag[:80]
            assert len(alt[1]) > 20
    assert _network('<script src="https://cdn.example/x.js">') == ["https://cdn.example/x.js"]  # the check can fail
    assert _network("<style>@import url(//fonts.example/f.css)</style>")


def _network(text: str) -> list[str]:
    """Addresses that a browser would fetch."""
    text = re.sub(r'"data:[^"]*"', '""', text)
    tags = re.findall(r'<(?:script|link|img|iframe|source)[^>]*?(?:src|href)="?((?:https?:)?//[^"\s>]+)', text)
    return tags + re.findall(r"(?:url\(|@import )[\"']?((?:https?:)?//[^\"')]+)", text)


def test_plateau_page_says_what_the_cells_say(rendered: tuple[Path, str]) -> None:
    text = (rendered[0] / "plateau.html").read_text()
    for words in (
        "rounding: drift is proportional", "structural: drift does not depend", "log-log slope",
        "python -m drift.sweep --set model=alpha,beta",
        "None: every value in every lane is finite.", "broken.nc", "What was run on what", "level / unit roundoff",
        "per doubling of depth (90 % interval", "two one-sided tests",
    ):  # fmt: skip
        assert words in text, words
    assert text.count("data:image/png;base64,") >= 4  # one more is an idea of somebody's, not a fault
    assert "values drift" in (rendered[0] / "layers.html").read_text()


def _rows(text: str) -> list[list[str]]:
    """Cells of the claims table, row by row, without what spans the rows of a claim."""
    table = re.search(r'<div class="claims">(.*?)</div>', text, flags=re.DOTALL)
    assert table
    rows = re.findall(r"<tr>(.*?)</tr>", table[1].split("<tbody>")[1], flags=re.DOTALL)
    cells = [re.findall(r"<td(?![^>]*rowspan)[^>]*>(.*?)</td>", row, flags=re.DOTALL) for row in rows]
    return [[html.unescape(re.sub(r"<[^>]+>", "", cell)) for cell in row] for row in cells]


def test_claims_page_has_the_table_of_the_audit(rendered: tuple[Path, str], sweep: Path) -> None:
    text = (rendered[0] / "claims.html").read_text()
    found = auditing.audit(drift.open_sweep(sweep))
    shown = [[protocol, *rest] for protocols, *rest in _rows(text) for protocol in protocols.split(", ")]
    wanted = [
        [s.protocol or "–", f"{model.SIGNS[s.status]} {s.status.value}", s.words, claims_page.differing(s)]
        for s in found.summaries
    ]
    assert sorted(shown) == sorted(wanted)
    for s in found.summaries:
        assert f"{s.claim.name}</th>" in text
        assert html.escape(s.claim.published, quote=False) in html.unescape(text)
    assert text.count('class="not-tested">– not tested') >= 2  # retrieval and cost, in any sweep
    for finding in found.findings:
        assert finding.cells[0] in text
    for words in ("What would change a verdict", "Every finding", "p (refute, Holm)", "intersection-union",
                  "python -m drift.claims 'my sweep", "--details", "python -m drift.plateau", "what was run on what",
                  "nothing is said of a chain beyond its last step"):  # fmt: skip
        assert words in text, words


@pytest.mark.usefixtures("notebooks_here")
def test_pages_list_the_readings_that_were_run_in_the_words_of_their_cells(tmp_path: Path) -> None:
    for protocol, words in (("append", "said <i>by the cells</i> of append"), ("streaming(sinks=2)", "")):
        ds = synthetic.cell(protocol=protocol, chunk_size=16, tokens=256, layers=2)
        if words:
            ds.attrs["protocol_summary"] = words
        dataset.write(ds, tmp_path / "sweep" / f"{len(words)}.nc")
    rendering.render(tmp_path / "sweep", ["plateau"], tmp_path / "out", report=lambda line: None)
    page = (tmp_path / "out" / "plateau.html").read_text()
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    assert "append: said <i>by the cells</i> of append" in text
    assert "streaming(sinks=2)" in text
    for other in ("restart", "reprime", "BOS"):
        assert other not in text


def test_claims_come_first(rendered: tuple[Path, str]) -> None:
    assert DEFAULT_NOTEBOOKS == NOTEBOOKS
    for page in rendered[0].glob("*.html"):
        links = re.findall(r'(?:href="(\w+)\.html"|class="here")>', page.read_text().split("</nav>")[0])
        assert [name or page.stem for name in links] == ["index", *NOTEBOOKS]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_page_opens_with_sentence_figure_and_table_and_folds_the_rest(
    rendered: tuple[Path, str], name: str
) -> None:
    body = (rendered[0] / f"{name}.html").read_text().split("<main>")[1]
    unfolded = body[: body.index('<details class="fold"')]
    order = [unfolded.index(mark) for mark in ("<h1", "<li>", "<img", "<table")]
    assert order == sorted(order)
    assert "<h2" not in unfolded
    assert len(re.findall("<h2", body)) == len(re.findall('<details class="fold"><summary id="[^"]+"><h2>', body)) > 3
    assert len(_words(unfolded)) < 1500
    # links to a section lead to what is visible while it is folded
    ids = re.findall(r'\bid="([^"]+)"', body)
    assert len(ids) == len(set(ids))


def _words(body: str) -> list[str]:
    return html.unescape(re.sub(r"<[^>]+>", " ", body)).split()


def test_claims_have_anchors_that_are_seen_while_folded(rendered: tuple[Path, str]) -> None:
    text = (rendered[0] / "claims.html").read_text()
    for key in ("C1", "C2", "C3", "C4"):
        assert re.search(f'<summary id="[^"]+"><h2><span id="{key}"></span>{key}: ', text), key


def test_folded_sections_do_not_repeat_themselves(rendered: tuple[Path, str]) -> None:
    text = (rendered[0] / "claims.html").read_text().split("<main>")[1]
    sentences = [html.unescape(re.sub(r"<[^>]+>", "", cell)) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", text)]
    long = [sentence for sentence in sentences if len(sentence.split()) > 25]
    # the table of verdicts has a finding in full where a claim rests on one
    assert len(long) > 20
    assert max(long.count(sentence) for sentence in long) <= 2
    assert len(_words(text)) < 20_000


def test_a_page_without_an_answer_opens_its_first_section() -> None:
    v4 = nbformat.v4
    heads = [v4.new_markdown_cell(f"## {name} `x`\n\ntext of {name}") for name in ("one", "two")]
    body = page_body(v4.new_notebook(cells=[v4.new_markdown_cell("# Title"), *heads]))
    assert re.findall(r'<details class="fold"( open)?><summary id="[^"]+"><h2>(\w+) <code>x</code></h2>', body) == [
        (" open", "one"), ("", "two")
    ]  # fmt: skip
    assert body.index("text of one") < body.index("</details>") < body.index("text of two")


@pytest.mark.usefixtures("notebooks_here")
def test_a_contradiction_is_at_the_top_of_every_page(tmp_path: Path) -> None:
    """A ladder that says rounding, three floors above it: the same line on the first page and on every other."""
    for dtype, level in (("bf16", 1e-2), ("fp32", 1e-2 * 2.0**-16)):
        ds = synthetic.cell(dtype=dtype, documents=4, tokens=512, chunk_size=8, layers=2, noise=0.05,
                            level=lambda step, x=3 * level: x + 0 * step,
                            floor=lambda step, x=level: x + 0 * step)  # fmt: skip
        dataset.write(ds, tmp_path / "sweep" / f"{dtype}.nc")
    (found,) = floor.contradictions(drift.open_sweep(tmp_path / "sweep"))
    rendering.render(tmp_path / "sweep", ["layers", "readings"], tmp_path / "out", report=lambda line: None)
    for name in ("index", "layers", "readings"):
        top, main = (tmp_path / "out" / f"{name}.html").read_text().split("<main>")
        assert f'<p class="contradiction" role="alert">Contradiction: {html.escape(found.words)}</p>' in top, name
        assert "Contradiction" not in main
    assert ".contradiction {" in resource_css()
    assert re.search(r"\.contradiction \{[^}]*color: #b00020", resource_css())


def resource_css() -> str:
    return (Path(drift.__file__).parent / "reading" / "report" / "templates" / "page.css").read_text()


@pytest.mark.usefixtures("notebooks_here")
def test_margins_reach_the_claims_and_the_commands(sweep: Path, tmp_path: Path) -> None:
    given = ["-p", 'margins={"growth": 0.2, "family": 3}', "-p", "alpha=0.1", "-p", "models=beta",
             "-p", "measure=logit_kl"]  # fmt: skip
    assert drift_report.main([str(sweep), "--notebook", "claims", "--out", str(tmp_path), *given]) == 0
    text = html.unescape((tmp_path / "claims.html").read_text())
    assert "growth per doubling of depth 20 %" in text
    assert "models within a factor 3" in text
    assert "80 % interval" in text
    options = "--margin growth=0.2 --margin family=3 --alpha 0.1"
    assert f"--details --measure logit_kl {options}" in text
    assert "--measure logit_kl --margin 0.44 --rise-min 2.25 --alpha 0.1" in text  # of squares
    assert "models=beta" in text
    assert "alpha bf16" not in text
    name = next(sweep.glob("beta_bf16_append_c16_*")).name
    assert name in text


@pytest.mark.usefixtures("notebooks_here")
def test_a_margin_that_does_not_exist_is_named(sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(DriftError, match=r"growht=0\.2"):
        rendering.render(sweep, ["claims"], tmp_path, {"margins": {"growht": 0.2}}, report=lambda line: None)


@pytest.mark.parametrize("measure", ["hidden_rel_l2", "logit_kl"])
def test_the_commands_of_the_claims_page_give_its_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], measure: str
) -> None:
    folder = synthetic.sweep(
        tmp_path / "deep", ["alpha"], ["bf16", "fp32"], ["append"], [8], layers=2, tokens=512, documents=4
    )
    sweep = drift.open_sweep(folder)
    found = auditing.audit(sweep, measure, setting=model.settings({"growth": 0.08, "rise": 1.7}, 0.02))
    commands = [c for c in claims_page.commands(found, sweep).splitlines() if not c.startswith("#")]
    assert [shlex.split(c)[2] for c in commands] == ["drift.claims", "drift.plateau", "drift.report"]
    audit, chains, _ = (shlex.split(c.replace(" deep ", f" {folder} "))[3:] for c in commands)
    assert claims_main([*audit, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found.as_dict()))
    assert judge([*chains, "--json"]) == 0
    of_chains = {c["dtype"]: c for c in json.loads(capsys.readouterr().out)}
    findings = [f for s in found.summaries if s.claim.name == "C1 plateau" for f in s.findings]
    assert len(findings) == 2
    for finding in findings:
        one = of_chains[finding.scope.split()[1].rstrip(",")]
        assert one["verdict"] == finding.detail["verdict"]
        power = 2 if measure == "logit_kl" else 1
        assert 1 + one["growth_per_doubling"] == pytest.approx((1 + finding.estimate) ** power)


def test_pages_are_small(rendered: tuple[Path, str]) -> None:
    assert sum(p.stat().st_size for p in rendered[0].rglob("*") if p.is_file()) < 5_000_000


@pytest.mark.parametrize("name", [*NOTEBOOKS, "retrieval"])
def test_committed_notebooks_are_clean(name: str) -> None:
    notebook = nbformat.read(resource(f"notebooks/{name}.ipynb"), as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    assert not any("torch" in cell.source for cell in code)
    assert max(len(cell.source.splitlines()) for cell in code) <= 8


@pytest.mark.usefixtures("notebooks_here")
def test_parameters_reach_the_notebook(sweep: Path, tmp_path: Path) -> None:
    given = ["-p", "measure=key_rel_l2", "-p", 'models=["beta"]']
    code = drift_report.main([str(sweep), "--notebook", "plateau", "--out", str(tmp_path), *given])
    assert code == 0
    text = (tmp_path / "plateau.html").read_text()
    assert "relative L2 drift of the keys that the chunk appended" in text
    assert "append, beta" in text
    assert "append, alpha" not in text


def test_values_are_plain_types() -> None:
    texts = {
        "3": 3,
        "1e-3": 1e-3,
        "true": True,
        "null": None,
        "[1,2]": [1, 2],
        "last": "last",
        "None": None,
        "a,b": "a,b",
    }
    for text, value in texts.items():
        assert drift_report._plain(text) == value
        assert type(drift_report._plain(text)) is type(value)


def test_a_failing_notebook_leaves_what_it_had(sweep: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = drift_report.main([str(sweep), "--notebook", "plateau", "--out", str(tmp_path), "-p", "measure=absent"])
    assert code == 1
    said = capfd.readouterr()
    assert "DatasetError: there is no measure 'absent'" in said.err
    assert re.search(r"cell \d+ stopped", said.err)
    assert "FAILED" in said.out
    partial = nbformat.read(tmp_path / "plateau.partial.ipynb", as_version=4)
    outputs = [o for cell in partial.cells for o in cell.get("outputs", [])]
    assert any(o.output_type == "error" and o.ename == "DatasetError" for o in outputs)
    assert not (tmp_path / "plateau.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["-p", "colour=red"],
            "no notebook has a parameter 'colour'; there are alpha, layer, margins, measure, models, protocol",
        ),
        (["-p", "sweep=other"], "first argument"),
        (["--notebook", "absent"], "drift comes with claims, why, plateau, precision, readings, layers"),
        (["--notebook", "no/such.ipynb"], "no such notebook"),
    ],
)
def test_bad_usage_is_refused_before_anything_runs(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert drift_report.main([str(sweep), "--out", str(tmp_path / "out"), *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "running" not in said.out
    assert not (tmp_path / "out").exists()


def test_sweeps_without_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert drift_report.main([str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert drift_report.main([str(tmp_path)]) == 2
    assert "holds no readable cell" in capsys.readouterr().err
    (tmp_path / "bad.nc").write_text("x")
    assert drift_report.main([str(tmp_path)]) == 2
    assert "bad.nc" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        drift_report.main([str(tmp_path), "-p", "measure"])
    assert stopped.value.code == 2


def test_notebooks_of_ones_own_run_on_this_interpreter(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "jupyter" / "kernels" / "python3"  # of another environment
    trap.mkdir(parents=True)
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "trap", "language": "python"}
    (trap / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    path = tmp_path / "own.ipynb"
    own = own_notebook(path, "import sys\nprint('made by', sys.executable)")
    rendering.render(sweep, [str(path)], tmp_path / "out", report=lambda line: None)
    assert f"made by {sys.executable}" in (tmp_path / "out" / "own.html").read_text()
    own.cells[0].metadata.tags = []
    nbformat.write(own, path)
    with pytest.raises(ReportError, match="no parameter 'sweep'"):
        rendering.render(sweep, [str(path)], tmp_path / "again", report=lambda line: None)
    path.write_text("{")
    with pytest.raises(ReportError, match="cannot be read as a notebook"):
        rendering.render(sweep, [str(path)], tmp_path / "again", report=lambda line: None)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom drift import report\n"
        "try:\n    report.main(['--help'])\nexcept SystemExit as e:\n    assert e.code == 0\n"
        "assert not {'torch', 'papermill', 'nbconvert', 'matplotlib', 'xarray'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "exit codes" in done.stdout


def test_the_banner_is_an_alert_where_a_control_failed_whatever_its_words(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def checked(state: controls.State) -> controls.Checkup:
        one = controls.Control("failed", ("m", "failed", "cpu", "sdpa"), state, 0.0, "nothing failed")
        return controls.Checkup((one,), (), (), run=True)

    undecided, failed = checked(controls.State.UNDECIDED), checked(controls.State.FAILED)
    assert "failed" in undecided.banner
    assert controls_banner(undecided).startswith('<aside class="controls">')
    assert controls_banner(failed).startswith('<aside class="controls failed" role="alert">')
    for found, warnings in ((undecided, 0), (failed, 1)):
        monkeypatch.setattr(controls, "evaluate", lambda *_, found=found: found)
        said: list[str] = []
        rendering.render(sweep, [], tmp_path, report=said.append)
        assert sum("controls of the instrument failed" in line for line in said) == warnings
        assert controls_banner(found) in (tmp_path / "index.html").read_text()


@pytest.mark.usefixtures("notebooks_here")
def test_a_current_report_is_not_rendered_again(sweep: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "own.ipynb", tmp_path / "out"
    own_notebook(path, "print(word)", parameters="sweep = ''\nword = 'x'")
    command = [str(sweep), "--notebook", str(path), "--out", str(out)]

    def rendered(*more: str) -> bool:
        assert drift_report.main([*command, *more]) == 0
        return "(current;" not in capfd.readouterr().out

    assert rendered()
    assert not rendered()
    assert rendered("-p", "word=other")
    assert rendered()
    os.utime(next(sweep.glob("*.nc")), (1, 1))
    assert rendered()
    (out / "own.html").unlink()
    assert rendered()
    assert rendered("--force")
    assert not rendered()


@pytest.mark.usefixtures("notebooks_here")
def test_evidence_has_a_page_of_its_own_and_answers_what_its_chains_decide(
    sweep: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    evidence, out = tmp_path / "deep chains", tmp_path / "out"
    synthetic.sweep(evidence, ["alpha"], ["bf16"], ["append"], [8], layers=2, tokens=256)
    command = [str(sweep), "--notebook", "claims", "--evidence", str(evidence), "--out", str(out)]
    assert drift_report.main(command) == 0
    name = evidence.name
    page = out / f"claims-{name.replace(' ', '-')}.html"
    assert f"(evidence: {name})" in page.read_text()
    index = (out / "index.html").read_text()
    assert f'href="{page.name}#C1"' in index
    assert f"† from the evidence {name}" in index
    assert f"python -m drift.verify {shlex.quote(str(evidence))} --cell " in html.unescape(index)
    assert list((out / "figures").glob(f"{page.stem}-*.png"))
    capfd.readouterr()
    assert drift_report.main(command) == 0
    assert "(current;" in capfd.readouterr().out
    os.utime(next(evidence.glob("*.nc")), (1, 1))
    assert drift_report.main([*command, "--evidence", str(evidence)]) == 2
    assert "would overwrite the page of the first" in capfd.readouterr().err
    assert drift_report.main([*command[:-2], "--out", str(out), "--evidence", str(tmp_path / "nowhere")]) == 2
