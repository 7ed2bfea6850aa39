"""Every YAML composes, builds and is listed; every bad value is refused in one line that names the fix."""

import copy
import inspect
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given as drawn
from hypothesis import strategies as st
from torch import nn

from optimeter.conf import CONF
from optimeter.conf.check import check, check_name
from optimeter.conf.compose import MANDATORY, check_mappings, given, name_others
from optimeter.measure.jobs.build import (
    CARRIED_OUT,
    LISTED,
    PEERS,
    accepted,
    build_measure,
    check_arguments,
    optimizer_builder,
    resolve,
)
from optimeter.measure.jobs.child import make
from optimeter.measure.jobs.outcomes import Refused, Unsupported, nearest
from optimeter.measure.jobs.parts import ABOUT, about, arguments
from optimeter.measure.jobs.sources import identity
from optimeter.workloads.core.workload import NoTask
from tests.conftest import PROJECT, composed, names

OPTIMIZERS = [name for name in names("optimizer") if name != "any"]
ALIASES = [f"hf/{name}" for name in names("optimizer/hf")]
WORKLOADS = [name for name in names("workload") if name != "any"]


@cache
def rivals() -> set[str]:
    """The distributions of the extra `peers`."""
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return {requirement.partition(">")[0] for requirement in extras["peers"]}


@pytest.mark.parametrize("name", OPTIMIZERS + ALIASES)
def test_every_optimizer_composes_and_builds(name: str) -> None:
    config = composed(f"optimizer={name}")
    check(config)
    spec = config["optimizer"]
    assert spec["_target_"].startswith(LISTED)
    assert spec["_partial_"] is True
    assert spec["_convert_"] == "all"
    assert set(spec.get("about", {})) <= set(ABOUT)
    cls = resolve("optimizer", spec, listed_only=True)
    check_arguments("optimizer", cls, spec)
    optimizer = optimizer_builder(spec)([("weight", nn.Parameter(torch.ones(3, 2)))])
    assert isinstance(optimizer, torch.optim.Optimizer)
    top = spec["_target_"].partition(".")[0]
    if about(spec)["package"] in rivals():
        assert about(spec)["package"] == PEERS[top]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_our_yaml_has_every_argument_of_the_constructor(name: str) -> None:
    spec = composed(f"optimizer={name}")["optimizer"]
    if not spec["_target_"].startswith("optimeter.optimizers."):
        return
    known = accepted(inspect.signature(resolve("optimizer", spec)).parameters)
    assert known is not None
    assert set(arguments(spec)) == known - {"params"}


def test_aliases_are_hf_trainers_names() -> None:
    from transformers.training_args import OptimizerNames

    known = {name.value for name in OptimizerNames}
    assert {name.removeprefix("hf/") for name in ALIASES} <= known


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_composes_and_builds(name: str) -> None:
    from optimeter.measure.jobs.build import build_workload

    config = composed(f"workload={name}")
    check(config)
    workload = build_workload(config["workload"], listed_only=True)
    assert workload.steps == config["steps"] > 0


