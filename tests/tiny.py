# SPDX-License-Identifier: Apache-2.0
"""Run folders of every architecture's `tiny` preset, untrained, made once for all workers of a test run."""

import pytest

from tests import graphs as make
from tests.once import once

# name -> what `integers` takes
TINY = {
    "local-lead": ("local-lead", "tiny", "cinc2017", 1),
    "lga": ("lga", "tiny", "cinc2017", 1),
    "hierarchical": ("hierarchical", "tiny", "cinc2017", 1),
    "nat": ("nat", "tiny", "cinc2017", 1),
    "efficient": ("efficient", "tiny", "cinc2017", 1),
}
WINDOWS = 64


def run(factory, name):
    """The run folder of one of TINY; skips without torch."""
    pytest.importorskip("torch")
    from tests.frozen import integers
    return once(factory, f"tiny-{name}", lambda folder: make.write_run(folder, integers(*TINY[name]), golden=WINDOWS))
