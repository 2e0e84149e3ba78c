"""Training end to end on made tiles: an unbroken run against one that is killed and resumed, and what a run writes."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pathup import PathUpPipeline
from pathup.errors import PathUpError
from pathup.model.feature_entropy import FeatureEntropyLoss
from pathup.slides.images import read_image
from pathup.tiles.provenance import read_sources
from pathup.training.checkpoints import newest_checkpoint
from pathup.training.latents import encoder_sha256
from pathup.training.runs import train_autoencoder, train_encoder
from tests.processes import PathUpProcess, run_pathup, run_several
from tests.training.trained import QUIET, diffusion


def command(verb: str, *arguments: object) -> list[str]:
    return ["train", verb, "--recipe", "tiny", "--cpu", *map(str, arguments)]


def killed_again_and_again(line: list[str], run: Path, kills: int) -> None:
    """Start, `kill -9` as soon as a newer checkpoint (or part of one) is seen, resume; then let it end."""
    for attempt in range(kills):
        before = set((run / "checkpoints").glob("*"))
        with PathUpProcess(*line, *(["--resume"] if attempt else [])) as process:
            deadline = time.monotonic() + 120
            while set((run / "checkpoints").glob("*")) <= before and process.running() and time.monotonic() < deadline:
                time.sleep(0.002)
    run_pathup(*line, "--resume")


def killed_at_random_moments(line: list[str], run: Path, steps: int, kills: int, seed: int) -> list[int]:
    """Start, `kill -9` a drawn time after a drawn step was logged, resume; then let it end. Returns the steps."""
    draw = random.Random(seed)
    moments = sorted(draw.sample(range(steps), kills))
    for attempt, moment in enumerate(moments):
        with PathUpProcess(*line, *(["--resume"] if attempt else [])) as process:
            log, deadline = run / "losses.jsonl", time.monotonic() + 120
            while process.running() and time.monotonic() < deadline:
                if (len(log.read_text().splitlines()) if log.exists() else 0) >= moment:
                    break
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.05))  # a step or two of 'tiny': anywhere in a step, a log line, a checkpoint
            assert process.running(), "the run had ended before it could be killed"
    run_pathup(*line, "--resume")
    return moments


def same_tensors(one: Path, other: Path) -> list[str]:
    """Names of the files in two checkpoints whose tensors are bit-for-bit equal; asserts that all are."""
    names = sorted(path.name for path in one.glob("*.safetensors"))
    for name in names:
        a, b = load_file(one / name), load_file(other / name)
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), f"{name}: {key}"
    return names


def test_a_run_killed_many_times_ends_bit_for_bit_like_an_unbroken_one(tmp_path, tiny_tiles, tiny_autoencoder):
    # 52 training tiles in batches of 4 make 13 steps an epoch: 34 steps end in the third
    line = command("diffusion", "--tiles", tiny_tiles, "--autoencoder", tiny_autoencoder, "--steps", 34)
    run_pathup(*line, "--output", tmp_path / "whole")
    killed_again_and_again([*line, "--output", str(tmp_path / "killed")], tmp_path / "killed", kills=4)
    # drawn among the first 30 steps: the last few pass while a kill is still being sent
    line_at_random = [*line, "--output", str(tmp_path / "at_random")]
    moments = killed_at_random_moments(line_at_random, tmp_path / "at_random", steps=30, kills=4, seed=1)
    assert moments[-1] >= 13  # one at least in the second epoch or later
    for broken in ("killed", "at_random"):
        whole, killed = (newest_checkpoint(tmp_path / run / "checkpoints") for run in ("whole", broken))
        assert whole is not None and killed is not None
        assert whole.step == killed.step == 34
        assert same_tensors(whole.folder, killed.folder) == [
            "average.safetensors",
            "feature_memory.safetensors",
            "model.safetensors",
            "optimizer.safetensors",
        ]
        # losses, learning rates and gradient norms of every step are those of the unbroken run
        assert (tmp_path / "whole/losses.jsonl").read_text() == (tmp_path / broken / "losses.jsonl").read_text()
        same_tensors(tmp_path / "whole/model/unet", tmp_path / broken / "model/unet")


def test_a_resumed_run_goes_on_from_its_checkpoint_and_not_from_the_start(
    tmp_path, tiny_tiles, tiny_autoencoder, monkeypatch
):
    # bit-for-bit equality alone would also hold for a run that quietly started over
    from pathup.training.patho_align import PathoAlignTrainer

    run = tmp_path / "run"
    diffusion(tiny_tiles, run, tiny_autoencoder, steps=4)
    taken, step = [], PathoAlignTrainer._train_step
    monkeypatch.setattr(PathoAlignTrainer, "_train_step", lambda self, *a: taken.append(self.step) or step(self, *a))
    diffusion(tiny_tiles, run, tiny_autoencoder, steps=7, resume=True)
    assert taken == [4, 5, 6]
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(PathUpError, match="none is there now"):
        diffusion(tiny_tiles, run, tiny_autoencoder, steps=9, resume=True)
    assert len((run / "losses.jsonl").read_text().splitlines()) == 7, "what was logged is still there"


def test_a_run_may_be_resumed_with_another_learning_rate_and_without_muon_or_with_it_may_not(
    tmp_path, tiny_tiles, tiny_autoencoder
):
    run = tmp_path / "run"
    diffusion(tiny_tiles, run, tiny_autoencoder, steps=2, learning_rate=0.001, decay_steps=0, warmup_steps=0)
    same = {"decay_steps": 0, "warmup_steps": 0, "resume": True}
    diffusion(tiny_tiles, run, tiny_autoencoder, steps=4, learning_rate=0.0001, **same)
    rates = [json.loads(line)["learning_rate"] for line in (run / "losses.jsonl").read_text().splitlines()]
    assert rates[-1] == 0.0001 and rates[0] == 0.001
    with pytest.raises(PathUpError, match="holds another run"):
        diffusion(tiny_tiles, run, tiny_autoencoder, steps=6, muon_learning_rate=0.01, **same)


def test_a_run_with_muon_that_is_resumed_ends_bit_for_bit_like_an_unbroken_one(tmp_path, tiny_tiles, tiny_autoencoder):
    for steps, resume in ((4, False), (6, True)):
        broken = {"steps": steps, "resume": resume, "muon_learning_rate": 0.01, "decay_steps": 0}
        diffusion(tiny_tiles, tmp_path / "broken", tiny_autoencoder, **broken)
    diffusion(tiny_tiles, tmp_path / "whole", tiny_autoencoder, steps=6, muon_learning_rate=0.01, decay_steps=0)
    diffusion(tiny_tiles, tmp_path / "adamw", tiny_autoencoder, steps=6, decay_steps=0)
    whole, one, adamw = (newest_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", "broken", "adamw"))
    assert whole is not None and one is not None and adamw is not None
    assert "muon.safetensors" in same_tensors(whole.folder, one.folder)
    inner = "unet.down_blocks.0.resnets.0.conv1.weight"
    assert not torch.equal(whole.tensors("model")[inner], adamw.tensors("model")[inner])


def test_the_feature_entropy_loss_moves_the_memory_and_the_weights(tmp_path, tiny_tiles, tiny_autoencoder, recipe):
    ends = {}
    for beta in (0.0, 1.0):
        run = tmp_path / f"beta{beta:g}"
        diffusion(tiny_tiles, run, tiny_autoencoder, steps=2, **{"feature_entropy.beta": beta})
        ends[beta] = newest_checkpoint(run / "checkpoints")
    encoder = "down_blocks.0.resnets.0.conv1.weight"
    assert not torch.equal(*(end.tensors("model")[f"unet.{encoder}"] for end in ends.values()))
    begin = FeatureEntropyLoss(4, 32, temperature=0.07, momentum=0.99, seed=recipe.diffusion.seed).memory_KD
    assert not torch.equal(ends[1.0].tensors("feature_memory")["memory_KD"], begin)
    run = tmp_path / "one level"
    diffusion(tiny_tiles, run, tiny_autoencoder, steps=2, level="patch")
    memory = load_file(run / "model/feature_memory.safetensors")["memory_KD"]
    assert memory.shape == (2, 32)
    assert PathUpPipeline.from_pretrained(run / "model").level_names == ["patch"], (
        "what it never saw, it does not claim"
    )


def test_an_autoencoder_run_killed_in_every_phase_ends_like_an_unbroken_one(tmp_path, tiny_tiles):
    # tiny: adversarial from step 2, encoder frozen from step 3, a checkpoint every 2 steps
    line = command("autoencoder", "--tiles", tiny_tiles, "--steps", 8)
    run_pathup(*line, "--output", tmp_path / "whole")
    killed_again_and_again([*line, "--output", str(tmp_path / "killed")], tmp_path / "killed", kills=2)
    whole, killed = (newest_checkpoint(tmp_path / run / "checkpoints") for run in ("whole", "killed"))
    assert whole is not None and killed is not None
    assert len(same_tensors(whole.folder, killed.folder)) == 5
    same_tensors(tmp_path / "whole/autoencoder", tmp_path / "killed/autoencoder")


def test_an_encoder_run_killed_again_and_again_ends_like_an_unbroken_one(tmp_path, tiny_tiles):
    # tiny: a checkpoint every 2 steps
    line = command("encoder", "--tiles", tiny_tiles, "--steps", 8)
    run_pathup(*line, "--output", tmp_path / "whole")
    killed_again_and_again([*line, "--output", str(tmp_path / "killed")], tmp_path / "killed", kills=2)
    whole, killed = (newest_checkpoint(tmp_path / run / "checkpoints") for run in ("whole", "killed"))
    assert whole is not None and killed is not None
    assert len(same_tensors(whole.folder, killed.folder)) == 3
    same_tensors(tmp_path / "whole/encoder", tmp_path / "killed/encoder")


def test_a_trained_folder_loads_as_pathup_and_as_stable_diffusion(tmp_path, tiny_tiles, tiny_autoencoder):
    from diffusers import StableDiffusionPipeline

    folder = diffusion(tiny_tiles, tmp_path / "run", tiny_autoencoder)
    pipeline = PathUpPipeline.from_pretrained(folder)
    assert pipeline.labels == ["A", "B"]
    first = pipeline("A", "patch", seed=1, output_type="pt")
    assert first.shape == (1, 3, 32, 32)
    plain = StableDiffusionPipeline(
        vae=pipeline.vae,
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        unet=pipeline.unet,
        scheduler=pipeline.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    image = plain(pipeline.prompt("A", "patch"), num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (32, 32, 3)
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {
        "recipe.yaml",
        "losses.jsonl",
        "losses.png",
        "sheets",
        "tensorboard",
        "checkpoints",
        "latents",
        "model",
    } <= written
    sources = read_sources(folder)
    assert sources
    assert sources == read_sources(tiny_tiles / "train")
    memory = load_file(folder / "feature_memory.safetensors")["memory_KD"]
    assert memory.shape == (4, 32)  # 2 classes x 2 levels, by the middle block's width
    lines = [json.loads(line) for line in (tmp_path / "run/losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_a_tiny_folder_in_stable_diffusion_format_is_a_valid_start(tmp_path, tiny_tiles, recipe):
    """Stands for Stable Diffusion 1.x/2.x: same classes and layout, PNDM scheduler, tiny widths."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    from pathup.model.components import build_components

    parts = build_components(recipe)
    StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        unet=parts.unet,
        scheduler=PNDMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(tmp_path / "sd")
    folder = diffusion(tiny_tiles, tmp_path / "run", pretrained=str(tmp_path / "sd"))
    pipeline = PathUpPipeline.from_pretrained(folder)
    assert pipeline.scheduler.config.prediction_type == "epsilon"  # the folder's, not the recipe's v_prediction
    assert pipeline("B", "overview", seed=0)[0].size == (32, 32)


