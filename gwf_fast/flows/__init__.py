"""Trainers: the JKO loop and drifting models, with what they share."""
