"""Files are written whole or not at all; a resumed run's rows stand once; configs are found by name."""

import pytest

from mbj_plugin.files import config_folder, drop_epochs, find_config, whole, write


def test_what_goes_wrong_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write(path, "old")
    with pytest.raises(OSError, match="full"), whole(path) as part:
        part.write_text("ne")
        raise OSError("full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write(path, "new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


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
