#!/usr/bin/env bash
# In the repository's root, on a machine with nvcc and Python 3.12 (PY312=...): makes .gpu/ for bench/gpu_session.sh,
# for machines that have torch, triton and pytest, and no package index: wheels of what is missing there, and the compiled
# modules for its Python. About 6 minutes on two cores.
#   ARCH: the card's compute capability without a point, 90 by default (80 for A100, 100 for B200).
set -euo pipefail
cd "$(dirname "$0")/.."
PY312=${PY312:-$(command -v pyenv > /dev/null && ls "$(pyenv root)"/versions/3.12.*/bin/python 2> /dev/null | tail -n 1 || true)}
PY312=${PY312:-python3.12}
grep -qx '/.gpu/' .git/info/exclude 2> /dev/null || echo '/.gpu/' >> "$(git rev-parse --git-common-dir)/info/exclude"
work=$(mktemp -d)
rm -rf .gpu
mkdir -p .gpu
"$PY312" -m venv "$work/venv"
"$work/venv/bin/pip" install -q pybind11 'setuptools>=77' wheel numpy
"$work/venv/bin/pip" download -q --no-deps -d "$work/whl" finufft geomloss flash-sinkhorn
"$work/venv/bin/pip" download -q --no-deps -d "$work/whl" cufinufft || echo "without cufinufft"
"$work/venv/bin/pip" wheel -q --no-deps -w "$work/whl" pykeops==2.3 keopscore==2.3
git clone -q . "$work/src" # what is committed: build from a clean copy, not over the tree's own objects
(cd "$work/src" && GWF_FAST_CUDA=1 GWF_FAST_CUDA_ARCHITECTURES=${ARCH:-90} "$work/venv/bin/python" setup.py -q build_ext --inplace)
cp "$work"/src/gwf_fast/*.so "$work"/whl/*.whl .gpu/
git rev-parse HEAD > .gpu/commit
rm -rf "$work"
du -sh .gpu
ls -la .gpu
