"""Every operation of every backend against the float64 references, on this machine."""
