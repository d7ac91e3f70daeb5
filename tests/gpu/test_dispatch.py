"""Who serves what, and what is said where nobody can: refusals, precisions, broken and missing installs."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import gwf_fast as gwf
from gwf_fast.ops import dispatch, table
from gwf_fast.ops.dispatch import resolve
from gwf_fast.ops.table import BACKENDS, Backend

K = gwf.Gaussian(1.0)
X = torch.zeros(3, 2)
CUDA = torch.device("cuda")
F32 = torch.float32


@pytest.fixture
def present(monkeypatch):
    """A machine where every package is installed, whatever is here."""
    monkeypatch.setattr(Backend, "absence", lambda self: None)
    monkeypatch.setattr(dispatch, "_RESOLVED", {})


def test_automatic_choice(present):
    assert resolve(None, torch.device("cpu"), F32) == "cpp"
    assert resolve(None, CUDA, F32, operation="sum", dim=2) == "triton"
    assert resolve(None, CUDA, torch.bfloat16) == "triton"
    assert resolve(None, CUDA, F32, operation="interaction", dim=3) == "cuda"
    assert resolve(None, CUDA, F32, operation="interaction", dim=5) == "triton"
    assert resolve(None, CUDA, F32, True) == "keops"
    assert resolve(None, CUDA, torch.bfloat16, True) == "torch"  # KeOps has no half precision


@pytest.mark.parametrize(
    ("backend", "options", "reasons"),
    [
        ("cuda", {"dim": 5, "operation": "sum"}, ["serves at most 4 coordinates, not 5"]),
        ("cuda", {"dim": 2}, ["serves sum, gradient, interaction only, not all that this needs"]),
        ("cuda", {"dim": 7}, ["serves at most 4 coordinates, not 7", "serves sum, gradient, interaction only"]),
        ("triton", {"formula": True}, ["does not evaluate formulas of the user's own"]),
    ],
)
def test_refusals_name_every_reason(present, backend, options, reasons):
    with pytest.raises(ValueError, match=rf"backend='{backend}' can't serve torch.float32 tensors on cuda") as caught:
        resolve(backend, CUDA, F32, **options)
    assert all(reason in str(caught.value) for reason in reasons)
    assert "\n" not in str(caught.value)


def test_all_that_is_wrong_at_once(monkeypatch):
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None if name == "pykeops" else object())
    reason = BACKENDS["keops"].refusal("mps", torch.float16)
    assert "serves cpu and cuda tensors, not mps" in reason
    assert "does not serve torch.float16" in reason
    assert "needs pykeops: pip install pykeops" in reason


@pytest.mark.parametrize(
    ("backend", "module", "remedy"),
    [
        ("triton", "triton", "needs triton: pip install triton"),
        ("keops", "pykeops", "needs pykeops: pip install pykeops"),
        ("cuda", "gwf_fast._cuda", "needs gwf_fast._cuda: install with GWF_FAST_CUDA=1"),
    ],
)
def test_missing_modules_come_with_the_remedy(monkeypatch, backend, module, remedy):
    find = dispatch.importlib.util.find_spec
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None if name == module else find(name))
    monkeypatch.setattr(dispatch, "_RESOLVED", {})
    with pytest.raises(ValueError, match=remedy):
        resolve(backend, CUDA, F32, operation="sum", dim=2)
    assert remedy in gwf.backends()[backend]


class TestVersions:
    """Old packages and old cards: one line with the remedy, and never a failure deep in a compiler."""

    @pytest.fixture
    def versions(self, monkeypatch):
        """Versions of packages, as if those were installed."""
        found = {"triton": "3.5.1", "torch": "2.9.0+cu128"}
        monkeypatch.setattr(table.importlib.metadata, "version", lambda name: found[name])
        monkeypatch.setattr(table.importlib.util, "find_spec", lambda name: object())
        monkeypatch.setattr(dispatch, "_RESOLVED", {})
        return found

    @pytest.mark.parametrize(("triton", "torch_version"), [("3.5.0", "2.9.0"), ("3.9.0", "2.13.0+cpu"), ("4.0", "3.0")])
    def test_new_enough(self, versions, triton, torch_version):
        versions |= {"triton": triton, "torch": torch_version}
        assert BACKENDS["triton"].absence() is None

    @pytest.mark.parametrize(
        ("package", "version", "message"),
        [
            ("triton", "3.4.0", r"needs triton 3\.5 or newer \(float64 tile products.*\), not 3\.4\.0: pip install"),
            ("triton", "2.3.1", r"needs triton 3\.5 or newer .*, not 2\.3\.1: pip install 'torch>=2\.9'"),
            ("torch", "2.6.0+cu124", r"needs torch 2\.9 or newer .*, not 2\.6\.0\+cu124: pip install 'torch>=2\.9'"),
        ],
    )
    def test_too_old(self, versions, package, version, message):
        versions[package] = version
        with pytest.raises(ValueError, match=message) as caught:
            resolve("triton", CUDA, F32)
        assert "\n" not in str(caught.value)
        with pytest.warns(UserWarning, match=rf"runs plain PyTorch on this GPU: triton {message}"):
            assert resolve(None, CUDA, F32) == "torch"
        assert package in gwf.backends()["triton"]

    def test_a_build_for_other_gpus(self, monkeypatch):
        """It has another name, so its version is asked of the module."""

        def missing(name):
            raise table.importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(table.importlib.metadata, "version", missing)
        monkeypatch.setattr(table.importlib, "import_module", lambda name: SimpleNamespace(__version__="3.4.0+rocm"))
        assert "not 3.4.0+rocm" in table.Requirement("triton", "update it", (3, 5), "why").absence()

    @pytest.mark.parametrize(("capability", "served"), [((7, 5), False), ((8, 0), True), ((12, 0), True)])
    def test_cards(self, versions, monkeypatch, capability, served):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
        if served:
            assert resolve("triton", torch.device("cuda:1"), F32) == "triton"
            return
        message = r"needs compute capability 8\.0, and Tesla T4 has 7\.5: ask for backend='torch' there"
        for backend in ("triton", "cuda"):
            with pytest.raises(ValueError, match=message):
                resolve(backend, torch.device("cuda:1"), F32, operation="sum", dim=2)
        with pytest.warns(UserWarning, match=message):
            assert resolve(None, torch.device("cuda:1"), F32, operation="sum", dim=2) == "torch"

    def test_derivatives_of_the_cuda_module_need_triton(self, versions, monkeypatch):
        versions["triton"] = "3.2.0"
        monkeypatch.setattr(dispatch, "_LOADED", {"cuda": SimpleNamespace()})
        monkeypatch.setattr(dispatch, "_FUNCTIONS", {})
        with pytest.raises(
            ValueError, match=r"backend='cuda' can't serve pair_jet: it is triton's, which needs triton 3.5"
        ):
            dispatch.function("cuda", "pair_jet")


def test_plain_pytorch_on_a_gpu_is_not_silent(monkeypatch):
    find = dispatch.importlib.util.find_spec
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None if name == "triton" else find(name))
    monkeypatch.setattr(dispatch, "_RESOLVED", {})
    with pytest.warns(UserWarning, match="runs plain PyTorch on this GPU: triton needs triton: pip install triton"):
        assert resolve(None, CUDA, F32) == "torch"
    assert resolve(None, CUDA, F32) == "torch"  # once


def test_a_broken_install_raises_in_the_automatic_choice(monkeypatch):
    def fail(name):
        raise ImportError(f"{name}: libcuda.so.1 is missing")

    monkeypatch.setattr(dispatch, "_LOADED", {})
    monkeypatch.setattr(dispatch, "_FUNCTIONS", {})
    monkeypatch.setattr(dispatch.importlib, "import_module", fail)
    with pytest.raises(ImportError, match="libcuda"):
        dispatch.function(resolve(None, CUDA, F32), "pair_sum")


class TestPrecision:
    def test_names(self, present):
        assert resolve("triton:tf32", CUDA, F32) == "triton:tf32"
        with pytest.raises(ValueError, match=r"got 'triton:half', expected one of triton:fp16x3, triton:ieee, triton:"):
            resolve("triton:half", CUDA, F32)
        with pytest.raises(ValueError, match=r"got 'cpp:tf32', cpp has no choice of precision"):
            resolve("cpp:tf32", torch.device("cpu"), F32)

    @pytest.mark.skipif(BACKENDS["triton"].absence() is not None, reason="needs triton")
    def test_reaches_the_kernel_and_its_derivatives(self, monkeypatch):
        from gwf_fast.kernels.triton import launch

        asked = []
        check = launch.check_precision
        monkeypatch.setattr(launch, "check_precision", lambda name: asked.append(name) or check(name))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        x = torch.randn(9, 17, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
        values = [gwf.kernel_sum(x, x.detach(), kernel=K, backend=f"triton:{name}") for name in launch.PRECISIONS]  # type: ignore[arg-type]
        count = len(launch.PRECISIONS)
        assert asked == list(launch.PRECISIONS)
        torch.autograd.grad(values[-1].sum(), x)
        assert asked[count:] == ["tf32"] * (len(asked) - count)
        assert len(asked) > count
        for value in values[1:-1]:
            torch.testing.assert_close(values[0], value, rtol=1e-5, atol=0)


class TestDerivativesOfTheCudaModule:
    """The module has sums and gradients; what differentiates them is Triton's."""

    def test_functions(self, monkeypatch):
        cuda, triton = object.__new__(type("cuda", (), {"pair_sum": 1})), type("triton", (), {"pair_jet": lambda *a: a})
        monkeypatch.setattr(dispatch, "_LOADED", {"cuda": cuda, "triton": triton})
        monkeypatch.setattr(dispatch, "_FUNCTIONS", {})
        assert dispatch.function("cuda", "pair_jet").__closure__ is not None
        with pytest.raises(AttributeError):
            dispatch.function("triton", "pair_sum")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_triton_outside_the_interpreter():
    """Every reduction; the interpreter is asked for where triton is imported, so this process can't tell."""
    script = """
import torch, gwf_fast as gwf
x = torch.zeros(3, 2)
for function in (gwf.kernel_sum, gwf.kernel_gradient, gwf.kernel_logsumexp, gwf.kernel_average):
    try:
        function(x, x, kernel=gwf.Gaussian(1.0), backend="triton")
    except ValueError as error:
        print(error)
"""
    environment = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    refused = "backend='triton' can't serve torch.float32 tensors on cpu: serves cuda tensors"
    assert [line.startswith(refused) for line in done.stdout.splitlines()] == [True] * 4, done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["torch", None])
