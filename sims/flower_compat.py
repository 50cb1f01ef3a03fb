"""What differs between the Flower releases that fedef runs on: how nodes reach the SuperLink.

Up to 1.39 a SuperNode speaks gRPC to a port of its own; from 1.40 on HTTP to the one port at which
``flwr`` submits runs too. The message API is the same.
"""

from importlib.metadata import version

GRPC = tuple(map(int, version("flwr").split(".")[:2])) < (1, 40)
"""Whether the Flower that is installed has a port for nodes alone."""


def superlink_addresses(host: str, *, fleet: int, control: int) -> list[str]:
    """Options that have a SuperLink listen for nodes at `host`, for ``flwr`` on the loopback.

    Over HTTP both are at `host`: then whoever reaches the nodes' port can submit runs.
    """
    if not GRPC:
        return ["--host", host, "--port", str(control)]
    address = at_port(host, fleet)
    transport = ["--fleet-api-type", "grpc-rere", "--fleet-api-address", address]
    return [*transport, "--host", "127.0.0.1", "--port", str(control)]


def supernode_options(host: str, *, fleet: int, control: int) -> list[str]:
    """Options that have a SuperNode find its SuperLink."""
    transport = ["--grpc-rere"] if GRPC else []
    return [*transport, "--superlink", at_port(host, fleet if GRPC else control)]


def at_port(host: str, port: int) -> str:
    """Host and port; an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
