"""The contract: JSON in both directions, errors that say what was expected, and the decision rules."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from retina.runtime.contract import Contract, Preprocessing, Rule, decide, default_thresholds
from retina.runtime.errors import ModelFileError
from retina.runtime.prediction import Prediction

CONTRACT = Contract(
    Preprocessing(framing="squash", image_size=256), dr_grades=(0, 1, 3), precision="int8", explain=True,
    provenance={"run": "a", "nested": {"x": 1.5}}, parity={"images": 3},
)  # fmt: skip
AT_LEAST = {"rule": "at_least", "threshold": 0.5}
RULES = {"dr": {"rule": "argmax"}, "me": {"rule": "argmax"}, "referable_dr": AT_LEAST, "referable_me": AT_LEAST}


def test_json_both_ways() -> None:
    assert Contract.from_json(CONTRACT.to_json()) == CONTRACT
    never = replace(CONTRACT, provenance={"untrained_heads": ["dr"]})
    assert Contract.from_json(never.to_json()) == never
    body = json.loads(CONTRACT.to_json())
    assert body["input"] == {
        "name": "image", "dtype": "uint8", "shape": ["N", "H", "W", 3], "colour": "RGB", "min_side": 32,
    }  # fmt: skip
    assert body["outputs"][0] == {"name": "dr_probs", "dtype": "float32", "shape": ["N", 3]}
    assert body["dr_grades"] == [0, 1, 3]
    assert body["thresholds"]["referable_dr"] == {"rule": "at_least", "threshold": 0.5, "from_grade": 2}


def test_novelty_is_promised_where_there_is_a_level() -> None:
    told = replace(CONTRACT, explain=True, unfamiliar_from=10)
    assert told.output_names == [*replace(CONTRACT, explain=True).output_names, "novelty"]
    body = json.loads(told.to_json())
    assert body["unfamiliar_from"] == 10.0
    assert Contract.from_json(told.to_json()) == told
    assert "unfamiliar_from" not in json.loads(CONTRACT.to_json())
    body["outputs"].append({"name": "later", "dtype": "float32", "shape": ["N"]})
    assert Contract.from_json(json.dumps(body)) == told
    probs = np.array([0.2, 0.35, 0.45]), np.array([0.6, 0.4])
    for novelty, unfamiliar in ((9.99, False), (10.0, True), (None, None)):
        assert Prediction.of(told, *probs, novelty=novelty).unfamiliar is unfamiliar


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema: expected 1, found 2"),
        ({"schema": None}, "schema: expected 1, found None"),
        ({"schema": "1"}, "schema: expected 1, found '1'"),
        ({"caution": ["Old."]}, 'caution: expected text, found ["Old."]'),
        ({"caution": "\ud800"}, "caution: expected Unicode text, found '\\ud800'"),
        ({"dr_grades": [0, 0, 1]}, "dr_grades: expected two or more grades from 0 to 4 in rising order"),
        ({"dr_grades": "abc"}, "dr_grades"),
        ({"dr_grades": [False, True, 3]}, "dr_grades: expected two or more grades from 0 to 4 in rising order"),
        ({"schema": True}, "schema: expected 1, found True"),
        ({"schema": 1.0}, "schema: expected 1, found 1.0"),
        ({"dr_grades": [-1, 0, 1]}, "dr_grades: expected two or more grades from 0 to 4 in rising order"),
        ({"dr_grades": [0, 1, 5]}, "dr_grades: expected two or more grades from 0 to 4 in rising order"),
        ({"me_labels": ["risk", "no risk"]}, 'me_labels: expected ["no risk", "risk"], found ["risk", "no risk"]'),
        ({"me_labels": "ab"}, 'me_labels: expected ["no risk", "risk"], found ab'),
        ({"me_labels": [0, 1]}, 'me_labels: expected ["no risk", "risk"], found [0, 1]'),
        ({"explain": "no"}, "explain: expected true or false, found no"),
        ({"unfamiliar_from": 0}, "unfamiliar_from: expected a number above 0, found 0"),
        ({"unfamiliar_from": "10"}, "unfamiliar_from: expected a number above 0, found '10'"),
        ({"unfamiliar_from": True}, "unfamiliar_from: expected a number above 0, found True"),
        ({"unfamiliar_from": 10**400}, "unfamiliar_from: expected a number above 0, found 1000"),
        ({"unfamiliar_from": 10}, "outputs: expected"),
        ({"provenance": None}, "provenance: expected an object, found None"),
        ({"parity": 3}, "parity: expected an object, found 3"),
        ({"precision": "fp16"}, "precision: expected fp32 or int8, found fp16"),
        ({"thresholds": {}}, "thresholds: expected rules for dr, me, referable_dr, referable_me"),
        ({"input": {"name": "x"}}, "input: expected"),
        ({"outputs": []}, "outputs: expected"),
        (
            {"thresholds": RULES | {"dr": {"rule": "at_least", "threshold": 0.5}}},
            "thresholds.dr: expected the rule argmax",
        ),
        (
            {"thresholds": RULES | {"referable_dr": {"rule": "argmax"}}},
            "thresholds.referable_dr: expected the rule at_least, found argmax",
        ),
        (
            {"thresholds": RULES | {"referable_me": {"rule": "argmax"}}},
            "thresholds.referable_me: expected the rule at_least, found argmax",
        ),
        (
            {"thresholds": RULES | {"referable_dr": AT_LEAST | {"from_grade": "2"}}},
            "from_grade: expected a whole number",
        ),
        (
            {"thresholds": RULES | {"referable_dr": AT_LEAST | {"from_grade": True}}},
            "from_grade: expected a whole number",
        ),
        (
            {"thresholds": RULES | {"referable_dr": AT_LEAST | {"from_grade": 5}}},
            "from_grade: expected a whole number from 0 to 4, found 5",
        ),
        (
            {"thresholds": RULES | {"referable_dr": AT_LEAST | {"from_grade": -1}}},
            "from_grade: expected a whole number from 0 to 4, found -1",
        ),
        ({"thresholds": RULES | {"me": {"rule": "argmax", "threshold": "0.5"}}}, "threshold: expected a number"),
        (
            {"thresholds": RULES | {"me": AT_LEAST | {"threshold": "0.5"}}},
            "threshold: expected a number from 0 to 1, found '0.5'",
        ),
        ({"thresholds": RULES | {"me": AT_LEAST | {"threshold": True}}}, "threshold: expected a number"),
        ({"thresholds": RULES | {"me": AT_LEAST | {"threshold": 2}}}, "threshold: expected a number"),
        ({"thresholds": RULES | {"me": []}}, "cannot be read"),
        ({"thresholds": RULES | {"me": {"threshold": 0.5}}}, "cannot be read: 'rule'"),
        ({"thresholds": RULES | {"me": AT_LEAST | {"threshold": -0.1}}}, "threshold: expected a number"),
        ({"thresholds": RULES | {"me": {"rule": "above"}}}, "rule: expected argmax or at_least, found above"),
        ({"dr_grades": [0]}, "dr_grades: expected two or more grades from 0 to 4 in rising order"),
        ({"dr_grades": [3, 1, 0]}, "dr_grades: expected two or more grades from 0 to 4 in rising order"),
        ({"preprocessing": {"framing": "crop"}}, "cannot be read"),
    ],
)
def test_what_is_no_contract_is_refused(change: dict[str, Any], message: str) -> None:
    body = {**json.loads(CONTRACT.to_json()), **change}
    with pytest.raises(ModelFileError, match=re.escape(message)) as caught:
        Contract.from_json(json.dumps(body), source="model.onnx")
    assert str(caught.value).startswith("model.onnx: contract")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"framing": "crop"}, "framing: expected field or squash, found crop"),
        ({"surround": "white"}, "surround: expected black or kept, found white"),
        ({"resize": "nearest"}, "resize: expected bilinear-antialias, found nearest"),
        ({"exif_orientation": "ignored"}, "exif_orientation: expected applied, found ignored"),
        ({"mean": [0.5, 0.5]}, "mean: expected three numbers"),
        ({"mean": "abc"}, "mean: expected three numbers"),
        ({"mean": [0.5, 0.5, True]}, "mean: expected three numbers"),
        ({"mean": [0.5, 0.5, 10**400]}, "mean: expected three numbers"),
        ({"std": [0.2, 0.2, 0.0]}, "std: expected three numbers above 0"),
        ({"std": [0.2, 0.2, float("inf")]}, "std: expected three numbers above 0"),
        ({"image_size": 31}, "image_size: expected a whole number from 32 to 4096, found 31"),
        ({"image_size": 4097}, "image_size: expected a whole number from 32 to 4096, found 4097"),
        ({"image_size": 10**400}, "image_size: expected a whole number from 32 to 4096, found 1000"),
        ({"image_size": 256.0}, "image_size: expected a whole number from 32 to 4096, found 256.0"),
    ],
)
def test_preprocessing_that_nobody_does_is_refused(change: dict[str, Any], message: str) -> None:
    body = json.loads(CONTRACT.to_json())
    body["preprocessing"] |= change
    with pytest.raises(ModelFileError, match=f"contract preprocessing.{message}"):
        Contract.from_json(json.dumps(body))


def test_the_square_that_a_photograph_is_first_resized_to_by_hand() -> None:
    assert Preprocessing("field", 97).intermediate_size == 146  # 145.5, and never less
    assert Preprocessing("squash", 97).intermediate_size == 97
    assert Preprocessing("field", 4096).intermediate_size == 6144


@pytest.mark.parametrize("name", ["provenance", "parity"])
@pytest.mark.parametrize(
    "odd",
    [float("nan"), float("-inf"), "\ud800", {"\udfff": 1}, json.loads(150 * "[" + 150 * "]")],
    ids=["NaN", "infinity", "half a character", "half a character as key", "nested"],
)
def test_what_other_readers_of_json_refuse_is_neither_read_nor_written(name: str, odd: object) -> None:
    """With NaN a browser's JSON.parse refuses the whole file; the service could send none of it."""
    change: dict[str, Any] = {name: {"x": odd}}
    expected = rf"{name}: expected finite numbers and Unicode text, nested up to 100 times, found \{{'x': "
    with pytest.raises(ModelFileError, match=expected):
        replace(CONTRACT, **change)
    body = json.loads(CONTRACT.to_json()) | change
    with pytest.raises(ModelFileError, match=f"^the contract: contract {expected}"):
        Contract.from_json(json.dumps(body))
    ignored = json.loads(CONTRACT.to_json()) | {"surprise": odd}
    assert Contract.from_json(json.dumps(ignored)) == CONTRACT


