"""The page: well-formed, self-contained, with what is there and a line on what is not; the command's mistakes."""

import base64
import itertools
import re
import xml.etree.ElementTree as ElementTree

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

import matplotlib.text
from made_up_runs import classifier_run, write
from matplotlib.figure import Figure

from mbj_plugin.tools.report import main
from mbj_plugin.tools.report.curves import curve_section
from mbj_plugin.tools.report.page import Section, Table, render
from mbj_plugin.tools.report.run import RunRecord
from mbj_plugin.tools.report.sections import write_report
from mbj_plugin.tools.report.style import COLOURS, GREYS, shown


@pytest.fixture
def figures(monkeypatch):
    """Texts and legends of every figure that is drawn."""
    seen = {"texts": [], "legends": []}
    save = Figure.savefig

    def spy(figure, *args, **kwargs):
        save(figure, *args, **kwargs)
        texts = figure.findobj(matplotlib.text.Text)
        assert not any(text.get_parse_math() for text in texts)
        seen["texts"] += [text.get_text() for text in texts]
        seen["legends"] += [[text.get_text().strip() for text in legend.get_texts()] for legend in figure.legends]

    monkeypatch.setattr(Figure, "savefig", spy)
    return seen


def read_page(path):
    """The page as a tree; fails where it is not well-formed, or names anything outside itself."""
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=[\"'](?!data:)|https?://|url\(|<script|@import", text)
    tree = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))
    for image in tree.iter("img"):
        kind, data = image.get("src").split(",", 1)
        assert kind == "data:image/png;base64" and base64.b64decode(data)[:8] == b"\x89PNG\r\n\x1a\n"
        assert len(image.get("alt")) > 20
    return tree, "".join(tree.itertext())


