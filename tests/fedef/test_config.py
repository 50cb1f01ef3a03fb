"""The configuration: strict keys, messages that name key, got and allowed, lossless spelling."""

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from fedef.config import OUT_KEY, Config, known_keys, parse_assignments, read_toml
from fedef.errors import ConfigError

NAN, INF = float("nan"), float("inf")
text = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=8)
settings_drawn = st.fixed_dictionaries(
    {},
    optional={
        "method": st.sampled_from(["ef21", "norm-ef21", "ef21-sgdm", "norm-ef21-sgdm"]),
        "compressor": st.sampled_from(["identity", "top-k", "rand-k"]),
        "k": st.one_of(st.just(""), st.integers(1, 10**9)),
        "k-fraction": st.floats(0, 1, exclude_min=True),
        "step-size": st.floats(0, exclude_min=True, allow_infinity=False),
        "regularization": st.floats(0, allow_infinity=False),
        "data": text,
        "data-dir": st.one_of(st.just(""), text),
        "num-clients": st.integers(1, 10**6),
        "seed": st.integers(0, 2**63 - 1),
        "eval-every": st.integers(0, 100),
    },
)


@given(settings_drawn)
def test_flat_round_trip(values):
    config = Config.from_flat(values)
    flat = config.to_flat()
    assert list(flat) == known_keys()
    assert {key: flat[key] for key in values} == values
    assert Config.from_flat(flat) == config


@given(settings_drawn)
def test_toml_round_trip(tmp_path_factory, values):
    config = Config.from_flat(values)
    path = tmp_path_factory.getbasetemp() / "config.toml"
    path.write_text(tomli_w.dumps(config.to_flat()), encoding="utf-8", newline="\n")
    assert Config.from_flat(read_toml(path)) == config


@given(settings_drawn)
def test_assignments_round_trip(values):
    quoted = [f"{key}={tomli_w.dumps({'x': value})[4:].strip()}" for key, value in values.items()]
    assert Config.from_flat(parse_assignments(quoted)) == Config.from_flat(values)


def test_the_defaults_are_the_whole_flat_form():
    flat = Config.from_flat({}).to_flat()
    assert list(flat) == known_keys()
    assert all(isinstance(value, bool | int | float | str) for value in flat.values())
    assert flat["method"] == "norm-ef21-sgdm"
    assert flat["k"] == ""
    assert "k-fraction" in flat


@pytest.mark.parametrize("name", Config.model_fields)
def test_every_key_is_described_in_kebab_case(name):
    field = Config.model_fields[name]
    assert field.description
    assert "\n" not in field.description
    assert name.replace("_", "-") in known_keys()
    assert not field.is_required()


def test_an_empty_text_means_not_set():
    config = Config.from_flat({"k": "", "data-dir": "", "instance": "", "initial-point": ""})
    assert (config.k, config.data_dir, config.instance, config.initial_point) == (None,) * 4
    assert config == Config.from_flat({})
    assert Config.from_flat({"k": 3}).k == 3
    with pytest.raises(ConfigError, match="num-clients: "):
        Config.from_flat({"num-clients": ""})


def test_frozen_and_hashable():
    config = Config.from_flat({"k": 3})
    assert hash(config) == hash(Config.from_flat({"k": 3}))
    assert len({config, Config.from_flat({"k": 3}), Config.from_flat({"k": 4})}) == 2
    with pytest.raises(ValueError, match="frozen"):
        config.k = 4
    assert config.k == 3


def test_flower_s_run_config_says_where_the_folder_is():
    assert Config.from_run_config({OUT_KEY: "runs/x", "k": 2}) == Config.from_flat({"k": 2})
    with pytest.raises(ConfigError, match="unknown key 'out'"):
        Config.from_flat({OUT_KEY: "runs/x"})


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("step-sze", "step-size"),
        ("num-round", "num-rounds"),
        ("k_fraction", "k-fraction"),
        ("dirichlet-alfa", "dirichlet-alpha"),
        ("sede", "seed"),
    ],
)
def test_an_unknown_key_names_the_nearest(key, nearest):
    with pytest.raises(ConfigError) as caught:
        Config.from_flat({key: 1})
    assert str(caught.value) == f"unknown key {key!r}; did you mean {nearest!r}?"


