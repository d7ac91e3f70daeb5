"""Fast sums on a GPU: through cuFINUFFT where that is, and one line that says so where not."""

import contextlib
import importlib.util
import sys
import types

import pytest
import torch

import gwf_fast as gwf
from gwf_fast.pairs.fast import entry, transform

LACKS = not torch.cuda.is_available() or importlib.util.find_spec("cufinufft") is None
KERNELS = [gwf.Gaussian(0.6), gwf.IMQ(0.9), 0.5 * gwf.Gaussian(0.5) + gwf.RationalQuadratic(1.0, 1.5)]


def cloud(n, dim, dtype=torch.float64):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(n + dim), dtype=torch.float64).to(dtype)


@pytest.fixture
def twin(monkeypatch):
    """cuFINUFFT's interface on top of FINUFFT: tensors in, results into a tensor, a device and a stream."""
    import finufft

    plans = []

    class Plan:
        def __init__(self, kind, modes, n_trans=1, eps=1e-6, isign=None, dtype="complex64", **options):
            assert sorted(options) == ["gpu_device_id", "gpu_stream"]
            self.plan = finufft.Plan(kind, modes, n_trans=n_trans, eps=eps, isign=isign, dtype=dtype)
            plans.append(kind)

        def setpts(self, *angles):
            assert all(isinstance(angle, torch.Tensor) and angle.is_contiguous() for angle in angles)
            self.plan.setpts(*(angle.numpy() for angle in angles))

        def execute(self, values, out):
            result = torch.from_numpy(self.plan.execute(values.numpy()))
            assert result.shape == out.shape
            return out.copy_(result)

    monkeypatch.setitem(sys.modules, "cufinufft", types.SimpleNamespace(Plan=Plan))
    monkeypatch.setattr(transform, "_on_gpu", lambda values: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: types.SimpleNamespace(cuda_stream=0))
    return plans


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_twin_is_called_as_finufft_is(twin, dim, channels):
    x, y, w = cloud(300, dim), cloud(400, dim), cloud(400, channels)
    x.requires_grad_()
    kernel = gwf.Gaussian(1.5)
    got = gwf.kernel_sum(x, y, w, kernel=kernel, method=gwf.NUFFT(1e-9))
    want = gwf.kernel_sum(x, y, w, kernel=kernel)
    assert set(twin) == {1, 2}
    assert (got - want).norm() <= 1e-9 * want.norm()
    of_got, of_want = (torch.autograd.grad(value.square().sum(), x)[0] for value in (got, want))
    assert (of_got - of_want).norm() <= 1e-8 * of_want.norm()


def test_what_a_gpu_does_not_serve(monkeypatch):
    rough = (gwf.Gaussian(1.0) + gwf.Laplace(1.0)).terms
    smooth = gwf.Gaussian(1.0)
    monkeypatch.setattr(entry.importlib.util, "find_spec", lambda name: None)
    reason = entry._unfit_for_gpu(smooth.terms, smooth.spec)
    assert reason == "needs cufinufft on a GPU: pip install cufinufft"
    reason = entry._unfit_for_gpu(rough, (gwf.Gaussian(1.0) + gwf.Laplace(1.0)).spec)
    assert "smooth at x = y on a GPU (gaussian, imq, rational_quadratic), not laplace" in reason
    assert 'method="exact"' in reason
    monkeypatch.setattr(entry.importlib.util, "find_spec", lambda name: object())
    assert entry._unfit_for_gpu(smooth.terms, smooth.spec) is None


@pytest.mark.skipif(LACKS, reason="needs a CUDA device and cufinufft")
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_on_a_gpu(kernel, dim, dtype, tolerance):
    x, y, w = cloud(3000, dim, dtype).cuda(), cloud(4000, dim, dtype).cuda(), cloud(4000, 2, dtype).cuda()
    x.requires_grad_()
    got = gwf.kernel_sum(x, y, w, kernel=kernel, method=gwf.NUFFT(tolerance))
    want = gwf.kernel_sum(x, y, w, kernel=kernel)
    assert (got - want).norm() <= tolerance * want.norm()
    of_got, of_want = (torch.autograd.grad(value.square().sum(), x)[0] for value in (got, want))
    assert (of_got - of_want).norm() <= 10 * tolerance * of_want.norm()


@pytest.mark.skipif(not torch.cuda.is_available() or not LACKS, reason="needs a CUDA device without cufinufft")
def test_the_remedy_on_a_gpu():
    x = torch.randn(50, 2).cuda()
    with pytest.raises(ValueError, match="needs cufinufft on a GPU: pip install cufinufft"):
        gwf.kernel_sum(x, x, kernel=gwf.Gaussian(1.0), method="nufft")
    exact = gwf.kernel_sum(x, x, kernel=gwf.Gaussian(1.0))
    torch.testing.assert_close(gwf.kernel_sum(x, x, kernel=gwf.Gaussian(1.0), method="auto"), exact)