@pytest.mark.parametrize("name", names("experiment"))
def test_every_experiment_is_a_sweep(name: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra_compose("bench", [f"experiment={name}"], return_hydra_config=True)
    assert config.hydra.mode.name == "MULTIRUN"
    assert config.hydra.sweeper.params


def test_the_sweep_over_ours_takes_every_one_of_them() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra_compose("bench", ["experiment=ours"], return_hydra_config=True)
    sweep = OverridesParser.create().parse_override(f"optimizer={config.hydra.sweeper.params.optimizer}").value()
    targets = {name: composed(f"optimizer={name}")["optimizer"]["_target_"] for name in OPTIMIZERS}
    ours = {name for name, target in targets.items() if target.startswith("optimeter.optimizers.")}
    assert set(sweep.filter(names("optimizer"))) == ours - {"sparse_adam", "torch_muon"} | {"torch_adamw"}


@pytest.mark.parametrize("name", names("measure"))
def test_every_measure_is_known(name: str) -> None:
    config = composed(f"measure={name}") | {"choices": {}}
    name_others(config)
    check(config)
    spec = config["measure"]
    cls = resolve("measure", spec, listed_only=True)
    check_arguments("measure", cls, spec)
    known = accepted(inspect.signature(cls).parameters)
    assert set(arguments(spec)) - set(CARRIED_OUT) == known, "a YAML has every argument of the constructor"
    assert isinstance(build_measure(spec), cls)


ROLES = [
    ({"optimizer": "adam"}, "a role must not be called optimizer"),
    ({"baseline": 3}, "measure.optimizers.baseline must be the name of an optimizer, not 3"),
    ("adam", "measure.optimizers must be roles"),
    ({"baseline": "adamm"}, "baseline: optimizer=adamm: no such optimizer; did you mean adam?"),
    ({"baseline": "any"}, "baseline=any names no class"),
]


@pytest.mark.parametrize(("roles", "words"), ROLES, ids=str)
def test_further_optimizers_are_names_in_roles(roles: Any, words: str) -> None:
    config = composed("measure=train") | {"choices": {}}
    config["measure"]["optimizers"] = roles
    with pytest.raises(Refused, match=words.replace("(", r"\(").replace("?", r"\?")):
        name_others(config)
        check(config)


@pytest.mark.parametrize(
    ("name", "optimizers", "words"),
    [
        ("step", None, "measure.optimizers.baseline must be given"),
        ("step", {"baseline": "adam", "more": "adam"}, "measure.optimizers.more: Step takes no such optimizer"),
        ("train", {"baseline": "adam"}, "measure.optimizers.baseline: Train takes no such optimizer"),
    ],
)
def test_a_measure_is_given_the_optimizers_that_it_needs(name: str, optimizers: Any, words: str) -> None:
    spec = composed(f"measure={name}")["measure"] | {"optimizers": optimizers}
    with pytest.raises(Refused, match=words):
        build_measure(spec)


def test_what_a_yaml_leaves_open_must_be_given() -> None:
    assert given("optimizer.", {"_target_": MANDATORY, "lr": 1}, "mine") == {"lr": 1}
    assert given("optimizer.", {"_target_": "torch.optim.SGD", "lr": MANDATORY}, "any") == {
        "_target_": "torch.optim.SGD"
    }
    for spec, path in (({"lr": MANDATORY}, "lr"), ({"about": {"package": MANDATORY}}, "about.package")):
        with pytest.raises(Refused, match=f"^optimizer.{path} must be given$"):
            given("optimizer.", spec, "mine")


def test_a_yaml_that_holds_a_list_is_refused() -> None:
    with pytest.raises(Refused, match="measure must be keys with values"):
        check_mappings({"optimizer": {}, "workload": {}, "measure": [1]})


MEASURES = [
    ("train", "sample_every", 0, "measure.sample_every must be auto or a whole number of at least 1, not 0"),
    ("step", "delta", 2, "measure.delta must be a number above 0 and below 1, not 2"),
    ("step", "seconds", "long", "measure.seconds must be a number above 0, not 'long'"),
    ("overhead", "pairs", 3, "measure.pairs must be a whole number of at least 4, not 3"),
]


@pytest.mark.parametrize(("name", "argument", "value", "words"), MEASURES)
def test_a_bad_argument_of_a_measure_is_refused(name: str, argument: str, value: Any, words: str) -> None:
    spec = composed(f"measure={name}")["measure"]
    with pytest.raises(Refused) as refusal:
        build_measure(spec | {argument: value})
    assert str(refusal.value) == words


BAD = [
    ("steps", 0, "steps must be a whole number of at least 1, not 0"),
    ("steps", True, "whole number"),
    ("seed", -1, "seed must be"),
    ("device", "", "device must be a name, not ''"),
    ("dtype", "int8", "dtype must be one of"),
    ("schedule", "step", "constant, linear, cosine"),
    ("warmup_steps", 5000, "warmup_steps=5000 is more than steps=1000"),
    ("clip_norm", 0, "clip_norm must be a number above 0, or null"),
    ("accumulate", 0, "accumulate must be"),
    ("limit_seconds", -3, "limit_seconds must be"),
    ("limit_seconds", float("inf"), "limit_seconds must be"),
    ("seed", 1 << 63, "below 2⁶³"),
    ("workload.target", "abc", "workload.target must be a number, or null"),
    ("rerun", "yes", "true or false"),
    ("name", "../x", "no slash"),
    ("name", "", "1 to 60 characters"),
    ("name", ".hidden", "no dot in front"),
    ("name", "a\nb", "control character"),
    ("optimizer.lr", -1, "optimizer.lr must be a number of at least 0, not -1"),
    ("optimizer.lr", "fast", "optimizer.lr must be"),
    ("optimizer.betas", {"_target_": "os.system"}, "optimizer.betas._target_: a class inside"),
    ("optimizer.about", {"gradient": "dense"}, "did you mean gradients?"),
    ("optimizer.about", 5, "optimizer.about must be keys with values, not 5"),
    ("optimizer.about", ["closure"], "optimizer.about must be keys with values"),
    ("optimizer.about", {"parameters": "all"}, "optimizer.about.parameters must be one of plain, named, not 'all'"),
    ("optimizer.about", {"closure": "yes"}, "optimizer.about.closure must be true or false, not 'yes'"),
    ("optimizer.about", {"gradients": "thick"}, "must be one of dense, sparse, both, not 'thick'"),
    ("optimizer.about", {"hessian_every": 0}, "optimizer.about.hessian_every must be a whole number of at least 1"),
    ("optimizer.about", {"roles": {"state": 3}}, "optimizer.about.roles must be a mapping"),
    ("optimizer.about", {"roles": None}, "optimizer.about.roles must be a mapping"),
    ("optimizer.about", {"package": 3}, "optimizer.about.package must be a name, or null, not 3"),
    ("workload.about", {"closure": True}, "workload.about.closure: no such key"),
    ("measure.about", {"foo": 1}, "measure.about.foo: no such key"),
]


@pytest.mark.parametrize(("path", "value", "words"), BAD, ids=lambda value: str(value)[:30])
def test_a_bad_value_is_refused_with_its_fix(path: str, value: Any, words: str) -> None:
    config = composed()
    target: dict[str, Any] = config
    *parents, last = path.split(".")
    for key in parents:
        target = target[key]
    target[last] = value
    with pytest.raises(Refused) as refusal:
        check(config)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@drawn(st.text(max_size=70))
def test_a_name_that_passes_is_one_folder(name: str) -> None:
    from optimeter.measure.records.naming import slug

    try:
        check_name(name)
    except Refused:
        return
    root = Path("/somewhere/runs")
    assert (root / slug(name)).parent == root


TARGETS = [
    ("os.system", "not a subclass of torch.optim.Optimizer"),
    ("torch.load", "not a subclass"),
    ("torch.optim", "not a subclass"),
    ("torch.nn.Linear", "not a subclass"),
    ("torch.optim.AdamWW", "did you mean AdamW?"),
    ("nowhere.Thing", "there is no module nowhere"),
    ("optimizers.Mine", "there is no module optimizers; pip install it, or run where its file is"),
    ("optimizers.AdamW", "there is no module optimizers; ours is optimeter.optimizers.AdamW"),
    ("Adam", "not a dotted path"),
    ("torch.optim.Adam()", "not a dotted path"),
]


@pytest.mark.parametrize(("target", "words"), TARGETS)
def test_a_target_must_be_an_optimizer(target: str, words: str) -> None:
    with pytest.raises(Refused, match=words.replace("(", r"\(")):
        resolve("optimizer", {"_target_": target})


def test_a_replayed_configuration_names_listed_packages_only() -> None:
    resolve("optimizer", {"_target_": "torch.optim.RAdam"}, listed_only=True)
    with pytest.raises(Refused, match="replayed"):
        resolve("optimizer", {"_target_": "my_package.MyOpt"}, listed_only=True)


def test_a_missing_package_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unsupported, match="pip install gone-package"):
        resolve("optimizer", {"_target_": "gone.Opt", "about": {"package": "gone-package"}})
    monkeypatch.setitem(PEERS, "gone", "gone-optimizers")
    with pytest.raises(Unsupported, match="pip install gone-optimizers"):
        resolve("optimizer", {"_target_": "gone.Opt"})


