"""``sim table``: exact numbers, which runs share a cell, tests against a baseline, and the three forms."""

from __future__ import annotations

import csv
import io
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from conftest import Sim
from sim import RunConfig
from sim.run_folder.records import MetricRecord, RoundRecord
from sim.run_folder.writer import RunWriter
from sim.sweep.cells import p_value
from sim.sweep.typeset import latex_row

# Test accuracy in the last round, by seed.
FINAL = {
    (0.5, "fedavg"): [0.50, 0.52, 0.54],
    (0.5, "fedadam"): [0.51, 0.54, 0.57],  # differences 0.01, 0.02, 0.03
    (10.0, "fedavg"): [0.7, 0.8, 0.9],
    (10.0, "fedadam"): [0.6, 0.7, 0.8],
}


def run(folder: Path, name: str, values: list[float], *, done: bool = True, **settings: Any) -> None:
    config = RunConfig(num_rounds=len(values) - 1, name=name, results_dir=str(folder), **settings)
    writer = RunWriter.create(str(folder), name, config.to_toml(), clients=True)
    for number, value in enumerate(values):
        means = [MetricRecord(number, "evaluate", None, 10, "accuracy", value / 2)]
        writer.append(RoundRecord(number, test_accuracy=value, eval_accuracy=value / 2), metrics=means)
    writer.close()
    if done:
        (folder / name / "model.safetensors").write_bytes(b"")


