"""The table of the zoo, its door and its page; what the models compute is in test_models.py."""

from __future__ import annotations

import pytest
import torch

from edgec import zoo
from edgec.errors import EdgecError
from edgec.importers import classify, load
from edgec.ir.info import info_of
from edgec.zoo.weights import randomize
from tests.zoo.counting import folded_parameters, multiply_adds, parameters
from tools import zoo_table

ROWS = {row.name: row for row in zoo.ZOO}

# What others have counted: in millions, as the papers and the authors' logs round them.
PUBLISHED = {
    "mobilenet_v2_1.4": (6_108_776, 6_084_808, 582.2), "mobilenet_v2_1.3": (5_386_792, 5_364_664, 509.4),
    "mobilenet_v2": (3_504_872, 3_487_816, 300.77), "mobilenet_v2_0.75": (2_636_424, 2_623_104, 209.07),
    "mobilenet_v2_0.5": (1_968_680, 1_959_408, 97.13), "mobilenet_v2_0.35": (1_677_128, 1_670_088, 59.29),
    "mobilenet_v2_0.25": (1_519_112, 1_513_784, 37.20), "mobilenet_v2_0.1": (1_356_696, 1_353_556, 12.92),
    "deeplab_v3_mobilenet_v2": (2_113_557, None, 2740), "ssdlite_mobilenet_v2": (4_500_543, None, 804),
    "lsnet_t": (11_409_832, 11_370_488, 316), "lsnet_s": (16_146_304, 16_098_232, 538),
    "lsnet_b": (23_313_608, 23_249_320, 1244), "lsnet_t_distilled": (11_795_600, None, None),
    "lsnet_s_distilled": (16_596_200, None, None), "lsnet_b_distilled": (23_827_632, None, None),
    "slab_deit_t": (6_198_401, 6_179_176, 1139), "slab_deit_s": (22_992_641, 22_954_216, 4358),
    "slab_swin_t": (29_216_605, 29_168_384, None), "slab_swin_s": (50_552_965, 50_467_856, None),
    "lightm_unet": (5_011_683, None, None), "dual_cnn": (14_862, 14_862, None),
}
RESOLUTIONS = {192: 221.3, 160: 154.1, 128: 99.1, 96: 56.3}


@pytest.mark.parametrize("name", ROWS)
def test_counts(name: str) -> None:
    row = ROWS[name]
    with torch.device("meta"):
        module = row.build()
        image = torch.empty(1, row.channels, row.size, row.size)
    found = parameters(module), folded_parameters(module), multiply_adds(module, image)
    assert found == (row.parameters, row.folded, row.macs)
    trainable, folded, millions = PUBLISHED[name]
    assert row.parameters == trainable
    assert folded in (None, row.folded)
    if millions is not None:
        digits = len(str(millions).partition(".")[2])
        assert abs(row.macs / 1e6 - millions) <= (1.0 if digits == 0 else 0.5 * 10**-digits + 1e-9)


@pytest.mark.parametrize("size", RESOLUTIONS)
def test_multiply_adds_of_smaller_images(size: int) -> None:
    with torch.device("meta"):
        found = multiply_adds(ROWS["mobilenet_v2"].build(size), torch.empty(1, 3, size, size)) / 1e6
    assert round(found, 1) == RESOLUTIONS[size]


def test_the_page_has_the_table() -> None:
    page = zoo_table.PAGE.read_text(encoding="utf-8")
    assert zoo_table.table() in page
    assert page.count("| `zoo:") == len(zoo.ZOO) == len(ROWS)


@pytest.mark.parametrize(("source", "words"), [
    ("zoo:nonsense", "mobilenet_v2_0.1"), ("zoo:", "slab_swin_t"), ("zoo:lsnet", "did you mean 'lsnet_"),
    ("zoo:lsnet_t@", "number"), ("zoo:lsnet_t@big", "number"), ("zoo:lsnet_t@-32", "number"),
    (f"zoo:lsnet_t@{'9' * 5000}", "number"),
    ("zoo:lsnet_t@٣٢", "number"), ("zoo:lsnet_t@17", "multiple of 32"), ("zoo:lsnet_t@0", "multiple of 32"),
    ("zoo:dual_cnn@56", "28"), ("zoo:deeplab_v3_mobilenet_v2@512", "plus 1"), ("zoo:slab_swin_t@128", "224"),
    ("zoo:mobilenet_v2@99999999999968", "4096"),
])
def test_bad_names_and_sizes(source: str, words: str) -> None:
    with pytest.raises(EdgecError) as caught:
        classify(source)
    assert caught.value.code == "E0101"
    assert words in caught.value.render()


def test_options_that_a_row_does_not_have() -> None:
    with pytest.raises(EdgecError) as caught:
        load("zoo:dual_cnn", example_inputs=(torch.zeros(1, 1, 28, 28),))
    assert caught.value.code == "E0002"


def test_weights_are_drawn_alike_and_torch_is_left_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two = (randomize(ROWS["dual_cnn"].build()).state_dict() for _ in range(2))
    other = randomize(ROWS["dual_cnn"].build(), seed=1).state_dict()
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not any(torch.equal(one[k], other[k]) for k in one)
    with torch.random.fork_rng():
        torch.set_rng_state(state)
        norms = randomize(ROWS["lsnet_t"].build())
        fresh = [p for part in norms.modules() if isinstance(part, torch.nn.BatchNorm2d)
                 for p in (part.running_mean, part.running_var, part.weight, part.bias)]
        assert all(p is not None and p.std() > 0.05 for p in fresh)
    image = ROWS["dual_cnn"].example()
    assert torch.equal(image, ROWS["dual_cnn"].example())


def test_trained_weights_are_not_called_random(capfd: pytest.CaptureFixture[str]) -> None:
    """The twin: the same module, given as an object, may hold anything."""
    module = ROWS["dual_cnn"].build()
    model = load(module, example_inputs=(ROWS["dual_cnn"].example(),), check=False)
    assert not info_of(model).random_weights
    assert "RANDOM" not in capfd.readouterr().err
