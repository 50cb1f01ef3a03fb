"""The mod that puts error feedback around an existing ClientApp's training.

    app = ClientApp(mods=[error_feedback_mod])

Its server uses `strategies.adoption.ErrorFeedback` in the place of FedAvg.
"""

from collections.abc import Callable

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from clients.records import content_of, task_from
from clients.store import ContextStore, store_of
from fedef import ensure_ours
from fedef.adoption import HELLO, PLAN, AdoptedProblem, Named, Plan
from fedef.client_session import ClientSession
from fedef.errors import ConfigError

ensure_ours()


def error_feedback_mod(
    message: Message, context: Context, call_next: Callable[[Message, Context], Message]
) -> Message:
    """Send a compressed correction in the place of the trained model.

    The app gets and returns the same messages as from FedAvg: arrays and a config in, arrays and
    one MetricRecord out. What is sent is a correction to the server's estimate of this client's
    pseudo-gradient x - x_i; integer arrays and batch-norm statistics travel whole, metrics
    untouched. Messages of another kind, and training for a server without error feedback, pass
    through. With ``state-dir`` in the node's config the state survives a restart on its disk.

    Raises
    ------
    ConfigError
        If the app returned other arrays, shapes or types than it got, more than one record of
        arrays or metrics, or no usable weight.
    """
    configs = message.content.config_records if message.has_content() else {}
    if HELLO in configs:
        name = context.node_config.get("partition-id", context.node_id)
        return Message(RecordDict({HELLO: ConfigRecord({"client": name})}), reply_to=message)
    if PLAN not in configs:
        return call_next(message, context)
    plan = Plan.from_json(str(configs[PLAN]["json"]))
    metrics = RecordDict()

    def train(model: Named) -> Named:
        inner = RecordDict({plan.arrays_key: ArrayRecord({n: Array(a) for n, a in model.items()})})
        if plan.config_key in configs:
            inner[plan.config_key] = configs[plan.config_key]
        task_for_app: Message = Message(inner, metadata=message.metadata)  # type: ignore[call-overload]  # known to Flower at run time, not listed in its overloads
        answer = call_next(task_for_app, context)
        arrays, name, record = _checked(answer, plan)
        metrics[name] = record
        return arrays

    task = task_from(message.content)
    # The run config is the app's own: a key of ours in it would be a coincidence.
    durable = "state-dir" in context.node_config
    store = (
        store_of(context, token=task.token, client=task.client)
        if durable
        else ContextStore(context)
    )
    session = ClientSession(
        task.client,
        run_id=plan.run_id,
        seed=plan.seed,
        problem=AdoptedProblem(plan, train=train),
        method=plan.method(),
        state=store.load(),
    )
    reply = session.handle(task)
    content = content_of(reply)
    content.update(metrics)
    answer = Message(content, reply_to=message)
    store.save(session.state)  # before the reply leaves
    return answer


def _checked(answer: Message, plan: Plan) -> tuple[Named, str, MetricRecord]:
    """Arrays, and the MetricRecord with its name, of the app's own answer."""
    if answer.has_error():
        raise ConfigError(f"error_feedback_mod: the app answered with an error: {answer.error}")
    arrays, metrics = answer.content.array_records, answer.content.metric_records
    if len(arrays) != 1 or len(metrics) != 1:
        raise ConfigError(
            f"error_feedback_mod: the app must return one ArrayRecord and one MetricRecord, as "
            f"FedAvg asks too, got {list(arrays)} and {list(metrics)}"
        )
    ((name, record),) = metrics.items()
    weight = record.get(plan.weighted_by)
    if not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise ConfigError(
            f"error_feedback_mod: metric {plan.weighted_by!r} must be a number that is not "
            f"negative, got {weight!r}; it says how much this client counts"
        )
    (record_of_arrays,) = arrays.values()
    foreign = [n for n, array in record_of_arrays.items() if array.stype != "numpy.ndarray"]
    if foreign:
        raise ConfigError(
            f"error_feedback_mod: arrays {foreign} are not NumPy arrays; make them with "
            "ArrayRecord(state_dict) or Array(ndarray)"
        )
    return {n: array.numpy() for n, array in record_of_arrays.items()}, name, record
