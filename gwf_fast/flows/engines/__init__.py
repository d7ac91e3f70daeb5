"""What solves the inner problem of one JKO step."""
