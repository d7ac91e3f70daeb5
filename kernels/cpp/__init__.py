"""The backend "cpp": compiled C++ for the CPU."""
