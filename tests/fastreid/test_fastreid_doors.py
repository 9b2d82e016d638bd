"""The ways in: launcher, own training command, autoload, import line; with and without spawned ranks; the doctor."""

import configparser
import importlib.util
import os
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from fastreid_today import compat, doctor, packages
from mbj_plugin.fastreid import autoload
from mbj_plugin.fastreid.config import DEFAULTS
from mbj_plugin.tools.fastreid import train

ROOT = Path(__file__).resolve().parents[2]


def memory_of(folder):
    state = torch.load(folder / "model_final.pth")["model"]
    return {name: value for name, value in state.items() if ".memories." in name}


@pytest.fixture
def arguments(script, tiny_opts, tmp_path):
    """Arguments of a tiny run into ``tmp_path / "out"``, without the script."""
    return ["--config-file", tmp_path / "config.yml", *tiny_opts, "OUTPUT_DIR", tmp_path / "out"]


def test_launcher_runs_an_unmodified_script(command, script, arguments, tmp_path):
    result = command("-m", "mbj_plugin.fastreid.launch", script, *arguments, cwd=tmp_path)
    assert "loss_mbj:" in result.stdout and "mAP" in result.stdout
    assert memory_of(tmp_path / "out")


def test_the_script_alone_fails(command, script, arguments, tmp_path):
    """So that the other tests of doors can fail."""
    assert command(script, *arguments, cwd=tmp_path, check=False).returncode


@pytest.mark.parametrize("memory", ["both"])
def test_spawned_ranks_come_up_with_the_plugin_and_remember_the_same(command, script, arguments, tmp_path, memory):
    # Each rank writes its own memory down when the training is over.
    text = script.read_text().replace(
        "    return trainer.train()\n",
        "    results = trainer.train()\n"
        "    import torch\n"
        "    from fastreid.utils import comm\n"
        "    state = trainer._trainer.model.module.state_dict()\n"
        "    torch.save(state, f'{cfg.OUTPUT_DIR}/rank{comm.get_rank()}.pth')\n"
        "    return results\n",
    )
    script.write_text(text)
    more = ["MODEL.MBJ.MEMORY", memory, "MODEL.MBJ.NORM", "max", "SOLVER.CHECKPOINT_PERIOD", "1"]
    launch = ["-m", "mbj_plugin.fastreid.launch", script]
    command(*launch, "--num-gpus", 2, *arguments, *more, cwd=tmp_path)
    first, second = (torch.load(tmp_path / "out" / f"rank{rank}.pth") for rank in (0, 1))
    names = [name for name in first if ".memories." in name]
    assert any("feature" in name for name in names) and any("prototype" in name for name in names)
    assert all(torch.equal(first[name], second[name]) for name in [*names, "heads.weight"])
    assert (first["heads.memories.prototype.bank.slot_labels"] >= 0).any()
    # Two ranks saved it, one goes on with it.
    one = [
        value if value != "1" or arguments[i - 1] != "SOLVER.MAX_EPOCH" else "2" for i, value in enumerate(arguments)
    ]
    alone = script.with_name("alone.py")
    alone.write_text(text.replace("model.module.state_dict", "model.state_dict"))
    result = command("-m", "mbj_plugin.fastreid.launch", alone, "--resume", *one, *more, cwd=tmp_path)
    assert "Starting training from epoch 1" in result.stdout
    assert memory_of(tmp_path / "out")["heads.memories.prototype.step"] == 18


def test_launcher_says_how_it_is_called(command, tmp_path):
    result = command("-m", "mbj_plugin.fastreid.launch", "nothing.py", cwd=tmp_path, check=False)
    assert result.returncode and "there is no file nothing.py" in result.stderr and "usage" in result.stderr


def test_own_training_command_in_a_bare_clone(command, arguments, tmp_path):
    tool = ROOT / "tools" / "train_fastreid.py"
    command(tool, *arguments, cwd=tmp_path, path="")
    assert memory_of(tmp_path / "out")
    weights = ["MODEL.WEIGHTS", tmp_path / "out" / "model_final.pth", "MODEL.HEADS.NUM_CLASSES", 24]
    result = command(tool, "--eval-only", *arguments, *weights, cwd=tmp_path, path="")
    assert "mAP" in result.stdout


