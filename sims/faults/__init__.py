"""A federation on the loopback to which everything happens that the protocol must stand.

    python -m sims.faults --node-kills 30 --server-kills 10 --message-faults 0.2

TLS and node keys as on devices. What happens, at moments and to victims that the seed draws:

- SuperNodes, the ServerApp and the SuperLink get SIGKILL, by their process IDs, somewhere in a
  round; nodes are started again on their disks, the run is resumed from its folder;
- tasks are not sent, replies are dropped, held back, delivered twice or changed on the server,
  behind TLS, which lets nobody do so on the way (``--message-faults 0.2``);
- on the way, pieces of connections are late, cut off or changed (``--wire-faults 0.01``);
- for some rounds a node's disk is full (``--full-disks 3``), or its clock is wrong
  (``--clock-moves 3``).

After each round the states on disk are compared:

    g = sum_i w_i g_i / sum_i w_i

with g_i what client i's file holds, up to the declared pending update. At the end the run is done
again inline with exactly the replies lost that it lost: the same bits, or an update was lost or
applied twice. The last rounds are calm: all clients must be back.
"""
