"""The names and arguments of other packages, so that one import line changes; see docs/use_it_in_your_code.md.

``compat.geomloss.SamplesLoss``, ``compat.mmd_gan.mix_rbf_mmd2``, ``compat.svgd.SVGD``,
``compat.drifting.compute_drift``, ``compat.pot.sliced_wasserstein_distance``.
"""

__all__ = ["drifting", "geomloss", "mmd_gan", "pot", "svgd"]
