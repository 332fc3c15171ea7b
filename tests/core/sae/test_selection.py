"""`Selection`: one definition of which vectors of a model's tokens are read, and names that can be read back."""

from __future__ import annotations

import pytest
import torch

from saev_core.config.stages import ReadConfig
from saev_core.errors import ConfigError, UsageError
from saev_core.sae.selection import Selection
from saev_core.types import Grid, Site

GRID = Grid(2, 3, 8, n_prefix=2)
RECORDED = (Site(3), Site(1), Site(2, "mlp"))


def resolve(layer: int, stream: str) -> Site:
    return Site(layer % 4, stream)


def of(**read: object) -> Selection:
    return Selection.of(ReadConfig.model_validate(read), resolve, RECORDED)


def tokens(*sites: Site) -> dict[Site, torch.Tensor]:
    """Tokens `[2, 8, 5]` of two images at each site."""
    return {site: torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(i)).half() for i, site in enumerate(sites)}


@pytest.mark.parametrize(
    ("read", "name", "sites", "n_series", "n_joined"),
    [
        ({"layer": -2}, "resid.2", (Site(2),), 1, 1),
        ({"layer": (3, -4)}, "resid.0+3", (Site(0), Site(3)), 1, 2),
        ({"layer": "all"}, "resid.all", (Site(1), Site(3)), 2, 1),
        ({"layer": "mean"}, "resid.mean", (Site(1), Site(3)), 1, 1),
        ({"layer": 2, "stream": "attn.proj"}, "attn.proj.2", (Site(2, "attn.proj"),), 1, 1),
    ],
)
def test_it_is_read_back_from_its_name(read: dict[str, object], name: str, sites: tuple[Site, ...], n_series: int, n_joined: int) -> None:
    made = of(**read)
    assert str(made) == name
    assert made.sites == sites
    assert (len(made.series), made.n_joined) == (n_series, n_joined)
    again = Selection.named(name, ReadConfig.model_validate(read))
    assert again.among(RECORDED) == made
    assert str(again) == name
    assert again.n_joined == n_joined


def test_tokens_of_a_forward_pass_become_vectors() -> None:
    one, three = Site(1), Site(3)
    x = tokens(one, three)
    patches = {site: each[:, 2:] for site, each in x.items()}
    means = {site: each.float().mean(1, keepdim=True) for site, each in patches.items()}
    (found,) = of(layer=1).of_tokens(x, 2)
    assert torch.equal(found, patches[one])
    assert found.dtype == torch.float16
    (found,) = of(layer=1, tokens="cls").of_tokens(x, 2)
    assert torch.equal(found, x[one][:, :1])
    (found,) = of(layer=1, tokens="mean").of_tokens(x, 2)
    assert torch.equal(found, means[one])
    (found,) = of(layer=(1, 3)).of_tokens(x, 2)
    assert torch.equal(found, torch.cat([patches[one], patches[three]], 2))
    first, second = of(layer="all", tokens="mean").of_tokens(x, 2)
    assert torch.equal(first, means[one])
    assert torch.equal(second, means[three])
    (found,) = of(layer="mean").of_tokens(x, 2)
    assert torch.equal(found, (patches[one].float() + patches[three].float()) / 2)
    for read in ({"layer": 1}, {"layer": 1, "tokens": "cls"}, {"layer": "mean", "tokens": "mean"}, {"layer": (1, 3)}):
        made = of(**read)
        (found,) = made.of_tokens(x, 2)
        assert found.shape == (2, made.n_tokens(GRID), 5 * made.n_joined)
        assert (found.dtype == torch.float32) == made.averages


def test_it_says_at_which_single_site_its_vectors_are() -> None:
    one, everywhere, joined, averaged = of(layer=1), of(layer="all"), of(layer=(1, 3)), of(layer="mean")
    assert one.includes(Site(1))
    assert not one.includes(Site(3))
    assert everywhere.includes(Site(3))
    assert not everywhere.includes(Site(2))
    assert not everywhere.includes(Site(1, "mlp"))
    unknown = Selection.named("resid.all", ReadConfig(layer="all"))
    assert unknown.includes(Site(2))
    assert not unknown.includes(Site(2, "mlp"))
    assert not any(made.includes(site) for made in (joined, averaged) for site in (Site(1), Site(3)))
    assert one.at(Site(3)) == Site(1)
    assert everywhere.at(Site(3)) == Site(3)


def test_clamping_in_place_or_beside() -> None:
    x = torch.tensor([[-3.0, 0.5, 3.0]])
    made = of(layer=1, clamp=2.0)
    assert made.clamped(x).tolist() == [[-2, 0.5, 2]]
    assert x.tolist() == [[-3, 0.5, 3]]
    assert made.clamped(x, out=x) is x
    assert x.tolist() == [[-2, 0.5, 2]]
    assert of(layer=1).clamped(x) is x


def test_what_cannot_be_selected_is_one_clear_line() -> None:
    with pytest.raises(ConfigError, match=r"lists a block twice \(resid.1, resid.1\)"):
        of(layer=(1, -3))
    with pytest.raises(UsageError, match="is not a site"):
        Selection.named("anything", ReadConfig(layer=1))
