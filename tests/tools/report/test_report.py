"""The page: well-formed, self-contained, with what is there and a line on what is not."""

import base64
import itertools
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from mbj_plugin.tools.report import main
from mbj_plugin.tools.report.embedding import shown_classes
from mbj_plugin.tools.report.memory_view import spread_of_classes
from mbj_plugin.tools.report.page import Section, Table, merged, render
from mbj_plugin.tools.report.run import Features, Memory, Run
from mbj_plugin.tools.report.search import Images, search
from mbj_plugin.tools.report.sections import _section, write_report

COUNTS = np.array([120, 60, 30, 10, 4])


def classifier_run(name, seed=0, with_memory=True):
    """A made-up run with every part."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(5), 8)
    predicted = np.where(rng.random(40) < 0.7, truth, rng.integers(0, 5, 40))
    run = Run(name, class_counts=COUNTS, truth=truth, predicted=predicted)
    run.errors = {"error": 30.0, "head": 10.0, "medium": 20.0, "tail": 40.0 + seed, "few_shot": 50.0}
    run.class_errors = rng.random(5) * 100
    run.curves = {"error, tail": ([0.0, 1.0], [90.0, 40.0]), "learning rate": ([0.0, 1.0], [0.1, 0.01])}
    run.train_features = Features(rng.normal(size=(40, 8)) + np.eye(8)[truth], truth)
    run.diagnostics = [{"step": s, "mbj/probe_jitter_tail": 1 / s, "mbj/feature/age_tail": s} for s in (1, 2, 3)]
    if with_memory:
        labels = np.array([2, 3, 3, 4, 4, 4])
        run.memories = [Memory("feature", 10, rng.normal(size=(6, 8)).astype(np.float32), labels, np.arange(6))]
    return run


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


def test_two_whole_runs_give_a_whole_page(tmp_path):
    runs = [classifier_run("baseline", with_memory=False), classifier_run("mbj", 1)]
    tree, _ = read_page(write_report(runs, tmp_path))
    headings = [h.text for h in tree.iter("h2")]
    assert headings == [
        "Runs",
        "Error by class group and by class size",
        "Confusion of tail into head",
        "Training curves",
        "What the memory held",
        "Jitter over iterations (Fig. 2)",
        "The embedding (Fig. 1)",
        "Settings and versions",
    ]
    rows = [[cell.text for cell in row] for row in tree.iter("tr")]
    assert ["tail", "40.00", "41.00", "+1.00"] in rows
    assert ["many shot", "–", "–", "–"] not in rows  # no run has it
    pngs = {path.name for path in tmp_path.glob("*.png")}
    assert len(pngs) == len(list(tree.iter("img")))
    expected = {"errors-head.png", "error-by-class-size.png", "change-1.png", "confusion-groups.png", "confusion-1.png"}
    expected |= {"curve-error-tail.png", "memory-1-feature-ages.png", "jitter-0-probe_jitter.png"}
    assert pngs > expected | {"embedding-0-live.png", "embedding-1-memory.png"}
    assert "embedding-0-memory.png" not in pngs  # the baseline remembers nothing


def test_a_screen_reader_finds_its_way(tmp_path):
    runs = [classifier_run("baseline", with_memory=False), classifier_run("mbj", 1)]
    runs[1].settings = {"model": "resnet18"}
    tree, _ = read_page(write_report(runs, tmp_path))
    assert tree.get("lang") == "en" and [child.tag for child in tree.find("body")] == ["main"]
    levels = [int(element.tag[1]) for element in tree.iter() if re.fullmatch("h[1-6]", element.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    alts = [image.get("alt") for image in tree.iter("img")]
    assert len(set(alts)) == len(alts)
    for figure in tree.iter("figure"):
        assert [child.tag for child in figure] == ["img", "figcaption"] and figure[1].text.strip()
    for section in tree.iter("section"):
        assert section[0].tag == "h2"
    for table in tree.iter("table"):
        assert all(cell.get("scope") == "col" for cell in table.find("thead").iter("th"))
        assert all(row[0].get("scope") == "row" for row in table.find("tbody"))


def test_a_phone_shows_it_whole(tmp_path):
    runs = [classifier_run("baseline", with_memory=False), classifier_run("mbj", 1)]
    tree, _ = read_page(write_report(runs, tmp_path))
    (viewport,) = [meta.get("content") for meta in tree.iter("meta") if meta.get("name") == "viewport"]
    assert viewport == "width=device-width, initial-scale=1"
    css = re.sub(r"\s+", " ", tree.find("head/style").text)
    assert "img { max-width: 100%; }" in css and ".scroll { overflow-x: auto;" in css
    # Nothing is wider than the screen: columns of figures fall back to its width, and no width is fixed.
    assert css.count("minmax(min(100%, ") == 2 and not re.search(r"[ ;{](min-)?width: \d+px", css)
    boxes = [box for box in tree.iter("div") if box.get("class") == "scroll"]
    assert [box[0].tag for box in boxes] == ["table"] * len(list(tree.iter("table")))
    assert all(box.get("tabindex") == "0" and box.get("role") == "region" and box.get("aria-label") for box in boxes)


def test_the_confusion_on_the_page_is_counted(tmp_path):
    run = classifier_run("one")
    tail = np.isin(run.truth, (2, 3, 4))
    into_head = 100 * (run.predicted[tail] == 0).sum() / tail.sum()
    _, text = read_page(write_report([run], tmp_path))
    assert into_head > 0 and f"{into_head:.1f} % of the tail's images are taken for a head class" in text


def test_a_run_without_anything_gives_a_page_that_says_so(tmp_path):
    run = Run("empty", missing=["results.json: it is <broken> & cut short"])
    tree, text = read_page(write_report([run], tmp_path))
    assert "results.json: it is <broken> & cut short" in text
    assert "nothing was recorded while training" in text and "neither settings nor versions" in text
    assert not list(tree.iter("img"))


def test_a_section_that_fails_is_a_line(tmp_path):
    run = classifier_run("odd")
    run.class_errors = np.array([1.0])  # of another number of classes
    _, text = read_page(write_report([run], tmp_path))
    assert "class section: " in text and "Confusion of tail into head" in text


def test_a_run_that_breaks_a_section_costs_itself_alone(tmp_path):
    runs = [classifier_run("whole"), classifier_run("odd", 1), classifier_run("third", 2)]
    runs[1].class_errors = np.array([1.0])  # of another number of classes
    tree, text = read_page(write_report(runs, tmp_path))
    rows = [[cell.text for cell in row] for row in tree.iter("tr")]
    assert ["tail", "40.00", "42.00", "+2.00"] in rows
    assert "odd: class section: " in text and not runs[0].missing and not runs[2].missing


def test_runs_that_go_only_each_alone_are_a_line_on_all(tmp_path):
    def both_section(runs, folder):
        if len(runs) > 1:
            raise ValueError("not together")
        return Section("one")

    runs = [Run("a"), Run("b")]
    assert _section(both_section, runs, tmp_path) is None
    assert [run.missing for run in runs] == [["both section: not together"]] * 2


def test_retrieval_shows_the_worst_queries(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    paths = []
    for i in range(24):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(rng.integers(0, 255, (16, 8, 3), dtype=np.uint8)).save(paths[-1])
    images = Images(rng.normal(size=(24, 4)), np.arange(24) % 4, np.arange(24) // 4 % 3, paths)
    found = search(images, images, "toy")
    found.groups = {"head": found.identity < 2, "tail": found.identity >= 2}
    run = Run("reid", searches=[found])
    tree, text = read_page(write_report([run], tmp_path / "report"))
    precision, first = found.scores(found.groups["tail"])
    rows = [[cell.text for cell in row] for row in tree.iter("tr")]
    assert ["tail", "12", "2", f"{precision:.1f}", f"{first:.1f}"] in rows
    assert (tmp_path / "report" / "worst-queries-0.png").is_file() and "the 6 worst of 24 queries" in text


def test_text_of_users_is_escaped():
    page = render("<b>&", "x", [Section("a<b", tables=[Table(["<i>"], [["&amp;"]])], gaps=['"<script>'])])
    assert "<script>" not in page and "&lt;b&gt;&amp;" in page
    ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def test_the_same_line_of_two_runs_is_one():
    assert merged([("a", "x"), ("b", "x"), ("b", "y")]) == ["a, b: x", "b: y"]


def test_more_runs_than_can_be_told_apart_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="1 to 8 runs, got 9"):
        write_report([Run(str(i)) for i in range(9)], tmp_path)


def test_too_many_runs_are_an_error_before_any_is_read(tmp_path, monkeypatch):
    for i in range(9):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "summary.csv").touch()
    monkeypatch.setattr("mbj_plugin.tools.report.command.read", lambda *_: pytest.fail("a run was read"))
    with pytest.raises(SystemExit, match="1 to 8 runs, got 9"):
        main([str(tmp_path)])


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    with pytest.raises(SystemExit, match="cannot write the page to .*file.*give --output"):
        main([str(tmp_path / "run"), "--output", str(tmp_path / "file" / "report")])


def test_a_run_without_a_checkpoint_shows_what_its_memory_held(tmp_path):
    run = classifier_run("no checkpoint", with_memory=False)
    _, text = read_page(write_report([run], tmp_path))
    assert "What the memory held" in text and (tmp_path / "memory-0-feature-age-over-time.png").is_file()


def test_a_curve_of_any_name(tmp_path):
    run = Run("one", curves={"Market1501/mAP": ([0.0, 1.0], [1.0, 2.0])})
    read_page(write_report([run], tmp_path))
    assert (tmp_path / "curve-Market1501-mAP.png").is_file()


def test_shown_classes_are_the_largest_and_the_best_remembered_of_the_tail():
    counts = np.arange(100, 0, -5)  # 20 classes; 8 to 19 are the tail
    memory = Memory("feature", 9, np.zeros((9, 2)), np.array([19, 19, 17, 15, 15, 15, 0, 12, 13]), np.zeros(9))
    shown = shown_classes(counts, [memory])
    assert {0, 1, 2, 12, 13, 15, 17, 19} < set(shown) and len(shown) == 9
    assert shown_classes(np.array([5, 0, 2]), []).tolist() == [0, 2]


def test_spread_of_a_class_is_its_angular_variance():
    rows = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], dtype=np.float32)
    memory = Memory("prototype", 3, rows, np.array([1, 1, 0]), np.zeros(3))
    spread = spread_of_classes(memory, 3)
    assert spread[1] == pytest.approx((np.pi / 4) ** 2) and np.isnan(spread[[0, 2]]).all()


def test_an_empty_folder_gives_a_page(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    main([str(tmp_path / "run")])
    _, text = read_page(tmp_path / "run" / "report" / "report.html")
    assert "no file of a run in run" in text and "report.html" in capsys.readouterr().out


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="there is no folder"):
        main([str(tmp_path / "nowhere")])


@pytest.mark.parametrize(
    "statement", ["import mbj_plugin.diagnostics, mbj_plugin.tools.report.run, mbj_plugin.tools.report"]
)
def test_reading_imports_no_host_and_no_plotting(statement):
    names = ("timm", "fastreid", "matplotlib", "sklearn")
    code = f"import sys; {statement}; print([name for name in {names} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
