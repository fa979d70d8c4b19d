import contextlib
import json
import os

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lowdyn.files import replace_atomically
from lowdyn.tensor_files import DTYPES, TensorFile, tensor_parts
from tests.cases import gaussian


def tensors():
    """Every dtype and shape, transposed, tied and overlapping."""
    whole = gaussian(6, 4)
    found = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES.values()}
    found |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "transposed": whole.mT, "part": whole[1::2]}
    return found | {"tied": whole, "again": whole, "ä\n": torch.ones(1)}


def assert_equal_bytes(first, second):
    assert (first.dtype, first.shape) == (second.dtype, second.shape)
    raw = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second)]
    assert_close(*raw)


def test_what_is_written_the_library_reads(tmp_path):
    replace_atomically(tmp_path / "a", tensor_parts(tensors()))
    with safetensors.safe_open(tmp_path / "a", "pt") as file:
        assert set(file.keys()) == tensors().keys()
        for name, tensor in tensors().items():
            assert_equal_bytes(file.get_tensor(name), tensor)


def test_what_the_library_writes_is_read(tmp_path):
    written = {name: tensor.contiguous().clone() for name, tensor in tensors().items()}
    safetensors.torch.save_file(written, tmp_path / "a", metadata={"format": "pt"})
    file = TensorFile(tmp_path / "a")
    assert file.entries.keys() == written.keys()
    for name, tensor in written.items():
        assert_equal_bytes(file.read(name), tensor)


def test_values_begin_at_multiples_of_their_size(tmp_path):
    replace_atomically(tmp_path / "a", tensor_parts(tensors()))
    for entry in TensorFile(tmp_path / "a").entries.values():
        assert entry.begin % entry.dtype.itemsize == 0


def test_a_dtype_that_the_format_lacks_is_refused():
    with pytest.raises(ValueError, match=r"'z' is torch.complex128, which safetensors files do not hold"):
        list(tensor_parts({"z": torch.ones(1, dtype=torch.complex128)}))


# --- files that are none


def described(dtype="F32", shape=(2, 3), offsets=(0, 24)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def packed(header, values=b"\0" * 24, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + values


ONE = json.dumps(described())
HOSTILE = {
    "empty": (b"", "truncated, or no safetensors file: 0 bytes"),
    "seven bytes": (b"\0" * 7, "truncated, or no safetensors file: 7 bytes"),
    "a header longer than the file": (packed({}, b"", 10**6), "cannot hold its header"),
    "a header of 2^64 bytes": (packed({}, b"", 2**64 - 1), "cannot hold its header"),
    "a header of 40 MB": (packed(b" " * 40_000_000), "a header of 40000000 bytes; at most"),
    "no JSON": (packed(b"{"), "the header is not JSON"),
    "no text": (packed(b"\xff\xfe{}"), "the header is not JSON"),
    "deep JSON": (packed(b"[" * 100_000), "no valid safetensors file"),
    "no object": (packed([]), "the header is no JSON object"),
    "the same name twice": (packed(f'{{"w": {ONE}, "w": {ONE}}}'.encode()), "the header names 'w' twice"),
    "the same key twice": (
        packed(ONE.replace("{", '{"dtype": "F64", ').join(['{"w":', "}"]).encode()),
        "'dtype' twice",
    ),
    "no dtype": (packed({"w": {"shape": [6], "data_offsets": [0, 24]}}), "'w' is not described by"),
    "one key more": (packed({"w": {**described(), "code": "x"}}), "'w' is not described by"),
    "an unknown dtype": (packed({"w": described("F31")}), "has the dtype 'F31'; known are F64"),
    "a dtype that is no text": (packed({"w": described(["F32"])}), "has the dtype"),
    "another dtype": (packed({"w": described("F64")}), "needs 48 bytes for its shape and dtype"),
    "a negative size": (packed({"w": described(shape=(-2, -3))}), "not lists of whole numbers"),
    "a size that is no number": (packed({"w": described(shape=(True, 6))}), "not lists of whole numbers"),
    "a huge size": (packed({"w": described(shape=(2**62, 2**62))}), "needs 8507"),
    "a size beyond all": (packed({"w": described(shape=(10**30, 0))}), "not lists of whole numbers"),
    "many dimensions": (packed({"w": described(shape=(1,) * 65)}), "not lists of whole numbers"),
    "offsets that leave the file": (packed({"w": described(offsets=(8, 32))}), "leave a gap"),
    "values that end early": (packed({"w": described()}, b"\0" * 23), "truncated, or written to"),
    "values that go on": (packed({"w": described()}, b"\0" * 25), "truncated, or written to"),
    "offsets backwards": (packed({"w": described(offsets=(24, 0))}), "needs 24 bytes"),
    "three offsets": (packed({"w": described(offsets=(0, 1, 24))}), "not lists of whole numbers"),
    "overlap": (packed({"v": described(), "w": described()}), "overlap others or leave a gap"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_safetensors_file_is_refused_in_one_line(tmp_path, case):
    content, reason = HOSTILE[case]
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"w\.safetensors: ") as error:
        TensorFile(tmp_path / "w.safetensors")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300 + len(str(tmp_path))


def test_a_good_file_is_not_refused(tmp_path):
    (tmp_path / "w").write_bytes(packed({"w": described(), "__metadata__": {"format": "pt"}}))
    assert_close(TensorFile(tmp_path / "w").read("w"), torch.zeros(2, 3))


def test_a_file_that_shrinks_is_noticed(tmp_path):
    (tmp_path / "w").write_bytes(packed({"w": described()}))
    file = TensorFile(tmp_path / "w")
    os.truncate(tmp_path / "w", (tmp_path / "w").stat().st_size - 1)
    with pytest.raises(ValueError, match="'w' ends too early"):
        file.read("w")


@given(st.data())
def test_a_changed_byte_is_refused_or_read_as_some_file(tmp_path_factory, data):
    whole = bytearray(b"".join(tensor_parts({"a": torch.arange(3), "bb": torch.ones(2, 2), "c": torch.tensor(True)})))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    path.write_bytes(whole[: data.draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))])
    with contextlib.suppress(ValueError):  # nothing else may come out of it
        file = TensorFile(path)
        assert sum(file.read(name).nbytes for name in file.entries) <= path.stat().st_size
