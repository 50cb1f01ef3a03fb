"""Keys and certificates that TLS accepts for the right names only, in files that stay private."""

import shlex
import ssl
import stat
import tomllib
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)
from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode

from fedef.errors import ConfigError
from sims.credentials import Credentials, Ports, instructions
from sims.flower_compat import GRPC

HOST = "fl.example.org"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Credentials.create(tmp_path_factory.mktemp("x") / "new" / "edge", num_nodes=3, host=HOST)


def handshake(server, client_ca, name):
    """A TLS handshake in memory; raises what the client raises."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(server.folder / "server.crt", server.folder / "server.key")
    client_side = ssl.create_default_context(cafile=client_ca)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(back, there, server_hostname=name)
    listener = server_side.wrap_bio(there, back, server_side=True)
    for _ in range(4):
        for end in (client, listener):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return client.version()


@pytest.mark.parametrize("name", [HOST, "localhost", "127.0.0.1", "::1"])
def test_the_server_is_believed_by_its_names(made, name):
    assert handshake(made, made.ca, name) == "TLSv1.3"


def test_another_name_and_another_authority_are_not_believed(made, tmp_path):
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(made, made.ca, "evil.example.org")
    other = Credentials.create(tmp_path / "other", num_nodes=1, host=HOST)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(made, other.ca, HOST)


def test_an_ip_address_is_named_as_one(tmp_path):
    made = Credentials.create(tmp_path / "ip", num_nodes=1, host="192.0.2.7")
    assert handshake(made, made.ca, "192.0.2.7") == "TLSv1.3"


def test_private_files_are_private(made):
    modes = {
        path.relative_to(made.folder).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in made.folder.rglob("*")
    }
    private = {name for name, mode in modes.items() if mode == 0o600}
    keys = {f"node-{number}/key" for number in range(3)}
    assert private == {"ca.key", "server.key"} | keys
    assert {modes[f"node-{number}"] for number in range(3)} == {0o700}
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    contents = [path.read_bytes() for path in made.folder.rglob("*") if path.is_file()]
    assert sum(b"PRIVATE KEY" in content for content in contents) == len(private)


def test_each_node_has_its_own_key(made):
    keys = set()
    for number in range(3):
        private = load_ssh_private_key((made.node(number) / "key").read_bytes(), None)
        assert isinstance(private.curve, ec.SECP384R1)
        public = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        assert (made.node(number) / "key.pub").read_bytes().strip() == public
        assert load_ssh_public_key(public)
        keys.add(public)
    assert len(keys) == 3


def test_nothing_is_overwritten(made):
    before = {p: p.read_bytes() for p in made.folder.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match="nothing in it is overwritten"):
        Credentials.create(made.folder, num_nodes=1, host=HOST)
    file = made.folder / "ca.crt"
    with pytest.raises(ConfigError, match="nothing in it is overwritten"):
        Credentials.create(file, num_nodes=1, host=HOST)
    assert {p: p.read_bytes() for p in made.folder.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("host", ["", "a b", "a.org:9092", "x/y", "https://a", "bücher.de"])
def test_hosts_that_are_no_names_are_refused(host, tmp_path):
    with pytest.raises(ConfigError, match="host: must be the name or the IP address"):
        Credentials.create(tmp_path / "new", num_nodes=1, host=host)
    assert not (tmp_path / "new").exists()


def test_a_federation_has_nodes(tmp_path):
    with pytest.raises(ConfigError, match="nodes: must be at least 1, got 0"):
        Credentials.create(tmp_path / "new", num_nodes=0, host=HOST)


def test_flower_understands_the_commands(made):
    """Its own parsers, so that a renamed option shows here and not on a device."""
    superlink, supernode = made.superlink_command(), made.supernode_command(2)
    assert (superlink[0], supernode[0]) == ("flower-superlink", "flower-supernode")
    server = _parse_args_run_superlink().parse_args(superlink[1:])
    assert server.enable_supernode_auth
    assert not server.insecure
    # Runs are submitted at the control port: whoever reaches it with ca.crt may.
    expected = ("127.0.0.1", "0.0.0.0:9092") if GRPC else ("0.0.0.0", None)
    assert (server.host, server.fleet_api_address) == expected
    node = _parse_args_run_supernode().parse_args(supernode[1:])
    port = 9092 if GRPC else 8000
    assert (node.superlink, node.root_certificates) == (f"{HOST}:{port}", "ca.crt")
    assert node.node_config == "partition-id=2 num-partitions=3"
    connection = tomllib.loads((made.folder / "config.toml").read_text())["superlink"]["edge"]
    assert connection == {"address": "127.0.0.1:8000", "root-certificates": str(made.ca)}


def test_on_the_loopback_nothing_else_can_connect(tmp_path):
    ports = Ports(fleet=1, control=2)
    made = Credentials.create(tmp_path / "new", num_nodes=1, host="127.0.0.1", ports=ports)
    assert not [word for word in made.superlink_command() if "0.0.0.0" in word]
    assert "127.0.0.1:1" in made.superlink_command() or not GRPC


@pytest.mark.parametrize(("host", "bound"), [("2001:db8::7", "::"), ("::1", "::1")])
def test_an_ipv6_address_is_bound_and_found_in_brackets(tmp_path, host, bound):
    made = Credentials.create(tmp_path / "new", num_nodes=1, host=host)
    assert handshake(made, made.ca, host) == "TLSv1.3"
    server = _parse_args_run_superlink().parse_args(made.superlink_command()[1:])
    expected = ("127.0.0.1", f"[{bound}]:9092") if GRPC else (bound, None)
    assert (server.host, server.fleet_api_address) == expected
    node = _parse_args_run_supernode().parse_args(made.supernode_command(0)[1:])
    assert node.superlink == f"[{host}]:{9092 if GRPC else 8000}"


def test_the_instructions_hold_every_command(made):
    lines = [line for line in instructions(made) if not line.startswith("#")]
    assert len(lines) == 1 + 1 + 3 + 3 + 1
    assert sum("flwr supernode register" in line for line in lines) == 3
    starts = [shlex.split(line) for line in lines if "flower-supernode" in line]
    config = 'partition-id={} num-partitions=3 state-dir="$PWD/state"'
    assert [words[-1] for words in starts] == [config.format(number) for number in range(3)]
    assert all(words[3:5] == ["FLWR_HOME=$PWD", "flower-supernode"] for words in starts)
