"""The doctor: what it finds in this Python, in one without fast-reid, and where fast-reid has changed; its list."""

import configparser
import os
import sys
from pathlib import Path

from fastreid_today import changes, packages

ROOT = Path(__file__).resolve().parents[2]
# The report of a Python in which something is wrong, and then what its user's import says.
BOTH = "from fastreid_today import doctor; assert doctor.main([]) == 1; import mbj_plugin.fastreid"


def test_doctor(command, tmp_path):
    report = command("-m", "fastreid_today.doctor", "--plugin", "mbj_plugin.fastreid", cwd=tmp_path).stdout
    assert "torch " in report and "Fast evaluation: " in report
    for name, status in changes.STATUS.items():
        assert f"{name}: {status}" in report
    as_it_came, repaired = report.partition("As it came")[2].split("With `import fastreid_today`")
    assert "import fastreid.engine: works" in repaired and "in fp32: changes the weights" in repaired
    assert ("in fp32: changes no weight" in as_it_came) == (changes.STATUS["flat_gradients"] == "on")
    assert ("engine: fails: ImportError: cannot import name 'Mapping'" in as_it_came) == (sys.version_info >= (3, 10))


def test_without_fastreid(command, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n\n\nclass Missing:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('fastreid', 'faiss'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n\n\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    result = command("-c", BOTH, cwd=tmp_path, path=path, check=False)
    assert "faiss-cpu" in result.stdout and "pip install --no-deps fastreid==1.4.0" in result.stdout
    assert "pip install --no-deps fastreid==1.4.0" in result.stderr.splitlines()[-1]


def test_a_change_that_does_not_fit(command, tmp_path):
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
    report = command("-c", BOTH, cwd=tmp_path, path=path, check=False)
    assert "flat_gradients_checked: failed: " in report.stdout
    assert "cpu_loader: not run" in report.stdout and "does not load" in report.stdout
    assert "UpstreamChangedError" in report.stderr.splitlines()[-1]


def test_the_extra_names_what_the_doctor_looks_for():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extra = setup["options.extras_require"]["fastreid"].split()
    assert sorted(extra) == sorted(packages.EXTRA) and all(package in packages.INSTALL for package in extra)
