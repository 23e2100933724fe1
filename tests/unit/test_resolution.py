"""The sizes that Sana was trained with."""

import pytest

from sanacog.host.resolution import ASPECT_RATIOS, BASES, resolution, sizes


@pytest.mark.parametrize("base", BASES)
def test_sizes_are_those_of_diffusers(base):
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha as alpha
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_sigma as sigma
    from diffusers.pipelines.sana import pipeline_sana

    table = {"512": alpha.ASPECT_RATIO_512_BIN, "1024": alpha.ASPECT_RATIO_1024_BIN,
             "2K": sigma.ASPECT_RATIO_2048_BIN, "4K": pipeline_sana.ASPECT_RATIO_4096_BIN}[base]
    assert sorted(sizes(base)) == sorted((int(width), int(height)) for height, width in table.values())


def test_named_ratios():
    assert resolution("1024", "1:1") == (1024, 1024)
    assert resolution("1024", "16:9") == (1344, 768)
    assert resolution("1024", "9:16") == (768, 1344)
    assert resolution("512", "4:1") == (1024, 256)
    assert resolution("4K", "1:1") == (4096, 4096)
    for base in BASES:
        for name in ASPECT_RATIOS:
            width, height = resolution(base, name)
            wanted = int(name.split(":")[0]) / int(name.split(":")[1])
            assert abs(width / height / wanted - 1) < 0.08, (base, name, width, height)


@pytest.mark.parametrize("base, ratio", [("8K", "1:1"), ("1024", "wide"), ("1024", "1:0"), ("1024", "-1:2"), ("1024", "")])
def test_unknown_is_refused(base, ratio):
    with pytest.raises(ValueError, match="base is|aspect_ratio is"):
        resolution(base, ratio)