def test_a_key_near_none_points_to_the_list():
    with pytest.raises(ConfigError, match=r"^unknown key 'zzzz'; see 'fedef keys'"):
        Config.from_flat({"zzzz": 1})


REFUSED = [
    ("step-size", NAN, "finite number"),
    ("step-size", INF, "finite number"),
    ("step-size", 0.0, "greater than 0"),
    ("step-size", -1, "greater than 0"),
    ("step-size", "fast", "valid number"),
    ("step-size", "", "valid number"),
    ("k", 0, "greater than or equal to 1"),
    ("k", -3, "greater than or equal to 1"),
    ("k", 1.5, "valid integer"),
    ("k", "ten", "valid integer"),
    ("k-fraction", 0, "greater than 0"),
    ("k-fraction", 1.01, "less than or equal to 1"),
    ("k-fraction", NAN, "finite number"),
    ("momentum-eta", 0, "greater than 0"),
    ("momentum-eta", 1.5, "less than or equal to 1"),
    ("method", "ef14", "'ef21', 'norm-ef21', 'ef21-sgdm'"),
    ("compressor", "topk", "'identity', 'top-k' or 'rand-k'"),
    ("value-format", "int8", "'float16'"),
    ("local-batch-size", -1, "greater than or equal to 0"),
    ("num-clients", 0, "greater than or equal to 1"),
    ("num-clients", [3], "valid integer"),
    ("num-rounds", 0, "greater than or equal to 1"),
    ("num-rounds", None, "valid integer"),
    ("participation", 0, "greater than 0"),
    ("participation", 1.5, "less than or equal to 1"),
    ("dirichlet-alpha", -0.1, "greater than 0"),
    ("min-partition-size", -1, "greater than or equal to 0"),
    ("regularization", -1e-9, "greater than or equal to 0"),
    ("seed", -1, "greater than or equal to 0"),
    ("seed", 2**63, "less than 9223372036854775808"),
    ("eval-every", -1, "greater than or equal to 0"),
    ("data", 3, "valid string"),
    ("l1", {"a": 1}, "valid number"),
    ("method", "ef21\nef22", "'ef21', 'norm-ef21', 'ef21-sgdm'"),
]


@pytest.mark.parametrize(("key", "got", "allowed"), REFUSED)
def test_a_bad_value_gives_one_line_with_key_got_and_allowed(key, got, allowed):
    with pytest.raises(ConfigError) as caught:
        Config.from_flat({key: got})
    message = str(caught.value)
    assert message.startswith(f"{key}: ")
    assert allowed in message
    assert f"got {got!r}" in message
    assert Config.model_fields[key.replace("-", "_")].description in message
    assert "\n" not in message
    assert "pydantic" not in message


def test_several_bad_values_are_all_named_on_one_line():
    with pytest.raises(ConfigError) as caught:
        Config.from_flat({"seed": -1, "k": 0})
    message = str(caught.value)
    assert "seed: " in message
    assert "k: " in message
    assert "\n" not in message


# --- assignments and files -----------------------------------------------------------------------


def test_assignments_are_toml_values_or_text():
    assert parse_assignments(
        ["k=10", "step-size=1e-3", "method=ef21", "data='a=b'", "data-dir=", "x=true", "y=a=b"]
    ) == {
        "k": 10,
        "step-size": 1e-3,
        "method": "ef21",
        "data": "a=b",
        "data-dir": "",
        "x": True,
        "y": "a=b",
    }
    assert parse_assignments([]) == {}


@pytest.mark.parametrize("item", ["k", "=3", "", "num-rounds 5"])
def test_what_is_not_an_assignment_is_refused(item):
    with pytest.raises(ConfigError) as caught:
        parse_assignments(["seed=1", item])
    assert str(caught.value) == f"expected key=value, got {item!r}; for example num-rounds=50"


def test_files_that_cannot_be_read_are_named(tmp_path):
    missing = tmp_path / "none.toml"
    with pytest.raises(ConfigError, match=r"config file '.*none.toml': No such file"):
        read_toml(missing)
    with pytest.raises(ConfigError, match="config file"):
        read_toml(tmp_path)
    for content in (b"k = ", b"\xff\xfe", b"k = 1\nk = 2\n"):
        damaged = tmp_path / "damaged.toml"
        damaged.write_bytes(content)
        with pytest.raises(ConfigError, match=r"'.*damaged.toml' is not valid TOML"):
            read_toml(damaged)
