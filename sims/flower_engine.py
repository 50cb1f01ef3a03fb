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
from typing import NoReturn

import tomli_w

from fedef.errors import FedefError
from sims.processes import HOME_VARIABLE, temporary_home

Value = bool | int | float | str

TICK_SECONDS = 0.3
STARTUP_SECONDS = 90.0
VERDICT_SECONDS = 30.0
TAIL_LINES = 15

_CONNECTION = "local"
_ERROR_LINE = re.compile(r"(?:\w+\.)*[A-Z]\w*(?:Error|Exception|Mismatch|Payload)\b(?!\()")
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def write_app(folder: Path, config: Mapping[str, Value]) -> Path:
    """A Flower app without code: both apps come from the installed packages.

    Parameters
    ----------
    folder
        Made if it is missing; gets a ``pyproject.toml``.
    config
        The defaults of the run configuration. Flower accepts overrides of these keys only.

    Returns
    -------
    Path
        The folder, to be given to `flwr_run`.
    """
    app = {
        "publisher": "fedef",
        "components": {"serverapp": "strategies.app:app", "clientapp": "clients.app:app"},
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
    before = _written_at(result_path)
    with temporary_home() as home, log_path.open("wb") as log:
        run = _Run(home, log_path, log.fileno(), on_tick, timeout_seconds)
        run.start_superlink()
        run.stream(_run_command(app, home, run_config, num_supernodes, client_cpus))
        run.check_status()
    if result_path is not None and _written_at(result_path) in (None, before):
        _fail(f"the run completed but did not write {str(result_path)!r}", log_path)


class _Run:
    """One run's SuperLink and commands; `temporary_home` stops what is left of them."""

    def __init__(
        self,
        home: Path,
        log_path: Path,
        log: int,
        on_tick: Callable[[], None],
        timeout_seconds: float | None,
    ) -> None:
        self._home, self._log_path, self._log, self._on_tick = home, log_path, log, on_tick
        self._deadline = time.monotonic() + timeout_seconds if timeout_seconds else float("inf")
        self._superlink_log = home / "superlink.log"
        self._environment = _environment(home)

    def start_superlink(self) -> None:
        """A SuperLink on a free port of the loopback, and the file that leads ``flwr`` to it."""
        port = _free_port()
        options = f"--insecure --simulation --isolation subprocess --host 127.0.0.1 --port {port}"
        (self._home / "config.toml").write_text(
            tomli_w.dumps(
                {"superlink": {_CONNECTION: {"address": f"127.0.0.1:{port}", "insecure": True}}}
            ),
            encoding="utf-8",
        )
        with self._superlink_log.open("wb") as output:
            superlink = self._popen(["flower-superlink", *options.split()], output.fileno())
        patience = time.monotonic() + STARTUP_SECONDS
        while not _answers(port):
            if superlink.poll() is not None or time.monotonic() > patience:
                self._fail("Flower's SuperLink did not start")
            self._tick()

    def stream(self, command: list[str]) -> None:
        """Submit the run and write its log until it ends."""
        process = self._popen(command, self._log)
        while process.poll() is None:
            self._tick()
        self._on_tick()
        if process.returncode != 0:
            self._fail(f"flwr run exited with {process.returncode}")

    def check_status(self) -> None:
        """Ask the SuperLink how the run ended: ``flwr run`` exits with 0 after a failure too."""
        patience = time.monotonic() + VERDICT_SECONDS
        while not (status := self._status())[0].startswith("finished"):
            if time.monotonic() > patience:
                break
            self._tick()
        if status[0] != "finished:completed":
            self._fail(f"the Flower run ended as {status[0]!r}", status[1])

    def _status(self) -> tuple[str, str]:
        """The run's status and Flower's sentence about it."""
        with (self._home / "status.json").open("w+b") as output:
            process = self._popen(["flwr", "ls", _CONNECTION, "--format", "json"], output.fileno())
            while process.poll() is None:
                self._tick(0.05)
            output.seek(0)
            answer = output.read()
        try:
            run = json.loads(answer)["runs"][0]
            return str(run["status"]), str(run["status-details"])
        except (ValueError, LookupError, TypeError):
            return "unknown", answer.decode(errors="replace")

    def _popen(self, command: list[str], output: int) -> subprocess.Popen[bytes]:
        """Start a command of this environment, out of reach of the terminal's Ctrl-C."""
        program = shutil.which(command[0], path=self._environment["PATH"])
        if program is None:
            raise FedefError(
                f"{command[0]} not found next to {sys.executable}; "
                "install it with: pip install 'flwr[simulation]==1.39.0'"
            )
        return subprocess.Popen(  # noqa: S603 - our own command line, no shell
            [program, *command[1:]],
            cwd=self._home / "work",
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _tick(self, seconds: float = TICK_SECONDS) -> None:
        if time.monotonic() > self._deadline:
            self._fail("the Flower run took longer than its time limit and was stopped")
        self._on_tick()
        time.sleep(seconds)

    def _fail(self, what: str, details: str = "") -> NoReturn:
        """Raise, after adding the SuperLink's log: it may explain a silent failure."""
        try:
            _fail(what, self._log_path, details)
        finally:
            os.write(
                self._log, b"\n--- the SuperLink's log ---\n" + self._superlink_log.read_bytes()
            )


def _run_command(
    app: Path, home: Path, run_config: Mapping[str, Value], num_supernodes: int, client_cpus: int
) -> list[str]:
    """The ``flwr run`` command line; the overrides go through a file, so nothing is quoted."""
    overrides = home / "run-config.toml"
    overrides.write_text(tomli_w.dumps(dict(run_config)), encoding="utf-8")
    federation = f"num-supernodes={num_supernodes} client-resources-num-cpus={client_cpus}"
    useful_cpus = num_supernodes * client_cpus
    if useful_cpus < (os.cpu_count() or 1):  # Ray starts one actor per client_cpus cores
        federation += f" init-args-num-cpus={useful_cpus}"
    command = ["flwr", "run", str(app.resolve()), _CONNECTION, "--stream"]
    return [*command, "--run-config", str(overrides), "--federation-config", federation]


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
        HOME_VARIABLE: str(home),
        "RAY_TMPDIR": str(home / "ray"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _written_at(path: Path | None) -> int | None:
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
