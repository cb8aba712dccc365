"""Mappings: files and flags make the same thing, and every mistake in them is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from graph_features.clock import DAY_MS
from graph_features.errors import InvalidInputError
from graph_features.ingest.mapping import (
    ColumnMapping,
    Constant,
    Delay,
    FromColumn,
    RowNumber,
    Template,
    load_mapping,
    parse_mapping,
)

DOCS = Path(__file__).parents[3] / "docs" / "mappings"
OWN = ["transaction_id", "event_timestamp", "sender_id", "receiver_id", "amount", "currency"]


def test_files_and_flags_make_the_same(tmp_path: Path) -> None:
    """What a YAML file says, flags say as well, in braces where it takes more than a column's name."""
    path = tmp_path / "m.yaml"
    path.write_text(
        "timezone: UTC\n"
        "columns:\n"
        "  amount: value\n"
        "  currency: {value: EUR}\n"
        "  sender_id: {column: from, prefix: a}\n"
        "  event_timestamp: {column: day, unit: day, epoch: 2020-01-01T00:00:00Z}\n"
        "  transaction_id: {template: '{from}-{day}!'}\n"
    )
    flags = [
        "amount=value",
        "currency={value: EUR}",
        "sender_id={column: from, prefix: a}",
        "event_timestamp={column: day, unit: day, epoch: 2020-01-01T00:00:00Z}",
        "transaction_id={template: '{from}-{day}!'}",
    ]
    (tmp_path / "zone.yaml").write_text("timezone: UTC\n")
    mapping = load_mapping(path)
    assert load_mapping(tmp_path / "zone.yaml", flags) == mapping
    assert mapping.columns["event_timestamp"] == FromColumn(column="day", unit="day", epoch_ms=18262 * DAY_MS)
    assert mapping.columns["transaction_id"] == Template(parts=("", "from", "-", "day", "!"))
    assert load_mapping(path, ["currency={value: USD}"]).columns["currency"] == Constant(value="USD")


def test_without_a_mapping_names_are_our_own() -> None:
    """Columns named like ours fill them; others are left alone; what is mapped wins over what has the name."""
    sources = load_mapping().resolve("transactions", [*OWN, "comment", "ip"])
    assert sources == {name: FromColumn(column=name) for name in [*OWN, "ip"]}
    mapped = parse_mapping({"columns": {"amount": "comment"}}).resolve("transactions", [*OWN, "comment"])
    assert mapped["amount"] == FromColumn(column="comment")


def test_a_column_may_have_a_zone_of_its_own() -> None:
    """The mapping's time zone holds for columns that name none."""
    columns = {"event_timestamp": {"column": "a", "timezone": "Asia/Tokyo"}, "status": "s", "status_timestamp": "b"}
    mapping = parse_mapping({"timezone": "UTC", "columns": columns})
    sources = mapping.resolve("transactions", [*OWN, "a", "b", "s"])
    zones = [sources[name].timezone for name in ("event_timestamp", "status_timestamp")]  # type: ignore[union-attr]
    assert zones == ["Asia/Tokyo", "UTC"]


@pytest.mark.parametrize("name", ["handbook.yaml", "amlsim.yaml"])
def test_the_mappings_in_the_docs_load(name: str) -> None:
    """The mapping files that the docs show are valid and fill all that is required."""
    mapping = load_mapping(DOCS / name)
    columns = [source.column for source in mapping.columns.values() if isinstance(source, FromColumn)]
    assert set(mapping.resolve("transactions", columns)) >= set(OWN)


