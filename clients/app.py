"""The ClientApp: a message in, a message out; what happens in between is the session's."""

from collections.abc import Callable
from functools import lru_cache

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from threadpoolctl import ThreadpoolController

from clients.records import content_of, task_from
from clients.store import store_of
from fedef import ensure_ours
from fedef.config import Config
from fedef.errors import ConfigError
from fedef.experiment import Experiment

ensure_ours()

Build = Callable[[Config], Experiment]


def _partition_id(context: Context, num_clients: int) -> int:
    """Which client the node is."""
    given = context.node_config.get("partition-id")
    if not isinstance(given, int) or not 0 <= given < num_clients:
        raise ConfigError(
            f"partition-id: must be in [0, num-clients={num_clients}), got {given!r}; "
            "set it in the node's config, or set num-clients to the number of nodes"
        )
    return given


@lru_cache(maxsize=2)
def built(build: Build, config: Config) -> tuple[Experiment, ThreadpoolController]:
    """Return the experiment, built once in a process for all the clients that it plays.

    With it come the libraries of linear algebra that it loaded: looking for them costs more than
    a small model's gradient.
    """
    experiment = build(config)
    return experiment, ThreadpoolController()


def make_app(build: Build = Experiment.build) -> ClientApp:
    """Return a ClientApp for experiments that `build` makes from the run config.

    The app answers two messages: ``query.partition`` (which client am I, with how many examples)
    and ``train``. Flower's simulation pickles the app with each message, so `build` must be a
    function of a module, found by its name; a nested one would be built anew each time.
    """
    app = ClientApp()

    def experiment_of(context: Context) -> tuple[Experiment, ThreadpoolController]:
        return built(build, Config.from_run_config(context.run_config))

    @app.query("partition")
    def partition(message: Message, context: Context) -> Message:
        experiment, _ = experiment_of(context)
        client = _partition_id(context, experiment.num_clients)
        examples = experiment.problem.num_examples[client]
        facts = ConfigRecord({"client": client, "examples": examples})
        return Message(RecordDict({"partition": facts}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        experiment, libraries = experiment_of(context)
        client = _partition_id(context, experiment.num_clients)
        task = task_from(message.content)
        store = store_of(context, token=task.token, client=client)
        with libraries.limit(limits=1):
            session = experiment.client(client, state=store.load())
            reply = session.handle(task)
        answer = Message(content_of(reply), reply_to=message)
        store.save(session.state)  # before the reply leaves
        return answer

    return app


app = make_app()
