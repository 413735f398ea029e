"""Start-up of the container, in the manner of NVIDIA NIM."""
