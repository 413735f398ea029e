"""What a wheel holds beyond pyproject.toml: conf/ and the example project, as data of the package.

They stay at the top of the repository, where people look for them, and are found in both places by
pipeline/core/paths.py.
"""

import atexit
import shutil
import sys
import tempfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))
from pipeline.orchestration.project import COPIED

EXAMPLE = "pipeline.example"


class BuildPackages(build_py):
    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """The example's folder is the repository's: it has data, and no modules."""
        return [] if package == EXAMPLE else super().find_package_modules(package, package_dir)


# Not in the checkout: setuptools would put what an earlier build left there into the wheel.
work = tempfile.mkdtemp()
atexit.register(shutil.rmtree, work, ignore_errors=True)

setup(
    cmdclass={"build_py": BuildPackages},
    options={"build": {"build_base": work}, "egg_info": {"egg_base": work}},
    packages=[*find_packages(include=["pipeline", "pipeline.*"]), "pipeline.conf", EXAMPLE],
    package_dir={"pipeline.conf": "conf", EXAMPLE: "."},
    package_data={
        "pipeline": ["**/*.json", "**/*.yaml", "**/*.html", "**/*.css", "**/*.js", "py.typed"],
        "pipeline.conf": ["**/*.*"],
        EXAMPLE: [*COPIED, "data/bank/sources/*"],
    },
    exclude_package_data={"pipeline.conf": ["**/__pycache__/*"]},
    include_package_data=False,
)
