"""Functionals F(P): what a flow descends."""