def test_the_handbook_mapping_knows_the_label_delay() -> None:
    """Labels of the handbook become known after seven days."""
    assert load_mapping(DOCS / "handbook.yaml").columns["label_timestamp"] == Delay(delay_ms=7 * DAY_MS)
    assert load_mapping(DOCS / "amlsim.yaml").columns["transaction_id"] == RowNumber(prefix="cycle-")


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"colums": {}}, "colums"),
        ({"timezone": "Mars/Olympus"}, "timezone"),
        ({"encoding": "latin-99"}, "encoding"),
        ({"delimiter": ";;"}, "delimiter"),
        ({"columns": {"amonut": "x"}}, "amonut"),
        ({"columns": {"amount": 5}}, "amount"),
        ({"columns": {"amount": {"column": "x", "value": "y"}}}, "amount"),
        ({"columns": {"amount": {"column": "x", "unit": "day"}}}, "amount.unit"),
        ({"columns": {"amount": {"column": "x", "spam": 1}}}, "spam"),
        ({"columns": {"sender_id": {"column": "x", "unit": "s"}}}, "sender_id.unit"),
        ({"columns": {"event_timestamp": {"column": "x", "epoch": "2020-01-01T00:00:00Z"}}}, "epoch"),
        ({"columns": {"event_timestamp": {"column": "x", "unit": "s", "epoch": "2020-01-01"}}}, "epoch"),
        ({"columns": {"event_timestamp": {"delay": "7d"}}}, "event_timestamp"),
        ({"columns": {"label_timestamp": {"delay": "soon"}}}, "label_timestamp"),
        ({"columns": {"sender_id": {"row_number": True}}}, "sender_id"),
        ({"columns": {"transaction_id": {"row_number": False}}}, "transaction_id"),
        ({"columns": {"transaction_id": {"template": "plain"}}}, "transaction_id"),
        ({"columns": {"transaction_id": {"template": "{a"}}}, "transaction_id"),
        ({"columns": {"is_fraud": {"column": "x", "values": [1]}}}, "is_fraud.values"),
    ],
)
def test_a_mistake_is_named(data: dict, named: str) -> None:
    """Unknown keys, targets, options and bad values of a mapping are refused by name."""
    with pytest.raises(InvalidInputError, match=named.replace(".", r"\.")):
        parse_mapping(data)


@pytest.mark.parametrize(
    ("kind", "columns", "present", "named"),
    [
        ("spam", {}, OWN, "kind"),
        ("transactions", {}, OWN[:-1], "currency"),
        ("transactions", {"amount": "value"}, OWN, "value"),
        ("transactions", {"is_fraud": "f"}, [*OWN, "f"], "label_timestamp"),
        ("transactions", {"label_timestamp": {"delay": "7d"}}, OWN, "is_fraud"),
        ("transactions", {}, [*OWN, "status_timestamp"], "status"),
        ("labels", {"amount": "x"}, ["x"], "amount"),
        ("labels", {"label_timestamp": {"delay": "7d"}}, ["transaction_id", "is_fraud"], "label_timestamp"),
        ("statuses", {}, ["transaction_id", "status"], "status_timestamp"),
        ("transactions", {"transaction_id": {"template": "{a}-{b}"}}, [*OWN, "a"], "'b'"),
    ],
)
def test_a_mapping_that_does_not_fit_the_file_is_refused(
    kind: str, columns: dict, present: list[str], named: str
) -> None:
    """A required target without a source, a column that the file lacks, a label without its time: each is named."""
    with pytest.raises(InvalidInputError, match=named):
        parse_mapping({"columns": columns}).resolve(kind, present)


@pytest.mark.parametrize("flag", ["amount", "=x", "amount="])
def test_a_flag_is_target_and_source(flag: str) -> None:
    """A flag without one of its halves is refused."""
    with pytest.raises(InvalidInputError, match="target=source"):
        load_mapping(None, [flag])


@pytest.mark.parametrize("text", ["- a\n", "columns: [a]\n", "columns: {a\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    """Lists and broken YAML are errors that say so."""
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInputError):
        load_mapping(path)


def test_an_empty_file_is_an_empty_mapping(tmp_path: Path) -> None:
    """A mapping file with nothing in it changes nothing."""
    path = tmp_path / "m.yaml"
    path.write_text("# nothing yet\n")
    assert load_mapping(path) == ColumnMapping()