def test_two_devices(backend):
    """Points or weights elsewhere than x: one line with the remedy."""
    w = torch.ones(3, device="cuda")
    message = r"must be on the device of x, cpu, got cuda:0: move it there, \w+\.to\(x\.device\)"
    calls = [
        lambda: gwf.kernel_sum(X, X.to("cuda"), kernel=K, backend=backend),
        lambda: gwf.kernel_sum(X, X, w.to("cuda"), kernel=K, backend=backend),
        lambda: gwf.kernel_logsumexp(X, X, w.to("cuda"), kernel=K, backend=backend),
        lambda: gwf.kernel_average(X, X, X.to("cuda"), kernel=K, backend=backend),
        lambda: gwf.mmd2(X, X, kernel=K, x_weights=w.to("cuda"), backend=backend),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_cards():
    x, y = torch.zeros(3, 2, device="cuda:0"), torch.zeros(3, 2, device="cuda:1")
    with pytest.raises(ValueError, match="y must be on the device of x, cuda:0, got cuda:1: move it there"):
        gwf.kernel_sum(x, y, kernel=K)


@pytest.mark.parametrize("backend", ["cpp", "triton", "keops", "torch", "cuda", None])
def test_unsupported_dtype(backend):
    with pytest.raises(TypeError, match="x must have a floating dtype"):
        gwf.kernel_sum(X.int(), X.int(), kernel=K, backend=backend)
    if backend in ("cpp", "keops"):
        with pytest.raises(ValueError, match=r"does not serve torch\.float16, but torch\.float32, torch\.float64"):
            gwf.kernel_sum(X.half(), X.half(), kernel=K, backend=backend)


def test_explain_knows_operations(present):
    text = gwf.explain(gwf.kernel_logsumexp, X, X, kernel=K)
    assert "cuda: serves cuda tensors, not cpu; serves sum, gradient, interaction only" in text
    text = gwf.explain(gwf.kernel_sum, torch.zeros(3, 9), torch.zeros(3, 9), kernel=K)
    assert "serves at most 4 coordinates, not 9" in text
