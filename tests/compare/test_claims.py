from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click
import pytest

from repro.compare.claims import claim_needs, compare_claims
from repro.compare.records import Records
from repro.errors import InputError
from repro.measure.claims import ELEMENTWISE, operators_of
from repro.measure.plan import missing, records_of
from repro.render.claims import FORMATS
from repro.render.terminal import WIDTH
from repro.results.store import Store
from repro.spec.claims import claims_of, load_claims
from repro.spec.project import Project
from repro.spec.tables import Variant
from tests.conftest import counted

PROJECT = Project()
TABLES = {table.number: table for table in PROJECT.tables()}
CLAIMS = claims_of(PROJECT.folder("tables"), TABLES)


def judged(store, claims=CLAIMS):
    result = compare_claims(claims, claims.claims, TABLES, Records(Store(store.folder)))
    return {item.claim.id: item for item in result.results}, result


def own(tmp_path: Path, text: str):
    path = tmp_path / "claims.yaml"
    variants = "variants: {net: {builder: timm, model: iformer_m}}\n"
    path.write_text(f"schema: 1\nsource: {{paper: A, document: B}}\n{variants}claims:\n{text}", encoding="utf-8")
    return load_claims(path, TABLES)


def one(tmp_path, store, check):
    claims = own(tmp_path, f"- {{claim: a, line: 1, says: b, check: {check}}}\n")
    found, _ = judged(store, claims)
    return found["a"]


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("fewer_blocks", "holds"),
        ("narrower_ffn", "holds"),
        ("narrower_head_and_ffn", "holds"),
        ("longer_schedule", "holds"),
        ("l2_top1", "holds"),
        ("l2_mask_ap", "holds"),
        ("l2_miou", "holds"),
        ("l2_faster", "holds"),
        ("split_costs_time", "holds"),
        ("sha_top1", "does_not_hold"),
        ("dwconv_in_ffn_latency", "cannot_be_checked_here"),
        ("chunking_faster", "cannot_be_checked_here"),
        ("recipe", "cannot_be_checked_here"),
    ],
)
def test_what_the_printed_cells_alone_say(store, name, status):
    found, _ = judged(store)
    assert found[name].status == status


def test_what_needs_measuring_waits(store):
    found, result = judged(store)
    for name in ("dwconv_in_ffn_flops", "eq6", "eq7", "sha_reduction", "all_ffn_widths", "fewer_than_a_quarter"):
        assert (found[name].status, found[name].reason) == ("cannot_be_checked_here", "not_run"), name
    assert result.exit_code == 1  # sha_top1 is wrong on paper alone


C, D = "{table: 10, row: Baseline, metric: top1, %s}", "{table: 11, row: FFN with DW Conv 3x3, metric: top1, %s}"
TRUE, FALSE, UNKNOWN = C % "equals: '80.4'", C % "equals: '80.5'", D % "equals: 1"


@pytest.mark.parametrize(
    ("check", "status"),
    [
        (TRUE, "holds"),
        (FALSE, "does_not_hold"),
        (UNKNOWN, "cannot_be_checked_here"),
        (f"{{all: [{TRUE}, {UNKNOWN}]}}", "cannot_be_checked_here"),
        (f"{{all: [{FALSE}, {UNKNOWN}]}}", "does_not_hold"),
        (f"{{all: [{TRUE}, {TRUE}]}}", "holds"),
        (f"{{any: [{TRUE}, {UNKNOWN}]}}", "holds"),
        (f"{{any: [{FALSE}, {UNKNOWN}]}}", "cannot_be_checked_here"),
        (f"{{any: [{FALSE}, {FALSE}]}}", "does_not_hold"),
        (f"{{not: {TRUE}}}", "does_not_hold"),
        (f"{{not: {FALSE}}}", "holds"),
        (f"{{not: {UNKNOWN}}}", "cannot_be_checked_here"),
        ("{quotient: [1, 0], equals: 1}", "cannot_be_checked_here"),
        ("{quotient: [12.5, 9.06], equals: '1.4'}", "holds"),
        ("{quotient: [12.5, 9.06], equals: '1.40'}", "does_not_hold"),
        ("{quotient: [1, 4], equals: {quotient: [25, 100]}}", "holds"),
        ("{sum: [1, 2], more_than: 3}", "does_not_hold"),
        ("{sum: [1, 2], at_least: 3}", "holds"),
        ("{sum: [1, 2], at_most: '2.9'}", "does_not_hold"),
        ("{sum: [1, 2], less_than: '3.1'}", "holds"),
        ("{change: ['1.14', 1], equals: 14}", "holds"),
    ],
)
def test_every_combination(tmp_path, store, check, status):
    assert one(tmp_path, store, check).status == status


def test_counts_are_compared_in_the_printed_unit(tmp_path, store):
    row = next(row for row in TABLES[14].rows if row.model == "+ concat")
    store.put(counted(row.variant, "gmacs", 1_579_370_000))
    store.put(counted(Variant(id="net", builder="timm", model="iformer_m"), "params", 8_880_000))
    measured = (
        "{table: 14, row: + concat, metric: gmacs, measured: true, equals: {table: 14, row: + concat, metric: gmacs}}"
    )
    assert one(tmp_path, store, measured).status == "holds"
    item = one(tmp_path, store, "{variant: net, metric: params, equals: '8.9'}")
    assert item.status == "holds"
    assert len(item.evidence[0].records) == 1
    assert one(tmp_path, store, "{variant: net, metric: params, equals: '8.8'}").status == "does_not_hold"


