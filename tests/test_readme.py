"""The README and the docs: the recipe runs as it stands, links lead somewhere, numbers are those of the tables."""

import re
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

README = Path(__file__).parents[1] / "README.md"


def test_the_recipe_for_any_loop_runs():
    (block,) = re.findall(r"runs this block -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    torch.manual_seed(0)
    backbone, classifier = nn.Linear(5, 4), nn.Linear(4, 3)
    names = {
        "class_counts": [40, 10, 5],
        "features_dim": 4,
        "first_decay_step": 3,
        "loader": [(torch.randn(8, 5), torch.randint(0, 3, (8,))) for _ in range(6)],
        "backbone": backbone,
        "classifier": classifier,
        "cross_entropy": cross_entropy,
        "SGD": torch.optim.SGD,
        "checkpoint": {},
    }
    exec(block, names)
    assert names["checkpoint"]["memory"]["bank.slot_labels"].ge(0).any()
    assert names["checkpoint"]["memory"]["step"] == 6
    assert not torch.equal(names["memory_classifier"].weight, classifier.weight)


def test_every_relative_link_leads_somewhere():
    for document in (README, *README.parent.glob("docs/**/*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_readme_is_a_package_page_too():
    readme = README.read_text()
    assert readme.count("\n") < 100 and readme.index("torch >= 2.0") < readme.index("train-fastreid")
    assert all(target.startswith("https://") for target in re.findall(r"\]\(([^)]+)\)", readme))
    for page in re.findall(r"`(docs/[^`]+)`", readme):
        assert (README.parent / page).exists(), page


def test_the_pages_are_short():
    docs = README.parent / "docs"
    pages = [README, *docs.glob("*.md"), *docs.glob("api/*.md")]
    assert sum(len(page.read_text().split()) for page in pages) <= 13_000


def test_numbers_of_the_results_page_stand_in_the_generated_tables():
    docs = README.parent / "docs"
    tables = "".join((docs / name).read_text() for name in ("results/classification.md", "results/retrieval.md"))
    tables += "".join((docs / name).read_text() for name in ("results/digits.md", "results/finetune.md"))
    page = (docs / "results.md").read_text().split("<!-- end summary -->")[1]  # the summary has a test of its own
    number = r"\d+\.\d+"
    spread = re.compile(f"{number} ± {number}")
    assert set(spread.findall(README.read_text())) <= set(spread.findall(tables))
    for kind in (number, f"{number} ± {number}", rf"{number} ± {number} \(\d/\d\)"):
        found = set(re.findall(kind, page))
        assert len(found) > 20 and found <= set(re.findall(kind, tables))