ENDINGS = [
    (Unsupported("pip install it"), "unsupported"),
    (NoTask("bare shapes"), "unsupported"),
    (NotImplementedError("\"add_stub\" not implemented for 'UInt16'"), "error"),  # a kernel that torch lacks
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "oom"),
    (RuntimeError("CUDA error: out of memory"), "oom"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "oom"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "oom"),
    (RuntimeError("CUDA error: device-side assert triggered"), "error"),
]


@pytest.mark.parametrize(("error", "status"), ENDINGS, ids=lambda x: str(x)[:20])
def test_how_a_run_that_raises_ends(
    error: Exception, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise error

    monkeypatch.setattr("optimeter.measure.jobs.child._measure", fails)
    assert make({}, tmp_path, lambda news: None).status == status


def test_an_import_that_fails_inside_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(Unsupported, match="not_there_at_all"):
        resolve("optimizer", {"_target_": "needs_more.Opt"})


def test_unknown_and_missing_arguments_are_named() -> None:
    adam = {"_target_": "torch.optim.Adam", "lrr": 1}
    with pytest.raises(Refused, match=r"optimizer\.lrr: Adam takes no such argument; did you mean lr\?"):
        check_arguments("optimizer", torch.optim.Adam, adam)

    class Needs(torch.optim.SGD):
        def __init__(self, params: Any, radius: float) -> None: ...

    with pytest.raises(Refused, match=r"optimizer\.radius must be given"):
        check_arguments("optimizer", Needs, {"_target_": "x.Needs"})


def test_an_edit_changes_the_identity_and_a_copy_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_helper.py").write_text("FACTOR = 1\n")
    code = "import torch\nfrom my_helper import FACTOR\nclass Mine(torch.optim.SGD): pass\n"
    (tmp_path / "my_opt_identity.py").write_text(code)
    spec = {"_target_": "my_opt_identity.Mine"}
    before = identity("optimizer", spec)
    assert set(before["sources"]) == {"my_opt_identity", "my_helper"}
    assert identity("optimizer", copy.deepcopy(spec)) == before
    (tmp_path / "my_helper.py").write_text("FACTOR = 2\n")
    assert identity("optimizer", spec) != before


def test_identities_of_ours_and_of_installed_packages() -> None:
    ours = identity("optimizer", {"_target_": "optimeter.optimizers.AdamW"})
    assert set(ours["sources"]) >= {
        "optimeter.optimizers.adamw",
        "optimeter.optimizers.adam",
        "optimeter.optimizers.core.shell",
        "optimeter.optimizers.core.storage",
    }
    assert "optimeter.optimizers.adafactor" not in ours["sources"]
    theirs = identity("optimizer", {"_target_": "torch.optim.AdamW"})
    assert theirs["sources"] == {}
    assert theirs["package"] == f"torch {torch.__version__}"
    digits = identity("workload", {"_target_": "optimeter.workloads.MLP"})
    assert digits["shaped_by"] == digits["follows"] == []
    assert list(digits["data"]) == ["sklearn/datasets/data/digits.csv.gz"]


def test_nearest_names() -> None:
    assert nearest("adamm", ["adam", "sgd"]) == "; did you mean adam?"
    assert nearest("zzz", ["adam", "sgd"]) == "; there are adam, sgd"
    assert nearest("zzz", [f"name{i}" for i in range(20)]) == ""


@pytest.mark.parametrize(("optimizer", "sparse"), [("adam", False), ("sparse_adam", True), ("torch_sgd", False)])
def test_the_embeddings_gradients_follow_the_optimizer(optimizer: str, sparse: bool) -> None:
    composition = f"optimizer={optimizer}", "workload=embedding"
    assert composed(*composition)["workload"]["sparse"] is sparse
    assert composed(*composition, "workload.sparse=true")["workload"]["sparse"] is True
