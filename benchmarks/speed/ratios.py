"""What MBJ costs, as ratios: ``python benchmarks/speed/ratios.py [--only ...] [--output FILE]``.

Each row is the time of one thing over that of another, both timed in turn in one process, as a line of JSON with
versions and device. `enqueue` needs the peers: ``pip install -e '.[speed]'``. ``--report FILE`` prints the rows of a
file as a table.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from benchmarks.speed import core, hosts, ranks
from benchmarks.speed.timing import Pair, Seconds, in_turn, ratio, versions

PARTS = ("enqueue", "start", "sample", "inat", "product", "timm", "run", "fastreid", "ranks")


def pairs(part: str, device: str, dim: int) -> Iterator[Pair]:
    """What a part compares, one after the other."""
    steps = {"start": core.start_pairs, "sample": core.sample_pairs, "product": core.product_pairs}
    if part in steps:
        return steps[part](device, dim)
    module = core if part in ("enqueue", "inat") else hosts
    return getattr(module, f"{part}_pairs")(device)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown; of those with the same name the last counts."""
    lines = ["| first / second | ratio | first | second | turns |", "|---|---|---|---|---|"]
    for row in {row["what"]: row for row in rows}.values():
        first, second = (f"{each / 1e3:.3g} ms" for each in row["microseconds"])
        error = f" ± {row['error']:.3f}" if "error" in row else ""
        lines.append(f"| {row['what']} | {row['ratio']:.3f}{error} | {first} | {second} | {row['repeats']} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="(default: all)")
    parser.add_argument("--repeats", type=int, default=20, help="calls of each (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=2048, help="length of a feature in steps (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="append the rows to this file as well")
    parser.add_argument("--report", type=Path, metavar="FILE", help="print the rows of this file as a table, time none")
    args = parser.parse_args(argv)
    if args.report:
        print(table([json.loads(line) for line in args.report.read_text().splitlines()]))
        return
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cuda = args.device.startswith("cuda")
    device = torch.cuda.get_device_name() if cuda else f"cpu, {args.threads} thread(s)"
    for part in args.only:
        for what, seconds in timed(part, args, torch.cuda.synchronize if cuda else lambda: None):
            row = {
                "what": what,
                **ratio(seconds),
                "device": "cpu, 1 thread(s)" if part == "ranks" else device,
                "versions": versions(),
            }
            print(json.dumps(row), flush=True)
            if args.output:
                with args.output.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def timed(part: str, args: argparse.Namespace, wait: Any) -> Iterator[tuple[str, Seconds]]:
    """What was compared, and the seconds of both."""
    if part == "ranks":
        for row in ranks.rank_rows(args.repeats):
            yield row["what"], row["seconds"]
        return
    for what, first, second in pairs(part, args.device, args.dim):
        yield what, in_turn(first, second, args.repeats, wait)


if __name__ == "__main__":
    main()
