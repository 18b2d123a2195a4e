# SPDX-License-Identifier: MIT
"""Settings of rivals that make no sense are named; every method has its page."""

import pytest

from solo.errors import ConfigError
from sparse_ext.config.sections import METHODS, build

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "rigl", "initial": 0.2}, r"sparse\.initial=0\.2 has no effect on rigl: its"),
        ({"name": "snip", "ramp_end": 0.5}, r"ramp_end=0\.5 has no effect on snip"),
        ({"name": "random", "update_period": 5}, "update_period=5 has no effect on random"),
        ({"name": "sd", "momentum_final": 0.5}, "momentum_final=0.5 has no effect on sd"),
        ({"name": "sr_ste", "ema_mode": "leaky"}, "ema_mode=leaky has no effect on sr_ste"),
        ({"name": "rigl", "update_end": 0}, "update_end=0.0 is not a fraction"),
        ({"name": "rigl", "allocation": "global"}, r"sparse\.allocation='global'"),
        ({"name": "rigl", "granularity": "2:4"}, r"no group is dense.*\+sparse=asp"),
        ({"name": "rigl", "drop_start": 1.0}, r"drop_start=1\.0 must be in"),
        ({"name": "granet", "ramp_start": 0.6}, r"ramp_start=0\.6.*before.*ramp_end=0\.5"),
        ({"name": "granet", "initial_allocation": "erl"}, "Did you mean 'er' or 'erk'"),
        ({"name": "oneshot", "prune_at": 2}, "prune_at=2.0 is not a fraction"),
        ({"name": "grasp", "temperature": 0}, "temperature=0.0 must be above 0"),
        ({"name": "asp", "granularity": "block8"}, "asp makes every group N:M"),
        ({"name": "asp", "final": 0.5}, "sparse.final=0.5 is not for it"),
        ({"name": "sr_ste", "granularity": "element"}, "such as 2:4"),
        ({"name": "sr_ste", "decay": -1}, "decay=-1.0 must not be negative"),
        ({"name": "sdclr", "granularity": "2:4"}, "is not for it. Use element"),
        ({"name": "mcp", "granularity": "2:4"}, "mcp prunes filters"),
        ({"name": "mcp", "admm_end": 1}, "admm_end=1.0 is not a fraction"),
        ({"name": "mcp", "rho_start": 1}, "needs 0 < rho_start <= rho_end"),
        ({"name": "sdcrl"}, "Did you mean 'sdclr'"),
    ],
)
def test_settings_that_make_no_sense(section, message):
    with pytest.raises(ConfigError, match=message):
        build(section)


def test_every_method_has_its_page():
    from importlib import import_module

    for name, schema in METHODS.items():
        assert schema().name == name
        assert import_module(f"sparse_ext.pruning.methods.{name}").__doc__
