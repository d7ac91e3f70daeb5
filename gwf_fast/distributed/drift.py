"""The drifts of ``gwf.drift`` whose particles and targets lie in shards."""

from gwf_fast.distributed.calls import of_shards
from gwf_fast.drift import couplings, drifting, kernels, parzen

mmd = of_shards(kernels.mmd)
energy = of_shards(kernels.energy)
parzen_kl = of_shards(parzen.parzen_kl)
f_divergence = of_shards(parzen.f_divergence)
gmd = of_shards(drifting.gmd)
coupling = of_shards(couplings.coupling)

__all__ = ["coupling", "energy", "f_divergence", "gmd", "mmd", "parzen_kl"]