def sweep(folder: Path, finals: dict[tuple[float, str], list[float]] = FINAL, **settings: Any) -> Path:
    """A folder as ``sim sweep --vary alpha=… --vary strategy=…`` leaves it; the best round is 0.01 better."""
    rows = ["alpha,strategy,seed,run,status,error"]
    for (alpha, strategy), values in finals.items():
        for seed, value in enumerate(values):
            name = f"alpha-{alpha}_strategy-{strategy}_seed-{seed}"
            run(folder, name, [0.1, value + 0.01, value], alpha=alpha, strategy=strategy, seed=seed, **settings)
            rows.append(f"{alpha},{strategy},{seed},{name},done,")
    (folder / "runs.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def swept(tmp_path: Path) -> Path:
    return sweep(tmp_path / "swept")


MARKDOWN = r"""| alpha \\ strategy | fedavg | fedadam |
| --- | ---: | ---: |
| 0.5 | 0.520 ± 0.020 | **0.540** ± 0.030 |
| 10 | **0.800** ± 0.100 | 0.700 ± 0.100\*\* |

Final accuracy of the central test: mean ± sample standard deviation over 3 seeds. The best of each row is bold. \* p \< 0.05, \*\* p \< 0.01 against strategy = fedavg by a paired t-test over the seeds, two-sided, not corrected for 2 comparisons.
"""  # noqa: E501 - as it is written

LATEX = r"""% needs \usepackage{booktabs}
\begin{table}
  \centering
  \caption{Final accuracy of the central test: mean $\pm$ sample standard deviation over 3 seeds. The best of each row is bold. * p $<$ 0.05, ** p $<$ 0.01 against strategy = fedavg by a paired t-test over the seeds, two-sided, not corrected for 2 comparisons.}
  \label{tab:my-table}
  \smallskip
  \setlength{\tabcolsep}{8pt}
  \begin{tabular}{lrr}
    \toprule
     & \multicolumn{2}{c}{strategy} \\
    \cmidrule(lr){2-3}
    alpha & fedavg & fedadam \\
    \midrule
    0.5 & 0.520 $\pm$ 0.020 & \textbf{0.540} $\pm$ 0.030 \\
    10 & \textbf{0.800} $\pm$ 0.100 & 0.700 $\pm$ 0.100\rlap{$^{**}$} \\
    \bottomrule
  \end{tabular}
\end{table}
"""  # noqa: E501 - as it is written


def test_a_table_of_the_sweep_is_not_overwritten_and_may_begin_with_a_mark(swept: Path, command: Sim) -> None:
    content = (swept / "runs.csv").read_bytes()
    refused = command("table", str(swept), "-o", str(swept / "runs.csv"))
    assert refused.stderr == f"sim: -o {swept}/runs.csv: is a table of a sweep; choose another name\n"
    assert (swept / "runs.csv").read_bytes() == content
    (swept / "runs.csv").write_bytes(b"\xef\xbb\xbf" + content)  # as a spreadsheet saves it
    assert command("table", str(swept), "-o", "t.md").returncode == 0


def test_a_row_of_latex_gives_no_argument_to_the_row_before_it() -> None:
    assert latex_row(["*.bias", "1"]) == r"{}*.bias & 1 \\"
    assert latex_row(["[1]", "2"]) == r"{}[1] & 2 \\"
    assert latex_row(["a*", "[2]"]) == r"a* & [2] \\"


def test_markdown_and_latex(swept: Path, command: Sim, tmp_path: Path) -> None:
    done = command("table", "swept", "--baseline", "strategy=fedavg", "-o", "t.md")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{MARKDOWN}table           t.md\n"
    assert (tmp_path / "t.md").read_text(encoding="utf-8") == MARKDOWN
    done = command("table", "swept", "--baseline", "strategy=fedavg", "-o", "my_table.tex")
    assert (done.returncode, done.stdout) == (0, f"{MARKDOWN}table           my_table.tex\n")
    assert (tmp_path / "my_table.tex").read_text(encoding="utf-8") == LATEX


def test_a_table_wider_than_a_column_goes_over_both(command: Sim, tmp_path: Path) -> None:
    strategies = ["fedavg", "fedadam", "fedyogi"]
    sweep(tmp_path / "wide", {(0.5, strategy): [0.5, 0.52] for strategy in strategies})
    for words, environment in ((("--spread", "none"), "table"), ((), "table*")):  # 32 letters, and 50
        assert command("table", "wide", "--rows", "alpha", *words, "-o", "t.tex").returncode == 0
        text = (tmp_path / "t.tex").read_text(encoding="utf-8")
        assert f"\\begin{{{environment}}}\n" in text
        assert text.endswith(f"\\end{{{environment}}}\n")
        assert len(re.findall(r"\\(?:begin|end){table\*?}", text)) == 2


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_all_digits(swept: Path, command: Sim, tmp_path: Path) -> None:
    assert command("table", "swept", "--baseline", "strategy=fedavg", "-o", "t.csv").returncode == 0
    found = rows_of((tmp_path / "t.csv").read_text(encoding="utf-8"))
    assert [(row["alpha"], row["strategy"], row["num_seeds"]) for row in found] == [
        *(("0.5", "fedavg", "3"), ("0.5", "fedadam", "3"), ("10", "fedavg", "3"), ("10", "fedadam", "3"))
    ]
    first, second, *_, last = found
    assert (first["num_pairs"], first["p_value"]) == ("", "")
    assert float(first["final_accuracy_mean"]) == pytest.approx(0.52, abs=1e-12)
    assert float(second["final_accuracy_sd"]) == pytest.approx(0.03, abs=1e-12)
    t = 4.302652729696142  # of 2 degrees of freedom at 97.5 %
    assert float(second["final_accuracy_high"]) == pytest.approx(0.54 + t * 0.03 / math.sqrt(3), abs=1e-9)
    # Of 2 degrees of freedom, the p-value is 1 − t/√(t² + 2); here t is mean / sd · √3 = 2√3.
    assert second["num_pairs"] == "3"
    assert float(second["p_value"]) == pytest.approx(1 - math.sqrt(12 / 14), abs=1e-9)
    assert float(last["p_value"]) < 1e-9  # the differences are the same but for rounding


def test_values_spreads_and_digits(swept: Path, command: Sim) -> None:
    def cells(*words: str) -> list[list[str]]:
        done = command("table", "swept", "-o", "t.md", *words)
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
        return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in (lines[0], *lines[2:])]

    assert cells("--value", "best", "--spread", "none", "--digits", "2") == [
        [r"alpha \\ strategy", "fedavg", "fedadam"],
        ["0.5", "0.53", "**0.55**"],
        ["10", "**0.81**", "0.71"],
    ]
    assert cells("--spread", "ci", "--bold", "none")[1] == [
        *("0.5", r"0.520 \[0.470, 0.570\]", r"0.540 \[0.465, 0.615\]")
    ]
    assert cells("--rows", "strategy", "--spread", "none", "--bold", "column") == [
        [r"strategy \\ alpha", "0.5", "10"],
        ["fedavg", "0.520", "**0.800**"],
        ["fedadam", "**0.540**", "0.700"],
    ]
    assert cells("--metric", "accuracy:min", "--spread", "none")[1] == ["0.5", "**0.520**", "0.540"]
    assert cells("--phase", "evaluate", "--spread", "none")[2] == ["10", "**0.400**", "0.350"]
    assert cells("--rows", "strategy,alpha", "--columns", "", "--spread", "none") == [
        ["strategy", "alpha", "final accuracy"],
        ["fedavg", "0.5", "0.520"],
        ["fedavg", "10", "**0.800**"],
        ["fedadam", "0.5", "0.540"],
        ["fedadam", "10", "0.700"],
    ]


