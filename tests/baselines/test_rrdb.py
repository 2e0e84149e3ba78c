"""RRDBNet against spandrel's, its reach, and files with published weights, good and bad."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from spandrel import ModelLoader
from spandrel.architectures.ESRGAN import ESRGAN
from spandrel.architectures.ESRGAN import ESRGANArch as Spandrel

from pathup.baselines.rrdb import RRDBNet, load_published
from pathup.errors import PathUpError

PUBLISHED_NAMES = {
    *("conv_first", "trunk_conv", "upconv1", "upconv2", "HRconv", "conv_last"),
    *(f"RRDB_trunk.{b}.RDB{d}.conv{c}" for b in range(2) for d in (1, 2, 3) for c in (1, 2, 3, 4, 5)),
}
"""Of BSRGAN's file, of 2 blocks instead of 23."""


def made(growth: int = 32, blocks: int = 2) -> RRDBNet:
    """A network with weights so large that every layer tells."""
    torch.manual_seed(0)
    network = RRDBNet(channels=8, growth=growth, blocks=blocks)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.06)
    return network.eval()


def counted_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By the names of the first ESRGAN's files, which count layers."""
    pairs = {"conv_first": "model.0", "trunk_conv": "model.1.sub.2", "upconv1": "model.3", "upconv2": "model.6",
             "HRconv": "model.8", "conv_last": "model.10"}  # fmt: skip
    found = {}
    for name, value in state.items():
        layer, kind = name.rsplit(".", 1)
        if layer.startswith("RRDB_trunk."):
            layer = layer.replace("RRDB_trunk.", "model.1.sub.") + ".0"
        found[f"{pairs.get(layer, layer)}.{kind}"] = value
    return found


def test_weights_have_the_published_names_and_spandrel_computes_the_same():
    network = made()
    assert set(network.state_dict()) == {f"{name}.{kind}" for name in PUBLISHED_NAMES for kind in ("weight", "bias")}
    theirs = Spandrel().load(network.state_dict()).model.eval()
    pixels = torch.rand(2, 3, 9, 13)
    with torch.no_grad():
        assert torch.allclose(network(pixels), theirs(pixels), atol=1e-5)
        assert network(pixels).shape == (2, 3, 36, 52)


@pytest.mark.parametrize("blocks", [1, 2])
def test_an_output_pixel_depends_on_what_is_within_reach_and_on_nothing_further(blocks):
    torch.manual_seed(0)
    network = RRDBNet(channels=3, growth=2, blocks=blocks).double()
    for parameter in network.parameters():  # all positive: no two ways cancel
        torch.nn.init.uniform_(parameter, 0.1, 0.3)
    reach = network.reach_px
    side = 2 * reach + 5
    pixels = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    middle = side // 2
    enlarged = network(pixels)
    for place in (4 * middle, 4 * middle + 3):  # the first and the last pixel of those that one becomes
        (gradient,) = torch.autograd.grad(enlarged[0, 0, place, place], pixels, retain_graph=True)
        rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
        assert int((rows - middle).abs().max()) == reach


def test_the_blocks_begin_as_little_more_than_a_factor():
    torch.manual_seed(0)
    network = RRDBNet(channels=16, growth=8, blocks=3)
    hidden = torch.randn(1, 16, 12, 12)
    with torch.no_grad():
        change = network.RRDB_trunk(hidden) - 1.2**3 * hidden  # a block adds a fifth of what passes through it
    assert change.std() < 0.1  # of 1: convolutions begin at a tenth of He's deviation and weigh a fifth


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("form", ["published", "counted", "half", "nested"])
def test_a_file_that_stands_for_the_published_weights_gives_its_network_back(tmp_path, suffix, form):
    network = made()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    if form == "counted":
        state = counted_names(state)
    if form == "half":
        network.half().float()
        state = {name: value.half() for name, value in state.items()}
    path = tmp_path / f"BSRGAN{suffix}"
    if suffix == ".pth":
        torch.save({"params_ema": state} if form == "nested" else state, path)
    else:
        save_file(state, path)
    found = load_published(path)
    assert found.sizes == {"channels": 8, "growth": 32, "blocks": 2}
    assert not found.training
    for name, value in network.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    pixels = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(found(pixels), ModelLoader().load_from_file(path).model(pixels), atol=1e-5)


class Harmful:
    """What a pickle may do when it is read by a careless program."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def save_wrong(kind: str, path: Path, mark: Path) -> None:
    good = made().state_dict()
    if kind == "code":
        torch.save({**good, "more": Harmful(mark)}, path)
    elif kind == "pickled code":
        path.write_bytes(pickle.dumps(Harmful(mark)))
    elif kind == "another scale":
        torch.save(ESRGAN(num_filters=8, num_blocks=1, scale=2).state_dict(), path)
    elif kind == "grey":
        torch.save(ESRGAN(in_nc=1, out_nc=1, num_filters=8, num_blocks=1).state_dict(), path)
    elif kind == "unshuffled":
        torch.save(ESRGAN(in_nc=12, num_filters=8, num_blocks=1, scale=4, shuffle_factor=2).state_dict(), path)
    elif kind == "another kind of block":
        torch.save(ESRGAN(num_filters=8, num_blocks=1, plus=True).state_dict(), path)
    elif kind == "another network":
        torch.save(torch.nn.Linear(3, 3).state_dict(), path)
    elif kind == "no weights":
        torch.save([1, 2, 3], path)
    elif kind == "a weight is missing":
        torch.save({name: value for name, value in good.items() if name != "HRconv.bias"}, path)
    elif kind == "truncated":
        torch.save(good, path)
        path.write_bytes(path.read_bytes()[:-3000])
    elif kind == "text":
        path.write_text("no model")
    elif kind == "empty":
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("code", "no image model that can be read"),
        ("pickled code", "no image model that can be read"),
        ("another scale", "type ESRGAN that enlarges by 2"),
        ("grey", r"takes 1 channel\(s\) to 1"),
        ("unshuffled", "type ESRGAN that enlarges by 2"),
        ("another kind of block", "type ESRGAN"),
        ("another network", "no image model that can be read"),
        ("no weights", "no image model that can be read"),
        ("a weight is missing", "no image model that can be read"),
        ("truncated", "no image model that can be read"),
        ("text", "no image model that can be read"),
        ("empty", "no image model that can be read"),
    ],
)
def test_a_wrong_pth_is_one_sentence_and_runs_no_code(tmp_path, kind, sentence):
    path, mark = tmp_path / "weights.pth", tmp_path / "harm"
    save_wrong(kind, path, mark)
    with pytest.raises(PathUpError, match=sentence) as caught:
        load_published(path)
    assert "RRDB network (BSRGAN, ESRGAN) that enlarges RGB by 4" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_a_truncated_safetensors_another_ending_and_no_file_are_one_sentence_each(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(made().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PathUpError, match="no image model that can be read"):
        load_published(path)
    (tmp_path / "weights.bin").touch()
    with pytest.raises(PathUpError, match=r"ends in '\.bin'"):
        load_published(tmp_path / "weights.bin")
    with pytest.raises(PathUpError, match="is no file"):
        load_published(tmp_path / "nothing.pth")
