"""`make docs-check`: each code block of README.md and the pages parses, and what its commands name is there.

Shell blocks: the syntax, and of each command that is ours the script or module, its flags (`--help` has them), configs,
extras and make's targets. Python blocks: the syntax; some of them run in tests/. Nothing is trained.
"""

import configparser
import functools
import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mbj_plugin.tools.command import COMMANDS  # noqa: E402

PAGES = ("README.md", "CONTRIBUTING.md", "docs/*.md", "docs/results/*.md")
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Other scripts are a reader's own or, in a checkout of fast-reid, its.
OURS = re.compile(r"(tools|examples|benchmarks)/(?!(plain_)?train_net\.py)")
# They run the script that they are given, whose flags are not theirs.
LAUNCHERS = {"mbj_plugin.timm.launch", "mbj_plugin.fastreid.launch", "fastreid_today.launch"}


def pages() -> list[Path]:
    """The pages whose blocks are checked."""
    return [page for pattern in PAGES for page in sorted(ROOT.glob(pattern))]


def blocks(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, language, content) of each code block with a language."""
    for match in BLOCK.finditer(text):
        yield text[: match.start()].count("\n") + 1, match[1], match[2]


def problems(language: str, content: str, flags: bool = True) -> Iterator[str]:
    """What is wrong with a block.

    Args:
        language: as after the backticks; other than shell and Python, all is well.
        content: of the block.
        flags: whether to ask our commands, which takes seconds each, for the flags that they know.
    """
    if language == "python":
        try:
            compile(content, "block", "exec")
        except SyntaxError as error:
            yield f"{error.msg}: {error.text}"
    elif language in ("bash", "sh", "console"):
        parsed = subprocess.run(["bash", "-n"], input=content, capture_output=True, text=True)
        if parsed.returncode:
            yield parsed.stderr.strip()
            return
        for words in commands(content):
            yield from command_problems(words, flags)


def commands(content: str) -> Iterator[list[str]]:
    """The words of each command, without comments and leading variables."""
    for line in content.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\|\||[;|](?=\s)", re.sub(r"(^|\s)#.*", "", line)):
            words = shlex.split(part.removeprefix("$ "))
            while words and re.fullmatch(r"\w+=.*", words[0]):
                del words[0]
            if words:
                yield words


def command_problems(words: list[str], flags: bool) -> Iterator[str]:
    """What one command names that is not there."""
    name, *rest = words
    if name == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        yield from (f"make has no target {word}" for word in rest if "=" not in word and word not in targets)
    elif name == "pip":
        extras = setup()["options.extras_require"]
        groups = re.findall(r"(?:\.|mbj_plugin)\[(.+?)]", " ".join(rest))
        named = [extra for group in groups for extra in group.split(",")]
        yield from (f"there is no extra {extra}" for extra in named if extra not in extras)
    elif name == "mbj":
        if rest[0] in COMMANDS:
            module, _ = COMMANDS[rest[0]]
            yield from own_problems(["-m", module], rest[1:], flags, ("-m", "mbj_plugin.tools.command", rest[0]))
        else:
            yield f"there is no command mbj {rest[0]}"
    elif name in ("python", "python3") and rest and rest[0] == "-m":
        if rest[1].startswith(("mbj_plugin", "fastreid_today", "benchmarks")):
            yield from own_problems(rest[:2], rest[2:], flags)
    elif name in ("python", "python3") and rest and OURS.match(rest[0]):
        yield from own_problems(rest[:1], rest[1:], flags)


def own_problems(
    command: list[str], arguments: list[str], flags: bool, called: tuple[str, ...] | None = None
) -> Iterator[str]:
    """What is wrong with a command of ours, as Python takes it: ["-m", module] or [script].

    Args:
        command: what must be there.
        arguments: of it.
        flags: whether to ask for the flags that it knows.
        called: how to call it for them, where that is not the command itself.
    """
    path = ROOT / command[-1].replace(".", "/") if command[0] == "-m" else ROOT / command[0]
    if not (path.is_file() or path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()):
        if not (path / "__init__.py").is_file():  # a package whose function is a command
            yield f"there is no {' '.join(command)}"
        return
    for flag, value in itertools.pairwise(arguments):
        folder = {"-c": "timm", "--config": "timm", "--config-file": "fastreid"}.get(flag)
        named = folder and "/" not in value and not Path(value).stem.isupper()  # CONFIG.yml stands for any
        if named and not [*(ROOT / "configs" / folder).glob(f"{Path(value).stem}.y*ml")]:
            yield f"there is no config {value}"
    used = [word.partition("=")[0] for word in arguments if re.match(r"--\w", word)]
    if flags and used and command[-1] not in LAUNCHERS:
        known = help_of(called or tuple(command))
        yield from (f"{command[-1]} has no flag {flag}" for flag in used if not re.search(rf"{flag}(?![\w-])", known))


@functools.cache
def setup() -> configparser.ConfigParser:
    """setup.cfg."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


@functools.cache
def help_of(command: tuple[str, ...]) -> str:
    """What a command of ours prints for ``--help``."""
    return subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True).stdout


def main() -> int:
    """Print each problem with its page and line; 1 where there is one."""
    wrong = checked = 0
    for page in pages():
        for line, language, content in blocks(page.read_text(encoding="utf-8")):
            checked += 1
            for problem in problems(language, content):
                wrong += 1
                print(f"{page.relative_to(ROOT)}:{line}: {problem}")
    print(f"{checked} blocks, {wrong} problem(s)")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
