"""What several files here compare with."""

import pytest

from fastmeta import report, train
from tests.support.plugs import plug  # noqa: F401

#: a folder of this name has runs with their figures
REAL = "with figures"


@pytest.fixture(scope="package", autouse=True)
def quick_figures():
    """Pictures of each of hundreds of runs would take minutes; tests/report and test_in_words.py look at real ones."""
    with pytest.MonkeyPatch.context() as patch:
        real = report.write_figures
        patch.setattr(report, "write_figures", lambda path, *rest: real(path, *rest) if REAL in path.parts else [])
        yield


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory):
    """The directory of a run that nothing has stopped; not to be written in."""
    from tests.support.runs import two_classes
    from tests.support.stopped import config

    return train(config(tmp_path_factory.mktemp("unbroken") / "run"), data=two_classes()).path
