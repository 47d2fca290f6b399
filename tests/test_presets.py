"""A preset gives what is not set, and takes no key that a configuration does not have."""

import pytest

from disguide_jax import presets

GIVEN = {"labels": "soft", "query_budget": 1000}
MAKERS = [
    lambda **settings: presets.cifar("a", recipe="victim_c10_r34", **GIVEN | settings),
    lambda **settings: presets.paper("a", recipe="victim_c100_r18", **GIVEN | settings),
    lambda **settings: presets.narrow("a", **GIVEN | settings),
    lambda **settings: presets.digits("a", **GIVEN | settings),
    lambda **settings: presets.fashion("a", **GIVEN | settings),
]


@pytest.mark.parametrize("make", MAKERS)
def test_what_is_set_replaces_single_keys_of_the_preset(make):
    preset = make()
    config = make(
        batch_size=7,
        generator={"width": 5},
        schedule={"factor": 0.5},
        victim={"input_space": "post-transform"},
    )
    assert (config.batch_size, config.generator.width, config.schedule.factor) == (7, 5, 0.5)
    assert config.victim.input_space == "post-transform"
    config.batch_size, config.generator.width = preset.batch_size, preset.generator.width
    config.schedule.factor = preset.schedule.factor
    config.victim.input_space = preset.victim.input_space
    assert config == preset


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("wrong", [{"batchsize": 7}, {"generator": {"batchsize": 7}}])
def test_a_key_that_does_not_exist_is_refused_by_name(make, wrong):
    with pytest.raises(TypeError, match="batchsize"):
        make(**wrong)