def test_several_sweeps_and_runs_that_are_not_done(swept: Path, command: Sim, tmp_path: Path) -> None:
    sweep(tmp_path / "more", {(2.0, "fedavg"): [0.6], (2.0, "fedadam"): [0.65]})
    with (tmp_path / "more" / "runs.csv").open("a", encoding="utf-8") as file:
        file.write("2.0,fedavg,1,cut,failed,\n2.0,fedavg,2,never,waiting,\n")
    run(tmp_path / "more", "cut", [0.1, 0.2], done=False, alpha=2.0, seed=1)
    done = command("table", "swept", "more", "--baseline", "strategy=fedavg", "-o", "t.md")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "note            2 runs are not done and are left out"
    assert [line.split(" | ")[0] for line in lines[3:6]] == ["| 0.5", "| 2", "| 10"]
    assert lines[4] == "| 2 | 0.600 | **0.650** |"
    assert "over 1 to 3 seeds." in done.stdout
    assert "for 2 comparisons." in done.stdout


def test_wilcoxon(command: Sim, tmp_path: Path) -> None:
    sweep(tmp_path / "many", {(1.0, "fedavg"): [0.5] * 6, (1.0, "fedadam"): [0.51, 0.52, 0.53, 0.54, 0.55, 0.56]})
    words = ("--baseline", "strategy=fedavg", "--test", "wilcoxon")
    done = command("table", "many", *words, "-o", "t.csv")
    assert done.returncode == 0, done.stderr
    assert float(rows_of((tmp_path / "t.csv").read_text(encoding="utf-8"))[1]["p_value"]) == 2 / 2**6
    assert r"0.535** ± 0.019\*" in done.stdout
    assert "by Wilcoxon's signed-rank test over the seeds" in done.stdout


def test_p_values_at_the_limits() -> None:
    for test in ("t", "wilcoxon"):
        assert math.isnan(p_value([], test))
        assert math.isnan(p_value([0.5], test))
        assert p_value([0.0, 0.0, 0.0], test) == 1.0
    assert p_value([0.25, 0.25, 0.25], "t") == 0.0
    assert p_value([0.0, 0.0, 1.0], "wilcoxon") == 1.0


