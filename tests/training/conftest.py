"""What several files here compare with."""

import pytest

from fastmeta import train


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory):
    """The directory of a run that nothing has stopped; not to be written in."""
    from tests.support.runs import two_classes
    from tests.support.stopped import config

    return train(config(tmp_path_factory.mktemp("unbroken") / "run"), data=two_classes()).path
