"""What an operator of a TLS-authenticated federation needs on disk, made in one go.

====================== ==========================================================================
file                   what it is
====================== ==========================================================================
ca.crt, ca.key         the certificate authority; ca.key can leave the machine afterwards
server.crt, server.key the SuperLink's certificate, for its host's name and the loopback
node-I/key, key.pub    node I's key pair (P-384), in OpenSSH's form; ca.crt is in the folder too,
                       which goes to the node
config.toml            the connection for ``flwr``, when FLWR_HOME is the folder
====================== ==========================================================================

Private files have mode 0600, folders 0700. Nothing is ever overwritten.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedef.errors import ConfigError
from sims.flower_compat import GRPC, at_port, superlink_addresses, supernode_options

CONNECTION = "edge"
DAYS = 825
"""How long the certificates are valid: the longest that all TLS libraries accept of a server's."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Ports:
    """Where the SuperLink listens."""

    fleet: int = 9092
    """For the nodes: open to them."""
    control: int = 8000
    """For ``flwr``: whoever reaches it with ca.crt can submit runs, so it stays on the loopback."""


@dataclass(frozen=True)
class Credentials:
    """A folder that `create` made."""

    folder: Path
    host: str
    num_nodes: int
    ports: Ports = Ports()

    @classmethod
    def create(
        cls, folder: Path, *, num_nodes: int, host: str, ports: Ports = Ports()
    ) -> Credentials:
        """Make the certificate authority and all keys.

        Raises
        ------
        ConfigError
            If the folder is there already and not empty, or a setting cannot be used.
        """
        if num_nodes < 1:
            raise ConfigError(f"nodes: must be at least 1, got {num_nodes}")
        names = _alternative_names(host)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(
                f"{str(folder)!r} is there already and nothing in it is overwritten: its keys may "
                "be in use; give another folder, or move it away"
            )
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        folder.chmod(0o700)
        made = cls(folder.resolve(), host, num_nodes, ports)
        made._make_certificates(names)
        made._make_node_keys()
        address = at_port("::1" if host == "::1" and not GRPC else "127.0.0.1", ports.control)
        link = {"address": address, "root-certificates": str(made.ca)}
        _write(made.folder / "config.toml", tomli_w.dumps({"superlink": {CONNECTION: link}}))
        return made

    @property
    def ca(self) -> Path:
        """The authority's certificate, which is public."""
        return self.folder / "ca.crt"

    def node(self, number: int) -> Path:
        """Folder of a node."""
        return self.folder / f"node-{number}"

    def superlink_command(self) -> list[str]:
        """Start the SuperLink."""
        return [
            "flower-superlink",
            *("--ssl-ca-certfile", str(self.ca)),
            *("--ssl-certfile", str(self.folder / "server.crt")),
            *("--ssl-keyfile", str(self.folder / "server.key")),
            "--enable-supernode-auth",
            *superlink_addresses(
                _bound(self.host), fleet=self.ports.fleet, control=self.ports.control
            ),
            *("--database", str(self.folder / "superlink.db")),
            "--disable-runtime-dependency-installation",
        ]

    def register_command(self, number: int) -> list[str]:
        """Authorise a node's key, once; the SuperLink keeps it in its database."""
        key = str(self.node(number) / "key.pub")
        return ["flwr", "supernode", "register", key, CONNECTION, "--name", f"node-{number}"]

    def supernode_command(self, number: int, settings: str = "") -> list[str]:
        """Start a node, in its own folder; `settings`: more of its config, as ``key=value``."""
        config = f"partition-id={number} num-partitions={self.num_nodes} {settings}".strip()
        return [
            "flower-supernode",
            *supernode_options(self.host, fleet=self.ports.fleet, control=self.ports.control),
            *("--root-certificates", "ca.crt"),
            *("--auth-supernode-private-key", "key"),
            *("--node-config", config),
        ]

    def _make_certificates(self, names: list[x509.GeneralName]) -> None:
        ca_key, key = (
            ec.generate_private_key(ec.SECP384R1()),
            ec.generate_private_key(ec.SECP384R1()),
        )
        issuer = _name(f"fedef authority of {self.host}")
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        authority = (
            _certificate(issuer, issuer, ca_key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(ca_key, hashes.SHA384())
        )
        server = (
            _certificate(_name(self.host), issuer, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
                critical=False,
            )
            .sign(ca_key, hashes.SHA384())
        )
        _write(self.ca, authority.public_bytes(Encoding.PEM))
        _write(self.folder / "server.crt", server.public_bytes(Encoding.PEM))
        for name, private in (("ca.key", ca_key), ("server.key", key)):
            pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            _write(self.folder / name, pem, private=True)

    def _make_node_keys(self) -> None:
        for number in range(self.num_nodes):
            key, folder = ec.generate_private_key(ec.SECP384R1()), self.node(number)
            folder.mkdir(mode=0o700)
            public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
            _write(folder / "key", pem, private=True)
            _write(folder / "key.pub", public + b"\n")
            _write(folder / "ca.crt", self.ca.read_bytes())


def instructions(made: Credentials) -> list[str]:
    """Lines that say what to do with a folder of credentials; those without # are commands."""
    first, *others = (made.node(number) for number in range(made.num_nodes))
    several = f" to {others[-1].name}" if others else ""
    return [
        f"# {made.folder} is ready; keep ca.key elsewhere once you have all the nodes you want.",
        "# 1. On the server, which stays up:",
        shlex.join(made.superlink_command()),
        "# 2. On the server, once: authorise the nodes' keys; it keeps them in superlink.db.",
        f"export FLWR_HOME={shlex.quote(str(made.folder))}",
        *(shlex.join(made.register_command(number)) for number in range(made.num_nodes)),
        f"# 3. Copy {first.name}{several} each to its own device; there, in that folder, which",
        "#    stays up (add what names its local data to --node-config; its state survives a",
        "#    restart in state-dir):",
        *(f"cd node-{number} && {_start_line(made, number)}" for number in range(made.num_nodes)),
        "# 4. On the server, for each run, in the app's folder:",
        f"flwr run . {CONNECTION} --stream",
    ]


def _start_line(made: Credentials, number: int) -> str:
    """Shell command of a node whose state lies in the folder in which it is started."""
    *options, config = made.supernode_command(number, 'state-dir="$PWD/state"')
    quoted = config.replace('"', '\\"')
    return f'FLWR_HOME="$PWD" {shlex.join(options)} "{quoted}"'


def _alternative_names(host: str) -> list[x509.GeneralName]:
    """Names that the server's certificate is for: `host` and the loopback."""
    names: list[x509.GeneralName] = []
    for name in dict.fromkeys((host, *LOOPBACK)):
        try:
            names.append(x509.IPAddress(ip_address(name)))
        except ValueError:
            labels = name.split(".")
            if not name.isascii() or not all(part.replace("-", "a").isalnum() for part in labels):
                raise ConfigError(
                    f"host: must be the name or the IP address by which the nodes reach the "
                    f"SuperLink, without port, in ASCII (xn--... for others), got {name!r}"
                ) from None
            names.append(x509.DNSName(name))
    return names


def _bound(host: str) -> str:
    """Address to listen on: the loopback for itself, else all of the machine's of its kind."""
    if host in LOOPBACK:
        return "::1" if host == "::1" else "127.0.0.1"
    try:
        version6 = isinstance(ip_address(host), IPv6Address)
    except ValueError:
        version6 = False
    return "::" if version6 else "0.0.0.0"  # noqa: S104 - nodes are elsewhere # nosec B104


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _certificate(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # clocks of devices lag
        .not_valid_after(now + timedelta(days=DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _write(path: Path, data: bytes | str, *, private: bool = False) -> None:
    """Write a new file; private ones are never readable by others, not even for a moment."""
    mode = 0o600 if private else 0o644
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
