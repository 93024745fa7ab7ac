"""What the fixtures are: name → model. Each family has several, that differ in sizes and in every switch it has."""

from tests.interop import cases_llama, cases_others

CASES = {**cases_llama.CASES, **cases_others.CASES}
