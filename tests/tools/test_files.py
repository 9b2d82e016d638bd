"""Files are written whole or not at all; a resumed run's rows stand once; configs are found by name."""

import errno
import io
import os

import pytest
import torch

from mbj_plugin.files import atomic_path, write
from mbj_plugin.tools.files import config_folder, drop_epochs, find_config, new_file, new_folder


def test_what_goes_wrong_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write(path, "old")
    with pytest.raises(OSError, match="full"), atomic_path(path) as part:
        part.write_text("ne")
        raise OSError("full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write(path, "new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_no_tool_writes_over_a_file(tmp_path):
    """Whatever it is called and wherever it lies: a checkpoint of a run's, and a link to one."""
    last = tmp_path / "last.pth.tar"
    last.write_text("weeks of training")
    (tmp_path / "link").symlink_to(last)
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for path in (last, tmp_path / "link", tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=path.name), new_file(path) as part:
            part.write_text("x")
        with pytest.raises(ValueError, match=path.name), new_folder(path, "report.html") as part:
            (part / "x").touch()
    for again in ("", "last.pth.tar"):  # another file beside it
        with pytest.raises(ValueError, match=tmp_path.name), new_folder(tmp_path, again) as part:
            (part / "x").touch()
    assert last.read_text() == "weeks of training" and len(list(tmp_path.iterdir())) == 3
    with new_file(tmp_path / "new") as part:
        part.write_text("x")
    assert (tmp_path / "new").read_text() == "x" and len(list(tmp_path.iterdir())) == 4


def test_a_folder_of_the_tools_own_is_written_again(tmp_path):
    folder = tmp_path / "deep" / "report"
    for name in ("old.png", "new.png"):
        with new_folder(folder, "page.html") as part:
            (part / "page.html").write_text(name)
            (part / name).touch()
    assert {path.name for path in folder.iterdir()} == {"page.html", "new.png"}
    assert (folder / "page.html").read_text() == "new.png" and list(folder.parent.iterdir()) == [folder]
    (folder / "page.html").unlink()  # a folder of pictures may be a data set
    with pytest.raises(ValueError, match="report"), new_folder(folder, "page.html"):
        pass
    assert (folder / "new.png").exists()


def refuse_after(monkeypatch, size):
    """A disk with room for so many bytes more, below whatever writes by torch.save."""

    class Full(io.FileIO):
        def write(self, data):
            if self.tell() + len(data) > size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    save = torch.save
    monkeypatch.setattr(torch, "save", lambda content, path: save(content, Full(path, "w")))


@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, size):
    refuse_after(monkeypatch, size)
    for write_to in (new_file, new_folder):
        with pytest.raises(ValueError, match="cannot write .*model.pth"), write_to(tmp_path / "model.pth") as part:
            torch.save(torch.zeros(10_000), part / "a" if part.is_dir() else part)
        assert not list(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError), new_file(tmp_path / "model.pth"):
        1 / 0  # noqa: B018  what is no matter of files keeps its traceback


def test_rows_of_a_summary_that_will_come_again(tmp_path):
    path = tmp_path / "summary.csv"
    path.write_bytes(b"epoch,loss\n0,1\n1,2\n\nepoch,loss,eta\n2,3,4\n")
    drop_epochs(path, 1)
    assert path.read_bytes() == b"epoch,loss\r\n0,1\r\nepoch,loss,eta\r\n"
    drop_epochs(tmp_path / "nowhere.csv", 1)
    assert not (tmp_path / "nowhere.csv").exists()


@pytest.mark.parametrize(("host", "suffix", "name"), [("timm", ".yaml", "digits"), ("fastreid", ".yml", "Base-MBJ")])
def test_a_config_is_found_by_name_or_path(host, suffix, name):
    path = config_folder(host) / f"{name}{suffix}"
    for given in (name, f"{name}{suffix}", str(path)):
        assert find_config(given, host, suffix) == path
    for wrong in ("nowhere", "", "base_cifar_lt"):
        with pytest.raises(ValueError, match=f"no config '{wrong}'.*{name}"):
            find_config(wrong, host, suffix)
