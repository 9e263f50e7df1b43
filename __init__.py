"""Hands on the package `certood` inside this checkout, where Python takes the checkout itself for it.

In the folder above a checkout that is called certood, `import certood` finds the checkout before anything that is installed.
Without this file it would be an empty namespace, in which nothing is found and nothing says why.
"""

import importlib.util
import sys
from pathlib import Path

if __name__ == "certood":
    folder = Path(__file__).parent / "certood"
    found = importlib.util.spec_from_file_location(
        "certood", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert found is not None
    assert found.loader is not None
    sys.modules["certood"] = package = importlib.util.module_from_spec(found)
    found.loader.exec_module(package)
