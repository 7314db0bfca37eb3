"""Damaged and hostile files: one line, nothing run, nothing written."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from mae_pp_jax.__main__ import main
from mae_pp_jax.interop import torch_file


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def refused(tmp_path, capsys, path, *words, heads="--heads=2"):
    """`convert` ends with 2 and one line that says `words`; neither the target nor anything beside it exists."""
    before = sorted(tmp_path.iterdir())
    assert main(["convert", f"--from={path}", f"--to={tmp_path / 'run'}", heads]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: --from: ") and "\n" not in said
    for word in (*words, path.name):
        assert word in said, said
    assert sorted(tmp_path.iterdir()) == before


def archive(path, content: bytes, *entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", content)
        for name, data in entries:
            file.writestr(name, data)
    return path


@pytest.mark.parametrize("form", ["archive", "legacy"])
def test_code_in_a_pickle_is_refused_by_name(tmp_path, capsys, form):
    marker = tmp_path / "marker"
    content = pickle.dumps({"model": Evil(marker)}, protocol=2)
    path = tmp_path / "evil.pth"
    if form == "archive":
        archive(path, content)
    else:
        head = [pickle.dumps(part, 2) for part in (torch_file.LEGACY_MAGIC, 1001, {"little_endian": True})]
        path.write_bytes(b"".join(head) + content + pickle.dumps([], 2))
    refused(tmp_path, capsys, path, "refused", "system", "nothing of it was run")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["builtins eval", "torch._utils _rebuild_qtensor", "numpy.core.multiarray fromfile"])
def test_other_names_are_refused(tmp_path, capsys, name):
    module, attribute = name.split()
    content = b"\x80\x02}(X\x01\x00\x00\x00ac" + f"{module}\n{attribute}\n".encode() + b"u."
    refused(tmp_path, capsys, archive(tmp_path / "evil.pth", content), f"{module}.{attribute}")


def test_a_compressed_archive_is_refused(tmp_path, capsys, random_weights, save_torch):
    save_torch(tmp_path / "good.pth", random_weights("timm", "norm", "cls_token"))
    with zipfile.ZipFile(tmp_path / "good.pth") as good:
        with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
            for name in good.namelist():
                bomb.writestr(name, good.read(name))
    refused(tmp_path, capsys, tmp_path / "bomb.pth", "compressed")


def test_names_that_lead_out_of_the_archive_lead_nowhere(tmp_path, capsys):
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x0c\x00\x00\x00../../../etcX\x03\x00\x00\x00cpuK\x01tQ"
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00(K\x01t(K\x01t\x89ccollections\nOrderedDict\n)RtR"
    )
    content = b"\x80\x02}(X\x01\x00\x00\x00a" + tensor + b"u."
    path = archive(tmp_path / "escape.pth", content, ("../../outside", b"1234"))
    refused(tmp_path, capsys, path, "lacks the data of storage '../../../etc'")


@pytest.mark.parametrize("shape, stride", [((1 << 40,), (0,)), ((3, 3), (4, 1)), ((2,), (-1,))])
def test_tensors_beyond_their_storage_are_refused(tmp_path, capsys, shape, stride):
    def sequence(values):
        return b"(" + b"".join(pickle.dumps(v, 2)[2:-1] for v in values) + b"t"

    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x0atQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + sequence(shape) + sequence(stride)
    content = b"\x80\x02}(X\x01\x00\x00\x00a" + call + b"\x89ccollections\nOrderedDict\n)RtRu."
    path = archive(tmp_path / "wide.pth", content, ("archive/data/0", bytes(40)))
    refused(tmp_path, capsys, path, "reaches beyond its storage")


def test_a_memo_number_reserves_no_memory(tmp_path, capsys):
    path = archive(tmp_path / "memo.pth", b"\x80\x02}r\xff\xff\xff\x7f.")
    refused(tmp_path, capsys, path, "memo number")


@pytest.mark.parametrize("cut", [10, 200, 5000, -30, -2000])
def test_truncated_torch_files(tmp_path, capsys, random_weights, save_torch, cut):
    whole = save_torch(tmp_path / "good.pth", random_weights("timm", "norm", "cls_token")).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[:cut])
    refused(tmp_path, capsys, tmp_path / "cut.pth")


def test_a_storage_of_another_length(tmp_path, capsys, random_weights, save_torch):
    save_torch(tmp_path / "good.pth", random_weights("timm", "norm", "cls_token"))
    with zipfile.ZipFile(tmp_path / "good.pth") as good, zipfile.ZipFile(tmp_path / "short.pth", "w") as short:
        for name in good.namelist():
            short.writestr(name, good.read(name)[: -4 if name.endswith("data/3") else None])
    refused(tmp_path, capsys, tmp_path / "short.pth", "storage '3' has")


def test_damaged_safetensors(tmp_path, capsys):
    path = tmp_path / "bad.safetensors"
    save_file({"a": np.ones(1000, np.float32)}, path)
    whole = path.read_bytes()
    for content in (whole[:-7], struct.pack("<Q", 1 << 60) + whole[8:], struct.pack("<Q", 20) + whole[8:]):
        path.write_bytes(content)
        refused(tmp_path, capsys, path, "safetensors")


def test_npz_with_objects_is_refused(tmp_path, capsys):
    marker = tmp_path / "marker"
    np.savez(tmp_path / "evil.npz", a=np.array([Evil(marker)], dtype=object))
    refused(tmp_path, capsys, tmp_path / "evil.npz", "Python objects")
    assert not marker.exists()


def test_npz_bomb_is_refused(tmp_path, capsys):
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, dict(descr="<f4", fortran_order=False, shape=(4 << 20,)))
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        file.writestr("a.npy", content.getvalue() + bytes(16 << 20))
    refused(tmp_path, capsys, tmp_path / "bomb.npz", "grow")


def test_an_index_may_not_leave_its_folder(tmp_path, capsys):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "secret.safetensors")
    assert main(["convert", f"--from={tmp_path / 'hub'}", f"--to={tmp_path / 'run'}"]) == 2
    assert "../secret.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"<html>not here</html>", b"\x80\x02.", b"PK\x03\x04" + bytes(100)])
def test_other_files_are_no_weights(tmp_path, capsys, content):
    (tmp_path / "page.pth").write_bytes(content)
    refused(tmp_path, capsys, tmp_path / "page.pth")


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda w: w.pop("blocks.1.mlp.fc1.bias"), ("blocks.1.mlp.fc1.bias is missing",)),
        (lambda w: w.update(extra=np.ones(3, np.float32)), ("key extra 3 is unknown",)),
        (lambda w: w.update({"blocks.0.ls1.gamma": np.ones(16, np.float32)}), ("blocks.0.ls1.gamma",)),
        (
            lambda w: w.update({"blocks.1.norm1.weight": np.ones(15, np.float32)}),
            ("blocks.1.norm1.weight is 15 instead of 16",),
        ),
        (lambda w: w.update({"blocks.7.norm1.weight": np.ones(16, np.float32)}), ("no block 2",)),
        (lambda w: w.update({"pos_embed": np.ones((1, 8, 16), np.float32)}), ("square grid",)),
        (lambda w: w.update({"norm.bias": np.ones(16, np.int32)}), ("norm.bias holds int32",)),
        (lambda w: [w.pop("norm.weight"), w.pop("norm.bias")], ("neither norm nor fc_norm",)),
        (lambda w: w.clear() or w.update(other=np.ones(2, np.float32)), ("no known format", "other 2")),
    ],
)
def test_keys_and_shapes_are_checked(tmp_path, capsys, random_weights, save_torch, change, words):
    weights = random_weights("timm", "norm", "cls_token")
    change(weights)
    save_torch(tmp_path / "vit.pth", weights)
    refused(tmp_path, capsys, tmp_path / "vit.pth", *words)
