"""Start of the server in a container, configured with NVIDIA NIM's variables."""
