import pytest
from hypothesis import given
from hypothesis import strategies as st

from autounet.schema.errors import OptionError
from autounet.schema.quantities import format_size, format_time, parse_size, parse_time


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 8 * 1024**3), ("8", 8 * 1024**3), ("500MB", 500 * 1024**2), ("1.5 gib", 3 * 2**29)]
)
def test_sizes_are_powers_of_1024(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1d", 86400)]
)
def test_times(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "8", "soon", "3x", "-5m", "0m", "5m later"])
def test_what_is_no_time_is_refused_with_an_example(text):
    with pytest.raises(OptionError, match="Write for example 90s"):
        parse_time(text)


@pytest.mark.parametrize("text", ["", "big", "0GB", "-8GB", "8XB"])
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(OptionError, match="Write for example 8GB"):
        parse_size(text)


@given(st.integers(1, 10**6))
def test_whole_seconds_survive(seconds):
    assert parse_time(f"{seconds}s") == seconds


def test_formats_read_well():
    assert [format_time(value) for value in (45, 720, 11100)] == ["45 s", "12 min", "3 h 05 min"]
    assert [format_size(value) for value in (5 * 1024**2, 8 * 1024**3)] == ["5 MB", "8.0 GB"]
