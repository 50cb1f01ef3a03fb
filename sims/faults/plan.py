"""What is to happen to a federation."""

from __future__ import annotations

from dataclasses import dataclass

from fedef.randomness import stream

NODE, SERVER_APP, SUPERLINK, DISK, CLOCK = "node", "server-app", "superlink", "disk", "clock"


@dataclass(frozen=True)
class Faults:
    """What is to happen."""

    node_kills: int = 0
    """SIGKILLs of a SuperNode."""
    server_kills: int = 0
    """SIGKILLs of the ServerApp, each second time with the SuperLink."""
    full_disks: int = 0
    """Nodes whose disk is full for some rounds; needs root, for a file system of their own."""
    clock_moves: int = 0
    """Nodes whose clock is wrong for some rounds, by a minute to a day."""
    message_faults: float = 0.0
    """Share of the clients' messages that the server does not send, loses, holds back, receives
    twice or changed."""
    wire_faults: float = 0.0
    """Share of the pieces of the nodes' connections that are late, cut off or changed."""

    def victims(self, seed: int) -> list[str]:
        """What is struck, in an order that the seed draws."""
        servers = [SERVER_APP if n % 2 == 0 else SUPERLINK for n in range(self.server_kills)]
        kinds = [NODE] * self.node_kills + servers
        kinds += [DISK] * self.full_disks + [CLOCK] * self.clock_moves
        return [kinds[place] for place in stream(seed, "victims").permutation(len(kinds))]
