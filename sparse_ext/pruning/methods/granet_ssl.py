# SPDX-License-Identifier: MIT
"""GraNet-SSL, the baseline of SyncCP: GraNet on an encoder pair.

Both encoders start dense and ramp from the first step, the online one to `final`, the momentum one
to 0.3 less, so the gap grows from zero (no SyncS), nothing waits for the encoders to agree (no
CSI), and regrowth follows the gradient of the step instead of its average. Only the online encoder
regrows. With one encoder it is plain GraNet.
"""

from __future__ import annotations

from sparse_ext.pruning.methods.granet import GraNet


class GraNetSSL(GraNet):
    """GraNet with the defaults of SyncCP's comparison (`GraNetSSLConfig`)."""
