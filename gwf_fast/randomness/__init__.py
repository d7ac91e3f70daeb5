"""Everything random: seeds and generators of a run, and counter-based draws."""
