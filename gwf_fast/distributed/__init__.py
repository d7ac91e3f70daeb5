"""The calls of ``gwf`` on particles that lie in shards on several processes, on torch.distributed.

Each takes this process's rows, and a group. Where tensors are DTensors the ordinary calls take them.
"""

from gwf_fast.distributed import drift
from gwf_fast.distributed.calls import of_shards
from gwf_fast.distributed.peers import PeerError
from gwf_fast.distributed.traffic import Traffic
from gwf_fast.measures import discrepancy, interaction, stein
from gwf_fast.pairs import reductions

kernel_sum = of_shards(reductions.kernel_sum)
kernel_gradient = of_shards(reductions.kernel_gradient)
kernel_logsumexp = of_shards(reductions.kernel_logsumexp)
kernel_average = of_shards(reductions.kernel_average)

mmd2 = of_shards(discrepancy.mmd2, rows=False)
energy_distance = of_shards(discrepancy.energy_distance, rows=False)
parzen_log_density = of_shards(discrepancy.parzen_log_density)
parzen_score = of_shards(discrepancy.parzen_score)
svgd_direction = of_shards(stein.svgd_direction)

interaction_energy = of_shards(interaction.interaction_energy, rows=False)
interaction_velocity = of_shards(interaction.interaction_velocity)
forward_step = of_shards(interaction.forward_step)

__all__ = [
    "PeerError",
    "Traffic",
    "drift",
    "energy_distance",
    "forward_step",
    "interaction_energy",
    "interaction_velocity",
    "kernel_average",
    "kernel_gradient",
    "kernel_logsumexp",
    "kernel_sum",
    "mmd2",
    "parzen_log_density",
    "parzen_score",
    "svgd_direction",
]