def tiny_stable_diffusion(folder: Path, recipe, **vae: object) -> Path:
    """A Stable-Diffusion-format folder of tiny widths, with another autoencoder than the recipe's."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline

    from pathup.model.components import build_components

    blocks = len(vae["block_out_channels"])
    parts = build_components(recipe)
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
            norm_num_groups=8, **vae,
        ),
        text_encoder=parts.text_encoder, tokenizer=parts.tokenizer, unet=parts.unet,
        scheduler=PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_a_stable_diffusion_folder_learns_the_scale_and_begins_as_it_was(tmp_path, tiny_tiles, recipe):
    sd = tiny_stable_diffusion(tmp_path / "sd", recipe, block_out_channels=(16, 16, 16), latent_channels=4)
    values = recipe.model_dump(mode="json")
    values["model"]["scale_conditioning"] = True
    (tmp_path / "scale.yaml").write_text(yaml.safe_dump(values))
    losses, scales = {}, {}
    for name, chosen in (("with", tmp_path / "scale.yaml"), ("without", "tiny")):
        folder = diffusion(tiny_tiles, tmp_path / name, pretrained=str(sd), recipe=chosen, steps=3)
        losses[name] = json.loads((tmp_path / name / "losses.jsonl").read_text().splitlines()[0])["L_r"]
        scales[name] = PathUpPipeline.from_pretrained(folder).scale_encoder
    assert losses["with"] == losses["without"]  # of the first step
    assert scales["without"] is None
    assert scales["with"].out.weight.abs().max() > 0
    again = diffusion(tiny_tiles, tmp_path / "again", pretrained=str(tmp_path / "with/model"), steps=1)
    assert PathUpPipeline.from_pretrained(again).scale_encoder is not None  # its U-Net was trained with it


def test_windows_follow_an_autoencoder_of_another_factor(tmp_path, tiny_tiles, recipe):
    sd = tiny_stable_diffusion(tmp_path / "sd", recipe, block_out_channels=(16, 16), latent_channels=4)  # factor 2
    with pytest.warns(UserWarning, match="sampling.window_latent is 16 and overlap_latent 8 in this run"):
        folder = diffusion(tiny_tiles, tmp_path / "run", pretrained=str(sd), steps=1)
    pipeline = PathUpPipeline.from_pretrained(folder)
    assert pipeline.sampling.window_latent == 16
    assert pipeline("A", seed=0)[0].size == (32, 32)


def test_an_autoencoder_that_does_not_fit_the_unet_is_refused_at_once(tmp_path, tiny_tiles, recipe, tiny_autoencoder):
    eight = tiny_stable_diffusion(tmp_path / "sd", recipe, block_out_channels=(16, 16, 16), latent_channels=8)
    with pytest.raises(PathUpError, match="takes 4 channels and the autoencoder makes 8"):
        diffusion(tiny_tiles, tmp_path / "run", pretrained=str(eight))
    four = tiny_stable_diffusion(tmp_path / "four", recipe, block_out_channels=(16, 16, 16), latent_channels=4)
    with pytest.raises(PathUpError, match="takes latents of 4 channels, but the autoencoder makes 8"):
        diffusion(tiny_tiles, tmp_path / "run", autoencoder=eight / "vae", pretrained=str(four))
    assert not (tmp_path / "run").exists()


def test_a_log_tells_whether_prompts_have_a_say(tmp_path, tiny_tiles, tiny_autoencoder, monkeypatch):
    def gaps(run: Path) -> list[float]:
        return [json.loads(line).get("prompt_gap") for line in (run / "losses.jsonl").read_text().splitlines()]

    diffusion(tiny_tiles, tmp_path / "listening", tiny_autoencoder, steps=4)
    assert all(isinstance(gap, float) and gap != 0 for gap in gaps(tmp_path / "listening"))
    diffusion(tiny_tiles, tmp_path / "neutral", tiny_autoencoder, steps=4, patho_align=False)
    assert gaps(tmp_path / "neutral") == [None] * len(gaps(tmp_path / "listening"))
    deaf = PathUpPipeline.encode_prompts
    monkeypatch.setattr(PathUpPipeline, "encode_prompts", lambda *a, **k: torch.zeros_like(deaf(*a, **k)))
    diffusion(tiny_tiles, tmp_path / "deaf", tiny_autoencoder, steps=4)
    assert gaps(tmp_path / "deaf") == [0.0] * len(gaps(tmp_path / "listening"))


def test_without_patho_align_every_prompt_is_the_same(tmp_path, tiny_tiles, tiny_autoencoder):
    folder = diffusion(tiny_tiles, tmp_path / "run", tiny_autoencoder, patho_align=False)
    pipeline = PathUpPipeline.from_pretrained(folder)
    assert pipeline.prompt("A", "patch") == pipeline.prompt("B", "overview") == "histopathology"
    assert "L_e" not in (tmp_path / "run/losses.jsonl").read_text()


def test_level_trains_on_that_levels_tiles_alone(tmp_path, tiny_tiles, tiny_autoencoder):
    diffusion(tiny_tiles, tmp_path / "run", tiny_autoencoder, level="overview", steps=2)
    import numpy as np

    assert np.load(tmp_path / "run/latents/latents.npy", mmap_mode="r").shape == (2, 1, 4, 8, 8)


def test_a_damaged_newest_checkpoint_is_skipped_and_none_valid_stops(tmp_path, tiny_tiles, tiny_autoencoder):
    run = tmp_path / "run"
    diffusion(tiny_tiles, run, tiny_autoencoder)
    newest, older = sorted((run / "checkpoints").glob("step-*"), reverse=True)
    whole = {name: value.clone() for name, value in load_file(newest / "model.safetensors").items()}  # mapped
    data = (newest / "model.safetensors").read_bytes()
    (newest / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.warns(UserWarning, match=r"step-00000006 is skipped: model.safetensors is damaged"):
        diffusion(tiny_tiles, run, tiny_autoencoder, resume=True)
    again = load_file(newest / "model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    for folder in (newest, older):
        (folder / "manifest.json").unlink(missing_ok=True)
    with pytest.warns(UserWarning), pytest.raises(PathUpError, match=r"none of the .* checkpoints .* is complete"):
        diffusion(tiny_tiles, run, tiny_autoencoder, resume=True)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"autoencoder": None}, "an autoencoder is needed"),
        ({"autoencoder": "/nowhere/at/all"}, "is not a folder"),
        ({"precision": "fp8"}, "'diffusion.precision' is 'fp8'"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
        ({"level": "pach"}, "did you mean 'patch'"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(tmp_path, tiny_tiles, tiny_autoencoder, changes, sentence):
    with pytest.raises(PathUpError, match=sentence):
        diffusion(tiny_tiles, tmp_path / "run", **{"autoencoder": tiny_autoencoder, **changes})
    assert not (tmp_path / "run").exists()


def test_another_runs_folder_is_refused(tmp_path, tiny_tiles, tiny_autoencoder):
    diffusion(tiny_tiles, tmp_path / "run", tiny_autoencoder, steps=1)
    with pytest.raises(PathUpError, match="holds another run"):
        diffusion(tiny_tiles, tmp_path / "run", tiny_autoencoder, seed=5, resume=True)
    with pytest.raises(PathUpError, match="add --resume"):
        diffusion(tiny_tiles, tmp_path / "run", tiny_autoencoder, steps=1)


def check_normalised(vae, tiles: Path) -> None:
    """Latents of whole tiles have mean 0 and deviation 1 a channel."""
    pixels = torch.stack(
        [torch.tensor(read_image(path)).permute(2, 0, 1) for path in sorted((tiles / "train").rglob("*.png"))]
    )
    latents = vae.encode(pixels.float() / 127.5 - 1).latent_dist.mode()
    # they were normalised on crops, drawn class by class: a third is what that and the few tiles leave
    assert latents.mean((0, 2, 3)).abs().max() < 0.33
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.33


def test_a_trained_autoencoder_loads_and_its_latents_are_normalised(tmp_path, tiny_tiles):
    from pathup.model.components import load_autoencoder

    folder = train_autoencoder(tiny_tiles, tmp_path / "run", "tiny", pretrained=None, changes={}, **QUIET)
    vae = load_autoencoder(folder)
    assert vae.config.scaling_factor == 1.0
    check_normalised(vae, tiny_tiles)
    with pytest.raises(PathUpError, match="holds another run"):
        diffusion(tiny_tiles, tmp_path / "run", folder)


def test_latents_of_a_pretrained_autoencoder_are_normalised_whatever_factor_it_brought(tmp_path, tiny_tiles, recipe):
    from pathup.model.components import build_autoencoder, load_autoencoder

    vae = build_autoencoder(recipe.autoencoder)
    vae.register_to_config(scaling_factor=0.18215)  # Stable Diffusion's
    vae.save_pretrained(tmp_path / "sd_vae")
    run = tmp_path / "run"
    for steps in (4, 6):  # frozen from step 3 on; the second call resumes behind that
        folder = train_autoencoder(
            tiny_tiles, run, "tiny", pretrained=str(tmp_path / "sd_vae"), changes={"steps": steps},
            **{**QUIET, "resume": steps > 4},
        )  # fmt: skip
        assert load_autoencoder(folder).config.scaling_factor == 1.0
        check_normalised(load_autoencoder(folder), tiny_tiles)
        assert str(tmp_path) not in (folder / "config.json").read_text()

    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["autoencoder"] |= {"freeze_encoder_at": 0, "decoder_noise": 0.1}
    (tmp_path / "decoder.yaml").write_text(yaml.safe_dump(recipe))
    for steps in (4, 6):
        folder = train_autoencoder(
            tiny_tiles, tmp_path / "decoder", str(tmp_path / "decoder.yaml"), pretrained=str(tmp_path / "sd_vae"),
            changes={"steps": steps}, **{**QUIET, "resume": steps > 4},
        )  # fmt: skip
        tuned = load_autoencoder(folder)
        assert encoder_sha256(tuned) == encoder_sha256(vae), "a U-Net trained on its latents still fits"
        assert not torch.equal(tuned.decoder.conv_in.weight, vae.decoder.conv_in.weight)

    with pytest.raises(PathUpError, match="train it with --precision bf16 or fp32"):
        train_autoencoder(
            tiny_tiles, tmp_path / "half", "tiny", pretrained=None, changes={"precision": "fp16"}, **QUIET
        )
    with pytest.raises(PathUpError, match="is not a folder"):
        train_autoencoder(tiny_tiles, tmp_path / "half", "tiny", pretrained="/nowhere/at/all", changes={}, **QUIET)
    assert not (tmp_path / "half").exists(), "a corrected command is not another run"


@pytest.mark.parametrize("train", [train_autoencoder, train_encoder])
def test_what_one_process_trains_is_refused_to_several(tmp_path, tiny_tiles, monkeypatch, train):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as a launcher sets it
    with pytest.raises(PathUpError, match=r"an (autoencoder|encoder) is trained by one process, but 2 were launched"):
        train(tiny_tiles, tmp_path / "run", "tiny", pretrained=None, changes={}, **QUIET)
    assert not (tmp_path / "run").exists()


def test_two_processes_train_what_one_trains_on_the_joint_batch(tmp_path, tiny_tiles, tiny_autoencoder, recipe):
    # half of the prompts dropped: each process then has another number of terms of L_e. With beta 1 in place of 0.1 the
    # run is so sensitive that rounding alone grows from 3e-7 to 3e-3 of L_e in 50 steps
    values = recipe.model_dump(mode="json")
    values["diffusion"] |= {"prompt_dropout": 0.5, "steps": 50, "checkpoint_every": 50, "sample_every": 50}
    recipes = {}
    for name, accumulation in (("one", 1), ("two", 2)):  # 16 x 1 tiles a step in one process, 4 x 2 in each of two
        values["diffusion"]["gradient_accumulation"] = accumulation
        recipes[name] = tmp_path / f"{name}.yaml"
        recipes[name].write_text(yaml.safe_dump(values))
    # where there is no GPU nobody says --cpu, and Accelerate alone takes what torchrun starts there for two runs
    on_cpu = ["--cpu"] if torch.accelerator.is_available() else []
    line = ["train", "diffusion", *on_cpu, "--tiles", tiny_tiles, "--autoencoder", tiny_autoencoder]
    run_pathup(*line, "--recipe", recipes["one"], "--batch-size", 16, "--output", tmp_path / "one")
    run_several(2, *line, "--recipe", recipes["two"], "--batch-size", 4, "--output", tmp_path / "two")
    a, b = (newest_checkpoint(tmp_path / run / "checkpoints") for run in ("one", "two"))
    assert a is not None
    assert b is not None
    memory = [checkpoint.tensors("feature_memory")["memory_KD"] for checkpoint in (a, b)]
    assert torch.allclose(*memory, atol=1e-5)  # sums in another order, four times
    weights = [checkpoint.tensors("model")["unet.conv_in.weight"] for checkpoint in (a, b)]
    assert torch.allclose(*weights, atol=1e-4)  # Adam turns rounding of near-0 gradients into steps of that size
    losses = [[json.loads(line) for line in (tmp_path / run / "losses.jsonl").open()] for run in ("one", "two")]
    assert len(losses[0]) == len(losses[1]) == 50
    for joint, halves in zip(*losses, strict=True):
        for name in ("L_r", "L_e", "gradient_norm"):
            assert joint[name] == pytest.approx(halves[name], abs=1e-4), name  # rounding makes up 4e-6 of it
