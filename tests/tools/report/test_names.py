"""Names are the user's: whatever they hold, the page and every figure and legend is there."""

import matplotlib.text
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from matplotlib.figure import Figure
from test_report import classifier_run, read_page

from mbj_plugin.tools.report import main
from mbj_plugin.tools.report.sections import write_report
from mbj_plugin.tools.report.style import shown


@pytest.fixture
def texts(monkeypatch):
    """Every text of every figure that is saved, legends apart."""
    seen = {"all": [], "legends": []}
    save = Figure.savefig

    def spy(figure, *args, **kwargs):
        save(figure, *args, **kwargs)
        for text in figure.findobj(matplotlib.text.Text):
            assert not text.get_parse_math()
            seen["all"].append(text.get_text())
        for legend in figure.legends:
            seen["legends"].append([text.get_text() for text in legend.get_texts()])

    monkeypatch.setattr(Figure, "savefig", spy)
    return seen


@pytest.mark.filterwarnings("error:constrained_layout")
@pytest.mark.parametrize("names", [("lr$\\frac$", "$a"), ("_first", "__second"), ("50%_^{}\\", "x" * 200)])
def test_any_name_gives_whole_figures(tmp_path, names, texts):
    runs = [classifier_run(name, seed) for seed, name in enumerate(names)]
    for run in runs:
        run.class_names = ["$x", "_y", "$$", "%", "\\z"]
    _, text = read_page(write_report(runs, tmp_path))
    assert not any(run.missing for run in runs), runs[0].missing
    assert all(name in text for name in names)
    # Errors by group (two figures), by class, and the curves: all runs in each legend.
    short = [shown(name).strip() for name in names]
    of_runs = [legend for legend in texts["legends"] if any(name in line for line in legend for name in short)]
    assert len(of_runs) >= 5 and all([line.strip() for line in legend] == short for legend in of_runs)


def test_ticks_of_logarithmic_axes_are_numbers(tmp_path, texts):
    run = classifier_run("run")
    run.curves = {"learning rate": ([0.0, 1.0, 2.0], [0.1, 0.01, 1e-5])}
    write_report([run], tmp_path)
    assert not any("$" in text or "mathdefault" in text for text in texts["all"])
    assert "1e−05" in texts["all"]


def test_a_name_that_neither_xml_nor_a_font_can_hold(tmp_path):
    run = classifier_run("a\x00b\x1b\udcff\nc")
    run.class_names = ["\x01", "b", "c", "d\n", "e"]
    run.missing = ["x: \x00\udcff"]
    _, text = read_page(write_report([run], tmp_path))
    assert "a?b???c" in text and not [line for line in run.missing if "\x00" not in line]


def test_a_run_given_twice_is_shown_once(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text("{}")
    main([str(tmp_path), str(tmp_path / "run"), "--no-model", "--output", str(tmp_path / "out")])
    assert capsys.readouterr().out.count("Reading") == 1


def test_a_wrong_flag_is_one_line(tmp_path, capsys):
    for flags, message in (
        (["--divice", "cpu"], "there is no flag --divice, did you mean --device?"),
        (["--device"], "expected one"),
    ):
        with pytest.raises(SystemExit):
            main([str(tmp_path), *flags])
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("report: error: ") and error.count("\n") == 1


def test_control_c_is_one_line(tmp_path, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mbj_plugin.tools.report.command.report", stop)
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path)])
    assert stopped.value.code == 130 and capsys.readouterr().err == "report: stopped\n"
