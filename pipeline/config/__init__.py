"""Types, bounds and meanings of the settings: one module a group. Defaults live in conf/."""
