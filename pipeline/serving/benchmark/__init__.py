"""Load on a running server, and the server as a process."""
