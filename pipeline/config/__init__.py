"""Types and bounds of the settings. Defaults live in conf/."""