def test_what_a_file_records_comes_back_as_it_was() -> None:
    recorded = {"run": "\U0001f441 \u00fc\n", "count": 10**400, "deep": [{"a": [None, True, -1.5]}]}
    assert Contract.from_json(replace(CONTRACT, provenance=recorded).to_json()).provenance == recorded


def test_what_a_later_version_adds_is_ignored() -> None:
    body = json.loads(CONTRACT.to_json())
    body["outputs"].insert(1, {"name": "quality", "dtype": "float32", "shape": ["N"]})
    body["thresholds"]["quality"] = {"rule": "between"}
    for part in (body, body["input"], body["outputs"][0], body["preprocessing"], body["thresholds"]["me"]):
        part["surprise"] = 1
    assert Contract.from_json(json.dumps(body)) == CONTRACT


@pytest.mark.parametrize("key", ["input", "outputs", "dr_grades", "explain", "parity", "preprocessing"])
def test_what_is_missing_is_refused(key: str) -> None:
    body = json.loads(CONTRACT.to_json())
    del body[key]
    with pytest.raises(ModelFileError, match=rf"contract (fields|{key}): expected"):
        Contract.from_json(json.dumps(body))


@pytest.mark.parametrize("threshold", [0, 1])
def test_a_threshold_may_be_written_as_a_whole_number(threshold: int) -> None:
    body = json.loads(CONTRACT.to_json()) | {"thresholds": RULES | {"me": {"rule": "at_least", "threshold": threshold}}}
    assert Contract.from_json(json.dumps(body)).thresholds["me"] == Rule("at_least", float(threshold))


