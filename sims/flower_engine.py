"""A Flower app, run once on Flower's simulation (Ray) backend, with nothing left behind.

``flwr run`` by itself leaves a SuperLink behind, takes anybody's running SuperLink, and exits with
0 when the run failed. Here every run has its own home folder, ports and SuperLink; the verdict is
asked of that SuperLink; and every process that the run started is stopped by its process ID.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

import tomli_w

from fedef.errors import FedefError
from sims.processes import HOME_VARIABLE, temporary_home
from sims.ray_tuning import TUNED_ENVIRONMENT

Value = bool | int | float | str

TICK_SECONDS = 0.3
STARTUP_SECONDS = 90.0
VERDICT_SECONDS = 30.0
TAIL_LINES = 15

CONNECTION = "local"
NO_VARIABLES: Mapping[str, str] = MappingProxyType({})
_ERROR_LINE = re.compile(r"(?:\w+\.)*[A-Z]\w*(?:Error|Exception|Mismatch|Payload)\b(?!\()")
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


OUR_APPS = {"serverapp": "strategies.app:app", "clientapp": "clients.app:app"}


def write_app(
    folder: Path, config: Mapping[str, Value], *, components: Mapping[str, str] = OUR_APPS
) -> Path:
    """A Flower app without code: both apps come from the installed packages.

    Parameters
    ----------
    folder
        Made if it is missing; gets a ``pyproject.toml``.
    config
        The defaults of the run configuration. Flower accepts overrides of these keys only.
    components
        Where the two apps are.

    Returns
    -------
    Path
        The folder, to be given to `flwr_run`.
    """
    app = {
        "publisher": "fedef",
        "components": dict(components),
        "config": dict(config),
    }
    project = {
        "name": "fedef",
        "version": "0.1.0",
        "description": "fedef from the installed packages",
        "license": "Apache-2.0",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(
        tomli_w.dumps({"project": project, "tool": {"flwr": {"app": app}}}), encoding="utf-8"
    )
    return folder


def flwr_run(
    app: Path,
    *,
    run_config: Mapping[str, Value],
    num_supernodes: int,
    log_path: Path,
    result_path: Path | None = None,
    client_cpus: int = 1,
    on_tick: Callable[[], None] = lambda: None,
    timeout_seconds: float | None = None,
) -> None:
    """Run a Flower app to its end, or raise.

    The processes run in a folder of their own that is removed afterwards: every path in
    ``run_config`` has to be absolute. They see the caller's environment variables.

    Parameters
    ----------
    app
        Folder with the app's ``pyproject.toml``.
    run_config
        Overrides of the app's configuration.
    num_supernodes
        Number of virtual clients.
    log_path
        File that gets everything that Flower and the apps print.
    result_path
        File that the ServerApp must have written for the run to count as a success.
    client_cpus
        Cores that Ray reserves for each client that is at work.
    on_tick
        Called every `TICK_SECONDS` while the run goes on; what it raises ends the run.
    timeout_seconds
        The longest time that the run may take, start-up included; None: no limit.

    Raises
    ------
    FedefError
        If the run did not complete; the message has the error's line and the end of the log.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    before = written_at(result_path)
    with temporary_home() as home, log_path.open("wb") as log:
        run = FlowerRun(home, log_path, log.fileno(), on_tick, timeout_seconds)
        run.start_superlink()
        command = run_command(app, home, run_config, CONNECTION)
        run.stream([*command, *_federation(num_supernodes, client_cpus)])
        run.check_status()
    require_written(result_path, before, log_path)


def require_written(path: Path | None, before: int | None, log_path: Path) -> None:
    """Raise if the run did not write its result; `before` is when that was last written."""
    if path is not None and written_at(path) in (None, before):
        _fail(f"the run completed but did not write {str(path)!r}", log_path)


