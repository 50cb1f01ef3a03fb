"""What a round comes to does not depend on the order in which its replies arrive."""

from itertools import permutations

import numpy as np

from fedef.judge import Accepted
from fedef.rounds import Round
from fedef.updates import Update

WEIGHTS = (0.1, 0.2, 0.3)
"""Their sum has other bits in another order."""


def accepted(client):
    return Accepted(
        update=Update(1, np.zeros(1)),
        buffers=np.array([1.0 + client / 7]),
        loss=0.1 + client / 3,
        digest=bytes(8),
        summary=None,
        evaluations=1,
    )


def test_any_order_of_arrival_gives_the_same_bits():
    assert 0.1 + 0.2 + 0.3 != 0.3 + 0.2 + 0.1
    seen = set()
    for order in permutations(range(3)):
        round = Round(accepted={client: accepted(client) for client in order})
        report = round.report(
            1, WEIGHTS, step_size=0.1, estimate_norm=1.0, independent_norm=None, value_bytes=4
        )
        seen.add((round.averaged_buffers(WEIGHTS, np.zeros(1)).tobytes(), report.train_loss))
    assert len(seen) == 1