@pytest.mark.parametrize("text", ["", "{", "[]", "1"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ModelFileError, match=r"model\.onnx: expected a contract"):
        Contract.from_json(text, source="model.onnx")


def test_decisions_by_hand() -> None:
    """With grades 0, 1, 3: grade 2 or worse is referable, so only the last index."""
    decision = decide(CONTRACT, np.array([0.2, 0.35, 0.45]), np.array([0.6, 0.4]))
    assert (decision.grade, decision.me_risk, decision.referable) == (3, 0, False)
    assert decision.referable_prob == pytest.approx(0.45)
    screening = replace(
        CONTRACT,
        thresholds=default_thresholds() | {"me": Rule("at_least", 0.3), "referable_dr": Rule("at_least", 0.45, 1)},
    )
    decision = decide(screening, np.array([0.5, 0.25, 0.25]), np.array([0.6, 0.4]))
    assert (decision.grade, decision.me_risk, decision.referable) == (0, 1, True)
    assert decision.referable_prob == pytest.approx(0.5)


def test_a_probability_that_equals_its_threshold_is_a_yes() -> None:
    """At 0.5, which is exact in binary, a photograph is referred, as the rule ``at_least`` says."""
    even = replace(
        CONTRACT,
        thresholds=default_thresholds() | {"me": Rule("at_least", 0.5), "referable_dr": Rule("at_least", 0.5, 1)},
    )
    decision = decide(even, np.array([0.5, 0.25, 0.25]), np.array([0.5, 0.5]))
    assert (decision.me_risk, decision.referable, decision.referable_me) == (1, True, True)
    below = np.nextafter(np.float32(0.5), np.float32(0))
    decision = decide(even, np.array([1 - below, 0, below]), np.array([1 - below, below]))
    assert (decision.me_risk, decision.referable, decision.referable_me) == (0, False, False)


def test_argmax_at_even_odds_is_no_risk_and_knows_no_threshold() -> None:
    assert Rule().level == 0.5
    two_grades = Contract(dr_grades=(0, 3), thresholds=default_thresholds() | {"me": Rule("argmax", 0.3)})
    for me_prob in (0.4, 0.5):
        assert decide(two_grades, np.array([0.5, 0.5]), np.array([1 - me_prob, me_prob])).me_risk == 0


def test_referable_is_grade_2_or_worse_where_the_rule_names_none() -> None:
    unnamed = Contract(thresholds=default_thresholds() | {"referable_dr": Rule("at_least", 0.5)})
    decision = decide(unnamed, np.array([0.25, 0.375, 0.25, 0.125, 0.0]), np.array([0.9, 0.1]))
    assert (decision.referable, decision.referable_prob) == (False, 0.375)


def test_referable_from_grade_0_on_is_everybody() -> None:
    everybody = Contract(thresholds=default_thresholds() | {"referable_dr": Rule("at_least", 0.5, from_grade=0)})
    assert everybody.referable_from == 0
    assert decide(everybody, np.array([0.75, 0.25, 0, 0, 0]), np.array([0.9, 0.1])).referable_prob == 1


def test_rule_needs_a_threshold() -> None:
    with pytest.raises(ModelFileError, match="threshold: expected a number from 0 to 1, found None"):
        Rule("at_least")


def test_a_file_that_says_nothing_of_the_surround_keeps_it() -> None:
    body = json.loads(Contract(Preprocessing(image_size=256)).to_json())
    assert body["preprocessing"].pop("surround") == "black"
    assert Contract.from_json(json.dumps(body)).preprocessing == Preprocessing(image_size=256, surround="kept")
    assert Preprocessing(framing="squash").surround == "kept"


def test_a_file_of_a_later_version_asks_for_that_version() -> None:
    body = json.loads(CONTRACT.to_json()) | {"schema": 2}
    with pytest.raises(ModelFileError, match="A later version of retina-edge made the file: upgrade to it"):
        Contract.from_json(json.dumps(body))
    with pytest.raises(ModelFileError, match=r"expected 1, found 0\. Export the model again with this version"):
        Contract.from_json(json.dumps(body | {"schema": 0}))


def test_a_long_value_is_cut_in_a_message() -> None:
    body = json.loads(CONTRACT.to_json()) | {"precision": "x" * 1000}
    with pytest.raises(ModelFileError, match=rf"found {'x' * 200}\.{{4}} Export"):
        Contract.from_json(json.dumps(body))


@pytest.mark.parametrize(
    ("recorded", "caution"),
    [
        (["me", "dr"], "The model was never trained for DR and ME: what it says about DR and ME means nothing."),
        (["me"], "The model was never trained for ME: what it says about ME means nothing."),
        (["other"], ""),
        ("dr", ""),
        (None, ""),
    ],
)
def test_what_a_model_was_never_trained_for_is_said_once_for_each_head(recorded: object, caution: str) -> None:
    contract = replace(CONTRACT, provenance={"untrained_heads": recorded})
    assert contract.caution == caution
    assert json.loads(contract.to_json()).get("caution", "") == caution


@pytest.mark.parametrize(
    ("provenance", "expected"), [({"data_fingerprint": "f00d"}, "f00d"), ({}, ""), ({"data_fingerprint": None}, "")]
)
def test_a_contract_says_what_its_model_was_trained_on_if_it_knows(
    provenance: dict[str, object], expected: str
) -> None:
    assert replace(CONTRACT, provenance=provenance).data_fingerprint == expected


def test_a_model_that_can_refer_nobody_says_so() -> None:
    nobody = "The model knows no DR grade from 2 on: it refers nobody for DR."
    contract = Contract(dr_grades=(0, 1))
    assert contract.caution == json.loads(contract.to_json())["caution"] == nobody
    both = replace(contract, provenance={"untrained_heads": ["me"]}).caution
    assert both == f"The model was never trained for ME: what it says about ME means nothing. {nobody}"
    assert Contract(dr_grades=(0, 2)).caution == ""


def test_thresholds_are_compared_in_double_as_other_programs_do() -> None:
    """The float32 nearest to 0.7 is below 0.7; if the threshold were rounded to float32, it would be reached."""
    rules = {
        **CONTRACT.thresholds, "me": Rule("at_least", 0.7),
        "referable_dr": Rule("at_least", 0.7, 2), "referable_me": Rule("at_least", 0.7),
    }  # fmt: skip
    just_below = np.float32(0.7)
    assert float(just_below) < 0.7
    probs = np.array([1 - just_below, just_below], np.float32)
    decision = decide(Contract(dr_grades=(0, 2), thresholds=rules), probs, probs)
    assert (decision.referable, decision.me_risk, decision.referable_me) == (False, 0, False)
    above = np.nextafter(just_below, np.float32(1))
    decision = decide(Contract(dr_grades=(0, 2), thresholds=rules), *[np.array([1 - above, above], np.float32)] * 2)
    assert (decision.referable, decision.me_risk, decision.referable_me) == (True, 1, True)


def test_a_contract_nested_without_end_is_refused() -> None:
    with pytest.raises(ModelFileError, match="expected a contract in JSON"):
        Contract.from_json("[" * 200_000)
    with pytest.raises(ModelFileError, match="expected a contract in JSON"):
        Contract.from_json('{"schema": ' + "1" * 5000 + "}")


@pytest.mark.parametrize("untrained", [[], ["me"]])
def test_a_caution_of_the_file_s_own_is_kept_beside_the_computed_one(untrained: list[str]) -> None:
    computed = replace(CONTRACT, provenance={"untrained_heads": untrained})
    body = json.loads(computed.to_json())
    for caution in (
        "Not for children.",
        f"{computed.caution} Not  for\nchildren.",
        f"Not for children. {computed.caution}",
    ):
        read = Contract.from_json(json.dumps(body | {"caution": caution}))
        assert read.caution == f"{computed.caution} Not for children.".strip()
        assert read.to_dict()["caution"] == read.caution
        assert Contract.from_json(read.to_json()) == read
    for same in (computed.caution, "", None):
        assert Contract.from_json(json.dumps(body | {"caution": same})) == computed
    assert replace(computed, added_caution="Not  for\nchildren.") == replace(
        computed, added_caution="Not for children."
    )
    with pytest.raises(ModelFileError, match="caution: expected Unicode text, found 5"):
        replace(computed, added_caution=5)  # type: ignore[arg-type]
    # What was computed for other fields does not stay.
    trained = replace(Contract.from_json(json.dumps(body | {"caution": "Old."})), provenance={})
    assert trained.caution == "Old."
