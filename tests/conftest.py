# SPDX-License-Identifier: Apache-2.0
"""What several test files share."""

import pytest

import targets
from targets import deploy
from tests import graphs as make
from train import say


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A run that is built for arm, measured briefly; float never counts as the fastest, so that the form is certain."""
    absent = targets.load("arm").missing()
    if absent:
        pytest.skip(absent)
    from targets import arm
    run = make.write_run(tmp_path_factory.mktemp("runs") / "r", make.every_kind(), golden=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arm, "SECONDS", 0.05)
        honest = arm.pick
        patch.setattr(arm, "pick", lambda agreed, p50: honest(agreed, p50 | {"float": 1e9}))
        assert say.run(deploy.main, deploy.parser(), ["--run", str(run), "--target", "arm"]) == 0
    return run
