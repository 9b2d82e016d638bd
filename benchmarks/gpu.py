"""The classification rows that wait for a GPU: ``python benchmarks/gpu.py --data FOLDER --time-limit 1700``.

First the tests that need CUDA, two minutes at most; then the rows of the paper's recipe, the most telling first, each
written as it ends. Out of time, runs under way are saved, a classifier on their
features is finished first; the same command goes on. So far no row was made by it.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.classification.runner import Job, run_cells
from benchmarks.classification.settings import Cell, Settings, load_settings

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("tests/test_device.py", "tests/benchmarks/classification/test_classification_training.py")
TESTS_S = 120.0
GROUPS = (
    "paper_cifar10",
    "paper_cifar100",
    "paper_cifar100_size",
    "paper_strong_autoaugment",
    "paper_strong_balanced",
    "paper_balanced",
    "paper_strong_mixup",
)


def run_tests() -> None:
    """Run what needs CUDA; slow tests are left, failing ones end the command.

    Raises:
        ValueError: where a test fails.
    """
    command = [sys.executable, "-m", "pytest", *TESTS, "-k", "gpu or captured"]
    try:
        if subprocess.run(command, cwd=ROOT, timeout=TESTS_S).returncode:
            raise ValueError("tests fail on this GPU: mend that first, or leave them out with --no-tests")
    except subprocess.TimeoutExpired:
        print(f"the tests take more than {TESTS_S:.0f} s here: going on without the rest of them", flush=True)


def ordered_cells(settings: Settings) -> list[Cell]:
    """The cells of all groups, in order, each once."""
    return list(dict.fromkeys(cell for name in GROUPS for cell in settings.group(name)))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description="The tests and the rows that wait for a GPU.")
    p.add_argument("--data", required=True, metavar="PATH", help="as of tools/reproduce.py")
    p.add_argument("--time-limit", type=float, required=True, metavar="S", help="seconds, tests and all")
    p.add_argument("--settings", metavar="YAML", help="(default: benchmarks/classification/settings.yaml)")
    p.add_argument("--results", default=str(ROOT / "docs/results/classification.jsonl"), help="(default: %(default)s)")
    p.add_argument("--state-dir", default="output/gpu", help="of cells under way (default: %(default)s)")
    p.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="(default: cuda)")
    p.add_argument("--processes", type=int, default=4, help="side by side (default: 4)")
    p.add_argument("--streams", type=int, default=4, help="cells side by side in each process (default: 4)")
    p.add_argument("--no-tests", action="store_true", help="rows alone")
    return p


def main(argv: list[str] | None = None) -> None:
    """The command."""
    args = parser().parse_args(argv)
    try:
        job = Job(
            data=args.data,
            results=args.results,
            state_dir=args.state_dir,
            settings_file=args.settings,
            processes=args.processes,
            device=args.device,
            streams=args.streams,
            deadline=time.time() + args.time_limit,
        )
        if not args.no_tests:
            run_tests()
        cells = ordered_cells(load_settings(args.settings))
        left = run_cells(cells, job)
    except ValueError as error:
        sys.exit(f"gpu: {error}")
    print(f"{len(cells) - left} of {len(cells)} cells have a row in {args.results}")


if __name__ == "__main__":
    main()
