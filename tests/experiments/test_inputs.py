"""What files of points may be like: read right, or refused in one line, whatever they say of themselves."""

import gzip
import io
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from gwf_fast.experiments import inputs
from gwf_fast.experiments.idx import read_idx

POINTS = torch.tensor([[1.0, 2.0], [3.0, -4.5], [1e-3, 6.0]])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", b"1,2\n3,-4.5\n1e-3,6\n"),
        ("p.csv", b"\xef\xbb\xbf1,2\n3,-4.5\n1e-3,6"),  # a byte order mark, which spreadsheets write
        ("p.csv", b"\xef\xbb\xbfx,y\r\n1,2\r\n3,-4.5\r\n1e-3,6\r\n"),
        ("p.csv", b"# made by\n#\nx,y\n1,2\n# a break\n\n3,-4.5\n1e-3,6\n"),
        ("p.csv", b'"x","y, of it"\n"1","2"\n3,-4.5\n1e-3,6\n'),
        ("p.csv", b"x;y\n1;2\n3;-4.5\n1e-3;6\n"),
        ("p.tsv", b"x\ty\n1\t2\n3\t-4.5\n.001\t6\n"),
    ],
)
def test_text(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert torch.equal(inputs.read_points(tmp_path / name), POINTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1,2x\n3,4\n5,6\n", r"line 1: not a number in '1,2x'"),
        (b"1.O\n2\n3\n", r"line 1: not a number in '1.O'"),
        (b"x,2\n3,4\n5,6\n", r"line 1: not a number in 'x,2'"),
        (b"1,2\nx,y\n5,6\n", r"line 2: not a number in 'x,y'"),
        (b"x,y\nu,v\n5,6\n", r"line 2: not a number in 'u,v'"),
        (b"#\n1,2\n3,4,\n", r"line 3: not a number in '3,4,'"),
        (b"nan,inf\n1,2\n3,4\n", r"NaN or infinity, first in row 1"),
        (b"1,5;2,5\n3,5;4\n", r"line 1: not a number in '1,5;2,5'"),
        (b"1_0,2\n3,4\n", r"line 1: not a number in '1_0,2'"),
        (b"1,2\n1e39,3\n", r"a number beyond the range of float32, 3\.4e38, first in row 2"),
        (b"1,2\n\x00,3\n", r"line 2|can't read"),
    ],
)
def test_text_that_is_wrong(tmp_path, content, message):
    (tmp_path / "p.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        inputs.read_points(tmp_path / "p.csv")
    assert "\n" not in str(caught.value)


def npy(array, shape=None, dtype=None):
    """A file in .npy format whose header may say something else."""
    stream = io.BytesIO()
    said = np.lib.format.header_data_from_array_1_0(array)
    said |= {"shape": said["shape"] if shape is None else shape, "descr": said["descr"] if dtype is None else dtype}
    np.lib.format.write_array_header_1_0(stream, said)
    return stream.getvalue() + array.tobytes()


def test_arrays(tmp_path):
    for k, array in enumerate(
        (POINTS.numpy(), np.asfortranarray(POINTS.double().numpy()), POINTS.numpy().astype(">f4"))
    ):
        np.save(tmp_path / f"{k}.npy", array)
        assert torch.equal(inputs.read_points(tmp_path / f"{k}.npy"), POINTS)
    np.savez(tmp_path / "p.npz", X=POINTS.numpy(), target=[0, 1, 1])
    np.savez_compressed(tmp_path / "q.npz", POINTS.numpy())
    (tmp_path / "p.npz").rename(tmp_path / "renamed.npy")
    for name in ("q.npz", "renamed.npy"):
        assert torch.equal(inputs.read_points(tmp_path / name), POINTS)
    features, labels = inputs.read_labelled(tmp_path / "renamed.npy")
    assert torch.equal(features, POINTS) and labels.tolist() == [-1, 1, 1]


@pytest.mark.parametrize(
    "content",
    [
        npy(POINTS.numpy(), shape=(10**9, 10**6)),
        npy(POINTS.numpy(), shape=(2, 2)),
        npy(POINTS.numpy(), shape=(-1, 2)),
        npy(POINTS.numpy(), shape=(3, 2, 2**62)),
        npy(POINTS.numpy(), dtype="|O"),
        npy(POINTS.numpy(), dtype="<f8"),
        npy(POINTS.numpy(), dtype="x7"),
        npy(POINTS.numpy())[:60],
        npy(POINTS.numpy()).replace(b"{'", b"{("),
        npy(POINTS.numpy()).replace(b"(3, 2)", b"3,,,2)"),
        npy(POINTS.to(torch.complex64).numpy()),
    ],
    ids=["huge", "less", "negative", "overflow", "objects", "wider", "no-dtype", "cut", "syntax", "shape", "complex"],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_arrays_that_lie(tmp_path, content, zipped):
    path = tmp_path / "p.npy"
    path.write_bytes(content)
    if zipped:
        path = tmp_path / "p.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data.npy", content)
    with pytest.raises(ValueError, match=r"^input: ") as caught:
        inputs.read_points(path)
    assert "\n" not in str(caught.value) and "p.np" in str(caught.value)


def test_bombs_are_not_unfolded(tmp_path):
    """Half a gigabyte of zeros, in half a megabyte."""
    head = npy(np.zeros((0, 2)), shape=(1 << 25, 2))
    zeros = bytes(1 << 29)
    with zipfile.ZipFile(tmp_path / "p.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.npy", head + zeros)
    (tmp_path / "i.gz").write_bytes(gzip.compress(b"\0\0\x08\x02\0\0\x20\0\0\1\0\0" + zeros, 1))
    (tmp_path / "j.gz").write_bytes(gzip.compress(b"\0\0\x08\x02\0\0\0\3\0\0\0\2" + zeros, 1))
    del zeros
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"data of \S*p\.npz would be \d+ bytes, out of \d+ in the file"):
        inputs.read_points(tmp_path / "p.npz")
    with pytest.raises(ValueError, match=r"the array \[8192, 65536\] of \S*i\.gz would be 536870912 bytes"):
        read_idx(tmp_path / "i.gz")
    with pytest.raises(ValueError, match=r"says it has shape \[3, 2\], 6 bytes, but has more"):
        read_idx(tmp_path / "j.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 24


def test_matlab(tmp_path):
    io = pytest.importorskip("scipy.io", reason=".mat files need SciPy")
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy")
    io.savemat(tmp_path / "s.mat", {"X": sparse.csc_array(POINTS.double().numpy())})
    assert torch.equal(inputs.read_points(tmp_path / "s.mat"), POINTS)
    io.savemat(tmp_path / "h.mat", {"X": sparse.csc_array((10**6, 10**6))})
    with pytest.raises(ValueError, match=r"X of \S*h\.mat would be \d+ bytes"):
        inputs.read_points(tmp_path / "h.mat")
    io.savemat(tmp_path / "c.mat", {"X": np.array([{}, 1], dtype=object), "name": "a"})
    with pytest.raises(ValueError, match="has the variables X, name, expected one called data or X"):
        inputs.read_points(tmp_path / "c.mat")