def test_own_training_command_knows_the_demos_backbone(command, tmp_path):
    options = ["OUTPUT_DIR", tmp_path / "out", "SOLVER.MAX_EPOCH", 1, "SOLVER.IMS_PER_BATCH", 16]
    command(ROOT / "tools" / "train_fastreid.py", "--config-file", "Demo-MBJ.yml", *options, cwd=tmp_path, path="")
    assert memory_of(tmp_path / "out")


def test_own_training_command_lists_its_configs(capsys):
    with pytest.raises(SystemExit):
        train.main(["--config-file", "nothing.yml"])
    assert "Market1501_LT_H20_S5-MBJ, " in capsys.readouterr().err


def test_one_import_line(command, script, arguments, tmp_path):
    script.write_text("import mbj_plugin.fastreid\n" + script.read_text())
    command(script, *arguments, cwd=tmp_path)
    assert memory_of(tmp_path / "out")


@pytest.fixture
def environment(tmp_path):
    """A virtual environment of its own that sees this one's packages: its site-packages may be written."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    folder = Path(subprocess.run([python, "-c", query], capture_output=True, text=True, check=True).stdout.strip())
    here = {sysconfig.get_path("purelib"), *site.getsitepackages()}
    (folder / "here.pth").write_text("".join(f"{path}\n" for path in sorted(here)))
    return python, folder


@pytest.mark.skipif(os.name == "nt", reason="bin/python")
def test_autoload_makes_a_bare_script_enough(command, script, arguments, environment, tmp_path):
    python, folder = environment
    enabled = command("-m", "mbj_plugin.fastreid.autoload", "enable", cwd=tmp_path, python=python)
    assert "autoload is on" in enabled.stdout and autoload.enabled(folder)
    command(script, *arguments, cwd=tmp_path, python=python, path="", PYTHONDONTWRITEBYTECODE="")
    assert memory_of(tmp_path / "out")
    assert len(list(folder.rglob("*mbj*.pyc"))) == 1
    # A program without fast-reid notices nothing.
    loaded = "import sys; print('mbj_plugin' in sys.modules, 'torch' in sys.modules)"
    assert command("-c", loaded, cwd=tmp_path, python=python).stdout.split() == ["False", "False"]
    assert autoload.disable(folder) and not autoload.enabled(folder) and not autoload.disable(folder)
    assert not list(folder.rglob("*mbj*"))
    assert command(script, *arguments, cwd=tmp_path, python=python, path="", check=False).returncode


def test_autoload_waits_until_fastreid_is_imported(command, tmp_path):
    """Whoever only looks for fast-reid, or fails to import it, does not use the hook up."""
    hook = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {autoload.MODULE}"
    autoload.enable(tmp_path)
    lines = [
        hook,
        "import importlib.util, os",
        "assert importlib.util.find_spec('fastreid') and 'fastreid' not in sys.modules",
        "os.makedirs('broken/fastreid'); open('broken/fastreid/__init__.py', 'w').write('import no_such_module')",
        "sys.path.insert(0, 'broken')",
        "try: import fastreid",
        "except ModuleNotFoundError: sys.path.remove('broken')",
        "sys.path_importer_cache.clear()",
        "import fastreid",
        "print('mbj_plugin.fastreid' in sys.modules, any(type(f).__name__ == 'AfterFastreid' for f in sys.meta_path))",
    ]
    result = command("-c", "\n".join(lines), cwd=tmp_path)
    assert result.stdout.split() == ["True", "False"]


def test_autoload_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    for action in ("status", "enable", "status", "disable", "disable"):
        autoload.main([action])
    said = [line.split(" (")[0].split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert said == ["autoload is off", "autoload is on", "autoload is on", "autoload is off", "autoload was not on"]


@pytest.mark.parametrize("action", [autoload.enable, autoload.disable])
def test_autoload_in_a_folder_that_cannot_be_written(tmp_path, monkeypatch, action):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="virtual environment"):
        action(tmp_path)


def test_autoload_is_never_half_there(tmp_path, monkeypatch):
    """Wherever it is cut short, no `.pth` is left that names a module which is not there."""

    def writes(self, text):
        written(self, text)
        raise KeyboardInterrupt

    def unlinks(self, missing_ok=False):
        unlinked(self)
        raise KeyboardInterrupt

    module, pth = autoload.files(tmp_path)
    written, unlinked = Path.write_text, Path.unlink
    monkeypatch.setattr(Path, "write_text", writes)
    with pytest.raises(KeyboardInterrupt):
        autoload.enable(tmp_path)
    assert module.exists() and not pth.exists()
    monkeypatch.undo()
    autoload.enable(tmp_path)
    monkeypatch.setattr(Path, "unlink", unlinks)
    with pytest.raises(KeyboardInterrupt):
        autoload.disable(tmp_path)
    assert module.exists() and not pth.exists()


def test_doctor(command, tmp_path):
    report = command("-m", "fastreid_today.doctor", cwd=tmp_path).stdout
    assert "torch " in report and "Fast evaluation: " in report
    for name, status in compat.STATUS.items():
        assert f"{name}: {status}" in report
    without, with_plugin = report.partition("Without the plugin")[2].split("With `import fastreid_today`")
    assert "import fastreid.engine: works" in with_plugin and "in fp32: changes the weights" in with_plugin
    assert ("in fp32: changes no weight" in without) == (compat.STATUS["flat_gradients"] == "on")
    assert ("engine: fails: ImportError: cannot import name 'Mapping'" in without) == (sys.version_info >= (3, 10))


def test_doctor_of_a_checkout(command, tmp_path):
    wheel = Path(importlib.util.find_spec("fastreid").origin).parent
    (tmp_path / "checkout").mkdir()
    shutil.copytree(wheel, tmp_path / "checkout" / "fastreid", ignore=shutil.ignore_patterns("__pycache__"))
    report = command("-m", "fastreid_today.doctor", "checkout", cwd=tmp_path).stdout
    assert f"fast-reid comes from {(tmp_path / 'checkout').resolve() / 'fastreid' / '__init__.py'}" in report
    assert "in fp32: changes the weights" in report


def test_doctor_of_a_folder_without_fastreid_is_one_line(capsys, tmp_path):
    assert doctor.main([str(tmp_path)]) == 2
    assert capsys.readouterr().out == (
        f"{tmp_path.resolve()} is no checkout of fast-reid: it has no fastreid/__init__.py; give the folder above it\n"
    )


def test_doctor_without_fastreid(command, tmp_path):
    block = tmp_path / "sitecustomize.py"
    block.write_text(
        "import sys\n\n\nclass Missing:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('fastreid', 'faiss'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n\n\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    result = command("-m", "fastreid_today.doctor", cwd=tmp_path, path=path, check=False)
    assert result.returncode == 1
    assert "faiss-cpu" in result.stdout and "pip install --no-deps fastreid==1.4.0" in result.stdout


def test_doctor_tells_of_a_patch_that_does_not_fit(command, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util, sys\n\n\nclass Changed:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name != 'fastreid.utils.params':\n            return None\n"
        "        sys.meta_path.remove(self)\n"
        "        spec = importlib.util.find_spec(name)\n"
        "        run = spec.loader.exec_module\n"
        "        def exec_module(module):\n"
        "            run(module)\n            del module.ContiguousParams.buffer_is_valid\n"
        "        spec.loader.exec_module = exec_module\n"
        "        return spec\n\n\n"
        "sys.meta_path.insert(0, Changed())\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    report = command("-m", "fastreid_today.doctor", cwd=tmp_path, path=path, check=False)
    assert report.returncode == 1 and "Traceback" not in report.stderr
    assert "flat_gradients: failed: fastreid/solver/build.py" in report.stdout
    assert "cpu_loader: not run" in report.stdout and "does not load" in report.stdout
    loud = command("-c", "import mbj_plugin.fastreid", cwd=tmp_path, path=path, check=False)
    assert loud.returncode and "UpstreamChangedError" in loud.stderr


def test_the_extra_names_what_the_doctor_looks_for():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extra = setup["options.extras_require"]["fastreid"].split()
    assert sorted(extra) == sorted(packages.EXTRA) and all(package in packages.INSTALL for package in extra)


def test_the_docs_list_every_patch_and_key():
    text = (ROOT / "docs" / "fastreid.md").read_text()
    for name, entry in compat.PATCHES.items():
        assert f"| `{name}` | `{entry.upstream}` |" in text
    assert all(f"`{key}`" in text for key in DEFAULTS)
