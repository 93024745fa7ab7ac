import pytest

from gpt_jax.model.paths import layer_paths, matches

PATH = "blocks/3/attention/query/kernel"


@pytest.mark.parametrize(
    "glob", [PATH, "**", "**/kernel", "blocks/**", "blocks/*/attention/*/kernel", "blocks/?/**/que*/kernel"]
)
def test_matches(glob):
    assert matches(PATH, [glob])
    assert matches(PATH, ["nothing", glob])


@pytest.mark.parametrize(
    "glob", ["*", "*/kernel", "blocks/*/kernel", "kernel", "blocks/*", "blocks/13/**", "blocks.3/**", ""]
)
def test_does_not_match(glob):
    assert not matches(PATH, [glob])


def test_two_stars_cross_no_name_too():
    assert matches("kernel", ["**/kernel"])
    assert matches("blocks/kernel", ["blocks/**/kernel"])
    assert not matches("my_kernel", ["**/kernel"])


def test_a_stack_has_the_paths_of_its_layers():
    assert layer_paths("blocks/1:6:2/mlp/up/kernel") == [f"blocks/{layer}/mlp/up/kernel" for layer in (1, 3, 5)]
    assert layer_paths("head/kernel") == ["head/kernel"]
