"""What every room stands on: artifacts, errors, the console, the machine."""