def run_here(needs, store):
    """Do in this process what a worker does."""
    for job in missing(needs, store):
        payload = job.payload()
        assert payload["task"] == "operators"
        outcome = operators_of(Variant(**payload["variant"]), tuple(payload["shape"]))
        for record in records_of(job, outcome, {}):
            store.put(record)


def test_the_equations_are_counted_operator_by_operator(store):
    chosen = [claim for claim in CLAIMS.claims if claim.formula is not None]
    run_here(claim_needs(CLAIMS, chosen, TABLES), store)
    found, _ = judged(store)
    assert {claim.id: found[claim.id].status for claim in chosen} == {
        "eq6": "does_not_hold",
        "eq6_projections": "holds",
        "eq6_projections_r4": "does_not_hold",
        "eq6_modulation": "holds",
        "eq6_attention": "does_not_hold",
        "eq6_attention_r1": "holds",
        "eq7": "holds",
        "eq7_models": "does_not_hold",
    }
    assert all(len(found[claim.id].evidence) == 5 for claim in chosen)


@pytest.mark.parametrize(("C", "P", "windows", "R"), [(32, 4, 3, 1), (48, 7, 1, 2), (64, 5, 2, 4), (16, 3, 1, 8)])
def test_an_attention_blocks_operators_are_those_worked_out_by_hand(C, P, windows, R):
    variant = Variant(
        id="b",
        builder="python",
        model="repro.models.iformer_ablations:AttentionBlock",
        arguments={"dim": C, "reduction": R},
    )
    pixels = windows * P * P
    assert operators_of(variant, (windows, C, P, P))["operators"] == {
        "conv": pixels * (2 * C * (C // R) + 3 * C * C),
        "scaled_dot_product_attention": pixels * P * P * (C // R + C),
        ELEMENTWISE: pixels * C,
    }


def test_a_size_that_is_no_whole_number_is_a_mistake_of_the_file(tmp_path):
    formula = "{model: 'm:f', shape: [{quotient: [C, 2]}, 1, 1, 1], cases: [{C: 3}], counts: [conv], equals: C}"
    claims = own(tmp_path, f"- {{claim: a, line: 1, says: b, formula: {formula}}}\n")
    with pytest.raises(InputError, match=r"claims\.yaml:5: claims: claim 'a': .* sizes are whole numbers"):
        claim_needs(claims, claims.claims, TABLES)


def test_formats(store):
    found, result = judged(store)
    text = click.unstyle(FORMATS["terminal"][1](result))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "79.7 - 80.4 = -0.7; stated -0.7" in text
    assert "Table 14, SHA Baseline without Modulation, Top-1: 79.4; stated 79.8: no" in text
    data = json.loads(FORMATS["json"][1](result))
    assert [claim["claim"] for claim in data["claims"]] == list(found)
    assert data["exit_code"] == 1
    assert sum(data["summary"].values()) == len(found)
    report = FORMATS["markdown"][1](result)
    rows = [line for line in report.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(found)
    assert {line.replace("\\|", "").count("|") for line in rows} == {6}


@pytest.mark.parametrize(("statuses", "code"), [(("l2_miou",), 0), (("l2_miou", "sha_top1"), 1), (("recipe",), 3)])
def test_exit_codes(store, statuses, code):
    chosen = [claim for claim in CLAIMS.claims if claim.id in statuses]
    assert compare_claims(replace(CLAIMS), chosen, TABLES, Records(store)).exit_code == code


def test_the_command(repro):
    result = repro("claims", "l2_*", "--format", "json")
    assert result.exit_code == 0
    assert [claim["claim"] for claim in json.loads(result.stdout)["claims"]] == [
        "l2_top1",
        "l2_mask_ap",
        "l2_miou",
        "l2_faster",
    ]
    assert repro("claims", "eq7", "--no-measure").exit_code == 3
    wrong = repro("claims", "eq9")
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("repro: no claim 'eq9'; did you mean eq")
    repro("claims", "l2_miou", "--format", "terminal,markdown", "--output", "there")
    assert "l2\\_miou" in Path("there/claims.md").read_text()


def test_validate_reads_the_claims_too(repro, second_paper):
    path = second_paper / "tables" / "claims.yaml"
    path.write_text("schema: 1\nsource: {paper: A, document: B}\nclaims: [{claim: a, line: 1, says: b}]\n")
    result = repro("validate", "--project", second_paper)
    assert result.exit_code == 2
    assert result.stderr.strip().endswith(
        "claims.yaml:3: claims[0]: a claim has one of 'check', 'formula' and 'cannot'"
    )
    path.unlink()
    assert repro("validate", "--project", second_paper).exit_code == 0
    assert repro("claims", "--project", second_paper).stderr.strip().endswith("claims.yaml: there is no such file")
