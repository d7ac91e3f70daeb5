"""Results that were saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gwf_fast.checkpoint.run_folder import read_manifest
from gwf_fast.flows.drifting import DriftingModel
from gwf_fast.flows.drifting_checkpoint import KIND
from gwf_fast.flows.drifting_state import DriftingResult
from gwf_fast.flows.jko import JKOFlow
from gwf_fast.flows.state import FlowResult
from gwf_fast.ops.ambient import entry


@entry(differentiates=True)
def load(folder: str | Path, **given: Any) -> FlowResult | DriftingResult:
    """The result that ``result.save(folder)``, or a run with ``checkpoint=folder``, left in a folder.

    Args:
        folder: Where it is.
        **given: What a checkpoint can't hold, functions and modules of the user's own, as to ``JKOFlow.resume`` or
            ``DriftingModel.resume``.

    Returns:
        A ``FlowResult`` or a ``DriftingResult``: on the device it was on, and bit for bit.

    Raises:
        ValueError: If there is no checkpoint, it can't be read, or something is missing.
    """
    is_drifting = read_manifest(Path(folder)).get("kind") == KIND
    return (DriftingModel if is_drifting else JKOFlow).load(folder, **given)