def test_names_are_escaped(command: Sim, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    for seed in range(2):
        run(folder, f"a{seed}", [0.1, 0.2], seed=seed, model="my_models:Net_2", args={"note": "50 % & #1 {x} a|b"})
        run(folder, f"b{seed}", [0.1, 0.3], seed=seed, model="my_models:Net_2", args={"note": -1})
    rows = [f"x,{seed},{name}{seed}" for name in "ab" for seed in range(2)]
    (folder / "runs.csv").write_text("\n".join(["args.note,seed,run", *rows]) + "\n", encoding="utf-8")
    done = command("table", "odd", "--rows", "model,args.note", "-o", "t.tex")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "t.tex").read_text(encoding="utf-8")
    assert r"    my\_models:Net\_2 & 50 \% \& \#1 \{x\} a|b & 0.200 $\pm$ 0.000 \\" in text
    assert r"    my\_models:Net\_2 & $-$1 & \textbf{0.300} $\pm$ 0.000 \\" in text
    assert r"| my\_models:Net\_2 | 50 % & #1 \{x\} a\|b | 0.200 ± 0.000 |" in done.stdout


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(swept: Path, command: Sim, tmp_path: Path) -> None:
    assert command("table", "swept", "--baseline", "strategy=fedavg", "-o", "t.tex").returncode == 0
    document = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{t}\end{document}"
    (tmp_path / "doc.tex").write_text(document, encoding="utf-8")
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "doc.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-o", "t.txt"), "-o t.txt: the ending must be one of .tex, .md, .csv"),
        (("--digits", "-1"), "--digits -1: must be a whole number, at least 0 and at most 10"),
        (("--rows", "alpha,alpha"), "--rows and --columns: name alpha twice"),
        (("--rows", "beta"), "--rows and --columns: no run has the setting beta; the sweeps vary alpha, strategy"),
        (
            ("--rows", "alpha", "--columns", ""),
            "alpha 0.5: {0}/alpha-0.5_strategy-fedavg_seed-0 and {0}/alpha-0.5_strategy-fedadam_seed-0 both have the "
            "seed 0; they differ in strategy, which --rows or --columns can name",
        ),
        (("--test", "t"), "--test t: belongs to --baseline, against which cells are tested"),
        (("--baseline", "lr=1"), "--baseline lr=1: must be setting=value, with one of alpha, strategy"),
        (
            ("--baseline", "strategy=fedprox"),
            "--baseline strategy=fedprox: no run has this value; strategy is one of fedavg, fedadam",
        ),
        (
            ("--metric", "f1"),
            "--metric f1: alpha-0.5_strategy-fedavg_seed-0 has not measured it; it has accuracy",
        ),
    ],
)
def test_wrong_words(swept: Path, command: Sim, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    done = command("table", "swept", *words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"sim: {message.format('swept')}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["swept"]


def test_folders_that_are_no_sweep(swept: Path, command: Sim, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = command("table", "swept", "empty")
    message = "sim: empty: is no folder of a sweep: runs.csv: No such file or directory\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
    for content in (b"", b"a,b\n1,2\n", b"seed\n1\n", b"\xff\xfe"):
        (tmp_path / "empty" / "runs.csv").write_bytes(content)
        done = command("table", "empty")
        message = "sim: empty/runs.csv: is no table of a sweep, which has the columns seed and run\n"
        assert (done.returncode, done.stderr) == (2, message), content
    (tmp_path / "empty" / "runs.csv").write_text("seed,run\n0,waits\n", encoding="utf-8")
    done = command("table", "empty")
    assert (done.returncode, done.stderr) == (2, "sim: empty: no run is done\n")


def diverging(folder: Path, name: str, finals: list[float], **settings: Any) -> None:
    """A run that tests an own metric in each round, as ``sim run`` writes it."""
    config = RunConfig(num_rounds=max(1, len(finals) - 1), name=name, results_dir=str(folder), **settings)
    writer = RunWriter.create(str(folder), name, config.to_toml(), clients=True)
    for number, value in enumerate(finals):
        record = RoundRecord(number, test_loss=value, test_seconds=0.1)
        writer.append(record, metrics=[MetricRecord(number, "test", None, 10, "rmse", value)])
    writer.close()
    (folder / name / "model.safetensors").write_bytes(b"")


def test_runs_without_the_metric_are_said(command: Sim, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    diverging(folder, "a", [3.0, 1.0], seed=0)
    diverging(folder, "b", [3.0, 2.0], seed=1)
    table = (folder / "b" / "metrics.csv").read_text()
    (folder / "b" / "metrics.csv").write_text(table.replace("rmse", "mae"))
    (folder / "runs.csv").write_text("alpha,seed,run,status,error\n0.5,0,a,done,\n0.5,1,b,done,\n")
    made = command("table", str(folder), "-o", str(tmp_path / "table.md"))
    assert "note            1 run has not measured rmse and is left out" in made.stdout
    assert "| 1.000 |" in made.stdout


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("metric", ["rmse", "loss"])
def test_a_value_that_is_no_number_at_the_end_is_none_of_an_earlier_round(
    command: Sim, tmp_path: Path, metric: str
) -> None:
    folder = tmp_path / "results"
    diverging(folder, "a", [3.0, 2.0, math.nan], seed=0)
    diverging(folder, "b", [3.0, 2.0, 1.0], seed=1)
    (folder / "runs.csv").write_text("alpha,seed,run,status,error\n0.5,0,a,done,\n0.5,1,b,done,\n")
    listed = command("list", "--metric", metric).stdout.splitlines()
    assert [line.split()[:4] for line in listed[1:]] == [
        ["a", "2/2", "nan", "2.0000"],
        ["b", "2/2", "1.0000", "1.0000"],
    ]
    made = command("table", str(folder), "--metric", metric, "-o", str(tmp_path / "table.md"))
    assert f"1 run ends with nan as its {metric} and is left out" in made.stdout
    assert "| 1.000 |" in made.stdout
    assert command("report", str(folder / "a"), "--metric", metric, "-o", str(tmp_path / "page.html")).returncode == 0
    assert "nan" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("factor", "cell", "unit"),
    [(1e-9, "500.000 ± ", "multiples of 1e-12"), (1.0, "0.500 ± ", ""), (1e9, "500.000 ± ", "multiples of 1e6")],
)
def test_very_large_and_very_small_numbers_are_multiples_of_a_power_of_ten(
    command: Sim, tmp_path: Path, factor: float, cell: str, unit: str
) -> None:
    folder = tmp_path / "results"
    for seed, value in enumerate((0.4, 0.6)):
        diverging(folder, f"{seed}", [value * factor] * 2, seed=seed)
    (folder / "runs.csv").write_text("alpha,seed,run,status,error\n0.5,0,0,done,\n0.5,1,1,done,\n")
    made = command("table", str(folder), "--metric", "rmse", "-o", str(tmp_path / "table.tex"))
    assert cell in made.stdout
    assert unit in made.stdout
    assert ("multiples" in (tmp_path / "table.tex").read_text()) is bool(unit)


def test_a_metric_that_a_round_does_not_have_is_that_of_the_last_round_with_it(command: Sim, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    writer = RunWriter.create(str(folder), "a", RunConfig(num_rounds=2).to_toml(), clients=True)
    for number in range(3):
        rows = [MetricRecord(number, "test", None, 10, "rmse", 3.0 - number)] if number < 2 else []
        writer.append(RoundRecord(number, test_accuracy=0.5, test_seconds=0.1), metrics=rows)
    writer.close()
    assert command("list", "--metric", "rmse").stdout.splitlines()[1].split()[:3] == ["a", "2/2", "2.0000"]