@pytest.mark.filterwarnings("error:constrained_layout")
def test_two_whole_runs_with_any_names_give_a_whole_page(tmp_path, figures):
    names = ("lr$\\frac$_^{}", "_" + "x" * 200)
    runs = [classifier_run(names[0], with_memory=False), classifier_run(names[1], 1)]
    for run in runs:
        run.class_names = ["猫", "собака", "c\x00\x1b\udcff", "$d\n", "_e"]
    tree, text = read_page(write_report(runs, tmp_path))
    assert not any(run.missing for run in runs) and "What is not here" not in text
    assert [h.text for h in tree.iter("h2")] == [
        "Results",
        "Runs",
        "Error by class group and by class size",
        "Confusion of tail into head",
        "Training curves",
        "What the memory held",
        "Memory and jitter while training",
        "Settings and versions",
    ]
    # Names of users: whole in HTML, shortened in figures, numbers where the figures' font has not their letters.
    assert all(name in text for name in (*names, "猫", "собака", "c???"))
    assert {"class 0", "собака"} < set(figures["texts"]) and "猫" not in figures["texts"]
    assert figures["legends"].count([shown(name).strip() for name in names]) == 4  # groups, sizes, error, rate
    assert {"1e-05", "0.01", "0.1"} < set(figures["texts"])  # a logarithmic axis has numbers at its ticks
    pngs = {path.name for path in tmp_path.glob("*.png")}
    assert len(pngs) == len(list(tree.iter("img")))
    expected = {"errors-by-group.png", "error-by-class-size.png", "change-1.png", "confusion-groups.png"}
    assert pngs > expected | {"confusion-1.png", "curve-error.png", "curve-learning-rate.png", "memory-1-feature.png"}
    # A screen reader finds its way.
    assert tree.get("lang") == "en" and [child.tag for child in tree.find("body")] == ["main"]
    levels = [int(element.tag[1]) for element in tree.iter() if re.fullmatch("h[1-6]", element.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    alts = [image.get("alt") for image in tree.iter("img")]
    assert len(set(alts)) == len(alts)
    for table in tree.iter("table"):
        assert all(cell.get("scope") == "col" for cell in table.find("thead").iter("th"))
        assert all(row[0].get("scope") == "row" for row in table.find("tbody"))
    # A phone shows it whole: no width is fixed, and tables scroll in boxes of their own.
    css = re.sub(r"\s+", " ", tree.find("head/style").text)
    assert "img { max-width: 100%; }" in css and not re.search(r"[ ;{](min-)?width: \d+px", css)
    boxes = [box for box in tree.iter("div") if box.get("class") == "scroll"]
    assert [box[0].tag for box in boxes] == ["table"] * len(list(tree.iter("table")))
    assert all(box.get("tabindex") == "0" and box.get("role") == "region" and box.get("aria-label") for box in boxes)
    assert "lr" in [row[0].text for table in tree.iter("table") for row in table.find("tbody")]  # it differs


def test_a_page_is_written_again_and_nothing_else_is(tmp_path):
    write_report([RunRecord("one")], tmp_path / "report")
    write(tmp_path / "report/older.png")
    write_report([RunRecord("empty")], tmp_path / "report")
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["report.html"]
    (tmp_path / "report/mine.txt").touch()
    with pytest.raises(ValueError, match="report"):
        write_report([RunRecord("empty")], tmp_path / "report")
    assert len(list((tmp_path / "report").iterdir())) == 2


def test_no_page_goes_into_a_data_set(image_folder, tmp_path):
    before = sorted(image_folder.rglob("*"))
    for flags in ([], ["--output", str(image_folder / "train/class0")]):
        with pytest.raises(SystemExit):
            main([str(image_folder), *flags])
    assert sorted(image_folder.rglob("*")) == before


def test_what_is_missing_and_what_cannot_be_drawn_is_said(tmp_path, monkeypatch):
    def odd_section(runs):
        raise ValueError("not together")

    monkeypatch.setattr(
        "mbj_plugin.tools.report.sections.DRAW", (odd_section, lambda runs: Section("Next", gaps=["x"]))
    )
    run = RunRecord("empty", missing=["results.json: it is <broken> & cut short"])
    tree, text = read_page(write_report([run], tmp_path))
    assert "empty: results.json: it is <broken> & cut short" in text and "page: odd section: not together" in text
    assert not list(tree.iter("img")) and "Next" in text


def test_a_narrow_logarithmic_axis_has_different_numbers_at_its_ticks(figures):
    curve_section([RunRecord("one", curves={"learning rate": {"": ([1.0, 2.0], [0.41, 0.36])}})])
    ticks = [text for text in figures["texts"] if re.fullmatch(r"0\.\d+", text)]
    assert len(set(ticks)) > 3 and max(map(ticks.count, ticks)) <= 2  # matplotlib's ticks have two labels each


def test_a_colour_has_one_meaning(monkeypatch):
    assert not set(COLOURS[:6]) & set(GREYS.values())
    run = classifier_run("one")
    run.classifiers = {key: run.classifiers["batch"] for key in ("batch", "memory")}
    run.chosen = "memory"
    colours, plot = {}, matplotlib.axes.Axes.plot
    monkeypatch.setattr(
        matplotlib.axes.Axes, "plot", lambda *a, **k: colours.update({k["label"]: k["color"]}) or plot(*a, **k)
    )
    curve_section([run])
    # The run's is that of the classifier that it was trained for.
    assert colours == {"cross-entropy": COLOURS[0], "one": COLOURS[1]}


def test_text_of_users_is_escaped():
    page = render("<b>&", ["<i>"], [Section("a<b", tables=[Table(["<i>"], [["&amp;"]])], gaps=['"<script>'])])
    assert "<script>" not in page and "&lt;b&gt;&amp;" in page
    ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch):
    for i in range(9):
        write(tmp_path / f"runs/{i}/summary.csv")
    with monkeypatch.context() as patch:
        patch.setattr("mbj_plugin.tools.report.command.RunRecord", lambda *_: pytest.fail("a run was read"))
        with pytest.raises(SystemExit, match="1 to 8 runs, got 9"):
            main([str(tmp_path / "runs")])
    with pytest.raises(SystemExit, match="there is no folder"):
        main([str(tmp_path / "nowhere")])
    for flags in (["--device", "banana"], ["--data", str(tmp_path / "nowhere")]):
        with pytest.raises(SystemExit, match=" ".join(flags)):
            main([str(tmp_path / "runs/1"), *flags])
    with pytest.raises(SystemExit, match="cannot write|holds files"):
        main([str(tmp_path / "runs/1"), "--output", str(tmp_path / "runs/1/summary.csv/report")])
    for flags, message in ((["--divice", "cpu"], "did you mean --device?"), (["--device"], "expected one")):
        with pytest.raises(SystemExit):
            main([str(tmp_path), *flags])
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mbj_plugin.tools.report.command.report", stop)
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path)])
    assert stopped.value.code == 130


def test_a_run_given_twice_is_shown_once(tmp_path, capsys):
    write(tmp_path / "run/results.json", "{}")
    main([str(tmp_path), str(tmp_path / "run"), "--no-model", "--output", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert said.count("Reading") == 1 and "  results.json: " in said  # what cannot be read is said here, too
