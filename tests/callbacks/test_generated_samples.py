"""GeneratedSamples: the picture is that of the samples, of the right weights, and nothing else moves."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from matplotlib.image import imread
from torch import nn
from torch.utils.data import DataLoader

from firstlight.callbacks import GeneratedSamples, WeightEMA
from firstlight.callbacks._generated_samples import image_grid
from firstlight.modules import GANModule
from firstlight.tracking import SafeWandbLogger, read_offline_run
from helpers import fit, same, weights


class Levels(nn.Module):
    """An image of one level, the same for all samples; it steps as its weight does. It draws, as dropout would."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.5))
        self.channels = channels

    def forward(self, z):
        torch.rand(())
        return self.level.expand(len(z), self.channels, 8, 8)


def module(channels: int = 1) -> GANModule:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, 1))
    return GANModule(Levels(channels), critic, latent_dim=2)


def data(channels: int = 1) -> DataLoader:
    return DataLoader(torch.rand(16, channels, 8, 8, generator=torch.Generator().manual_seed(0)), batch_size=8)


def test_every_image_is_at_its_place():
    levels = torch.arange(10, 260, 50)
    grid = image_grid((levels / 255).view(5, 1, 1, 1).expand(5, 1, 400, 300))
    assert grid.shape == (2 * 401 + 1, 3 * 301 + 1, 3)
    assert grid.dtype == torch.uint8
    for i, level in enumerate(levels):
        top, left = 401 * (i // 3) + 1, 301 * (i % 3) + 1
        assert (grid[top : top + 400, left : left + 300] == level).all()
    assert (grid[::401] == 128).all()
    assert (grid[:, ::301] == 128).all()
    assert (grid[402:, 603:] == 128).all(), "an empty place"


def test_small_images_are_enlarged_whole_pixels_at_a_time_and_colors_kept():
    images = torch.rand(4, 3, 2, 2)
    grid = image_grid(images)
    assert 400 < grid.shape[0] == grid.shape[1] < 700
    size = (grid.shape[0] - 1) // 2 - 1
    pixel = size // 2
    first = grid[1 : 1 + size, 1 : 1 + size].float() / 255
    assert torch.equal(first[:pixel, :pixel], first[0, 0].expand(pixel, pixel, 3))
    torch.testing.assert_close(first[::pixel, ::pixel].permute(2, 0, 1), images[0], atol=1 / 255, rtol=0)


def test_values_outside_are_cut_off():
    grid = image_grid(torch.tensor([-3.0, 7.0]).view(2, 1, 1, 1).expand(2, 1, 300, 300))
    assert set(grid.unique().tolist()) == {0, 128, 255}


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_in_the_run_folder_is_of_the_last_weights(channels, tmp_path):
    made, shown = module(channels), GeneratedSamples(num_samples=4, low=-1.0, high=1.0)
    fit(made, shown, data=data(channels), logger=CSVLogger(tmp_path, name="", version=""))
    picture = imread(tmp_path / "samples.png")
    assert picture[2, 2, 0] == pytest.approx((made.generator.level.item() + 1) / 2, abs=1 / 255)


def test_pictures_reach_wandb_when_it_is_time_and_show_the_averages(tmp_path):
    logger = SafeWandbLogger(save_dir=tmp_path)
    seen = []
    made, shown = module(), GeneratedSamples(num_samples=4, every_n_epochs=2)
    draw = made.sample
    made.sample = lambda n, **kwargs: seen.append(made.generator.level.item()) or draw(n, **kwargs)
    fit(made, WeightEMA(0.999), shown, data=data(), val=data(), logger=logger, max_epochs=5)
    logger.finish()
    pictures = read_offline_run(logger.offline_dir).series("val/samples_picture")
    assert pictures[0] == [8, 16], "after two epochs of two batches of two steps, and after four"
    assert (logger.offline_dir / "files" / pictures[1][-1]["filenames"][0]).is_file()
    # Steps of Adam move the level by 2e-4 each, one a batch; of that the average has taken 2 per mille a batch.
    assert seen == pytest.approx([0.5] * 3, abs=2.5e-4)


def test_training_is_bit_for_bit_the_same(tmp_path):
    def run(*callbacks):
        made = module()
        fit(made, *callbacks, data=data(), val=data(), default_root_dir=tmp_path, max_epochs=2)
        return weights(made), torch.random.get_rng_state()

    bare, watched = run(), run(GeneratedSamples(num_samples=3))
    assert same(bare[0], watched[0])
    assert torch.equal(bare[1], watched[1])


class Vectors(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 8)

    def forward(self, z):
        return self.layer(z)


def test_it_stands_aside_once_where_samples_are_no_images(tmp_path):
    made = GANModule(Vectors(), nn.Linear(8, 1), latent_dim=2)
    rows = DataLoader(torch.rand(16, 8), batch_size=8)
    with pytest.warns(UserWarning, match=r"GeneratedSamples stands aside.*got \(64, 8\) from it") as told:
        fit(made, GeneratedSamples(), data=rows, val=rows, default_root_dir=tmp_path)
    assert sum("GeneratedSamples" in str(w.message) for w in told) == 1
    assert not list(tmp_path.glob("*.png"))


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="num_samples must be 1 or more; got 0"):
        GeneratedSamples(num_samples=0)
    with pytest.raises(ValueError, match="every_n_epochs must be 1 or more; got 0"):
        GeneratedSamples(every_n_epochs=0)
    with pytest.raises(ValueError, match=r"low must be below high, 1\.0; got 1\.0"):
        GeneratedSamples(low=1.0)
