"""sim report: the page shows the numbers of the tables, needs no other file, and is readable in a real browser."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from conftest import SMALL, Sim, Small, made_once
from sim import simulate
from sim.centralized import train_centralized
from sim.config.run_config import CentralizedConfig, RunConfig
from sim.errors import RunFolderError
from sim.metrics import MetricName
from sim.report import comparison, figures, numbers, runs
from sim.report.latex import latex_of
from sim.report.numbers import ACCURACY, SeedStatistics, Summary
from sim.run_folder.folder import Run
from sim.run_folder.read_run import ReadRun
from sim.run_folder.records import RoundRecord
from sim.run_folder.writer import RunWriter

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

Cell = tuple[str, dict[str, str | None]]
HOSTILE = "<img src=x onerror=alert(1)> & $x$"
SCRIPT = "ValueError: <script>document.title = 'broken'</script>, \"quoted\""

pytestmark = pytest.mark.usefixtures("pictures")


class Page(HTMLParser):
    """A parsed page: its tables by id, as rows of (text, attributes), and every start tag."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[Cell] = []
        self.tables: dict[str, list[list[Cell]]] = {}
        self.text = ""
        self._table: list[list[Cell]] = []
        self._in_cell = False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self._table = self.tables.setdefault(str(dict(attrs).get("id", dict(attrs).get("class"))), [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._table[-1].append(("", dict(attrs)))
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            text, attributes = self._table[-1][-1]
            self._table[-1][-1] = (text + data, attributes)

    def texts(self, table: str) -> list[list[str]]:
        return [[" ".join(text.split()) for text, _ in row] for row in self.tables[table]]

    def numbers(self, table: str) -> dict[str, list[tuple[float, float | None] | None]]:
        """Return the first cell of each row → (data-value, data-sd) of the other cells; None for a dash."""

        def number(attributes: dict[str, str | None]) -> tuple[float, float | None] | None:
            value, sd = attributes.get("data-value"), attributes.get("data-sd")
            return None if value is None else (float(value), None if sd is None else float(sd))

        return {row[0][0].strip(): [number(cell) for _, cell in row[1:]] for row in self.tables[table][1:]}


def _sweep(folder: Path) -> None:
    for alpha in (0.1, 10.0):
        for seed in (0, 1):
            settings = {"alpha": alpha, "seed": seed, "fraction_evaluate": 0.5, "name": f"alpha{alpha:g}-seed{seed}"}
            simulate(RunConfig(**SMALL, **settings, results_dir=str(folder)))
    train_centralized(CentralizedConfig(epochs=1, name="central", results_dir=str(folder)))


@pytest.fixture
def sweep(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of federated runs with two alphas and two seeds, and a centralised run."""
    made = made_once(tmp_path_factory, "report", _sweep)
    return Path(shutil.copytree(made, tmp_path / "results"))


def _written(command: Sim, tmp_path: Path, *words: str) -> Page:
    result = command("report", *words, "-o", "page.html")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "report          page.html\n"
    return Page(tmp_path / "page.html")


def _is(value: float, sd: float | None = None) -> tuple[object, object]:
    return pytest.approx(value, rel=1e-12), None if sd is None else pytest.approx(sd, rel=1e-12)


def _fake(root: Path, name: str, config: RunConfig | CentralizedConfig, accuracies: list[float]) -> Run:
    writer = RunWriter.create(str(root), name, config.to_toml(), clients=isinstance(config, RunConfig))
    for number, accuracy in enumerate(accuracies):
        writer.append(RoundRecord(number, test_accuracy=accuracy, test_loss=1.0, round_seconds=0.5))
    writer.close()
    return writer.run


def test_the_numbers_are_those_of_the_tables(command: Sim, sweep: Path, tmp_path: Path) -> None:
    page = _written(command, tmp_path, "results")
    summary, quantiles, seconds = page.numbers("summary-table"), page.numbers("quantiles"), page.numbers("seconds")
    assert list(summary) == ["alpha0.1", "alpha10", "central"]
    assert list(quantiles) == ["alpha0.1", "alpha10"]
    for name in ("alpha0.1", "alpha10"):
        tables = [pd.read_csv(sweep / f"{name}-seed{seed}" / "rounds.csv") for seed in (0, 1)]
        last = pd.DataFrame([table.iloc[-1] for table in tables])
        best = pd.Series([table.test_accuracy.max() for table in tables])
        minutes = [(table.round_seconds.sum() + table.checkpoint_seconds.sum()) / 60 for table in tables]
        both = pd.concat(tables)
        assert summary[name] == [
            _is(2),
            _is(2),
            _is(last.test_accuracy.mean(), last.test_accuracy.std()),
            _is(best.mean(), best.std()),
            _is(last.test_loss.mean(), last.test_loss.std()),
            _is(sum(minutes) / 2),
            _is(both.num_clients.sum() / both.fit_seconds.sum()),
            _is(0),
        ]
        clients = [last[f"eval_accuracy_{quantile}"] for quantile in ("p10", "p50", "p90", "worst10")]
        assert quantiles[name] == [_is(values.mean(), values.std()) for values in clients]
        rounds = both[both["round"] > 0]
        parts = ["broadcast", "train", "wait", "return", "aggregate", "test", "eval", "checkpoint"]
        found = [_is(rounds[f"{part}_seconds"].sum() / 4) for part in parts]
        assert seconds[name][:-1] == [*found[:6], None, *found[6:]]  # nothing was validated
        assert seconds[name][-1] == _is((rounds.round_seconds.sum() + rounds.checkpoint_seconds.sum()) / 4)
    central = pd.read_csv(sweep / "central" / "rounds.csv")
    assert summary["central"][2] == (central.test_accuracy.iloc[-1], None)
    assert summary["central"][-2:] == [None, None]
    assert seconds["central"][1] == _is(central.fit_seconds.sum())
    shown = dict(zip(*[page.texts("summary-table")[row] for row in (0, 3)], strict=True))
    assert shown["final accuracy mean ± sample sd"] == f"{central.test_accuracy.iloc[-1]:.4f} ± —"
    assert shown["rounds"] == "1 of 1 epochs"


def test_the_page_begins_with_the_differences_and_has_all_sections(command: Sim, sweep: Path, tmp_path: Path) -> None:
    environment = sweep / "alpha10-seed0" / "environment.json"
    environment.write_text(json.dumps({**json.loads(environment.read_text()), "cpu": "another"}))
    page = _written(command, tmp_path, *(f"alpha{alpha}-seed{seed}" for alpha in ("0.1", "10") for seed in (0, 1)))
    assert page.texts("differences") == [
        ["curve", "seed", "alpha", "runs"],
        ["alpha0.1", "0, 1", "0.1", "alpha0.1-seed0, alpha0.1-seed1"],
        ["alpha10", "0, 1", "10.0", "alpha10-seed0, alpha10-seed1"],
    ]
    common = dict(page.texts("common"))
    assert common["num_clients"] == "10"
    assert not {"alpha", "seed", "name", "results_dir", "verbose"} & set(common)
    assert page.source.index('id="differences"') < page.source.index("<details>") < page.source.index("<img")
    assert page.text.count("mean ± sample sd of 2 seeds") == 1  # below the curves, and not for each of them
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    num_partitions = [str(picture["src"])[:18] for picture in pictures].count("data:image/png;bas")
    assert num_partitions == 2  # one per alpha
    assert len(pictures) == 2 + 2 + 2 + 1
    assert page.text.count("only this seed is shown, and seed 1 gives a different partition") == 2
    final, sd = page.numbers("summary-table")["alpha10"][2] or (0, 0)
    assert f"alpha10 {final:.3f} ± {sd:.3f}" in str(pictures[0]["alt"])
    assert "None: no client failed." in page.text
    facts = dict(page.texts("environment-table"))
    assert facts["processor – differs"].startswith(json.loads((sweep / "central/environment.json").read_text())["cpu"])
    assert "another (alpha10-seed0)" in facts["processor – differs"]
    assert "--fraction-evaluate" not in page.text


LATEX = r"""% needs \usepackage{booktabs}
\begin{table*}
  \centering
  \caption{Results on the central test examples: mean $\pm$ sample standard deviation over the seeds.}
  \smallskip
  \begin{tabular}{lrrrrr}
    \toprule
     & seeds & rounds & final accuracy & best accuracy & final loss \\
    \midrule
    a\_b & 2 & 1--2 & 0.500 $\pm$ 0.141 & 0.550 $\pm$ 0.071 & 1.000 $\pm$ 0.000 \\
    central \& all & 1 & 1 & 0.900 & 0.900 & 1.000 \\
    new & 1 & 0 & -- & -- & -- \\
    \bottomrule
  \end{tabular}
\end{table*}
"""


def test_the_results_can_be_copied_as_latex(command: Sim, tmp_path: Path) -> None:
    results = tmp_path / "results"
    _fake(results, "a_b-seed0", RunConfig(num_rounds=2, seed=0), [0.1, 0.5, 0.4])
    _fake(results, "a_b-seed1", RunConfig(num_rounds=2, seed=1), [0.1, 0.6])
    _fake(results, "central & all", CentralizedConfig(epochs=1), [0.1, 0.9])
    _fake(results, "new", RunConfig(num_rounds=2, lr=0.5), [])
    source = _written(command, tmp_path, "results").source
    shown = source.partition('id="latex" tabindex="0">')[2].partition("</pre>")[0]
    assert html.unescape(shown) == LATEX
    assert (
        latex_of([], MetricName("loss", smaller_is_better=True), "test").count("loss") == 2
    )  # final and best, once each
    one = Summary(1, (3, 3), SeedStatistics([0.25]), None, None, None, None, None)
    for phase, examples in (("test", "central test examples"), ("evaluate", "clients' own examples")):
        assert f"Results on the {examples}, of one seed each." in latex_of([("x", one)], ACCURACY, phase)


def test_failures_are_counted_and_nothing_in_a_name_or_an_error_is_markup(
    command: Sim, small: Small, pictures: None, in_programs: None, tmp_path: Path
) -> None:
    run = small(client="own:Failing", on_client_error="drop", clients_per_round=10, name="failing")
    clients = pd.read_csv(run.clients_path)
    failed = clients.status == "failed"
    assert failed.sum() == 5
    clients.loc[failed, "error"] = [SCRIPT] * 4 + ["another"]
    clients.to_csv(run.clients_path, index=False)
    run.path.rename(run.path.parent / HOSTILE)
    page = _written(command, tmp_path, HOSTILE)
    first = clients[failed].client_id.tolist()
    assert page.texts("failure-table")[1:] == [
        [HOSTILE, SCRIPT, "4", f"round 2 (fit), client {first[0]}"],
        [HOSTILE, "another", "1", f"round 2 (fit), client {first[4]}"],
    ]
    assert page.numbers("summary-table")[HOSTILE][-1] == (5, None)
    assert {"script", "iframe", "object"}.isdisjoint(tag for tag, _ in page.tags)
    assert all(str(attributes["src"]).startswith("data:") for tag, attributes in page.tags if tag == "img")
    assert "Set --fraction-evaluate above 0 to measure" in page.text


def test_runs_that_are_not_finished_are_shown(command: Sim, tmp_path: Path) -> None:
    _fake(tmp_path / "results", "begun", RunConfig(num_rounds=9), [])
    only = _written(command, tmp_path, "begun")
    assert "begun (no round of 9 yet)" in " ".join(only.text.split())
    assert "No round was measured yet." in only.text
    assert "has no readable partition.png." in " ".join(only.text.split())
    assert "These runs have no environment.json: begun." in only.text
    assert only.numbers("summary-table")["begun"][2:] == [None, None, None, None, None, (0, None)]

    _fake(tmp_path / "results", "stopped", RunConfig(num_rounds=9, lr=0.5), [0.1, 0.2, 0.3])
    _fake(tmp_path / "results", "reached", RunConfig(num_rounds=9, lr=0.6, target_accuracy=0.2), [0.1, 0.2])
    _fake(tmp_path / "results", "epochs", CentralizedConfig(epochs=3), [0.1])
    page = _written(command, tmp_path, "results")
    text = " ".join(page.text.split())
    assert "stopped: begun (no round of 9 yet); epochs (after epoch 0 of 3); stopped (after round 2 of 9)." in text
    assert page.numbers("summary-table")["stopped"][1:3] == [(2, None), (0.3, None)]
    (header, *rows) = page.texts("differences")
    assert header[:2] == ["curve", "kind"]
    assert [row[1] for row in rows] == ["federated", "centralised", "federated", "federated"]


def test_the_best_round_by_the_validation_is_shown_with_its_test(command: Sim, tmp_path: Path) -> None:
    """The validation is best in round 1 and in round 2, in which the test is not best."""
    for seed, best, tested in ((0, 1, 0.5), (1, 2, 0.625)):
        config = RunConfig(num_rounds=3, seed=seed, validation_share=0.1)
        writer = RunWriter.create(str(tmp_path / "results"), f"validated-seed{seed}", config.to_toml(), clients=True)
        for number in range(4):
            value = 0.9 + seed / 20 if number == best else 0.25
            test = tested if number == best else 0.75
            measured = {"validation_accuracy": value, "validation_loss": 1.0, "validation_seconds": 0.1}
            writer.append(RoundRecord(number, test_accuracy=test, test_loss=1.0, round_seconds=0.5, **measured))
        writer.close()
    _fake(tmp_path / "results", "without", RunConfig(num_rounds=2, lr=0.5), [0.1, 0.2, 0.3])
    page = _written(command, tmp_path, "results")
    (row,) = page.texts("chosen")[1:]
    assert row[1:] == ["accuracy of the validation", "1.5 ± 0.7", "0.9250 ± 0.0354", "0.5625 ± 0.0884"]


def test_the_runs_of_a_folder_come_in_natural_order_and_once(tmp_path: Path) -> None:
    for name in ("run10", "run2", "run3"):
        _fake(tmp_path / "sweep", name, RunConfig(), [0.1])
    chosen = runs.chosen_runs([str(tmp_path / "sweep" / "run3"), "sweep"], str(tmp_path))
    assert [run.name for run in chosen] == ["run3", "run2", "run10"]
    (tmp_path / "sweep" / "runs.csv").write_text("run,seed\nrun10,0\nrun2,1\n", encoding="utf-8")  # as in sweep.png
    of_sweep = runs.chosen_runs(["sweep"], str(tmp_path))
    assert [run.name for run in of_sweep] == ["run10", "run2", "run3"]
    with pytest.raises(RunFolderError, match=r"run nothing: neither .*; existing runs: run10, run2, run3"):
        runs.chosen_runs(["nothing"], str(tmp_path / "sweep"))


def test_only_settings_that_both_kinds_of_run_have_can_differ_between_them() -> None:
    federated = {"lr": 0.1, "num_rounds": 5, "strategy_args": {"tau": 1.0}, "name": "a"}
    another = {**federated, "strategy_args": {}, "name": "b"}
    settings = comparison.compare_configs([federated, another, {"lr": 0.2, "epochs": 1}], [False, False, True])
    assert {setting.name: setting.values for setting in settings if setting.differs} == {
        "lr": ["0.1", "0.1", "0.2"],
        "strategy_args.tau": ["1.0", "–", None],
    }


def test_eighteen_curves_of_one_name_are_distinct(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) / "runs" for number in range(18)]
    runs = [_fake(path, "same", RunConfig(lr=0.1 + k), [0.1, 0.2]) for k, path in enumerate(folders)]
    groups = numbers.groups_of([ReadRun(run.path) for run in runs])
    assert [group.name for group in groups] == ["same", *(f"same #{number}" for number in range(2, 19))]
    marks = figures.curve_marks(groups)
    assert len({(mark.color, mark.border) for mark in marks}) == 18
    assert figures.curves_picture(groups, "accuracy", "test") is not None


def _folder_of_nothing(root: Path) -> None:
    (root / "empty" / "photos").mkdir(parents=True)


def _no_round(root: Path) -> None:
    run = _fake(root / "results", "old", RunConfig(), [0.1])
    run.rounds_path.write_text("accuracy\n0.1\n")


def _broken_environment(root: Path) -> None:
    _fake(root / "results", "odd", RunConfig(), [0.1]).environment_path.write_text("{")


def _page_is_a_folder(root: Path) -> None:
    _fake(root / "results", "one", RunConfig(), [0.1])
    (root / "taken.html").mkdir()


@pytest.mark.parametrize(
    ("prepare", "words", "says"),
    [
        (_folder_of_nothing, ["empty"], "run empty: empty is neither a run (it has no config.toml) nor a folder"),
        (_page_is_a_folder, ["nowhere"], "run nowhere: neither a run in results nor a path to one; existing runs: one"),
        (_no_round, ["old"], "rounds.csv: has no column round"),
        (_broken_environment, ["odd"], "environment.json: Expecting property name"),
        (_page_is_a_folder, ["one", "-o", "page.pdf"], "-o page.pdf: the ending must be .html"),
        (_page_is_a_folder, ["one", "-o", "no/page.html"], "-o no/page.html: there is no folder no"),
        (_page_is_a_folder, ["one", "-o", "taken.html"], "-o taken.html: cannot be written: Is a directory"),
    ],
)
def test_mistakes_are_one_line(
    command: Sim, tmp_path: Path, prepare: Callable[[Path], None], words: list[str], says: str
) -> None:
    prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result = command("report", *words)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert says in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_page_that_does_not_fit_on_the_disk_leaves_the_old_page(sim: Sim, tmp_path: Path) -> None:
    _fake(tmp_path / "results", "one", CentralizedConfig(), [0.1])
    (tmp_path / "page.html").write_text("before")
    result = sim("report", "one", "-o", "page.html", prefix=("prlimit", "--fsize=9999"))
    assert (result.returncode, result.stderr) == (2, "sim: -o page.html: cannot be written: File too large\n")
    assert (tmp_path / "page.html").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "results"]


def test_a_browser_shows_the_page_without_network_at_the_width_of_a_desktop_and_a_phone(
    command: Sim, sweep: Path, tmp_path: Path, browser: Chrome
) -> None:
    from browser import assert_shown

    (sweep / "alpha0.1-seed0").rename(sweep / HOSTILE)
    page = _written(command, tmp_path, "results")
    for tag, attributes in page.tags:
        target = attributes.get("src") or attributes.get("href") or "#"
        assert target.startswith(("data:", "#")), tag
    for width in (390, 1280, 1920):
        assert_shown(browser, tmp_path / "page.html", width, num_images=2 + 2 + 2 + 1)
        failures, pictures = browser.execute_script(
            "const right = each => each.getBoundingClientRect().right;"
            "return [right(document.querySelector('#summary-table th:last-child')),"
            " [...document.querySelectorAll('#curves img')].map(right)]"
        )
        if width == 390:
            continue
        shown = browser.execute_script("return document.documentElement.clientWidth")
        assert (
            0.7 * shown < failures <= shown
        )  # the whole table is seen, and it does not leave a third of the page empty
        assert pictures[0] < shown / 2 < 0.7 * shown < pictures[1] <= shown  # beside each other
    text = browser.find_element("id", "latex")
    text.click()
    selected = browser.execute_script("return getSelection().toString()")
    assert selected.strip() == str(text.get_property("textContent")).strip()
    assert selected.startswith("% needs \\usepackage{booktabs}\n\\begin{table*}\n")
