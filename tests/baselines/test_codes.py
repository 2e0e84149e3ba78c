"""The transformer over codes: what it sees, how it draws, and sampling against slow literal references."""

from __future__ import annotations

import math

import pytest
import torch

from pathup.baselines.codes import CodeTransformer, build_transformer, chosen, draw_codes, kept, start_of, uniforms
from pathup.errors import PathUpError
from pathup.recipes import CodesRecipe, Recipe

CODES, LENGTH = 12, 16


@pytest.fixture
def transformer() -> CodeTransformer:
    """Two layers, with weights large enough that codes before a place have a say in it."""
    spec = CodesRecipe(layers=2, heads=2, width=16, dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = CodeTransformer(spec, codes=CODES, starts=4, length=LENGTH).eval()
        for weight in made.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    return made


def some_codes(count: int = 3) -> torch.Tensor:
    return torch.randint(0, CODES, (count, LENGTH - 1), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_a_later_code_changes_no_earlier_logits(transformer):
    starts, codes = torch.tensor([0, 1, 2]), some_codes()
    logits = transformer(starts, codes)
    assert logits.shape == (3, LENGTH, CODES)
    for place in range(LENGTH - 1):
        changed = codes.clone()
        changed[:, place] = (changed[:, place] + 1) % CODES
        other = transformer(starts, changed)
        assert torch.equal(other[:, : place + 1], logits[:, : place + 1])
        assert not torch.allclose(other[:, place + 1], logits[:, place + 1], atol=1e-3)  # far above float32's rounding


@torch.no_grad()
def test_the_start_token_has_a_say_in_every_place(transformer):
    codes = some_codes(1)
    one, other = transformer(torch.tensor([0]), codes), transformer(torch.tensor([3]), codes)
    assert ((one - other).abs().amax(-1) > 1e-3).all()  # far above float32's rounding


@torch.no_grad()
def test_steps_with_a_cache_give_the_logits_of_the_whole(transformer):
    starts, codes = torch.tensor([0, 1, 2]), some_codes()
    whole = transformer(starts, codes)
    tokens, past = transformer.codes + starts, None
    for place in range(LENGTH):
        logits, past = transformer.following(tokens, past)
        assert torch.allclose(logits, whole[:, place], atol=1e-5)  # float32: sums in another order
        if place < LENGTH - 1:
            tokens = codes[:, place]


@torch.no_grad()
def slow_codes(transformer: CodeTransformer, start: int, numbers: list[float], spec: CodesRecipe) -> list[int]:
    """One image's codes without a cache: at each place, the whole sequence again."""
    drawn: list[int] = []
    for number in numbers:
        codes = torch.tensor([drawn], dtype=torch.int64)
        logits = transformer(torch.tensor([start]), codes)[0, -1]
        drawn.append(slow_choice(logits.tolist(), number, spec.top_k, spec.top_p, spec.temperature))
    return drawn


def slow_kept(logits: list[float], top_k: int, top_p: float) -> set[int]:
    ranked = sorted(range(len(logits)), key=lambda code: -logits[code])  # Python's sort keeps the order of equals
    if top_k:
        ranked = ranked[:top_k]
    total = sum(math.exp(logits[code]) for code in ranked)
    together, stays = 0.0, set()
    for code in ranked:
        stays.add(code)
        together += math.exp(logits[code]) / total
        if top_p < 1 and together >= top_p:
            break
    return stays


def slow_choice(logits: list[float], number: float, top_k: int, top_p: float, temperature: float) -> int:
    logits = [value / temperature for value in logits]
    stays = slow_kept(logits, top_k, top_p)
    total = sum(math.exp(logits[code]) for code in stays)
    summed = 0.0
    for code in sorted(stays):
        summed += math.exp(logits[code]) / total
        if number < summed:
            return code
    return max(stays)


SETTINGS = [(0, 1.0, 1.0), (3, 1.0, 1.0), (0, 0.7, 1.0), (5, 0.8, 0.5), (1, 1.0, 2.0), (0, 0.01, 1.0), (40, 0.9, 1.5)]


@pytest.mark.parametrize(("top_k", "top_p", "temperature"), SETTINGS)
def test_drawing_with_a_cache_is_a_slow_loop_without_one(transformer, top_k, top_p, temperature):
    spec = CodesRecipe(top_k=top_k, top_p=top_p, temperature=temperature)
    numbers = uniforms("A", "patch", range(3), 0, LENGTH)
    starts = torch.tensor([2, 0, 3])
    drawn = draw_codes(transformer, starts, numbers, spec)
    assert drawn.tolist() == [
        slow_codes(transformer, int(start), row.tolist(), spec) for start, row in zip(starts, numbers, strict=True)
    ]


@pytest.mark.parametrize(("top_k", "top_p", "temperature"), SETTINGS)
def test_choices_are_those_of_a_literal_reference(top_k, top_p, temperature):
    draw = torch.Generator().manual_seed(2)
    logits, numbers = 2 * torch.randn((200, CODES), generator=draw).double(), torch.rand(200, generator=draw).double()
    wanted = [
        slow_choice(row.tolist(), float(number), top_k, top_p, temperature)
        for row, number in zip(logits, numbers, strict=True)
    ]
    options = {"top_k": top_k, "top_p": top_p}
    assert chosen(logits, numbers, temperature=temperature, **options).tolist() == wanted
    masks = kept(logits, **options)
    assert [set(row.nonzero().flatten().tolist()) for row in masks] == [
        slow_kept(row.tolist(), top_k, top_p) for row in logits
    ]


def test_of_equal_logits_top_k_keeps_the_first():
    assert kept(torch.zeros(1, 5), top_k=2).tolist() == [[True, True, False, False, False]]


def test_the_likeliest_code_is_kept_however_small_top_p_is():
    assert kept(torch.tensor([[0.0, 3.0, 1.0]]), top_p=1e-9).tolist() == [[False, True, False]]


def test_the_ends_of_the_numbers_choose_the_first_and_last_code_that_is_kept():
    logits = torch.tensor([[0.0, 5.0, 5.0, 0.0], [0.0, 5.0, 5.0, 0.0]])
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)  # the largest that torch.rand gives
    assert chosen(logits, ends, top_k=2).tolist() == [1, 2]
    assert chosen(logits, ends).tolist() == [0, 3]


def test_codes_are_drawn_as_often_as_they_are_likely():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    evenly = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    counts = torch.bincount(chosen(logits.expand(1000, 4), evenly))
    assert (
        counts - torch.tensor([100, 200, 300, 400])
    ).abs().max() <= 1  # a number at a border may fall on either side


def test_numbers_of_an_image_are_its_own():
    rows = uniforms("A", "patch", range(4), 7, LENGTH)
    assert rows.shape == (4, LENGTH)
    assert torch.equal(uniforms("A", "patch", range(2, 3), 7, LENGTH)[0], rows[2])
    for other in (uniforms("B", "patch", range(4), 7, LENGTH), uniforms("A", "overview", range(4), 7, LENGTH)):
        assert not torch.equal(other, rows)
    assert len({tuple(row.tolist()) for row in rows}) == 4


def test_every_class_and_level_has_a_start_of_its_own(recipe: Recipe):
    starts = [start_of(recipe, label, level) for label in recipe.labels for level in recipe.level_names]
    assert sorted(starts) == [0, 1, 2, 3]
    transformer = build_transformer(recipe)
    assert transformer.gpt.wte.num_embeddings == recipe.baselines.vqgan.codes + 4
    with pytest.raises(PathUpError, match="unknown label 'C'"):
        start_of(recipe, "C", "patch")
    with pytest.raises(PathUpError, match="unknown level"):
        start_of(recipe, "A", "whole")
