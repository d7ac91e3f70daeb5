"""Everything random: seeds, counter-based draws, samples of distributions."""