class FlowerRun:
    """One run's SuperLink and commands; `temporary_home` stops what is left of them."""

    connection = CONNECTION

    def __init__(
        self,
        home: Path,
        log_path: Path,
        log: int,
        on_tick: Callable[[], None],
        timeout_seconds: float | None,
    ) -> None:
        self.home, self.log_path, self.log, self._on_tick = home, log_path, log, on_tick
        self._deadline = time.monotonic() + timeout_seconds if timeout_seconds else float("inf")
        self._superlink_log = home / "superlink.log"
        self.environment = _environment(home)
        """Variables of all processes that are started from now on."""

    def start_superlink(self) -> None:
        """A SuperLink on a free port of the loopback, and the file that leads ``flwr`` to it."""
        port = free_port()
        options = f"--insecure --simulation --isolation subprocess --host 127.0.0.1 --port {port}"
        (self.home / "config.toml").write_text(
            tomli_w.dumps(
                {"superlink": {CONNECTION: {"address": f"127.0.0.1:{port}", "insecure": True}}}
            ),
            encoding="utf-8",
        )
        self.launch_superlink(["flower-superlink", *options.split()], port)

    def launch_superlink(self, command: list[str], port: int) -> subprocess.Popen[bytes]:
        """Start a SuperLink and wait until it answers."""
        with self._superlink_log.open("ab") as output:
            superlink = self.popen(command, output.fileno())
        patience = time.monotonic() + STARTUP_SECONDS
        while not _answers(port):
            if superlink.poll() is not None or time.monotonic() > patience:
                self.fail("Flower's SuperLink did not start")
            self.tick()
        return superlink

    def stream(self, command: list[str]) -> None:
        """Submit the run and write its log until it ends."""
        process = self.popen(command, self.log)
        while process.poll() is None:
            self.tick()
        self._on_tick()
        if process.returncode != 0:
            self.fail(f"flwr run exited with {process.returncode}")

    def check_status(self) -> None:
        """Ask the SuperLink how the run ended: ``flwr run`` exits with 0 after a failure too."""
        patience = time.monotonic() + VERDICT_SECONDS
        while not (status := self._status())[0].startswith("finished"):
            if time.monotonic() > patience:
                break
            self.tick()
        if status[0] != "finished:completed":
            self.fail(f"the Flower run ended as {status[0]!r}", status[1])

    def _status(self) -> tuple[str, str]:
        """The run's status and Flower's sentence about it."""
        with (self.home / "status.json").open("w+b") as output:
            process = self.popen(
                ["flwr", "ls", self.connection, "--format", "json"], output.fileno()
            )
            while process.poll() is None:
                self.tick(0.05)
            output.seek(0)
            answer = output.read()
        try:
            run = json.loads(answer)["runs"][0]
            return str(run["status"]), str(run["status-details"])
        except (ValueError, LookupError, TypeError):
            return "unknown", answer.decode(errors="replace")

    def popen(
        self,
        command: list[str],
        output: int,
        *,
        folder: Path | None = None,
        variables: Mapping[str, str] = NO_VARIABLES,
    ) -> subprocess.Popen[bytes]:
        """Start a command of this environment, out of reach of the terminal's Ctrl-C.

        `folder`, below the home, is its working directory and Flower home; None: the run's own.
        `variables`: more of its environment.
        """
        program = shutil.which(command[0], path=self.environment["PATH"])
        if program is None:
            raise FedefError(
                f"{command[0]} not found next to {sys.executable}; "
                "install it with: pip install 'fedef[sims]'"
            )
        return subprocess.Popen(  # noqa: S603 - our own command line, no shell # nosec B603
            [program, *command[1:]],
            cwd=folder or self.home / "work",
            env={**self.environment, **variables, HOME_VARIABLE: str(folder or self.home)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def tick(self, seconds: float = TICK_SECONDS) -> None:
        """Let the caller look, and wait a little."""
        if time.monotonic() > self._deadline:
            self.fail("the Flower run took longer than its time limit and was stopped")
        self._on_tick()
        time.sleep(seconds)

    def fail(self, what: str, details: str = "") -> NoReturn:
        """Raise, after adding the SuperLink's log: it may explain a silent failure."""
        try:
            _fail(what, self.log_path, details)
        finally:
            os.write(
                self.log, b"\n--- the SuperLink's log ---\n" + self._superlink_log.read_bytes()
            )


def run_command(
    app: Path, home: Path, run_config: Mapping[str, Value], connection: str
) -> list[str]:
    """The ``flwr run`` command line; the overrides go through a file, so nothing is quoted."""
    overrides = home / "run-config.toml"
    overrides.write_text(tomli_w.dumps(dict(run_config)), encoding="utf-8")
    command = ["flwr", "run", str(app.resolve()), connection, "--stream"]
    return [*command, "--run-config", str(overrides)]


def _federation(num_supernodes: int, client_cpus: int) -> list[str]:
    """Options of a simulation's size."""
    federation = f"num-supernodes={num_supernodes} client-resources-num-cpus={client_cpus}"
    useful_cpus = num_supernodes * client_cpus
    if useful_cpus < (os.cpu_count() or 1):  # Ray starts one actor per client_cpus cores
        federation += f" init-args-num-cpus={useful_cpus}"
    return ["--federation-config", federation]


def _environment(home: Path) -> dict[str, str]:
    """The caller's environment, with this run's home, this interpreter's programs and code."""
    environment = dict(os.environ)
    environment.pop("RAY_ADDRESS", None)  # Ray would join that cluster instead of its own
    for variable, first, separator in (
        ("PATH", sysconfig.get_path("scripts"), os.pathsep),
        ("PYTHONPATH", str(Path(__file__).resolve().parents[1]), os.pathsep),
        ("NO_PROXY", "127.0.0.1", ","),
        ("no_proxy", "127.0.0.1", ","),
    ):
        environment[variable] = separator.join(filter(None, [first, os.environ.get(variable)]))
    for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM"):
        environment[f"{library}_NUM_THREADS"] = "1"
    return environment | {
        **TUNED_ENVIRONMENT,
        HOME_VARIABLE: str(home),
        "RAY_TMPDIR": str(home / "ray"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray has no password: the loopback alone
        "PYTHONUNBUFFERED": "1",
    }


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def written_at(path: Path | None) -> int | None:
    """When a file was last written, in ns; None: never."""
    return path.stat().st_mtime_ns if path is not None and path.exists() else None


def _fail(what: str, log_path: Path, details: str = "") -> NoReturn:
    lines = _ANSI.sub("", log_path.read_text(encoding="utf-8", errors="replace")).splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    reason = details.partition("exception: ")[2].partition("\n")[0].strip()
    errors = [line for line in lines if _ERROR_LINE.match(line) and line.endswith(reason)]
    boxed = " ".join(line.strip("│ ") for line in lines if line.startswith("│"))
    cause = errors[-1] if errors else reason or boxed or "its log names no error"
    tail = "\n".join(f"  {line}" for line in lines[-TAIL_LINES:])
    raise FedefError(f"{what}: {cause}\nThe log ends with:\n{tail}\nThe whole log: {log_path}")
